//! `rds-iam token`: prints one token.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use crate::database::Database;
use crate::{Failure, Outcome};

/// Print one token
///
/// It is valid for 15 minutes, and only for the endpoint that it was signed for. Replaces `aws rds
/// generate-db-auth-token`.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam token
  rds-iam token postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app
  rds-iam token --host db.abc123.eu-west-1.rds.amazonaws.com --user app
  PGPASSWORD=$(rds-iam token --host db.example.com --region eu-west-1 --user app) psql ...")]
pub(crate) struct Token {
    /// The host name of the endpoint, instead of a connection string
    #[arg(
        long,
        alias = "hostname",
        requires = "user",
        conflicts_with_all = ["url", "database_url"]
    )]
    pub(crate) host: Option<String>,

    /// The port of the endpoint
    #[arg(
        long,
        requires = "host",
        default_value_t = 5432,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    port: u16,

    /// The database user
    #[arg(
        long,
        alias = "username",
        requires = "host",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    user: Option<String>,

    #[command(flatten)]
    pub(crate) database: Database,
}

impl Token {
    pub(crate) fn run(self) -> Outcome {
        let manager = match (&self.host, &self.user) {
            (Some(host), Some(user)) => {
                self.database.options.manager_for(Some(&conninfo(host, self.port, user)))?
            }
            _ => self.database.manager()?,
        };
        if manager.endpoints().count() > 1 {
            return Err(Failure::new(
                1,
                "each of several hosts needs its own token\n\
                 help: name one host with --host and --user",
            ));
        }
        let token = manager.token()?;
        writeln!(io::stdout(), "{}", token.as_str())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns a connection string in libpq's key/value form.
fn conninfo(host: &str, port: u16, user: &str) -> String {
    let quote = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
    format!("host='{}' port={port} user='{}'", quote(host), quote(user))
}
