//! [`PerThread`]: one persistent connection per thread.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use diesel::PgConnection;
use r2d2::ManageConnection;

use crate::connection::Session;
use crate::error::Retirement;

/// One persistent connection per thread, as Django keeps them: for workers with a thread each.
///
/// [`get`](Self::get) begins a unit of work, a request or a job, on this thread's connection;
/// dropping its guard ends it. Age and errors are looked at there and never in between. Each thread
/// connects at its first `get` and has its connection to itself; it is closed when the thread ends.
///
/// ```no_run
/// use diesel::prelude::*;
/// use diesel_rds_iam::{PerThread, RdsConnectionManager};
///
/// let connections = PerThread::new(RdsConnectionManager::from_env()?).test_on_check_out(true);
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
/// It differs from Django's where Rust does: the guard is the unit of work, so there are no signals
/// to connect, and the connection is made by `get` itself, since what asks for a guard is about to
/// use it.
#[must_use]
pub struct PerThread<M: ManageConnection> {
    manager: M,
    max_lifetime: Option<Duration>,
    test_on_check_out: bool,
    /// Who we are among the owners of a thread's connections; gone with us.
    identity: Arc<()>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerThreadError<E: std::error::Error + 'static> {
    /// A guard of this thread is still alive. A second connection would not see what the first has
    /// not committed, and could wait for its locks for ever.
    #[error(
        "this thread's connection is in use; drop the first guard, or hand on a reference to the connection"
    )]
    InUse,
    /// The thread is ending, and has closed its connections: this is the drop of some other
    /// thread-local.
    #[error("this thread is ending; use the connection before its thread-locals are dropped")]
    ThreadEnding,
    /// The manager could not connect.
    #[error("{0}")]
    Connect(#[source] E),
}

impl<M: ManageConnection> PerThread<M> {
    /// Connections of this manager, none of which is made yet.
    pub fn new(manager: M) -> PerThread<M> {
        PerThread {
            manager,
            max_lifetime: None,
            test_on_check_out: false,
            identity: Arc::default(),
        }
    }

    /// How old a connection may become; past it, it is closed at the end of the unit of work, or at
    /// the start of the next one. Zero closes it at the end of each.
    ///
    /// Defaults to none: what the manager says of age
    /// ([`Builder::max_lifetime`](crate::Builder::max_lifetime)) holds.
    #[doc(alias = "CONN_MAX_AGE")]
    pub fn max_lifetime(mut self, max_lifetime: Option<Duration>) -> Self {
        self.max_lifetime = max_lifetime;
        self
    }

    /// Whether to ask the manager at the start of each unit of work if the connection is still
    /// valid; one that is not is replaced. A new connection is not asked about.
    ///
    /// Defaults to `false`.
    #[doc(alias = "CONN_HEALTH_CHECKS")]
    pub fn test_on_check_out(mut self, test_on_check_out: bool) -> Self {
        self.test_on_check_out = test_on_check_out;
        self
    }

    /// Begins a unit of work on this thread's connection, and connects if there is none.
    ///
    /// # Errors
    /// [`PerThreadError::InUse`] while another guard of this thread is alive,
    /// [`PerThreadError::Connect`] when a new connection is needed and cannot be made.
    pub fn get(&self) -> Result<PerThreadConnection<'_, M>, PerThreadError<M::Error>> {
        let (seat, kept) = match Seat::take(&self.identity) {
            Taken::Free(seat, kept) => (seat, kept),
            Taken::InUse => return Err(PerThreadError::InUse),
            Taken::Gone => return Err(PerThreadError::ThreadEnding),
        };
        let kept = kept.and_then(|kept| kept.downcast::<Kept<M::Connection>>().ok());
        let kept = match kept.and_then(|kept| self.still_good(*kept)) {
            Some(kept) => kept,
            None => self.connect().map_err(PerThreadError::Connect)?,
        };
        Ok(PerThreadConnection { per_thread: self, kept: Some(kept), seat })
    }

    /// Closes this thread's connection, if it has one that is not in use.
    pub fn close(&self) {
        drop(Seat::take(&self.identity));
    }

    fn connect(&self) -> Result<Kept<M::Connection>, M::Error> {
        // Fixed before dialling: a login that takes long makes nobody live longer.
        let ends = self.max_lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime));
        let mut connection = self.manager.connect()?;
        // The manager's own end of it, which a user's instrumentation would make it forget.
        let managers = session_of(&mut connection).and_then(|session| session.ends());
        Ok(Kept { connection, ends: [ends, managers].into_iter().flatten().min() })
    }

    /// The start of a unit of work.
    fn still_good(&self, mut kept: Kept<M::Connection>) -> Option<Kept<M::Connection>> {
        let ended = kept.has_ended() || self.manager.has_broken(&mut kept.connection);
        let good = !ended
            && (!self.test_on_check_out || self.manager.is_valid(&mut kept.connection).is_ok());
        good.then_some(kept)
    }

    /// The end of a unit of work. After an error a connection is kept only if it proves usable.
    fn worth_keeping(&self, mut kept: Kept<M::Connection>) -> Option<Kept<M::Connection>> {
        let ended = kept.has_ended()
            || self.manager.has_broken(&mut kept.connection)
            || std::thread::panicking();
        let good = !ended
            && (!is_doubtful(&mut kept.connection)
                || self.manager.is_valid(&mut kept.connection).is_ok());
        good.then_some(kept)
    }
}

/// Closes this thread's connection. Those of other threads are closed at their next `get` of any
/// `PerThread`, or when they end.
impl<M: ManageConnection> Drop for PerThread<M> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<M: ManageConnection> fmt::Debug for PerThread<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerThread")
            .field("max_lifetime", &self.max_lifetime)
            .field("test_on_check_out", &self.test_on_check_out)
            .finish_non_exhaustive()
    }
}

/// Whether it saw an error. Only our own manager's connections tell; one of PostgreSQL that does
/// not, for it has another instrumentation, has to be asked.
fn is_doubtful(connection: &mut dyn Any) -> bool {
    connection.is::<PgConnection>()
        && session_of(connection).is_none_or(|session| session.is_suspect())
}

fn session_of(connection: &mut dyn Any) -> Option<&mut Session> {
    connection.downcast_mut::<PgConnection>().and_then(Session::of)
}

/// A connection between two units of work.
struct Kept<C> {
    connection: C,
    ends: Option<Instant>,
}

impl<C: 'static> Kept<C> {
    fn has_ended(&mut self) -> bool {
        let has_ended = self.ends.is_some_and(|end| end <= Instant::now());
        if has_ended && let Some(session) = session_of(&mut self.connection) {
            // Our own end can be before the manager's.
            session.retire(Retirement::Age);
        }
        has_ended
    }
}

/// This thread's connection, for one unit of work. It stays on its thread:
///
/// ```compile_fail,E0277
/// # use diesel_rds_iam::{PerThreadConnection, RdsConnectionManager};
/// fn leaves(connection: PerThreadConnection<'static, RdsConnectionManager>) {
///     std::thread::spawn(move || drop(connection));
/// }
/// ```
pub struct PerThreadConnection<'a, M: ManageConnection> {
    per_thread: &'a PerThread<M>,
    /// Taken only by the drop.
    kept: Option<Kept<M::Connection>>,
    seat: Seat,
}

impl<M: ManageConnection> Deref for PerThreadConnection<'_, M> {
    type Target = M::Connection;

    #[expect(clippy::expect_used, reason = "only the drop takes the connection out")]
    fn deref(&self) -> &M::Connection {
        &self.kept.as_ref().expect("a guard has its connection").connection
    }
}

impl<M: ManageConnection> DerefMut for PerThreadConnection<'_, M> {
    #[expect(clippy::expect_used, reason = "only the drop takes the connection out")]
    fn deref_mut(&mut self) -> &mut M::Connection {
        &mut self.kept.as_mut().expect("a guard has its connection").connection
    }
}

impl<M: ManageConnection> Drop for PerThreadConnection<'_, M> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take().and_then(|kept| self.per_thread.worth_keeping(kept)) {
            self.seat.put_back(Box::new(kept));
        }
    }
}

impl<M: ManageConnection> fmt::Debug for PerThreadConnection<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerThreadConnection")
    }
}

thread_local! {
    /// The standard library's, which drops them at the end of the thread: other crates' keep them
    /// for the next thread.
    static PLACES: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// Where this thread keeps the connection of one [`PerThread`].
struct Place {
    owner: Weak<()>,
    in_use: bool,
    kept: Option<Box<dyn Any>>,
}

/// The right to use this thread's place, given back on drop.
struct Seat {
    owner: Weak<()>,
    /// It means this thread's place, so it must not leave the thread.
    _not_send: PhantomData<*const ()>,
}

/// What comes of asking for this thread's place.
enum Taken {
    Free(Seat, Option<Box<dyn Any>>),
    InUse,
    /// The thread is ending, and its places have been dropped.
    Gone,
}

impl Seat {
    /// Takes the place, with what is kept there.
    fn take(owner: &Arc<()>) -> Taken {
        let owner = Arc::downgrade(owner);
        // Connections whose owners have gone are closed once the borrow has ended, for closing is
        // foreign code.
        let Ok((kept, _orphans)) = PLACES.try_with(|places| {
            let mut places = places.borrow_mut();
            let orphans: Vec<Place> =
                places.extract_if(.., |place| place.owner.strong_count() == 0).collect();
            let known = places.iter().position(|place| place.owner.ptr_eq(&owner));
            let i = known.unwrap_or_else(|| {
                places.push(Place { owner: owner.clone(), in_use: false, kept: None });
                places.len() - 1
            });
            let was_in_use = std::mem::replace(&mut places[i].in_use, true);
            ((!was_in_use).then(|| places[i].kept.take()), orphans)
        }) else {
            return Taken::Gone;
        };
        match kept {
            Some(kept) => Taken::Free(Seat { owner, _not_send: PhantomData }, kept),
            None => Taken::InUse,
        }
    }

    fn put_back(&self, kept: Box<dyn Any>) {
        self.in_place(|place| place.kept = Some(kept));
    }

    /// Nothing to do when the thread is ending and its places have gone.
    fn in_place(&self, change: impl FnOnce(&mut Place)) {
        let _ = PLACES.try_with(|places| {
            if let Some(place) =
                places.borrow_mut().iter_mut().find(|place| place.owner.ptr_eq(&self.owner))
            {
                change(place);
            }
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.in_place(|place| place.in_use = false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// A manager whose connections are numbers, and that does as it is told.
    #[derive(Default)]
    struct Told {
        made: AtomicUsize,
        checked: AtomicUsize,
        closed: Arc<AtomicUsize>,
        refuses: AtomicBool,
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

    #[derive(Debug, thiserror::Error)]
    #[error("told to")]
    struct ToldTo;

    impl ManageConnection for Told {
        type Connection = Number;
        type Error = ToldTo;

        fn connect(&self) -> Result<Number, ToldTo> {
            if self.refuses.load(SeqCst) {
                return Err(ToldTo);
            }
            Ok(Number { number: self.made.fetch_add(1, SeqCst), closed: self.closed.clone() })
        }

        fn is_valid(&self, _: &mut Number) -> Result<(), ToldTo> {
            self.checked.fetch_add(1, SeqCst);
            if self.finds_invalid.load(SeqCst) { Err(ToldTo) } else { Ok(()) }
        }

        fn has_broken(&self, _: &mut Number) -> bool {
            self.finds_broken.load(SeqCst)
        }
    }

    fn number(connections: &PerThread<Told>) -> usize {
        connections.get().unwrap().number
    }

    fn told() -> PerThread<Told> {
        PerThread::new(Told::default())
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
        assert_eq!((one.number, other.number), (0, 0));
    }

    #[test]
    fn health_checks_are_once_a_unit_and_not_for_a_new_connection() {
        let connections = told().test_on_check_out(true);
        assert_eq!(number(&connections), 0);
        assert_eq!(count(&connections.manager.checked), 0);
        let guard = connections.get().unwrap();
        assert_eq!([guard.number, guard.number], [0, 0]);
        assert_eq!(count(&connections.manager.checked), 1);
    }

    #[test]
    fn a_failed_health_check_replaces_the_connection() {
        let connections = told().test_on_check_out(true);
        assert_eq!(number(&connections), 0);
        connections.manager.finds_invalid.store(true, SeqCst);
        assert_eq!(number(&connections), 1);
        assert_eq!(count(&connections.manager.closed), 1);
    }

    #[test]
    fn without_health_checks_nobody_is_asked() {
        let connections = told();
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
        let connections = told().max_lifetime(Some(Duration::ZERO));
        assert_eq!([number(&connections), number(&connections)], [0, 1]);
        assert_eq!(count(&connections.manager.closed), 2);
        let connections = told().max_lifetime(None);
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
    }

    #[test]
    fn the_end_of_life_passes_in_the_middle_of_a_unit_and_counts_at_its_border() {
        let connections = told().max_lifetime(Some(Duration::from_millis(20)));
        let guard = connections.get().unwrap();
        let begun = Instant::now();
        while begun.elapsed() <= Duration::from_millis(20) {
            assert_eq!(count(&connections.manager.closed), 0);
        }
        assert_eq!(guard.number, 0);
        drop(guard);
        assert_eq!(count(&connections.manager.closed), 1);
    }

    #[test]
    fn a_second_guard_is_an_error_that_explains_itself() {
        let connections = told();
        let guard = connections.get().unwrap();
        let error = connections.get().unwrap_err();
        assert!(matches!(error, PerThreadError::InUse), "{error}");
        assert!(error.to_string().contains("drop the first guard"), "{error}");
        connections.close();
        drop(guard);
        assert_eq!([number(&connections), count(&connections.manager.made)], [0, 1]);
    }

    #[test]
    fn a_failed_connect_leaves_the_place_free() {
        let connections = told();
        connections.manager.refuses.store(true, SeqCst);
        assert!(matches!(connections.get(), Err(PerThreadError::Connect(ToldTo))));
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
        struct AtTheEnd(Arc<PerThread<Told>>, std::sync::mpsc::Sender<bool>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                let _ = self.1.send(matches!(self.0.get(), Err(PerThreadError::ThreadEnding)));
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
        let connections = told().max_lifetime(Some(Duration::MAX));
        assert_eq!([number(&connections), number(&connections)], [0, 0]);
    }
}
