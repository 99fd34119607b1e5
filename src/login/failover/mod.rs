//! [`Failover`]: logins with several hosts, or at a cluster whose nodes are known.
//!
//! In peace each login goes to one host. If that host fails, does not answer, or has another role,
//! a *search* starts: one thread for each host logs in there and watches the server's role. The
//! first server with the role ends the search. All threads that wait for a connection take part in
//! the same search.

mod hope;
mod role;
mod search;
mod stall;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::backoff::Backoff;
use super::topology::{Cluster, Domain, Node, domains, in_region_of_writer};
use super::{Connected, Iam, Target};
use crate::connection::{Generation, Sockets};
use crate::conninfo::Topology;
use crate::error::Error;
use crate::stats::Counters;
use hope::Hope;
pub(crate) use role::{Role, check_role};
pub(crate) use state::SUBSTITUTE_LIFETIME;
use state::{Own, State, Step};

/// The logins of one manager at several hosts.
pub(crate) struct Failover {
    iam: Arc<Iam>,
    topology: Topology,
    role: Role,
    max_replica_lag: Option<Duration>,
    cluster: Arc<Cluster>,
    domains: Vec<Domain>,
    events: Events,
    state: Mutex<State>,
    /// The process whose thread checks for a server that hangs.
    is_checking: AtomicU32,
    changed: Condvar,
}

/// What a login reads and reports.
pub(crate) struct Events {
    pub(crate) backoff: Arc<Backoff>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) generation: Arc<Generation>,
    pub(crate) sockets: Arc<Sockets>,
}

/// How often a waiting thread checks what is due.
const TICK: Duration = Duration::from_millis(50);

impl Failover {
    /// Returns `None` if there is one host only.
    pub(crate) fn new(
        iam: Arc<Iam>,
        topology: Topology,
        max_replica_lag: Option<Duration>,
        events: Events,
    ) -> Option<Arc<Failover>> {
        let domains = match topology {
            Topology::Off => Vec::new(),
            _ => domains(&iam.targets),
        };
        if topology != Topology::Off && domains.is_empty() {
            log::warn!(
                "topology has no effect, because no host is an endpoint of a cluster: name the \
                 cluster's endpoint, or set iam_host"
            );
        }
        let cluster = match domains.is_empty() {
            true if iam.targets.len() == 1 => return None,
            true => Cluster::unknown(),
            false => Cluster::of(&iam.targets[0].endpoint),
        };
        // Each endpoint of DSQL accepts writes.
        let role = match iam.conninfo.is_dsql {
            true => Role::Any,
            false => Role::parse(iam.conninfo.target_session_attrs()).unwrap_or(Role::Any),
        };
        let listed = iam.targets.iter().map(Target::key).collect();
        Some(Arc::new(Failover {
            role,
            cluster,
            iam,
            topology,
            max_replica_lag,
            domains,
            events,
            state: Mutex::new(State::new(listed)),
            is_checking: AtomicU32::new(0),
            changed: Condvar::new(),
        }))
    }

    /// Whether the cluster has one writer, and the open connections are those to it.
    pub(crate) fn follows_the_writer(&self) -> bool {
        self.role.is_of_writer() && !self.domains.is_empty()
    }

    /// Logs in at a host with the role. Waits until there is one, or until `patience` is over. If
    /// no host can be reached, only a patient caller waits.
    ///
    /// # Errors
    /// - The failures of all hosts, if none of them can change soon.
    /// - [`Error::PoolClosed`] if `is_cancelled`.
    pub(crate) fn connect(
        self: &Arc<Self>,
        patience: impl Fn() -> Duration,
        is_patient: bool,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Connected, Error> {
        let (mut state, started) = (self.lock(), Instant::now());
        let least = if is_patient { Hope::Later } else { Hope::Soon };
        let (mut own, joined) = (Own::default(), state.join());
        let outcome = loop {
            if let Some(connected) = state.take_arrival() {
                break Ok(connected);
            }
            let now = Instant::now();
            if is_cancelled() {
                break Err(Error::PoolClosed);
            }
            if let Some(error) = state.failure_of(joined) {
                break Err(error);
            }
            if now >= started + patience() {
                break Err(state.take_failures(&self.events.backoff));
            }
            let generation = self.events.generation.current();
            match state.next_step(self.role, generation, least, &mut own, now) {
                Step::Attempt => self.attempt(&mut state, now),
                Step::Search => self.search(&mut state, now),
                Step::Wait => {}
                Step::GiveUp => {
                    state.give_up();
                    self.changed.notify_all();
                    continue;
                }
            }
            if state.has_arrivals() {
                continue;
            }
            if state.is_to_be_reported(now) {
                self.report_late();
            }
            self.changed.wait_until(&mut state, now + TICK);
        };
        state.leave();
        outcome
    }

    /// In a pool, the error of the login itself comes later.
    fn report_late(&self) {
        if let Some(last) = self.events.backoff.last_error() {
            log::error!("no host can be used since 10 s: {}", last.text);
        }
    }

    fn has_several_hosts(&self) -> bool {
        self.iam.targets.len() > 1 || !self.cluster.nodes().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.check_process();
        state
    }

    /// Starts a login at the host that probably has the role.
    fn attempt(self: &Arc<Self>, state: &mut State, now: Instant) {
        let Some(target) = self.preferred(state, now) else { return };
        let key = target.key();
        // Those of a search that has ended serve the waiting threads, too.
        if state.has_enough_attempts(&key) {
            return;
        }
        state.attempt_started(&key);
        self.start_watch(state, target, None);
    }

    /// Starts what is due in a search: first the preferred host alone, then all others.
    fn search(self: &Arc<Self>, state: &mut State, now: Instant) {
        if !state.is_searching() {
            let first = self.preferred(state, now).map(|target| target.key());
            state.start_search(first, now);
        }
        let targets = self.targets(state, now);
        for (key, id) in state.due(targets.keys(), now) {
            if let Some(target) = targets.get(&key) {
                state.attempt_started(&key);
                self.start_watch(state, target.clone(), Some(id));
            }
        }
    }

    /// Returns the host to try first.
    fn preferred(&self, state: &mut State, now: Instant) -> Option<Arc<Target>> {
        if self.role.is_of_reader() && !state.is_without_readers(now) {
            let readers = self.readers();
            let keys: Vec<&String> = readers.keys().collect();
            if let Some(key) = state.next_reader(&keys, now) {
                return readers.get(&key).cloned();
            }
        }
        if let Some(target) = state.preferred() {
            return Some(target);
        }
        let first = *self.iam.targets_in_order().first()?;
        in_region_of_writer(first, &self.cluster.nodes()).ok().map(Arc::new)
    }

    /// Returns the nodes that can be readers, by their keys.
    fn readers(&self) -> BTreeMap<String, Arc<Target>> {
        let nodes = self.cluster.nodes().into_iter();
        let readers = nodes.filter(|node| node.is_writer != Some(true) && !self.is_too_late(node));
        let targets = readers.filter_map(|node| self.target_of(&node));
        targets.map(|target| (target.key(), target)).collect()
    }

    /// Whether the lag of the node exceeds the maximum.
    fn is_too_late(&self, node: &Node) -> bool {
        self.max_replica_lag.is_some_and(|max| node.lag > Some(max))
    }

    /// Returns all hosts, by their keys: the nodes, and the hosts of the connection string. An
    /// endpoint that leads to one of the known nodes is tried only if it is preferred, or if no
    /// node can get the role.
    fn targets(&self, state: &State, now: Instant) -> BTreeMap<String, Arc<Target>> {
        let nodes = self.cluster.nodes();
        let of_nodes: Vec<_> = nodes.iter().filter_map(|node| self.target_of(node)).collect();
        let are_without_hope = state.is_without_hope(now);
        let listed = self.iam.targets.iter().filter(|target| {
            let is_first = state.is_first(&target.key());
            is_first || of_nodes.is_empty() || !target.is_alias() || are_without_hope
        });
        let listed = listed.filter_map(|it| in_region_of_writer(it, &nodes).ok().map(Arc::new));
        let all = of_nodes.iter().cloned().chain(listed).chain(state.preferred());
        all.map(|target| (target.key(), target)).collect()
    }

    /// A node that the connection string names is dialled as it says there.
    fn target_of(&self, node: &Node) -> Option<Arc<Target>> {
        let target = node.target(&self.domains, &self.iam.targets[0])?;
        let listed = self.iam.targets.iter().find(|listed| listed.endpoint == target.endpoint);
        Some(Arc::new(listed.cloned().unwrap_or(target)))
    }
}
