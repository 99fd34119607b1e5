//! Operations on the set of nodes, and on all nodes.

use std::sync::Arc;

use super::Cluster;
use super::names::{LAST_NODE, identifier};
use super::node::{Condition, Node};
use crate::error::Error;
use crate::local::certificates::Authority;
use crate::local::failed;

impl Cluster {
    pub(in crate::local) fn add_replica(&self) -> Result<usize, Error> {
        let _turn = self.turn();
        let core = &self.core;
        let writer = core.running_writer()?;
        let index = core.members.lock().next;
        if index > LAST_NODE {
            let text = format!("the numbers up to {LAST_NODE} are used");
            return Err(failed("cannot add a replica")(text));
        }
        let node = Arc::new(core.create_node(index)?);
        node.rebuild(&writer)?;
        let mut members = core.members.lock();
        members.nodes.insert(index, node);
        members.next += 1;
        drop(members);
        core.settle(&writer)?;
        Ok(index)
    }

    pub(in crate::local) fn remove(&self, index: usize) -> Result<(), Error> {
        let _turn = self.turn();
        let core = &self.core;
        let (node, writer) = (core.node(index)?, core.writer()?);
        if index == writer.index {
            let text = format!("{} is the writer; call failover first", identifier(index));
            return Err(failed("cannot remove a node")(text));
        }
        core.members.lock().nodes.remove(&index);
        core.publish()?;
        core.synchronize(&writer)?;
        node.end();
        Ok(())
    }

    pub(in crate::local) fn stop(&self) {
        let _turn = self.turn();
        self.stop_all();
        if let Err(error) = self.core.publish() {
            log::warn!("LocalRds could not publish that it is stopped: {error}");
        }
    }

    /// Stops the nodes that run.
    fn stop_all(&self) {
        let (writers, readers): (Vec<_>, Vec<_>) = self
            .core
            .nodes()
            .into_iter()
            .filter(|node| node.is_running())
            .partition(|node| !node.status().is_standby);
        // The writer first, so that the others have all of its WAL.
        for nodes in [writers, readers] {
            std::thread::scope(|scope| {
                nodes.iter().for_each(|node| {
                    scope.spawn(|| {
                        node.server.stop();
                        node.set_condition(Condition::Stopped);
                    });
                });
            });
        }
    }

    pub(in crate::local) fn restart(&self) -> Result<(), Error> {
        let _turn = self.turn();
        self.stop_all();
        let core = &self.core;
        let writer = core.writer()?;
        let is_stopped = |node: &Node| node.status().condition == Condition::Stopped;
        if is_stopped(&writer) {
            writer.wait_for(&[])?;
            writer.start()?;
        }
        let (others, stale): (Vec<_>, Vec<_>) = core
            .nodes()
            .into_iter()
            .filter(|node| is_stopped(node))
            .partition(|node| node.status().is_standby);
        stale.iter().try_for_each(|node| node.start())?;
        start_standbys(&others, &writer)?;
        if writer.is_running() { core.settle(&writer) } else { core.publish() }
    }

    pub(in crate::local) fn rotate_certificate(&self) -> Result<Vec<u8>, Error> {
        let _turn = self.turn();
        let core = &self.core;
        core.running_writer()?;
        let authority = Authority::new(&core.authority_name)?;
        let mut root = Vec::new();
        for node in core.nodes() {
            let certificates = core.certificates(&authority, node.index)?;
            match node.is_running() {
                true => node.server.set_certificate(&certificates)?,
                false => {
                    node.server.write_certificate(&certificates)?;
                    node.server.reload();
                }
            }
            root = certificates.authority;
        }
        *core.authority.lock() = authority;
        Ok(root)
    }
}

/// Starts standbys at the same time, from the data that they have.
pub(super) fn start_standbys(nodes: &[Arc<Node>], writer: &Node) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let starts: Vec<_> =
            nodes.iter().map(|node| scope.spawn(|| node.start_as_standby(writer))).collect();
        starts.into_iter().try_for_each(|start| match start.join() {
            Ok(started) => started,
            Err(_) => Err(failed("cannot start the nodes")("a thread panicked")),
        })
    })
}
