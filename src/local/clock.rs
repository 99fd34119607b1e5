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

impl Clock {
    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let milliseconds = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.ahead.load(Ordering::SeqCst))
    }
}
