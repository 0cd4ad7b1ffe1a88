//! Memory that is free, given back to the machine.
//!
//! glibc keeps what a program frees for its next allocation, in an arena for each of a few threads, and gives back only the end of an
//! arena. After a crowd of connections is gone, what they held stays with the process: nothing of it is in use, and nobody else can
//! use it.

/// Gives back to the machine all memory that is free. It looks at every free piece and keeps allocations waiting meanwhile: for a moment
/// after much was freed, not for a packet's path. Other C libraries than glibc give back by themselves, and nothing is done.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: has no arguments that could be wrong, takes glibc's own locks, and touches nothing that is allocated.
        let _gave_any = unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_between_what_is_in_use_goes_back() {
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        // Each with a small one behind it that stays: no end of an arena is free.
        let mut all: Vec<_> = (0..1000).map(|_| (vec![1_u8; 64 << 10], Box::new([1_u8; 64]))).collect();
        let full = resident();
        for (large, _) in &mut all {
            *large = Vec::new();
        }
        give_back();
        let left = resident();
        assert!(left + (50 << 20) < full, "{} KiB of {} KiB", left >> 10, full >> 10);
        assert!(all.iter().all(|(_, small)| small[0] == 1));
    }
}
