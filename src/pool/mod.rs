//! [`Pool`]: r2d2's, with the causes.

mod log;
mod per_thread;

pub use log::PoolLog;
pub use per_thread::{PerThread, PerThreadConnection};

use std::time::Duration;

use r2d2::PooledConnection;

use crate::error::Error;
use crate::manager::RdsConnectionManager;

/// An [`r2d2::Pool`] that tells each waiter why there is no connection. Made by
/// [`build_pool`](RdsConnectionManager::build_pool).
///
/// r2d2 gives the cause to one waiter, and tells the others that time has run out. All else is
/// r2d2's, and where its own type is wanted, a reference to this one will do. Clones are cheap and
/// are the same pool.
#[derive(Debug, Clone)]
pub struct Pool {
    pool: r2d2::Pool<RdsConnectionManager>,
    manager: RdsConnectionManager,
}

impl Pool {
    pub(crate) fn build(
        builder: r2d2::Builder<RdsConnectionManager>,
        manager: RdsConnectionManager,
    ) -> Result<Pool, Error> {
        let timeout = |source| Error::Timeout {
            reason: manager.last_error().or(told(&source)).unwrap_or(UNKNOWN.into()),
            source,
        };
        let pool = builder.build(manager.clone()).map_err(timeout)?;
        Ok(Pool { pool, manager })
    }

    /// Takes a connection out of the pool, and waits for one for connection_timeout at most.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the cause.
    pub fn get(&self) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        self.pool.get().map_err(|source| self.explained(source))
    }

    /// Takes a connection out of the pool, and waits for one for `timeout` at most.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_timeout(
        &self,
        timeout: Duration,
    ) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        self.pool.get_timeout(timeout).map_err(|source| self.explained(source))
    }

    /// Takes a connection out of the pool if one is idle.
    ///
    /// Returns `None` without waiting if there is none.
    pub fn try_get(&self) -> Option<PooledConnection<RdsConnectionManager>> {
        self.pool.try_get()
    }

    /// How many connections there are, and how many of them are idle.
    pub fn state(&self) -> r2d2::State {
        self.pool.state()
    }

    /// The maximum number of connections.
    pub fn max_size(&self) -> u32 {
        self.pool.max_size()
    }

    /// The manager of this pool.
    pub fn manager(&self) -> &RdsConnectionManager {
        &self.manager
    }

    fn explained(&self, source: r2d2::Error) -> Error {
        let (made, most) = (self.pool.state().connections, self.pool.max_size());
        let reason = if made >= most {
            format!(
                "all {most} connections are in use; give them back sooner, or raise max_size, and see what is slow"
            )
        } else {
            self.manager.last_error().or(told(&source)).unwrap_or(UNKNOWN.into())
        };
        Error::Timeout { reason, source }
    }
}

const UNKNOWN: &str = "no login has failed, and none has ended in time; see why the server is slow, or raise connection_timeout";

/// The cause that r2d2 gives to one of the waiters.
fn told(error: &r2d2::Error) -> Option<String> {
    error.to_string().strip_prefix("timed out waiting for connection: ").map(str::to_owned)
}

/// For what only r2d2's own type has.
impl AsRef<r2d2::Pool<RdsConnectionManager>> for Pool {
    fn as_ref(&self) -> &r2d2::Pool<RdsConnectionManager> {
        &self.pool
    }
}
