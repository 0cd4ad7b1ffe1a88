//! What the kernel says of this process, under the names that every exporter uses for it (without our prefix).

use std::{fs, sync::OnceLock, time::Duration};

use prometheus_client::registry::{Registry, Unit};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

use crate::Series;

/// Puts what is known into `registry`. What the kernel does not tell (a hardened unit may hide it) is left out.
pub(crate) fn measure(registry: &mut Registry) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        registry.register_with_unit(
            "process_cpu",
            "Processor time used, in user and kernel mode",
            Unit::Seconds,
            // A real number even when it is whole, as other exporters write it.
            Series::counter().with([], stat.cpu.as_secs_f64()),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Memory in RAM",
            Unit::Bytes,
            Series::gauge().count([], stat.resident_pages.saturating_mul(page_size() as u64)),
        );
        registry.register_with_unit(
            "process_virtual_memory",
            "Address space in use",
            Unit::Bytes,
            Series::gauge().count([], stat.virtual_bytes),
        );
        registry.register_with_unit(
            "process_start_time",
            "When the process began, since 1970",
            Unit::Seconds,
            Series::gauge().with([], began(stat.started)),
        );
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        let open = (descriptors.count() as u64).saturating_sub(1);
        registry.register("process_open_fds", "Open file descriptors", Series::gauge().count([], open));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        registry.register(
            "process_max_fds",
            "Most file descriptors that may be open",
            Series::gauge().count([], most),
        );
    }
}

/// What `/proc/self/stat` says (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu: Duration,
    /// Since the machine was started.
    started: Duration,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The program's name is in parentheses and may hold anything, spaces and parentheses too; field 3 comes after it.
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        Some(Self {
            cpu: ticks(field(14)?.checked_add(field(15)?)?),
            started: ticks(field(22)?),
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / clock_ticks_per_second().max(1) as f64)
}

/// The wall-clock time at which the process began, in seconds since 1970. Computed once: it must not move when the clock is set.
fn began(started: Duration) -> f64 {
    static BEGAN: OnceLock<f64> = OnceLock::new();
    let now = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    // Not by the boot time of /proc/stat, which `ProcSubset=pid` hides.
    *BEGAN.get_or_init(|| now(ClockId::Realtime) - now(ClockId::Boottime) + started.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_parenthesis_in_its_name_is_read() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 99 0 0 0 250 50 0 0 20 0 3 0 12345 8192 42 1844 1 1 0 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.cpu, ticks(300));
        assert_eq!(stat.started, ticks(12345));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (8192, 42));
        assert_eq!(Stat::parse("7 (short) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_began_a_moment_ago() {
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - began(stat.started);
        assert!((-1.0..3600.0).contains(&age), "{age}");
    }
}
