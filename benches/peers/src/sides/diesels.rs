//! diesel's manager in r2d2: with one token from the start, and with a new pool for each token.

use std::any::Any;
use std::sync::{Arc, RwLock};
use std::thread;

use diesel::dsl::sql;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::Double;
use diesel::{Connection, PgConnection, RunQueryDsl};
use r2d2::{NopErrorHandler, Pool};

use super::{Settings, Side, microseconds, text};

type DieselPool = Pool<ConnectionManager<PgConnection>>;

pub(super) struct Pooled {
    settings: Settings,
    pool: DieselPool,
}

impl Pooled {
    pub(super) fn new(settings: Settings, test_on_check_out: bool) -> Result<Self, String> {
        let pool = pool(&settings, test_on_check_out)?;
        Ok(Pooled { settings, pool })
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
        login(&self.settings)
    }
}

/// The pool owns its manager, so a new token needs a new pool. The old pool ends with its last
/// user.
pub(super) struct Renewed {
    settings: Settings,
    pool: Arc<RwLock<DieselPool>>,
}

impl Renewed {
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let current = Arc::new(RwLock::new(pool(&settings, true)?));
        let (renewed, settings_of_thread) = (current.clone(), settings.clone());
        thread::spawn(move || {
            loop {
                thread::sleep(settings_of_thread.renewal);
                if let Ok(pool) = pool(&settings_of_thread, true) {
                    *renewed.write().unwrap() = pool;
                }
            }
        });
        Ok(Renewed { settings, pool: current })
    }

    fn pool(&self) -> DieselPool {
        self.pool.read().unwrap().clone()
    }
}

impl Side for Renewed {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        query(&mut *self.pool().get().map_err(text)?, sql)
    }

    fn checkout(&self) -> f64 {
        microseconds(|| drop(self.pool().get().unwrap()))
    }

    fn login(&self) -> Box<dyn Any> {
        login(&self.settings)
    }
}

fn pool(settings: &Settings, test_on_check_out: bool) -> Result<DieselPool, String> {
    let builder =
        Pool::builder().max_size(settings.connections).max_lifetime(Some(settings.max_lifetime));
    let builder =
        builder.test_on_check_out(test_on_check_out).error_handler(Box::new(NopErrorHandler));
    builder.build(ConnectionManager::new(conninfo(settings))).map_err(text)
}

fn login(settings: &Settings) -> Box<dyn Any> {
    Box::new(PgConnection::establish(&conninfo(settings)).unwrap())
}

/// Returns the password only; all other settings are in the environment.
fn conninfo(settings: &Settings) -> String {
    format!("password='{}'", settings.token())
}

pub(super) fn query(connection: &mut PgConnection, query: &'static str) -> Result<f64, String> {
    sql::<Double>(query).get_result(connection).map_err(text)
}
