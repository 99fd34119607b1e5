//! The clients of this crate. Each prints a line for each write: the thread, when it started and
//! ended (seconds of the monotonic clock, which is the same in all processes), and the error.

use std::io::{Read, Write, stdin, stdout};
use std::thread;
use std::time::Duration;

use diesel::RunQueryDsl;
use diesel_rds_iam::{Pool, RdsConnectionManager};

use crate::now;

const INSERT: &str = "INSERT INTO written DEFAULT VALUES";
const THINKING: Duration = Duration::from_millis(10);

/// Runs until the end of standard input.
pub(crate) fn run(threads: usize, connections: u32) {
    env_logger::init();
    let manager = RdsConnectionManager::new(std::env::var("CONNINFO").unwrap()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(connections)).unwrap();
    for thread in 0..threads {
        let pool = pool.clone();
        thread::spawn(move || work(&pool, thread));
    }
    stdin().read_to_end(&mut Vec::new()).unwrap();
    std::process::exit(0);
}

fn work(pool: &Pool, thread: usize) {
    loop {
        let started = now();
        let outcome = insert(pool).map_err(|error| error.to_string());
        let failure = outcome.err().map(|error| format!(" {}", error.replace('\n', " ")));
        let line = format!("{thread} {started:.6} {:.6}{}\n", now(), failure.unwrap_or_default());
        stdout().write_all(line.as_bytes()).unwrap();
        thread::sleep(THINKING);
    }
}

fn insert(pool: &Pool) -> Result<(), Box<dyn std::error::Error>> {
    diesel::sql_query(INSERT).execute(&mut pool.get()?)?;
    Ok(())
}
