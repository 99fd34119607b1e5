//! Where a thread gets its connection from.

use diesel::prelude::*;
use diesel_rds_iam::{Error, PerThread, Pool, RdsConnectionManager};

use crate::Failure;

/// Each thread is busy with a connection nearly all of the time, so a pool has nothing to share: it
/// is here to show that the same code runs on both.
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
        Ok(Connections::PerThread(PerThread::new(manager.clone()).test_on_check_out(true)))
    }

    /// Does one unit of work on a connection.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Failure> {
        match self {
            Connections::PerThread(connections) => Ok(work(&mut *connections.get()?)?),
            Connections::Pool(pool) => Ok(work(&mut *pool.get()?)?),
        }
    }
}
