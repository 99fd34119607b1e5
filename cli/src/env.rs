//! `rds-iam env`: what `exec` would set, printed.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use diesel_rds_iam::LibpqLogin;

use crate::database::Database;
use crate::{Failure, Outcome};

/// Print the variables that let a program on libpq log in
///
/// They hold a token, which is valid for 15 minutes: for a shell's next commands, not for a file
/// that stays. DATABASE_URL becomes one without our own keywords; to renew the token, have the
/// original at hand, as by --database-url. The forms dotenv and json cannot remove what would
/// overrule: PGSERVICE, PGSERVICEFILE, PGHOSTADDR, PGPASSFILE.
#[derive(Args)]
#[command(after_long_help = "Examples:
  eval \"$(rds-iam env)\" && psql
  rds-iam env --format fish | source
  rds-iam env --format power-shell | Invoke-Expression
  rds-iam env --format json")]
pub(crate) struct Env {
    /// The form of the assignments
    #[arg(long, value_enum, default_value_t = Format::Sh)]
    format: Format,

    #[command(flatten)]
    database: Database,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For sh, bash and zsh
    Sh,
    Fish,
    #[value(alias = "powershell")]
    PowerShell,
    /// For a file .env
    Dotenv,
    Json,
}

impl Env {
    pub(crate) fn run(self) -> Outcome {
        let login = self.database.manager()?.libpq_login()?;
        if login.token().is_none() && login.expires_at().is_some() {
            return Err(Failure::new(
                1,
                "several hosts want a token each, and variables hold one; use rds-iam exec",
            ));
        }
        let mut variables = login.variables();
        variables.extend(
            login.token().map(|token| ("PGPASSWORD".to_owned(), token.as_str().to_owned())),
        );
        let is_set = |name: &&&str| variables.iter().all(|(set, _)| set != **name);
        let removed: Vec<&str> =
            LibpqLogin::overruling_variables().iter().filter(is_set).copied().collect();
        writeln!(io::stdout(), "{}", self.format.assignments(&variables, &removed))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Format {
    fn assignments(self, variables: &[(String, String)], removed: &[&str]) -> String {
        if let Format::Json = self {
            let all: serde_json::Map<String, serde_json::Value> = variables
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect();
            return serde_json::Value::from(all).to_string();
        }
        let removals = removed.iter().filter_map(|name| self.removal(name));
        let assignments = variables.iter().map(|(name, value)| self.assignment(name, value));
        removals.chain(assignments).collect::<Vec<_>>().join("\n")
    }

    fn assignment(self, name: &str, value: &str) -> String {
        match self {
            Format::Fish => {
                format!("set -gx {name} '{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
            }
            Format::PowerShell => format!("$env:{name} = '{}'", value.replace('\'', "''")),
            Format::Dotenv if value.contains('\'') => {
                let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('$', r"\$");
                format!("{name}=\"{value}\"")
            }
            Format::Dotenv => format!("{name}='{value}'"),
            _ => format!("export {name}='{}'", value.replace('\'', r"'\''")),
        }
    }

    fn removal(self, name: &str) -> Option<String> {
        match self {
            Format::Sh => Some(format!("unset {name}")),
            Format::Fish => Some(format!("set -e {name}")),
            Format::PowerShell => {
                Some(format!("Remove-Item Env:{name} -ErrorAction SilentlyContinue"))
            }
            Format::Dotenv | Format::Json => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_each_shell_reads_them() {
        let cases = [
            (Format::Sh, r"export N='a'\''b\$c'"),
            (Format::Fish, r"set -gx N 'a\'b\\$c'"),
            (Format::PowerShell, r"$env:N = 'a''b\$c'"),
            (Format::Dotenv, r#"N="a'b\\\$c""#),
            (Format::Json, r#"{"N":"a'b\\$c"}"#),
        ];
        for (format, expected) in cases {
            assert_eq!(format.assignments(&[("N".into(), r"a'b\$c".into())], &[]), expected);
        }
        assert_eq!(
            Format::Sh.assignments(&[("N".into(), "v".into())], &["PGSERVICE"]),
            "unset PGSERVICE\nexport N='v'"
        );
    }
}
