//! [`Moment`]: a time by two clocks.

use std::time::{Duration, Instant, SystemTime};

/// A time by the monotonic clock and by the wall clock.
///
/// The monotonic clock stands still while a machine sleeps, and the wall clock can be set back. The
/// longer of the two durations counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns `None` if a clock cannot represent the result.
    pub(crate) fn checked_add(self, duration: Duration) -> Option<Moment> {
        let monotonic = self.monotonic.checked_add(duration)?;
        Some(Moment { monotonic, wall: self.wall.checked_add(duration)? })
    }

    /// Returns the time since an earlier moment.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        let by_wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        self.monotonic.duration_since(earlier.monotonic).max(by_wall)
    }

    /// Whether an end is reached by one of the clocks.
    pub(crate) fn has_reached(self, end: Moment) -> bool {
        self.monotonic >= end.monotonic || self.wall >= end.wall
    }
}

#[cfg(test)]
impl Moment {
    /// As after the machine slept: only the wall clock went on.
    pub(crate) fn after_sleep(self, duration: Duration) -> Moment {
        Moment { wall: self.wall + duration, ..self }
    }

    /// As after the wall clock was set back.
    pub(crate) fn set_back(self, duration: Duration) -> Moment {
        Moment { wall: self.wall - duration, ..self }
    }
}

#[cfg(test)]
impl std::ops::Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment { monotonic: self.monotonic + duration, wall: self.wall + duration }
    }
}

#[cfg(test)]
impl std::ops::Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, duration: Duration) -> Moment {
        Moment { monotonic: self.monotonic - duration, wall: self.wall - duration }
    }
}
