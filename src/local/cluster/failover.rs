//! Changes of the writer, and the replicas that follow the new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::names::identifier;
use super::node::{Condition, Node};
use super::replication::{
    FOLLOW_TIMEOUT, TIMEOUT, are_in_sync, follows, position, promote, wait_for,
};
use super::{Cluster, Core};
use crate::error::Error;
use crate::local::failed;

impl Cluster {
    pub(in crate::local) fn failover(&self, target: usize) -> Result<(), Error> {
        let mut turn = self.turn();
        let core = &self.core;
        let (old, new) = (core.writer()?, core.node(target)?);
        if !new.is_reader() {
            let text = format!("{} is not a replica that runs", identifier(target));
            return Err(failed("cannot fail over")(text));
        }
        let is_planned = old.is_running();
        if is_planned {
            // A replica that has just lost its connection would lack rows.
            let end = position(&old)?;
            let what = format!("the replication to {}", identifier(target));
            wait_for(TIMEOUT, &what, || follows(&old, &new, &end))?;
            old.server.stop();
            old.set(Condition::Stopped, true);
        }
        if let Err(error) = core.promote(&old, &new) {
            if is_planned {
                old.set(Condition::Stopped, false);
                old.start()?;
            }
            return Err(error);
        }
        *turn = Some(core.finish(move |core| core.follow(&new, is_planned.then_some(&*old))));
        Ok(())
    }
}

impl Core {
    fn promote(&self, old: &Node, new: &Node) -> Result<(), Error> {
        promote(new)?;
        // Until the replicas follow it. They would otherwise block each COMMIT.
        new.wait_for(&[])?;
        new.set_lag(Duration::ZERO);
        new.set(Condition::Running, false);
        // Its last report is now, if it is frozen or killed.
        old.set_condition(old.status().condition);
        self.members.lock().writer = new.index;
        self.publish()
    }

    /// Does the rest of an operation in a thread. The next operation waits for it.
    pub(super) fn finish(
        self: &Arc<Self>,
        rest: impl FnOnce(&Core) -> Result<(), Error> + Send + 'static,
    ) -> JoinHandle<()> {
        let core = self.clone();
        std::thread::spawn(move || {
            if let Err(error) = rest(&core)
                && !core.has_ended.load(Ordering::SeqCst)
            {
                log::warn!("LocalRds could not complete a change of its cluster: {error}");
            }
        })
    }

    /// Lets all replicas follow a new writer, and starts the old one as a replica.
    fn follow(&self, writer: &Node, old: Option<&Node>) -> Result<(), Error> {
        for node in self.nodes() {
            // One that is frozen reads its settings when it continues.
            if node.status().is_standby && node.index != writer.index {
                node.follow(writer, Duration::ZERO)?;
                node.server.reload();
            }
        }
        if let Some(old) = old {
            old.start_as_standby(writer)?;
        }
        self.settle(writer)
    }

    /// Waits until all replicas that run follow the writer, and each COMMIT waits for them. A
    /// replica that cannot follow gets a new copy of the data.
    pub(super) fn settle(&self, writer: &Node) -> Result<(), Error> {
        let end = position(writer)?;
        for node in self.readers() {
            let what = format!("the replication to {}", identifier(node.index));
            let followed = || match self.has_ended.load(Ordering::SeqCst) {
                true => Err(failed("the cluster is not ready")("it is dropped")),
                false => follows(writer, &node, &end),
            };
            if wait_for(FOLLOW_TIMEOUT, &what, followed).is_err() {
                node.rebuild(writer)?;
                wait_for(TIMEOUT, &what, followed)?;
            }
        }
        self.synchronize(writer)?;
        for node in self.readers() {
            let lag = node.status().lag;
            if !lag.is_zero() {
                node.follow(writer, lag)?;
                node.server.reload();
            }
        }
        self.publish()
    }

    /// Lets each COMMIT of the writer wait for exactly the replicas that run.
    pub(super) fn synchronize(&self, writer: &Node) -> Result<(), Error> {
        let readers: Vec<usize> = self.readers().iter().map(|node| node.index).collect();
        writer.wait_for(&readers)?;
        writer.server.reload();
        if readers.is_empty() || !writer.is_running() {
            return Ok(());
        }
        // Rows that were committed before this are on all replicas, too.
        let end = position(writer)?;
        wait_for(TIMEOUT, "synchronous replication", || are_in_sync(writer, &readers, &end))
    }
}
