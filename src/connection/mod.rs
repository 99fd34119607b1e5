//! What is known of one live connection: its age, its last use, its errors.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::{
    Connection, Instrumentation, InstrumentationEvent, get_default_instrumentation,
};
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;

use crate::error::Retirement;
use crate::stats::Counters;

/// Kept with the connection, as the instrumentation that diesel tells of each query. Wraps the
/// default one.
///
/// A user who sets an instrumentation of their own replaces it: then nothing is known.
pub(crate) struct Record {
    ends: Option<Instant>,
    last_use: Instant,
    condition: Condition,
    in_transaction: bool,
    /// A commit or rollback is on its way; if it succeeds, earlier errors have no consequences.
    is_ending_transaction: bool,
    /// It was told that its transaction is read-only: the user's wish, or a server that was
    /// demoted.
    met_read_only: bool,
    listens: bool,
    wrapped: Option<Box<dyn Instrumentation>>,
    counters: Arc<Counters>,
}

/// What its errors and answers so far say.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Condition {
    Sound,
    /// It saw an error that may have to do with the connection: the server is to be asked.
    Suspect,
    /// It cannot be used again.
    Broken(Retirement),
}

/// What to do with a connection that somebody wants to use.
#[derive(Debug, PartialEq)]
pub(crate) enum Fate {
    /// Nothing speaks against it: a look at the socket will do.
    Use,
    /// Ask the server.
    Ask,
    /// Close it, for this reason.
    Retire(Retirement),
}

impl Record {
    /// Notes down a connection that was made `now`. `jitter`, from 0 to 1, takes up to a tenth off
    /// its life, so that a pool does not reconnect all at once.
    pub(crate) fn start(
        connection: &mut PgConnection,
        now: Instant,
        max_lifetime: Option<Duration>,
        jitter: f64,
        counters: Arc<Counters>,
    ) {
        let life = max_lifetime.map(|lifetime| lifetime - lifetime.mul_f64(0.1 * jitter));
        // A life that is longer than time itself has no end.
        let ends = life.and_then(|life| now.checked_add(life));
        connection.set_instrumentation(Record::new(
            now,
            ends,
            get_default_instrumentation(),
            counters,
        ));
    }

    fn new(
        now: Instant,
        ends: Option<Instant>,
        wrapped: Option<Box<dyn Instrumentation>>,
        counters: Arc<Counters>,
    ) -> Record {
        Record {
            ends,
            last_use: now,
            condition: Condition::Sound,
            in_transaction: false,
            is_ending_transaction: false,
            met_read_only: false,
            listens: false,
            wrapped,
            counters,
        }
    }

    /// When it is to be retired.
    pub(crate) fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// Whether the server is to be asked if it still is the primary.
    pub(crate) fn met_read_only(&self) -> bool {
        self.met_read_only
    }

    /// What is known of this connection; none when its instrumentation is the user's own.
    pub(crate) fn of(connection: &mut PgConnection) -> Option<&mut Record> {
        connection.instrumentation().downcast_mut()
    }

    /// `last_closed` is when the server last closed a connection of ours, maybe with all others.
    pub(crate) fn fate(
        &self,
        now: Instant,
        validate_after: Duration,
        last_closed: Option<Instant>,
    ) -> Fate {
        if let Some(reason) = self.retirement(now) {
            Fate::Retire(reason)
        } else if self.condition == Condition::Suspect || self.listens {
            // The look at the socket would take the notifications of one that listens.
            Fate::Ask
        } else if last_closed.is_some_and(|closed| self.last_use <= closed) {
            // Its end may be on its way.
            Fate::Ask
        } else if now.duration_since(self.last_use) > validate_after {
            Fate::Ask
        } else {
            Fate::Use
        }
    }

    /// Why not to use it again, if there is a reason.
    pub(crate) fn retirement(&self, now: Instant) -> Option<Retirement> {
        match self.condition {
            Condition::Broken(reason) => Some(reason),
            _ if self.ends.is_some_and(|end| end <= now) => Some(Retirement::Age),
            _ => None,
        }
    }

    /// Whether it was found closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.condition == Condition::Broken(Retirement::Closed)
    }

    /// It is not to be used again. The first reason counts.
    pub(crate) fn retire(&mut self, reason: Retirement) {
        if self.retirement(Instant::now()).is_none() {
            self.condition = Condition::Broken(reason);
        }
    }

    /// Whether it saw an error after which the server has not been asked.
    pub(crate) fn is_suspect(&self) -> bool {
        self.condition == Condition::Suspect
    }

    /// The server has answered.
    pub(crate) fn found_sound(&mut self) {
        self.met_read_only = false;
        if self.condition == Condition::Suspect {
            self.condition = Condition::Sound;
        }
    }

    /// A query begins.
    fn look_at(&mut self, query: &str) {
        let first = words(query).next().unwrap_or_default();
        let is = |word: &str| first.eq_ignore_ascii_case(word);
        // diesel does not know of a transaction that was begun by a query of one's own.
        self.in_transaction |= is("BEGIN") || is("START");
        // A COPY that somebody leaves in the middle leaves the connection in it.
        if is("COPY") && self.condition < Condition::Suspect {
            self.condition = Condition::Suspect;
        }
        self.listens |= words(query).any(|word| word.eq_ignore_ascii_case("LISTEN"));
    }

    /// A query has ended.
    fn note(&mut self, error: Option<&QueryError>, now: Instant) {
        self.last_use = now;
        self.met_read_only |=
            matches!(error, Some(QueryError::DatabaseError(Kind::ReadOnlyTransaction, _)));
        match error.map_or(Condition::Sound, |error| judge(error, self.in_transaction)) {
            Condition::Sound if self.is_ending_transaction && error.is_none() => {
                self.in_transaction = false;
                if !self.met_read_only {
                    self.found_sound();
                }
            }
            condition if condition > self.condition => self.condition = condition,
            _ => {}
        }
        self.is_ending_transaction = false;
    }
}

/// What an error says of the connection. Those that the data or the query are to blame for say
/// nothing, unless they leave a transaction that can only be rolled back.
fn judge(error: &QueryError, in_transaction: bool) -> Condition {
    match error {
        QueryError::DatabaseError(kind, _) => match kind {
            Kind::ClosedConnection | Kind::UnableToSendCommand => {
                Condition::Broken(Retirement::Closed)
            }
            Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::RestrictViolation
            | Kind::NotNullViolation
            | Kind::CheckViolation
            | Kind::ExclusionViolation
                if !in_transaction =>
            {
                Condition::Sound
            }
            _ => Condition::Suspect,
        },
        QueryError::BrokenTransactionManager => Condition::Broken(Retirement::Transaction),
        _ => Condition::Sound,
    }
}

/// The connection goes, and takes this along.
impl Drop for Record {
    fn drop(&mut self) {
        self.counters.retirement(self.retirement(Instant::now()).unwrap_or(Retirement::Released));
    }
}

impl Instrumentation for Record {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match &event {
            InstrumentationEvent::StartQuery { query, .. } => {
                let mut text = Text(String::new());
                // An error ends it before the binds, or says that diesel cannot build the query:
                // the caller hears of that.
                let _ = write!(text, "{query}");
                self.look_at(&text.0);
            }
            InstrumentationEvent::FinishQuery { error, .. } => self.note(*error, Instant::now()),
            InstrumentationEvent::BeginTransaction { .. } => self.in_transaction = true,
            InstrumentationEvent::CommitTransaction { depth, .. }
            | InstrumentationEvent::RollbackTransaction { depth, .. } => {
                self.is_ending_transaction = depth.get() == 1
            }
            _ => {}
        }
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.on_connection_event(event);
        }
    }
}

/// A query's text, up to its binds: they are data, and can be megabytes.
struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if piece.starts_with(" -- binds: ") {
            return Err(fmt::Error);
        }
        self.0.push_str(piece);
        Ok(())
    }
}

/// The words of a query, and of its comments and strings.
fn words(query: &str) -> impl Iterator<Item = &str> {
    let between = |c: char| !c.is_alphanumeric() && c != '_';
    query.split(between).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(now: Instant, max_lifetime: Option<Duration>) -> Record {
        Record::new(now, max_lifetime.map(|lifetime| now + lifetime), None, Arc::default())
    }

    fn failed(kind: Kind) -> QueryError {
        QueryError::DatabaseError(kind, Box::new(String::from("text")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_sides_of_each_limit() {
        let now = Instant::now();
        let session = session(now, Some(10 * SECOND));
        assert_eq!(session.fate(now + SECOND, SECOND, None), Fate::Use);
        assert_eq!(session.fate(now + SECOND + Duration::from_nanos(1), SECOND, None), Fate::Ask);
        assert_eq!(session.retirement(now + 10 * SECOND - Duration::from_nanos(1)), None);
        assert!(session.retirement(now + 10 * SECOND).is_some());
    }

    #[test]
    fn what_was_used_before_another_was_found_closed_is_asked() {
        let now = Instant::now();
        let mut session = session(now, None);
        assert_eq!(session.fate(now + SECOND, SECOND, Some(now)), Fate::Ask);
        session.note(None, now + Duration::from_nanos(1));
        assert_eq!(session.fate(now + SECOND, SECOND, Some(now)), Fate::Use);
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
            session.fate(now, SECOND, None)
        };
        for kind in [
            Kind::UniqueViolation,
            Kind::ForeignKeyViolation,
            Kind::NotNullViolation,
            Kind::CheckViolation,
        ] {
            assert_eq!(fate_after(&failed(kind)), Fate::Use);
        }
        assert_eq!(fate_after(&QueryError::NotFound), Fate::Use);
        assert_eq!(fate_after(&failed(Kind::SerializationFailure)), Fate::Ask);
        assert_eq!(fate_after(&failed(Kind::Unknown)), Fate::Ask);
        assert_eq!(fate_after(&failed(Kind::ReadOnlyTransaction)), Fate::Ask);
        for kind in [Kind::ClosedConnection, Kind::UnableToSendCommand] {
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
            session.fate(now, SECOND, None)
        };
        assert_eq!(after_commit(Kind::Unknown, None), Fate::Use);
        assert_eq!(after_commit(Kind::Unknown, Some(&failed(Kind::UniqueViolation))), Fate::Ask);
        assert!(matches!(after_commit(Kind::ClosedConnection, None), Fate::Retire(_)));
        // A query that succeeds is no commit.
        let mut session = session(now, None);
        session.note(Some(&failed(Kind::Unknown)), now);
        session.note(None, now);
        assert_eq!(session.fate(now, SECOND, None), Fate::Ask);
    }

    #[test]
    fn a_violation_inside_of_a_transaction_leaves_it_aborted() {
        let now = Instant::now();
        let mut session = session(now, None);
        session.look_at("  begin isolation level serializable");
        session.note(None, now);
        assert_eq!(session.fate(now, SECOND, None), Fate::Use);
        session.note(Some(&failed(Kind::UniqueViolation)), now);
        assert_eq!(session.fate(now, SECOND, None), Fate::Ask);
    }

    #[test]
    fn what_a_query_says() {
        let cases = [
            ("LISTEN jobs", Fate::Ask),
            ("SET x = 1; listen jobs", Fate::Ask),
            ("COPY t FROM STDIN", Fate::Ask),
            ("NOTIFY jobs", Fate::Use),
            ("SELECT listener_id, copy FROM t", Fate::Use),
        ];
        for (query, fate) in cases {
            let now = Instant::now();
            let mut session = session(now, None);
            session.look_at(query);
            assert_eq!(session.fate(now, SECOND, None), fate, "{query}");
        }
    }

    #[test]
    fn the_text_of_a_query_ends_before_its_binds() {
        let mut text = Text(String::new());
        // As diesel writes it.
        let query = String::from("INSERT INTO t VALUES ($1)");
        let written = write!(text, "{query} -- binds: {:?}", ["they LISTEN"]);
        assert!(written.is_err());
        assert_eq!(text.0, query);
    }
}
