//! [`Pool`]: r2d2's pool, with the cause of each error.

mod log;
mod per_thread;
mod slot;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, PooledConnection};

use crate::connection::Checkout;
use crate::error::Error;
use crate::manager::RdsConnectionManager;
pub use log::PoolLog;
pub use per_thread::{PerThread, PerThreadConnection};
pub use transaction::{TransactionBuilder, TransactionError};

/// Longer than one `connect_timeout`, so that a waiting thread gets the cause.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// r2d2 adds timeouts to the current time. A longer one would be a time that does not exist.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl RdsConnectionManager {
    /// Returns an [`r2d2::Builder`] with defaults that suit IAM logins.
    ///
    /// - `connection_timeout` is 15 seconds.
    /// - `max_lifetime` is `None`, because the [manager](crate::Builder::max_lifetime) ends
    ///   connections itself, each at its own time. r2d2 would end idle connections all at once.
    /// - `idle_timeout` is `None`. r2d2 would close idle connections below `min_idle` too, and open
    ///   new ones at once.
    /// - [`PoolLog`] gets errors and events.
    ///
    /// All else is r2d2's.
    pub fn pool_builder(&self) -> r2d2::Builder<RdsConnectionManager> {
        r2d2::Pool::builder()
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(CONNECTION_TIMEOUT)
            .error_handler(Box::new(PoolLog))
            .event_handler(Box::new(PoolLog))
    }

    /// Connects once, then builds a pool and waits until it has its idle connections. If the first
    /// connection fails, this returns its error at once, while [`r2d2::Builder::build`] would retry
    /// until `connection_timeout`.
    ///
    /// # Errors
    /// - The errors of [`connect`](ManageConnection::connect) if the first connection fails.
    /// - [`Error::Timeout`] if only the first connection succeeds.
    pub fn build_pool(&self, builder: r2d2::Builder<RdsConnectionManager>) -> Result<Pool, Error> {
        let manager = self.with_first(self.connect()?);
        let pool = Pool {
            pool: builder.build_unchecked(manager.clone()),
            manager,
            is_timing_out: Arc::default(),
        };
        pool.wait_for_idle_connections()?;
        // With a min_idle of 0 r2d2 has not asked for it yet. In the pool, r2d2 ends it when it is
        // too old.
        if pool.manager.has_first() { pool.get().map(|_| pool) } else { Ok(pool) }
    }
}

/// An [`r2d2::Pool`] that returns the cause if there is no connection. Made by
/// [`build_pool`](RdsConnectionManager::build_pool).
///
/// r2d2 reports a cause to one of the waiting threads. Clones are cheap and are the same pool.
/// [`AsRef`] gives r2d2's own type.
#[derive(Debug, Clone)]
pub struct Pool {
    pool: r2d2::Pool<RdsConnectionManager>,
    manager: RdsConnectionManager,
    /// Whether the last checkout timed out. The first timeout in a row is logged as a warning.
    is_timing_out: Arc<AtomicBool>,
}

impl Pool {
    /// Checks out a connection. Waits for one for `connection_timeout` at most.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the cause.
    pub fn get(&self) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        self.get_timeout(self.pool.connection_timeout())
    }

    /// Checks out a connection. Waits for one for `timeout` at most. If the server does not answer
    /// a ping, this takes up to [`ping_timeout`](crate::Builder::ping_timeout) longer.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_timeout(
        &self,
        timeout: Duration,
    ) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let _checkout = Checkout::start(timeout);
        match self.pool.get_timeout(timeout) {
            // This connection was not checked, so it is checked in again.
            Ok(_) if Checkout::is_over() => Err(self.timed_out(timeout, timeout_for(NO_ANSWER))),
            Ok(connection) => {
                self.is_timing_out.store(false, Ordering::Relaxed);
                Ok(connection)
            }
            Err(error) => Err(self.timed_out(timeout, self.timeout_error(Some(&error)))),
        }
    }

    /// Checks out a connection if one is idle. Returns `None` without waiting if there is none.
    pub fn try_get(&self) -> Option<PooledConnection<RdsConnectionManager>> {
        let _checkout = Checkout::start(Duration::ZERO);
        self.pool.try_get().filter(|_| !Checkout::is_over())
    }

    /// Returns how many connections there are, and how many of them are idle.
    pub fn state(&self) -> r2d2::State {
        self.pool.state()
    }

    /// Returns the maximum number of connections.
    pub fn max_size(&self) -> u32 {
        self.pool.max_size()
    }

    /// Returns the manager of this pool.
    pub fn manager(&self) -> &RdsConnectionManager {
        &self.manager
    }

    fn timed_out(&self, timeout: Duration, error: Error) -> Error {
        let was_timing_out = self.is_timing_out.swap(true, Ordering::Relaxed);
        let level = if was_timing_out { ::log::Level::Debug } else { ::log::Level::Warn };
        ::log::log!(level, "no connection within {timeout:.1?}: {error}");
        error
    }

    fn timeout_error(&self, said: Option<&r2d2::Error>) -> Error {
        let max_size = self.pool.max_size();
        if self.pool.state().connections >= max_size {
            let reason = format!(
                "all {max_size} connections are in use; check them in sooner, or raise max_size"
            );
            return timeout_for(reason);
        }
        match self.manager.backoff().last_error() {
            Some(last) => Error::Timeout {
                reason: last.text,
                failure: last.failure,
                is_transient: last.is_transient,
            },
            None => timeout_for(said.and_then(cause_in).unwrap_or_else(|| IN_PROGRESS.to_owned())),
        }
    }

    /// As [`r2d2::Builder::build`] does, which cannot take every `connection_timeout`.
    fn wait_for_idle_connections(&self) -> Result<(), Error> {
        let wanted = self.pool.min_idle().unwrap_or(self.pool.max_size());
        let timeout = self.pool.connection_timeout().min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout;
        while self.pool.state().connections < wanted {
            if Instant::now() >= deadline {
                return Err(self.timed_out(timeout, self.timeout_error(None)));
            }
            // r2d2 reports no event for this.
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

const IN_PROGRESS: &str = "logins are still in progress: the server is slow to accept connections; \
                           check its load, or raise connection_timeout";

const NO_ANSWER: &str = "idle connections do not answer a ping within ping_timeout; check that the \
                         server is not overloaded, and what is between it and this program";

fn timeout_for(reason: impl Into<String>) -> Error {
    Error::Timeout { reason: reason.into(), failure: None, is_transient: true }
}

/// Returns the cause that r2d2 reports to one of the waiting threads, such as the error of a
/// `CustomizeConnection`.
fn cause_in(error: &r2d2::Error) -> Option<String> {
    error.to_string().strip_prefix("timed out waiting for connection: ").map(str::to_owned)
}

/// For what only r2d2's own type has.
impl AsRef<r2d2::Pool<RdsConnectionManager>> for Pool {
    fn as_ref(&self) -> &r2d2::Pool<RdsConnectionManager> {
        &self.pool
    }
}
