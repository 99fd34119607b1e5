//! The methods of [`LocalRds`] for clusters.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use diesel::PgConnection;

use super::Cluster;
use super::names::{address, identifier};
use super::node::Condition;
use crate::error::Error;
use crate::local::{LOCALHOST, LocalRds, Servers, failed};
use crate::token::encode;

/// A node of a cluster, as [`LocalRds::node_statuses`] returns it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The number of the node.
    pub node: usize,
    /// The identifier, such as `node-1` for node 0.
    pub identifier: String,
    /// The address on which it listens.
    pub address: IpAddr,
    /// Whether it is the writer of the cluster.
    pub is_writer: bool,
    /// Whether it follows the writer, or will do so when it runs. A former writer does not until
    /// [`rejoin`](LocalRds::rejoin).
    pub is_replica: bool,
    /// What it does.
    pub condition: Condition,
    /// The lag set by [`set_replica_lag`](LocalRds::set_replica_lag).
    pub lag: Duration,
}

/// Methods for clusters, which [`Builder::replicas`](crate::local::Builder::replicas) starts.
///
/// Nodes are numbered from 0, and the first writer is node 0. Node 0 has the identifier `node-1`.
/// Without replicas there is only node 0, and the operations on nodes fail with [`Error::Local`].
///
/// An operation that is called during another one waits for it. Each COMMIT waits until all
/// replicas that run have written it, so no row is lost when the writer is killed. Replicas that
/// were killed, frozen or removed with these methods are not waited for.
impl LocalRds {
    /// Makes a replica the writer, and returns when it accepts writes.
    ///
    /// A writer that runs is shut down first, and is started again as a replica. A writer that is
    /// killed or frozen is left as it is. The other replicas follow the new writer. This happens in
    /// a thread after the return; the next operation waits until it is done. The new writer does
    /// not wait for a replica before that replica follows.
    ///
    /// A replica with a [lag](Self::set_replica_lag) replays everything first, and has no lag
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::Local`] if the node is not a replica that runs, or if PostgreSQL fails.
    pub fn failover(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.failover(node)
    }

    /// Kills all processes of a node with SIGKILL. Its port refuses connections.
    ///
    /// # Errors
    /// [`Error::Local`] if the node does not exist.
    pub fn kill(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.kill(node)
    }

    /// Stops all processes of a node with SIGSTOP. The kernel still accepts connections and data,
    /// but nothing answers.
    ///
    /// # Errors
    /// [`Error::Local`] if the node does not run.
    pub fn freeze(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.freeze(node)
    }

    /// Continues a frozen node as what it was. A replica follows the current writer.
    ///
    /// If there was a failover meanwhile, a former writer is a second writer: it answers, and
    /// executes statements that write. Its COMMIT waits for the replicas that it had, and they do
    /// not follow it any more. A session with `synchronous_commit = local` does not wait. What it
    /// has written is lost with [`rejoin`](Self::rejoin).
    ///
    /// # Errors
    /// [`Error::Local`] if the node is not frozen.
    pub fn thaw(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.thaw(node)
    }

    /// Makes a node that was killed or frozen, or a former writer, a replica of the current writer,
    /// and returns when it has all rows. It gets a new copy of the writer's data. Does nothing if
    /// the node is a replica that runs.
    ///
    /// If the node still is the cluster's writer, it is started again as the writer.
    ///
    /// # Errors
    /// [`Error::Local`] if the node is a writer that runs, if the writer does not run, or if
    /// PostgreSQL fails.
    pub fn rejoin(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.rejoin(node)
    }

    /// Adds a replica, waits until it has all rows, and returns its number. The numbers of removed
    /// nodes are not used again.
    ///
    /// # Errors
    /// [`Error::Local`] if the port is in use on the new address, if the writer does not run, or if
    /// PostgreSQL fails.
    pub fn add_replica(&self) -> Result<usize, Error> {
        self.cluster()?.add_replica()
    }

    /// Ends a node for ever. Its name no longer leads to an address, and AWS' functions no longer
    /// return it.
    ///
    /// # Errors
    /// [`Error::Local`] if the node does not exist or is the writer.
    pub fn remove(&self, node: usize) -> Result<(), Error> {
        self.cluster()?.remove(node)
    }

    /// Delays what a replica replays by this time, and lets `aurora_replica_status()` report it.
    /// The limit is 24 days. A failover and a restart of the cluster replay everything, and set the
    /// delay again afterwards.
    ///
    /// Defaults to no delay, and a reported lag of 0.
    ///
    /// # Errors
    /// [`Error::Local`] if the node is not a replica that runs.
    pub fn set_replica_lag(&self, node: usize, lag: Duration) -> Result<(), Error> {
        self.cluster()?.set_replica_lag(node, lag)
    }

    /// Connects to a node as superuser without TLS and token. Changes are possible on the writer
    /// only.
    ///
    /// # Errors
    /// [`Error::Local`] if the connection fails: for a frozen node after 10 s.
    pub fn superuser_of(&self, node: usize) -> Result<PgConnection, Error> {
        match &self.servers {
            Servers::One(one) if node == 0 => one.server.superuser(Self::DATABASE),
            _ => self.cluster()?.core.node(node)?.server.superuser(Self::DATABASE),
        }
    }

    /// Returns the number of the node that is the cluster's writer, even if it does not run.
    pub fn writer(&self) -> usize {
        self.cluster().map_or(0, |cluster| cluster.core.members.lock().writer)
    }

    /// Returns the numbers of all nodes that were not removed.
    pub fn nodes(&self) -> Vec<usize> {
        self.cluster()
            .map_or(vec![0], |cluster| cluster.core.members.lock().nodes.keys().copied().collect())
    }

    /// Returns what the nodes do. Without replicas the result is empty.
    pub fn node_statuses(&self) -> Vec<NodeStatus> {
        let Ok(cluster) = self.cluster() else { return Vec::new() };
        let writer = self.writer();
        let nodes = cluster.core.nodes().into_iter();
        nodes
            .map(|node| {
                let status = node.status();
                NodeStatus {
                    node: node.index,
                    identifier: identifier(node.index),
                    address: address(node.index).into(),
                    is_writer: node.index == writer,
                    is_replica: status.is_standby,
                    condition: status.condition,
                    lag: status.lag,
                }
            })
            .collect()
    }

    /// Returns the addresses of a host name, as the cluster's DNS.
    ///
    /// - The name of a node always leads to its own address.
    /// - The endpoint of the cluster leads to the node that was the writer one
    ///   [`dns_lag`](crate::local::Builder::dns_lag) ago.
    /// - The reader endpoint leads to the replicas that ran one `dns_lag` ago, in random order, or
    ///   to the writer if there was none.
    /// - `localhost` leads to 127.0.0.1. So does the endpoint's host without replicas.
    ///
    /// Managers of [`manager_builder`](Self::manager_builder) of a cluster use it.
    ///
    /// # Errors
    /// If the name is unknown, or is that of a removed node.
    pub fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match &self.servers {
            Servers::Cluster(cluster) => cluster.core.dns.resolve(name),
            Servers::One(_) => {
                let known = [LOCALHOST, self.judge.endpoint().host()]
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(name));
                let unknown = || io::Error::new(io::ErrorKind::NotFound, "unknown host name");
                known.then(|| vec![Ipv4Addr::LOCALHOST.into()]).ok_or_else(unknown)
            }
        }
    }

    /// Returns the path of a file in the format of /etc/hosts with the current answers of
    /// [`resolve`](Self::resolve), for programs in other languages.
    ///
    /// The file is changed in place, so it can be mounted over /etc/hosts. Without replicas it is
    /// /etc/hosts itself.
    pub fn hosts_file(&self) -> &Path {
        match &self.servers {
            Servers::Cluster(cluster) => cluster.core.dns.hosts_file(),
            Servers::One(_) => Path::new("/etc/hosts"),
        }
    }

    /// Returns the connection string of [`USER`](Self::USER) with the endpoint of the cluster. Its
    /// host must be resolved by [`resolve`](Self::resolve) or [`hosts_file`](Self::hosts_file).
    /// Without replicas it is [`database_url`](Self::database_url).
    pub fn cluster_url(&self) -> String {
        self.url_of_host(|cluster| cluster.core.names.cluster())
    }

    /// As [`cluster_url`](Self::cluster_url), with the reader endpoint.
    pub fn reader_url(&self) -> String {
        self.url_of_host(|cluster| cluster.core.names.reader())
    }

    /// As [`cluster_url`](Self::cluster_url), with the endpoint of a node.
    pub fn node_url(&self, node: usize) -> String {
        self.url_of_host(|cluster| cluster.core.names.node(node))
    }

    fn url_of_host(&self, host: impl FnOnce(&Cluster) -> String) -> String {
        match &self.servers {
            Servers::One(_) => self.database_url(),
            Servers::Cluster(cluster) => {
                let (user, host, port) = (encode(Self::USER), host(cluster), self.port());
                let region = cluster.core.names.region();
                let hosts = format!("{host}:{port}");
                format!("{}&region_name={region}", self.url_with(&user, &hosts, ""))
            }
        }
    }

    /// Returns the cluster, or an error for a single server.
    fn cluster(&self) -> Result<&Cluster, Error> {
        match &self.servers {
            Servers::Cluster(cluster) => Ok(cluster),
            Servers::One(_) => {
                let text = "it was started without replicas; call replicas of its builder";
                Err(failed("the LocalRds is not a cluster")(text))
            }
        }
    }
}

impl Cluster {
    pub(in crate::local) fn superuser(&self, database: &str) -> Result<PgConnection, Error> {
        self.core.writer()?.server.superuser(database)
    }

    /// Returns a function that resolves names also after the end of the cluster.
    pub(in crate::local) fn resolver(
        &self,
    ) -> impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static {
        let dns = self.core.dns.clone();
        move |name| dns.resolve(name)
    }

    /// Returns the nodes' host names with the port, and their addresses, as in libpq's lists.
    pub(in crate::local) fn hosts(&self) -> (String, String) {
        let (names, port) = (&self.core.names, self.core.port);
        let nodes = self.core.nodes();
        let hosts = nodes.iter().map(|node| format!("{}:{port}", names.node(node.index)));
        let addresses = nodes.iter().map(|node| address(node.index).to_string());
        (hosts.collect::<Vec<_>>().join(","), addresses.collect::<Vec<_>>().join(","))
    }
}
