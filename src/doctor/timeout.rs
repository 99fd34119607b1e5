//! The time that a step may take.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long one step may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Runs `work` on a thread of its own; none when it does not end within the limit. The thread is
/// left to its end then: the C library's resolver and libpq cannot be interrupted.
///
/// A thread also because the caller may be inside of async code, where nobody may block on a
/// runtime.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = mpsc::channel();
    // Nobody listens any more when it comes too late.
    let worker =
        thread::Builder::new().name("rds-iam-doctor".into()).spawn(move || drop(done.send(work())));
    worker.ok()?;
    result.recv_timeout(limit).ok()
}

/// The same for async work, which ends with its limit.
pub(super) fn within_async<T: Send + 'static, F>(
    limit: Duration,
    work: impl FnOnce() -> F + Send + 'static,
) -> Option<T>
where
    F: Future<Output = T>,
{
    within(limit, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async { tokio::time::timeout(limit, work()).await.ok() })
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_left() {
        let (end, never) = mpsc::channel::<()>();
        assert!(within(Duration::from_millis(1), move || never.recv()).is_none());
        drop(end);
        assert!(within_async(Duration::from_millis(1), std::future::pending::<()>).is_none());
        assert_eq!(within(LIMIT, || 1), Some(1));
    }
}
