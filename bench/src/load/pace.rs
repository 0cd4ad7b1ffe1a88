//! How fast a generator sends: by a share of one CPU, at a rate, or as it can.
//!
//! A share of a CPU is what makes a tunnel and the bare cable comparable on a machine that both ends share: the generator costs
//! the same beside both. It is kept by the thread itself, by its own CPU time, for control groups cannot be written
//! everywhere, and give their share in slices of many milliseconds, which overrun every queue.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_timerslack;
use nix::time::{ClockId, clock_gettime};

/// What a generator may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Use this share of one CPU.
    Share(f64),
    /// Send so many packets a second, as far as one CPU is enough.
    Rate(f64),
}

/// Sleeping for less costs more than it is worth.
const LEAST_SLEEP: Duration = Duration::from_micros(20);
/// What was not used because others had the CPU, or a sleep took too long, is made up for, but no more than this: a burst after
/// a pause would measure queues.
const MOST_CREDIT: Duration = Duration::from_millis(1);
/// Of sleeps, in nanoseconds; the kernel's own is 50 µs.
const TIMER_SLACK: u64 = 1;

/// Keeps a pace.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    /// When what was used or sent so far is paid for.
    paid: Instant,
    used: Duration,
}

impl Pacer {
    /// Begins now, on the calling thread.
    ///
    /// # Errors
    /// When the kernel has no CPU time of a thread.
    pub(crate) fn start(pace: Pace) -> Result<Self> {
        // Where it is refused, sleeps are longer and bursts larger, for all alike.
        let _ = set_timerslack(TIMER_SLACK);
        Ok(Self { pace, paid: Instant::now(), used: thread_time()? })
    }

    /// Accounts for packets that were sent, and sleeps if they were ahead of their time.
    ///
    /// # Errors
    /// When the kernel has no CPU time of a thread.
    pub(crate) fn sent(&mut self, packets: usize) -> Result<()> {
        let cost = match self.pace {
            Pace::Share(share) => {
                let used = thread_time()?;
                (used - std::mem::replace(&mut self.used, used)).div_f64(share)
            }
            Pace::Rate(rate) => Duration::from_secs_f64(packets as f64 / rate),
        };
        self.paid += cost;
        let now = Instant::now();
        let ahead = self.paid.saturating_duration_since(now);
        if ahead >= LEAST_SLEEP {
            thread::sleep(ahead);
        }
        if let Some(oldest) = now.checked_sub(MOST_CREDIT) {
            self.paid = self.paid.max(oldest);
        }
        Ok(())
    }
}

/// The calling thread's CPU time.
fn thread_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("asking for the thread's CPU time")?;
    Ok(Duration::from(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spins for `slice` a hundred times at `pace`; returns the CPU time used by the time that passed.
    fn share_at(pace: Pace, slice: Duration) -> f64 {
        let (began, used) = (Instant::now(), thread_time().unwrap());
        let mut pacer = Pacer::start(pace).unwrap();
        for _ in 0..100 {
            let until = thread_time().unwrap() + slice;
            while thread_time().unwrap() < until {
                std::hint::spin_loop();
            }
            pacer.sent(64).unwrap();
        }
        (thread_time().unwrap() - used).div_duration_f64(began.elapsed())
    }

    #[test]
    fn a_share_of_a_cpu_is_not_exceeded() {
        // Less is possible on a busy machine.
        let share = share_at(Pace::Share(0.25), Duration::from_micros(500));
        assert!(share < 0.32, "{share}");
    }

    #[test]
    fn a_rate_is_not_exceeded() {
        let began = Instant::now();
        let mut pacer = Pacer::start(Pace::Rate(64_000.0)).unwrap();
        for _ in 0..100 {
            pacer.sent(64).unwrap();
        }
        // A hundred batches of 1 ms each, less the credit.
        assert!(began.elapsed() >= Duration::from_millis(95), "{:?}", began.elapsed());
    }
}
