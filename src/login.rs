//! A login: a new token for the host that is dialled, and patience with a server that is about to be back.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_smithy_async::time::SharedTimeSource;
use diesel::{Connection, PgConnection};

use crate::conninfo::{Host, IamConninfo};
use crate::credentials::CredentialsCache;
use crate::error::Outlook;
use crate::roots::Roots;
use crate::{AuthToken, Endpoint, Error, HostName, presign};

pub(crate) enum Login {
    /// With a token of its own for each connection.
    Iam(Box<Iam>),
    /// `rds_iam_auth=false`: the connection string for libpq.
    Password(String),
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
}

/// Between two attempts while a server is about to be back.
const PAUSE: Duration = Duration::from_millis(100);

/// r2d2 has three threads for all of a pool's work, and a waiter is to learn the cause within connection_timeout.
const PATIENCE: Duration = Duration::from_secs(10);

impl Login {
    /// Tries again at once while nobody listens or the server says that it starts or stops: r2d2 would wait for up to
    /// half its connection_timeout. Not after a login was refused, which counts against the server's limits.
    pub(crate) fn connect(&self) -> Result<PgConnection, Error> {
        let deadline = Instant::now() + self.patience();
        loop {
            match self.connect_once() {
                Err(error) if error.outlook() == Outlook::ComesBack && Instant::now() + PAUSE < deadline => {
                    log::debug!("{error}; trying again");
                    std::thread::sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn connect_once(&self) -> Result<PgConnection, Error> {
        match self {
            Login::Iam(iam) => iam.connect(),
            Login::Password(conninfo) => PgConnection::establish(conninfo)
                .map_err(|source| Error::Connect { target: "the database without IAM".into(), source }),
        }
    }

    fn patience(&self) -> Duration {
        match self {
            Login::Iam(iam) => iam.conninfo.connect_timeout().map_or(PATIENCE, |timeout| timeout.min(PATIENCE)),
            Login::Password(_) => PATIENCE,
        }
    }
}

impl Iam {
    /// A token for the first host.
    pub(crate) fn token(&self) -> Result<AuthToken, Error> {
        self.token_for(&self.targets[0].endpoint)
    }

    pub(crate) fn token_for(&self, endpoint: &Endpoint) -> Result<AuthToken, Error> {
        Ok(self.sign_with_cached(endpoint)?.0)
    }

    /// Signs, with the credentials that are given back too. A pair that ends between the cache and the signer is as one
    /// that had ended before.
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

    fn sign(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<AuthToken, Error> {
        presign(endpoint, self.conninfo.user(), credentials, self.time_source.now())
    }

    /// To the first host that lets us in and is what `target_session_attrs` wants. libpq would go through the hosts by
    /// itself, but with one password for all of them.
    fn connect(&self) -> Result<PgConnection, Error> {
        let mut failures = Vec::new();
        for wanted in self.conninfo.session_attrs() {
            for target in self.in_order() {
                match self.connect_to(target, wanted) {
                    Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => {
                        self.log_passed_over(&error);
                        failures.push(error);
                    }
                    // In, or nothing to log in with: the other hosts have no more to say.
                    outcome => return outcome,
                }
            }
        }
        Err(if self.targets.len() == 1 { failures.remove(0) } else { Error::Hosts { failures } })
    }

    /// A host that is down or a standby is what several hosts are for; one that refuses us wants a person.
    fn log_passed_over(&self, error: &Error) {
        if self.targets.len() == 1 {
            return;
        }
        let is_refusal = error.is_refused_token() || error.outlook() == Outlook::Stays;
        log::log!(if is_refusal { log::Level::Warn } else { log::Level::Debug }, "a host is passed over: {error}");
    }

    /// The hosts as they are to be tried (libpq's `load_balance_hosts`).
    pub(crate) fn in_order(&self) -> Vec<&Target> {
        let mut targets: Vec<&Target> = self.targets.iter().collect();
        if self.conninfo.is_balanced() {
            fastrand::shuffle(&mut targets);
        }
        targets
    }

    fn connect_to(&self, target: &Target, wanted: &str) -> Result<PgConnection, Error> {
        let (token, credentials) = self.sign_with_cached(&target.endpoint)?;
        let refused = match self.connect_with(target, wanted, &token) {
            Err(error) if error.is_refused_token() => error,
            outcome => return outcome,
        };
        // The key pair may have been rotated while it was cached. Once: a policy that says no will say it again.
        match self.credentials.rotated(&credentials) {
            Some(other) => self.connect_with(target, wanted, &self.sign(&target.endpoint, &other)?),
            None => Err(refused),
        }
    }

    fn connect_with(&self, target: &Target, wanted: &str, token: &AuthToken) -> Result<PgConnection, Error> {
        let started = Instant::now();
        let (host, hostaddr) = target.names_to_dial(self.conninfo.is_balanced())?;
        let port = target.host.port.to_string();
        let mut for_this = vec![("host", host.as_str()), ("port", &port), ("target_session_attrs", wanted)];
        for_this.extend(hostaddr.as_deref().map(|addresses| ("hostaddr", addresses)));
        let roots = self.roots.as_ref().and_then(Roots::trimmed);
        for_this.extend(roots.as_ref().map(|roots| ("sslrootcert", roots.path())));
        let conninfo = self.conninfo.with_password(token.as_str(), &for_this);
        let connection = PgConnection::establish(&conninfo);
        let connection = connection.map_err(|source| Error::Connect { target: target.to_string(), source })?;
        log::debug!("connected to {target} in {:?}", started.elapsed());
        Ok(connection)
    }
}

impl Target {
    /// The name dialled is another one than the endpoint's: a CNAME, a tunnel, a port forward.
    fn dials_another_name(&self) -> bool {
        !HostName::parse(&self.host.name).is_ok_and(|name| name.as_str() == self.endpoint.host())
    }

    /// libpq's `host`, by which it checks the certificate, and its `hostaddr`, which it dials instead of resolving
    /// the host: as many of the one as of the other.
    pub(crate) fn names_to_dial(&self, is_balanced: bool) -> Result<(String, Option<String>), Error> {
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
    fn resolve(&self) -> Result<Vec<String>, Error> {
        let failed = |source| Error::Resolve { host: self.name.clone(), source };
        let addresses = (self.name.as_str(), self.port).to_socket_addrs().map_err(failed)?;
        let mut seen = BTreeSet::<IpAddr>::new();
        Ok(addresses.map(|a| a.ip()).filter(|ip| seen.insert(*ip)).map(|ip| ip.to_string()).collect())
    }
}

/// Whom we log in, and where, for people.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { user, host, endpoint } = self;
        write!(f, "{user}@{}:{}", host.name, host.port)?;
        if self.dials_another_name() {
            write!(f, " (signed for {endpoint})")?;
        }
        Ok(())
    }
}
