//! Threads that write rows without pause, and what they know of each row.

use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{PerThread, Pool};

pub(crate) const THREADS: usize = 8;
/// Between two rows of a thread.
const PACE: Duration = Duration::from_millis(10);

/// The source of the connections of the threads.
pub(crate) trait Connections: Send + Sync {
    fn write(&self, row: i64) -> Result<(), String>;
}

impl Connections for Pool {
    fn write(&self, row: i64) -> Result<(), String> {
        insert(self.get().map_err(|error| error.to_string())?, row)
    }
}

impl Connections for PerThread {
    fn write(&self, row: i64) -> Result<(), String> {
        insert(self.get().map_err(|error| error.to_string())?, row)
    }
}

/// The table has no key, so that a row written twice is visible.
fn insert(mut connection: impl DerefMut<Target = PgConnection>, row: i64) -> Result<(), String> {
    let insert = diesel::sql_query("INSERT INTO rows VALUES ($1)").bind::<BigInt, _>(row);
    insert.execute(&mut *connection).map(drop).map_err(|error| error.to_string())
}

pub(crate) struct Load {
    state: Arc<(Mutex<State>, Condvar)>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// The start of the last write of each thread that succeeded.
    last: Vec<Option<Instant>>,
    acknowledged: Vec<i64>,
    errors: Vec<String>,
}

impl Load {
    /// Starts the threads, and waits until each has written.
    pub(crate) fn start(connections: impl Connections + 'static) -> Load {
        let state = State { last: vec![None; THREADS], ..State::default() };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let (connections, done) = (Arc::new(connections), Arc::new(AtomicBool::new(false)));
        let start = |thread| {
            let (state, done, connections) = (state.clone(), done.clone(), connections.clone());
            thread::spawn(move || run(thread, &*connections, &state, &done))
        };
        let threads = (0..THREADS).map(start).collect();
        let load = Load { state, done, threads };
        load.await_all(Instant::now());
        load
    }

    /// Waits until each thread has written a row since then. Returns how long the last one took.
    pub(crate) fn await_all(&self, since: Instant) -> Duration {
        let (state, written) = &*self.state;
        let is_missing = |state: &mut State| !state.last.iter().all(|last| *last >= Some(since));
        let limit = Duration::from_secs(30);
        let (state, waited) =
            written.wait_timeout_while(state.lock().unwrap(), limit, is_missing).unwrap();
        let errors = &state.errors;
        assert!(!waited.timed_out(), "not each thread has written within {limit:?}: {errors:?}");
        since.elapsed()
    }

    /// Returns the errors since the last call.
    pub(crate) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut self.state.0.lock().unwrap().errors)
    }

    pub(crate) fn acknowledged(&self) -> Vec<i64> {
        self.state.0.lock().unwrap().acknowledged.clone()
    }

    /// Ends the threads. Checks that the writer has each acknowledged row once.
    pub(crate) fn end(self, rds: &LocalRds) {
        self.done.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let mut acknowledged = std::mem::take(&mut self.state.0.lock().unwrap().acknowledged);
        acknowledged.sort();
        let written = rows(&mut rds.superuser().unwrap());
        let is_missing = |row: &&i64| written.binary_search(row).is_err();
        let missing: Vec<&i64> = acknowledged.iter().filter(is_missing).collect();
        assert!(missing.is_empty(), "lost, of {}: {missing:?}", acknowledged.len());
        let twice: Vec<_> = written.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "written twice: {twice:?}");
    }
}

fn run(
    thread: usize,
    connections: &dyn Connections,
    state: &(Mutex<State>, Condvar),
    done: &AtomicBool,
) {
    let (state, written) = state;
    let mut row = thread as i64;
    while !done.load(SeqCst) {
        let started = Instant::now();
        let outcome = connections.write(row);
        let mut state = state.lock().unwrap();
        match outcome {
            Ok(()) => {
                state.acknowledged.push(row);
                state.last[thread] = Some(started);
                written.notify_all();
            }
            Err(error) => state.errors.push(error),
        }
        drop(state);
        // A row whose outcome is unknown is not written again.
        row += THREADS as i64;
        thread::sleep(PACE);
    }
}

/// Returns the rows in their order.
pub(crate) fn rows(connection: &mut PgConnection) -> Vec<i64> {
    diesel::dsl::sql::<BigInt>("SELECT id FROM rows ORDER BY id").get_results(connection).unwrap()
}
