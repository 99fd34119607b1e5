//! A login: a new token for the host that is dialled, and patience with a server that is about to
//! be back.

pub(crate) mod backoff;
#[cfg_attr(not(target_os = "linux"), path = "ca_bundle_elsewhere.rs")]
pub(crate) mod ca_bundle;
mod round;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_smithy_async::time::SharedTimeSource;
use diesel::{Connection, PgConnection};

use crate::conninfo::{Host, IamConninfo};
use crate::credentials::CredentialsCache;
use crate::error::Error;
use crate::login::ca_bundle::Roots;
use crate::token::{AuthToken, Endpoint, HostName, presign};
use round::{Hosts, Note};

pub(crate) enum Login {
    /// With a token of its own for each connection.
    Iam(Box<Iam>),
    /// `rds_iam_auth=false`: the connection string for libpq.
    Password { conninfo: String, connect_timeout: Option<Duration> },
}

/// How to log in by token.
pub(crate) struct Iam {
    pub(crate) conninfo: IamConninfo,
    /// In the order of the connection string.
    pub(crate) targets: Vec<Target>,
    pub(crate) credentials: Arc<CredentialsCache>,
    pub(crate) time_source: SharedTimeSource,
    pub(crate) roots: Option<Roots>,
}

/// A host to dial, and the endpoint that its token is signed for.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) user: String,
    pub(crate) host: Host,
    pub(crate) endpoint: Endpoint,
    #[cfg_attr(not(feature = "doctor"), expect(dead_code, reason = "the doctor alone tells it"))]
    pub(crate) region_from: RegionFrom,
}

/// What told the region that tokens are signed for.
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

/// r2d2 has three threads for all of a pool's work, and a waiter is to learn the cause within
/// connection_timeout.
const PATIENCE: Duration = Duration::from_secs(10);

impl Login {
    /// Tries again at once what may be mended at any moment: r2d2 would wait for up to half its
    /// connection_timeout. Not after a login was refused, which counts against the server's limits.
    /// `note` hears of each login.
    pub(crate) fn connect(&self, note: &Note<'_>) -> Result<PgConnection, Error> {
        self.connect_within(self.patience(), note)
    }

    /// Each host once.
    #[cfg(feature = "doctor")]
    pub(crate) fn connect_once(&self) -> Result<PgConnection, Error> {
        self.connect_within(Duration::ZERO, &|_| {})
    }

    fn connect_within(&self, patience: Duration, note: &Note<'_>) -> Result<PgConnection, Error> {
        let mut hosts = match self {
            Login::Iam(iam) => Hosts::new(iam.targets.len(), note),
            Login::Password { .. } => Hosts::new(1, note),
        };
        let deadline = Instant::now() + patience;
        loop {
            let connected = match self {
                Login::Iam(iam) => iam.go_round(&mut hosts)?,
                Login::Password { conninfo, .. } => {
                    hosts.attempt(0, || establish("the database without IAM", conninfo))?
                }
            };
            match connected {
                Some(connection) => return Ok(connection),
                None if hosts.may_change() && Instant::now() + round::PAUSE < deadline => {
                    thread::sleep(round::PAUSE)
                }
                None => return Err(hosts.into_error()),
            }
        }
    }

    fn patience(&self) -> Duration {
        let connect_timeout = match self {
            Login::Iam(iam) => iam.conninfo.connect_timeout(),
            Login::Password { connect_timeout, .. } => *connect_timeout,
        };
        connect_timeout.map_or(PATIENCE, |timeout| timeout.min(PATIENCE))
    }
}

fn establish(target: &str, conninfo: &str) -> Result<PgConnection, Error> {
    PgConnection::establish(conninfo)
        .map_err(|source| Error::Connect { target: target.to_owned(), source })
}

impl Iam {
    /// A token for the first host.
    pub(crate) fn token(&self) -> Result<AuthToken, Error> {
        self.token_for(&self.targets[0].endpoint)
    }

    pub(crate) fn token_for(&self, endpoint: &Endpoint) -> Result<AuthToken, Error> {
        Ok(self.sign_with_cached(endpoint)?.0)
    }

    /// Signs, with the credentials that are given back too. A pair that ends between the cache and
    /// the signer is as one that had ended before.
    fn sign_with_cached(&self, endpoint: &Endpoint) -> Result<(AuthToken, Credentials), Error> {
        let credentials = self.credentials.get()?;
        match self.sign(endpoint, &credentials) {
            Err(Error::CredentialsExpired { .. }) => {
                let credentials = self.credentials.get()?;
                Ok((self.sign(endpoint, &credentials)?, credentials))
            }
            signed => Ok((signed?, credentials)),
        }
    }

    pub(crate) fn sign(
        &self,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<AuthToken, Error> {
        presign(endpoint, self.conninfo.user(), credentials, self.time_source.now())
    }

    /// To the first host that lets us in and is what `target_session_attrs` wants; none: no host
    /// did. libpq would go through the hosts by itself, but with one password for all of them.
    fn go_round(&self, hosts: &mut Hosts) -> Result<Option<PgConnection>, Error> {
        let wanted = self.conninfo.target_session_attrs();
        // libpq documents prefer-standby as two rounds: for a standby, and then for any.
        let first = if wanted == PREFER_STANDBY { "standby" } else { wanted };
        for i in self.in_order() {
            let connection = if hosts.is_due(i) {
                hosts.attempt(i, || self.connect_to(&self.targets[i], first))?
            } else {
                None
            };
            if connection.is_some() {
                return Ok(connection);
            }
        }
        let others = if wanted == PREFER_STANDBY { hosts.in_other_role() } else { Vec::new() };
        for i in others {
            let connection = hosts.attempt(i, || self.connect_to(&self.targets[i], "any"))?;
            if connection.is_some() {
                return Ok(connection);
            }
        }
        Ok(None)
    }

    /// The places of the hosts in the order to try them in (libpq's `load_balance_hosts`).
    pub(crate) fn in_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.targets.len()).collect();
        if self.conninfo.is_balanced() {
            fastrand::shuffle(&mut order);
        }
        order
    }

    fn connect_to(&self, target: &Target, wanted: &str) -> Result<PgConnection, Error> {
        let (token, credentials) = self.sign_with_cached(&target.endpoint)?;
        let refused = match self.connect_with(target, wanted, &token) {
            Err(error) if error.is_refused_token() => error,
            outcome => return outcome,
        };
        // The key pair may have been rotated while it was cached. Once: a policy that says no will
        // say it again.
        match self.credentials.rotated(&credentials) {
            Some(other) => self.connect_with(target, wanted, &self.sign(&target.endpoint, &other)?),
            None => Err(refused),
        }
    }

    fn connect_with(
        &self,
        target: &Target,
        wanted: &str,
        token: &AuthToken,
    ) -> Result<PgConnection, Error> {
        let roots = self.roots.as_ref().and_then(Roots::trimmed);
        match self.connect_by(target, wanted, token, roots.as_ref().map(|roots| roots.path())) {
            // It may be of another region than we were told. The user trusts the whole bundle, so
            // that decides.
            Err(error) if roots.is_some() && error.is_unknown_authority() => {
                self.connect_by(target, wanted, token, None)
            }
            outcome => outcome,
        }
    }

    fn connect_by(
        &self,
        target: &Target,
        wanted: &str,
        token: &AuthToken,
        roots: Option<&str>,
    ) -> Result<PgConnection, Error> {
        let started = Instant::now();
        let (host, hostaddr) = target.names_to_dial(self.conninfo.is_balanced())?;
        let (hostaddr, port) = (hostaddr.unwrap_or_default(), target.host.port.to_string());
        // Empty, too, or libpq would take PGHOSTADDR, which is for all hosts.
        let mut for_this = vec![("host", host.as_str()), ("hostaddr", &hostaddr), ("port", &port)];
        for_this.push(("target_session_attrs", wanted));
        for_this.extend(roots.map(|path| ("sslrootcert", path)));
        let connection = establish(
            &target.to_string(),
            &self.conninfo.with_password(token.as_str(), &for_this),
        )?;
        log::debug!("connected to {target} in {:?}", started.elapsed());
        Ok(connection)
    }
}

const PREFER_STANDBY: &str = "prefer-standby";

impl Target {
    /// The name dialled is another one than the endpoint's: a CNAME, a tunnel, a port forward.
    pub(crate) fn dials_another_name(&self) -> bool {
        !HostName::parse(&self.host.name).is_ok_and(|name| name.as_str() == self.endpoint.host())
    }

    /// libpq's `host`, by which it checks the certificate, and its `hostaddr`, which it dials
    /// instead of resolving the host: as many of the one as of the other.
    pub(crate) fn names_to_dial(
        &self,
        is_balanced: bool,
    ) -> Result<(String, Option<String>), Error> {
        let signed = self.endpoint.host().to_owned();
        if self.host.hostaddr.is_some() || !(is_balanced || self.dials_another_name()) {
            return Ok((signed, self.host.hostaddr.clone()));
        }
        let mut addresses = self.host.resolve()?;
        if is_balanced {
            fastrand::shuffle(&mut addresses);
        }
        Ok((vec![signed; addresses.len()].join(","), Some(addresses.join(","))))
    }
}

impl Host {
    /// The name, or the address where that is all that is given.
    pub(crate) fn dialled(&self) -> &str {
        if self.name.is_empty() { self.hostaddr.as_deref().unwrap_or_default() } else { &self.name }
    }

    pub(crate) fn resolve(&self) -> Result<Vec<String>, Error> {
        let failed = |source| Error::Resolve { host: self.name.clone(), source };
        let addresses = (self.name.as_str(), self.port).to_socket_addrs().map_err(failed)?;
        let mut seen = BTreeSet::<IpAddr>::new();
        Ok(addresses
            .map(|a| a.ip())
            .filter(|ip| seen.insert(*ip))
            .map(|ip| ip.to_string())
            .collect())
    }
}

/// What is dialled, for people.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dialled(), self.port)
    }
}

/// Whom we log in, and where, for people.
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
