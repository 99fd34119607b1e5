//! [`Refresh`]: one call of the source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_credential_types::provider::error::CredentialsError;
use parking_lot::Mutex;

use super::Shared;
use super::chain::{Found, Source};

/// A refresh in progress. It always ends with an answer: a source is foreign code, and can panic.
pub(super) struct Refresh {
    shared: Arc<Shared>,
    started: Instant,
    result: Option<Result<Found, CredentialsError>>,
}

impl Refresh {
    pub(super) fn new(shared: Arc<Shared>) -> Refresh {
        Refresh { shared, started: Instant::now(), result: None }
    }

    pub(super) async fn run(self, source: Source, timeout: Duration) {
        let place = Mutex::default();
        let found = tokio::time::timeout(timeout, source.load(&place)).await;
        self.answer(found.unwrap_or_else(|_| {
            let text = format!("{}: no answer within {timeout:?}", place.into_inner());
            Err(CredentialsError::provider_error(text))
        }));
    }

    pub(super) fn answer(mut self, result: Result<Found, CredentialsError>) {
        self.result = Some(result);
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(CredentialsError::provider_error("the credentials provider panicked"))
        });
        let now = self.shared.now();
        let (level, text) = self.shared.state.lock().answer(result, now, fastrand::f64());
        self.shared.answered.notify_all();
        // Without the lock: a logger may use a database of ours.
        log::log!(level, "{text} (took {:.1?})", self.started.elapsed());
    }
}
