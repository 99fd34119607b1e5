//! The threads that do the jobs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::Failure;
use crate::bell::Bell;
use crate::connections::Connections;
use crate::queue::{self, Outcome};

/// How often a thread looks for work that it was not woken for: jobs that are tried again, and
/// notifications that were lost.
const POLL: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the threads share.
pub(crate) struct Workers {
    connections: Connections,
    pub(crate) bell: Arc<Bell>,
    until_empty: bool,
    pub(crate) counts: Counts,
}

impl Workers {
    pub(crate) fn new(connections: Connections, bell: Arc<Bell>, until_empty: bool) -> Workers {
        Workers { connections, bell, until_empty, counts: Counts::default() }
    }

    /// Does jobs until the bell is stopped; never stops in the middle of one.
    pub(crate) fn work(&self) {
        let mut failures = 0;
        while !self.bell.is_stopped() {
            let heard = self.bell.rings();
            let step = self.do_next();
            failures = if step.is_ok() { 0 } else { failures + 1 };
            match step {
                Ok(Some(outcome)) => self.counts.add(outcome),
                Ok(None) => self.bell.wait(heard, POLL),
                Err(error) => {
                    log::warn!("no job could be done: {error}");
                    self.bell.pause(queue::back_off(failures - 1, FIRST_PAUSE, LONGEST_PAUSE));
                }
            }
        }
    }

    fn do_next(&self) -> Result<Option<Outcome>, Failure> {
        let outcome = self.connections.with(queue::do_next)?;
        if outcome.is_none() && self.until_empty && self.connections.with(queue::is_empty)? {
            self.bell.stop();
        }
        Ok(outcome)
    }
}

/// What has become of the jobs. A commit whose answer was lost is not counted.
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
        write!(f, "done: {done}, to be tried again: {retried}, dead: {dead}")
    }
}
