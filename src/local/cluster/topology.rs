//! The functions of AWS by which a client finds the nodes, and the file that they read.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::names::{Names, identifier};
use super::node::{Condition, Node};
use crate::token::hex;

/// The file in the folder of the cluster.
pub(super) const FILE: &str = "topology";

/// Returns the statements that create the functions.
pub(super) fn functions(file: &Path, names: &Names) -> String {
    include_str!("functions.sql")
        .replace("@TOPOLOGY@", &hex(file.as_os_str().as_encoded_bytes()))
        .replace("@REGION@", names.region())
        .replace("@SUFFIX@", &names.suffix())
}

/// Returns the contents of the file: a line for each node with its identifier, its role, its lag in
/// milliseconds, and the time of its last report unless it reports now.
pub(super) fn text<'a>(nodes: impl Iterator<Item = &'a Node>, writer: usize) -> String {
    let line = |node: &Node| {
        let status = node.status();
        let is_writer = node.index == writer;
        let role = if is_writer { "writer" } else { "reader" };
        let reports = status.condition == Condition::Running && (status.is_standby || is_writer);
        let last = if reports { String::new() } else { seconds(status.since) };
        let lag = status.lag.as_secs_f64() * 1000.0;
        format!("{}\t{role}\t{lag}\t{last}\n", identifier(node.index))
    };
    nodes.map(line).collect()
}

fn seconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64().to_string()
}
