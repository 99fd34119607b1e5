//! [`State`]: what the cache knows, and what it decides. Pure: each method gets the time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use log::Level;

use super::chain::Found;
use crate::backoff::BackOff;
use crate::error::{Error, causes, utc};
use crate::token::masked;

/// The refresh in the background starts this long before the credentials expire, or after three
/// quarters of their life.
const REFRESH_AHEAD: Duration = Duration::from_secs(5 * 60);

/// The shortest time between two calls of a source that fails while no credentials are usable.
const PAUSE_WITHOUT_CREDENTIALS: Duration = Duration::from_millis(100);

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A moment by both clocks. Wall time decides when credentials expire, also on a machine that
/// slept. `Instant` measures waits, because a wall clock can be set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: SystemTime,
    pub(super) instant: Instant,
    /// The id of this process. A refresh that was in progress at a fork does not end in the child.
    pub(super) process: u32,
}

pub(super) struct State {
    current: Option<Current>,
    /// The process that has a refresh in progress. There is one refresh at a time.
    refreshing: Option<u32>,
    answers: u64,
    failed_answers: u64,
    /// The last answer and its time, if it was a failure.
    failure: Option<(Arc<CredentialsError>, Instant)>,
    /// Refreshes that failed.
    refreshes: BackOff,
    /// Refreshes because a server refused the credentials. A login with the new ones ends the
    /// back-off; that the source returned other credentials does not, because some sources return
    /// new ones at each call.
    rotations: BackOff,
}

/// The credentials in use.
struct Current {
    credentials: Credentials,
    /// The name of their source.
    #[cfg_attr(not(feature = "doctor"), expect(dead_code, reason = "only the doctor reports it"))]
    place: String,
    received: SystemTime,
    refresh_at: Option<SystemTime>,
}

/// What [`State::get`] decides.
#[derive(Debug)]
pub(super) enum Get {
    Use(Credentials),
    /// Use them, and start a refresh.
    UseAndRefresh(Credentials),
    /// Wait for a refresh.
    Wait,
    Fail(Error),
}

/// What [`State::rotate`] decides.
#[derive(Debug)]
pub(super) enum Rotate {
    /// The credentials were replaced since the server refused them.
    Use(Credentials),
    /// Wait for a refresh.
    Wait,
    /// The last refresh for this reason was too recent.
    TooSoon,
}

impl Default for State {
    fn default() -> State {
        State {
            current: None,
            refreshing: None,
            answers: 0,
            failed_answers: 0,
            failure: None,
            refreshes: BackOff::new(FIRST_WAIT, LONGEST_WAIT),
            rotations: BackOff::new(FIRST_WAIT, LONGEST_WAIT),
        }
    }
}

impl State {
    pub(super) fn get(&self, now: Now) -> Get {
        let Some(current) = self.usable(now) else {
            return self.recent_failure(now).map_or(Get::Wait, Get::Fail);
        };
        let credentials = current.credentials.clone();
        if current.is_due(now.wall) && self.refreshes.wait(now.instant).is_none() {
            Get::UseAndRefresh(credentials)
        } else {
            Get::Use(credentials)
        }
    }

    /// Decides what to do about credentials that a server refused: they may have been rotated.
    pub(super) fn rotate(&mut self, refused: &Credentials, now: Now) -> Rotate {
        let current = self.usable(now).map(|current| &current.credentials);
        if let Some(other) = current.filter(|current| !is_same_key_pair(current, refused)) {
            return Rotate::Use(other.clone());
        }
        if self.is_refreshing(now) {
            return Rotate::Wait;
        }
        if self.rotations.wait(now.instant).is_some() {
            return Rotate::TooSoon;
        }
        self.rotations.failed(now.instant);
        Rotate::Wait
    }

    /// Records that a server accepted credentials that [`rotate`](Self::rotate) gave.
    pub(super) fn login_succeeded(&mut self, credentials: &Credentials) {
        let is_current = |it: &Current| is_same_key_pair(&it.credentials, credentials);
        if self.current.as_ref().is_some_and(is_current) {
            self.rotations.succeeded();
        }
    }

    /// Starts a refresh. Returns `false` if another caller has started it.
    pub(super) fn begin_refresh(&mut self, now: Now) -> bool {
        let is_first = !self.is_refreshing(now);
        self.refreshing = Some(now.process);
        is_first
    }

    fn is_refreshing(&self, now: Now) -> bool {
        self.refreshing == Some(now.process)
    }

    /// Takes the answer of the source. Returns what to log about it.
    pub(super) fn answer(
        &mut self,
        result: Result<Found, CredentialsError>,
        now: Now,
        jitter: f64,
    ) -> (Level, String) {
        self.refreshing = None;
        self.answers += 1;
        match result.and_then(|found| not_expired(found, now.wall)) {
            Ok((credentials, place)) => {
                let end = credentials.expiry().map_or("never".to_owned(), utc);
                let key = masked(&credentials);
                self.current = Some(Current::new((credentials, place.clone()), now.wall, jitter));
                self.failure = None;
                self.refreshes.succeeded();
                (Level::Debug, format!("AWS credentials {key} from {place} (expire: {end})"))
            }
            Err(error) => self.failed(error, now),
        }
    }

    fn failed(&mut self, error: CredentialsError, now: Now) -> (Level, String) {
        self.failed_answers += 1;
        let causes = causes(&error);
        // Without usable credentials the caller gets the error.
        let is_first = self.refreshes.failures() == 0 && self.usable(now).is_some();
        self.failure = Some((Arc::new(error), now.instant));
        self.refreshes.failed(now.instant);
        match is_first {
            true => (
                Level::Warn,
                format!(
                    "could not refresh AWS credentials, still using the previous ones: {causes}"
                ),
            ),
            false => (Level::Debug, format!("could not get AWS credentials: {causes}")),
        }
    }

    /// Returns what a caller gets after the refresh that it waited for.
    pub(super) fn outcome(&self, now: Now) -> Result<Credentials, Error> {
        if let Some(current) = self.usable(now) {
            return Ok(current.credentials.clone());
        }
        let failure = self.failure.as_ref().map(|(error, _)| error.clone());
        let nothing = || Arc::new(CredentialsError::unhandled("the source returned none"));
        Err(self.error(failure.unwrap_or_else(nothing)))
    }

    pub(super) fn error(&self, cause: Arc<CredentialsError>) -> Error {
        let ended = self.current.as_ref().and_then(|current| current.credentials.expiry());
        Error::Credentials { cause, ended }
    }

    /// Returns the number of answers, and of failures among them.
    pub(super) fn answers(&self) -> (u64, u64) {
        (self.answers, self.failed_answers)
    }

    #[cfg(feature = "doctor")]
    pub(super) fn place(&self) -> Option<String> {
        self.current.as_ref().map(|current| current.place.clone())
    }

    fn usable(&self, now: Now) -> Option<&Current> {
        self.current.as_ref().filter(|current| !current.has_expired(now.wall))
    }

    /// Returns the last failure, if another call of the source would come too soon after it. One
    /// retry may come at once.
    fn recent_failure(&self, now: Now) -> Option<Error> {
        let (error, at) = self.failure.as_ref()?;
        let is_recent = now.instant.duration_since(*at) < PAUSE_WITHOUT_CREDENTIALS;
        let is_repeated = self.refreshes.failures() > 1 && !self.is_refreshing(now);
        (is_recent && is_repeated).then(|| self.error(error.clone()))
    }
}

impl Current {
    /// `jitter`, from 0 to 1, spreads the refreshes of programs that started together.
    fn new((credentials, place): Found, received: SystemTime, jitter: f64) -> Current {
        let refresh_at = credentials.expiry().map(|end| {
            let life = end.duration_since(received).unwrap_or_default();
            end - REFRESH_AHEAD.min(life / 4).mul_f64(1.0 - 0.2 * jitter)
        });
        Current { credentials, place, received, refresh_at }
    }

    fn has_expired(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_some_and(|end| end <= now)
    }

    /// Whether they expire soon, or the clock was set back, which hides how soon.
    fn is_due(&self, now: SystemTime) -> bool {
        self.refresh_at.is_some_and(|at| at <= now || now < self.received)
    }
}

/// Whether two credentials make the same tokens. A source can return the same key pair with another
/// expiry.
pub(super) fn is_same_key_pair(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id() == b.access_key_id()
        && a.secret_access_key() == b.secret_access_key()
        && a.session_token() == b.session_token()
}

/// Refuses credentials that have expired: a source can return them out of a stale file.
fn not_expired((credentials, place): Found, now: SystemTime) -> Result<Found, CredentialsError> {
    match credentials.expiry() {
        Some(end) if end <= now => {
            let text = format!("{place}: gave credentials that ended at {}", utc(end));
            Err(CredentialsError::provider_error(text))
        }
        _ => Ok((credentials, place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn now() -> Now {
        Now { wall: SystemTime::now(), instant: Instant::now(), process: 1 }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { wall: now.wall + by, instant: now.instant + by, ..now }
    }

    fn key_pair(number: u32, end: Option<SystemTime>) -> Credentials {
        Credentials::new(format!("AKIA{number}"), "secret", None, end, "test")
    }

    fn with(credentials: Credentials, now: Now) -> State {
        let mut state = State::default();
        assert!(matches!(state.get(now), Get::Wait));
        assert!(state.begin_refresh(now));
        answer(&mut state, credentials, now);
        state
    }

    fn answer(state: &mut State, credentials: Credentials, now: Now) {
        let (level, text) = state.answer(Ok((credentials, "test".into())), now, 0.0);
        assert_eq!(level, Level::Debug, "{text}");
    }

    fn fail(state: &mut State, now: Now) -> Level {
        state.begin_refresh(now);
        state.answer(Err(CredentialsError::provider_error("down")), now, 0.0).0
    }

    #[test]
    fn a_refresh_starts_ahead_of_the_expiry() {
        let start = now();
        let state = with(key_pair(0, Some(start.wall + 60 * MINUTE)), start);
        assert!(matches!(state.get(later(start, 54 * MINUTE)), Get::Use(_)));
        assert!(matches!(state.get(later(start, 56 * MINUTE)), Get::UseAndRefresh(_)));
        assert!(matches!(state.get(later(start, 60 * MINUTE)), Get::Wait));
        // A quarter of a short life is less than five minutes.
        let state = with(key_pair(0, Some(start.wall + 4 * MINUTE)), start);
        assert!(matches!(state.get(later(start, 2 * MINUTE)), Get::Use(_)));
        assert!(matches!(state.get(later(start, 3 * MINUTE)), Get::UseAndRefresh(_)));
        // The clock was set back.
        let back = Now { wall: start.wall - MINUTE, ..start };
        assert!(matches!(state.get(back), Get::UseAndRefresh(_)));
    }

    #[test]
    fn a_failed_refresh_keeps_the_old_pair_and_backs_off() {
        let start = now();
        let mut state = with(key_pair(0, Some(start.wall + 60 * MINUTE)), start);
        let mut at = later(start, 56 * MINUTE);
        for (i, seconds) in [1, 2, 4].into_iter().enumerate() {
            let level = fail(&mut state, at);
            assert_eq!(level, if i == 0 { Level::Warn } else { Level::Debug });
            at = later(at, seconds * SECOND);
            let before = Now { instant: at.instant - Duration::from_nanos(1), ..at };
            assert!(matches!(state.get(before), Get::Use(_)));
            assert!(matches!(state.get(at), Get::UseAndRefresh(_)));
        }
        let expired = later(start, 60 * MINUTE);
        assert!(matches!(state.outcome(expired), Err(Error::Credentials { .. })));
    }

    #[test]
    fn without_credentials_one_retry_comes_at_once_and_then_one_each_100_ms() {
        let (mut state, start) = (State::default(), now());
        fail(&mut state, start);
        assert!(matches!(state.get(start), Get::Wait));
        fail(&mut state, start);
        assert!(matches!(state.get(start), Get::Fail(_)));
        assert!(matches!(state.get(later(start, PAUSE_WITHOUT_CREDENTIALS)), Get::Wait));
        assert_eq!(state.answers(), (2, 2));
    }

    #[test]
    fn credentials_that_have_expired_are_a_failure() {
        let (mut state, start) = (State::default(), now());
        state.begin_refresh(start);
        let expired = key_pair(0, Some(start.wall));
        state.answer(Ok((expired, "test".into())), start, 0.0);
        let error = state.outcome(start).unwrap_err().to_string();
        assert!(error.contains("gave credentials that ended at"), "{error}");
    }

    #[test]
    fn a_refused_pair_is_refreshed_once_per_step_until_a_login_succeeds() {
        let start = now();
        let mut state = with(key_pair(0, None), start);
        let mut at = start;
        for (number, seconds) in [(1, 1), (2, 2), (3, 4)] {
            let refused = key_pair(number - 1, None);
            assert!(matches!(state.rotate(&refused, at), Rotate::Wait));
            state.begin_refresh(at);
            // The source makes a new pair at each call.
            answer(&mut state, key_pair(number, None), at);
            assert!(matches!(state.rotate(&refused, at), Rotate::Use(_)));
            assert!(matches!(state.rotate(&key_pair(number, None), at), Rotate::TooSoon));
            at = later(at, seconds * SECOND);
        }
        state.login_succeeded(&key_pair(2, None));
        assert!(matches!(state.rotate(&key_pair(3, None), at), Rotate::Wait));
        state.login_succeeded(&key_pair(3, None));
        assert!(matches!(state.rotate(&key_pair(3, None), at), Rotate::Wait));
    }

    #[test]
    fn the_same_pair_with_another_expiry_is_not_rotated() {
        let start = now();
        let mut state = with(key_pair(0, Some(start.wall + MINUTE)), start);
        let refused = key_pair(0, Some(start.wall + 2 * MINUTE));
        assert!(matches!(state.rotate(&refused, start), Rotate::Wait));
        assert!(matches!(state.rotate(&refused, start), Rotate::TooSoon));
        let other_token = Credentials::new("AKIA0", "secret", Some("token".into()), None, "test");
        assert!(matches!(state.rotate(&other_token, start), Rotate::Use(_)));
    }

    #[test]
    fn all_who_were_refused_wait_for_one_refresh() {
        let start = now();
        let mut state = with(key_pair(0, None), start);
        assert!(matches!(state.rotate(&key_pair(0, None), start), Rotate::Wait));
        assert!(state.begin_refresh(start));
        assert!(matches!(state.rotate(&key_pair(0, None), start), Rotate::Wait));
        assert!(!state.begin_refresh(start));
    }

    #[test]
    fn a_child_process_does_not_wait_for_the_refresh_of_its_parent() {
        let (mut state, parent) = (State::default(), now());
        assert!(state.begin_refresh(parent));
        assert!(!state.begin_refresh(parent));
        let child = Now { process: 2, ..parent };
        assert!(state.begin_refresh(child));
        assert!(!state.begin_refresh(child));
    }
}
