//! Runs the pending migrations. A deployment runs it before the programs that need the new schema.
//!
//! It waits for the database, for at most SECONDS (60 by default), and prints why it waits. If
//! waiting does not help, it ends at once. Several can run at once: one migrates, and the others
//! wait until it has finished. The exit code is 0 if the schema is up to date. Otherwise it is 1,
//! and the cause is on standard error.
//!
//! A signal can end it in the middle of a migration. A migration is a transaction, so the server
//! rolls it back: at the end of the statement, or earlier with client_connection_check_interval.
//!
//!     cargo run --example migrate --features local -- --wait 60

use std::ffi::OsString;
use std::io::Write;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{LoginFailure, RdsConnectionManager};

mod database;
mod migrations;

const USAGE: &str = "usage: migrate [--wait SECONDS]";
const WAIT: Duration = Duration::from_secs(60);
/// How long to wait before the first line about waiting, and between looks at the cause.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match migrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("migrate: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn migrate() -> Result<(), Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let wait = wait_in(&arguments)?;
    let database = database::Database::open(RdsConnectionManager::builder())?;
    let mut connection = connect(&database.manager, wait)?;
    migrations::run(&database.manager, &mut connection, print)
}

/// Prints a line. Unlike `println!` it does not panic if standard output is closed.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn wait_in(arguments: &[OsString]) -> Result<Duration, Failure> {
    match arguments {
        [] => Ok(WAIT),
        [option, seconds] if option == "--wait" => {
            let seconds = seconds.to_str().and_then(|seconds| seconds.parse::<NonZeroU32>().ok());
            let seconds =
                seconds.ok_or_else(|| format!("--wait takes a number of seconds\n{USAGE}"))?;
            Ok(Duration::from_secs(seconds.get().into()))
        }
        _ => Err(format!("unknown arguments\n{USAGE}").into()),
    }
}

/// Connects within `wait`, and prints why it takes long. Another thread connects, because one
/// attempt alone can take 10 seconds.
fn connect(manager: &RdsConnectionManager, wait: Duration) -> Result<PgConnection, Failure> {
    let (sender, outcome) = channel();
    let cloned = manager.clone();
    thread::spawn(move || sender.send(keep_connecting(&cloned)));
    let deadline = Instant::now() + wait;
    let mut printed = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match outcome.recv_timeout(left.min(REPORT_INTERVAL)) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => {
                return Err("the thread that connects panicked".into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let cause = manager.last_error().unwrap_or("the server has not answered yet".into());
        if left.is_zero() {
            return Err(format!("no database within {} s: {cause}", wait.as_secs()).into());
        }
        if printed != cause {
            print(&format!("waiting for the database: {cause}"));
            printed = cause;
        }
    }
}

/// Connects as soon as the database can be used. Fails at once if waiting does not help.
fn keep_connecting(manager: &RdsConnectionManager) -> Result<PgConnection, Failure> {
    loop {
        let error = match manager.connect() {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        // A new IAM policy takes some time until all of AWS knows it.
        let is_refused_token = error.login_failure() == Some(LoginFailure::RefusedToken);
        if !error.is_transient() && !is_refused_token {
            return Err(error.into());
        }
        thread::sleep(RETRY_INTERVAL);
    }
}
