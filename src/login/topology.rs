//! [`Cluster`]: the nodes of a cluster, as its servers list them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::sql_types::{Bool, Double, Integer, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};
use parking_lot::Mutex;

use super::target::Target;
use crate::conninfo::{Host, Topology};
use crate::error::{Error, one_line};
use crate::token::{Endpoint, HostKind};

/// What is known of a cluster. All managers of the process share it.
#[derive(Default)]
pub(super) struct Cluster(Mutex<State>);

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    fetched: Option<Instant>,
    /// Each problem is reported once.
    reported: BTreeSet<&'static str>,
    /// The newest timeline of a writer, and when it was last seen.
    timeline: Option<(i64, Instant)>,
    /// Aurora does not support the functions for the write-ahead log. Its storage accepts one
    /// writer only.
    lacks_timeline: bool,
}

/// A server of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// The first label of its name.
    pub(super) label: String,
    pub(super) region: String,
    /// `None` if it is that of the cluster.
    port: Option<u16>,
    /// `None` if the cluster does not say so.
    pub(super) is_writer: Option<bool>,
    pub(super) lag: Option<Duration>,
}

/// Where the names of nodes come from: an endpoint of the connection string.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Domain {
    /// What follows the first label.
    name: String,
    region: String,
    port: u16,
    signed_port: u16,
}

/// The list is refreshed with a login after this time.
const MAX_AGE: Duration = Duration::from_secs(30);
/// The same in a search, and if readers are chosen by their lag.
const SHORT_MAX_AGE: Duration = Duration::from_secs(1);

/// Aurora has at most 16 nodes in a region.
const MOST_NODES: usize = 32;

/// For how long an older timeline is refused. A cluster that was restored to an earlier time can
/// have one.
const TIMELINE_MEMORY: Duration = Duration::from_secs(15 * 60);

/// A node that was not updated for 5 minutes is gone.
const AURORA: &str = "SELECT server_id::text, session_id::text = 'MASTER_SESSION_ID', \
    replica_lag_in_msec::float8, NULL::text, NULL::int FROM aurora_replica_status() \
    WHERE session_id = 'MASTER_SESSION_ID' OR last_update_timestamp IS NULL \
    OR last_update_timestamp > now() - interval '5 minutes'";
const AURORA_GLOBAL: &str = "SELECT server_id::text, session_id::text = 'MASTER_SESSION_ID', \
    visibility_lag_in_msec::float8, aws_region::text, NULL::int \
    FROM aurora_global_db_instance_status()";
/// The argument names the client.
const MULTI_AZ: &str = "SELECT endpoint::text, NULL::bool, NULL::float8, NULL::text, port::int \
    FROM rds_tools.show_topology('diesel-rds-iam')";
const MULTI_AZ_WITHOUT_ARGUMENT: &str = "SELECT endpoint::text, NULL::bool, NULL::float8, \
    NULL::text, port::int FROM rds_tools.show_topology()";

type Columns =
    (Nullable<Text>, Nullable<Bool>, Nullable<Double>, Nullable<Text>, Nullable<Integer>);
type Row = (Option<String>, Option<bool>, Option<f64>, Option<String>, Option<i32>);

impl Cluster {
    /// Returns the cluster of this endpoint.
    pub(super) fn of(endpoint: &Endpoint) -> Arc<Cluster> {
        static ALL: Mutex<BTreeMap<String, Weak<Cluster>>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock();
        all.retain(|_, cluster| cluster.strong_count() > 0);
        let key = key(endpoint);
        if let Some(cluster) = all.get(&key).and_then(Weak::upgrade) {
            return cluster;
        }
        let cluster = Arc::<Cluster>::default();
        all.insert(key, Arc::downgrade(&cluster));
        cluster
    }

    /// The hosts are not known to be of one cluster, so their timelines cannot be compared.
    pub(super) fn unknown() -> Arc<Cluster> {
        let state = State { lacks_timeline: true, ..State::default() };
        Arc::new(Cluster(Mutex::new(state)))
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        self.0.lock().nodes.clone()
    }

    /// Whether a login is to ask for the nodes. If so, no other login asks at the same time.
    pub(super) fn is_due(&self, must_be_new: bool, now: Instant) -> bool {
        let mut state = self.0.lock();
        let max_age = if must_be_new { SHORT_MAX_AGE } else { MAX_AGE };
        let is_due = state.fetched.is_none_or(|at| now.duration_since(at) >= max_age);
        if is_due {
            state.fetched = Some(now);
        }
        is_due
    }

    /// Asks a server for the nodes. If it does not answer, those that are known remain.
    pub(super) fn fetch(
        &self,
        connection: &mut PgConnection,
        topology: Topology,
        domains: &[Domain],
        region: &str,
    ) {
        let is_global = domains.iter().any(|domain| domain.region != region);
        let queries: &[&str] = match topology {
            Topology::MultiAz => &[MULTI_AZ, MULTI_AZ_WITHOUT_ARGUMENT],
            _ if is_global => &[AURORA_GLOBAL, AURORA],
            _ => &[AURORA],
        };
        match first_answer(connection, queries) {
            Ok(rows) => self.learn(rows, domains, region),
            Err(error) => {
                let error = one_line(&error.to_string());
                self.report("fetch", || {
                    format!(
                        "the cluster does not list its nodes, so only the hosts of the connection \
                         string are used: {error}; set topology for the kind of cluster, or off"
                    )
                });
            }
        }
    }

    fn learn(&self, rows: Vec<Row>, domains: &[Domain], region: &str) {
        let count = rows.len();
        let nodes: Vec<Node> =
            rows.into_iter().filter_map(|row| Node::from_row(row, domains, region)).collect();
        if nodes.len() < count {
            self.report("domain", || {
                let left_out = count - nodes.len();
                format!(
                    "the cluster lists nodes outside of its domain, which are not used \
                     ({left_out} of {count}); name an endpoint of each region in the connection \
                     string"
                )
            });
        }
        let nodes = self.limited(nodes);
        let mut state = self.0.lock();
        if state.nodes != nodes {
            log::debug!("the cluster has {} nodes", nodes.len());
        }
        state.nodes = nodes;
    }

    /// Each node gets a login in a failover, at the same time.
    fn limited(&self, mut nodes: Vec<Node>) -> Vec<Node> {
        let count = nodes.len();
        nodes.sort_by_key(|node| node.is_writer != Some(true));
        nodes.truncate(MOST_NODES);
        if count > MOST_NODES {
            self.report("count", || {
                format!("the cluster lists {count} nodes, of which {MOST_NODES} are used")
            });
        }
        nodes
    }

    /// Warns of each problem once.
    pub(super) fn report(&self, problem: &'static str, text: impl FnOnce() -> String) {
        if self.0.lock().reported.insert(problem) {
            log::warn!("{}", text());
        }
    }

    pub(super) fn has_timeline(&self) -> bool {
        !self.0.lock().lacks_timeline
    }

    pub(super) fn lacks_timeline(&self) {
        self.0.lock().lacks_timeline = true;
    }

    /// Records the timeline of a server that accepts writes. Returns `false` if a newer writer is
    /// known: this one was cut off, and does not know that it was replaced.
    pub(super) fn is_newest(&self, timeline: Option<i64>, now: Instant) -> bool {
        let Some(timeline) = timeline else { return true };
        let mut state = self.0.lock();
        if let Some((newest, seen)) = state.timeline
            && timeline < newest
            && now.duration_since(seen) < TIMELINE_MEMORY
        {
            return false;
        }
        state.timeline = Some((timeline, now));
        true
    }
}

/// The writer's and the readers' endpoint of a cluster have the same key.
fn key(endpoint: &Endpoint) -> String {
    let name = endpoint.name();
    match (name.kind(), name.node_domain()) {
        (HostKind::Writer | HostKind::Reader, Some(domain)) => {
            let label = name.as_str().split('.').next().unwrap_or_default();
            format!("{label} {domain}:{}", endpoint.port())
        }
        _ => endpoint.authority(),
    }
}

/// A query that a server does not know is followed by the next one.
fn first_answer(connection: &mut PgConnection, queries: &[&str]) -> QueryResult<Vec<Row>> {
    let mut last = Ok(Vec::new());
    for query in queries {
        last = sql::<Columns>(query).get_results(connection);
        if last.is_ok() {
            break;
        }
    }
    last
}

impl Node {
    /// Returns `None` if the node is not one of these domains.
    fn from_row(row: Row, domains: &[Domain], region: &str) -> Option<Node> {
        let (name, is_writer, lag, aws_region, port) = row;
        let name = name?.to_ascii_lowercase();
        let (label, region) = match name.split_once('.') {
            Some((label, rest)) => {
                let domain = domains.iter().find(|domain| domain.name == rest)?;
                (label, domain.region.clone())
            }
            None => (name.as_str(), aws_region.unwrap_or_else(|| region.to_owned())),
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if label.is_empty() || label.len() > 63 || !label.bytes().all(fits) {
            return None;
        }
        domains.iter().find(|domain| domain.region == region)?;
        let port = port.map(u16::try_from).transpose().ok()?.filter(|port| *port > 0);
        let lag = lag.and_then(|ms| Duration::try_from_secs_f64(ms / 1_000.0).ok());
        Some(Node { label: label.to_owned(), region, port, is_writer, lag })
    }

    /// Returns how to log in at this node.
    pub(super) fn target(&self, domains: &[Domain], like: &Target) -> Option<Target> {
        let domain = domains.iter().find(|domain| domain.region == self.region)?;
        let name = format!("{}.{}", self.label, domain.name);
        let signed_port = self.port.unwrap_or(domain.signed_port);
        let endpoint = Endpoint::new(&name, signed_port, &self.region).ok()?;
        let port = self.port.unwrap_or(domain.port);
        let host = Host { name, hostaddr: None, port };
        Some(Target { user: like.user.clone(), host, endpoint, region_from: like.region_from })
    }
}

/// Returns the domains of the endpoints in the connection string, one for each region.
pub(super) fn domains(targets: &[Target]) -> Vec<Domain> {
    let mut domains: Vec<Domain> = Vec::new();
    for target in targets {
        let Some(name) = target.endpoint.name().node_domain() else { continue };
        let region = target.endpoint.region().to_owned();
        if domains.iter().all(|domain| domain.region != region) {
            let (port, signed_port) = (target.host.port, target.endpoint.port());
            domains.push(Domain { name: name.to_owned(), region, port, signed_port });
        }
    }
    domains
}

/// Returns the endpoint of a global database, signed for the region of its writer.
pub(super) fn in_region_of_writer(target: &Target, nodes: &[Node]) -> Result<Target, Error> {
    let writer = nodes.iter().find(|node| node.is_writer == Some(true));
    let region = match writer {
        Some(writer) if target.endpoint.name().kind() == HostKind::GlobalWriter => &writer.region,
        _ => target.endpoint.region(),
    };
    let endpoint = Endpoint::new(target.endpoint.host(), target.endpoint.port(), region)?;
    Ok(Target { endpoint, ..target.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::target::RegionFrom;

    const SUFFIX: &str = "abc123.eu-west-1.rds.amazonaws.com";

    fn target(name: &str, region: &str) -> Target {
        let host = Host { name: name.into(), hostaddr: None, port: 5432 };
        let endpoint = Endpoint::new(name, 5432, region).unwrap();
        Target { user: "app".into(), host, endpoint, region_from: RegionFrom::HostName }
    }

    fn row(name: &str) -> Row {
        (Some(name.into()), Some(false), Some(15.5), None, None)
    }

    #[test]
    fn only_nodes_of_the_domain_are_used() {
        let cluster = target(&format!("c.cluster-{SUFFIX}"), "eu-west-1");
        let domains = domains(&[target(&format!("x.{SUFFIX}"), "eu-west-1")]);
        let cases = [
            ("node-2", Some("node-2")),
            ("NODE-2", Some("node-2")),
            (&format!("node-2.{SUFFIX}"), Some("node-2")),
            ("node-2.abc123.eu-west-1.rds.amazonaws.com.evil.example", None),
            ("evil.example", None),
            ("node-2.other1.eu-west-1.rds.amazonaws.com", None),
            ("node-2/..", None),
            ("node-2:1@evil", None),
            ("10.0.0.1", None),
            ("", None),
            (".", None),
            (&"n".repeat(64), None),
        ];
        for (name, label) in cases {
            let node = Node::from_row(row(name), &domains, "eu-west-1");
            assert_eq!(node.as_ref().map(|node| node.label.as_str()), label, "{name}");
            let Some(node) = node else { continue };
            let target = node.target(&domains, &cluster).unwrap();
            assert_eq!(target.endpoint.host(), format!("node-2.{SUFFIX}"));
            assert_eq!(node.lag, Some(Duration::from_micros(15_500)));
        }
    }

    #[test]
    fn ports_and_lags_that_cannot_be_are_left_out() {
        let domains = domains(&[target(&format!("c.cluster-{SUFFIX}"), "eu-west-1")]);
        let node = |lag, port| {
            let row = (Some("a".into()), None, lag, None, port);
            Node::from_row(row, &domains, "eu-west-1")
        };
        assert_eq!(node(Some(-1.0), None).unwrap().lag, None);
        assert_eq!(node(Some(f64::NAN), None).unwrap().lag, None);
        assert_eq!(node(None, Some(0)).unwrap().port, None);
        assert_eq!(node(None, Some(6543)).unwrap().port, Some(6543));
        assert_eq!(node(None, Some(65_536)), None);
        assert_eq!(node(None, Some(-1)), None);
    }

    #[test]
    fn a_node_of_a_global_database_has_the_domain_of_its_region() {
        let names = [
            ("c.cluster-abc123.eu-west-1.rds.amazonaws.com", "eu-west-1"),
            ("c.cluster-xyz789.us-east-1.rds.amazonaws.com", "us-east-1"),
        ];
        let targets = names.map(|(name, region)| target(name, region));
        let domains = domains(&targets);
        let in_region = |region: &str| {
            let row = (Some("a".into()), Some(true), None, Some(region.into()), None);
            let node = Node::from_row(row, &domains, "eu-west-1")?;
            let target = node.target(&domains, &targets[0])?;
            Some((target.endpoint.host().to_owned(), target.endpoint.region().to_owned()))
        };
        let expected = ("a.xyz789.us-east-1.rds.amazonaws.com".to_owned(), "us-east-1".to_owned());
        assert_eq!(in_region("us-east-1"), Some(expected));
        assert_eq!(in_region("us-east-2"), None, "no endpoint of this region is known");
        let global = target("g.global-abc.global.rds.amazonaws.com", "eu-west-1");
        let row = (Some("a".into()), Some(true), None, Some("us-east-1".into()), None);
        let writer = Node::from_row(row, &domains, "eu-west-1").unwrap();
        assert_eq!(in_region_of_writer(&global, &[writer]).unwrap().endpoint.region(), "us-east-1");
        assert_eq!(in_region_of_writer(&global, &[]).unwrap().endpoint.region(), "eu-west-1");
    }

    #[test]
    fn writer_and_readers_share_a_cluster_and_other_clusters_do_not() {
        let endpoint = |name: &str, port| Endpoint::new(name, port, "eu-west-1").unwrap();
        let [writer, reader, other] =
            ["c.cluster-", "c.cluster-ro-", "d.cluster-"].map(|name| format!("{name}{SUFFIX}"));
        let cluster = Cluster::of(&endpoint(&writer, 5432));
        assert!(Arc::ptr_eq(&cluster, &Cluster::of(&endpoint(&reader, 5432))));
        for other in [endpoint(&other, 5432), endpoint(&writer, 5433)] {
            assert!(!Arc::ptr_eq(&cluster, &Cluster::of(&other)));
        }
    }

    #[test]
    fn an_older_timeline_is_refused_until_the_newer_one_is_forgotten() {
        let (cluster, now) = (Cluster::default(), Instant::now());
        assert!(cluster.is_newest(None, now) && cluster.is_newest(Some(2), now));
        let just_before = now + TIMELINE_MEMORY - Duration::from_nanos(1);
        assert!(!cluster.is_newest(Some(1), just_before));
        assert!(cluster.is_newest(Some(2), now) && cluster.is_newest(None, now));
        assert!(cluster.is_newest(Some(1), now + TIMELINE_MEMORY));
    }

    #[test]
    fn a_list_that_is_too_long_is_cut_behind_its_writer() {
        let domains = domains(&[target(&format!("c.cluster-{SUFFIX}"), "eu-west-1")]);
        let reader = |i: usize| row(&format!("node-{i}"));
        let mut rows: Vec<Row> = (0..MOST_NODES).map(reader).collect();
        let cluster = Cluster::default();
        cluster.learn(rows.clone(), &domains, "eu-west-1");
        assert_eq!(cluster.nodes().len(), MOST_NODES);
        rows.push((Some("writer".into()), Some(true), None, None, None));
        cluster.learn(rows, &domains, "eu-west-1");
        assert_eq!(cluster.nodes().len(), MOST_NODES);
        assert_eq!(cluster.nodes()[0].label, "writer");
    }

    #[test]
    fn the_list_is_asked_for_once_in_its_time() {
        let (cluster, now) = (Cluster::default(), Instant::now());
        assert!(cluster.is_due(false, now) && !cluster.is_due(false, now));
        assert!(!cluster.is_due(true, now + SHORT_MAX_AGE - Duration::from_nanos(1)));
        assert!(cluster.is_due(true, now + SHORT_MAX_AGE));
        assert!(!cluster.is_due(false, now + SHORT_MAX_AGE + MAX_AGE - Duration::from_nanos(1)));
        assert!(cluster.is_due(false, now + SHORT_MAX_AGE + MAX_AGE));
    }
}
