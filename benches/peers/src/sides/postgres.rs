//! postgres in r2d2, with one token from the start.

use std::any::Any;
use std::env::var;

use native_tls::{Certificate, TlsConnector};
use postgres::Config;
use postgres_native_tls::MakeTlsConnector;
use r2d2::{NopErrorHandler, Pool};
use r2d2_postgres::PostgresConnectionManager;

use super::{Settings, Side, microseconds, text};

pub(super) struct Pooled {
    settings: Settings,
    tls: MakeTlsConnector,
    pool: Pool<PostgresConnectionManager<MakeTlsConnector>>,
}

impl Pooled {
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let tls = tls();
        let manager = PostgresConnectionManager::new(config(&settings).into(), tls.clone());
        let builder = Pool::builder()
            .max_size(settings.connections)
            .max_lifetime(Some(settings.max_lifetime));
        let pool = builder.error_handler(Box::new(NopErrorHandler)).build(manager).map_err(text)?;
        Ok(Pooled { settings, tls, pool })
    }
}

impl Side for Pooled {
    fn query(&self, sql: &'static str) -> Result<f64, String> {
        let mut client = self.pool.get().map_err(text)?;
        Ok(client.query_one(sql, &[]).map_err(text)?.get(0))
    }

    fn checkout(&self) -> f64 {
        microseconds(|| drop(self.pool.get().unwrap()))
    }

    fn login(&self) -> Box<dyn Any> {
        Box::new(Config::from(config(&self.settings)).connect(self.tls.clone()).unwrap())
    }
}

/// Reads libpq's variables, because tokio-postgres does not.
pub(super) fn config(settings: &Settings) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host(var("PGHOST").unwrap()).port(var("PGPORT").unwrap().parse().unwrap());
    config
        .user(var("PGUSER").unwrap())
        .dbname(var("PGDATABASE").unwrap())
        .password(settings.token());
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    config
}

/// Returns the TLS settings. To be called once, because it reads all roots of this machine even if
/// they are disabled. The host name is checked by default.
pub(super) fn tls() -> MakeTlsConnector {
    let root =
        Certificate::from_pem(&std::fs::read(var("PGSSLROOTCERT").unwrap()).unwrap()).unwrap();
    let connector =
        TlsConnector::builder().disable_built_in_roots(true).add_root_certificate(root).build();
    MakeTlsConnector::new(connector.unwrap())
}
