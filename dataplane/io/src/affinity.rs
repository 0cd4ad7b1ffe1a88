//! Which processors a thread may run on.

use std::io;

use crate::sys;

/// Keeps the calling thread on processor `cpu`.
///
/// # Errors
///
/// When there is no such processor, or the process may not use it (a container's cpuset).
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = sys::CpuSet::new();
    if !set.insert(cpu) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no processor {cpu}")));
    }
    sys::set_affinity(&set).map_err(|error| {
        io::Error::new(error.kind(), format!("this process may not run on processor {cpu}: {error}"))
    })
}

/// The processors that the calling thread may run on, in ascending order.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn allowed() -> io::Result<Vec<usize>> {
    Ok(sys::affinity()?.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_is_on_its_processor_only() {
        std::thread::spawn(|| {
            let last = *allowed().unwrap().last().unwrap();
            pin(last).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_processor_that_does_not_exist_is_refused_by_name() {
        assert!(pin(1_000_000).unwrap_err().to_string().contains("1000000"));
        assert!(pin(1023).unwrap_err().to_string().contains("1023"));
    }
}
