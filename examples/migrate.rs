//! Runs what is pending of the migrations: for a deployment, before the programs that need the new
//! schema.
//!
//! It waits for the database, for SECONDS at most, and tells why it does. Any number may be started
//! at once: one migrates, and the others wait for as long as that takes. It ends with 0 when the
//! schema is up to date, and with 1 and the cause when it is not. A signal ends it in the middle of
//! a migration, too: that is a transaction, which the server rolls back when it notices, at the end
//! of the statement or before by its client_connection_check_interval.
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
use diesel_rds_iam::{Error, RdsConnectionManager};

mod database;
mod migrations;

const USAGE: &str = "usage: migrate [--wait SECONDS]";
const WAIT: Duration = Duration::from_secs(60);
const A_MOMENT: Duration = Duration::from_secs(1);

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
    migrations::run(&mut connection, tell)
}

/// Where nobody reads, nothing fails.
fn tell(line: &str) {
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

/// Connects within `wait`, and tells why it takes longer than a moment. Another thread does it, for
/// one attempt can take ten seconds by itself.
fn connect(manager: &RdsConnectionManager, wait: Duration) -> Result<PgConnection, Failure> {
    let (sender, outcome) = channel();
    let theirs = manager.clone();
    thread::spawn(move || sender.send(keep_connecting(&theirs)));
    let deadline = Instant::now() + wait;
    let mut told = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match outcome.recv_timeout(left.min(A_MOMENT)) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => {
                return Err("the thread that connects panicked".into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let why = manager.last_error().unwrap_or("no answer yet".into());
        if left.is_zero() {
            return Err(format!("no database within {} s: {why}", wait.as_secs()).into());
        }
        if told != why {
            tell(&format!("waiting for the database: {why}"));
            told = why;
        }
    }
}

/// Connects, or finds that waiting will not help. A refused token is waited for: a new policy takes
/// its time to reach all of AWS.
fn keep_connecting(manager: &RdsConnectionManager) -> Result<PgConnection, Failure> {
    loop {
        match manager.connect() {
            Ok(connection) => return Ok(connection),
            // After a refusal that stays until somebody mends something, as no role rds_iam or a
            // bad certificate.
            Err(Error::Paused { cause, .. }) => return Err(cause.into()),
            Err(
                error @ (Error::Credentials { .. }
                | Error::CredentialsExpired { .. }
                | Error::Token { .. }),
            ) => {
                return Err(error.into());
            }
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
