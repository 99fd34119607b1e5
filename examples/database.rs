//! A database for an example to run on.

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Builder, Error, RdsConnectionManager};

/// The database of DATABASE_URL or, where that is not set, a local stand-in for RDS that lives as
/// long as this.
pub(crate) struct Database {
    pub(crate) manager: RdsConnectionManager,
    _local: Option<LocalRds>,
}

impl Database {
    /// `builder` is for what a connection string cannot say.
    pub(crate) fn open(builder: Builder) -> Result<Database, Error> {
        if std::env::var_os("DATABASE_URL").is_some() {
            return Ok(Database { manager: builder.build_from_env()?, _local: None });
        }
        let local = LocalRds::start()?;
        println!(
            "DATABASE_URL is not set: a local RDS listens on port {}, and goes when this ends.",
            local.port()
        );
        let builder =
            builder.credentials_provider(local.credentials().clone()).time_source(local.clock());
        Ok(Database { manager: builder.build(local.database_url())?, _local: Some(local) })
    }
}
