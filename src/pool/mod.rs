//! [`Pool`]: r2d2's pool, with the cause of each error.

mod log;
mod per_thread;
mod slot;
mod transaction;

use std::panic::Location;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, PooledConnection};

use crate::connection::{CheckoutTimeout, Checkouts, Record};
use crate::conninfo::PoolKeywords;
use crate::error::Error;
use crate::manager::RdsConnectionManager;
pub use log::PoolLog;
pub use per_thread::{PerThread, PerThreadConnection};
pub use transaction::{TransactionBuilder, TransactionError};

/// Longer than one `connect_timeout`, so that a waiting thread gets the cause.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// From this wait on, a checkout is reported as slow.
const SLOW: Duration = Duration::from_secs(2);

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
    /// - `pool_max_size`, `pool_min_idle` and `pool_connection_timeout` of the [connection
    ///   string](crate::guide::connection_strings#keywords-of-this-crate) are set.
    ///
    /// All else is r2d2's.
    pub fn pool_builder(&self) -> r2d2::Builder<RdsConnectionManager> {
        let PoolKeywords { max_size, min_idle, connection_timeout } = self.pool_keywords;
        let builder = r2d2::Pool::builder()
            .max_lifetime(None)
            .idle_timeout(None)
            .min_idle(min_idle)
            .connection_timeout(connection_timeout.unwrap_or(CONNECTION_TIMEOUT))
            .error_handler(Box::new(PoolLog))
            .event_handler(Box::new(PoolLog));
        if let Some(max_size) = max_size { builder.max_size(max_size) } else { builder }
    }

    /// Connects once, then builds a pool and waits until it has its idle connections. If the first
    /// connection fails, this returns its error at once, while [`r2d2::Builder::build`] would retry
    /// until `connection_timeout`.
    ///
    /// # Errors
    /// - The errors of [`connect`](ManageConnection::connect) if the first connection fails.
    /// - [`Error::Timeout`] if only the first connection succeeds.
    /// - [`Error::Config`] if `builder` has another value than a `pool_` keyword of the connection
    ///   string.
    ///
    /// # Panics
    /// If `min_idle` is larger than `max_size`, as r2d2 does.
    pub fn build_pool(&self, builder: r2d2::Builder<RdsConnectionManager>) -> Result<Pool, Error> {
        let manager = self.for_pool(self.connect()?);
        let pool = Pool {
            manager: self.clone(),
            checkouts: manager.checkouts.clone(),
            pool: builder.build_unchecked(manager.clone()),
        };
        pool.check_keywords(self.pool_keywords)?;
        pool.wait_for_idle_connections()?;
        // With a min_idle of 0 r2d2 has not asked for it yet. In the pool, r2d2 ends it when it is
        // too old.
        if manager.has_first() { pool.get().map(|_| pool) } else { Ok(pool) }
    }
}

/// An [`r2d2::Pool`] that returns the cause if there is no connection. Made by
/// [`build_pool`](RdsConnectionManager::build_pool).
///
/// r2d2 reports a cause to one of the waiting threads. Clones are cheap and are the same pool.
/// [`AsRef`] gives r2d2's own type. Its checkouts do not end at [`close`](Pool::close).
#[derive(Debug, Clone)]
pub struct Pool {
    pool: r2d2::Pool<RdsConnectionManager>,
    manager: RdsConnectionManager,
    checkouts: Arc<Checkouts>,
}

impl Pool {
    /// Checks out a connection. Waits for one for `connection_timeout` at most.
    ///
    /// # Errors
    /// - [`Error::Timeout`] with the cause.
    /// - [`Error::PoolClosed`] after [`close`](Self::close).
    #[track_caller]
    pub fn get(&self) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        self.get_timeout(self.pool.connection_timeout())
    }

    /// Checks out a connection. Waits for one for `timeout` at most. If the server does not answer
    /// a ping, this takes up to [`ping_timeout`](crate::Builder::ping_timeout) longer.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn get_timeout(
        &self,
        timeout: Duration,
    ) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        let started = Instant::now();
        let checked_out = self.check_out(started, timeout, Location::caller());
        let waited = started.elapsed();
        self.manager.counters.checkout(waited);
        if waited >= SLOW && checked_out.is_ok() {
            let (level, waiting) = (self.checkouts.slow.next_level(), self.waiting());
            ::log::log!(
                level,
                "checkout was slow (waited {waited:.1?}, {waiting} threads still wait): if no \
                 login failed, check in connections sooner, or raise max_size"
            );
        }
        self.report_overdue();
        checked_out
    }

    /// Checks out a connection if one is idle. Returns `None` without waiting if there is none.
    #[track_caller]
    pub fn try_get(&self) -> Option<PooledConnection<RdsConnectionManager>> {
        let now = Instant::now();
        let turn = self.checkouts.begin(self.pool.max_size(), now).ok()??;
        let _timeout = CheckoutTimeout::start(now);
        let mut connection = self.pool.try_get().filter(|_| !CheckoutTimeout::is_over())?;
        let checkout = turn.start(Location::caller()).ok()?;
        if let Some(record) = Record::of(&mut connection) {
            record.checkout = Some(checkout);
        }
        Some(connection)
    }

    /// Closes the pool, for the end of a program. Returns the number of connections that are still
    /// open after `timeout`, because they are in use: 0 if all are closed.
    ///
    /// Further checkouts fail with [`Error::PoolClosed`], and so do those that wait for a check-in
    /// of another thread. A checkout that waits for a login fails at the end of the login. Idle
    /// connections are closed now, and those in use at their check-in, also after `timeout`.
    ///
    /// A [`transaction`](Self::transaction) in progress can still find its outcome. It is not
    /// retried.
    #[doc(alias = "drain")]
    #[doc(alias = "shutdown")]
    pub fn close(&self, timeout: Duration) -> u32 {
        self.checkouts.close();
        let deadline = Instant::now() + timeout.min(LONGEST_TIMEOUT);
        loop {
            let turns = self.checkouts.turns();
            while self.checkouts.is_without_use() && self.pool.try_get().is_some() {}
            let open = self.pool.state().connections;
            if open == 0 {
                return 0;
            }
            if Instant::now() >= deadline {
                let reason = "before all connections were checked in";
                ::log::warn!("pool closed {reason} ({open} still in use)");
                return open;
            }
            self.checkouts.wait_for_an_end(turns, deadline);
        }
    }

    /// Returns how many threads wait for a connection now.
    pub fn waiting(&self) -> usize {
        self.checkouts.waiting()
    }

    /// Returns how long the connection that was checked out first is in use, if any is. If the
    /// value only grows, a connection is never checked in.
    ///
    /// Checkouts by [`AsRef`] are not included.
    pub fn longest_checkout(&self) -> Option<Duration> {
        self.report_overdue();
        self.checkouts.longest().map(|it| it.since.elapsed())
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

    fn check_out(
        &self,
        started: Instant,
        timeout: Duration,
        caller: &'static Location<'static>,
    ) -> Result<PooledConnection<RdsConnectionManager>, Error> {
        let deadline = started + timeout.min(LONGEST_TIMEOUT);
        let begin = |deadline| self.checkouts.begin(self.pool.max_size(), deadline);
        // The clock is not read again if there was no wait.
        let (turn, left) = match begin(started)? {
            Some(turn) => (Some(turn), deadline - started),
            None => (begin(deadline)?, deadline.saturating_duration_since(Instant::now())),
        };
        let turn = turn.ok_or_else(|| self.timed_out(timeout, self.timeout_error(None)))?;
        let _timeout = CheckoutTimeout::start(deadline);
        let connection = self.pool.get_timeout(left);
        // If the pool was closed, the turn ends before the connection, which r2d2 then closes.
        let checkout = turn.start(caller)?;
        let mut connection = connection
            .map_err(|error| self.timed_out(timeout, self.timeout_error(Some(&error))))?;
        // This connection was not checked, so it is checked in again.
        if CheckoutTimeout::is_over() {
            return Err(self.timed_out(timeout, timeout_for(NO_ANSWER)));
        }
        if let Some(record) = Record::of(&mut connection) {
            record.checkout = Some(checkout);
        }
        Ok(connection)
    }

    fn timed_out(&self, timeout: Duration, error: Error) -> Error {
        let level = self.checkouts.timeouts.next_level();
        ::log::log!(level, "no connection within {timeout:.1?}: {error}");
        error
    }

    fn report_overdue(&self) {
        let Some(threshold) = self.manager.leak_detection_threshold else { return };
        for it in self.checkouts.overdue(threshold) {
            let (caller, used) = (it.caller, it.since.elapsed());
            ::log::warn!(
                "the connection checked out at {caller} is still in use (for {used:.1?}, \
                 leak_detection_threshold is {threshold:.1?}): check it in sooner"
            );
        }
    }

    /// A builder that replaces a value of the connection string would hide it from a deployment.
    fn check_keywords(&self, keywords: PoolKeywords) -> Result<(), Error> {
        let PoolKeywords { max_size, min_idle, connection_timeout } = keywords;
        let replaced = if max_size.is_some_and(|it| it != self.pool.max_size()) {
            "max_size"
        } else if min_idle.is_some() && min_idle != self.pool.min_idle() {
            "min_idle"
        } else if connection_timeout.is_some_and(|it| it != self.pool.connection_timeout()) {
            "connection_timeout"
        } else {
            return Ok(());
        };
        Err(Error::Config(format!(
            "pool_{replaced} of the connection string is replaced by {replaced} of the program; \
             remove one of them, and start from pool_builder"
        )))
    }

    fn timeout_error(&self, said: Option<&r2d2::Error>) -> Error {
        let max_size = self.pool.max_size();
        if self.pool.state().connections >= max_size {
            let reason = format!(
                "all {max_size} connections are in use; check them in sooner, or raise max_size"
            );
            return timeout_for(reason);
        }
        match self.manager.backoff.last_error() {
            Some(last) => last.into(),
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
