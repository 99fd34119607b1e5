//! diesel-async in bb8. Its `custom_setup` signs a token for each connection.

use std::any::Any;

use diesel::ConnectionError;
use diesel::dsl::sql;
use diesel::sql_types::Double;
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use postgres_native_tls::MakeTlsConnector;
use tokio::runtime::Runtime;

use super::postgres::{config, tls};
use super::{Settings, Side, microseconds_to, text};

pub(super) struct Pooled {
    settings: Settings,
    tls: MakeTlsConnector,
    pool: Pool<AsyncPgConnection>,
    runtime: Runtime,
}

impl Pooled {
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let runtime = Runtime::new().unwrap();
        let mut setup = ManagerConfig::default();
        let tls = tls();
        let (settings_of_setup, tls_of_setup) = (settings.clone(), tls.clone());
        setup.custom_setup =
            Box::new(move |_| Box::pin(connect(settings_of_setup.clone(), tls_of_setup.clone())));
        let manager = AsyncDieselConnectionManager::new_with_config("", setup);
        let pool =
            Pool::builder().max_size(settings.connections).max_lifetime(settings.max_lifetime);
        let pool = runtime.block_on(pool.build(manager)).map_err(text)?;
        Ok(Pooled { settings, tls, pool, runtime })
    }
}

impl Side for Pooled {
    fn query(&self, query: &'static str) -> Result<f64, String> {
        self.runtime.block_on(async {
            let mut connection = self.pool.get().await.map_err(text)?;
            sql::<Double>(query).get_result(&mut *connection).await.map_err(text)
        })
    }

    fn checkout(&self) -> f64 {
        self.runtime.block_on(microseconds_to(async { drop(self.pool.get().await.unwrap()) }))
    }

    fn login(&self) -> Box<dyn Any> {
        Box::new(self.runtime.block_on(connect(self.settings.clone(), self.tls.clone())).unwrap())
    }
}

async fn connect(
    settings: Settings,
    tls: MakeTlsConnector,
) -> Result<AsyncPgConnection, ConnectionError> {
    let (client, connection) = config(&settings)
        .connect(tls)
        .await
        .map_err(|error| ConnectionError::BadConnection(text(error)))?;
    AsyncPgConnection::try_from_client_and_connection(client, connection).await
}
