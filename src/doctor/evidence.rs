//! [`Evidence`]: what the steps before found out.

use std::net::IpAddr;

use crate::login::{RegionFrom, Target};
use crate::token::{Endpoint, HostKind, HostName};

/// What is known of a host and of the login there, beside what went wrong. No secret is among it.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) user: String,
    /// What is dialled: a name, or the address where that is all that is given.
    pub(super) host: String,
    pub(super) port: u16,
    /// What the token is signed for.
    pub(super) endpoint: Endpoint,
    pub(super) region_from: RegionFrom,
    /// The account of the credentials, where they tell it.
    pub(super) account: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    /// The names behind the one that is dialled: CNAMEs, then those in the server's certificate.
    pub(super) names: Vec<String>,
    /// In bytes.
    pub(super) token_length: usize,
}

impl Evidence {
    pub(super) fn new(target: &Target) -> Evidence {
        Evidence {
            user: target.user.clone(),
            host: target.host.dialled().to_owned(),
            port: target.host.port,
            endpoint: target.endpoint.clone(),
            region_from: target.region_from,
            account: None,
            addresses: Vec::new(),
            names: Vec::new(),
            token_length: 0,
        }
    }

    /// What the endpoint's name tells of it.
    pub(super) fn kind(&self) -> HostKind {
        HostName::parse(self.endpoint.host()).map_or(HostKind::Other, |name| name.kind())
    }

    /// The first label of the endpoint's name: the identifier of the instance, the cluster or the
    /// proxy.
    pub(super) fn name(&self) -> &str {
        self.endpoint.host().split('.').next().unwrap_or_default()
    }

    /// The names of RDS endpoints that are not the one signed for, but may be meant.
    pub(super) fn endpoints_behind(&self) -> Vec<&str> {
        let is_endpoint = |name: &&str| {
            HostName::parse(name).is_ok_and(|name| {
                name.kind() != HostKind::Other && name.as_str() != self.endpoint.host()
            })
        };
        let mut behind: Vec<&str> = Vec::new();
        for name in self.names.iter().map(|name| name.trim_end_matches('.')).filter(is_endpoint) {
            if !behind.contains(&name) {
                behind.push(name);
            }
        }
        behind
    }

    /// The region in the endpoint's name, where it is another than the one signed for.
    pub(super) fn other_region(&self) -> Option<String> {
        let name = HostName::parse(self.endpoint.host()).ok()?;
        name.region().filter(|told| *told != self.endpoint.region()).map(str::to_owned)
    }

    /// A tunnel or a port forward begins on this machine.
    pub(super) fn is_on_this_machine(&self) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(IpAddr::is_loopback)
    }

    /// Addresses that only the VPC, and what is joined to it, can reach.
    pub(super) fn is_private(&self) -> bool {
        let is_private = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.is_private(),
            IpAddr::V6(address) => address.is_unique_local(),
        };
        !self.addresses.is_empty() && self.addresses.iter().all(is_private)
    }
}

#[cfg(test)]
impl Evidence {
    /// All in order, and dialled by its own name.
    pub(super) fn of_host(host: &str) -> Evidence {
        let region = HostName::parse(host).unwrap().region().unwrap_or("eu-west-1").to_owned();
        Evidence {
            user: "app".into(),
            host: host.into(),
            port: 5432,
            endpoint: Endpoint::new(host, 5432, &region).unwrap(),
            region_from: RegionFrom::HostName,
            account: None,
            addresses: Vec::new(),
            names: Vec::new(),
            token_length: 400,
        }
    }
}
