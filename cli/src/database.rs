//! Which database, and whose credentials.

use clap::Args;
use diesel_rds_iam::{Error, RdsConnectionManager};

/// The database to log in to, and the AWS credentials to sign with.
#[derive(Args)]
#[command(next_help_heading = "Database and credentials")]
pub(crate) struct Database {
    /// A libpq connection string without a password, as
    /// postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app
    ///
    /// Without it DATABASE_URL is read, from the environment or a file .env here or above; without
    /// that, libpq's PG* variables.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,

    /// The AWS region of the database, where its host name does not tell
    #[arg(long)]
    region: Option<String>,

    /// The endpoint's own name, where another one is dialled: a CNAME, a tunnel
    #[arg(long, value_name = "HOST")]
    iam_host: Option<String>,

    /// The endpoint's own port, where another one is dialled
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    iam_port: Option<u16>,

    /// The AWS profile to take credentials from
    #[arg(long)]
    profile: Option<String>,

    /// The ARN of a role to assume, as for a database in another account
    #[arg(long, value_name = "ARN")]
    assume_role: Option<String>,
}

impl Database {
    pub(crate) fn manager(&self) -> Result<RdsConnectionManager, Error> {
        let builder = self.builder();
        match &self.database_url {
            Some(url) => builder.build(url),
            None => builder.build_from_env(),
        }
    }

    pub(crate) fn builder(&self) -> diesel_rds_iam::Builder {
        let mut builder = RdsConnectionManager::builder();
        if let Some(region) = &self.region {
            builder = builder.region_name(region);
        }
        if let Some(host) = &self.iam_host {
            builder = builder.iam_host(host);
        }
        if let Some(port) = self.iam_port {
            builder = builder.iam_port(port);
        }
        if let Some(profile) = &self.profile {
            builder = builder.profile(profile);
        }
        if let Some(role) = &self.assume_role {
            builder = builder.assume_role(role);
        }
        builder
    }
}
