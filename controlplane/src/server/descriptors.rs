//! File descriptors: each connection has one, and so have the store, the operators and the relay.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Limits;

/// File descriptors that connections at the nodes' port leave to everything else: operators' connections (at most 256), the store,
/// metrics, the relay's ports.
const RESERVE: usize = 512;

/// Raises the bound of this process to what it may have. What only `select` needs a low one for is not used here.
pub(crate) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "cannot raise the bound on file descriptors");
    }
}

impl Limits {
    /// What holds in this process: as many connections as it has file descriptors for, and not more than usual.
    pub(crate) fn of_this_process() -> Self {
        getrlimit(Resource::RLIMIT_NOFILE).map_or(Self::DEFAULT, |(soft, _)| Self::within(soft))
    }

    /// The same where there may be so many descriptors. Where that is less than twice the reserve, half of them.
    fn within(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let connections = descriptors.saturating_sub(RESERVE).max(descriptors / 2);
        Self { connections: Self::DEFAULT.connections.min(connections), ..Self::DEFAULT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_connections_than_descriptors_for_them() {
        let of = |descriptors| Limits::within(descriptors).connections;
        assert_eq!((of(u64::MAX), of(1 << 20)), (16 << 10, 16 << 10));
        assert_eq!((of(4096), of(1025)), (3584, 513));
        assert_eq!((of(1024), of(300), of(0)), (512, 150, 0));
    }
}
