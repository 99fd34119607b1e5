//! `rds-iam token`: one token, and nothing else.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use crate::database::Database;
use crate::{Failure, Outcome};

/// Print one token
///
/// It is valid for 15 minutes, for the endpoint that it was signed for. Takes the place of `aws rds
/// generate-db-auth-token`.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam token
  rds-iam token --host db.abc123.eu-west-1.rds.amazonaws.com --user app
  PGPASSWORD=$(rds-iam token --host db.example.com --region eu-west-1 --user app) psql ...")]
pub(crate) struct Token {
    /// The endpoint's host name, in the place of a connection string
    #[arg(long, alias = "hostname", requires = "user", conflicts_with = "database_url")]
    host: Option<String>,

    /// The endpoint's port
    #[arg(long, requires = "host", default_value_t = 5432, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// The database user
    #[arg(long, alias = "username", requires = "host", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    user: Option<String>,

    #[command(flatten)]
    database: Database,
}

impl Token {
    pub(crate) fn run(self) -> Outcome {
        let manager = match (&self.host, &self.user) {
            (Some(host), Some(user)) => {
                self.database.builder().build(conninfo(host, self.port, user))?
            }
            _ => self.database.manager()?,
        };
        if manager.endpoints().count() > 1 {
            return Err(Failure::new(
                1,
                "several hosts want a token each; name one by --host and --user",
            ));
        }
        let token = manager.token()?;
        writeln!(io::stdout(), "{}", token.as_str())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// libpq's key/value form.
fn conninfo(host: &str, port: u16, user: &str) -> String {
    let quote = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
    format!("host='{}' port={port} user='{}'", quote(host), quote(user))
}
