//! AWS credentials behind a synchronous, cached, expiry-aware front.

mod chain;
pub(crate) mod https;
mod worker;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_async::time::SharedTimeSource;
use log::Level;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, causes, utc};
use crate::token::masked;
use chain::Found;
pub(crate) use chain::{Configured, Role, Source, configured_region, unreadable_files};
use worker::Worker;

/// Credentials are refreshed in the background when they end in less than this, or than a quarter
/// of their life.
const REFRESH_AHEAD: Duration = Duration::from_secs(5 * 60);

/// How much longer than the worker a caller waits, for the worker knows which place gives no
/// answer.
const GRACE: Duration = Duration::from_millis(250);

/// A source that fails while nothing is usable is asked again at once, but then not more often than
/// this.
const PAUSE_WITHOUT_CREDENTIALS: Duration = Duration::from_millis(100);

/// Credentials for callers on any thread, inside and outside of async code.
///
/// Asking a source can mean a network call, so the [`Worker`] does it; callers get the cached pair,
/// or wait for it.
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
    failed_answers: u64,
    /// What the last answer said, if it was a failure.
    failure: Option<Arc<CredentialsError>>,
    /// Failed refreshes, while the old credentials serve.
    refreshes: BackOff,
    /// Refreshes that did not change credentials which a server had refused.
    rotations: BackOff,
}

/// How long to leave something alone that was in vain: a second, doubled each time, up to a minute.
#[derive(Default)]
struct BackOff {
    times: u32,
    last: Option<Instant>,
}

impl BackOff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    fn was_in_vain(&mut self, now: Instant) {
        self.times += 1;
        self.last = Some(now);
    }

    fn is_over(&self, now: Instant) -> bool {
        let pause = Self::FIRST * 2_u32.saturating_pow(self.times.saturating_sub(1).min(10));
        self.last.is_none_or(|last| now.duration_since(last) >= pause.min(Self::LONGEST))
    }
}

struct Current {
    credentials: Credentials,
    /// Where they came from.
    #[cfg_attr(not(feature = "doctor"), expect(dead_code, reason = "the doctor alone tells it"))]
    place: String,
    /// By wall time, as all that decides on age: a machine that slept wakes up with credentials
    /// that have ended.
    received: SystemTime,
    refresh_at: Option<SystemTime>,
}

impl Current {
    /// `jitter`, from 0 to 1, spreads the refreshes of many programs that started together.
    fn new((credentials, place): Found, received: SystemTime, jitter: f64) -> Current {
        let refresh_at = credentials.expiry().map(|end| {
            let life = end.duration_since(received).unwrap_or_default();
            end - REFRESH_AHEAD.min(life / 4).mul_f64(1.0 - 0.2 * jitter)
        });
        Current { credentials, place, received, refresh_at }
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

    /// Takes an answer in, and returns what is to be logged of it.
    fn answer(
        &mut self,
        result: Result<Found, CredentialsError>,
        now: SystemTime,
    ) -> (Level, String) {
        self.refreshing = false;
        self.answers += 1;
        match result.and_then(|found| not_ended(found, now)) {
            Ok((credentials, place)) => {
                let end = credentials.expiry().map_or("no end".to_owned(), utc);
                let text =
                    format!("AWS credentials {} from {place}, end: {end}", masked(&credentials));
                self.current = Some(Current::new((credentials, place), now, fastrand::f64()));
                (self.failure, self.refreshes) = (None, BackOff::default());
                (Level::Debug, text)
            }
            Err(error) => {
                self.failed_answers += 1;
                let causes = causes(&error);
                // Without usable credentials the caller has the error; with them, nobody else would
                // say it.
                let is_news = self.refreshes.times == 0 && self.usable(now).is_some();
                self.failure = Some(Arc::new(error));
                self.refreshes.was_in_vain(Instant::now());
                if is_news {
                    (
                        Level::Warn,
                        format!("AWS credentials not refreshed, the old ones serve on: {causes}"),
                    )
                } else {
                    (Level::Debug, format!("no AWS credentials: {causes}"))
                }
            }
        }
    }

    /// The last failure, where a further call would come too soon after it.
    fn recent_failure(&self) -> Option<Error> {
        let last = self.refreshes.last.filter(|_| self.refreshes.times > 1 && !self.refreshing)?;
        let failure =
            self.failure.clone().filter(|_| last.elapsed() < PAUSE_WITHOUT_CREDENTIALS)?;
        Some(self.error(failure))
    }

    /// What a caller gets whose refresh was answered.
    fn outcome(&self, now: SystemTime) -> Result<Credentials, Error> {
        if let Some(current) = self.usable(now) {
            return Ok(current.credentials.clone());
        }
        let nothing = || Arc::new(CredentialsError::unhandled("the source gave none"));
        Err(self.error(self.failure.clone().unwrap_or_else(nothing)))
    }

    fn error(&self, cause: Arc<CredentialsError>) -> Error {
        let ended = self.current.as_ref().and_then(|current| current.credentials.expiry());
        Error::Credentials { cause, ended }
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
    pub(crate) fn new(
        source: Source,
        timeout: Duration,
        time_source: SharedTimeSource,
    ) -> CredentialsCache {
        CredentialsCache {
            shared: Arc::default(),
            source,
            worker: Mutex::default(),
            timeout,
            time_source,
        }
    }

    /// The cache for these settings that some manager has already, or a new one.
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
        let source = Source::Configured(configured.clone(), https::client());
        let cache = Arc::new(CredentialsCache::new(source, timeout, SharedTimeSource::default()));
        known.push((configured.clone(), timeout, Arc::downgrade(&cache)));
        cache
    }

    /// The cached credentials while they last, else new ones.
    pub(crate) fn get(&self) -> Result<Credentials, Error> {
        let now = self.time_source.now();
        let mut state = self.shared.state.lock();
        let Some(current) = state.usable(now) else {
            return match state.recent_failure() {
                Some(error) => Err(error),
                None => self.refresh(state),
            };
        };
        let (credentials, is_due) = (current.credentials.clone(), current.is_due(now));
        if is_due && state.refreshes.is_over(Instant::now()) {
            let errand = self.errand(&mut state);
            drop(state);
            self.run(errand);
        }
        Ok(credentials)
    }

    /// Where the cached credentials came from.
    #[cfg(feature = "doctor")]
    pub(crate) fn place(&self) -> Option<String> {
        self.shared.state.lock().current.as_ref().map(|current| current.place.clone())
    }

    /// How many answers the source has given, and how many failed ones among them.
    pub(crate) fn answers(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (state.answers, state.failed_answers)
    }

    /// Other credentials than those that a server refused: they may have been rotated. None if they
    /// are still the same.
    pub(crate) fn rotated(&self, refused: &Credentials) -> Option<Credentials> {
        let now = self.time_source.now();
        let state = self.shared.state.lock();
        let other = state
            .usable(now)
            .map(|current| &current.credentials)
            .filter(|current| *current != refused);
        if let Some(other) = other {
            return Some(other.clone());
        }
        let is_joined = state.refreshing;
        if !is_joined && !state.rotations.is_over(Instant::now()) {
            return None;
        }
        let refreshed = self.refresh(state).ok().filter(|refreshed| refreshed != refused);
        let mut state = self.shared.state.lock();
        match &refreshed {
            Some(_) => state.rotations = BackOff::default(),
            None if is_joined => {}
            None => state.rotations.was_in_vain(Instant::now()),
        }
        refreshed
    }

    /// Waits for a refresh: its own, or the one that is on its way.
    fn refresh(&self, mut state: MutexGuard<'_, State>) -> Result<Credentials, Error> {
        let before = state.answers;
        let errand = self.errand(&mut state);
        drop(state);
        self.run(errand);
        let unanswered = |state: &mut State| state.answers == before;
        let mut state = self.shared.state.lock();
        self.shared.answered.wait_while_for(
            &mut state,
            unanswered,
            self.timeout.saturating_add(GRACE),
        );
        if state.answers == before {
            let text = format!(
                "no answer within {:?}; a provider that blocks its thread holds up all others",
                self.timeout
            );
            return Err(state.error(Arc::new(CredentialsError::provider_error(text))));
        }
        let now = self.time_source.now();
        state.outcome(now)
    }

    /// The duty to ask the source; none while somebody else has it.
    fn errand(&self, state: &mut State) -> Option<Answer> {
        let is_ours = !std::mem::replace(&mut state.refreshing, true);
        let (shared, time_source) = (self.shared.clone(), self.time_source.clone());
        is_ours.then(|| Answer { shared, time_source, asked: Instant::now(), result: None })
    }

    /// Sends the worker to the source. Not under the lock, which an answer takes.
    fn run(&self, errand: Option<Answer>) {
        let Some(answer) = errand else { return };
        let worker = match self.worker() {
            Ok(worker) => worker,
            Err(error) => {
                return answer.give(Err(CredentialsError::provider_error(format!(
                    "no thread to ask on: {error}"
                ))));
            }
        };
        let (source, timeout) = (self.source.clone(), self.timeout);
        worker.run(async move {
            let place = Mutex::default();
            let found = tokio::time::timeout(timeout, source.ask(&place)).await;
            answer.give(found.unwrap_or_else(|_| {
                let place = place.into_inner();
                Err(CredentialsError::provider_error(format!(
                    "{place}: no answer within {timeout:?}"
                )))
            }));
        });
    }

    fn worker(&self) -> std::io::Result<Arc<Worker>> {
        let mut taken = self.worker.lock();
        let worker = match &*taken {
            Some(worker) if !worker.has_ended() => worker.clone(),
            _ => Worker::shared()?,
        };
        *taken = Some(worker.clone());
        Ok(worker)
    }
}

/// The duty to answer, whatever becomes of the asking: a source is somebody else's code, and may
/// panic.
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
        let unanswered =
            || Err(CredentialsError::provider_error("the credentials provider panicked"));
        let (result, now) = (self.result.take().unwrap_or_else(unanswered), self.time_source.now());
        let (level, text) = self.shared.state.lock().answer(result, now);
        self.shared.answered.notify_all();
        // Not under the lock: a logger may write into a database of ours.
        log::log!(level, "{text}, after {:?}", self.asked.elapsed());
    }
}
