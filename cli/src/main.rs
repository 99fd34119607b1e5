//! `rds-iam`: IAM logins for the diesel CLI, psql and other programs on libpq.
#![allow(clippy::print_stdout, reason = "this is a program for the terminal")]

#[cfg(all(unix, feature = "local"))]
mod child;
#[cfg(all(unix, feature = "local"))]
mod cluster;
mod database;
mod doctor;
mod dot_env;
mod env;
mod exec;
mod format;
mod local;
mod manual;
mod migrations;
#[cfg(unix)]
mod passfile;
mod token;
mod usage;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use diesel_rds_iam::Error;

/// Logs in to PostgreSQL on Amazon RDS and Aurora by IAM authentication, for programs that cannot
/// do it themselves.
///
/// A token replaces the password. It is signed on this machine with your AWS credentials, and is
/// valid for logins during 15 minutes.
#[derive(Parser)]
#[command(
    name = "rds-iam",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "Environment:
  DATABASE_URL  The connection string, if no argument contains one.
  PG*           libpq's variables, for settings that the connection string does not contain.
  AWS_*         Credentials and region, as for the AWS CLI.
  RUST_LOG      The log on standard error: error, warn (default), info, debug or trace.
  NO_COLOR      Not empty: doctor uses no colours.

A file .env in this folder or above can set DATABASE_URL and PG* connection settings. Other
variables in it, passwords among them, are not read. The file and its folder must belong to you or
to root, and others must not be able to write them. It cannot set sslmode below verify-full, or
sslrootcert, unless DATABASE_URL contains rds_iam_auth=false."
)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Exec(exec::Exec),
    Env(env::Env),
    Token(token::Token),
    Doctor(doctor::Doctor),
    Local(local::Local),
    Completions(manual::Completions),
    Man(manual::Man),
    #[cfg(unix)]
    #[command(hide = true)]
    KeepPassfile(passfile::KeepPassfile),
}

impl Action {
    /// Whether the action needs a connection string and has none.
    fn reads_dot_env(&self) -> bool {
        match self {
            Action::Exec(exec) => !exec.has_url(),
            Action::Env(env) => env.database.url().is_none(),
            Action::Token(token) => token.host.is_none() && token.database.url().is_none(),
            Action::Doctor(doctor) => doctor.database.url().is_none(),
            _ => false,
        }
    }

    fn run(self) -> Outcome {
        match self {
            Action::Exec(exec) => exec.run(),
            Action::Env(env) => env.run(),
            Action::Token(token) => token.run(),
            Action::Doctor(doctor) => doctor.run(),
            Action::Local(local) => local.run(),
            Action::Completions(completions) => completions.run(),
            Action::Man(man) => man.run(),
            #[cfg(unix)]
            Action::KeepPassfile(keep) => keep.run(),
        }
    }
}

/// Why the program fails.
struct Failure {
    code: u8,
    /// `None` if it was printed already, or if nothing can be printed.
    text: Option<String>,
}

type Outcome = Result<ExitCode, Failure>;

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: Some(text.into()) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(1, explained(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            // The reader has closed the pipe.
            io::ErrorKind::BrokenPipe => Failure { code: 1, text: None },
            _ => Failure::new(1, format!("cannot write: {error}")),
        }
    }
}

fn main() -> ExitCode {
    let arguments = usage::parse();
    // Before there are threads, because it sets variables.
    let read = if arguments.action.reads_dot_env() { dot_env::load() } else { Ok(()) };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    read.and_then(|()| arguments.action.run()).unwrap_or_else(|failure| {
        if let Some(text) = failure.text {
            say(&text);
        }
        ExitCode::from(failure.code)
    })
}

/// Prints a line. A standard error that cannot be written changes nothing else.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "rds-iam: {text}");
}

/// Returns the text of an error, with the line break before what to do.
fn explained(error: &Error) -> String {
    if let Error::Hosts { failures, .. } = error {
        let each: Vec<String> = failures.iter().map(explained).collect();
        return format!("no host can be used\n{}", each.join("\n"));
    }
    let text = error.to_string();
    match text.rsplit_once("; ") {
        Some((failed, cure)) => format!("{failed}\nhelp: {cure}"),
        None => text,
    }
}
