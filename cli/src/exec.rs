//! `rds-iam exec`: replaces itself with a command that can log in.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

use clap::Args;
use diesel_rds_iam::{Endpoint, LibpqLogin};

use crate::database::{Options, check_name};
use crate::{Failure, Outcome, explained, migrations};

/// Run a command that logs in with a token
///
/// The command gets DATABASE_URL without a password, libpq's PG* variables, and the token in
/// PGPASSWORD. The diesel CLI, psql, pg_dump and other programs on libpq use them. rds-iam becomes
/// the command, so its exit code and its signals are those of the command.
///
/// A program that uses the crate diesel-rds-iam, and another rds-iam, sign for the same endpoint.
/// They need --profile and --assume-role again, because no variable contains them.
///
/// With rds_iam_auth=false the command gets the password of the connection string. The exit code is
/// 127 if the command does not exist, 126 if it cannot be run, and 125 if there is no token.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam exec -- diesel migration run
  rds-iam exec postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app -- psql
  rds-iam exec --refresh -- pg_dump --jobs 8 --format directory --file dump
  gosu app rds-iam exec --refresh -- server
  rds-iam exec --in-url -- a-tool-that-ignores-PGPASSWORD")]
pub(crate) struct Exec {
    /// The command and its arguments. A connection string may precede them
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    /// Put the token into DATABASE_URL, for a command that ignores PGPASSWORD
    ///
    /// The URL contains your own settings and sslmode, but no other default of rds-iam, because
    /// programs without libpq know few of its keywords. asyncpg and pgx accept sslmode=verify-full
    /// and sslrootcert. tokio-postgres accepts only sslmode=require, and no sslrootcert. Many
    /// programs print DATABASE_URL, and the token with it, if they cannot connect.
    #[arg(long, conflicts_with = "refresh")]
    in_url: bool,

    /// Keep a valid token available for as long as the command runs
    ///
    /// A command that connects again after 15 minutes needs another token. A second process of
    /// rds-iam writes new tokens to a passfile, which libpq reads at each login, and removes it
    /// when the command ends.
    ///
    /// The passfile belongs to the user who runs rds-iam, and libpq reads it only as that user. If
    /// the command changes the user (gosu, su-exec, setpriv, runuser, sudo), run rds-iam after
    /// that: gosu app rds-iam exec --refresh -- server. The file is in XDG_RUNTIME_DIR if that is
    /// set.
    #[arg(long)]
    refresh: bool,

    /// Do not check the migrations of the diesel CLI before they run on Aurora DSQL
    ///
    /// At an endpoint of Aurora DSQL, `diesel migration run`, `redo` and `revert` run only if the
    /// linter of AWS (dsql-lint) finds that all files can work there.
    #[arg(long)]
    unchecked: bool,

    #[command(flatten)]
    pub(crate) options: Options,
}

/// The exit code of env(1) for its own failures.
const OURS: u8 = 125;

impl Exec {
    /// Returns the connection string, and the index at which the command starts.
    fn split(&self) -> Result<(Option<&str>, usize), Failure> {
        let first = self.command[0].to_str().filter(|first| is_url(first));
        let (None, Some(url)) = (&self.options.database_url, first) else {
            return Ok((self.options.database_url.as_deref(), 0));
        };
        let start = if self.command.get(1).is_some_and(|it| it == "--") { 2 } else { 1 };
        match self.command.get(start) {
            Some(program) if start == 1 && program.as_encoded_bytes().starts_with(b"-") => {
                Err(Failure::new(
                    2,
                    "an option stands after the connection string\nhelp: rds-iam exec OPTIONS \
                     URL -- COMMAND",
                ))
            }
            Some(_) => Ok((Some(url), start)),
            None => Err(Failure::new(2, "no command\nhelp: rds-iam exec URL -- COMMAND")),
        }
    }

    pub(crate) fn has_url(&self) -> bool {
        self.split().is_ok_and(|(url, _)| url.is_some())
    }

    pub(crate) fn run(self) -> Outcome {
        let ours = |error: diesel_rds_iam::Error| Failure::new(OURS, explained(&error));
        let (url, start) = self.split()?;
        let manager = self.options.manager_for(url).map_err(ours)?;
        if !self.unchecked
            && manager.endpoints().any(Endpoint::is_dsql)
            && let Some(text) = migrations::complaints(&self.command[start..])
        {
            return Err(Failure::new(OURS, text));
        }
        let login = manager.libpq_login().map_err(ours)?;
        check_name(&login).map_err(ours)?;
        let mut command = self.command(&self.command[start..], &login)?;
        if login.expires_at().is_some() && (self.refresh || login.token().is_none()) {
            self.with_passfile(&mut command, url)?;
        }
        drop(manager);
        become_it(&mut command)
    }

    fn command(&self, arguments: &[OsString], login: &LibpqLogin) -> Result<Command, Failure> {
        let mut command = Command::new(&arguments[0]);
        command.args(&arguments[1..]);
        LibpqLogin::overruling_variables().iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(login.variables());
        if self.in_url {
            let url = login.database_url_with_token().ok_or_else(|| {
                Failure::new(
                    OURS,
                    "--in-url needs IAM and one host, because a URL holds one password\n\
                     help: remove --in-url",
                )
            })?;
            log::warn!(
                "DATABASE_URL contains the token: if the command prints it, others can log in for \
                 15 minutes"
            );
            command.env("DATABASE_URL", url);
        } else if let Some(token) = login.token().filter(|_| !self.refresh) {
            command.env("PGPASSWORD", token.as_str());
        } else if login.expires_at().is_some() {
            // libpq ignores an empty value. If it were unset, the diesel CLI would take a password
            // from a file .env.
            command.env("PGPASSWORD", "");
        }
        Ok(command)
    }

    #[cfg(unix)]
    fn with_passfile(&self, command: &mut Command, url: Option<&str>) -> Result<(), Failure> {
        warn_of_another_user(command);
        let path = crate::passfile::start_keeper(&self.options, url).map_err(|error| Failure {
            code: OURS,
            text: error.map(|error| format!("no passfile: {error}")),
        })?;
        command.env("PGPASSFILE", path);
        Ok(())
    }

    #[cfg(not(unix))]
    fn with_passfile(&self, _: &mut Command, _: Option<&str>) -> Result<(), Failure> {
        Err(Failure::new(OURS, "--refresh and several hosts need a Unix"))
    }
}

fn is_url(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Programs that run another one as a user who cannot read the passfile.
const CHANGE_USER: [&str; 8] =
    ["gosu", "su-exec", "setpriv", "runuser", "su", "sudo", "doas", "setuidgid"];

fn warn_of_another_user(command: &Command) {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    if let Some(program) = CHANGE_USER.iter().find(|known| program == **known) {
        log::warn!(
            "the passfile belongs to the user who runs rds-iam, and {program} changes the user; \
             run rds-iam after it: {program} ... rds-iam exec ... -- COMMAND"
        );
    }
}

#[cfg(unix)]
fn become_it(command: &mut Command) -> Outcome {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(not_run(command, &error))
}

#[cfg(not(unix))]
fn become_it(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| not_run(command, &error))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(std::process::ExitCode::FAILURE, std::process::ExitCode::from))
}

pub(crate) fn not_run(command: &Command, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    let program = command.get_program().to_string_lossy();
    // A connection string in the place of the command can contain a password.
    let shown = if program.contains("://") {
        "a URL"
    } else if program.contains('=') {
        "a text with ="
    } else {
        &program
    };
    Failure::new(code, format!("cannot run {shown}: {error}"))
}
