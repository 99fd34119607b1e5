//! The commands that `rds-iam local --replicas` reads on standard input.

use std::io::{self, BufRead, Write};
use std::sync::{Arc, Weak};

use diesel_rds_iam::local::{LocalRds, NodeStatus};

pub(crate) const COMMANDS: &str =
    "status, failover [NODE], kill NODE, freeze NODE, thaw NODE, rejoin NODE";

/// Executes the commands in a thread, until the end of standard input or of the cluster.
pub(crate) fn read_commands(rds: &Arc<LocalRds>) {
    // The thread may still wait for a line when the cluster is dropped.
    let rds = Arc::downgrade(rds);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if answer(&rds, line.trim()).is_none() {
                return;
            }
        }
    });
}

/// Executes a command and prints the answer. Returns `None` if the cluster or the output is closed.
fn answer(rds: &Weak<LocalRds>, command: &str) -> Option<()> {
    if command.is_empty() {
        return Some(());
    }
    let rds = rds.upgrade()?;
    let answer = execute(&rds, command).unwrap_or_else(|error| format!("error: {error}"));
    writeln!(io::stdout(), "{answer}").ok()
}

fn execute(rds: &LocalRds, command: &str) -> Result<String, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let (done, what) = match *words.as_slice() {
        ["status"] => return Ok(status(rds)),
        ["failover"] => {
            let statuses = rds.node_statuses();
            let next = statuses.iter().find(|it| is_running(it) && it.is_replica);
            let next = next.ok_or("no replica runs; use rejoin or thaw first")?;
            return execute(rds, &format!("failover {}", next.identifier));
        }
        ["failover", node] => (rds.failover(number(rds, node)?), "is the writer"),
        ["kill", node] => (rds.kill(number(rds, node)?), "is killed"),
        ["freeze", node] => (rds.freeze(number(rds, node)?), "is frozen"),
        ["thaw", node] => (rds.thaw(number(rds, node)?), "is running"),
        ["rejoin", node] => {
            let number = number(rds, node)?;
            let joined = rds.rejoin(number);
            (joined, if number == rds.writer() { "is the writer" } else { "is a replica" })
        }
        _ => return Err(format!("unknown command: {command}; use one of: {COMMANDS}")),
    };
    let node = words.last().unwrap_or(&"");
    done.map(|()| format!("{node} {what}")).map_err(|error| error.to_string())
}

fn number(rds: &LocalRds, node: &str) -> Result<usize, String> {
    let statuses = rds.node_statuses();
    let found = statuses.iter().find(|status| status.identifier == node);
    let names: Vec<&str> = statuses.iter().map(|status| status.identifier.as_str()).collect();
    found
        .map(|status| status.node)
        .ok_or_else(|| format!("there is no node {node}; use one of: {}", names.join(", ")))
}

fn status(rds: &LocalRds) -> String {
    let line = |status: &NodeStatus| {
        let condition = format!("{:?}", status.condition).to_lowercase();
        let role = match (status.is_writer, status.is_replica) {
            (true, _) => "writer",
            (_, true) => "replica",
            _ => "former writer",
        };
        format!("{} {} {condition} {role}", status.identifier, status.address)
    };
    rds.node_statuses().iter().map(line).collect::<Vec<_>>().join("\n")
}

fn is_running(status: &NodeStatus) -> bool {
    status.condition == diesel_rds_iam::local::Condition::Running
}
