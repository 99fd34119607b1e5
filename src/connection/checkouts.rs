//! [`Checkouts`]: the connections of one pool that are in use, and the threads that wait for one.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::series::Series;
use crate::error::Error;

/// The connections of one pool that are in use, and the threads that wait for one.
///
/// A thread waits here for its turn, and then in r2d2 for its connection. There are as many turns
/// as connections, so a thread with a turn waits for a login at most. r2d2 cannot wake a thread if
/// the pool is closed, and it does not wake one if a connection is closed and `min_idle` is 0.
#[derive(Debug, Default)]
pub(crate) struct Checkouts {
    state: Mutex<State>,
    /// Set while `state` is locked.
    is_closed: AtomicBool,
    may_begin: Condvar,
    ended: Condvar,
    /// Checkouts that got no connection in time.
    pub(crate) timeouts: Series,
    /// Checkouts that waited for long.
    pub(crate) slow: Series,
}

#[derive(Debug, Default)]
struct State {
    /// Threads that wait for their turn.
    queued: usize,
    /// Threads that have a connection, or get one now.
    turns: usize,
    /// In the order of their numbers.
    in_use: Vec<InUse>,
    last_number: u64,
    /// Connections up to this number were reported as overdue.
    reported: u64,
}

/// A connection in use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InUse {
    number: u64,
    pub(crate) since: Instant,
    /// Who checked it out.
    pub(crate) caller: &'static Location<'static>,
}

/// After the last turn ended, r2d2 reports no event for its connection.
const PAUSE: Duration = Duration::from_millis(1);

impl Checkouts {
    /// Waits for a turn until `deadline`. There are `most` turns at a time. Returns `Ok(None)` if
    /// there was none in time.
    pub(crate) fn begin(
        self: &Arc<Self>,
        most: u32,
        deadline: Instant,
    ) -> Result<Option<Checkout>, Error> {
        let mut state = self.state.lock();
        state.queued += 1;
        let mut is_late = false;
        while state.turns >= most as usize && !self.is_closed() && !is_late {
            is_late = self.may_begin.wait_until(&mut state, deadline).timed_out();
        }
        state.queued -= 1;
        if self.is_closed() {
            return Err(Error::PoolClosed);
        }
        if state.turns >= most as usize {
            return Ok(None);
        }
        state.turns += 1;
        Ok(Some(Checkout { checkouts: self.clone(), number: None }))
    }

    /// Ends all waits for a turn, also later ones.
    pub(crate) fn close(&self) {
        let _state = self.state.lock();
        self.is_closed.store(true, SeqCst);
        self.may_begin.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(SeqCst)
    }

    /// Whether the pool is closed and no thread waits for a connection in r2d2. Only a connection
    /// wakes such a thread.
    pub(crate) fn is_without_use(&self) -> bool {
        self.is_closed() && {
            let state = self.state.lock();
            state.turns == state.in_use.len()
        }
    }

    /// Returns how many threads wait for a connection.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.queued + state.turns - state.in_use.len()
    }

    /// Returns how many threads have a connection, or get one now.
    pub(crate) fn turns(&self) -> usize {
        self.state.lock().turns
    }

    /// Waits until there are fewer than `turns` turns. The pool is closed, so there are never more.
    pub(crate) fn wait_for_an_end(&self, turns: usize, deadline: Instant) {
        let mut state = self.state.lock();
        if turns == 0 {
            self.ended.wait_for(&mut state, PAUSE);
        } else if state.turns == turns {
            self.ended.wait_until(&mut state, deadline);
        }
    }

    /// Returns the connection that is in use for the longest time.
    pub(crate) fn longest(&self) -> Option<InUse> {
        self.state.lock().in_use.first().copied()
    }

    /// Returns the connections that are in use for `threshold` or longer. Returns each one once.
    pub(crate) fn overdue(&self, threshold: Duration) -> Vec<InUse> {
        let mut state = self.state.lock();
        let reported = state.reported;
        let new = state.in_use.iter().skip_while(|it| it.number <= reported);
        let overdue: Vec<InUse> =
            new.take_while(|it| it.since.elapsed() >= threshold).copied().collect();
        state.reported = overdue.last().map_or(reported, |last| last.number);
        overdue
    }
}

/// A turn: the right to get a connection, and later its use. The drop ends it.
#[derive(Debug)]
pub(crate) struct Checkout {
    checkouts: Arc<Checkouts>,
    /// `None` until there is a connection.
    number: Option<u64>,
}

impl Checkout {
    /// Records that there is a connection now.
    ///
    /// # Errors
    /// [`Error::PoolClosed`] if the pool was closed in between. The turn has ended then.
    pub(crate) fn start(mut self, caller: &'static Location<'static>) -> Result<Checkout, Error> {
        let since = Instant::now();
        let mut state = self.checkouts.state.lock();
        if self.checkouts.is_closed() {
            return Err(Error::PoolClosed);
        }
        state.last_number += 1;
        let number = state.last_number;
        state.in_use.push(InUse { number, since, caller });
        drop(state);
        self.number = Some(number);
        Ok(self)
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let mut state = self.checkouts.state.lock();
        state.turns -= 1;
        let i = self
            .number
            .and_then(|number| state.in_use.binary_search_by_key(&number, |it| it.number).ok());
        let ended = i.map(|i| state.in_use.remove(i));
        let was_reported = ended.filter(|it| it.number <= state.reported);
        drop(state);
        self.checkouts.may_begin.notify_one();
        self.checkouts.ended.notify_all();
        if let Some(InUse { since, caller, .. }) = was_reported {
            let used = since.elapsed();
            log::warn!(
                "the connection checked out at {caller} is checked in (used for {used:.1?})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(checkouts: &Arc<Checkouts>) -> Checkout {
        let turn = checkouts.begin(8, Instant::now()).unwrap().unwrap();
        turn.start(Location::caller()).unwrap()
    }

    #[test]
    fn there_are_no_more_turns_than_connections() {
        let checkouts = Arc::<Checkouts>::default();
        let begin = || checkouts.begin(2, Instant::now()).unwrap();
        let (first, second) = (begin(), begin());
        assert!(first.is_some() && second.is_some() && begin().is_none());
        assert_eq!(checkouts.waiting(), 2);
        let second = second.unwrap().start(Location::caller()).unwrap();
        assert_eq!((checkouts.waiting(), checkouts.turns()), (1, 2));
        drop(second);
        assert!(begin().is_some());
        assert_eq!(checkouts.turns(), 1);
    }

    #[test]
    fn a_closed_pool_has_no_turns_and_no_starts() {
        let checkouts = Arc::<Checkouts>::default();
        let (using, getting) = (start(&checkouts), checkouts.begin(8, Instant::now()).unwrap());
        assert!(!checkouts.is_without_use());
        checkouts.close();
        assert!(matches!(checkouts.begin(8, Instant::now()), Err(Error::PoolClosed)));
        assert!(!checkouts.is_without_use(), "a thread waits in r2d2");
        let error = getting.unwrap().start(Location::caller()).unwrap_err();
        assert!(matches!(error, Error::PoolClosed));
        assert!(checkouts.is_without_use());
        drop(using);
        assert_eq!(checkouts.turns(), 0);
    }

    #[test]
    fn the_oldest_use_is_the_longest_and_each_one_is_overdue_once() {
        let checkouts = Arc::<Checkouts>::default();
        let uses = [(); 3].map(|()| start(&checkouts));
        let numbers = |uses: Vec<InUse>| uses.iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!(checkouts.longest().unwrap().number, 1);
        assert_eq!(numbers(checkouts.overdue(Duration::from_secs(60))), [0; 0]);
        assert_eq!(numbers(checkouts.overdue(Duration::ZERO)), [1, 2, 3]);
        let [first, ..] = uses;
        drop(first);
        let _fourth = start(&checkouts);
        assert_eq!(numbers(checkouts.overdue(Duration::ZERO)), [4]);
        assert_eq!(numbers(checkouts.overdue(Duration::ZERO)), [0; 0]);
    }
}
