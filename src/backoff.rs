//! [`BackOff`]: the wait between attempts that fail.

use std::time::{Duration, Instant};

/// The wait after a failed attempt. It doubles with each failure up to the longest, until a success
/// ends it. Methods get the time as an argument.
#[derive(Debug, Clone)]
pub(crate) struct BackOff {
    first: Duration,
    longest: Duration,
    failures: u32,
    until: Option<Instant>,
}

impl BackOff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> BackOff {
        BackOff { first, longest, failures: 0, until: None }
    }

    /// Starts the next, longer wait at `now`, also if a wait is in progress.
    pub(crate) fn failed(&mut self, now: Instant) {
        let length = self.first.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + length.min(self.longest));
    }

    /// Ends the wait. The next failure starts with the first wait again.
    pub(crate) fn succeeded(&mut self) {
        (self.failures, self.until) = (0, None);
    }

    /// Returns how long to wait before the next attempt, or `None` if it may start now.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// Returns the number of failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_doubles_up_to_the_longest() {
        let (mut back_off, mut now) = (BackOff::new(SECOND, 10 * SECOND), Instant::now());
        assert_eq!(back_off.wait(now), None);
        for seconds in [1, 2, 4, 8, 10, 10] {
            back_off.failed(now);
            assert_eq!(back_off.wait(now), Some(seconds * SECOND));
            now += seconds * SECOND;
            assert_eq!(back_off.wait(now - Duration::from_nanos(1)), Some(Duration::from_nanos(1)));
            assert_eq!(back_off.wait(now), None);
        }
        assert_eq!(back_off.failures(), 6);
    }

    #[test]
    fn a_success_starts_from_the_first_wait() {
        let (mut back_off, now) = (BackOff::new(SECOND, 10 * SECOND), Instant::now());
        back_off.failed(now);
        back_off.failed(now);
        back_off.succeeded();
        assert_eq!((back_off.wait(now), back_off.failures()), (None, 0));
        back_off.failed(now);
        assert_eq!(back_off.wait(now), Some(SECOND));
    }

    #[test]
    fn thousands_of_failures_do_not_overflow() {
        let (mut back_off, now) = (BackOff::new(SECOND, 10 * SECOND), Instant::now());
        for _ in 0..10_000 {
            back_off.failed(now);
        }
        assert_eq!(back_off.wait(now), Some(10 * SECOND));
    }
}
