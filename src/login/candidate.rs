//! [`Candidate`]: a host of one login, and its last failure.

use std::time::{Duration, Instant};

use crate::error::{Error, Outlook, Refusal};

/// Between two attempts at a host that accepts logins in another role. Each attempt is a login.
const PAUSE_OF_LOGINS: Duration = Duration::from_secs(1);

pub(super) struct Candidate<H> {
    pub(super) host: H,
    pub(super) failure: Option<(Error, Instant)>,
}

impl<H> Candidate<H> {
    pub(super) fn new(host: H) -> Candidate<H> {
        Candidate { host, failure: None }
    }

    /// Whether to try this host now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let Some((error, at)) = &self.failure else { return true };
        match error.outlook() {
            Outlook::Starting => true,
            Outlook::OtherRole => now.duration_since(*at) >= PAUSE_OF_LOGINS,
            _ => false,
        }
    }

    /// Whether this host accepted the login and is not what `target_session_attrs` asks for.
    pub(super) fn is_in_other_role(&self) -> bool {
        self.outlook() == Some(Outlook::OtherRole)
    }

    /// Whether another attempt can succeed soon.
    pub(super) fn may_change(&self) -> bool {
        self.is_in_other_role() || self.outlook() == Some(Outlook::Starting)
    }

    fn outlook(&self) -> Option<Outlook> {
        self.failure.as_ref().map(|(error, _)| error.outlook())
    }
}

/// Returns the error of a login for which all these failed.
pub(super) fn into_error<H>(candidates: Vec<Candidate<H>>) -> Error {
    let failures = candidates.into_iter().filter_map(|candidate| candidate.failure);
    let mut failures: Vec<Error> = failures.map(|(error, _)| error).collect();
    if failures.len() == 1 { failures.remove(0) } else { Error::Hosts { failures } }
}

/// Logs the failure of one host. With several hosts a host that is down is expected, and one that
/// refuses the login is not.
pub(super) fn log_failure(error: &Error, has_others: bool) {
    let is_refused =
        error.refusal().is_some_and(Refusal::is_of_token) || error.outlook() == Outlook::Permanent;
    let level = if is_refused && has_others { log::Level::Warn } else { log::Level::Debug };
    log::log!(level, "{error}");
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::*;
    use crate::error::LoginKind;

    fn failure(text: &str) -> Error {
        let cause = ConnectionError::BadConnection(text.into());
        Error::connect("app@db:5432".into(), LoginKind::Rds, cause)
    }

    #[test]
    fn a_host_is_due_again_by_the_reason_of_its_failure() {
        let now = Instant::now();
        let just_before = now + PAUSE_OF_LOGINS - Duration::from_nanos(1);
        let cases = [
            ("Connection refused", true, true),
            ("the database system is starting up", true, true),
            ("session is read-only", false, true),
            ("timeout expired", false, false),
            ("PAM authentication failed for user \"app\"", false, false),
            ("database \"x\" does not exist", false, false),
        ];
        for (text, at_once, after_a_second) in cases {
            let mut candidate = Candidate::new("a");
            assert!(candidate.is_due(now) && !candidate.may_change(), "before the first attempt");
            candidate.failure = Some((failure(text), now));
            assert_eq!(candidate.is_due(just_before), at_once, "{text}");
            assert_eq!(candidate.is_due(now + PAUSE_OF_LOGINS), after_a_second, "{text}");
            assert_eq!(candidate.may_change(), after_a_second, "{text}");
            assert_eq!(candidate.is_in_other_role(), text == "session is read-only", "{text}");
        }
    }

    #[test]
    fn a_single_failure_is_the_error_and_several_are_listed_in_their_order() {
        let failed = |text| Candidate { host: (), failure: Some((failure(text), Instant::now())) };
        let several = into_error(vec![failed("first"), failed("second")]).to_string();
        assert!(several.find("first") < several.find("second"), "{several}");
        let single = into_error(vec![failed("first"), Candidate::new(())]);
        assert!(matches!(single, Error::Connect { .. }), "{single}");
    }
}
