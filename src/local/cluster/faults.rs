//! Nodes that fail, and that come back.

use std::time::Duration;

use super::Cluster;
use super::names::identifier;
use super::node::{Condition, Node};
use super::replication::disconnect;
use crate::error::Error;
use crate::local::failed;

impl Cluster {
    pub(in crate::local) fn kill(&self, node: usize) -> Result<(), Error> {
        let _turn = self.turn();
        let node = self.core.node(node)?;
        // One that is frozen is ended, too.
        node.server.kill();
        self.left(&node, Condition::Killed)
    }

    pub(in crate::local) fn freeze(&self, node: usize) -> Result<(), Error> {
        let _turn = self.turn();
        let node = self.core.node(node)?;
        expect(&node, Condition::Running, "cannot freeze a node")?;
        node.server.freeze();
        self.left(&node, Condition::Frozen)?;
        let writer = self.core.writer()?;
        if writer.is_running() && node.status().is_standby {
            disconnect(&writer, &node)?;
        }
        Ok(())
    }

    /// A replica that has left must not block the writer.
    fn left(&self, node: &Node, condition: Condition) -> Result<(), Error> {
        node.set_condition(condition);
        let writer = self.core.writer()?;
        if node.index != writer.index {
            self.core.synchronize(&writer)?;
        }
        self.core.publish()
    }

    pub(in crate::local) fn thaw(&self, node: usize) -> Result<(), Error> {
        let mut turn = self.turn();
        let node = self.core.node(node)?;
        expect(&node, Condition::Frozen, "cannot thaw a node")?;
        let writer = self.core.writer()?;
        node.server.thaw();
        node.set_condition(Condition::Running);
        if node.index == writer.index || (node.status().is_standby && writer.is_running()) {
            *turn = Some(self.core.finish(move |core| core.settle(&writer)));
        }
        self.core.publish()
    }

    pub(in crate::local) fn rejoin(&self, node: usize) -> Result<(), Error> {
        let _turn = self.turn();
        let node = self.core.node(node)?;
        let writer = self.core.writer()?;
        if node.index == writer.index {
            if node.is_running() {
                let text = format!("{} is the writer, and runs", identifier(node.index));
                return Err(failed("cannot rejoin a node")(text));
            }
            node.end();
            node.start()?;
        } else {
            let writer = self.core.running_writer()?;
            if !node.is_reader() {
                node.rebuild(&writer)?;
            }
        }
        self.core.settle(&writer)
    }

    pub(in crate::local) fn set_replica_lag(
        &self,
        node: usize,
        lag: Duration,
    ) -> Result<(), Error> {
        let _turn = self.turn();
        let node = self.core.node(node)?;
        let writer = self.core.writer()?;
        if !node.is_reader() {
            let text = format!("{} is not a replica that runs", identifier(node.index));
            return Err(failed("cannot set the lag")(text));
        }
        // PostgreSQL's limit, in milliseconds.
        let lag = lag.min(Duration::from_millis(i32::MAX as u64));
        node.set_lag(lag);
        node.follow(&writer, lag)?;
        node.server.reload();
        self.core.publish()
    }
}

fn expect(node: &Node, condition: Condition, step: &'static str) -> Result<(), Error> {
    let actual = node.status().condition;
    if actual == condition {
        return Ok(());
    }
    let (name, actual) = (identifier(node.index), format!("{actual:?}").to_lowercase());
    let wanted = format!("{condition:?}").to_lowercase();
    Err(failed(step)(format!("{name} is {actual}, not {wanted}")))
}
