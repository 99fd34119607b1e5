//! [`Connections`]: gives a thread its connection.

use std::time::Duration;

use diesel::prelude::*;
use diesel_rds_iam::{Error, PerThread, Pool, RdsConnectionManager};

use crate::transaction::cause;

/// The worker has a back-off for longer outages, which SIGTERM ends.
const TIME_LIMIT: Duration = Duration::from_secs(3);

/// Each thread uses its connection nearly all of the time, so a pool has no advantage here. It
/// shows that the same code runs on both.
pub(crate) enum Connections {
    PerThread(PerThread),
    Pool(Pool),
}

impl Connections {
    pub(crate) fn new(
        manager: &RdsConnectionManager,
        threads: u32,
        pool: bool,
    ) -> Result<Connections, Error> {
        if pool {
            return manager
                .build_pool(manager.pool_builder().max_size(threads))
                .map(Connections::Pool);
        }
        Ok(Connections::PerThread(PerThread::new(manager.clone())))
    }

    /// Runs one unit of work on a connection.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        match self {
            Connections::PerThread(connections) => Ok(work(&mut *connections.get()?)?),
            Connections::Pool(pool) => Ok(work(&mut *pool.get()?)?),
        }
    }

    /// Closes the connections of a pool, after the threads have ended. A thread itself closes the
    /// connection that it has by [`PerThread`].
    pub(crate) fn close(&self) {
        if let Connections::Pool(pool) = self {
            pool.close(Duration::ZERO);
        }
    }

    /// Runs a transaction. `work` may run more than once.
    pub(crate) fn transaction<T>(
        &self,
        work: impl FnMut(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        let builder = match self {
            Connections::PerThread(connections) => connections.build_transaction(),
            Connections::Pool(pool) => pool.build_transaction(),
        };
        builder.time_limit(TIME_LIMIT).run(work).map_err(cause)
    }
}
