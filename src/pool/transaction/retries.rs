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

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Run the transaction again after this pause.
    Retry(Duration),
    GiveUp,
}

/// How an attempt failed. The transaction is not in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Conflict,
    ConnectionLost,
    /// A write was refused. Whether the server itself refuses writes now, as a standby does after
    /// a failover.
    ReadOnly {
        is_server: bool,
    },
    /// The user's own error, or one that the same transaction would meet again.
    Other,
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Cause {
        match failure {
            Failure::Conflict => Cause::Conflict,
            Failure::ConnectionLost => Cause::ConnectionLost,
            Failure::ReadOnly => Cause::ReadOnly { is_server: false },
            Failure::Other => Cause::Other,
        }
    }
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

    /// Decides what to do after an attempt that did not commit. `jitter` is from 0 to 1.
    pub(super) fn after(&mut self, cause: Cause, now: Instant, jitter: f64) -> Next {
        self.failures += 1;
        let can_succeed = match cause {
            Cause::Conflict | Cause::ConnectionLost => true,
            // A server that was promoted in the meantime accepts the second attempt.
            Cause::ReadOnly { is_server } => {
                is_server || !std::mem::replace(&mut self.met_read_only, true)
            }
            Cause::Other => false,
        };
        if can_succeed && self.failures < self.attempts {
            self.at(pause(self.failures, jitter), now)
        } else {
            Next::GiveUp
        }
    }

    /// Decides what to do if there is no connection. This uses up no attempt, because the closure
    /// was not run.
    pub(super) fn after_login(&mut self, is_transient: bool, now: Instant, jitter: f64) -> Next {
        self.refused_logins += 1;
        if is_transient { self.at(pause(self.refused_logins, jitter), now) } else { Next::GiveUp }
    }

    fn at(&self, pause: Duration, now: Instant) -> Next {
        match self.left(now) {
            Some(left) if left <= pause => Next::GiveUp,
            _ => Next::Retry(pause),
        }
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
        for cause in [Cause::Conflict, Cause::ConnectionLost, Cause::ReadOnly { is_server: true }] {
            let now = Instant::now();
            let mut retries = Retries::new(3, LIMIT, now);
            assert_eq!(retries.after(cause, now, 1.0), Next::Retry(FIRST_PAUSE));
            assert_eq!(retries.after(cause, now, 1.0), Next::Retry(FIRST_PAUSE * 2));
            assert_eq!(retries.after(cause, now, 1.0), Next::GiveUp);
        }
    }

    #[test]
    fn other_errors_are_not_retried() {
        let now = Instant::now();
        assert_eq!(Retries::new(9, LIMIT, now).after(Cause::Other, now, 0.0), Next::GiveUp);
        assert_eq!(Retries::new(1, LIMIT, now).after(Cause::Conflict, now, 0.0), Next::GiveUp);
    }

    #[test]
    fn a_read_only_error_of_a_server_that_takes_writes_is_retried_once() {
        let now = Instant::now();
        let mut retries = Retries::new(9, LIMIT, now);
        let cause = Cause::ReadOnly { is_server: false };
        assert_eq!(retries.after(cause, now, 0.0), Next::Retry(Duration::ZERO));
        assert_eq!(retries.after(cause, now, 0.0), Next::GiveUp);
    }

    #[test]
    fn after_the_time_limit_nothing_is_retried() {
        let now = Instant::now();
        let mut retries = Retries::new(9, Duration::from_millis(10), now);
        let almost = now + Duration::from_millis(10) - Duration::from_nanos(1);
        assert_eq!(retries.after(Cause::Conflict, almost, 0.0), Next::Retry(Duration::ZERO));
        assert_eq!(retries.after(Cause::Conflict, almost, 1.0), Next::GiveUp);
        let end = now + Duration::from_millis(10);
        assert_eq!(retries.after(Cause::Conflict, end, 0.0), Next::GiveUp);
        assert_eq!(retries.after_login(true, end, 0.0), Next::GiveUp);
    }

    #[test]
    fn a_transient_login_error_uses_up_no_attempt() {
        let now = Instant::now();
        let mut retries = Retries::new(2, LIMIT, now);
        for _ in 0..10 {
            assert!(matches!(retries.after_login(true, now, 0.5), Next::Retry(_)));
        }
        assert_eq!(retries.after_login(false, now, 0.5), Next::GiveUp);
        assert!(matches!(retries.after(Cause::Conflict, now, 0.5), Next::Retry(_)));
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
        assert!(matches!(retries.after(Cause::Conflict, now, 1.0), Next::Retry(_)));
    }
}
