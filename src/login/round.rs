//! [`Round`]: the hosts of one login, and the last failure of each.

use std::time::{Duration, Instant};

use crate::error::{Error, Outlook, Refusal};

/// Between two rounds.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Between two attempts at a host that accepts logins in another role. Each attempt is a login.
const PAUSE_OF_LOGINS: Duration = Duration::from_secs(1);

/// The hosts of one login, in the order of the attempts.
pub(super) struct Round<H> {
    candidates: Vec<Candidate<H>>,
}

struct Candidate<H> {
    host: H,
    failure: Option<(Error, Instant)>,
}

impl<H: Copy> Round<H> {
    pub(super) fn new(hosts: impl IntoIterator<Item = H>) -> Round<H> {
        let candidate = |host| Candidate { host, failure: None };
        Round { candidates: hosts.into_iter().map(candidate).collect() }
    }

    /// Returns how many hosts there are.
    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    pub(super) fn host(&self, i: usize) -> H {
        self.candidates[i].host
    }

    pub(super) fn failed(&mut self, i: usize, error: Error, now: Instant) {
        self.candidates[i].failure = Some((error, now));
    }

    /// Whether to try this host now.
    pub(super) fn is_due(&self, i: usize, now: Instant) -> bool {
        let Some((_, at)) = &self.candidates[i].failure else { return true };
        match self.outlook(i) {
            Some(Outlook::Starting) => true,
            Some(Outlook::OtherRole) => now.duration_since(*at) >= PAUSE_OF_LOGINS,
            _ => false,
        }
    }

    /// Whether this host accepted the login and is not what `target_session_attrs` asks for.
    pub(super) fn is_in_other_role(&self, i: usize) -> bool {
        self.outlook(i) == Some(Outlook::OtherRole)
    }

    /// Whether another round can succeed.
    pub(super) fn may_change(&self) -> bool {
        let changes = [Some(Outlook::Starting), Some(Outlook::OtherRole)];
        (0..self.len()).any(|i| changes.contains(&self.outlook(i)))
    }

    fn outlook(&self, i: usize) -> Option<Outlook> {
        self.candidates[i].failure.as_ref().map(|(error, _)| error.outlook())
    }

    pub(super) fn into_error(self) -> Error {
        let failures = self.candidates.into_iter().filter_map(|candidate| candidate.failure);
        let mut failures: Vec<Error> = failures.map(|(error, _)| error).collect();
        if failures.len() == 1 { failures.remove(0) } else { Error::Hosts { failures } }
    }
}

/// Logs the failure of one host. With several hosts a host that is down is expected, and one that
/// refuses the login is not.
pub(super) fn log_failure(error: &Error, hosts: usize) {
    let is_refused =
        error.refusal().is_some_and(Refusal::is_of_token) || error.outlook() == Outlook::Permanent;
    let level = if is_refused && hosts > 1 { log::Level::Warn } else { log::Level::Debug };
    log::log!(level, "{error}");
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::*;
    use crate::error::{EndpointKind, LoginContext, Method};

    fn failure(text: &str) -> Error {
        let context = LoginContext { method: Method::Token, endpoint: EndpointKind::Rds };
        Error::connect("app@db:5432", context, ConnectionError::BadConnection(text.into()))
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
            let mut round = Round::new(["a"]);
            assert!(round.is_due(0, now), "before the first attempt");
            round.failed(0, failure(text), now);
            assert_eq!(round.is_due(0, just_before), at_once, "{text}");
            assert_eq!(round.is_due(0, now + PAUSE_OF_LOGINS), after_a_second, "{text}");
            assert_eq!(round.may_change(), after_a_second, "{text}");
        }
    }

    #[test]
    fn a_single_failure_is_the_error_and_several_are_listed_in_their_order() {
        let now = Instant::now();
        let mut round = Round::new(["a", "b"]);
        round.failed(1, failure("second"), now);
        assert!(!round.is_in_other_role(0) && !round.may_change());
        round.failed(0, failure("session is read-only"), now);
        assert!(round.is_in_other_role(0) && round.may_change());
        assert!(matches!(round.into_error(), Error::Hosts { failures } if failures.len() == 2));
        let mut round = Round::new(["a"]);
        round.failed(0, failure("first"), now);
        assert!(matches!(round.into_error(), Error::Connect { .. }));
    }
}
