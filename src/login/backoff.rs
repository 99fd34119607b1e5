//! [`Backoff`]: the failed logins of a manager since its last success.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backoff::BackOff;
use crate::error::{Error, LoginFailure, Outlook};

/// The last error, for all who wait for a connection, and the waits between logins: after a
/// permanent refusal, and after many failures in a row.
#[derive(Default)]
pub(crate) struct Backoff(Mutex<Streak>);

/// Failures without a success in between.
#[derive(Default)]
struct Streak {
    failures: u32,
    started: Option<Instant>,
    last: Option<LastError>,
    /// The causes that were reported at error level.
    reported: BTreeSet<LoginFailure>,
    /// The wait before the next login, and which failures caused it.
    pause: Option<(Outlook, BackOff)>,
}

/// An error of which r2d2 keeps only the text.
#[derive(Debug, Clone)]
pub(crate) struct LastError {
    pub(crate) text: String,
    pub(crate) failure: Option<LoginFailure>,
    pub(crate) is_transient: bool,
}

impl LastError {
    pub(crate) fn new(error: &Error) -> LastError {
        let (failure, is_transient) = (error.login_failure(), error.is_transient());
        LastError { text: error.to_string(), failure, is_transient }
    }
}

impl From<LastError> for Error {
    fn from(last: LastError) -> Error {
        let LastError { text: reason, failure, is_transient } = last;
        Error::Timeout { reason, failure, is_transient }
    }
}

/// A streak that a success ended.
#[derive(Debug, PartialEq)]
pub(crate) struct EndedStreak {
    pub(crate) failures: u32,
    pub(crate) lasted: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// From this number of failures in a row, a pause follows each failure: the server has other
/// clients, and `PerThread` tries one login for each unit of work.
const BURST: u32 = 5;
const PAUSE_AFTER_BURST: Duration = Duration::from_millis(100);

impl Backoff {
    /// Returns [`Error::Paused`] during a pause. When it ends, one caller may log in; for all
    /// others the next, longer pause starts.
    pub(crate) fn begin(&self, now: Instant) -> Result<(), Error> {
        let mut streak = self.0.lock();
        let Streak { last: Some(last), pause: Some((_, pause)), .. } = &mut *streak else {
            return Ok(());
        };
        if let Some(wait) = pause.wait(now) {
            let LastError { text: cause, failure, is_transient } = last.clone();
            return Err(Error::Paused { wait, cause, failure, is_transient });
        }
        pause.failed(now);
        Ok(())
    }

    /// Records a success. Returns the streak that it ended, if logins failed before.
    pub(crate) fn succeeded(&self, now: Instant) -> Option<EndedStreak> {
        let streak = std::mem::take(&mut *self.0.lock());
        let lasted = now.duration_since(streak.started?);
        (streak.failures > 0).then_some(EndedStreak { failures: streak.failures, lasted })
    }

    /// Records the failure of one host while the outcome of the whole login is still open.
    pub(crate) fn host_failed(&self, error: &Error) {
        let last = LastError::new(error);
        self.0.lock().last = Some(last);
    }

    /// Records a failed login. Returns whether its cause is new in this streak.
    pub(crate) fn failed(&self, error: &Error, now: Instant) -> bool {
        let last = LastError::new(error);
        let cause = last.failure.unwrap_or(LoginFailure::Other);
        let mut streak = self.0.lock();
        streak.last = Some(last);
        streak.failures += 1;
        streak.started.get_or_insert(now);
        streak.pause = streak.next_pause(error.outlook(), now);
        streak.reported.insert(cause)
    }

    pub(crate) fn last_error(&self) -> Option<LastError> {
        self.0.lock().last.clone()
    }
}

impl Streak {
    /// A pause that has started continues if the next failure is of the same kind.
    fn next_pause(&mut self, outlook: Outlook, now: Instant) -> Option<(Outlook, BackOff)> {
        let mut pause = match outlook {
            Outlook::Permanent => BackOff::new(FIRST_PAUSE, LONGEST_PAUSE),
            Outlook::Unknown if self.failures >= BURST => {
                BackOff::new(PAUSE_AFTER_BURST, PAUSE_AFTER_BURST)
            }
            _ => return None,
        };
        let started = self.pause.take().filter(|(kind, _)| *kind == outlook);
        started.or_else(|| {
            pause.failed(now);
            Some((outlook, pause))
        })
    }
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::*;
    use crate::error::LoginKind;

    fn refused(text: &str) -> Error {
        let cause = ConnectionError::BadConnection(text.into());
        Error::connect("app@db:5432".into(), LoginKind::Rds, cause)
    }

    const NO_GRANT: &str = "FATAL: password authentication failed for user \"app\"";
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_a_success_ends_them() {
        let (backoff, mut now) = (Backoff::default(), Instant::now());
        let begun = now;
        backoff.begin(now).unwrap();
        backoff.failed(&refused(NO_GRANT), now);
        for pause in [1, 2, 4, 8, 10, 10] {
            let before = now + pause * SECOND - Duration::from_nanos(1);
            let error = backoff.begin(before).unwrap_err();
            assert!(error.to_string().contains("GRANT rds_iam"), "{error}");
            assert_eq!(error.login_failure(), Some(LoginFailure::RefusedUser));
            now += pause * SECOND;
            backoff.begin(now).unwrap();
            backoff.begin(now).unwrap_err();
            backoff.failed(&refused(NO_GRANT), now);
        }
        let ended = backoff.succeeded(now);
        assert_eq!(ended, Some(EndedStreak { failures: 7, lasted: now - begun }));
        backoff.begin(now).unwrap();
        assert!(backoff.last_error().is_none());
        assert_eq!(backoff.succeeded(now), None);
    }

    #[test]
    fn only_a_permanent_refusal_starts_a_pause_at_once() {
        let cases = [
            (NO_GRANT, false),
            ("FATAL: database \"x\" does not exist", false),
            ("SSL error: certificate verify failed", false),
            ("FATAL: PAM authentication failed for user \"app\"", true),
            ("Connection refused", true),
            ("timeout expired", true),
            ("something new", true),
        ];
        for (text, at_once) in cases {
            let (backoff, now) = (Backoff::default(), Instant::now());
            backoff.failed(&refused(text), now);
            assert_eq!(backoff.begin(now).is_ok(), at_once, "{text}");
            assert!(backoff.last_error().unwrap().text.contains(text), "{text}");
        }
    }

    #[test]
    fn many_failures_in_a_row_are_spaced_and_a_success_ends_that() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        let closed = refused("server closed the connection unexpectedly");
        for _ in 0..BURST {
            backoff.begin(now).unwrap();
            backoff.failed(&closed, now);
        }
        let mut next = now + PAUSE_AFTER_BURST;
        for _ in 0..3 {
            backoff.begin(next - Duration::from_nanos(1)).unwrap_err();
            backoff.begin(next).unwrap();
            backoff.begin(next).unwrap_err();
            backoff.failed(&closed, next);
            next += PAUSE_AFTER_BURST;
        }
        backoff.succeeded(next);
        backoff.failed(&closed, next);
        backoff.begin(next).unwrap();
    }

    #[test]
    fn logins_in_progress_at_the_first_refusal_do_not_prolong_the_pause() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        backoff.failed(&refused(NO_GRANT), now);
        backoff.failed(&refused(NO_GRANT), now + SECOND / 2);
        backoff.begin(now + SECOND).unwrap();
    }

    #[test]
    fn each_cause_is_new_once_in_a_streak() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        let (no_grant, down) = (refused(NO_GRANT), refused("Connection refused"));
        let seen = [&no_grant, &no_grant, &down, &no_grant, &down];
        assert_eq!(seen.map(|error| backoff.failed(error, now)), [true, false, true, false, false]);
        backoff.succeeded(now);
        assert!(backoff.failed(&no_grant, now));
    }
}
