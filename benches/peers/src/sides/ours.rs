//! This crate: `Pool` and `PerThread`.

use std::any::Any;

use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{PerThread, Pool, RdsConnectionManager};

use super::diesels::query;
use super::{Settings, Side, microseconds, text};

pub(super) struct Pooled {
    manager: RdsConnectionManager,
    pool: Pool,
}

impl Pooled {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let manager = manager(settings)?;
        let pool = manager
            .build_pool(manager.pool_builder().max_size(settings.connections))
            .map_err(text)?;
        Ok(Pooled { manager, pool })
    }
}

impl Side for Pooled {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        query(&mut *self.pool.get().map_err(text)?, sql)
    }

    fn checkout(&self) -> f64 {
        microseconds(|| drop(self.pool.get().unwrap()))
    }

    fn login(&self) -> Box<dyn Any> {
        Box::new(self.manager.connect().unwrap())
    }
}

pub(super) struct Threads {
    manager: RdsConnectionManager,
    connections: PerThread,
}

impl Threads {
    pub(super) fn new(settings: &Settings, test_on_check_out: bool) -> Result<Self, String> {
        let manager = manager(settings)?;
        let connections = PerThread::new(manager.clone()).test_on_check_out(test_on_check_out);
        Ok(Threads { manager, connections })
    }
}

impl Side for Threads {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        query(&mut *self.connections.get().map_err(text)?, sql)
    }

    fn checkout(&self) -> f64 {
        microseconds(|| drop(self.connections.get().unwrap()))
    }

    fn login(&self) -> Box<dyn Any> {
        Box::new(self.manager.connect().unwrap())
    }
}

fn manager(settings: &Settings) -> Result<RdsConnectionManager, String> {
    let builder = RdsConnectionManager::builder().max_lifetime(Some(settings.max_lifetime));
    // All other settings are in the environment.
    builder.time_source(settings.clock.clone()).build_from_env().map_err(text)
}
