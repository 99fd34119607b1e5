//! AWS credentials behind a synchronous, cached, expiry-aware front.

mod source;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_async::time::SharedTimeSource;

use crate::Error;
use crate::error::{causes, utc};
use crate::https;
use crate::token::masked;
use source::Found;
pub(crate) use source::{Configured, Role, Source, configured_region};
use worker::Worker;

/// Credentials are refreshed in the background when they end in less than this, or than a quarter of their life.
const REFRESH_AHEAD: Duration = Duration::from_secs(5 * 60);

/// How long to leave a source alone after a failure, while the old credentials still serve: doubled for each further
/// failure, up to the second value.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long credentials that a server has refused, and that a refresh has not changed, are not asked for again.
const ROTATION_PAUSE: Duration = Duration::from_secs(10);

/// Credentials for callers on any thread, inside and outside of async code.
///
/// Asking a source can mean a network call, so the [`Worker`] does it; callers get the cached pair, or wait for it.
pub(crate) struct CredentialsCache {
    shared: Arc<Shared>,
    source: Source,
    /// Taken with the first request: a program that never connects has no thread of ours.
    worker: Mutex<Option<Arc<Worker>>>,
    timeout: Duration,
    time_source: SharedTimeSource,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// One refresh in flight, whoever asks.
    refreshing: bool,
    /// Counts the answers, so that a waiter knows its own.
    answers: u64,
    /// What the last answer said, if it was a failure, and how many came in a row.
    failure: Option<Arc<CredentialsError>>,
    failures: u32,
    last_failure: Option<Instant>,
    last_rotation: Option<Instant>,
}

struct Current {
    credentials: Credentials,
    /// By wall time, as all that decides on age: a machine that slept wakes up with credentials that have ended.
    received: SystemTime,
    refresh_at: Option<SystemTime>,
}

impl Current {
    /// `jitter`, from 0 to 1, spreads the refreshes of many programs that started together.
    fn new(credentials: Credentials, received: SystemTime, jitter: f64) -> Current {
        let refresh_at = credentials.expiry().map(|end| {
            let life = end.duration_since(received).unwrap_or_default();
            end - REFRESH_AHEAD.min(life / 4).mul_f64(1.0 - 0.2 * jitter)
        });
        Current { credentials, received, refresh_at }
    }

    fn has_ended(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_some_and(|end| end <= now)
    }

    /// Its end is near; or the clock was set back, and nobody knows how near.
    fn is_due(&self, now: SystemTime) -> bool {
        self.refresh_at.is_some_and(|at| at <= now || now < self.received)
    }
}

impl State {
    fn usable(&self, now: SystemTime) -> Option<&Current> {
        self.current.as_ref().filter(|current| !current.has_ended(now))
    }

    fn may_try_again(&self, now: Instant) -> bool {
        let (first, longest) = BACK_OFF;
        let pause = longest.min(first * 2_u32.saturating_pow(self.failures.saturating_sub(1)));
        self.last_failure.is_none_or(|last| now.duration_since(last) >= pause)
    }

    fn answer(&mut self, result: Result<Found, CredentialsError>, now: SystemTime, took: Duration) {
        self.refreshing = false;
        self.answers += 1;
        let result = result.and_then(|found| not_ended(found, now));
        self.report(&result, took, now);
        match result {
            Ok((credentials, _)) => {
                self.current = Some(Current::new(credentials, now, fastrand::f64()));
                (self.failure, self.failures, self.last_failure) = (None, 0, None);
            }
            Err(error) => {
                self.failure = Some(Arc::new(error));
                self.failures += 1;
                self.last_failure = Some(Instant::now());
            }
        }
    }

    fn report(&self, result: &Result<Found, CredentialsError>, took: Duration, now: SystemTime) {
        match result {
            Ok((credentials, place)) => {
                let end = credentials.expiry().map_or("no end".to_owned(), utc);
                log::debug!("AWS credentials {} from {place} in {took:?}, end: {end}", masked(credentials));
            }
            // Without usable credentials the caller has the error; with them, nobody else would say it.
            Err(error) if self.failures == 0 && self.usable(now).is_some() => {
                log::warn!("AWS credentials not refreshed, the old ones serve on: {}", causes(error));
            }
            Err(error) => log::debug!("no AWS credentials after {took:?}: {}", causes(error)),
        }
    }

    /// What a caller gets whose refresh was answered.
    fn outcome(&self, now: SystemTime) -> Result<Credentials, Error> {
        if let Some(current) = self.usable(now) {
            return Ok(current.credentials.clone());
        }
        let nothing = || Arc::new(CredentialsError::unhandled("the source gave none"));
        Err(self.error(self.failure.clone().unwrap_or_else(nothing)))
    }

    fn error(&self, source: Arc<CredentialsError>) -> Error {
        let ended = self.current.as_ref().and_then(|current| current.credentials.expiry());
        Error::Credentials { source, ended }
    }
}

/// A source can hand out credentials that have ended already, as out of a stale file.
fn not_ended((credentials, place): Found, now: SystemTime) -> Result<Found, CredentialsError> {
    match credentials.expiry() {
        Some(end) if end <= now => {
            let text = format!("{place}: gave credentials that ended at {}", utc(end));
            Err(CredentialsError::provider_error(text))
        }
        _ => Ok((credentials, place)),
    }
}

impl CredentialsCache {
    pub(crate) fn new(source: Source, timeout: Duration, time_source: SharedTimeSource) -> CredentialsCache {
        CredentialsCache { shared: Arc::default(), source, worker: Mutex::default(), timeout, time_source }
    }

    /// The cache for these settings that some manager has already, or a new one.
    pub(crate) fn shared(configured: &Configured, timeout: Duration) -> Arc<CredentialsCache> {
        type Known = (Configured, Duration, Weak<CredentialsCache>);
        static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, _, cache)| cache.strong_count() > 0);
        let same = |(settings, limit, cache): &Known| {
            (settings == configured && *limit == timeout).then(|| cache.upgrade()).flatten()
        };
        if let Some(cache) = known.iter().find_map(same) {
            return cache;
        }
        let source = Source::Configured(configured.clone(), https::client());
        let cache = Arc::new(CredentialsCache::new(source, timeout, SharedTimeSource::default()));
        known.push((configured.clone(), timeout, Arc::downgrade(&cache)));
        cache
    }

    /// The cached credentials while they last, else new ones.
    pub(crate) fn get(&self) -> Result<Credentials, Error> {
        let now = self.time_source.now();
        let mut state = self.shared.lock();
        let usable = state.usable(now).map(|current| (current.credentials.clone(), current.is_due(now)));
        match usable {
            Some((credentials, is_due)) => {
                if is_due && state.may_try_again(Instant::now()) {
                    self.request(&mut state)?;
                }
                Ok(credentials)
            }
            None => self.refresh(state),
        }
    }

    /// Other credentials than those that a server refused: they may have been rotated. None if they are still the same.
    pub(crate) fn rotated(&self, refused: &Credentials) -> Option<Credentials> {
        let mut state = self.shared.lock();
        let current = state.usable(self.time_source.now())?.credentials.clone();
        if current != *refused {
            return Some(current);
        }
        let now = Instant::now();
        if state.last_rotation.is_some_and(|last| now.duration_since(last) < ROTATION_PAUSE) {
            return None;
        }
        state.last_rotation = Some(now);
        let refreshed = self.refresh(state).ok()?;
        (refreshed != *refused).then_some(refreshed)
    }

    /// Waits for a refresh: its own, or the one that is on its way.
    fn refresh(&self, mut state: MutexGuard<'_, State>) -> Result<Credentials, Error> {
        self.request(&mut state)?;
        let before = state.answers;
        let (state, _) = self
            .shared
            .answered
            .wait_timeout_while(state, self.timeout, |state| state.answers == before)
            .unwrap_or_else(PoisonError::into_inner);
        if state.answers == before {
            return Err(state.error(Arc::new(CredentialsError::provider_timed_out(self.timeout))));
        }
        state.outcome(self.time_source.now())
    }

    /// Sends the worker to the source, unless it is on its way.
    fn request(&self, state: &mut State) -> Result<(), Error> {
        if state.refreshing {
            return Ok(());
        }
        let worker = self.worker().map_err(|error| state.error(Arc::new(CredentialsError::unhandled(error))))?;
        state.refreshing = true;
        let (shared, time_source) = (self.shared.clone(), self.time_source.clone());
        let answer = Answer { shared, time_source, asked: Instant::now(), result: None };
        let (source, timeout) = (self.source.clone(), self.timeout);
        worker.run(async move {
            let found = tokio::time::timeout(timeout, source.ask()).await;
            answer.give(found.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(timeout))));
        });
        Ok(())
    }

    fn worker(&self) -> std::io::Result<Arc<Worker>> {
        let mut taken = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = match &*taken {
            Some(worker) => worker.clone(),
            None => Worker::shared()?,
        };
        *taken = Some(worker.clone());
        Ok(worker)
    }
}

impl Shared {
    /// A panic while the lock is held leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to answer, whatever becomes of the asking: a source is somebody else's code, and may panic.
struct Answer {
    shared: Arc<Shared>,
    time_source: SharedTimeSource,
    asked: Instant,
    result: Option<Result<Found, CredentialsError>>,
}

impl Answer {
    fn give(mut self, result: Result<Found, CredentialsError>) {
        self.result = Some(result);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let unanswered = || Err(CredentialsError::unhandled("the credentials provider panicked"));
        let result = self.result.take().unwrap_or_else(unanswered);
        self.shared.lock().answer(result, self.time_source.now(), self.asked.elapsed());
        self.shared.answered.notify_all();
    }
}
