//! The thread that logs in at one host, and watches the role of its server.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::ConnectionError;
use diesel::result::Error as QueryError;
use parking_lot::MutexGuard;

use super::hope::Hope;
use super::state::{LINGER, State};
use super::{Failover, Role};
use crate::connection::ServerId;
use crate::error::{Error, Outlook, Refusal};
use crate::login::Target;
use crate::login::session::Session;

/// Between two questions for the role of a server.
const POLL: Duration = Duration::from_millis(50);
/// Before the next attempt at a host that refused TCP connections or starts.
const PAUSE: Duration = Duration::from_millis(100);
/// Before the next attempt after another failure, and between two logins at one host.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Before the next attempt after a refusal.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Logs the failure of one host. With several hosts a host that is down is expected, and one that
/// refuses the login is not.
fn log_failure(error: &Error, has_others: bool) {
    let is_refused =
        error.refusal().is_some_and(Refusal::is_of_token) || error.outlook() == Outlook::Permanent;
    let level = if is_refused && has_others { log::Level::Warn } else { log::Level::Debug };
    log::log!(level, "{error}");
}

/// If the thread panics, as in an instrumentation of the program, its attempt has ended.
struct EndOfAttempt<'a>(&'a Failover, String);

impl Drop for EndOfAttempt<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = QueryError::QueryBuilderError("it panicked".into());
            let hook = "resolver, or the default instrumentation,";
            let mut state = self.0.lock();
            state.attempt_ended(&self.1);
            state.end_in_vain(Error::Hook { hook, cause });
            self.0.changed.notify_all();
        }
    }
}

/// What a server is good for.
#[derive(Debug, PartialEq)]
enum Use {
    Fits,
    /// The writer, which can take the place of a reader.
    Substitute,
    No,
}

impl Failover {
    /// Starts the thread. With `search` it watches the host for this search from the start.
    pub(super) fn start_watch(
        self: &Arc<Self>,
        state: &mut State,
        target: Arc<Target>,
        search: Option<u64>,
    ) {
        let (failover, key) = (self.clone(), target.key());
        let login = target.clone();
        let thread = thread::Builder::new().name("rds-iam-login".into());
        let watch = move || {
            let _ended = EndOfAttempt(&failover, login.key());
            failover.watch(&login, search);
        };
        if let Err(error) = thread.spawn(watch) {
            state.attempt_ended(&key);
            let error = target.failed(ConnectionError::BadConnection(format!(
                "cannot start a thread: {error}; raise the limit of threads"
            )));
            state.found_other_role(&key, error, search, Instant::now());
        }
    }

    fn watch(self: &Arc<Self>, target: &Arc<Target>, mut search: Option<u64>) {
        let key = target.key();
        loop {
            let started = Instant::now();
            let outcome = Session::log_in(&self.iam, target, &self.cluster, self.role);
            self.events.counters.login(outcome.as_ref().err(), started.elapsed());
            let error = match outcome {
                Ok(session) => match self.watch_session(target, session, &mut search) {
                    Some(lost) => lost,
                    None => return,
                },
                Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => {
                    self.events.backoff.host_failed(&error);
                    log_failure(&error, self.has_several_hosts());
                    self.warn_of_name(target, &error);
                    self.lock().attempt_ended(&key);
                    error
                }
                // There is no token for any host.
                Err(error) => {
                    let mut state = self.lock();
                    state.attempt_ended(&key);
                    state.end_in_vain(error);
                    self.changed.notify_all();
                    return;
                }
            };
            let pause = match Hope::after(&error) {
                Hope::Soon if error.outlook() == Outlook::Starting => PAUSE,
                Hope::Never => LONGEST_PAUSE,
                _ => LONG_PAUSE.saturating_sub(started.elapsed()).max(PAUSE),
            };
            search = self.lock().found_other_role(&key, error, search, Instant::now());
            self.changed.notify_all();
            let Some(id) = search else { return };
            // Also after a permanent refusal: a replica may not have the user or the database yet.
            if self.is_superseded(target) || !self.pause(id, pause) {
                return;
            }
            self.lock().attempt_started(&key);
        }
    }

    /// Watches the role of a server. Returns why the session was lost, or `None` if it is not
    /// needed any more.
    fn watch_session(
        self: &Arc<Self>,
        target: &Arc<Target>,
        mut session: Session,
        search: &mut Option<u64>,
    ) -> Option<Error> {
        let key = target.key();
        let mut is_first = true;
        let node = self.node_of(target, &mut session);
        loop {
            self.learn_nodes(target, &mut session, search.is_some());
            let mut state = self.lock();
            if std::mem::take(&mut is_first) {
                state.attempt_ended(&key);
            }
            let now = Instant::now();
            let found = self.use_of(node.as_deref(), &session);
            if found != Use::Fits {
                let error = self.other_role(target);
                *search = state.found_other_role(&key, error, *search, now);
            }
            let is_substitute = found == Use::Substitute && state.is_substitute(&key, now);
            if found != Use::Fits && !is_substitute {
                drop(state);
                self.changed.notify_all();
                let id = (*search)?;
                if self.is_superseded(target) {
                    self.lock().stop_watching(&key);
                    return None;
                }
                if !self.pause(id, POLL) {
                    return None;
                }
                match session.refresh(&self.cluster) {
                    Ok(()) => continue,
                    Err(error) => {
                        let cause = ConnectionError::CouldntSetupConfiguration(error);
                        return Some(target.failed(cause));
                    }
                }
            }
            self.deliver(state, target, session, is_substitute, now);
            return None;
        }
    }

    /// Warns once if the name of a node that the cluster lists cannot be resolved.
    fn warn_of_name(&self, target: &Target, error: &Error) {
        let is_listed = self.iam.targets.iter().any(|listed| listed.key() == target.key());
        let is_unknown = matches!(error, Error::Resolve { .. })
            || matches!(error.refusal(), Some(Refusal::UnknownHost | Refusal::NoResolver));
        if is_unknown && !is_listed {
            self.cluster.report("name", || {
                format!("a node of the cluster is not used, because its name is unknown: {error}")
            });
        }
    }

    fn learn_nodes(&self, target: &Target, session: &mut Session, is_searching: bool) {
        if self.domains.is_empty() {
            return;
        }
        let must_be_new = is_searching || self.max_replica_lag.is_some();
        if self.cluster.is_due(must_be_new, Instant::now()) {
            let region = target.endpoint.region();
            session.within_limit(|connection| {
                self.cluster.fetch(connection, self.topology, &self.domains, region);
            });
        }
    }

    fn use_of(&self, node: Option<&str>, session: &Session) -> Use {
        let server = session.server.as_ref();
        // Each server that accepts writes is recorded, so that an older one is known.
        let writer = server.filter(|server| !server.in_recovery);
        let is_newest = self.cluster.is_newest(writer.and_then(|it| it.timeline), Instant::now());
        if self.role.fits(server) && is_newest && !self.is_behind(node) {
            return Use::Fits;
        }
        let may_be_writer = self.role == Role::PreferStandby && is_newest && writer.is_some();
        if may_be_writer { Use::Substitute } else { Use::No }
    }

    /// Returns the node that a connection leads to, if its lag matters.
    fn node_of(&self, target: &Target, session: &mut Session) -> Option<String> {
        if self.max_replica_lag.is_none() || !self.role.is_of_reader() {
            return None;
        }
        match target.is_alias() {
            true => session.node(),
            false => target.endpoint.host().split('.').next().map(str::to_owned),
        }
    }

    /// Whether this node is a reader that must not be used.
    fn is_behind(&self, node: Option<&str>) -> bool {
        let Some(label) = node else { return false };
        self.cluster.nodes().iter().any(|node| node.label == label && self.is_too_late(node))
    }

    fn other_role(&self, target: &Target) -> Error {
        let complaint = self.role.complaint().to_owned();
        let error = target.failed(ConnectionError::BadConnection(complaint));
        self.events.backoff.host_failed(&error);
        error
    }

    /// Whether the target is an endpoint that leads to a node, and the nodes are watched under
    /// their own names.
    fn is_superseded(&self, target: &Target) -> bool {
        target.is_alias()
            && !self.role.is_of_reader()
            && self.lock().has_another_hope(&target.key())
    }

    /// Waits. Returns `false` if the search has ended.
    fn pause(&self, search: u64, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if !state.is_wanted(search, now) {
                return false;
            }
            if now >= end {
                return true;
            }
            self.changed.wait_until(&mut state, end);
        }
    }

    /// Hands the connection to the threads that wait.
    fn deliver(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        target: &Arc<Target>,
        session: Session,
        is_substitute: bool,
        now: Instant,
    ) {
        let Session { mut connected, server } = session;
        connected.is_substitute = is_substitute;
        let search = state.found(target, now);
        if is_substitute {
            state.without_readers(now);
            state.prefer(target.clone());
        } else if self.role.is_of_reader() {
            state.has_readers();
        }
        if let (true, Some(took), Some(server)) = (self.role.is_of_writer(), search, server) {
            self.writer_found(&mut state, target, &server.id, took);
        }
        if self.follows_the_writer() {
            self.start_stall_check();
        }
        state.trust(self.events.generation.current());
        let number = state.arrive(connected);
        self.changed.notify_all();
        let end = now + LINGER;
        while state.is_there(number) && Instant::now() < end {
            self.changed.wait_until(&mut state, end);
        }
        let unused = state.take_back(number);
        drop(state);
        drop(unused);
    }

    /// Ends all connections to other servers: some threads may wait for an answer there.
    fn writer_found(
        &self,
        state: &mut State,
        target: &Arc<Target>,
        server: &ServerId,
        took: Duration,
    ) {
        let ended = match self.follows_the_writer() {
            true => self.events.sockets.abort_all_but(server),
            false => 0,
        };
        let is_another = state.preferred().is_none_or(|known| known.host != target.host);
        let level = if is_another && ended > 0 { log::Level::Warn } else { log::Level::Debug };
        log::log!(
            level,
            "the writer is {} (found after {took:.1?}; {ended} other connections are closed)",
            target.host
        );
        if !self.iam.conninfo.is_balanced || self.follows_the_writer() {
            state.prefer(target.clone());
        }
    }
}
