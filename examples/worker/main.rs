//! Runs the jobs of a table on several threads.
//!
//! The effect of a job and its removal are one transaction, so a job takes effect exactly once,
//! also if a connection, the server or the worker fails. A failed job is retried after a back-off,
//! and is dead after several failures. A lost connection does not count as a failure of the job.
//! NOTIFY wakes the threads, and they also poll. After SIGTERM or SIGINT, running jobs finish.
//!
//! Aurora DSQL has no LISTEN, so there the threads only poll, each second. It has no savepoints
//! either: a failed job rolls its transaction back, and its failure is recorded in another one.
//!
//! Without DATABASE_URL it runs sample jobs on a local stand-in for RDS. With DATABASE_URL it runs
//! the jobs that `worker enqueue` or another program inserts:
//!
//!     cargo run --example worker --features local
//!     cargo run --example worker --features local -- enqueue '{"account": 7, "amount": 3}'

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Endpoint, RdsConnectionManager};

mod bell;
mod connections;
#[path = "../database.rs"]
mod database;
mod job;
mod listener;
#[path = "../migrations.rs"]
mod migrations;
mod queue;
#[path = "../schema.rs"]
mod schema;
#[path = "../streak.rs"]
mod streak;
mod threads;
#[path = "../transaction.rs"]
mod transaction;
mod workers;

use bell::Bell;
use connections::Connections;
use database::Database;
use threads::Task;
use workers::Workers;

const USAGE: &str = "invalid arguments
usage: worker [--threads N] [--pool] [--until-empty]
       worker enqueue PAYLOAD...";

/// Each thread has a connection, and servers have limits.
const MOST_THREADS: u32 = 1000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("worker: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments = std::env::args_os().skip(1).map(OsString::into_string);
    let arguments: Vec<String> = arguments.collect::<Result<_, _>>().map_err(|_| USAGE)?;
    match arguments.split_first() {
        Some((command, payloads)) if command == "enqueue" && !payloads.is_empty() => {
            enqueue(payloads)
        }
        _ => work(Options::parse(arguments)?),
    }
}

struct Options {
    threads: u32,
    pool: bool,
    until_empty: bool,
}

impl Options {
    fn parse(arguments: Vec<String>) -> Result<Options, Failure> {
        let mut options = Options { threads: 4, pool: false, until_empty: false };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--threads" => {
                    let threads = arguments.next().and_then(|number| number.parse().ok());
                    options.threads = threads
                        .filter(|threads| (1..=MOST_THREADS).contains(threads))
                        .ok_or(USAGE)?;
                }
                "--pool" => options.pool = true,
                "--until-empty" => options.until_empty = true,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

fn enqueue(payloads: &[String]) -> Result<(), Failure> {
    if std::env::var_os("DATABASE_URL").is_none() {
        return Err("enqueue needs DATABASE_URL, because a local RDS stops with its program".into());
    }
    let manager = Database::open(RdsConnectionManager::builder())?.manager;
    let mut connection = manager.connect()?;
    migrations::run(&manager, &mut connection, |line| log::info!("{line}"))?;
    queue::enqueue(payloads, &mut connection)?;
    Ok(())
}

fn work(mut options: Options) -> Result<(), Failure> {
    let is_local = std::env::var_os("DATABASE_URL").is_none();
    let database = Database::open(RdsConnectionManager::builder())?;
    let mut connection = database.manager.connect()?;
    migrations::run(&database.manager, &mut connection, |line| log::info!("{line}"))?;
    if is_local {
        queue::enqueue(&job::samples(), &mut connection)?;
        options.until_empty = true;
        print(job::ABOUT_SAMPLES);
    }
    drop(connection);
    let connections = Connections::new(&database.manager, options.threads, options.pool)?;
    let bell = Arc::<Bell>::default();
    threads::stop_on_signals(bell.clone())?;
    let is_dsql = database.manager.endpoints().any(Endpoint::is_dsql);
    let workers = Arc::new(Workers::new(connections, bell.clone(), options.until_empty, is_dsql));
    let mut tasks: Vec<Task> = Vec::new();
    if is_dsql {
        print("Aurora DSQL has no LISTEN: the workers poll each second");
    } else {
        let manager = database.manager.clone();
        tasks.push(("listener".into(), Box::new(move || listener::listen(&manager, &bell))));
    }
    for i in 1..=options.threads {
        let workers = workers.clone();
        tasks.push((format!("worker-{i}"), Box::new(move || workers.work())));
    }
    let outcome = threads::run(tasks, &workers.bell);
    workers.connections.close();
    print(&workers.counts.to_string());
    outcome
}

/// Prints a line. Unlike `println!` it does not panic if standard output is closed.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
