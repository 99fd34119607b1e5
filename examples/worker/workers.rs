//! The threads that run the jobs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use diesel::result::Error as QueryError;
use diesel_rds_iam::Error;

use crate::bell::Bell;
use crate::connections::Connections;
use crate::queue::{self, Outcome};
use crate::streak::{Streak, kind};

/// How often a thread polls for retried jobs and for jobs whose notification was lost.
const POLL: Duration = Duration::from_secs(5);
/// Without LISTEN.
const SHORT_POLL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The state that the threads share.
pub(crate) struct Workers {
    pub(crate) connections: Connections,
    pub(crate) bell: Arc<Bell>,
    until_empty: bool,
    is_dsql: bool,
    streak: Streak,
    pub(crate) counts: Counts,
}

impl Workers {
    pub(crate) fn new(
        connections: Connections,
        bell: Arc<Bell>,
        until_empty: bool,
        is_dsql: bool,
    ) -> Workers {
        Workers {
            connections,
            bell,
            until_empty,
            is_dsql,
            streak: Streak::default(),
            counts: Counts::default(),
        }
    }

    /// Runs jobs until the bell is stopped. A running job finishes first.
    pub(crate) fn work(&self) {
        let mut failures = 0;
        while !self.bell.is_stopped() {
            let heard = self.bell.rings();
            let step = self.run_next();
            failures = if step.is_ok() { 0 } else { failures + 1 };
            if step.is_ok() {
                self.streak.succeeded("jobs run");
            }
            match step {
                Ok(Some(outcome)) => self.counts.add(outcome),
                Ok(None) => self.bell.wait(heard, if self.is_dsql { SHORT_POLL } else { POLL }),
                Err(error) => {
                    self.streak.failed(kind(&error), format_args!("cannot run jobs: {error}"));
                    self.bell.pause(queue::back_off(failures - 1, FIRST_PAUSE, LONGEST_PAUSE));
                }
            }
        }
    }

    fn run_next(&self) -> Result<Option<Outcome>, Error> {
        let outcome = if self.is_dsql {
            self.run_next_alone()?
        } else {
            self.connections.transaction(queue::run_next)?
        };
        if outcome.is_none() && self.until_empty && self.connections.with(queue::is_empty)? {
            self.bell.stop();
        }
        Ok(outcome)
    }

    fn run_next_alone(&self) -> Result<Option<Outcome>, Error> {
        let mut failed = None;
        let ran = self.connections.transaction(|it| queue::run_next_alone(it, &mut failed));
        match (ran, &failed) {
            (Err(Error::Query(QueryError::RollbackTransaction)), Some(failed)) => {
                self.connections.transaction(|it| queue::record_failed(failed, it))
            }
            (ran, _) => ran,
        }
    }
}

/// The results of the jobs. A COMMIT whose outcome stays unknown is not counted.
#[derive(Default)]
pub(crate) struct Counts {
    done: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
}

impl Counts {
    fn add(&self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Done => &self.done,
            Outcome::Retried => &self.retried,
            Outcome::Dead => &self.dead,
        };
        count.fetch_add(1, Relaxed);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [done, retried, dead] =
            [&self.done, &self.retried, &self.dead].map(|count| count.load(Relaxed));
        write!(f, "jobs done: {done}, retried: {retried}, dead: {dead}")
    }
}
