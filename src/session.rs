//! What is known of one live connection: its age, its last use, its errors.

use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;

/// Kept with the connection, as the instrumentation that diesel tells of each query. Wraps the default one.
///
/// A user who sets an instrumentation of their own replaces it: then nothing is known.
pub(crate) struct Session {
    ends: Option<Instant>,
    last_use: Instant,
    condition: Condition,
    /// A commit or rollback is on its way; if it succeeds, earlier errors have no consequences.
    is_ending_transaction: bool,
    listens: bool,
    wrapped: Option<Box<dyn Instrumentation>>,
}

/// What the errors so far say.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Condition {
    Sound,
    /// It saw an error that may have to do with the connection: the server is to be asked.
    Suspect,
    /// It cannot be used again.
    Broken(&'static str),
}

/// What to do with a connection that somebody wants to use.
#[derive(Debug, PartialEq)]
pub(crate) enum Fate {
    /// Nothing speaks against it: a look at the socket will do.
    Use,
    /// Ask the server.
    Ask,
    /// Close it, for this reason.
    Retire(&'static str),
}

impl Session {
    /// Notes down a connection that was made `now`. `jitter`, from 0 to 1, takes up to a tenth off its life, so that a
    /// pool does not reconnect all at once.
    pub(crate) fn start(connection: &mut PgConnection, now: Instant, max_lifetime: Option<Duration>, jitter: f64) {
        let session = Session {
            ends: max_lifetime.map(|lifetime| now + lifetime.mul_f64(1.0 - 0.1 * jitter)),
            last_use: now,
            condition: Condition::Sound,
            is_ending_transaction: false,
            listens: false,
            wrapped: get_default_instrumentation(),
        };
        connection.set_instrumentation(session);
    }

    /// What is known of this connection; none when its instrumentation is the user's own.
    pub(crate) fn of(connection: &mut PgConnection) -> Option<&mut Session> {
        connection.instrumentation().downcast_mut()
    }

    pub(crate) fn fate(&self, now: Instant, validate_after: Duration) -> Fate {
        if let Some(reason) = self.retirement(now) {
            Fate::Retire(reason)
        } else if self.condition == Condition::Suspect || self.listens {
            // The look at the socket would take the notifications of one that listens.
            Fate::Ask
        } else if now.duration_since(self.last_use) > validate_after {
            Fate::Ask
        } else {
            Fate::Use
        }
    }

    /// Why not to use it again, if there is a reason.
    pub(crate) fn retirement(&self, now: Instant) -> Option<&'static str> {
        match self.condition {
            Condition::Broken(reason) => Some(reason),
            _ if self.ends.is_some_and(|end| end <= now) => Some("it is past its max_lifetime"),
            _ => None,
        }
    }

    /// Whether it saw an error after which the server has not been asked.
    pub(crate) fn is_suspect(&self) -> bool {
        self.condition == Condition::Suspect
    }

    /// The server has answered.
    pub(crate) fn found_sound(&mut self) {
        if self.condition == Condition::Suspect {
            self.condition = Condition::Sound;
        }
    }

    fn note(&mut self, error: Option<&QueryError>, now: Instant) {
        self.last_use = now;
        match error.map_or(Condition::Sound, judge) {
            Condition::Sound if self.is_ending_transaction && error.is_none() => self.found_sound(),
            condition if condition > self.condition => self.condition = condition,
            _ => {}
        }
        self.is_ending_transaction = false;
    }
}

/// What an error says of the connection. Those that the data or the query are to blame for say nothing.
fn judge(error: &QueryError) -> Condition {
    match error {
        QueryError::DatabaseError(kind, _) => match kind {
            Kind::ClosedConnection | Kind::UnableToSendCommand => Condition::Broken("the server has closed it"),
            Kind::ReadOnlyTransaction => Condition::Broken("the server has become read-only"),
            Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::RestrictViolation
            | Kind::NotNullViolation
            | Kind::CheckViolation
            | Kind::ExclusionViolation => Condition::Sound,
            _ => Condition::Suspect,
        },
        QueryError::BrokenTransactionManager => Condition::Broken("its transaction is in an unknown state"),
        _ => Condition::Sound,
    }
}

impl Instrumentation for Session {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match &event {
            // Built into a string only until the first LISTEN.
            InstrumentationEvent::StartQuery { query, .. } if !self.listens => {
                self.listens = says_listen(&query.to_string());
            }
            InstrumentationEvent::FinishQuery { error, .. } => self.note(*error, Instant::now()),
            InstrumentationEvent::CommitTransaction { .. } | InstrumentationEvent::RollbackTransaction { .. } => {
                self.is_ending_transaction = true;
            }
            _ => {}
        }
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.on_connection_event(event);
        }
    }
}

/// Whether a query holds the word LISTEN anywhere: in a batch, in a DO block, in a comment.
fn says_listen(query: &str) -> bool {
    query.as_bytes().windows(6).any(|word| word.eq_ignore_ascii_case(b"listen"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(now: Instant, max_lifetime: Option<Duration>) -> Session {
        Session {
            ends: max_lifetime.map(|lifetime| now + lifetime),
            last_use: now,
            condition: Condition::Sound,
            is_ending_transaction: false,
            listens: false,
            wrapped: None,
        }
    }

    fn failed(kind: Kind) -> QueryError {
        QueryError::DatabaseError(kind, Box::new(String::from("text")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_sides_of_each_limit() {
        let now = Instant::now();
        let session = session(now, Some(10 * SECOND));
        assert_eq!(session.fate(now + SECOND, SECOND), Fate::Use);
        assert_eq!(session.fate(now + SECOND + Duration::from_nanos(1), SECOND), Fate::Ask);
        assert_eq!(session.retirement(now + 10 * SECOND - Duration::from_nanos(1)), None);
        assert!(session.retirement(now + 10 * SECOND).is_some());
    }

    #[test]
    fn without_a_max_lifetime_age_does_not_count() {
        let now = Instant::now();
        assert_eq!(session(now, None).retirement(now + Duration::from_secs(u32::MAX.into())), None);
    }

    #[test]
    fn what_each_error_means() {
        let now = Instant::now();
        let fate_after = |error: &QueryError| {
            let mut session = session(now, None);
            session.note(Some(error), now);
            session.fate(now, SECOND)
        };
        for kind in [Kind::UniqueViolation, Kind::ForeignKeyViolation, Kind::NotNullViolation, Kind::CheckViolation] {
            assert_eq!(fate_after(&failed(kind)), Fate::Use);
        }
        assert_eq!(fate_after(&QueryError::NotFound), Fate::Use);
        assert_eq!(fate_after(&failed(Kind::SerializationFailure)), Fate::Ask);
        assert_eq!(fate_after(&failed(Kind::Unknown)), Fate::Ask);
        for kind in [Kind::ClosedConnection, Kind::UnableToSendCommand, Kind::ReadOnlyTransaction] {
            assert!(matches!(fate_after(&failed(kind)), Fate::Retire(_)));
        }
    }

    #[test]
    fn a_commit_that_succeeds_clears_suspicion_and_nothing_worse() {
        let now = Instant::now();
        let after_commit = |kind, outcome: Option<&QueryError>| {
            let mut session = session(now, None);
            session.note(Some(&failed(kind)), now);
            session.is_ending_transaction = true;
            session.note(outcome, now);
            session.fate(now, SECOND)
        };
        assert_eq!(after_commit(Kind::Unknown, None), Fate::Use);
        assert_eq!(after_commit(Kind::Unknown, Some(&failed(Kind::UniqueViolation))), Fate::Ask);
        assert!(matches!(after_commit(Kind::ClosedConnection, None), Fate::Retire(_)));
        // A query that succeeds is no commit.
        let mut session = session(now, None);
        session.note(Some(&failed(Kind::Unknown)), now);
        session.note(None, now);
        assert_eq!(session.fate(now, SECOND), Fate::Ask);
    }

    #[test]
    fn a_connection_that_listens_is_asked() {
        for (query, listens) in
            [("LISTEN jobs", true), ("SET x = 1; listen jobs", true), ("NOTIFY jobs", false), ("SELECT 1", false)]
        {
            assert_eq!(says_listen(query), listens, "{query}");
        }
    }
}
