//! One node of a cluster: a server, and what the cluster knows about it.

use std::time::{Duration, SystemTime};

use diesel::dsl::sql;
use diesel::sql_types::Bool;
use diesel::{QueryResult, RunQueryDsl};
use parking_lot::Mutex;

use super::names::{address, identifier};
use crate::error::Error;
use crate::local::certificates::Certificates;
use crate::local::failed;
use crate::local::ldap::Listener;
use crate::local::server::{Access, Server};

/// What a node of a cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// It runs.
    Running,
    /// It was shut down, by [`LocalRds::stop`](crate::local::LocalRds::stop) or during a failover.
    Stopped,
    /// It was killed: its port refuses connections.
    Killed,
    /// It is frozen: its port accepts connections, and nothing answers.
    Frozen,
}

/// What the cluster knows about a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Status {
    pub(super) condition: Condition,
    /// Whether it follows another node, or will do so when it runs.
    pub(super) is_standby: bool,
    pub(super) lag: Duration,
    /// When condition or role last changed.
    pub(super) since: SystemTime,
}

pub(super) struct Node {
    pub(super) index: usize,
    pub(super) server: Server,
    // Dropped after the server.
    _ldap: Listener,
    status: Mutex<Status>,
}

impl Node {
    /// Creates a node without data, which does not run.
    pub(super) fn create(
        index: usize,
        port: u16,
        certificates: &Certificates,
        ldap: Listener,
    ) -> Result<Node, Error> {
        let access = Access::Node { name: identifier(index), address: address(index), port };
        let server = Server::create(certificates, ldap.port(), access)?;
        let status = Status {
            condition: Condition::Stopped,
            is_standby: index != 0,
            lag: Duration::ZERO,
            since: SystemTime::now(),
        };
        Ok(Node { index, server, _ldap: ldap, status: Mutex::new(status) })
    }

    pub(super) fn status(&self) -> Status {
        *self.status.lock()
    }

    pub(super) fn is_running(&self) -> bool {
        self.status().condition == Condition::Running
    }

    /// Whether it runs and follows another node.
    pub(super) fn is_reader(&self) -> bool {
        self.is_running() && self.status().is_standby
    }

    pub(super) fn set(&self, condition: Condition, is_standby: bool) {
        let mut status = self.status.lock();
        (status.condition, status.is_standby) = (condition, is_standby);
        status.since = SystemTime::now();
    }

    pub(super) fn set_condition(&self, condition: Condition) {
        self.set(condition, self.status().is_standby);
    }

    pub(super) fn set_lag(&self, lag: Duration) {
        self.status.lock().lag = lag;
    }

    /// Lets it follow `writer` after its next start or reload. WAL is replayed after `delay`.
    pub(super) fn follow(&self, writer: &Node, delay: Duration) -> Result<(), Error> {
        let primary = writer.server.primary_conninfo(&identifier(self.index));
        self.server.write_settings(&[
            ("primary_conninfo", primary),
            ("recovery_min_apply_delay", format!("{}ms", delay.as_millis())),
        ])
    }

    /// Lets each COMMIT of this writer wait for these nodes, after its next start or reload.
    pub(super) fn wait_for(&self, standbys: &[usize]) -> Result<(), Error> {
        let names: Vec<_> = standbys.iter().map(|it| format!("\"{}\"", identifier(*it))).collect();
        let names = match standbys.len() {
            0 => String::new(),
            count => format!("FIRST {count} ({})", names.join(", ")),
        };
        self.server.write_settings(&[("synchronous_standby_names", names)])
    }

    /// Starts it from the data that it has.
    pub(super) fn start(&self) -> Result<(), Error> {
        self.server.restart()?;
        self.set_condition(Condition::Running);
        Ok(())
    }

    /// Starts it as a standby with a new copy of the writer's data.
    pub(super) fn rebuild(&self, writer: &Node) -> Result<(), Error> {
        self.end();
        self.server.back_up(&writer.server)?;
        self.start_as_standby(writer)
    }

    /// Starts it as a standby from the data that it has.
    pub(super) fn start_as_standby(&self, writer: &Node) -> Result<(), Error> {
        self.server.mark_as_standby()?;
        self.follow(writer, Duration::ZERO)?;
        self.set(Condition::Stopped, true);
        self.start()
    }

    /// Ends it, also if it is frozen.
    pub(super) fn end(&self) {
        match self.status().condition {
            Condition::Frozen => self.server.kill(),
            _ => self.server.quit(),
        }
    }

    /// Asks the server a question whose answer is a boolean.
    pub(super) fn asks(&self, question: &str) -> Result<bool, Error> {
        let answer: QueryResult<bool> = sql::<Bool>(&format!("SELECT {question}"))
            .get_result(&mut self.server.superuser("postgres")?);
        answer.map_err(failed(format!("cannot ask {}", identifier(self.index))))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The shutdown of a frozen server would wait for its backends.
        self.end();
    }
}
