//! A [`LocalRds`](super::LocalRds) with replicas: several servers with streaming replication.

mod api;
mod dns;
mod failover;
mod faults;
mod history;
mod members;
mod names;
mod node;
mod replication;
mod start;
mod topology;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Mutex, MutexGuard};

pub use api::NodeStatus;
use dns::{Dns, Updates};
use history::Roles;
use names::{Names, address, identifier};
pub use node::Condition;
use node::Node;
pub(super) use start::{MOST_REPLICAS, Settings};

use super::certificates::{Authority, Certificates};
use super::folder::Folder;
use super::judge::{Entrance, Judge};
use super::ldap::Listener;
use super::process::Watchdog;
use super::{LOCALHOST, failed};
use crate::error::Error;
use crate::token::Endpoint;

/// The nodes, and what they share.
pub(super) struct Cluster {
    core: Arc<Core>,
    /// Locked during each operation. The thread ends what the last operation left to do.
    turn: Mutex<Option<JoinHandle<()>>>,
    _updates: Updates,
}

/// What the threads of a cluster share.
struct Core {
    members: Mutex<Members>,
    port: u16,
    names: Names,
    judge: Arc<Judge>,
    dns: Arc<Dns>,
    authority: Mutex<Authority>,
    authority_name: String,
    /// Further names in each certificate.
    certificate_names: Vec<String>,
    ca_file: PathBuf,
    has_ended: AtomicBool,
    // Removes the folder when it is dropped.
    _watchdog: Watchdog,
    folder: Folder,
}

struct Members {
    nodes: BTreeMap<usize, Arc<Node>>,
    writer: usize,
    /// The number of the node that is added next. Numbers are not used again.
    next: usize,
}

impl Cluster {
    /// Starts an operation: waits until the last one has ended completely.
    fn turn(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        let mut turn = self.turn.lock();
        if let Some(thread) = turn.take() {
            let _ = thread.join();
        }
        turn
    }

    pub(super) fn port(&self) -> u16 {
        self.core.port
    }

    pub(super) fn ca_file(&self) -> &Path {
        &self.core.ca_file
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.core.has_ended.store(true, Ordering::SeqCst);
        drop(self.turn());
        let nodes = self.core.nodes();
        std::thread::scope(|scope| {
            nodes.iter().for_each(|node| {
                scope.spawn(|| node.end());
            });
        });
    }
}

impl Core {
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.members.lock().nodes.values().cloned().collect()
    }

    fn node(&self, index: usize) -> Result<Arc<Node>, Error> {
        let node = self.members.lock().nodes.get(&index).cloned();
        node.ok_or_else(|| failed("the cluster lacks this node")(format!("node {index}")))
    }

    fn writer(&self) -> Result<Arc<Node>, Error> {
        let writer = self.members.lock().writer;
        self.node(writer)
    }

    /// Returns the writer if it runs.
    fn running_writer(&self) -> Result<Arc<Node>, Error> {
        let writer = self.writer()?;
        if writer.is_running() {
            return Ok(writer);
        }
        let text = format!("{} is not running; call failover first", identifier(writer.index));
        Err(failed("the cluster has no writer")(text))
    }

    /// Returns the nodes that run and follow another node.
    fn readers(&self) -> Vec<Arc<Node>> {
        self.nodes().into_iter().filter(|node| node.is_reader()).collect()
    }

    /// Updates what clients see: the names, the file of hosts, and the functions of AWS.
    fn publish(&self) -> Result<(), Error> {
        let (nodes, writer) = (self.nodes(), self.members.lock().writer);
        self.write_topology(&nodes, writer)?;
        let readers = nodes.iter().filter(|node| node.is_reader()).map(|node| node.index).collect();
        self.dns.set(nodes.iter().map(|node| node.index).collect(), Roles { writer, readers });
        Ok(())
    }

    fn write_topology(&self, nodes: &[Arc<Node>], writer: usize) -> Result<(), Error> {
        let text = topology::text(nodes.iter().map(Arc::as_ref), writer);
        self.folder.write_for_server(topology::FILE, text.as_bytes()).map(drop)
    }

    /// Creates a node without data.
    fn create_node(&self, index: usize) -> Result<Node, Error> {
        let hosts = [self.names.node(index), self.names.reader()];
        let region = self.names.region();
        let endpoints: Result<Vec<Endpoint>, Error> =
            hosts.iter().map(|host| Endpoint::new(host, self.port, region)).collect();
        let entrance = Entrance { node: index, endpoints: endpoints? };
        let ldap = Listener::start(self.judge.clone(), entrance)?;
        let certificates = self.certificates(&self.authority.lock(), index)?;
        Node::create(index, self.port, &certificates, ldap)
    }

    fn certificates(&self, authority: &Authority, node: usize) -> Result<Certificates, Error> {
        let own = [self.names.node(node), self.names.cluster(), self.names.reader()];
        let names = [own.as_slice(), &[LOCALHOST.to_owned()], &self.certificate_names].concat();
        authority.issue(&names, address(node))
    }
}
