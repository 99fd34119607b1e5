//! [`State`]: who waits for a login, which logins are in progress, and what they found out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hope::Hope;
use super::role::Role;
use super::search::Search;
use crate::error::Error;
use crate::login::backoff::{Backoff, LastError};
use crate::login::{Connected, Target};

/// In peace, a login that takes longer starts a search.
const PATIENCE: Duration = Duration::from_millis(500);
/// A reader that failed is not tried for this time, if there are others.
const BAD_READER: Duration = Duration::from_secs(30);
/// For how long the writer takes the place of readers that do not exist, and the life of such a
/// connection.
pub(crate) const SUBSTITUTE_LIFETIME: Duration = Duration::from_secs(60);
/// A search that takes longer is reported.
const LATE: Duration = Duration::from_secs(10);
/// A search ends, and an unused connection is closed, after this time without a waiting thread.
pub(super) const LINGER: Duration = Duration::from_secs(1);

pub(super) struct State {
    process: u32,
    /// Threads that wait in `connect`.
    waiting: usize,
    /// Connections for the waiting threads.
    arrivals: VecDeque<(u64, Connected)>,
    last_number: u64,
    /// Logins in progress, by host.
    in_flight: BTreeMap<String, usize>,
    /// The host that a search found.
    preferred: Option<Arc<Target>>,
    /// The generation in which the preferred host had the role. Connections that were lost
    /// afterwards make it doubtful.
    trusted: Option<u64>,
    search: Option<Search>,
    /// Searches that have ended.
    ended: u64,
    /// The last search that found nothing, and its error until a thread has taken it.
    in_vain: Option<(u64, LastError, Option<Error>)>,
    failures: BTreeMap<String, Error>,
    /// The hosts of the connection string, in their order.
    listed: Vec<String>,
    /// Readers that failed.
    bad: BTreeMap<String, Instant>,
    next_reader: usize,
    without_readers_until: Option<Instant>,
}

/// The own login of a waiting thread: when it started, and how many searches had ended before.
#[derive(Default)]
pub(super) struct Own(Option<(Instant, u64)>);

/// What a waiting thread does next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Start a login at the preferred host.
    Attempt,
    /// Start a search, or what is due in it.
    Search,
    Wait,
    /// No host can get the role soon.
    GiveUp,
}

impl State {
    pub(super) fn new(listed: Vec<String>) -> State {
        State {
            listed,
            process: std::process::id(),
            waiting: 0,
            arrivals: VecDeque::new(),
            last_number: 0,
            in_flight: BTreeMap::new(),
            preferred: None,
            trusted: None,
            search: None,
            ended: 0,
            in_vain: None,
            failures: BTreeMap::new(),
            bad: BTreeMap::new(),
            next_reader: fastrand::usize(..1 << 16),
            without_readers_until: None,
        }
    }

    /// In the child of a fork there are no threads.
    pub(super) fn check_process(&mut self) {
        if self.process != std::process::id() {
            *self = State::new(std::mem::take(&mut self.listed));
        }
    }

    /// A thread starts to wait. Returns how many searches have ended.
    pub(super) fn join(&mut self) -> u64 {
        self.waiting += 1;
        self.ended
    }

    pub(super) fn leave(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    pub(super) fn take_arrival(&mut self) -> Option<Connected> {
        self.arrivals.pop_front().map(|(_, connected)| connected)
    }

    pub(super) fn has_arrivals(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// Decides what a waiting thread does next.
    pub(super) fn next_step(
        &mut self,
        role: Role,
        generation: u64,
        least: Hope,
        own: &mut Own,
        now: Instant,
    ) -> Step {
        if let Some(search) = &mut self.search {
            search.wanted = now;
            return if self.is_hopeless(least) { Step::GiveUp } else { Step::Search };
        }
        if role.is_of_writer() && self.trusted != Some(generation) {
            return Step::Search;
        }
        match own.0 {
            Some((started, ended)) if ended == self.ended => {
                if now.duration_since(started) < PATIENCE { Step::Wait } else { Step::Search }
            }
            _ => {
                own.0 = Some((now, self.ended));
                Step::Attempt
            }
        }
    }

    pub(super) fn attempt_started(&mut self, key: &str) {
        *self.in_flight.entry(key.to_owned()).or_default() += 1;
    }

    /// Whether each waiting thread can get a connection of an attempt in progress at this host.
    pub(super) fn has_enough_attempts(&self, key: &str) -> bool {
        self.in_flight.get(key).is_some_and(|count| *count >= self.waiting)
    }

    pub(super) fn attempt_ended(&mut self, key: &str) {
        if let Some(count) = self.in_flight.get_mut(key) {
            *count -= 1;
        }
        self.in_flight.retain(|_, count| *count > 0);
    }

    pub(super) fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    pub(super) fn search_age(&self, now: Instant) -> Option<Duration> {
        self.search.as_ref().map(|search| now.duration_since(search.started))
    }

    pub(super) fn is_first(&self, key: &str) -> bool {
        self.search.as_ref().is_some_and(|search| search.first.as_deref() == Some(key))
    }

    /// Starts a search with this host. Without one, all hosts are tried at once.
    pub(super) fn start_search(&mut self, first: Option<String>, now: Instant) {
        self.failures.clear();
        self.search = Some(Search::new(self.ended + 1, first, now));
    }

    /// Whether the search takes so long that it has to be reported. Returns `true` once.
    pub(super) fn is_to_be_reported(&mut self, now: Instant) -> bool {
        let Some(search) = &mut self.search else { return false };
        let is_late = now.duration_since(search.started) >= LATE;
        is_late && !std::mem::replace(&mut search.is_reported, true)
    }

    /// Returns the hosts to start a login at, and the number of the search. The caller starts them.
    pub(super) fn due<'a>(
        &mut self,
        hosts: impl Iterator<Item = &'a String>,
        now: Instant,
    ) -> Vec<(String, u64)> {
        let State { search: Some(search), in_flight, .. } = self else { return Vec::new() };
        let first = search.first.as_ref();
        let has_failed =
            first.is_none_or(|first| matches!(search.watched.get(first), Some(Some(_))));
        search.is_wide |= has_failed || now.duration_since(search.started) >= PATIENCE;
        let mut due = Vec::new();
        for key in hosts.filter(|key| search.is_wide || Some(*key) == first) {
            // A login in progress becomes the watch of its host.
            if !search.watched.contains_key(key) && !in_flight.contains_key(key) {
                search.watched.insert(key.clone(), None);
                due.push((key.clone(), search.id));
            }
        }
        due
    }

    /// Records that a host does not have the role, or failed. Returns the number of the search if
    /// the caller is the one that watches this host in it. `own` is the search that it watches for.
    pub(super) fn found_other_role(
        &mut self,
        key: &str,
        error: Error,
        own: Option<u64>,
        now: Instant,
    ) -> Option<u64> {
        let hope = Hope::after(&error);
        self.bad.insert(key.to_owned(), now);
        if self.search.is_none() && self.waiting > 0 {
            self.start_search(Some(key.to_owned()), now);
        }
        let search = self.search.as_mut()?;
        let is_watched_by_another = search.watched.contains_key(key) && own != Some(search.id);
        if is_watched_by_another {
            return None;
        }
        search.watched.insert(key.to_owned(), Some(hope));
        self.failures.insert(key.to_owned(), error);
        Some(search.id)
    }

    /// The endpoint leads to a node that is watched under its own name.
    pub(super) fn stop_watching(&mut self, key: &str) {
        if let Some(search) = &mut self.search {
            search.watched.insert(key.to_owned(), Some(Hope::Never));
        }
    }

    /// Whether a thread still has to watch for this search.
    pub(super) fn is_wanted(&mut self, id: u64, now: Instant) -> bool {
        let is_current = self.search.as_ref().is_some_and(|search| search.id == id);
        let is_late = |search: &Search| now.duration_since(search.wanted) > LINGER;
        if is_current && self.waiting == 0 && self.search.as_ref().is_some_and(is_late) {
            self.end_search();
            return false;
        }
        is_current
    }

    /// Whether each host of the search was tried, and none has this hope.
    fn is_hopeless(&self, least: Hope) -> bool {
        let Some(search) = &self.search else { return false };
        search.is_wide
            && self.in_flight.is_empty()
            && search.watched.values().all(|it| it.is_some_and(|hope| hope < least))
    }

    /// Whether a host other than this one can get the role soon.
    pub(super) fn has_another_hope(&self, key: &str) -> bool {
        let Some(search) = &self.search else { return false };
        search.watched.iter().any(|(host, it)| host != key && *it == Some(Hope::Soon))
    }

    /// Whether all hosts had enough time, and none can get the role soon.
    pub(super) fn is_without_hope(&self, now: Instant) -> bool {
        self.search_age(now).is_some_and(|age| age >= PATIENCE) && !self.has_another_hope("")
    }

    /// Whether this host takes the place of one with the role: all others were tried, or had enough
    /// time, and no host before it can take the place.
    pub(super) fn is_substitute(&mut self, key: &str, now: Instant) -> bool {
        if self.is_without_readers(now) {
            return true;
        }
        let State { search: Some(search), listed, in_flight, .. } = self else { return false };
        search.substitutes.insert(key.to_owned());
        let mut before = listed.iter().take_while(|host| *host != key);
        let is_first = !before.any(|host| search.substitutes.contains(host));
        let are_done = search.watched.iter().all(|(host, it)| host == key || it.is_some());
        let is_late = now.duration_since(search.started) >= PATIENCE;
        is_first && search.is_wide && (are_done && in_flight.is_empty() || is_late)
    }

    fn end_search(&mut self) {
        self.search = None;
        self.ended += 1;
    }

    /// Ends a search that no host can end.
    pub(super) fn give_up(&mut self) {
        let error = Error::of_hosts(self.failures_in_order());
        self.end_in_vain(error);
    }

    /// Ends all waits with this error. One thread gets it, and the others get its text.
    pub(super) fn end_in_vain(&mut self, error: Error) {
        self.end_search();
        self.in_vain = Some((self.ended, LastError::new(&error), Some(error)));
    }

    /// Returns the error of a search that ended after the thread `joined`.
    pub(super) fn failure_of(&mut self, joined: u64) -> Option<Error> {
        let (_, last, error) = self.in_vain.as_mut().filter(|(ended, ..)| *ended > joined)?;
        Some(error.take().unwrap_or_else(|| last.clone().into()))
    }

    /// Returns the error for a thread that has waited long enough.
    pub(super) fn take_failures(&mut self, backoff: &Backoff) -> Error {
        let failures = self.failures_in_order();
        match backoff.last_error() {
            Some(last) if failures.is_empty() => last.into(),
            _ => Error::of_hosts(failures),
        }
    }

    /// Returns the failures: first those of the hosts in the connection string.
    fn failures_in_order(&mut self) -> Vec<Error> {
        let mut failures = std::mem::take(&mut self.failures);
        let listed: Vec<Error> =
            self.listed.iter().filter_map(|key| failures.remove(key)).collect();
        listed.into_iter().chain(failures.into_values()).collect()
    }

    /// Records a server with the role. Returns how long the search took that it ended.
    pub(super) fn found(&mut self, target: &Arc<Target>, now: Instant) -> Option<Duration> {
        self.failures.clear();
        self.bad.remove(&target.key());
        let age = self.search_age(now)?;
        self.end_search();
        Some(age)
    }

    pub(super) fn prefer(&mut self, target: Arc<Target>) {
        self.preferred = Some(target);
    }

    pub(super) fn preferred(&self) -> Option<Arc<Target>> {
        self.preferred.clone()
    }

    pub(super) fn trust(&mut self, generation: u64) {
        self.trusted = Some(generation);
    }

    /// Hands a connection to the waiting threads. Returns its number.
    pub(super) fn arrive(&mut self, connected: Connected) -> u64 {
        self.last_number += 1;
        self.arrivals.push_back((self.last_number, connected));
        self.last_number
    }

    pub(super) fn is_there(&self, number: u64) -> bool {
        self.arrivals.iter().any(|(it, _)| *it == number)
    }

    /// Takes back a connection that no thread took.
    pub(super) fn take_back(&mut self, number: u64) -> Option<Connected> {
        let i = self.arrivals.iter().position(|(it, _)| *it == number)?;
        self.arrivals.remove(i).map(|(_, connected)| connected)
    }

    /// Returns the next reader in turn that did not fail lately.
    pub(super) fn next_reader(&mut self, readers: &[&String], now: Instant) -> Option<String> {
        let State { bad, .. } = self;
        bad.retain(|_, at| now.duration_since(*at) < BAD_READER);
        let good: Vec<_> = readers.iter().filter(|key| !bad.contains_key(**key)).collect();
        self.next_reader = self.next_reader.wrapping_add(1);
        let i = self.next_reader.checked_rem(good.len())?;
        Some((**good[i]).clone())
    }

    pub(super) fn is_without_readers(&self, now: Instant) -> bool {
        self.without_readers_until.is_some_and(|until| now < until)
    }

    pub(super) fn without_readers(&mut self, now: Instant) {
        self.without_readers_until = Some(now + SUBSTITUTE_LIFETIME);
    }

    /// A reader was found: the writer that took its place is not preferred any more.
    pub(super) fn has_readers(&mut self) {
        self.without_readers_until = None;
        self.preferred = None;
    }

    /// Returns how many searches have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// A thread that does not wait in `connect` needs the result.
    pub(super) fn want(&mut self, now: Instant) {
        if let Some(search) = &mut self.search {
            search.wanted = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::*;
    use crate::error::LoginKind;

    const OTHER_ROLE: &str = "session is read-only";
    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn failure(text: &str) -> Error {
        let cause = ConnectionError::BadConnection(text.into());
        Error::connect("app@db:5432".into(), LoginKind::Rds, cause)
    }

    fn step(state: &mut State, own: &mut Own, now: Instant) -> Step {
        state.next_step(Role::ReadWrite, 7, Hope::Soon, own, now)
    }

    /// Returns the hosts to start a login at, of a cluster with the hosts a, b and c.
    fn due(state: &mut State, now: Instant) -> Vec<String> {
        let hosts = ["a", "b", "c"].map(str::to_owned);
        let due = state.due(hosts.iter(), now).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        due.iter().for_each(|key| state.attempt_started(key));
        due
    }

    fn searching(now: Instant) -> State {
        let mut state = State::new(Vec::new());
        state.join();
        state.start_search(Some("a".into()), now);
        assert_eq!(due(&mut state, now), ["a"]);
        state
    }

    fn fail(state: &mut State, key: &str, text: &str, now: Instant) -> Option<u64> {
        state.attempt_ended(key);
        state.found_other_role(key, failure(text), state.search.as_ref().map(|it| it.id), now)
    }

    #[test]
    fn in_peace_each_thread_has_one_login_and_a_slow_one_starts_a_search() {
        let (mut state, now) = (State::new(Vec::new()), Instant::now());
        state.trust(7);
        let mut own = Own::default();
        assert_eq!(step(&mut state, &mut own, now), Step::Attempt);
        assert_eq!(step(&mut state, &mut own, now + PATIENCE - NANOSECOND), Step::Wait);
        assert_eq!(step(&mut state, &mut own, now + PATIENCE), Step::Search);
        assert_eq!(step(&mut state, &mut Own::default(), now), Step::Attempt);
    }

    #[test]
    fn there_are_no_more_attempts_than_waiting_threads() {
        let mut state = State::new(Vec::new());
        for attempts in 0..3 {
            state.join();
            assert!(!state.has_enough_attempts("a"), "{attempts}");
            state.attempt_started("a");
            assert!(state.has_enough_attempts("a") && !state.has_enough_attempts("b"));
        }
        state.attempt_ended("a");
        assert!(!state.has_enough_attempts("a"));
        state.leave();
        assert!(state.has_enough_attempts("a"));
    }

    #[test]
    fn after_a_lost_connection_only_a_search_logs_in_at_the_writer() {
        let (mut state, now) = (State::new(Vec::new()), Instant::now());
        assert_eq!(step(&mut state, &mut Own::default(), now), Step::Search, "nothing is known");
        state.trust(6);
        assert_eq!(step(&mut state, &mut Own::default(), now), Step::Search);
        let reader = state.next_step(Role::Standby, 7, Hope::Soon, &mut Own::default(), now);
        assert_eq!(reader, Step::Attempt);
    }

    #[test]
    fn the_first_host_is_tried_alone_until_it_fails_or_is_late() {
        let now = Instant::now();
        let mut state = searching(now);
        assert!(due(&mut state, now + PATIENCE - NANOSECOND).is_empty());
        assert_eq!(due(&mut state, now + PATIENCE), ["b", "c"]);
        assert!(due(&mut state, now + PATIENCE).is_empty());
        let mut state = searching(now);
        fail(&mut state, "a", OTHER_ROLE, now);
        assert_eq!(due(&mut state, now), ["b", "c"]);
    }

    #[test]
    fn a_login_in_progress_becomes_the_watch_of_its_host() {
        let (mut state, now) = (State::new(Vec::new()), Instant::now());
        state.join();
        state.attempt_started("a");
        state.start_search(Some("a".into()), now);
        assert!(due(&mut state, now).is_empty());
        assert_eq!(fail(&mut state, "a", OTHER_ROLE, now), Some(1));
        assert_eq!(state.found_other_role("a", failure(OTHER_ROLE), None, now), None);
        assert_eq!(state.found_other_role("a", failure(OTHER_ROLE), Some(1), now), Some(1));
    }

    #[test]
    fn a_failed_login_starts_a_search_if_a_thread_waits() {
        let (mut state, now) = (State::new(Vec::new()), Instant::now());
        assert_eq!(fail(&mut state, "a", OTHER_ROLE, now), None);
        state.join();
        assert_eq!(fail(&mut state, "a", OTHER_ROLE, now), Some(1));
        assert_eq!(due(&mut state, now), ["b", "c"]);
    }

    #[test]
    fn a_search_is_given_up_only_if_no_host_has_hope() {
        let now = Instant::now();
        // The failure of the last host; whether a patient and an impatient thread give up.
        let cases = [
            (OTHER_ROLE, false, false),
            ("Connection refused", false, false),
            ("the database system is starting up", false, false),
            ("timeout expired", false, true),
            ("could not translate host name", true, true),
            ("PAM authentication failed for user \"app\"", true, true),
            ("database \"x\" does not exist", true, true),
        ];
        for (text, patient, impatient) in cases {
            let mut state = searching(now);
            fail(&mut state, "a", "database \"x\" does not exist", now);
            due(&mut state, now);
            fail(&mut state, "b", "database \"x\" does not exist", now);
            assert!(!state.is_hopeless(Hope::Soon), "c has not answered");
            fail(&mut state, "c", text, now);
            let given_up = [Hope::Later, Hope::Soon].map(|least| state.is_hopeless(least));
            assert_eq!(given_up, [patient, impatient], "{text}");
        }
    }

    #[test]
    fn all_threads_of_a_search_in_vain_get_its_error_and_later_ones_do_not() {
        let now = Instant::now();
        let mut state = searching(now);
        let joined = state.join();
        fail(&mut state, "a", "database \"x\" does not exist", now);
        state.give_up();
        let errors = [0, joined].map(|joined| state.failure_of(joined).unwrap());
        assert!(matches!(errors, [Error::Connect { .. }, Error::Timeout { .. }]), "{errors:?}");
        assert!(errors.iter().all(|error| error.to_string().contains("does not exist")));
        let joined = state.join();
        assert!(state.failure_of(joined).is_none());
    }

    #[test]
    fn a_search_ends_some_time_after_the_last_thread_left() {
        let now = Instant::now();
        let mut state = searching(now);
        assert!(state.is_wanted(1, now + 2 * LINGER), "a thread waits");
        state.leave();
        assert!(state.is_wanted(1, now + LINGER) && !state.is_wanted(2, now + LINGER));
        assert!(!state.is_wanted(1, now + LINGER + NANOSECOND));
        assert!(!state.is_searching());
    }

    #[test]
    fn a_search_that_takes_long_is_reported_once() {
        let now = Instant::now();
        let mut state = searching(now);
        assert!(!state.is_to_be_reported(now + LATE - NANOSECOND));
        assert!(state.is_to_be_reported(now + LATE) && !state.is_to_be_reported(now + LATE));
    }

    #[test]
    fn readers_take_turns_and_one_that_failed_is_left_out_for_a_while() {
        let (mut state, now) = (State::new(Vec::new()), Instant::now());
        let names = ["a", "b", "c"].map(str::to_owned);
        let readers: Vec<&String> = names.iter().collect();
        let turns = |state: &mut State, now| {
            let mut turns = [(); 4].map(|()| state.next_reader(&readers, now).unwrap());
            turns.sort();
            turns.join("")
        };
        assert!(["aabc", "abbc", "abcc"].contains(&turns(&mut state, now).as_str()));
        fail(&mut state, "b", OTHER_ROLE, now);
        assert_eq!(turns(&mut state, now + BAD_READER - NANOSECOND), "aacc");
        assert!(turns(&mut state, now + BAD_READER).contains('b'));
        assert_eq!(state.next_reader(&[], now), None);
    }

    #[test]
    fn the_writer_takes_the_place_of_readers_after_all_of_them_were_tried() {
        let now = Instant::now();
        let mut state = searching(now);
        assert!(!state.is_substitute("a", now));
        fail(&mut state, "a", OTHER_ROLE, now);
        due(&mut state, now);
        assert!(!state.is_substitute("a", now + PATIENCE - NANOSECOND));
        assert!(state.is_substitute("a", now + PATIENCE), "they had enough time");
        fail(&mut state, "b", "Connection refused", now);
        fail(&mut state, "c", OTHER_ROLE, now);
        assert!(!State::new(Vec::new()).is_substitute("c", now), "there is no search");
        assert!(state.is_substitute("c", now));
        state.listed = ["a", "b", "c"].map(str::to_owned).into();
        assert!(state.is_substitute("a", now) && !state.is_substitute("c", now));
        assert!(!state.is_without_readers(now));
        state.without_readers(now);
        assert!(state.is_without_readers(now + SUBSTITUTE_LIFETIME - NANOSECOND));
        assert!(!state.is_without_readers(now + SUBSTITUTE_LIFETIME));
    }
}
