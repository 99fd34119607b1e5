//! [`Target`]: a host to dial, and the endpoint to sign for.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use diesel::ConnectionError;

use crate::conninfo::Host;
use crate::error::{Error, LoginKind};
use crate::token::{Endpoint, HostKind, HostName};

/// Returns the addresses of a host name, in place of the system's resolver.
pub(crate) type Resolver = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// A host to dial, and the endpoint that its token is signed for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) user: String,
    pub(crate) host: Host,
    pub(crate) endpoint: Endpoint,
    pub(crate) region_from: RegionFrom,
}

/// Where the region of a token comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RegionFrom {
    Setting,
    HostName,
    Configuration,
}

impl Target {
    /// Distinguishes the target from others, also from one with the same name and another address.
    pub(crate) fn key(&self) -> String {
        format!("{self} {}", self.host.hostaddr.as_deref().unwrap_or_default())
    }

    /// Whether the dialled name is not the endpoint's: a CNAME, a tunnel, a port forward.
    pub(crate) fn dials_another_name(&self) -> bool {
        HostName::parse(&self.host.name).as_ref() != Ok(self.endpoint.name())
    }

    /// Returns libpq's `hostaddr` for each address to dial: empty if libpq resolves the host.
    /// libpq checks the certificate against the endpoint's name, so another dialled name is
    /// resolved here, and so is each name if there is a resolver.
    pub(crate) fn addresses(
        &self,
        is_balanced: bool,
        resolver: Option<&Resolver>,
    ) -> Result<Vec<String>, Error> {
        let is_for_libpq = !is_balanced && resolver.is_none() && !self.dials_another_name();
        if self.host.hostaddr.is_some() || is_for_libpq {
            return Ok(vec![self.host.hostaddr.clone().unwrap_or_default()]);
        }
        let resolved = match resolver {
            Some(resolve) => resolve(&self.host.name),
            None => self.host.resolve(),
        };
        let resolved = resolved.and_then(|addresses| match addresses.is_empty() {
            true => Err(io::Error::other("the name has no addresses")),
            false => Ok(addresses),
        });
        let mut addresses =
            resolved.map_err(|error| Error::resolve(&self.host.name, self.login(), error))?;
        if is_balanced {
            fastrand::shuffle(&mut addresses);
        }
        Ok(addresses.iter().map(IpAddr::to_string).collect())
    }

    /// Returns what an endpoint of a cluster is for, as `target_session_attrs`.
    pub(crate) fn default_role(&self) -> Option<&'static str> {
        match self.endpoint.name().kind() {
            HostKind::Writer | HostKind::GlobalWriter => Some("read-write"),
            HostKind::Reader => Some("prefer-standby"),
            _ => None,
        }
    }

    /// Whether the endpoint is not that of one node, but leads to one.
    pub(crate) fn is_alias(&self) -> bool {
        use HostKind::{Custom, GlobalWriter, Reader, Writer};
        matches!(self.endpoint.name().kind(), Writer | Reader | Custom | GlobalWriter)
    }

    /// Returns the error of a login here.
    pub(super) fn failed(&self, cause: ConnectionError) -> Error {
        Error::connect(self.to_string(), self.login(), cause)
    }

    pub(crate) fn login(&self) -> LoginKind {
        match self.endpoint.name().kind() {
            HostKind::Proxy | HostKind::ProxyEndpoint => LoginKind::Proxy,
            HostKind::Dsql => LoginKind::Dsql,
            HostKind::Other => LoginKind::Other,
            _ => LoginKind::Rds,
        }
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

/// `USER@HOST:PORT`, and the endpoint if that has another name or port.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { user, host, endpoint, .. } = self;
        write!(f, "{user}@{host}")?;
        if self.dials_another_name() || host.port != endpoint.port() {
            write!(f, " (signed for {endpoint})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_resolver_is_asked_unless_there_is_an_address() {
        let target = |hostaddr: Option<&str>| Target {
            user: "app".into(),
            host: Host { name: "db".into(), hostaddr: hostaddr.map(str::to_owned), port: 5432 },
            endpoint: Endpoint::new("db", 5432, "eu-west-1").unwrap(),
            region_from: RegionFrom::Setting,
        };
        let resolver = |addresses: &'static [Ipv4Addr]| -> Resolver {
            Arc::new(move |name| {
                assert_eq!(name, "db");
                Ok(addresses.iter().copied().map(IpAddr::V4).collect())
            })
        };
        let two = resolver(&[Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]);
        let addresses = |target: Target, resolver| target.addresses(false, resolver);
        assert_eq!(addresses(target(None), None).unwrap(), [""]);
        assert_eq!(addresses(target(None), Some(&two)).unwrap(), ["127.0.0.1", "0.0.0.0"]);
        assert_eq!(addresses(target(Some("10.0.0.1")), Some(&two)).unwrap(), ["10.0.0.1"]);
        let error = addresses(target(None), Some(&resolver(&[]))).unwrap_err().to_string();
        assert!(
            error.contains("cannot resolve host name \"db\": the name has no addresses"),
            "{error}"
        );
    }
}
