//! [`Endpoint`]: the host, port and region that a token is signed for.

use std::fmt;

use super::host_name::{HostKind, HostName, is_region};
use crate::error::Error;

/// What a token is signed for. The token is valid for no other endpoint.
///
/// The host is the database's own name in RDS, not a CNAME or the local end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    name: HostName,
    port: u16,
    region: String,
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
        Ok(Endpoint { name, port, region: region.to_owned() })
    }

    /// The host name, in lower case and without a trailing dot.
    pub fn host(&self) -> &str {
        self.name.as_str()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The code of the AWS region, such as `eu-west-1`.
    pub fn region(&self) -> &str {
        &self.region
    }

    pub(crate) fn name(&self) -> &HostName {
        &self.name
    }

    /// Whether this is a cluster of Aurora DSQL, by its host name. Its tokens have another form.
    pub fn is_dsql(&self) -> bool {
        self.name.kind() == HostKind::Dsql
    }

    /// The name of the service in a token.
    pub(crate) fn service(&self) -> &'static str {
        if self.is_dsql() { "dsql" } else { "rds-db" }
    }

    /// Returns the host as it stands in a token: with the port for RDS, without it for DSQL.
    pub(crate) fn authority(&self) -> String {
        if self.is_dsql() { self.host().to_owned() } else { self.to_string() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port)
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
