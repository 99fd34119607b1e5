//! [`Endpoint`]: the host, port and region that a token is signed for.

use std::fmt;

use super::host_name::{HostKind, HostName, is_region};
use crate::error::Error;

/// What a token is signed for. The token is valid for no other endpoint.
///
/// The host is the database's own name in RDS, not a CNAME or the local end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
    region: String,
    service: Service,
}

/// The service that an endpoint belongs to, by its name. Their tokens differ in form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    Rds,
    Dsql,
}

pub(crate) const NOT_A_REGION: &str =
    "the region is not of the form eu-west-1; set it to the code of the database's region";

impl Endpoint {
    /// Makes the endpoint `host:port` in `region`. The host is converted to lower case, and one
    /// trailing dot is removed.
    ///
    /// # Errors
    /// [`Error::Config`] if the host is not a host name, the port is 0, or the region is not of the
    /// form `eu-west-1`.
    pub fn new(host: &str, port: u16, region: &str) -> Result<Endpoint, Error> {
        let name = HostName::parse(host).map_err(|reason| Error::Config(reason.to_owned()))?;
        if port == 0 {
            return Err(Error::Config("the port is 0; RDS for PostgreSQL listens on 5432".into()));
        }
        if !is_region(region) {
            return Err(Error::Config(NOT_A_REGION.into()));
        }
        let service = if name.kind() == HostKind::Dsql { Service::Dsql } else { Service::Rds };
        Ok(Endpoint { host: name.as_str().to_owned(), port, region: region.to_owned(), service })
    }

    /// The host name, in lower case and without a trailing dot.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The code of the AWS region, such as `eu-west-1`.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether this is a cluster of Aurora DSQL, by its host name.
    pub fn is_dsql(&self) -> bool {
        self.service == Service::Dsql
    }

    pub(crate) fn service(&self) -> Service {
        self.service
    }

    /// Returns the host as it stands in a token: with the port for RDS, without it for DSQL.
    pub(crate) fn authority(&self) -> String {
        match self.service {
            Service::Rds => self.to_string(),
            Service::Dsql => self.host.clone(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_a_region() {
        for region in [
            "",
            "eu",
            "eu-west",
            "EU-WEST-1",
            "eu-west-1/x",
            "eu--1",
            "us east 1",
            "regional-west-1",
        ] {
            assert!(Endpoint::new("localhost", 5432, region).is_err(), "{region}");
        }
        assert!(Endpoint::new("localhost", 0, "eu-west-1").is_err());
    }
}
