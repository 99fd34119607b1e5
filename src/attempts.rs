//! What became of the last attempts to connect.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::Error;
use crate::error::Outlook;
use crate::lock::lock;

/// The last cause, for all who wait, and the pauses after a refusal that waiting cannot mend.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<Last>);

#[derive(Default)]
struct Last {
    error: Option<String>,
    /// Until when, and how long.
    pause: Option<(Instant, Duration)>,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Attempts {
    /// Asks for leave to connect. After a pause one gets it, and for the others the next, longer pause has begun.
    pub(crate) fn begin(&self, now: Instant) -> Result<(), Error> {
        let mut last = self.lock();
        let Last { error: Some(cause), pause: Some((next, pause)) } = &mut *last else { return Ok(()) };
        if now < *next {
            return Err(Error::Paused { wait: *next - now, cause: cause.clone() });
        }
        *pause = (2 * *pause).min(LONGEST_PAUSE);
        *next = now + *pause;
        Ok(())
    }

    pub(crate) fn succeeded(&self) {
        *self.lock() = Last::default();
    }

    /// Tells the waiters of a failure of which the outcome of connect() is still open.
    pub(crate) fn note(&self, error: &Error) {
        self.lock().error = Some(error.to_string());
    }

    pub(crate) fn failed(&self, error: &Error, now: Instant) {
        let mut last = self.lock();
        last.error = Some(error.to_string());
        let pause = last.pause.unwrap_or((now + FIRST_PAUSE, FIRST_PAUSE));
        last.pause = (error.outlook() == Outlook::Stays).then_some(pause);
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::*;

    fn refused(text: &str) -> Error {
        let source = ConnectionError::BadConnection(text.into());
        Error::Connect { target: "app@db:5432".into(), source }
    }

    const NO_GRANT: &str = "FATAL: password authentication failed for user \"app\"";
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_a_success_ends_them() {
        let (attempts, mut now) = (Attempts::default(), Instant::now());
        attempts.begin(now).unwrap();
        attempts.failed(&refused(NO_GRANT), now);
        for pause in [1, 2, 4, 8, 10, 10] {
            let before = now + pause * SECOND - Duration::from_nanos(1);
            let error = attempts.begin(before).unwrap_err();
            assert!(error.to_string().contains("GRANT rds_iam"), "{error}");
            now += pause * SECOND;
            attempts.begin(now).unwrap();
            attempts.begin(now).unwrap_err();
            attempts.failed(&refused(NO_GRANT), now);
        }
        attempts.succeeded();
        attempts.begin(now).unwrap();
        assert_eq!(attempts.last_error(), None);
    }

    #[test]
    fn only_what_waiting_cannot_mend_makes_a_pause() {
        let cases = [
            (NO_GRANT, false),
            ("FATAL: database \"x\" does not exist", false),
            ("SSL error: certificate verify failed", false),
            ("FATAL: PAM authentication failed for user \"app\"", true),
            ("Connection refused", true),
            ("timeout expired", true),
            ("something never seen before", true),
        ];
        for (text, at_once) in cases {
            let (attempts, now) = (Attempts::default(), Instant::now());
            attempts.failed(&refused(text), now);
            assert_eq!(attempts.begin(now).is_ok(), at_once, "{text}");
            assert!(attempts.last_error().unwrap().contains(text), "{text}");
        }
    }

    #[test]
    fn those_under_way_at_the_first_refusal_prolong_no_pause() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        attempts.failed(&refused(NO_GRANT), now);
        attempts.failed(&refused(NO_GRANT), now + SECOND / 2);
        attempts.begin(now + SECOND).unwrap();
    }
}
