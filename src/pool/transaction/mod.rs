//! [`TransactionBuilder`]: transactions that are retried and whose outcome is known.

mod attempt;
mod error;
mod options;
mod outcome;
mod retries;
mod source;

use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;

use super::{PerThread, Pool};
use crate::connection::Failure;
use crate::error::Error;
use attempt::{End, attempt};
pub use error::TransactionError;
use options::Options;
use outcome::is_committed;
use retries::Retries;
use source::{CheckedOut, Source};

const ATTEMPTS: u32 = 20;
const TIME_LIMIT: Duration = Duration::from_secs(60);

impl Pool {
    /// Runs the closure in a transaction on a connection of this pool, and commits if it returns
    /// `Ok`. Retries conflicts and lost connections, and finds the outcome of a COMMIT whose answer
    /// was lost.
    ///
    /// **The closure may run more than once.** It must have no effect outside of its connection:
    /// see [`guide::transactions`](crate::guide::transactions).
    ///
    /// ```no_run
    /// use diesel::prelude::*;
    /// use diesel_rds_iam::{RdsConnectionManager, TransactionError};
    ///
    /// # diesel::table! { accounts { id -> Integer, balance -> BigInt } }
    /// # let manager = RdsConnectionManager::from_env()?;
    /// # let pool = manager.build_pool(manager.pool_builder())?;
    /// let balance: i64 = pool.transaction(|connection| {
    ///     diesel::update(accounts::table.find(1))
    ///         .set(accounts::balance.eq(accounts::balance - 10))
    ///         .returning(accounts::balance)
    ///         .get_result(connection)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TransactionError::Closure`] with the closure's own error, else as [`TransactionError`]
    /// says.
    ///
    /// # Panics
    /// If the closure panics. The transaction is rolled back first.
    pub fn transaction<T, E>(
        &self,
        run: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, TransactionError<E>> {
        self.build_transaction().run(run)
    }

    /// Starts the settings of a [`transaction`](Self::transaction).
    pub fn build_transaction(&self) -> TransactionBuilder<'_> {
        TransactionBuilder::new(Source::Pool(self))
    }
}

impl PerThread {
    /// Runs the closure in a transaction on this thread's connection, and commits if it returns
    /// `Ok`. As [`Pool::transaction`]: the closure may run more than once.
    ///
    /// The transaction is one unit of work, or several if it is retried.
    ///
    /// # Errors
    /// [`TransactionError::Closure`] with the closure's own error, else as [`TransactionError`]
    /// says. [`Error::InUse`](crate::Error::InUse) while a guard of this thread is alive.
    ///
    /// # Panics
    /// If the closure panics. The transaction is rolled back first.
    pub fn transaction<T, E>(
        &self,
        run: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, TransactionError<E>> {
        self.build_transaction().run(run)
    }

    /// Starts the settings of a [`transaction`](Self::transaction).
    pub fn build_transaction(&self) -> TransactionBuilder<'_> {
        TransactionBuilder::new(Source::PerThread(self))
    }
}

/// The settings of a transaction. Made by [`Pool::build_transaction`] and
/// [`PerThread::build_transaction`].
///
/// ```no_run
/// use diesel::prelude::*;
/// # use diesel_rds_iam::RdsConnectionManager;
/// # diesel::table! { accounts { id -> Integer, balance -> BigInt } }
/// # let manager = RdsConnectionManager::from_env()?;
/// # let pool = manager.build_pool(manager.pool_builder())?;
/// let balances: Vec<i64> = pool
///     .build_transaction()
///     .serializable()
///     .read_only()
///     .run(|connection| accounts::table.select(accounts::balance).load(connection))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use = "a transaction starts with run"]
pub struct TransactionBuilder<'a> {
    source: Source<'a>,
    options: Options,
    attempts: u32,
    time_limit: Duration,
}

impl<'a> TransactionBuilder<'a> {
    fn new(source: Source<'a>) -> TransactionBuilder<'a> {
        TransactionBuilder {
            source,
            options: Options::default(),
            attempts: ATTEMPTS,
            time_limit: TIME_LIMIT,
        }
    }

    /// Sets the isolation level READ COMMITTED.
    ///
    /// Defaults to the server's `default_transaction_isolation`.
    pub fn read_committed(mut self) -> Self {
        self.options.isolation_level = " ISOLATION LEVEL READ COMMITTED";
        self
    }

    /// Sets the isolation level REPEATABLE READ.
    ///
    /// Defaults to the server's `default_transaction_isolation`.
    pub fn repeatable_read(mut self) -> Self {
        self.options.isolation_level = " ISOLATION LEVEL REPEATABLE READ";
        self
    }

    /// Sets the isolation level SERIALIZABLE.
    ///
    /// Defaults to the server's `default_transaction_isolation`.
    pub fn serializable(mut self) -> Self {
        self.options.isolation_level = " ISOLATION LEVEL SERIALIZABLE";
        self
    }

    /// Sets the transaction to READ ONLY. It then needs no additional round trip before COMMIT.
    ///
    /// Defaults to the server's `default_transaction_read_only`.
    pub fn read_only(mut self) -> Self {
        self.options.is_read_only = true;
        self
    }

    /// Sets the transaction to DEFERRABLE. Together with [`serializable`](Self::serializable) and
    /// [`read_only`](Self::read_only), it waits at its start and has no conflicts then.
    ///
    /// Defaults to the server's `default_transaction_deferrable`.
    pub fn deferrable(mut self) -> Self {
        self.options.is_deferrable = true;
        self
    }

    /// How often the transaction is attempted at most, the first time included. A login that failed
    /// does not count.
    ///
    /// Defaults to 20.
    ///
    /// # Panics
    /// If `attempts` is 0.
    pub fn attempts(mut self, attempts: u32) -> Self {
        assert!(attempts > 0, "a transaction needs at least 1 attempt");
        self.attempts = attempts;
        self
    }

    /// How long after the start of [`run`](Self::run) an attempt may start, and a lost outcome is
    /// queried. An attempt that runs is not interrupted: set `statement_timeout` for that. After a
    /// lost answer the outcome is queried at least once.
    ///
    /// Defaults to 60 seconds.
    pub fn time_limit(mut self, time_limit: Duration) -> Self {
        self.time_limit = time_limit;
        self
    }

    /// Runs the closure in a transaction, as [`Pool::transaction`] does.
    ///
    /// # Errors
    /// [`TransactionError::Closure`] with the closure's own error, else as [`TransactionError`]
    /// says.
    ///
    /// # Panics
    /// If the closure panics. The transaction is rolled back first.
    pub fn run<T, E>(
        self,
        mut run: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, TransactionError<E>> {
        let _entered = self.source.enter().ok_or(TransactionError::Nested)?;
        let started = Instant::now();
        let mut retries = Retries::new(self.attempts, self.time_limit, started);
        loop {
            let mut connection =
                self.connection(&mut retries).map_err(TransactionError::Connection)?;
            let ended = attempt(&mut connection, &self.options, &mut run);
            // Checked in before a pause and before a login for the outcome.
            drop(connection);
            let (failure, error) = match ended {
                Ok(End::Committed(value)) => return Ok(value),
                Ok(End::AnswerLost { value, written, error }) => {
                    if is_committed(self.source, written, started.checked_add(self.time_limit))? {
                        return Ok(value);
                    }
                    (Failure::ConnectionLost, TransactionError::Database(error))
                }
                Err(failed) => failed,
            };
            let Some(pause) = retries.after(failure, Instant::now(), fastrand::f64()) else {
                return Err(error);
            };
            log::debug!("transaction will be retried ({} failed, {failure:?})", retries.failures());
            thread::sleep(pause);
        }
    }

    /// Retries while the server cannot be reached. A pool whose connections are all in use has
    /// waited for its own `connection_timeout`, and is not waited for again.
    fn connection(&self, retries: &mut Retries) -> Result<CheckedOut<'a>, Error> {
        loop {
            let error = match self.source.get(retries.left(Instant::now())) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if !error.is_transient() || error.login_failure().is_none() {
                return Err(error);
            }
            match retries.after_login(Instant::now(), fastrand::f64()) {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            }
        }
    }
}
