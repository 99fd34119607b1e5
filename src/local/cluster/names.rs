//! The names and addresses of a cluster, as RDS gives them.

use std::net::Ipv4Addr;

/// The highest number of a node: 127.0.0.254 is its address.
pub(super) const LAST_NODE: usize = 253;

/// Returns the identifier of a node.
pub(super) fn identifier(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// Returns the address on which a node listens.
pub(super) fn address(node: usize) -> Ipv4Addr {
    let last = u8::try_from(node.min(LAST_NODE) + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 0, 0, last)
}

/// The host names of the endpoints.
#[derive(Debug, Clone)]
pub(super) struct Names {
    region: String,
}

impl Names {
    pub(super) fn new(region: &str) -> Names {
        Names { region: region.to_ascii_lowercase() }
    }

    /// The endpoint of the writer.
    pub(super) fn cluster(&self) -> String {
        format!("local.cluster-{}", self.suffix())
    }

    /// The endpoint of the readers.
    pub(super) fn reader(&self) -> String {
        format!("local.cluster-ro-{}", self.suffix())
    }

    pub(super) fn node(&self, node: usize) -> String {
        format!("{}.{}", identifier(node), self.suffix())
    }

    /// What all endpoints end with.
    pub(super) fn suffix(&self) -> String {
        format!("localrds.{}.rds.amazonaws.com", self.region)
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }
}
