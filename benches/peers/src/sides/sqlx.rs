//! sqlx's pool, and a task that gives it a new token at intervals.

use std::any::Any;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tokio::runtime::Runtime;

use super::{Settings, Side, microseconds_to, text};

pub(super) struct Pooled {
    settings: Settings,
    pool: PgPool,
    runtime: Runtime,
}

impl Pooled {
    pub(super) fn new(settings: Settings) -> Self {
        let runtime = Runtime::new().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections)
            .max_lifetime(settings.max_lifetime);
        let inside = runtime.enter();
        let pool = pool.connect_lazy_with(options(&settings));
        drop(inside);
        runtime.spawn(renew(pool.clone(), settings.clone()));
        Pooled { settings, pool, runtime }
    }
}

impl Side for Pooled {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        self.runtime.block_on(async {
            let mut connection = self.pool.acquire().await.map_err(text)?;
            sqlx::query_scalar(sql).fetch_one(&mut *connection).await.map_err(text)
        })
    }

    fn checkout(&self) -> f64 {
        self.runtime.block_on(async {
            // A task of the pool checks the connection in, after a ping.
            while self.pool.num_idle() < self.pool.size() as usize {
                tokio::task::yield_now().await;
            }
            microseconds_to(async { drop(self.pool.acquire().await.unwrap()) }).await
        })
    }

    fn login(&self) -> Box<dyn Any> {
        Box::new(self.runtime.block_on(options(&self.settings).connect()).unwrap())
    }
}

async fn renew(pool: PgPool, settings: Settings) {
    loop {
        tokio::time::sleep(settings.renewal).await;
        pool.set_connect_options(options(&settings));
    }
}

/// Sets the password only; all other settings are in the environment.
fn options(settings: &Settings) -> PgConnectOptions {
    PgConnectOptions::new().password(&settings.token())
}
