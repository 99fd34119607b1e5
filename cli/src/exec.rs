//! `rds-iam exec`: becomes a command that finds its way into the database.

use std::ffi::OsString;
use std::io;
use std::process::Command;

use clap::Args;
use diesel_rds_iam::{LibpqLogin, RdsConnectionManager};

use crate::database::Database;
use crate::passfile::Passfile;
use crate::{Failure, Outcome, child};

/// Run a command that logs in with a token
///
/// The command gets a DATABASE_URL without a password, libpq's PG* variables, and the token in
/// PGPASSWORD: enough for the diesel CLI, psql, pg_dump, and whatever is built on libpq. Where it
/// can, rds-iam becomes the command; exit code and signals are its own. With rds_iam_auth=false it
/// gets the password of the connection string instead. Exits with 127 when there is no such
/// command, with 126 when it cannot be run, and with 125 when there is no token.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam exec -- diesel migration run
  rds-iam exec --database-url postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app -- psql
  rds-iam exec --refresh -- pg_dump --jobs 8 --format directory --file dump
  rds-iam exec --in-url -- a-tool-that-ignores-PGPASSWORD")]
pub(crate) struct Exec {
    /// Put the token into DATABASE_URL, for a command that ignores PGPASSWORD
    ///
    /// Many programs print their DATABASE_URL when they cannot connect, as the diesel CLI does, and
    /// the token with it.
    #[arg(long, conflicts_with = "refresh")]
    in_url: bool,

    /// Keep a token at hand for as long as the command runs
    ///
    /// A command that connects again after 15 minutes needs another token. rds-iam stays as its
    /// parent, and keeps a passfile current, which libpq reads at each login. It is in a folder of
    /// its own, in XDG_RUNTIME_DIR if that is set, and is removed when the command ends, for what
    /// it left in the background, too. (It stays if rds-iam itself is killed by SIGKILL; its token
    /// lives for 15 minutes.)
    #[arg(long)]
    refresh: bool,

    #[command(flatten)]
    database: Database,

    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// As env(1): what is wrong is ours, not the command's.
const OURS: u8 = 125;

impl Exec {
    pub(crate) fn run(self) -> Outcome {
        let ours = |error: diesel_rds_iam::Error| Failure::new(OURS, error.to_string());
        let manager = self.database.manager().map_err(ours)?;
        let login = manager.libpq_login().map_err(ours)?;
        let mut command = self.command(&login)?;
        let wants_passfile =
            login.expires_at().is_some() && (self.refresh || login.token().is_none());
        if wants_passfile {
            with_passfile(command, manager, &login)
        } else {
            become_it(&mut command)
        }
    }

    fn command(&self, login: &LibpqLogin) -> Result<Command, Failure> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        LibpqLogin::overruling_variables().iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(login.variables());
        if self.in_url {
            let url = login.database_url_with_token().ok_or_else(|| {
                Failure::new(
                    OURS,
                    "a URL holds one password: --in-url is for one host, and for IAM; leave it out",
                )
            })?;
            log::warn!(
                "DATABASE_URL holds the token: whatever the command prints of it lets others in for 15 minutes"
            );
            command.env("DATABASE_URL", url);
        } else if let Some(token) = login.token().filter(|_| !self.refresh) {
            command.env("PGPASSWORD", token.as_str());
        } else if login.expires_at().is_some() {
            // Empty, libpq goes by the passfile. Removed, the diesel CLI would take one from a file
            // .env.
            command.env("PGPASSWORD", "");
        }
        Ok(command)
    }
}

fn with_passfile(
    mut command: Command,
    manager: RdsConnectionManager,
    login: &LibpqLogin,
) -> Outcome {
    let ours = |error: io::Error| {
        Failure::new(
            OURS,
            format!("cannot write a passfile: {error}; set XDG_RUNTIME_DIR or TMPDIR"),
        )
    };
    let passfile = Passfile::create(login).map_err(ours)?;
    command.env("PGPASSFILE", passfile.path());
    let keeper = passfile.keep_current(manager);
    let outcome = child::run(&mut command);
    // Removes the file, before a signal that ended the command ends us, too.
    drop(keeper);
    outcome.map_err(|error| not_run(&command, &error)).map(child::Ended::exit_code)
}

#[cfg(unix)]
fn become_it(command: &mut Command) -> Outcome {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(not_run(command, &error))
}

#[cfg(not(unix))]
fn become_it(command: &mut Command) -> Outcome {
    child::run(command).map_err(|error| not_run(command, &error)).map(child::Ended::exit_code)
}

pub(crate) fn not_run(command: &Command, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    let program = command.get_program().to_string_lossy();
    // A command that was forgotten, and a password in what came after it.
    let shown = if program.contains("://") { "a URL" } else { &program };
    Failure::new(code, format!("cannot run {shown}: {error}"))
}
