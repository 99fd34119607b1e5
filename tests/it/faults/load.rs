//! Threads that write at a fixed rate and record the outcome of each write.

use std::collections::HashMap;
use std::ops::{DerefMut, Sub};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::max;
use diesel::prelude::*;
use diesel_rds_iam::{PerThread, Pool};

pub(crate) const THREADS: usize = 16;
const PACE: Duration = Duration::from_millis(80);

diesel::table! {
    ledger (thread, number) {
        thread -> Integer,
        number -> BigInt,
    }
}

/// Each commit takes 20 ms, so that a cut is likely to happen during one. The table has no key, so
/// that a row written twice is visible.
const SCHEMA: &str = "
    CREATE TABLE ledger (thread integer NOT NULL, number bigint NOT NULL);
    CREATE INDEX ON ledger (thread, number);
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION linger();
    GRANT ALL ON ledger TO app";

/// The source of the connections of the threads.
pub(crate) trait Connections: Sync {
    fn get(&self) -> Result<Box<dyn DerefMut<Target = PgConnection> + '_>, String>;

    /// Returns the number of connections without a fault.
    fn open(&self) -> u32;

    /// Runs a transaction. An error after the closure returned `Ok` leaves its outcome unknown.
    fn transaction(&self, run: Run<'_>) -> Result<(), WriteError> {
        let mut is_to_be_committed = false;
        let mut connection = self.get().map_err(WriteError::Failed)?;
        let committed = connection.transaction(|connection| {
            run(connection)?;
            is_to_be_committed = true;
            Ok(())
        });
        committed.map_err(|error: diesel::result::Error| {
            let text = error.to_string();
            if is_to_be_committed { WriteError::Unknown(text) } else { WriteError::Failed(text) }
        })
    }

    /// Whether no outcome may stay unknown.
    fn knows_outcomes(&self) -> bool {
        false
    }
}

pub(crate) type Run<'a> = &'a mut dyn FnMut(&mut PgConnection) -> QueryResult<()>;

/// Why a transaction did not commit, as far as its caller knows.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// It is not in the database.
    Failed(String),
    /// It may be in the database.
    Unknown(String),
}

impl Connections for Pool {
    fn get(&self) -> Result<Box<dyn DerefMut<Target = PgConnection> + '_>, String> {
        Ok(Box::new(self.get().map_err(|error| error.to_string())?))
    }

    fn open(&self) -> u32 {
        self.max_size()
    }
}

impl Connections for PerThread {
    fn get(&self) -> Result<Box<dyn DerefMut<Target = PgConnection> + '_>, String> {
        Ok(Box::new(self.get().map_err(|error| error.to_string())?))
    }

    fn open(&self) -> u32 {
        THREADS as u32
    }
}

/// The outcome of a row, as its writer knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Committed,
    /// The answer to the commit did not arrive.
    Unknown,
    Failed,
}

pub(crate) struct Load {
    done: AtomicBool,
    committing: AtomicUsize,
    state: Mutex<State>,
    success: Condvar,
}

struct State {
    /// The last success of each thread.
    last: Vec<Instant>,
    outcomes: HashMap<(i32, i64), Outcome>,
    tally: Tally,
    /// Reads that did not return what was written.
    wrong: Vec<String>,
}

/// The number of failed operations, and of those with an unknown outcome.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) failed: usize,
    pub(crate) unknown: usize,
}

impl Sub for Tally {
    type Output = Tally;

    fn sub(self, before: Tally) -> Tally {
        Tally { failed: self.failed - before.failed, unknown: self.unknown - before.unknown }
    }
}

impl Load {
    pub(crate) fn new(superuser: &mut PgConnection) -> Load {
        superuser.batch_execute(SCHEMA).unwrap();
        let (last, outcomes, wrong) = (vec![Instant::now(); THREADS], HashMap::new(), Vec::new());
        let state = Mutex::new(State { last, outcomes, tally: Tally::default(), wrong });
        Load {
            done: AtomicBool::new(false),
            committing: AtomicUsize::new(0),
            state,
            success: Condvar::new(),
        }
    }

    /// Runs one of the threads until the end.
    pub(crate) fn work(&self, thread: usize, connections: &dyn Connections) {
        let mut number = 0;
        while !self.done.load(SeqCst) {
            number += 1;
            let outcome = self.write(thread as i32, number, connections);
            self.record(thread, number, outcome);
            // A steady load below the maximum.
            thread::sleep(PACE);
        }
    }

    pub(crate) fn end(&self) {
        self.done.store(true, SeqCst);
    }

    fn write(&self, thread: i32, number: i64, connections: &dyn Connections) -> Outcome {
        let mut is_committing = false;
        let written = connections.transaction(&mut |connection| {
            // The closure can run again after its COMMIT was lost.
            if std::mem::take(&mut is_committing) {
                self.committing.fetch_sub(1, SeqCst);
            }
            let read = write_and_read(connection, thread, number)?;
            if read != (thread, number, Some(number)) {
                let wrong = format!("{read:?} instead of {thread}, {number}");
                self.state.lock().unwrap().wrong.push(wrong);
            }
            is_committing = true;
            self.committing.fetch_add(1, SeqCst);
            Ok(())
        });
        if is_committing {
            self.committing.fetch_sub(1, SeqCst);
        }
        match written {
            Ok(()) => Outcome::Committed,
            Err(WriteError::Failed(error)) => {
                log::debug!("thread {thread}, {number}: {error}");
                Outcome::Failed
            }
            Err(WriteError::Unknown(error)) => {
                log::debug!("thread {thread}, {number}: outcome unknown: {error}");
                Outcome::Unknown
            }
        }
    }

    fn record(&self, thread: usize, number: i64, outcome: Outcome) {
        let mut state = self.state.lock().unwrap();
        state.outcomes.insert((thread as i32, number), outcome);
        match outcome {
            Outcome::Committed => state.last[thread] = Instant::now(),
            Outcome::Unknown => state.tally.unknown += 1,
            Outcome::Failed => state.tally.failed += 1,
        }
        self.success.notify_all();
    }

    /// Returns the number of threads that wait for the answer to a commit.
    pub(crate) fn committing(&self) -> usize {
        self.committing.load(SeqCst)
    }

    pub(crate) fn tally(&self) -> Tally {
        self.state.lock().unwrap().tally
    }

    /// Waits until each thread has succeeded after `since`. Returns the time until the last one.
    pub(crate) fn full_service(&self, since: Instant, bound: Duration) -> Result<Duration, String> {
        let is_missing = |state: &mut State| state.last.iter().any(|last| *last <= since);
        let left = bound.saturating_sub(since.elapsed());
        let (state, _) =
            self.success.wait_timeout_while(self.state.lock().unwrap(), left, is_missing).unwrap();
        let stuck = state.last.iter().filter(|last| **last <= since).count();
        if stuck == 0 {
            Ok(since.elapsed())
        } else {
            Err(format!("{stuck} threads did not succeed within {bound:?}"))
        }
    }

    /// Compares the table with the recorded outcomes. Each committed row must exist once, an
    /// unknown row at most once, and no failed row. Returns the number of rows.
    pub(crate) fn check(&self, superuser: &mut PgConnection) -> usize {
        let state = self.state.lock().unwrap();
        assert_eq!(state.wrong, Vec::<String>::new());
        let rows: Vec<(i32, i64)> = ledger::table.load(superuser).unwrap();
        let mut times = HashMap::new();
        rows.iter().for_each(|row| *times.entry(*row).or_insert(0) += 1);
        for (row, outcome) in &state.outcomes {
            let times = times.remove(row).unwrap_or(0);
            let is_right = match outcome {
                Outcome::Committed => times == 1,
                Outcome::Unknown => times <= 1,
                Outcome::Failed => times == 0,
            };
            assert!(is_right, "{row:?}: {outcome:?}, but {times} times in the table");
        }
        assert!(times.is_empty(), "rows that no thread wrote: {times:?}");
        rows.len()
    }
}

fn write_and_read(
    connection: &mut PgConnection,
    thread: i32,
    number: i64,
) -> QueryResult<(i32, i64, Option<i64>)> {
    let row = (ledger::thread.eq(thread), ledger::number.eq(number));
    let (thread, number): (i32, i64) =
        diesel::insert_into(ledger::table).values(row).get_result(connection)?;
    let latest = ledger::table
        .filter(ledger::thread.eq(thread))
        .select(max(ledger::number))
        .first(connection)?;
    Ok((thread, number, latest))
}
