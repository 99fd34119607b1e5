//! A clock that tests can advance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;

/// The system's clock plus the time by which a test advanced it. Clones share that time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Milliseconds.
    ahead: Arc<AtomicU64>,
}

/// 1,000 years in milliseconds. The year in a token has 4 digits.
const FARTHEST: u64 = 1000 * 365 * 24 * 60 * 60 * 1000;

impl Clock {
    /// Advances the clock, by at most 1,000 years in total.
    pub fn advance(&self, by: Duration) {
        let milliseconds = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let moved = |ahead: u64| Some(ahead.saturating_add(milliseconds).min(FARTHEST));
        let _ = self.ahead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, moved);
    }
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.ahead.load(Ordering::SeqCst))
    }
}
