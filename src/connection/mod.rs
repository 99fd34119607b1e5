//! [`Record`]: what is known of one live connection: its age, its last use, its errors.

mod backend;
mod check;
mod checkout_timeout;
mod checkouts;
mod condition;
mod failure;
mod generation;
mod hooks;
mod instrumentation;
mod moment;
mod progress;
mod query_types;
mod series;
#[cfg_attr(not(target_os = "linux"), path = "socket_elsewhere.rs")]
mod socket;
mod sockets;
mod statement;
mod watchdog;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::{Connection, Instrumentation};
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;

use crate::error::{Error, Retirement};
use crate::stats::Counters;
pub(crate) use backend::{Backend, Lsn, Means};
pub(crate) use check::{IS_READ_WRITE, Role, RoleCheck, peek, ping, role_check};
pub(crate) use checkout_timeout::CheckoutTimeout;
pub(crate) use checkouts::{Checkout, Checkouts};
use condition::{Condition, condition_after};
pub(crate) use failure::Failure;
pub(crate) use generation::Generation;
pub(crate) use hooks::Hooks;
pub(crate) use moment::Moment;
pub(crate) use progress::Progress;
use query_types::QueryTypes;
pub(crate) use socket::{Mark, Socket};
pub(crate) use sockets::{ServerId, Sockets};
use statement::QueryEffects;
#[cfg(feature = "local")]
pub(crate) use statement::length_of_token;
pub(crate) use statement::{Words, skip_comments, split};
pub(crate) use watchdog::Alarm;

/// Kept with the connection as its instrumentation, which diesel calls at each query. Wraps the
/// instrumentation of the builder, or the default one.
///
/// A program that sets another instrumentation replaces it. Then nothing is known.
pub(crate) struct Record {
    /// When the connection is to be retired for its age.
    pub(crate) ends: Option<Moment>,
    last_use: Moment,
    condition: Condition,
    in_transaction: bool,
    /// Whether the texts of the queries left a transaction open. diesel does not see the
    /// transactions of raw queries.
    is_left_open: bool,
    /// What the text of the current query does to the session.
    query: QueryEffects,
    /// diesel's transaction manager sends the next BEGIN, and knows of it.
    is_begun_by_diesel: bool,
    /// Whether the server executed a write on this connection.
    has_written: bool,
    /// The server is a standby that was one from the start: a refused write is no demotion.
    is_reader: bool,
    /// A commit or rollback was sent. If it succeeds, earlier errors have no consequences.
    is_ending_transaction: bool,
    /// The server refused a write: the transaction is read-only, or the server is a standby.
    met_read_only: bool,
    listens: bool,
    /// The last user may have changed what the next one gets.
    pub(crate) has_changed_session: bool,
    /// The connection was never checked out.
    is_new: bool,
    query_types: QueryTypes,
    /// Of the transaction that is open.
    pub(crate) progress: Progress,
    /// The server process, once a transaction needed it.
    pub(crate) backend: Option<Backend>,
    socket: Option<Arc<Socket>>,
    /// The deadline of the unit of work.
    deadline: Option<Alarm>,
    wrapped: Option<Box<dyn Instrumentation>>,
    /// The generation in which the connection was last found usable.
    checked: u64,
    shared: Shared,
    /// The use by a thread, if the connection is one of a [`Pool`](crate::Pool). A connection that
    /// is closed at its check-in is in use until then, so that it is gone before another thread has
    /// its turn.
    pub(crate) checkout: Option<Checkout>,
}

/// What a connection shares with its manager.
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) hooks: Arc<Hooks>,
    /// Only if a failover can end the connection while a query is in flight.
    pub(crate) sockets: Option<Arc<Sockets>>,
    /// The generation in which the login started.
    pub(crate) born: u64,
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
        socket: Option<Arc<Socket>>,
        now: Moment,
        max_lifetime: Option<Duration>,
        jitter: f64,
        shared: Shared,
    ) -> Result<(), Error> {
        let life = max_lifetime.map(|lifetime| lifetime - lifetime.mul_f64(0.1 * jitter));
        let ends = life.and_then(|life| now.checked_add(life));
        let wrapped = shared.hooks.new_instrumentation()?;
        let mut record = Record::new(now, ends, wrapped, shared);
        record.socket = socket;
        connection.set_instrumentation(record);
        Ok(())
    }

    fn new(
        now: Moment,
        ends: Option<Moment>,
        wrapped: Option<Box<dyn Instrumentation>>,
        shared: Shared,
    ) -> Record {
        Record {
            ends,
            last_use: now,
            condition: Condition::Sound,
            in_transaction: false,
            is_left_open: false,
            query: QueryEffects::default(),
            is_begun_by_diesel: false,
            has_written: false,
            is_reader: false,
            is_ending_transaction: false,
            met_read_only: false,
            listens: false,
            has_changed_session: false,
            is_new: true,
            query_types: QueryTypes::reading_all(shared.hooks.reset_on_release),
            progress: Progress::default(),
            backend: None,
            socket: None,
            deadline: None,
            wrapped,
            checked: shared.born,
            shared,
            checkout: None,
        }
    }

    /// Returns the record of this connection, or `None` if the program replaced it.
    pub(crate) fn of(connection: &mut PgConnection) -> Option<&mut Record> {
        connection.instrumentation().downcast_mut()
    }

    fn met_read_only(&self) -> bool {
        self.met_read_only && !self.is_reader
    }

    /// Records that the session is as the next user expects it.
    pub(crate) fn session_is_unchanged(&mut self) {
        self.has_changed_session = false;
    }

    /// Records that the session is as after its login.
    pub(crate) fn session_was_reset(&mut self) {
        self.listens = false;
    }

    /// Records a checkout. Returns whether it is the first one.
    pub(crate) fn checked_out(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// Returns the check of the server's role that the next ping has to make, whichever role the
    /// connection string asks for. A server that accepted writes must accept them still.
    pub(crate) fn role_check(&self) -> Option<RoleCheck> {
        let has_changed = self.shared.generation.needs_role_check(self.checked) && !self.is_reader;
        let is_due = has_changed || self.met_read_only();
        let is_required = has_changed || self.has_written;
        is_due.then_some(RoleCheck { query: IS_READ_WRITE, is_required })
    }

    /// Records that the server is a standby that was never asked to be anything else.
    pub(crate) fn is_on_a_reader(&mut self) {
        self.is_reader = true;
    }

    /// Decides what to do at a checkout.
    pub(crate) fn checkout_decision(
        &self,
        now: Moment,
        validate_after: Duration,
    ) -> CheckoutDecision {
        if let Some(reason) = self.retirement(now) {
            return CheckoutDecision::Retire(reason);
        }
        let may_be_closed = self.shared.generation.needs_check(self.checked);
        let is_idle = now.since(self.last_use) > validate_after;
        // Without the socket the peek consumes the notifications of a connection that listens.
        let would_consume = self.listens && self.socket.is_none();
        if self.is_suspect() || would_consume || may_be_closed || is_idle {
            CheckoutDecision::Ping
        } else {
            CheckoutDecision::Peek
        }
    }

    /// Returns why the connection must not be used again.
    pub(crate) fn retirement(&self, now: Moment) -> Option<Retirement> {
        if let Some(reason) = self.shut_down_for() {
            return Some(reason);
        }
        match self.condition {
            Condition::Broken(reason) => Some(reason),
            _ if self.is_left_open => Some(Retirement::Transaction),
            _ if self.shared.generation.is_retired(self.shared.born) => Some(Retirement::Requested),
            _ if self.ends.is_some_and(|end| now.has_reached(end)) => Some(Retirement::Age),
            _ => None,
        }
    }

    /// Records that the connection must not be used again. The first reason counts.
    pub(crate) fn retire(&mut self, reason: Retirement) {
        if self.retirement(Moment::now()).is_none() {
            self.condition = Condition::Broken(reason);
        }
    }

    /// Returns the socket of the connection, if it is known.
    fn socket(&self) -> Option<&Socket> {
        self.socket.as_deref()
    }

    fn watched_socket(&self) -> Option<&Socket> {
        self.shared.sockets.as_ref().and(self.socket())
    }

    /// A failover can end the connection from now on.
    pub(crate) fn watch(&self, server: ServerId) {
        if let (Some(sockets), Some(socket)) = (&self.shared.sockets, &self.socket) {
            sockets.add(socket, server);
        }
    }

    /// Returns why this crate ended the connection while it was in use.
    fn shut_down_for(&self) -> Option<Retirement> {
        self.socket()?.shut_down_for()
    }

    /// Limits the wait for an answer, until the alarm is dropped. Without the socket there is no
    /// limit.
    fn limit_answer(&self, timeout: Duration) -> Option<Alarm> {
        let at = Instant::now().checked_add(timeout)?;
        Alarm::set(self.socket.clone()?, at, Retirement::FailedCheck).ok()
    }

    /// Sets or removes the deadline of the unit of work.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.deadline = None;
        let Some(at) = deadline else { return Ok(()) };
        let socket = self.socket.clone().ok_or(io::ErrorKind::Unsupported)?;
        self.deadline = Some(Alarm::set(socket, at, Retirement::Deadline)?);
        Ok(())
    }

    /// Whether the connection had an error and was not pinged since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.condition == Condition::Suspect
    }

    /// Records a ping that succeeded. `generation` was current before it was sent.
    pub(crate) fn ping_succeeded(&mut self, generation: u64) {
        self.checked = generation;
        self.found_sound();
    }

    fn found_sound(&mut self) {
        self.met_read_only = false;
        if self.condition == Condition::Suspect {
            self.condition = Condition::Sound;
        }
    }

    fn query_started(&mut self, mut effects: QueryEffects) {
        self.in_transaction |= effects.begins;
        if std::mem::take(&mut self.is_begun_by_diesel) {
            (effects.open, effects.begins) = (None, false);
        }
        // A COPY that is abandoned leaves the connection in it. diesel does not know that its
        // prepared statements are gone.
        if effects.deallocates {
            self.worsen(Condition::Broken(Retirement::StaleStatements));
        } else if effects.copies {
            self.worsen(Condition::Suspect);
        }
        self.listens |= effects.listens;
        self.has_changed_session |= effects.changes_session;
        self.progress.query_started(&effects);
        self.query = effects;
        if let Some(socket) = self.watched_socket() {
            socket.query_started();
        }
    }

    fn query_finished(&mut self, error: Option<&QueryError>, now: Moment) {
        self.last_use = now;
        if let Some(socket) = self.watched_socket() {
            socket.query_finished();
        }
        self.progress.query_finished(error);
        let query = std::mem::take(&mut self.query);
        self.is_left_open = query.leaves_open(self.is_left_open, error.is_some());
        if query.writes && error.is_none() {
            // A standby can be promoted, and keeps its sessions.
            (self.has_written, self.is_reader) = (true, false);
        }
        self.in_transaction &= query.open != Some(false) || error.is_some();
        if let Some(QueryError::DatabaseError(Kind::ReadOnlyTransaction, _)) = error {
            self.met_read_only = true;
            if self.has_written {
                self.shared.generation.writer_demoted();
            }
        }
        match error.map_or(Condition::Sound, |error| condition_after(error, self.in_transaction)) {
            Condition::Sound if self.is_ending_transaction && error.is_none() => {
                self.in_transaction = false;
                if !self.met_read_only() {
                    self.found_sound();
                }
            }
            condition => self.worsen(condition),
        }
        self.is_ending_transaction = false;
    }

    fn worsen(&mut self, condition: Condition) {
        if condition > self.condition {
            if condition == Condition::Broken(Retirement::Closed) && self.shut_down_for().is_none()
            {
                self.shared.generation.connection_closed();
            }
            self.condition = condition;
        }
    }
}

/// The record is dropped together with its connection.
impl Drop for Record {
    fn drop(&mut self) {
        let reason = self.retirement(Moment::now()).unwrap_or(Retirement::Released);
        self.shared.counters.retirement(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_record(now: Moment, max_lifetime: Option<Duration>) -> Record {
        Record::new(now, max_lifetime.map(|lifetime| now + lifetime), None, shared())
    }

    fn shared() -> Shared {
        Shared {
            counters: Arc::default(),
            generation: Arc::default(),
            hooks: Arc::default(),
            sockets: None,
            born: 0,
        }
    }

    fn failed(kind: Kind) -> QueryError {
        QueryError::DatabaseError(kind, Box::new(String::from("text")))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn both_sides_of_each_limit() {
        let now = Moment::now();
        let record = new_record(now, Some(10 * SECOND));
        assert_eq!(record.checkout_decision(now + SECOND, SECOND), CheckoutDecision::Peek);
        assert_eq!(
            record.checkout_decision(now + SECOND + Duration::from_nanos(1), SECOND),
            CheckoutDecision::Ping
        );
        assert_eq!(record.retirement(now + 10 * SECOND - Duration::from_nanos(1)), None);
        assert!(record.retirement(now + 10 * SECOND).is_some());
    }

    #[test]
    fn after_another_connection_was_found_closed_each_older_one_is_pinged_once() {
        let now = Moment::now();
        let (mut one, mut other) = (new_record(now, None), new_record(now, None));
        other.shared.generation = one.shared.generation.clone();
        one.query_finished(Some(&failed(Kind::ClosedConnection)), now);
        assert_eq!(other.checkout_decision(now, SECOND), CheckoutDecision::Ping);
        assert!(other.role_check().is_none());
        other.ping_succeeded(other.shared.generation.current());
        assert_eq!(other.checkout_decision(now, SECOND), CheckoutDecision::Peek);
    }

    #[test]
    fn a_refused_write_of_one_writer_makes_the_others_check_their_role() {
        let now = Moment::now();
        let (mut one, mut other) = (new_record(now, None), new_record(now, None));
        other.shared.generation = one.shared.generation.clone();
        one.query_started(QueryEffects::of("INSERT INTO t VALUES (1)"));
        one.query_finished(Some(&failed(Kind::ReadOnlyTransaction)), now);
        assert!(other.role_check().is_none(), "it never wrote: it may be a reader");
        one.query_started(QueryEffects::of("INSERT INTO t VALUES (1)"));
        one.query_finished(None, now);
        one.query_finished(Some(&failed(Kind::ReadOnlyTransaction)), now);
        assert!(other.role_check().unwrap().is_required && one.met_read_only());
        assert_eq!(other.checkout_decision(now, SECOND), CheckoutDecision::Ping);
        other.is_on_a_reader();
        assert!(other.role_check().is_none(), "it is known to be a reader");
        other.query_started(QueryEffects::of("INSERT INTO t VALUES (1)"));
        other.query_finished(None, now);
        assert!(other.role_check().is_some_and(|check| check.is_required), "it was promoted");
    }

    #[test]
    fn retire_all_retires_what_is_older() {
        let now = Moment::now();
        let record = new_record(now, None);
        record.shared.generation.retire_all();
        assert_eq!(record.retirement(now), Some(Retirement::Requested));
        let mut younger = new_record(now, None);
        younger.shared.generation = record.shared.generation.clone();
        younger.shared.born = younger.shared.generation.current();
        assert_eq!(younger.retirement(now), None);
    }

    #[test]
    fn a_machine_that_slept_has_old_connections() {
        let now = Moment::now();
        let record = new_record(now, Some(10 * SECOND));
        assert_eq!(
            record.checkout_decision(now.after_sleep(2 * SECOND), SECOND),
            CheckoutDecision::Ping
        );
        assert_eq!(record.retirement(now.after_sleep(10 * SECOND)), Some(Retirement::Age));
        assert_eq!(record.retirement(now.set_back(10 * SECOND)), None);
        assert_eq!(
            record.retirement((now + 10 * SECOND).set_back(20 * SECOND)),
            Some(Retirement::Age)
        );
    }

    #[test]
    fn a_raw_transaction_that_is_left_open_retires_the_connection() {
        const BODY: &str = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END";
        let closed = Some(Retirement::Transaction);
        type Queries = &'static [(&'static str, bool)];
        let cases: &[(Queries, Option<Retirement>)] = &[
            (&[("BEGIN", true)], closed),
            (&[("BEGIN; INSERT INTO t VALUES (1)", true)], closed),
            (&[("/* x */ START TRANSACTION", true), ("SELECT 1", true)], closed),
            (&[("BEGIN", true), ("COMMIT", true)], None),
            (&[("BEGIN; SELECT 1; COMMIT", true)], None),
            (&[("BEGIN", true), ("COMMIT", false)], None),
            (&[("BEGIN; SELECT 1; COMMIT", false)], closed),
            (&[("BEGIN", true), ("ROLLBACK TO SAVEPOINT a", true)], closed),
            (&[("BEGIN", true), ("COMMIT AND CHAIN", true)], closed),
            (&[("BEGIN", true), ("PREPARE TRANSACTION 'a'", true)], None),
            (&[("BEGIN", false)], None),
            (&[("BEGIN", true), (BODY, true)], closed),
            (&[("BEGIN", true), (BODY, true), ("COMMIT", true)], None),
            (&[(BODY, true)], None),
        ];
        for (queries, expected) in cases {
            let now = Moment::now();
            let mut record = new_record(now, None);
            for (query, succeeds) in *queries {
                record.query_started(QueryEffects::of(query));
                let error = (!succeeds).then(|| failed(Kind::UniqueViolation));
                record.query_finished(error.as_ref(), now);
            }
            assert_eq!(record.retirement(now), *expected, "{queries:?}");
        }
    }

    #[test]
    fn diesels_own_transactions_are_left_to_diesel() {
        let now = Moment::now();
        let mut record = new_record(now, None);
        record.is_begun_by_diesel = true;
        record.query_started(QueryEffects::of("BEGIN"));
        record.query_finished(None, now);
        assert_eq!(record.retirement(now), None, "a test transaction stays open");
    }

    #[test]
    fn stale_statements_retire_the_connection_after_one_failure() {
        let stale = Some(Retirement::StaleStatements);
        let failures = [
            "cached plan must not change result type",
            "Prepared Statement \"__diesel_stmt_3\" existiert nicht",
            "cache lookup failed for type 16402",
        ];
        for message in failures {
            let now = Moment::now();
            let mut record = new_record(now, None);
            let information = Box::new(String::from(message));
            record
                .query_finished(Some(&QueryError::DatabaseError(Kind::Unknown, information)), now);
            assert_eq!(record.retirement(now), stale, "{message}");
        }
        let now = Moment::now();
        let mut record = new_record(now, None);
        let of_a_user = String::from("syntax error in tsquery: \"with OID __diesel_stmt_1\"");
        let error = QueryError::DatabaseError(Kind::Unknown, Box::new(of_a_user));
        record.query_finished(Some(&error), now);
        assert_eq!(record.retirement(now), None, "the text of a user");
        for (query, expected) in
            [("DISCARD ALL", stale), ("deallocate all", stale), ("DISCARD TEMP", None)]
        {
            let now = Moment::now();
            let mut record = new_record(now, None);
            record.query_started(QueryEffects::of(query));
            assert_eq!(record.retirement(now), expected, "{query}");
        }
    }

    #[test]
    fn without_a_max_lifetime_age_does_not_count() {
        let now = Moment::now();
        assert_eq!(
            new_record(now, None).retirement(now + Duration::from_secs(u32::MAX.into())),
            None
        );
    }

    #[test]
    fn each_error_has_its_decision() {
        let now = Moment::now();
        let decision_after = |error: &QueryError| {
            let mut record = new_record(now, None);
            record.query_finished(Some(error), now);
            record.checkout_decision(now, SECOND)
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
        let now = Moment::now();
        let after_commit = |kind, outcome: Option<&QueryError>| {
            let mut record = new_record(now, None);
            record.query_finished(Some(&failed(kind)), now);
            record.is_ending_transaction = true;
            record.query_finished(outcome, now);
            record.checkout_decision(now, SECOND)
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
        assert_eq!(record.checkout_decision(now, SECOND), CheckoutDecision::Ping);
    }

    #[test]
    fn a_violation_inside_of_a_transaction_leaves_it_aborted() {
        let now = Moment::now();
        let mut record = new_record(now, None);
        record.is_begun_by_diesel = true;
        record.query_started(QueryEffects::of("BEGIN ISOLATION LEVEL SERIALIZABLE"));
        record.query_finished(None, now);
        assert_eq!(record.checkout_decision(now, SECOND), CheckoutDecision::Peek);
        record.query_finished(Some(&failed(Kind::UniqueViolation)), now);
        assert_eq!(record.checkout_decision(now, SECOND), CheckoutDecision::Ping);
    }

    #[test]
    fn a_violation_after_a_raw_transaction_means_nothing() {
        let now = Moment::now();
        let mut record = new_record(now, None);
        for query in ["BEGIN", "COMMIT"] {
            record.query_started(QueryEffects::of(query));
            record.query_finished(None, now);
        }
        record.query_started(QueryEffects::of("INSERT INTO t VALUES (1)"));
        record.query_finished(Some(&failed(Kind::UniqueViolation)), now);
        assert_eq!(record.checkout_decision(now, SECOND), CheckoutDecision::Peek);
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
            let now = Moment::now();
            let mut record = new_record(now, None);
            record.query_started(QueryEffects::of(query));
            assert_eq!(record.checkout_decision(now, SECOND), expected, "{query}");
        }
    }
}
