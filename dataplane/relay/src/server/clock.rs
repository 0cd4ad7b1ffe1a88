//! The machine's clocks, read here and nowhere else.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ringmesh_tunnel::{Now, UnixTime};

/// Wall time. Before 1970 counts as 1970.
pub(super) fn wall() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Both clocks.
pub(super) fn now() -> Now {
    Now::new(Instant::now(), wall())
}
