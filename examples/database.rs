//! A database for an example to run on.

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Error, RdsConnectionManager};

/// The database of DATABASE_URL or, where that is not set, a local stand-in for RDS that lives as long as this.
pub(crate) struct Database {
    pub(crate) manager: RdsConnectionManager,
    _local: Option<LocalRds>,
}

impl Database {
    pub(crate) fn open() -> Result<Database, Error> {
        if std::env::var_os("DATABASE_URL").is_some() {
            return Ok(Database { manager: RdsConnectionManager::from_env()?, _local: None });
        }
        let local = LocalRds::start()?;
        println!("DATABASE_URL is not set: a local RDS listens on port {}, and goes when this ends.", local.port());
        Ok(Database { manager: local.manager_builder().build(local.database_url())?, _local: Some(local) })
    }
}
