//! [`RdsConnectionManager`], and what r2d2 asks of it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use aws_smithy_async::time::SharedTimeSource;
use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel::sql_types::Bool;
use diesel::{Connection, PgConnection, RunQueryDsl};
use r2d2::ManageConnection;

use crate::conninfo::{IS_READ_WRITE, IamConninfo, invalid};
use crate::credentials::CredentialsCache;
use crate::session::{Fate, Session};
use crate::{AuthToken, Builder, Endpoint, Error, presign};

/// An [`r2d2::ManageConnection`] for diesel's [`PgConnection`] that logs in to RDS with a new IAM token each time.
///
/// It takes the place of `diesel::r2d2::ConnectionManager<PgConnection>`:
///
/// ```no_run
/// use diesel_rds_iam::RdsConnectionManager;
///
/// let manager = RdsConnectionManager::new("postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app")?;
/// let pool = manager.pool_builder().max_size(8).build(manager)?;
/// let mut connection = pool.get()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Clones are cheap and share the cached credentials.
#[doc(alias = "BeforeConnect")]
#[doc(alias = "ConnectionManager")]
#[doc(alias = "get_connection_params")]
#[derive(Clone)]
pub struct RdsConnectionManager {
    pub(crate) login: Arc<Login>,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) validate_after: Duration,
}

pub(crate) enum Login {
    /// With a token of its own for each connection.
    Iam(Iam),
    /// `rds_iam_auth=false`: the connection string for libpq.
    Password(String),
}

pub(crate) struct Iam {
    pub(crate) conninfo: IamConninfo,
    pub(crate) endpoint: Endpoint,
    /// The name dialled is another one than the endpoint's (CNAME, tunnel, port forward).
    pub(crate) dials_another_name: bool,
    pub(crate) credentials: Arc<CredentialsCache>,
    pub(crate) time_source: SharedTimeSource,
}

impl RdsConnectionManager {
    /// A manager for a libpq connection string, URI or key/value, without a password.
    ///
    /// What it leaves out comes from libpq's PG* variables and service file, then from this crate's defaults.
    /// Nothing is dialled. The keywords of our own are listed in the [crate's documentation](crate#connection-strings).
    ///
    /// # Errors
    /// [`Error::Conninfo`] when the string cannot be used, [`Error::Region`] when nothing tells the region.
    pub fn new(database_url: impl AsRef<str>) -> Result<RdsConnectionManager, Error> {
        Self::builder().build(database_url)
    }

    /// A manager for `DATABASE_URL` or, where that is not set, for libpq's PG* variables.
    ///
    /// # Errors
    /// As [`new`](Self::new); also when `DATABASE_URL` is set to nothing.
    pub fn from_env() -> Result<RdsConnectionManager, Error> {
        Self::builder().build_from_env()
    }

    /// A builder, for what a connection string cannot say.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// An [`r2d2::Builder`] with defaults that suit IAM logins.
    ///
    /// `max_lifetime` is the [manager's](Builder::max_lifetime), `connection_timeout` 15 seconds: longer than one
    /// `connect_timeout`, so that a waiter learns the cause. An error handler logs a failed login as an error, a
    /// connection that was found dead and replaced as a warning, and one that was retired as a matter of course at
    /// debug level. All else is r2d2's.
    pub fn pool_builder(&self) -> r2d2::Builder<RdsConnectionManager> {
        r2d2::Pool::builder()
            .max_lifetime(self.max_lifetime)
            .connection_timeout(Duration::from_secs(15))
            .error_handler(Box::new(LogErrors))
    }

    /// Signs a new token, as [`connect`](ManageConnection::connect) does for each connection.
    ///
    /// # Errors
    /// [`Error::Credentials`] when there are none, [`Error::CredentialsExpired`] when they have ended,
    /// [`Error::Conninfo`] when IAM is turned off.
    pub fn token(&self) -> Result<AuthToken, Error> {
        match &*self.login {
            Login::Iam(iam) => iam.token(),
            Login::Password(_) => invalid("rds_iam_auth=false: there is no token for a login by password"),
        }
    }

    /// What tokens are signed for; none with `rds_iam_auth=false`.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match &*self.login {
            Login::Iam(iam) => Some(&iam.endpoint),
            Login::Password(_) => None,
        }
    }
}

/// The settings, without secrets.
impl fmt::Debug for RdsConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RdsConnectionManager");
        match &*self.login {
            Login::Iam(iam) => shown
                .field("conninfo", &iam.conninfo.to_string())
                .field("endpoint", &iam.endpoint)
                .finish_non_exhaustive(),
            Login::Password(_) => shown.field("rds_iam_auth", &false).finish_non_exhaustive(),
        }
    }
}

impl ManageConnection for RdsConnectionManager {
    type Connection = PgConnection;
    type Error = Error;

    /// Signs a token and logs in with it.
    fn connect(&self) -> Result<PgConnection, Error> {
        let mut connection = match &*self.login {
            Login::Iam(iam) => iam.connect()?,
            Login::Password(conninfo) => PgConnection::establish(conninfo)
                .map_err(|source| Error::Connect { target: "the database without IAM".into(), source })?,
        };
        Session::start(&mut connection, Instant::now(), self.max_lifetime, fastrand::f64());
        Ok(connection)
    }

    /// Whether the connection can be given out. A round trip to the server only if it was idle for longer than
    /// [`validate_after`](Builder::validate_after), saw an error, or LISTENs; else a look at its socket.
    fn is_valid(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let fate = Session::of(connection).map_or(Fate::Ask, |it| it.fate(Instant::now(), self.validate_after));
        match fate {
            Fate::Retire(reason) => Err(Error::Retired { reason }),
            // A notification that nobody told us to expect can have an end of the connection behind it.
            Fate::Use if !look_at_socket(connection)? => Ok(()),
            Fate::Use | Fate::Ask => self.ask(connection),
        }
    }

    /// Whether the connection is not to be used again: it is past its end, was closed by the server, was left in a
    /// transaction begun through diesel, or was dropped in a panic.
    fn has_broken(&self, connection: &mut PgConnection) -> bool {
        let retired = Session::of(connection).and_then(|session| session.retirement(Instant::now()));
        if let Some(reason) = retired {
            log::debug!("a connection is retired: {reason}");
        }
        retired.is_some() || std::thread::panicking() || connection.is_broken()
    }
}

impl RdsConnectionManager {
    /// One round trip, and a second one if it matters whether the server still is the primary.
    fn ask(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let failed = |source| Error::Ping { source };
        // Not diesel's ping, which is a prepared statement: that never ends on a connection that was left in a COPY.
        connection.batch_execute("SELECT 1").map_err(failed)?;
        let met_read_only = Session::of(connection).is_some_and(|session| session.met_read_only());
        if let Some(query) = self.role_check(met_read_only)
            && !diesel::dsl::sql::<Bool>(query).get_result(connection).map_err(failed)?
        {
            return Err(Error::Retired { reason: "its server is no longer the primary" });
        }
        if let Some(session) = Session::of(connection) {
            session.found_sound();
        }
        Ok(())
    }

    fn role_check(&self, met_read_only: bool) -> Option<&'static str> {
        match &*self.login {
            _ if met_read_only => Some(IS_READ_WRITE),
            Login::Iam(iam) => iam.conninfo.role_check(),
            Login::Password(_) => None,
        }
    }
}

/// Sees, without waiting, whether the server has closed the connection. Returns whether there is something to read.
fn look_at_socket(connection: &mut PgConnection) -> Result<bool, Error> {
    let mut look = || connection.notifications_iter().next().transpose().map_err(|source| Error::Ping { source });
    // After the server has gone, the first look gives none and the second the error.
    Ok(look()?.is_some() || look()?.is_some())
}

impl Iam {
    fn token(&self) -> Result<AuthToken, Error> {
        Ok(self.sign_with_cached()?.0)
    }

    /// Signs, with the credentials that are given back too. A pair that ends between the cache and the signer is as one
    /// that had ended before.
    fn sign_with_cached(&self) -> Result<(AuthToken, Credentials), Error> {
        let credentials = self.credentials.get()?;
        match self.sign(&credentials) {
            Err(Error::CredentialsExpired { .. }) => {
                let credentials = self.credentials.get()?;
                Ok((self.sign(&credentials)?, credentials))
            }
            signed => Ok((signed?, credentials)),
        }
    }

    fn sign(&self, credentials: &Credentials) -> Result<AuthToken, Error> {
        presign(&self.endpoint, self.conninfo.user(), credentials, self.time_source.now())
    }

    fn connect(&self) -> Result<PgConnection, Error> {
        let (token, credentials) = self.sign_with_cached()?;
        let refused = match self.connect_with(&token) {
            Err(error) if error.is_refused_token() => error,
            outcome => return outcome,
        };
        // The key pair may have been rotated while it was cached. Once: a policy that says no will say it again.
        match self.credentials.rotated(&credentials) {
            Some(other) => self.connect_with(&self.sign(&other)?),
            None => Err(refused),
        }
    }

    fn connect_with(&self, token: &AuthToken) -> Result<PgConnection, Error> {
        let started = Instant::now();
        let (host, hostaddr) = self.names_to_dial()?;
        let mut for_this = vec![("host", host.as_str())];
        for_this.extend(hostaddr.as_deref().map(|addresses| ("hostaddr", addresses)));
        let conninfo = self.conninfo.with_password(token.as_str(), &for_this);
        let target = self.target();
        let connection = PgConnection::establish(&conninfo);
        let connection = connection.map_err(|source| Error::Connect { target: target.clone(), source })?;
        log::debug!("connected to {target} in {:?}", started.elapsed());
        Ok(connection)
    }

    /// libpq's `host`, by which it checks the certificate, and its `hostaddr`, which it dials instead of resolving
    /// the host: as many of the one as of the other.
    fn names_to_dial(&self) -> Result<(String, Option<String>), Error> {
        let signed = self.endpoint.host().to_owned();
        if !self.dials_another_name || self.conninfo.hostaddr().is_some() {
            return Ok((signed, None));
        }
        let dialled = self.conninfo.host();
        let failed = |source| Error::Resolve { host: dialled.to_owned(), source };
        let addresses = (dialled, self.conninfo.port()).to_socket_addrs().map_err(failed)?;
        let mut seen = BTreeSet::<IpAddr>::new();
        let addresses: Vec<String> =
            addresses.map(|a| a.ip()).filter(|ip| seen.insert(*ip)).map(|ip| ip.to_string()).collect();
        Ok((vec![signed; addresses.len()].join(","), Some(addresses.join(","))))
    }

    /// Whom we log in, and where, for people.
    fn target(&self) -> String {
        let (user, host, port) = (self.conninfo.user(), self.conninfo.host(), self.conninfo.port());
        if self.dials_another_name {
            format!("{user}@{host}:{port} (signed for {})", self.endpoint)
        } else {
            format!("{user}@{host}:{port}")
        }
    }
}

/// r2d2's default handler logs everything as an error.
#[derive(Debug)]
struct LogErrors;

impl r2d2::HandleError<Error> for LogErrors {
    fn handle_error(&self, error: Error) {
        match error {
            Error::Retired { .. } => log::debug!("{error}"),
            Error::Ping { .. } => log::warn!("{error}"),
            error => log::error!("{error}"),
        }
    }
}
