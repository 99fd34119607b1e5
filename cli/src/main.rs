//! `rds-iam`: IAM logins for the diesel CLI, and anything else on libpq.
#![allow(clippy::print_stdout, reason = "this is a program for the terminal")]

mod child;
mod database;
mod doctor;
mod env;
mod exec;
mod local;
mod manual;
mod passfile;
mod token;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Logs in to PostgreSQL on Amazon RDS and Aurora by IAM authentication, for programs that cannot
/// do it themselves.
///
/// A token takes the place of the password. It is signed on this machine with your AWS credentials,
/// counts only at login, and dies after 15 minutes.
#[derive(Parser)]
#[command(name = "rds-iam", version, arg_required_else_help = true, max_term_width = 100)]
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
}

/// What ends the program: an exit code, and what to say before.
struct Failure {
    code: u8,
    text: Option<String>,
}

type Outcome = Result<ExitCode, Failure>;

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: Some(text.into()) }
    }
}

impl From<diesel_rds_iam::Error> for Failure {
    fn from(error: diesel_rds_iam::Error) -> Failure {
        Failure::new(1, error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            // Who read us has seen enough.
            io::ErrorKind::BrokenPipe => Failure { code: 1, text: None },
            _ => Failure::new(1, format!("cannot write: {error}")),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !matches!(arguments.action, Action::Local(_)) {
        read_dot_env();
    }
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    let outcome = match arguments.action {
        Action::Exec(exec) => exec.run(),
        Action::Env(env) => env.run(),
        Action::Token(token) => token.run(),
        Action::Doctor(doctor) => doctor.run(),
        Action::Local(local) => local.run(),
        Action::Completions(completions) => completions.run(),
        Action::Man(man) => man.run(),
    };
    outcome.unwrap_or_else(|failure| {
        if let Some(text) = failure.text {
            say(&text);
        }
        ExitCode::from(failure.code)
    })
}

/// Where standard error cannot be written there is nobody left to tell.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "rds-iam: {text}");
}

/// As the diesel CLI: what the environment has goes first. Before there are threads.
fn read_dot_env() {
    match dotenvy::dotenv() {
        // Its text holds the line, which may be a secret.
        Err(dotenvy::Error::LineParse(..)) => {
            say("the file .env is not read: a line is not NAME=value, with quotes around spaces")
        }
        Err(error) if !error.not_found() => say(&format!("the file .env is not read: {error}")),
        _ => {}
    }
}
