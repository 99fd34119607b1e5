//! [`Source`]: where the connections of a transaction come from.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::DerefMut;
use std::time::Duration;

use diesel::PgConnection;
use r2d2::ManageConnection;

use crate::error::Error;
use crate::pool::{PerThread, Pool};

#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Pool(&'a Pool),
    PerThread(&'a PerThread),
}

pub(super) type CheckedOut<'a> = Box<dyn DerefMut<Target = PgConnection> + 'a>;

impl<'a> Source<'a> {
    /// Checks out a connection. A pool waits for one for its own `connection_timeout`, or for
    /// `timeout` if that is shorter.
    pub(super) fn get(self, timeout: Option<Duration>) -> Result<CheckedOut<'a>, Error> {
        match self {
            Source::Pool(pool) => {
                let own = pool.as_ref().connection_timeout();
                let timeout = timeout.map_or(own, |timeout| timeout.min(own));
                Ok(Box::new(pool.get_timeout(timeout)?))
            }
            Source::PerThread(connections) => Ok(Box::new(connections.get()?)),
        }
    }

    /// As [`get`](Self::get), also after the pool was closed: its open transactions still end.
    pub(super) fn get_for_outcome(
        self,
        timeout: Option<Duration>,
    ) -> Result<CheckedOut<'a>, Error> {
        match (self.get(timeout), self) {
            (Err(Error::PoolClosed), Source::Pool(pool)) => {
                Ok(Box::new(Box::new(pool.manager().connect()?)))
            }
            (other, _) => other,
        }
    }

    /// Returns `None` in the closure of another transaction of the same manager.
    pub(super) fn enter(self) -> Option<Entered> {
        let manager = match self {
            Source::Pool(pool) => pool.manager(),
            Source::PerThread(connections) => connections.manager(),
        };
        // The same for all clones of a manager.
        let manager = std::ptr::from_ref(&*manager.backoff).addr();
        let is_new = OPEN.try_with(|open| open.borrow_mut().insert(manager));
        // In the destructor of a thread-local nothing is known.
        is_new.unwrap_or(true).then(|| Entered { manager })
    }
}

thread_local! {
    /// The managers with a transaction on this thread.
    static OPEN: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
}

/// A transaction runs on this thread, until the drop.
pub(super) struct Entered {
    manager: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = OPEN.try_with(|open| open.borrow_mut().remove(&self.manager));
    }
}
