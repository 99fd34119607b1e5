//! The host, port and region that a token is signed for; what an AWS host name says of itself.

use std::fmt;

use super::host_name::{HostKind, HostName, is_region};
use crate::conninfo::invalid;
use crate::error::Error;

/// What a token is signed for: it opens this endpoint and no other.
///
/// This is the database's own name, as RDS knows it, not a CNAME for it, nor the near end of a
/// tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    region: String,
    service: Service,
}

/// Whose tokens an endpoint takes, by its name: they differ in form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Rds,
    Dsql,
}

impl Endpoint {
    /// The endpoint `host:port` in `region`. The host is lower-cased, and one trailing dot is
    /// dropped.
    ///
    /// # Errors
    /// When the host is no host name, the port is 0, or the region is not of the form `eu-west-1`.
    pub fn new(host: &str, port: u16, region: &str) -> Result<Endpoint, Error> {
        let name = HostName::parse(host)?;
        if port == 0 {
            return invalid("the port is 0; RDS for PostgreSQL listens on 5432 by default");
        }
        if !is_region(region) {
            return invalid(
                "the region is not of the form eu-west-1; give the code of the region that the database is in",
            );
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

    /// The code of the AWS region, as `eu-west-1`.
    pub fn region(&self) -> &str {
        &self.region
    }

    pub(crate) fn service(&self) -> Service {
        self.service
    }

    /// The host as a token names and signs it: with its port on RDS, without on DSQL.
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
    fn refuses_what_is_no_region() {
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
