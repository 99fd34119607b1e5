//! [`CredentialsCache`]: AWS credentials for callers on any thread.

mod chain;
mod https;
mod profile;
mod refresh;
mod state;
mod worker;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_async::time::SharedTimeSource;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Error;
pub(crate) use chain::{Configured, Role, Source, configured_region};
pub(crate) use profile::{profile_name, unreadable_files};
use refresh::Refresh;
use state::{Get, Now, Rotate, State, is_same_key_pair};
use worker::Worker;

/// A caller waits this much longer than the worker, because the worker knows which source does not
/// answer.
const GRACE: Duration = Duration::from_millis(250);

/// Credentials for callers inside and outside of async code.
///
/// A call of a source can use the network, so the [`Worker`] makes it. Callers get the cached
/// credentials, or wait for the worker.
pub(crate) struct CredentialsCache {
    shared: Arc<Shared>,
    source: Source,
    /// Started by the first refresh: a program that never connects has no such thread.
    worker: Mutex<Option<Arc<Worker>>>,
    timeout: Duration,
}

struct Shared {
    state: Mutex<State>,
    answered: Condvar,
    time_source: SharedTimeSource,
}

impl Shared {
    fn now(&self) -> Now {
        Now { wall: self.time_source.now(), instant: Instant::now(), process: std::process::id() }
    }
}

impl CredentialsCache {
    pub(crate) fn new(
        source: Source,
        timeout: Duration,
        time_source: SharedTimeSource,
    ) -> CredentialsCache {
        let (state, answered) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, answered, time_source });
        CredentialsCache { shared, source, worker: Mutex::default(), timeout }
    }

    /// Returns the cache of another manager with these settings, or a new one.
    pub(crate) fn shared(configured: &Configured, timeout: Duration) -> Arc<CredentialsCache> {
        type Known = (Configured, Duration, Weak<CredentialsCache>);
        static KNOWN: Mutex<Vec<Known>> = parking_lot::const_mutex(Vec::new());
        let mut known = KNOWN.lock();
        known.retain(|(_, _, cache)| cache.strong_count() > 0);
        let same = |(settings, limit, cache): &Known| {
            (settings == configured && *limit == timeout).then(|| cache.upgrade()).flatten()
        };
        if let Some(cache) = known.iter().find_map(same) {
            return cache;
        }
        let source = Source::configured(configured.clone());
        let cache = Arc::new(CredentialsCache::new(source, timeout, SharedTimeSource::default()));
        known.push((configured.clone(), timeout, Arc::downgrade(&cache)));
        cache
    }

    /// Returns the cached credentials, or new ones if these have expired.
    pub(crate) fn get(&self) -> Result<Credentials, Error> {
        let now = self.shared.now();
        let state = self.shared.state.lock();
        match state.get(now) {
            Get::Use(credentials) => Ok(credentials),
            Get::UseAndRefresh(credentials) => {
                self.start_refresh(state, now);
                Ok(credentials)
            }
            Get::Wait => self.wait_for_refresh(state, now),
            Get::Fail(error) => Err(error),
        }
    }

    /// Returns the name of the source of the cached credentials.
    #[cfg(feature = "doctor")]
    pub(crate) fn place(&self) -> Option<String> {
        self.shared.state.lock().place()
    }

    /// Returns how many answers the source has given, and how many of them were failures.
    pub(crate) fn answers(&self) -> (u64, u64) {
        self.shared.state.lock().answers()
    }

    /// Returns other credentials than those that a server refused, because they may have been
    /// rotated. Returns `None` if the source still has the same, or was called for this reason not
    /// long ago.
    ///
    /// The caller reports a login with them by [`login_succeeded`](Self::login_succeeded).
    pub(crate) fn rotated(&self, refused: &Credentials) -> Option<Credentials> {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        match state.rotate(refused, now) {
            Rotate::Use(other) => Some(other),
            Rotate::TooSoon => None,
            Rotate::Wait => {
                let new = self.wait_for_refresh(state, now).ok()?;
                (!is_same_key_pair(&new, refused)).then_some(new)
            }
        }
    }

    /// Ends the back-off of [`rotated`](Self::rotated), after a login with credentials from there.
    pub(crate) fn login_succeeded(&self, credentials: &Credentials) {
        self.shared.state.lock().login_succeeded(credentials);
    }

    /// Waits for the refresh in progress, or starts one.
    fn wait_for_refresh(
        &self,
        state: MutexGuard<'_, State>,
        now: Now,
    ) -> Result<Credentials, Error> {
        let before = state.answers();
        self.start_refresh(state, now);
        let is_unanswered = |state: &mut State| state.answers() == before;
        let limit = self.timeout.saturating_add(GRACE);
        let mut state = self.shared.state.lock();
        self.shared.answered.wait_while_for(&mut state, is_unanswered, limit);
        if state.answers() == before {
            let text = format!(
                "no answer within {:?}; a provider that blocks its thread delays all others",
                self.timeout
            );
            return Err(state.error(Arc::new(CredentialsError::provider_error(text))));
        }
        // Without the lock: the time source may be a program's own.
        drop(state);
        let now = self.shared.now();
        self.shared.state.lock().outcome(now)
    }

    /// Lets the worker call the source, unless a refresh is in progress.
    fn start_refresh(&self, mut state: MutexGuard<'_, State>, now: Now) {
        if !state.begin_refresh(now) {
            return;
        }
        // The answer takes the lock.
        drop(state);
        let refresh = Refresh::new(self.shared.clone());
        match Worker::shared() {
            Ok(worker) => {
                worker.run(refresh.run(self.source.clone(), self.timeout));
                *self.worker.lock() = Some(worker);
            }
            Err(error) => refresh.answer(Err(CredentialsError::provider_error(format!(
                "could not start the credentials thread: {error}"
            )))),
        }
    }
}
