//! [`PerThread`]: one persistent connection per thread.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;
use r2d2::ManageConnection;

use crate::connection::{Moment, Record};
use crate::conninfo::PoolKeywords;
use crate::error::{Error, Retirement};
use crate::manager::RdsConnectionManager;
use crate::pool::slot::Slot;

/// One persistent connection per thread, as in Django: for workers with their own threads.
///
/// [`get`](Self::get) starts a unit of work (a request, a job) on this thread's connection, and
/// returns a guard. Dropping the guard ends the unit of work. Age and errors of the connection are
/// checked only at these two points. Each thread connects at its first `get`. Its connection is
/// closed when the thread ends.
///
/// ```no_run
/// use diesel::prelude::*;
/// use diesel_rds_iam::{PerThread, RdsConnectionManager};
///
/// let connections = PerThread::new(RdsConnectionManager::from_env()?);
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| {
///             let mut connection = connections.get().expect("a connection");
///             diesel::sql_query("SELECT 1").execute(&mut *connection).expect("an answer");
///         });
///     }
/// });
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
///
/// Two things differ from Django. The guard is the unit of work, so there are no signals to
/// connect. `get` itself connects, because a caller that asks for a guard is about to use it.
#[must_use]
pub struct PerThread(Connections<RdsConnectionManager>);

impl PerThread {
    /// Creates the connections of this manager. Nothing is dialled yet.
    ///
    /// Keywords of the connection string that start with `pool_` have no effect here.
    pub fn new(manager: RdsConnectionManager) -> PerThread {
        if manager.pool_keywords != PoolKeywords::default() {
            log::warn!("PerThread ignores the pool_ keywords of the connection string");
        }
        PerThread(Connections::new(manager))
    }

    /// The maximum age of a connection. A connection past it is closed at the end of the unit of
    /// work, or at the start of the next one. `Some(Duration::ZERO)` closes the connection at the
    /// end of each unit of work.
    ///
    /// Defaults to `None`: only [`Builder::max_lifetime`](crate::Builder::max_lifetime) applies.
    #[doc(alias = "CONN_MAX_AGE")]
    pub fn max_lifetime(mut self, max_lifetime: Option<Duration>) -> Self {
        self.0.max_lifetime = max_lifetime;
        self
    }

    /// Whether `get` checks that the connection is still valid, and replaces it if it is not. A
    /// new connection is not checked.
    ///
    /// Defaults to `true`.
    #[doc(alias = "CONN_HEALTH_CHECKS")]
    pub fn test_on_check_out(mut self, test_on_check_out: bool) -> Self {
        self.0.test_on_check_out = test_on_check_out;
        self
    }

    /// Starts a unit of work on this thread's connection. Connects if there is none.
    ///
    /// # Errors
    /// - [`Error::InUse`] while another guard of this thread is alive.
    /// - [`Error::ThreadEnding`] in the destructor of a thread-local.
    /// - The errors of [`connect`](ManageConnection::connect) if a new connection is needed.
    /// - [`Error::Hook`] if `before_check_out` fails on a new connection.
    pub fn get(&self) -> Result<PerThreadConnection<'_>, Error> {
        self.0.get().map(PerThreadConnection)
    }

    pub(super) fn manager(&self) -> &RdsConnectionManager {
        &self.0.manager
    }

    /// Closes this thread's connection, unless it is in use. A connection of another thread is
    /// closed when that thread calls this or ends. So at the end of a program, join its threads.
    pub fn close(&self) {
        self.0.close();
    }
}

impl fmt::Debug for PerThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerThread")
            .field("max_lifetime", &self.0.max_lifetime)
            .field("test_on_check_out", &self.0.test_on_check_out)
            .finish_non_exhaustive()
    }
}

/// This thread's connection, for one unit of work. It cannot be sent to another thread:
///
/// ```compile_fail,E0277
/// # use diesel_rds_iam::PerThreadConnection;
/// fn leaves(connection: PerThreadConnection<'static>) {
///     std::thread::spawn(move || drop(connection));
/// }
/// ```
pub struct PerThreadConnection<'a>(Guard<'a, RdsConnectionManager>);

impl Deref for PerThreadConnection<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.connection()
    }
}

impl DerefMut for PerThreadConnection<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.connection_mut()
    }
}

impl fmt::Debug for PerThreadConnection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerThreadConnection")
    }
}

/// What [`PerThread`] needs of its manager. The unit tests have another implementation.
trait Manager: 'static {
    type Connection: 'static;

    fn connect(&self) -> Result<Self::Connection, Error>;
    fn is_valid(&self, connection: &mut Self::Connection) -> bool;
    fn has_broken(&self, connection: &mut Self::Connection) -> bool;
    /// The hook at the start of a unit of work.
    fn before_check_out(&self, connection: &mut Self::Connection) -> Result<(), Error>;
    /// The hook and the reset at the end of a unit of work.
    fn release(&self, connection: &mut Self::Connection) -> Result<(), Error>;

    /// When the manager itself will retire the connection.
    fn ends(connection: &mut Self::Connection) -> Option<Moment>;
    /// Records that the connection is closed for its age.
    fn retire_for_age(connection: &mut Self::Connection);
    /// Whether the connection had an error and was not pinged since.
    fn is_suspect(connection: &mut Self::Connection) -> bool;
}

impl Manager for RdsConnectionManager {
    type Connection = PgConnection;

    fn connect(&self) -> Result<PgConnection, Error> {
        ManageConnection::connect(self)
    }

    fn is_valid(&self, connection: &mut PgConnection) -> bool {
        self.check(connection).is_ok()
    }

    fn has_broken(&self, connection: &mut PgConnection) -> bool {
        self.is_retired(connection)
    }

    fn before_check_out(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.before_check_out(connection)
    }

    fn release(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.release(connection)
    }

    fn ends(connection: &mut PgConnection) -> Option<Moment> {
        Record::of(connection)?.ends
    }

    fn retire_for_age(connection: &mut PgConnection) {
        if let Some(record) = Record::of(connection) {
            record.retire(Retirement::Age);
        }
    }

    /// A connection whose instrumentation was replaced has no record: it is always pinged.
    fn is_suspect(connection: &mut PgConnection) -> bool {
        Record::of(connection).is_none_or(|record| record.is_suspect())
    }
}

struct Connections<M: Manager> {
    manager: M,
    max_lifetime: Option<Duration>,
    test_on_check_out: bool,
    /// Identifies this owner in the slots of a thread. A slot whose owner is gone is an orphan.
    identity: Arc<()>,
}

impl<M: Manager> Connections<M> {
    fn new(manager: M) -> Connections<M> {
        Connections {
            manager,
            max_lifetime: None,
            test_on_check_out: true,
            identity: Arc::default(),
        }
    }

    fn get(&self) -> Result<Guard<'_, M>, Error> {
        let (slot, kept) = Slot::take(&self.identity)?;
        let kept = kept.and_then(|kept| kept.downcast::<Kept<M>>().ok());
        let kept = match kept.and_then(|kept| self.usable_at_start(*kept)) {
            Some(kept) => kept,
            None => self.connect()?,
        };
        Ok(Guard { connections: self, kept: Some(kept), slot })
    }

    fn close(&self) {
        drop(Slot::take(&self.identity));
    }

    fn connect(&self) -> Result<Kept<M>, Error> {
        // Fixed before dialling: a slow login does not prolong the connection's life.
        let ends = self.max_lifetime.and_then(|lifetime| Moment::now().checked_add(lifetime));
        let mut connection = self.manager.connect()?;
        // Read now, because a user's own instrumentation removes the manager's record.
        let managers = M::ends(&mut connection);
        self.manager.before_check_out(&mut connection)?;
        Ok(Kept { connection, ends: [ends, managers] })
    }

    fn usable_at_start(&self, mut kept: Kept<M>) -> Option<Kept<M>> {
        let has_ended = kept.has_ended() || self.manager.has_broken(&mut kept.connection);
        let is_usable =
            !has_ended && (!self.test_on_check_out || self.manager.is_valid(&mut kept.connection));
        let is_usable = is_usable && self.manager.before_check_out(&mut kept.connection).is_ok();
        is_usable.then_some(kept)
    }

    /// After an error a connection is kept only if a ping succeeds.
    fn usable_at_end(&self, mut kept: Kept<M>) -> Option<Kept<M>> {
        let has_ended = kept.has_ended()
            || self.manager.has_broken(&mut kept.connection)
            || std::thread::panicking();
        let is_usable = !has_ended
            && (!M::is_suspect(&mut kept.connection)
                || self.manager.is_valid(&mut kept.connection))
            && self.manager.release(&mut kept.connection).is_ok();
        is_usable.then_some(kept)
    }
}

/// Closes this thread's connection. The connections of other threads are closed at their next
/// `get` of any [`PerThread`], or when they end.
impl<M: Manager> Drop for Connections<M> {
    fn drop(&mut self) {
        self.close();
    }
}

/// A connection between two units of work.
struct Kept<M: Manager> {
    connection: M::Connection,
    /// The end by this `PerThread`, and by the manager.
    ends: [Option<Moment>; 2],
}

impl<M: Manager> Kept<M> {
    fn has_ended(&mut self) -> bool {
        let now = Moment::now();
        let has_ended = self.ends.iter().flatten().any(|end| now.has_reached(*end));
        if has_ended {
            M::retire_for_age(&mut self.connection);
        }
        has_ended
    }
}

struct Guard<'a, M: Manager> {
    connections: &'a Connections<M>,
    /// `None` only after the drop took it.
    kept: Option<Kept<M>>,
    slot: Slot,
}

impl<M: Manager> Guard<'_, M> {
    #[expect(clippy::expect_used, reason = "only the drop takes the connection out")]
    fn connection(&self) -> &M::Connection {
        &self.kept.as_ref().expect("a guard has its connection").connection
    }

    #[expect(clippy::expect_used, reason = "only the drop takes the connection out")]
    fn connection_mut(&mut self) -> &mut M::Connection {
        &mut self.kept.as_mut().expect("a guard has its connection").connection
    }
}

impl<M: Manager> Drop for Guard<'_, M> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take().and_then(|kept| self.connections.usable_at_end(kept)) {
            self.slot.put_back(Box::new(kept));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use std::time::Instant;

    use super::*;

    /// A manager whose connections are numbers, and that does as it is told.
    #[derive(Default)]
    struct Told {
        made: AtomicUsize,
        checked: AtomicUsize,
        closed: Arc<AtomicUsize>,
        prepared: AtomicUsize,
        released: AtomicUsize,
        refuses: AtomicBool,
        refuses_to_prepare: AtomicBool,
        finds_invalid: AtomicBool,
        finds_broken: AtomicBool,
    }

    struct Number {
        number: usize,
        closed: Arc<AtomicUsize>,
    }

    impl Drop for Number {
        fn drop(&mut self) {
            self.closed.fetch_add(1, SeqCst);
        }
    }

    impl Manager for Told {
        type Connection = Number;

        fn connect(&self) -> Result<Number, Error> {
            if self.refuses.load(SeqCst) {
                return Err(Error::Config("told to".into()));
            }
            Ok(Number { number: self.made.fetch_add(1, SeqCst), closed: self.closed.clone() })
        }

        fn is_valid(&self, _: &mut Number) -> bool {
            self.checked.fetch_add(1, SeqCst);
            !self.finds_invalid.load(SeqCst)
        }

        fn has_broken(&self, _: &mut Number) -> bool {
            self.finds_broken.load(SeqCst)
        }

        fn before_check_out(&self, _: &mut Number) -> Result<(), Error> {
            self.prepared.fetch_add(1, SeqCst);
            if self.refuses_to_prepare.load(SeqCst) {
                return Err(Error::Config("told to".into()));
            }
            Ok(())
        }

        fn release(&self, _: &mut Number) -> Result<(), Error> {
            self.released.fetch_add(1, SeqCst);
            Ok(())
        }

        fn ends(_: &mut Number) -> Option<Moment> {
            None
        }

        fn retire_for_age(_: &mut Number) {}

        fn is_suspect(_: &mut Number) -> bool {
            false
        }
    }

    fn number(connections: &Connections<Told>) -> usize {
        connections.get().unwrap().connection().number
    }

    fn told() -> Connections<Told> {
        Connections::new(Told::default())
    }

    fn with_max_lifetime(max_lifetime: Option<Duration>) -> Connections<Told> {
        let mut connections = told();
        connections.max_lifetime = max_lifetime;
        connections
    }

    fn without_checks() -> Connections<Told> {
        let mut connections = told();
        connections.test_on_check_out = false;
        connections
    }

    fn count(counter: &AtomicUsize) -> usize {
        counter.load(SeqCst)
    }

    #[test]
    fn is_lazy_and_persistent() {
        let connections = told();
        assert_eq!(count(&connections.manager.made), 0);
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
        assert_eq!(count(&connections.manager.closed), 0);
    }

    #[test]
    fn each_thread_has_its_own_until_it_ends() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        std::thread::scope(|scope| {
            let other = || [number(&connections), number(&connections)];
            assert_eq!(scope.spawn(other).join().unwrap(), [1, 1]);
        });
        assert_eq!(count(&connections.manager.closed), 1);
        assert_eq!(number(&connections), 0);
    }

    #[test]
    fn two_owners_on_one_thread_have_a_connection_each() {
        let (first, second) = (told(), told());
        let (one, other) = (first.get().unwrap(), second.get().unwrap());
        assert_eq!((one.connection().number, other.connection().number), (0, 0));
    }

    #[test]
    fn health_checks_are_once_a_unit_and_not_for_a_new_connection() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        assert_eq!(count(&connections.manager.checked), 0);
        let guard = connections.get().unwrap();
        assert_eq!([guard.connection().number, guard.connection().number], [0, 0]);
        assert_eq!(count(&connections.manager.checked), 1);
    }

    #[test]
    fn each_hook_is_called_once_a_unit_also_for_a_new_connection_and_without_checks() {
        let connections = without_checks();
        for unit in 1..=3 {
            let guard = connections.get().unwrap();
            assert_eq!(count(&connections.manager.prepared), unit);
            assert_eq!(count(&connections.manager.released), unit - 1);
            drop(guard);
            assert_eq!(count(&connections.manager.released), unit);
        }
        assert_eq!(count(&connections.manager.made), 1);
    }

    #[test]
    fn a_failed_hook_replaces_the_connection_once_and_is_an_error_for_a_new_one() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        connections.manager.refuses_to_prepare.store(true, SeqCst);
        assert!(matches!(connections.get(), Err(Error::Config(_))));
        assert_eq!((count(&connections.manager.made), count(&connections.manager.closed)), (2, 2));
        connections.manager.refuses_to_prepare.store(false, SeqCst);
        assert_eq!(number(&connections), 2);
    }

    #[test]
    fn a_failed_health_check_replaces_the_connection() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        connections.manager.finds_invalid.store(true, SeqCst);
        assert_eq!(number(&connections), 1);
        assert_eq!(count(&connections.manager.closed), 1);
    }

    #[test]
    fn without_health_checks_nobody_is_asked() {
        let connections = without_checks();
        connections.manager.finds_invalid.store(true, SeqCst);
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
        assert_eq!(count(&connections.manager.checked), 0);
    }

    #[test]
    fn a_broken_connection_is_closed_at_the_end_of_its_unit() {
        let connections = told();
        let guard = connections.get().unwrap();
        connections.manager.finds_broken.store(true, SeqCst);
        assert_eq!(count(&connections.manager.closed), 0);
        drop(guard);
        assert_eq!(count(&connections.manager.closed), 1);
    }

    #[test]
    fn one_that_broke_between_two_units_is_closed_at_the_start_of_the_next() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        connections.manager.finds_broken.store(true, SeqCst);
        assert_eq!(number(&connections), 1);
    }

    #[test]
    fn a_max_lifetime_of_zero_closes_after_each_unit_and_none_never() {
        let connections = with_max_lifetime(Some(Duration::ZERO));
        assert_eq!([number(&connections), number(&connections)], [0, 1]);
        assert_eq!(count(&connections.manager.closed), 2);
        let connections = with_max_lifetime(None);
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
    }

    #[test]
    fn the_end_of_life_passes_in_the_middle_of_a_unit_and_counts_at_its_border() {
        let connections = with_max_lifetime(Some(Duration::from_millis(20)));
        let guard = connections.get().unwrap();
        let begun = Instant::now();
        while begun.elapsed() <= Duration::from_millis(20) {
            assert_eq!(count(&connections.manager.closed), 0);
        }
        assert_eq!(guard.connection().number, 0);
        drop(guard);
        assert_eq!(count(&connections.manager.closed), 1);
    }

    #[test]
    fn a_second_guard_is_an_error_that_explains_itself() {
        let connections = told();
        let guard = connections.get().unwrap();
        let error = connections.get().err().unwrap();
        assert!(matches!(error, Error::InUse), "{error}");
        assert!(error.to_string().contains("drop the first guard"), "{error}");
        assert!(matches!(connections.get(), Err(Error::InUse)), "an error frees no slot");
        connections.close();
        assert!(matches!(connections.get(), Err(Error::InUse)), "nor does close");
        drop(guard);
        assert_eq!([number(&connections), count(&connections.manager.made)], [0, 1]);
    }

    #[test]
    fn a_failed_connect_leaves_the_place_free() {
        let connections = told();
        connections.manager.refuses.store(true, SeqCst);
        assert!(matches!(connections.get(), Err(Error::Config(_))));
        connections.manager.refuses.store(false, SeqCst);
        assert_eq!(number(&connections), 0);
    }

    #[test]
    fn a_guard_dropped_in_a_panic_closes_the_connection() {
        let connections = told();
        let unit = std::panic::AssertUnwindSafe(|| {
            let _guard = connections.get().unwrap();
            panic!("in the middle of a unit of work");
        });
        assert!(std::panic::catch_unwind(unit).is_err());
        assert_eq!(count(&connections.manager.closed), 1);
        assert_eq!(number(&connections), 1);
    }

    #[test]
    fn close_closes_this_threads_connection() {
        let connections = told();
        assert_eq!(number(&connections), 0);
        connections.close();
        assert_eq!(count(&connections.manager.closed), 1);
        assert_eq!(number(&connections), 1);
    }

    #[test]
    fn the_drop_of_the_owner_closes_this_threads_connection() {
        let connections = told();
        let closed = connections.manager.closed.clone();
        assert_eq!(number(&connections), 0);
        drop(connections);
        assert_eq!(count(&closed), 1);
    }

    #[test]
    fn connections_of_an_owner_that_has_gone_are_closed_at_the_next_get() {
        let (first, second) = (told(), told());
        let closed = first.manager.closed.clone();
        std::thread::scope(|scope| {
            let (sender, dropped) = std::sync::mpsc::channel();
            let (ready, receiver) = std::sync::mpsc::channel();
            let second = &second;
            let first = Arc::new(first);
            let theirs = first.clone();
            let closed = &closed;
            scope.spawn(move || {
                assert_eq!(number(&theirs), 0);
                drop(theirs);
                ready.send(()).unwrap();
                dropped.recv().unwrap();
                assert_eq!(count(closed), 0);
                assert_eq!(number(second), 0);
                assert_eq!(count(closed), 1);
            });
            receiver.recv().unwrap();
            drop(first);
            sender.send(()).unwrap();
        });
    }

    #[test]
    fn a_get_in_the_drop_of_a_thread_local_is_an_error_and_no_abort() {
        struct AtTheEnd(Arc<Connections<Told>>, std::sync::mpsc::Sender<bool>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                let _ = self.1.send(matches!(self.0.get(), Err(Error::ThreadEnding)));
                self.0.close();
            }
        }
        thread_local!(static LAST: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) });
        let (sender, was_told) = std::sync::mpsc::channel();
        let connections = Arc::new(told());
        let theirs = connections.clone();
        // Thread-locals are dropped in the reverse order of their first use.
        let thread = std::thread::spawn(move || {
            LAST.with_borrow_mut(|last| *last = Some(AtTheEnd(theirs.clone(), sender)));
            assert_eq!(number(&theirs), 0);
        });
        thread.join().unwrap();
        assert!(was_told.recv().unwrap());
    }

    #[test]
    fn a_life_longer_than_time_has_no_end() {
        let connections = with_max_lifetime(Some(Duration::MAX));
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
    }
}
