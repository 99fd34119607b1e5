//! [`Record`]: what is known of one live connection: its age, its last use, its errors.

mod check;

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
pub(crate) use check::{peek, ping};

/// Kept with the connection as its instrumentation, which diesel calls at each query. Wraps the
/// default instrumentation.
///
/// A program that sets another instrumentation replaces it. Then nothing is known.
pub(crate) struct Record {
    ends: Option<Instant>,
    last_use: Instant,
    condition: Condition,
    in_transaction: bool,
    /// A commit or rollback was sent. If it succeeds, earlier errors have no consequences.
    is_ending_transaction: bool,
    /// The server refused a write: the transaction is read-only, or the server is a standby.
    met_read_only: bool,
    listens: bool,
    wrapped: Option<Box<dyn Instrumentation>>,
    counters: Arc<Counters>,
}

/// What the errors and answers so far mean.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Condition {
    Sound,
    /// An error may have affected the connection: it has to be pinged.
    Suspect,
    /// The connection cannot be used again.
    Broken(Retirement),
}

/// What to do with a connection at its checkout.
#[derive(Debug, PartialEq)]
pub(crate) enum CheckoutDecision {
    /// Peek at its socket.
    Peek,
    /// Ping the server.
    Ping,
    /// Close it for this reason.
    Retire(Retirement),
}

impl Record {
    /// Starts the record of a connection that was made `now`. `jitter`, from 0 to 1, shortens its
    /// life by up to a tenth, so that a pool does not reconnect all at once.
    pub(crate) fn start(
        connection: &mut PgConnection,
        now: Instant,
        max_lifetime: Option<Duration>,
        jitter: f64,
        counters: Arc<Counters>,
    ) {
        let life = max_lifetime.map(|lifetime| lifetime - lifetime.mul_f64(0.1 * jitter));
        // An end that Instant cannot represent is no end.
        let ends = life.and_then(|life| now.checked_add(life));
        let wrapped = get_default_instrumentation();
        connection.set_instrumentation(Record::new(now, ends, wrapped, counters));
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

    /// Returns the record of this connection, or `None` if the program replaced it.
    pub(crate) fn of(connection: &mut PgConnection) -> Option<&mut Record> {
        connection.instrumentation().downcast_mut()
    }

    /// Returns when the connection is to be retired for its age.
    pub(crate) fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// Whether the next ping has to check that the server is still the primary.
    pub(crate) fn met_read_only(&self) -> bool {
        self.met_read_only
    }

    /// Decides what to do at a checkout. `last_closed` is when the server last closed a connection
    /// of this manager, possibly together with all others.
    pub(crate) fn checkout_decision(
        &self,
        now: Instant,
        validate_after: Duration,
        last_closed: Option<Instant>,
    ) -> CheckoutDecision {
        if let Some(reason) = self.retirement(now) {
            return CheckoutDecision::Retire(reason);
        }
        let may_be_closed = last_closed.is_some_and(|closed| self.last_use <= closed);
        let is_idle = now.duration_since(self.last_use) > validate_after;
        // The peek would consume the notifications of a connection that listens.
        if self.is_suspect() || self.listens || may_be_closed || is_idle {
            CheckoutDecision::Ping
        } else {
            CheckoutDecision::Peek
        }
    }

    /// Returns why the connection must not be used again.
    pub(crate) fn retirement(&self, now: Instant) -> Option<Retirement> {
        match self.condition {
            Condition::Broken(reason) => Some(reason),
            _ if self.ends.is_some_and(|end| end <= now) => Some(Retirement::Age),
            _ => None,
        }
    }

    /// Records that the connection must not be used again. The first reason counts.
    pub(crate) fn retire(&mut self, reason: Retirement) {
        if self.retirement(Instant::now()).is_none() {
            self.condition = Condition::Broken(reason);
        }
    }

    /// Whether the connection had an error and was not pinged since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.condition == Condition::Suspect
    }

    pub(crate) fn ping_succeeded(&mut self) {
        self.met_read_only = false;
        if self.condition == Condition::Suspect {
            self.condition = Condition::Sound;
        }
    }

    fn query_started(&mut self, query: &str) {
        let first = words(query).next().unwrap_or_default();
        let is = |word: &str| first.eq_ignore_ascii_case(word);
        // diesel does not know a transaction that a raw query starts.
        self.in_transaction |= is("BEGIN") || is("START");
        // A COPY that is abandoned leaves the connection in it.
        if is("COPY") && self.condition < Condition::Suspect {
            self.condition = Condition::Suspect;
        }
        self.listens |= words(query).any(|word| word.eq_ignore_ascii_case("LISTEN"));
    }

    fn query_finished(&mut self, error: Option<&QueryError>, now: Instant) {
        self.last_use = now;
        let kind =
            if let Some(QueryError::DatabaseError(kind, _)) = error { Some(kind) } else { None };
        self.met_read_only |= matches!(kind, Some(Kind::ReadOnlyTransaction));
        match error.map_or(Condition::Sound, |error| condition_after(error, self.in_transaction)) {
            Condition::Sound if self.is_ending_transaction && error.is_none() => {
                self.in_transaction = false;
                if !self.met_read_only {
                    self.ping_succeeded();
                }
            }
            condition if condition > self.condition => self.condition = condition,
            _ => {}
        }
        self.is_ending_transaction = false;
    }
}

/// Returns what an error means for the connection. An error that the data or the query cause means
/// nothing, unless it leaves a transaction that can only be rolled back.
fn condition_after(error: &QueryError, in_transaction: bool) -> Condition {
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

/// The record is dropped together with its connection.
impl Drop for Record {
    fn drop(&mut self) {
        let reason = self.retirement(Instant::now()).unwrap_or(Retirement::Released);
        self.counters.retirement(reason);
    }
}

impl Instrumentation for Record {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match &event {
            InstrumentationEvent::StartQuery { query, .. } => {
                let mut text = Text(String::new());
                // The error of `Text` ends the rendering before the binds. Another error means that
                // diesel cannot build the query, which the caller sees.
                let _ = write!(text, "{query}");
                self.query_started(&text.0);
            }
            InstrumentationEvent::FinishQuery { error, .. } => {
                self.query_finished(*error, Instant::now());
            }
            InstrumentationEvent::BeginTransaction { .. } => self.in_transaction = true,
            InstrumentationEvent::CommitTransaction { depth, .. }
            | InstrumentationEvent::RollbackTransaction { depth, .. } => {
                self.is_ending_transaction = depth.get() == 1;
            }
            _ => {}
        }
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.on_connection_event(event);
        }
    }
}

/// The text of a query up to its binds, which are data and can be megabytes.
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

/// Returns the words of a query, with those of its comments and strings.
fn words(query: &str) -> impl Iterator<Item = &str> {
    let is_between = |c: char| !c.is_alphanumeric() && c != '_';
    query.split(is_between).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_record(now: Instant, max_lifetime: Option<Duration>) -> Record {
        Record::new(now, max_lifetime.map(|lifetime| now + lifetime), None, Arc::default())
    }

    fn failed(kind: Kind) -> QueryError {
        QueryError::DatabaseError(kind, Box::new(String::from("text")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_sides_of_each_limit() {
        let now = Instant::now();
        let record = new_record(now, Some(10 * SECOND));
        assert_eq!(record.checkout_decision(now + SECOND, SECOND, None), CheckoutDecision::Peek);
        assert_eq!(
            record.checkout_decision(now + SECOND + Duration::from_nanos(1), SECOND, None),
            CheckoutDecision::Ping
        );
        assert_eq!(record.retirement(now + 10 * SECOND - Duration::from_nanos(1)), None);
        assert!(record.retirement(now + 10 * SECOND).is_some());
    }

    #[test]
    fn a_connection_used_before_another_was_found_closed_is_pinged() {
        let now = Instant::now();
        let mut record = new_record(now, None);
        assert_eq!(
            record.checkout_decision(now + SECOND, SECOND, Some(now)),
            CheckoutDecision::Ping
        );
        record.query_finished(None, now + Duration::from_nanos(1));
        assert_eq!(
            record.checkout_decision(now + SECOND, SECOND, Some(now)),
            CheckoutDecision::Peek
        );
    }

    #[test]
    fn without_a_max_lifetime_age_does_not_count() {
        let now = Instant::now();
        assert_eq!(
            new_record(now, None).retirement(now + Duration::from_secs(u32::MAX.into())),
            None
        );
    }

    #[test]
    fn each_error_has_its_decision() {
        let now = Instant::now();
        let decision_after = |error: &QueryError| {
            let mut record = new_record(now, None);
            record.query_finished(Some(error), now);
            record.checkout_decision(now, SECOND, None)
        };
        for kind in [
            Kind::UniqueViolation,
            Kind::ForeignKeyViolation,
            Kind::NotNullViolation,
            Kind::CheckViolation,
        ] {
            assert_eq!(decision_after(&failed(kind)), CheckoutDecision::Peek);
        }
        assert_eq!(decision_after(&QueryError::NotFound), CheckoutDecision::Peek);
        assert_eq!(decision_after(&failed(Kind::SerializationFailure)), CheckoutDecision::Ping);
        assert_eq!(decision_after(&failed(Kind::Unknown)), CheckoutDecision::Ping);
        assert_eq!(decision_after(&failed(Kind::ReadOnlyTransaction)), CheckoutDecision::Ping);
        for kind in [Kind::ClosedConnection, Kind::UnableToSendCommand] {
            assert!(matches!(decision_after(&failed(kind)), CheckoutDecision::Retire(_)));
        }
    }

    #[test]
    fn a_commit_that_succeeds_clears_a_suspect_connection_only() {
        let now = Instant::now();
        let after_commit = |kind, outcome: Option<&QueryError>| {
            let mut record = new_record(now, None);
            record.query_finished(Some(&failed(kind)), now);
            record.is_ending_transaction = true;
            record.query_finished(outcome, now);
            record.checkout_decision(now, SECOND, None)
        };
        assert_eq!(after_commit(Kind::Unknown, None), CheckoutDecision::Peek);
        assert_eq!(
            after_commit(Kind::Unknown, Some(&failed(Kind::UniqueViolation))),
            CheckoutDecision::Ping
        );
        assert!(matches!(after_commit(Kind::ClosedConnection, None), CheckoutDecision::Retire(_)));
        // A query that succeeds is no commit.
        let mut record = new_record(now, None);
        record.query_finished(Some(&failed(Kind::Unknown)), now);
        record.query_finished(None, now);
        assert_eq!(record.checkout_decision(now, SECOND, None), CheckoutDecision::Ping);
    }

    #[test]
    fn a_violation_inside_of_a_transaction_leaves_it_aborted() {
        let now = Instant::now();
        let mut record = new_record(now, None);
        record.query_started("  begin isolation level serializable");
        record.query_finished(None, now);
        assert_eq!(record.checkout_decision(now, SECOND, None), CheckoutDecision::Peek);
        record.query_finished(Some(&failed(Kind::UniqueViolation)), now);
        assert_eq!(record.checkout_decision(now, SECOND, None), CheckoutDecision::Ping);
    }

    #[test]
    fn the_words_of_a_query() {
        let cases = [
            ("LISTEN jobs", CheckoutDecision::Ping),
            ("SET x = 1; listen jobs", CheckoutDecision::Ping),
            ("COPY t FROM STDIN", CheckoutDecision::Ping),
            ("NOTIFY jobs", CheckoutDecision::Peek),
            ("SELECT listener_id, copy FROM t", CheckoutDecision::Peek),
        ];
        for (query, expected) in cases {
            let now = Instant::now();
            let mut record = new_record(now, None);
            record.query_started(query);
            assert_eq!(record.checkout_decision(now, SECOND, None), expected, "{query}");
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
