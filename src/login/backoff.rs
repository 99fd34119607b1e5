//! What became of the last attempts to connect.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Outlook};

/// The last cause, for all who wait, and the pauses after failures: a refusal that waiting cannot
/// mend, or many in a row.
#[derive(Default)]
pub(crate) struct Backoff(Mutex<Last>);

#[derive(Default)]
struct Last {
    error: Option<String>,
    /// Failures since the last success.
    in_a_row: u32,
    pause: Option<Pause>,
}

/// Between one attempt and the next, whoever makes them.
struct Pause {
    until: Instant,
    length: Duration,
    longest: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// So many failures in a row, of whatever kind, are no storm yet.
const BURST: u32 = 5;
/// From then on: the server has logins of others to care for, and `PerThread` tries one for each
/// unit of work.
const PAUSE_AFTER_BURST: Duration = Duration::from_millis(100);

impl Backoff {
    /// Asks for leave to connect. After a pause one gets it, and for the others the next, longer
    /// pause has begun.
    pub(crate) fn begin(&self, now: Instant) -> Result<(), Error> {
        let mut last = self.0.lock();
        let Last { error: Some(cause), pause: Some(pause), .. } = &mut *last else { return Ok(()) };
        if now < pause.until {
            return Err(Error::Paused { wait: pause.until - now, cause: cause.clone() });
        }
        pause.length = (2 * pause.length).min(pause.longest);
        pause.until = now + pause.length;
        Ok(())
    }

    pub(crate) fn succeeded(&self) {
        *self.0.lock() = Last::default();
    }

    /// Tells the waiters of a failure of which the outcome of connect() is still open.
    pub(crate) fn note(&self, error: &Error) {
        self.0.lock().error = Some(error.to_string());
    }

    pub(crate) fn failed(&self, error: &Error, now: Instant) {
        let mut last = self.0.lock();
        last.error = Some(error.to_string());
        last.in_a_row += 1;
        let (length, longest) = match error.outlook() {
            Outlook::Stays => (FIRST_PAUSE, LONGEST_PAUSE),
            Outlook::Unknown if last.in_a_row >= BURST => (PAUSE_AFTER_BURST, PAUSE_AFTER_BURST),
            _ => return last.pause = None,
        };
        // One that has begun goes on, whoever else fails in the same way in the meantime.
        let begun = last.pause.take().filter(|pause| pause.longest == longest);
        last.pause = Some(begun.unwrap_or(Pause { until: now + length, length, longest }));
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.0.lock().error.clone()
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
        let (attempts, mut now) = (Backoff::default(), Instant::now());
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
            let (attempts, now) = (Backoff::default(), Instant::now());
            attempts.failed(&refused(text), now);
            assert_eq!(attempts.begin(now).is_ok(), at_once, "{text}");
            assert!(attempts.last_error().unwrap().contains(text), "{text}");
        }
    }

    #[test]
    fn many_failures_in_a_row_are_spaced_and_a_success_ends_that() {
        let (attempts, now) = (Backoff::default(), Instant::now());
        let hung_up = refused("server closed the connection unexpectedly");
        for _ in 0..BURST {
            attempts.begin(now).unwrap();
            attempts.failed(&hung_up, now);
        }
        let mut next = now + PAUSE_AFTER_BURST;
        for _ in 0..3 {
            attempts.begin(next - Duration::from_nanos(1)).unwrap_err();
            attempts.begin(next).unwrap();
            attempts.begin(next).unwrap_err();
            attempts.failed(&hung_up, next);
            next += PAUSE_AFTER_BURST;
        }
        attempts.succeeded();
        attempts.failed(&hung_up, next);
        attempts.begin(next).unwrap();
    }

    #[test]
    fn those_under_way_at_the_first_refusal_prolong_no_pause() {
        let (attempts, now) = (Backoff::default(), Instant::now());
        attempts.failed(&refused(NO_GRANT), now);
        attempts.failed(&refused(NO_GRANT), now + SECOND / 2);
        attempts.begin(now + SECOND).unwrap();
    }
}
