use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;

/// The system's clock, but for what a test moved it on. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Milliseconds.
    ahead: Arc<AtomicU64>,
}

/// 1,000 years, in milliseconds: dates of four digits are all that a token can hold.
const FARTHEST: u64 = 1000 * 365 * 24 * 60 * 60 * 1000;

impl Clock {
    /// Moves the clock on, by 1,000 years in all at most.
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
