//! [`Series`]: an event that can occur many times in a row.

use std::time::Duration;

use parking_lot::Mutex;

use super::Moment;

/// A series ends after this time without the event.
const QUIET: Duration = Duration::from_secs(10);

/// An event that can occur many times in a row, such as in an overload. It is reported once.
#[derive(Debug, Default)]
pub(crate) struct Series(Mutex<Option<Moment>>);

impl Series {
    /// Records the event. Returns the level to log it at: *warn* if it starts a series.
    pub(crate) fn next_level(&self) -> log::Level {
        self.level_at(Moment::now())
    }

    fn level_at(&self, now: Moment) -> log::Level {
        let last = self.0.lock().replace(now);
        let is_first = last.is_none_or(|last| now.since(last) > QUIET);
        if is_first { log::Level::Warn } else { log::Level::Debug }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_after_some_quiet_is_a_warning() {
        let (series, start) = (Series::default(), Moment::now());
        let longer = QUIET + Duration::from_nanos(1);
        let levels = [Duration::ZERO, QUIET, 2 * QUIET, 2 * QUIET + longer]
            .map(|after| series.level_at(start + after));
        use log::Level::{Debug, Warn};
        assert_eq!(levels, [Warn, Debug, Debug, Warn]);
    }
}
