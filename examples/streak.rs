//! A log that does not repeat itself during an outage.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel_rds_iam::Error;

/// A streak ends with a success that comes this long after its last failure. Under load failures
/// and successes alternate, and that is one streak.
const QUIET: Duration = Duration::from_secs(2);

/// Logs the first failure of each kind as a warning, and repeats as debug lines, until the streak
/// ends.
#[derive(Default)]
pub(crate) struct Streak(Mutex<State>);

#[derive(Default)]
struct State {
    failures: BTreeMap<&'static str, u64>,
    last: Option<Instant>,
}

impl Streak {
    /// Logs a failure. Texts of one `kind` may differ, in durations for example.
    pub(crate) fn failed(&self, kind: &'static str, text: impl Display) {
        let is_first = self.with(|state| {
            state.last = Some(Instant::now());
            let count = state.failures.entry(kind).or_default();
            *count += 1;
            *count == 1
        });
        log::log!(if is_first { log::Level::Warn } else { log::Level::Debug }, "{text}");
    }

    /// Logs how many failures there were, if a streak ends here.
    pub(crate) fn succeeded(&self, subject: &str) {
        let ended = self.with(|state| {
            state.last.take_if(|last| last.elapsed() >= QUIET)?;
            Some(std::mem::take(&mut state.failures))
        });
        if let Some(failures) = ended {
            let counts: Vec<_> =
                failures.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
            log::warn!("{subject} again (failures: {})", counts.join(", "));
        }
    }

    /// Runs `change` under the lock. Nothing is logged there, because loggers may block.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the kind of an error.
pub(crate) fn kind(error: &Error) -> &'static str {
    match error {
        Error::Query(_) => "query",
        error => error.login_failure().map_or("connection", |failure| failure.as_str()),
    }
}
