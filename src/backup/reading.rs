//! What becomes of bytes once they are read from the data directory: they count as progress, and cost time where they may
//! not be read as fast as can be.

use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use walhalla_providers::transfer::{Rate, RateClock};

use crate::progress::Progress;
use crate::threads::lock;

/// How often a thread that waits looks whether another one failed.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Whether bytes were read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// They were not.
    First,
    /// They were, and are no progress any more.
    Again,
}

/// What is told of bytes after they were read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// What the user sees, and the word to stop.
    pub(super) progress: &'a Progress,
    /// How fast is read.
    pub(super) pace: &'a ReadPace,
    /// Which bytes they are.
    pub(super) pass: Pass,
}

/// How many bytes a second all threads read together.
pub(super) struct ReadPace {
    begun: Instant,
    clock: Option<Mutex<RateClock>>,
}

impl<'a> Reading<'a> {
    /// The same for bytes that were read before.
    pub(super) fn again(self) -> Reading<'a> {
        Self {
            pass: Pass::Again,
            ..self
        }
    }

    /// Counts bytes that were read, and waits as long as they cost; whether to go on.
    pub(super) fn goes_on_after(&self, bytes: u64) -> bool {
        let done = match self.pass {
            Pass::First => bytes,
            Pass::Again => 0,
        };
        self.progress.add(done) && self.pace.wait(bytes, || self.progress.add(0))
    }
}

impl ReadPace {
    /// A pace that is counted from now; without a rate nothing waits.
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self {
            begun: Instant::now(),
            clock: rate.map(|rate| Mutex::new(RateClock::new(rate))),
        }
    }

    /// Waits as long as `bytes` cost, or until the work does not go on; whether it does.
    fn wait(&self, bytes: u64, goes_on: impl Fn() -> bool) -> bool {
        let Some(clock) = &self.clock else {
            return true;
        };
        let mut due = lock(clock).price(bytes);
        loop {
            let now = self.begun.elapsed();
            let wait = {
                let mut clock = lock(clock);
                due = clock.pay(now, due);
                clock.wait(now, due)
            };
            if due.is_zero() {
                return true;
            }
            if !goes_on() {
                return false;
            }
            sleep(wait.min(LONGEST_SLEEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Show;

    fn pace(bytes_a_second: u64) -> ReadPace {
        ReadPace::new(Rate::new(bytes_a_second))
    }

    #[test]
    fn threads_share_the_pace() {
        let pace = pace(1 << 20);
        let progress = Progress::new(Show::Never, "reading", 0);
        let reading = Reading {
            progress: &progress,
            pace: &pace,
            pass: Pass::First,
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        assert!(reading.goes_on_after(16 << 10));
                        assert!(reading.again().goes_on_after(16 << 10));
                    }
                });
            }
        });
        // 512 KiB at 1 MiB a second.
        let elapsed = pace.begun.elapsed();
        assert!(elapsed >= Duration::from_millis(500), "{elapsed:?}");
    }

    #[test]
    fn who_waits_stops_when_another_thread_failed() {
        let pace = pace(1 << 10);
        let progress = Progress::new(Show::Never, "reading", 0);
        let reading = Reading {
            progress: &progress,
            pace: &pace,
            pass: Pass::First,
        };
        std::thread::scope(|scope| {
            // A day's worth.
            let waiting = scope.spawn(|| reading.goes_on_after(86_400 << 10));
            sleep(Duration::from_millis(20));
            progress.stop();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let pace = ReadPace::new(None);
        assert!(pace.wait(u64::MAX, || panic!("nobody asks")));
    }
}
