//! deadpool-postgres. Its `Connect` signs a token for each connection.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;

use deadpool_postgres::{
    ConfigConnectImpl, Connect, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod,
};
use postgres_native_tls::MakeTlsConnector;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

use super::postgres::{config, tls};
use super::{Settings, Side, microseconds_to, text};

pub(super) struct Pooled {
    settings: Settings,
    tls: MakeTlsConnector,
    pool: Pool,
    runtime: Runtime,
}

impl Pooled {
    pub(super) fn new(settings: Settings, recycling_method: RecyclingMethod) -> Self {
        let tls = tls();
        let connect =
            Iam { settings: settings.clone(), inner: ConfigConnectImpl { tls: tls.clone() } };
        let manager =
            Manager::from_connect(config(&settings), connect, ManagerConfig { recycling_method });
        let max_lifetime = settings.max_lifetime;
        // deadpool has no setting for the lifetime.
        let too_old = Hook::sync_fn(move |_, metrics| match metrics.age() > max_lifetime {
            true => Err(HookError::message("too old")),
            false => Ok(()),
        });
        let pool =
            Pool::builder(manager).max_size(settings.connections as usize).pre_recycle(too_old);
        Pooled { settings, tls, pool: pool.build().unwrap(), runtime: Runtime::new().unwrap() }
    }
}

impl Side for Pooled {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        self.runtime.block_on(async {
            let client = self.pool.get().await.map_err(text)?;
            Ok(client.query_one(sql, &[]).await.map_err(text)?.get(0))
        })
    }

    fn checkout(&self) -> f64 {
        self.runtime.block_on(microseconds_to(async { drop(self.pool.get().await.unwrap()) }))
    }

    fn login(&self) -> Box<dyn Any> {
        let (client, connection) =
            self.runtime.block_on(config(&self.settings).connect(self.tls.clone())).unwrap();
        self.runtime.spawn(connection);
        Box::new(client)
    }
}

struct Iam {
    settings: Settings,
    inner: ConfigConnectImpl<MakeTlsConnector>,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl Connect for Iam {
    fn connect(&self, config: &Config) -> Connecting<'_> {
        self.inner.connect(config.clone().password(self.settings.token()))
    }
}
