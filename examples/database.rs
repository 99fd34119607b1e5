//! The database that an example runs on.

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Builder, Error, RdsConnectionManager};

/// The database of DATABASE_URL. If that is not set: a local stand-in for RDS, which stops when
/// this is dropped.
pub(crate) struct Database {
    pub(crate) manager: RdsConnectionManager,
    _local: Option<LocalRds>,
}

impl Database {
    /// Opens it. `builder` has the settings that a connection string does not contain.
    pub(crate) fn open(builder: Builder) -> Result<Database, Error> {
        if std::env::var_os("DATABASE_URL").is_some() {
            return Ok(Database { manager: builder.build_from_env()?, _local: None });
        }
        let local = LocalRds::start()?;
        println!(
            "DATABASE_URL is not set: using a local RDS on port {}, which stops with this program",
            local.port()
        );
        let builder =
            builder.credentials_provider(local.credentials().clone()).time_source(local.clock());
        Ok(Database { manager: builder.build(local.database_url())?, _local: Some(local) })
    }
}
