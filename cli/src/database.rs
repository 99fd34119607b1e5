//! The database to log in to, and the AWS credentials to sign with.

use clap::Args;
use diesel_rds_iam::{Error, LibpqLogin, RdsConnectionManager};

/// The database as a positional argument or as options.
#[derive(Args)]
pub(crate) struct Database {
    /// A connection string, as in --database-url
    #[arg(value_name = "URL", conflicts_with = "database_url")]
    url: Option<String>,

    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Args)]
#[command(next_help_heading = "Database and credentials")]
pub(crate) struct Options {
    /// A libpq connection string without a password
    ///
    /// For example postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app. Defaults to
    /// DATABASE_URL from the environment, then from a file .env in this folder or above, then to
    /// libpq's PG* variables.
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,

    /// The AWS region of the database, if its host name does not contain it
    #[arg(long)]
    region: Option<String>,

    /// The host name of the endpoint, if another name is dialled (a CNAME, a tunnel)
    #[arg(long, value_name = "HOST")]
    iam_host: Option<String>,

    /// The port of the endpoint, if another port is dialled
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    iam_port: Option<u16>,

    /// The AWS profile to take credentials from
    #[arg(long)]
    profile: Option<String>,

    /// The ARN of a role to assume, for example for a database in another account
    #[arg(long, value_name = "ARN")]
    assume_role: Option<String>,
}

/// Refuses a name that vacuumdb, pgbench and others take as a connection string: it could send the
/// token to another server without TLS.
pub(crate) fn check_name(login: &LibpqLogin) -> Result<(), Error> {
    let variables = login.variables();
    let is_string =
        |(name, value): &(String, String)| name == "PGDATABASE" && value.contains(['=', ':']);
    if login.expires_at().is_some() && variables.iter().any(is_string) {
        return Err(Error::Config(
            "the database's name contains = or :, and some programs would take it as a connection \
             string; correct dbname= or PGDATABASE"
                .into(),
        ));
    }
    Ok(())
}

impl Database {
    pub(crate) fn manager(&self) -> Result<RdsConnectionManager, Error> {
        self.options.manager_for(self.url())
    }

    pub(crate) fn url(&self) -> Option<&str> {
        self.url.as_deref().or(self.options.database_url.as_deref())
    }
}

impl Options {
    pub(crate) fn manager_for(&self, url: Option<&str>) -> Result<RdsConnectionManager, Error> {
        match url {
            Some(url) => self.builder().build(url),
            None => self.builder().build_from_env(),
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

    /// Returns the arguments that have the same meaning, without the connection string: it may
    /// contain a password, which argument lists show to other users.
    #[cfg(unix)]
    pub(crate) fn arguments(&self) -> Vec<String> {
        let iam_port = self.iam_port.map(|port| port.to_string());
        let options = [
            ("--region", &self.region),
            ("--iam-host", &self.iam_host),
            ("--iam-port", &iam_port),
            ("--profile", &self.profile),
            ("--assume-role", &self.assume_role),
        ];
        let set = options.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        set.map(|(name, value)| format!("{name}={value}")).collect()
    }
}
