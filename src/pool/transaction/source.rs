//! [`Source`]: where the connections of a transaction come from.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use diesel::PgConnection;
use r2d2::{ManageConnection, PooledConnection};

use crate::error::Error;
use crate::manager::RdsConnectionManager;
use crate::pool::{PerThread, PerThreadConnection, Pool};

#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Pool(&'a Pool),
    PerThread(&'a PerThread),
}

pub(super) enum CheckedOut<'a> {
    Pool(PooledConnection<RdsConnectionManager>),
    PerThread(PerThreadConnection<'a>),
    /// Only to find an outcome, after the pool was closed.
    Single(PgConnection),
}

impl<'a> Source<'a> {
    /// Checks out a connection. A pool waits for one for its own `connection_timeout`, or for
    /// `timeout` if that is shorter.
    pub(super) fn get(self, timeout: Option<Duration>) -> Result<CheckedOut<'a>, Error> {
        match self {
            Source::Pool(pool) => {
                let own = pool.as_ref().connection_timeout();
                let timeout = timeout.map_or(own, |timeout| timeout.min(own));
                pool.get_timeout(timeout).map(CheckedOut::Pool)
            }
            Source::PerThread(connections) => connections.get().map(CheckedOut::PerThread),
        }
    }

    /// As [`get`](Self::get), also after the pool was closed: its open transactions still end.
    pub(super) fn get_for_outcome(
        self,
        timeout: Option<Duration>,
    ) -> Result<CheckedOut<'a>, Error> {
        match self.get(timeout) {
            Err(Error::PoolClosed) => self.manager().connect().map(CheckedOut::Single),
            other => other,
        }
    }

    fn manager(self) -> &'a RdsConnectionManager {
        match self {
            Source::Pool(pool) => pool.manager(),
            Source::PerThread(connections) => connections.manager(),
        }
    }

    /// Returns `None` in the closure of another transaction of the same manager.
    pub(super) fn enter(self) -> Option<Entered> {
        // The same for all clones of a manager.
        let manager = std::ptr::from_ref(self.manager().backoff()).addr();
        let is_new = OPEN.try_with(|open| {
            let mut open = open.borrow_mut();
            let is_new = !open.contains(&manager);
            if is_new {
                open.push(manager);
            }
            is_new
        });
        // In the destructor of a thread-local nothing is known.
        is_new.unwrap_or(true).then(|| Entered { manager })
    }
}

thread_local! {
    /// The managers with a transaction on this thread.
    static OPEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// A transaction runs on this thread, until the drop.
pub(super) struct Entered {
    manager: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = OPEN.try_with(|open| open.borrow_mut().retain(|it| *it != self.manager));
    }
}

impl Deref for CheckedOut<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            CheckedOut::Pool(connection) => connection,
            CheckedOut::PerThread(connection) => connection,
            CheckedOut::Single(connection) => connection,
        }
    }
}

impl DerefMut for CheckedOut<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            CheckedOut::Pool(connection) => connection,
            CheckedOut::PerThread(connection) => connection,
            CheckedOut::Single(connection) => connection,
        }
    }
}
