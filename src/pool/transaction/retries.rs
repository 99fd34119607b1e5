//! [`Retries`]: whether a transaction is run again, and when. Without I/O: the time and the jitter
//! are arguments.

use std::time::{Duration, Instant};

use crate::connection::Failure;

/// The pause after the first failure, before the jitter. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What one call has used up of its attempts and its time.
#[derive(Debug)]
pub(super) struct Retries {
    attempts: u32,
    /// `None` if the time limit is longer than time.
    deadline: Option<Instant>,
    failures: u32,
    refused_logins: u32,
    met_read_only: bool,
}

impl Retries {
    pub(super) fn new(attempts: u32, time_limit: Duration, now: Instant) -> Retries {
        Retries {
            attempts,
            deadline: now.checked_add(time_limit),
            failures: 0,
            refused_logins: 0,
            met_read_only: false,
        }
    }

    /// Returns how much time is left. `None` if there is no limit.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(now))
    }

    /// How many attempts have failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the pause before the next attempt, after one that did not commit. Returns `None` if
    /// there must be none. `jitter` is from 0 to 1.
    pub(super) fn after(
        &mut self,
        failure: Failure,
        now: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        self.failures += 1;
        let can_succeed = match failure {
            Failure::Conflict | Failure::ConnectionLost => true,
            // A server that was promoted in the meantime accepts the second attempt.
            Failure::ReadOnly => !std::mem::replace(&mut self.met_read_only, true),
            Failure::Other => false,
        };
        let may_retry = can_succeed && self.failures < self.attempts;
        may_retry.then(|| pause(self.failures, jitter)).filter(|pause| self.has_time(*pause, now))
    }

    /// Returns the pause before the next login, if there is no connection. This uses up no attempt,
    /// because the closure was not run.
    pub(super) fn after_login(&mut self, now: Instant, jitter: f64) -> Option<Duration> {
        self.refused_logins += 1;
        Some(pause(self.refused_logins, jitter)).filter(|pause| self.has_time(*pause, now))
    }

    fn has_time(&self, pause: Duration, now: Instant) -> bool {
        self.left(now).is_none_or(|left| left > pause)
    }
}

/// A random part of a time that doubles: transactions that met each other do not meet again.
fn pause(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(LONGEST_PAUSE).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn conflicts_and_lost_connections_are_retried_until_the_attempts_are_used_up() {
        for failure in [Failure::Conflict, Failure::ConnectionLost] {
            let now = Instant::now();
            let mut retries = Retries::new(3, LIMIT, now);
            assert_eq!(retries.after(failure, now, 1.0), Some(FIRST_PAUSE));
            assert_eq!(retries.after(failure, now, 1.0), Some(FIRST_PAUSE * 2));
            assert_eq!(retries.after(failure, now, 1.0), None);
        }
    }

    #[test]
    fn other_errors_are_not_retried() {
        let now = Instant::now();
        assert_eq!(Retries::new(9, LIMIT, now).after(Failure::Other, now, 0.0), None);
        assert_eq!(Retries::new(1, LIMIT, now).after(Failure::Conflict, now, 0.0), None);
    }

    #[test]
    fn a_read_only_error_of_a_server_that_takes_writes_is_retried_once() {
        let now = Instant::now();
        let mut retries = Retries::new(9, LIMIT, now);
        assert_eq!(retries.after(Failure::ReadOnly, now, 0.0), Some(Duration::ZERO));
        assert_eq!(retries.after(Failure::ReadOnly, now, 0.0), None);
    }

    #[test]
    fn after_the_time_limit_nothing_is_retried() {
        let now = Instant::now();
        let mut retries = Retries::new(9, Duration::from_millis(10), now);
        let almost = now + Duration::from_millis(10) - Duration::from_nanos(1);
        assert_eq!(retries.after(Failure::Conflict, almost, 0.0), Some(Duration::ZERO));
        assert_eq!(retries.after(Failure::Conflict, almost, 1.0), None);
        let end = now + Duration::from_millis(10);
        assert_eq!(retries.after(Failure::Conflict, end, 0.0), None);
        assert_eq!(retries.after_login(end, 0.0), None);
    }

    #[test]
    fn a_transient_login_error_uses_up_no_attempt() {
        let now = Instant::now();
        let mut retries = Retries::new(2, LIMIT, now);
        for _ in 0..10 {
            assert!(retries.after_login(now, 0.5).is_some());
        }
        assert!(retries.after(Failure::Conflict, now, 0.5).is_some());
    }

    #[test]
    fn pauses_double_up_to_a_second_and_jitter_shortens_them() {
        assert_eq!(pause(1, 0.5), FIRST_PAUSE / 2);
        assert_eq!(pause(4, 1.0), FIRST_PAUSE * 8);
        assert_eq!(pause(u32::MAX, 1.0), LONGEST_PAUSE);
        assert_eq!(pause(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_limit_longer_than_time_is_none() {
        let now = Instant::now();
        let mut retries = Retries::new(u32::MAX, Duration::MAX, now);
        assert_eq!(retries.left(now), None);
        assert!(retries.after(Failure::Conflict, now, 1.0).is_some());
    }
}
