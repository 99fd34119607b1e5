//! `rds-iam env`: prints the variables that `exec` sets.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use diesel_rds_iam::LibpqLogin;

use crate::database::{Database, check_name};
use crate::format::{Format, Inexpressible};
use crate::{Failure, Outcome};

/// Print the variables with which a program on libpq can log in
///
/// The variables contain a token, which is valid for 15 minutes. Use them for the next commands of
/// a shell, not in a file that stays. To renew the token, run the command again.
///
/// Only sh, fish and powershell also remove the variables that would override these: PGSERVICE,
/// PGSERVICEFILE, PGHOSTADDR, PGPASSFILE. If a shell reads the file, use sh or dotenv. If docker
/// --env-file, kubectl create secret --from-env-file or a dotenv report of GitLab reads it, use
/// plain, because these readers keep quotes as part of the value.
#[derive(Args)]
#[command(after_long_help = "Examples:
  eval \"$(rds-iam env)\" && psql
  rds-iam env --format fish | source
  rds-iam env --format powershell | Out-String | Invoke-Expression
  rds-iam env --format plain > token.env && docker run --env-file token.env IMAGE
  rds-iam env --format github
  rds-iam env --format json")]
pub(crate) struct Env {
    /// Which program reads the assignments
    #[arg(long, value_enum, default_value_t = Format::Sh)]
    format: Format,

    #[command(flatten)]
    pub(crate) database: Database,
}

impl Env {
    pub(crate) fn run(self) -> Outcome {
        let login = self.database.manager()?.libpq_login()?;
        check_name(&login)?;
        if login.token().is_none() && login.expires_at().is_some() {
            return Err(Failure::new(
                1,
                "each of several hosts needs its own token, but PGPASSWORD holds one\n\
                 help: use rds-iam exec, or name one host",
            ));
        }
        let mut variables = login.variables();
        let token = login.token().map(|token| token.as_str().to_owned());
        variables.extend(token.iter().map(|token| ("PGPASSWORD".to_owned(), token.clone())));
        let is_set = |name: &&&str| variables.iter().all(|(set, _)| set != **name);
        let removed: Vec<&str> =
            LibpqLogin::overruling_variables().iter().filter(is_set).copied().collect();
        let text = self.format.assignments(&variables, &removed).map_err(not_expressible)?;
        if self.format == Format::Github {
            let token = token.or(find(&variables, "PGPASSWORD"));
            append_for_github(&text, token.as_deref())?;
        } else {
            writeln!(io::stdout(), "{text}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn find(variables: &[(String, String)], name: &str) -> Option<String> {
    variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

fn not_expressible(Inexpressible(text): Inexpressible) -> Failure {
    Failure::new(1, format!("{text}\nhelp: use --format json, sh or fish"))
}

/// Masks the secret before a later step can print it.
fn append_for_github(text: &str, secret: Option<&str>) -> Result<(), Failure> {
    let path = std::env::var_os("GITHUB_ENV").ok_or_else(|| {
        Failure::new(1, "GITHUB_ENV is not set\nhelp: use --format github in GitHub Actions only")
    })?;
    if let Some(secret) = secret {
        // The runner decodes %25, %0D and %0A.
        writeln!(io::stdout(), "::add-mask::{}", secret.replace('%', "%25"))?;
    }
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    writeln!(file, "{text}")?;
    Ok(())
}
