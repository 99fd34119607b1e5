//! [`Target`]: a host to dial, and the endpoint to sign for.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use crate::conninfo::Host;
use crate::error::{EndpointKind, Error, LoginContext, Method};
use crate::token::{Endpoint, HostKind, HostName};

/// A host to dial, and the endpoint that its token is signed for.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) user: String,
    pub(crate) host: Host,
    pub(crate) endpoint: Endpoint,
    #[cfg_attr(not(feature = "doctor"), expect(dead_code, reason = "only the doctor reports it"))]
    pub(crate) region_from: RegionFrom,
}

/// Where the region of a token comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RegionFrom {
    Setting,
    HostName,
    Configuration,
}

impl fmt::Display for RegionFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegionFrom::Setting => "region_name",
            RegionFrom::HostName => "the host name",
            RegionFrom::Configuration => "AWS_REGION or the AWS profile",
        })
    }
}

/// libpq's `hostaddr`: the addresses to dial instead of resolving `host`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Hostaddr {
    /// libpq resolves the host.
    Unset,
    /// As the user gave it.
    Given(String),
    Resolved(Vec<IpAddr>),
}

impl Hostaddr {
    /// Returns libpq's `host` for these addresses: the name once for each.
    pub(crate) fn host_list(&self, name: &str) -> String {
        let count = if let Hostaddr::Resolved(addresses) = self { addresses.len() } else { 1 };
        vec![name; count].join(",")
    }
}

impl fmt::Display for Hostaddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hostaddr::Unset => Ok(()),
            Hostaddr::Given(address) => f.write_str(address),
            Hostaddr::Resolved(addresses) => {
                let shown: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                f.write_str(&shown.join(","))
            }
        }
    }
}

impl Target {
    /// Whether the dialled name is not the endpoint's: a CNAME, a tunnel, a port forward.
    pub(crate) fn dials_another_name(&self) -> bool {
        !HostName::parse(&self.host.name).is_ok_and(|name| name.as_str() == self.endpoint.host())
    }

    /// Returns the addresses to dial. libpq checks the certificate against the endpoint's name, so
    /// another dialled name is resolved here.
    pub(crate) fn hostaddr(&self, is_balanced: bool) -> Result<Hostaddr, Error> {
        if let Some(address) = &self.host.hostaddr {
            return Ok(Hostaddr::Given(address.clone()));
        }
        if !is_balanced && !self.dials_another_name() {
            return Ok(Hostaddr::Unset);
        }
        let resolved = self.host.resolve();
        let mut addresses =
            resolved.map_err(|error| Error::resolve(&self.host.name, self.context(), error))?;
        if is_balanced {
            fastrand::shuffle(&mut addresses);
        }
        Ok(Hostaddr::Resolved(addresses))
    }

    pub(crate) fn context(&self) -> LoginContext {
        let kind = HostName::parse(self.endpoint.host()).map_or(HostKind::Other, |it| it.kind());
        let endpoint = match kind {
            HostKind::Proxy | HostKind::ProxyEndpoint => EndpointKind::Proxy,
            HostKind::Dsql => EndpointKind::Dsql,
            HostKind::Other => EndpointKind::Other,
            _ => EndpointKind::Rds,
        };
        LoginContext { method: Method::Token, endpoint }
    }
}

impl Host {
    /// Returns the name, or the address if no name is given.
    pub(crate) fn dialled(&self) -> &str {
        if self.name.is_empty() { self.hostaddr.as_deref().unwrap_or_default() } else { &self.name }
    }

    /// Resolves the name. Each address appears once.
    pub(crate) fn resolve(&self) -> io::Result<Vec<IpAddr>> {
        let addresses = (self.name.as_str(), self.port).to_socket_addrs()?;
        let mut seen = BTreeSet::new();
        Ok(addresses.map(|address| address.ip()).filter(|ip| seen.insert(*ip)).collect())
    }
}

/// `HOST:PORT`, as it is dialled.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dialled(), self.port)
    }
}

/// `USER@HOST:PORT`, and the endpoint if that has another name.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { user, host, endpoint, .. } = self;
        write!(f, "{user}@{host}")?;
        if self.dials_another_name() {
            write!(f, " (signed for {endpoint})")?;
        }
        Ok(())
    }
}
