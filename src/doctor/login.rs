//! [`Attempt`]: a login that is not libpq's. It tells the SQLSTATE, and shows whether libpq is to
//! blame.

use std::net::SocketAddr;

use postgres_native_tls::MakeTlsConnector;
use tokio_postgres::config::{Config, SslMode};

use super::symptom::Symptom;
use super::timeout::{LIMIT, within_async};
use super::tls::Rules;
use crate::error::chain;
use crate::token::AuthToken;

/// Whom to log in, and where.
pub(super) struct Attempt {
    pub(super) address: SocketAddr,
    /// What the certificate is to be for.
    pub(super) host: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) token: AuthToken,
}

impl Attempt {
    /// Logs in, and out again.
    pub(super) fn run(self, rules: &Rules) -> Result<(), Symptom> {
        let tls = MakeTlsConnector::new(rules.connector()?);
        within_async(LIMIT, move || self.log_in(tls)).unwrap_or(Err(Symptom::Silence))
    }

    async fn log_in(self, tls: MakeTlsConnector) -> Result<(), Symptom> {
        let (client, connection) =
            self.config().connect(tls).await.map_err(|error| symptom(&error))?;
        drop(client);
        // Says goodbye to the server.
        let _ = connection.await;
        Ok(())
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host(&self.host).hostaddr(self.address.ip()).port(self.address.port());
        config.user(&self.user).dbname(&self.database).password(self.token.as_str());
        config.ssl_mode(SslMode::Require).application_name("rds-iam doctor");
        config
    }
}

fn symptom(error: &tokio_postgres::Error) -> Symptom {
    match error.as_db_error() {
        Some(said) => {
            let text = format!("{}: {}", said.severity(), said.message());
            Symptom::Said { text, sqlstate: Some(said.code().code().to_owned()) }
        }
        None => Symptom::said(chain(error)),
    }
}
