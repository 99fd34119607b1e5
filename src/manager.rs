//! [`RdsConnectionManager`], and what r2d2 asks of it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel::sql_types::Bool;
use diesel::{PgConnection, RunQueryDsl};
use parking_lot::Mutex;
use r2d2::ManageConnection;

use crate::builder::Builder;
use crate::connection::{Fate, Record};
use crate::conninfo::{IS_READ_WRITE, invalid};
use crate::error::{Error, Retirement};
use crate::login::Login;
use crate::login::backoff::Backoff;
use crate::pool::{Pool, PoolLog};
use crate::stats::{Counters, Stats};
use crate::token::{AuthToken, Endpoint};

/// An [`r2d2::ManageConnection`] for diesel's [`PgConnection`] that logs in to RDS with a new IAM
/// token each time.
///
/// It takes the place of `diesel::r2d2::ConnectionManager<PgConnection>`:
///
/// ```no_run
/// use diesel_rds_iam::RdsConnectionManager;
///
/// let manager = RdsConnectionManager::new("postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app")?;
/// let pool = manager.build_pool(manager.pool_builder().max_size(8))?;
/// let mut connection = pool.get()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Clones are cheap and share the cached credentials, and what is known of failed logins.
#[doc(alias = "BeforeConnect")]
#[doc(alias = "ConnectionManager")]
#[doc(alias = "get_connection_params")]
#[derive(Clone)]
pub struct RdsConnectionManager {
    pub(crate) login: Arc<Login>,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) validate_after: Duration,
    pub(crate) attempts: Arc<Backoff>,
    counters: Arc<Counters>,
    /// When a connection was last found closed by the server.
    last_closed: Arc<Mutex<Option<Instant>>>,
    /// A connection that was made to see whether one can be, for the first who asks.
    ready: Arc<Mutex<Option<PgConnection>>>,
}

impl RdsConnectionManager {
    /// A manager for a libpq connection string, URI or key/value, without a password.
    ///
    /// What it leaves out comes from libpq's PG* variables and service file, then from this crate's
    /// defaults. Nothing is dialled. The keywords of our own are listed in the [crate's
    /// documentation](crate#connection-strings).
    ///
    /// # Errors
    /// [`Error::Conninfo`] when the string cannot be used, [`Error::Region`] when nothing tells the
    /// region.
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
    /// `max_lifetime` is the [manager's](Builder::max_lifetime), `connection_timeout` 15 seconds:
    /// longer than one `connect_timeout`, so that a waiter learns the cause. Errors and events go
    /// to the log, by [`PoolLog`]. All else is r2d2's.
    pub fn pool_builder(&self) -> r2d2::Builder<RdsConnectionManager> {
        r2d2::Pool::builder()
            .max_lifetime(self.max_lifetime)
            .connection_timeout(Duration::from_secs(15))
            .error_handler(Box::new(PoolLog))
            .event_handler(Box::new(PoolLog))
    }

    /// Builds a pool, and says at once why, if its first connection fails. [`r2d2::Builder::build`]
    /// would try on until connection_timeout has passed.
    ///
    /// # Errors
    /// As [`connect`](ManageConnection::connect); [`Error::Timeout`] when the first connection was
    /// made and the others were not.
    pub fn build_pool(&self, builder: r2d2::Builder<RdsConnectionManager>) -> Result<Pool, Error> {
        let ready = Arc::new(Mutex::new(Some(self.connect()?)));
        let pool =
            Pool::build(builder, RdsConnectionManager { ready: ready.clone(), ..self.clone() })?;
        // With a min_idle of 0 nobody has asked for it: in the pool, its reaper sees to it.
        let is_left = ready.lock().is_some();
        if is_left { pool.get().map(|_| pool) } else { Ok(pool) }
    }

    /// The text of the last error of [`connect`](ManageConnection::connect), with its cure; none
    /// after a success.
    ///
    /// r2d2 gives it to one of those that waited for a connection in vain. [`Pool`] gives it to
    /// all.
    pub fn last_error(&self) -> Option<String> {
        self.attempts.last_error()
    }

    /// What has been counted so far: logins, refreshes of credentials, retirements, checkouts.
    pub fn stats(&self) -> Stats {
        self.counters.stats(match &*self.login {
            Login::Iam(iam) => iam.credentials.answers(),
            Login::Password { .. } => (0, 0),
        })
    }

    /// Signs a new token for the first host, as [`connect`](ManageConnection::connect) does for
    /// each connection.
    ///
    /// # Errors
    /// [`Error::Credentials`] when there are none, [`Error::CredentialsExpired`] when they have
    /// ended, [`Error::Conninfo`] when IAM is turned off.
    pub fn token(&self) -> Result<AuthToken, Error> {
        match &*self.login {
            Login::Iam(iam) => iam.token(),
            Login::Password { .. } => {
                invalid("rds_iam_auth=false: there is no token for a login by password")
            }
        }
    }

    /// What tokens are signed for, host by host; nothing with `rds_iam_auth=false`.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let targets = match &*self.login {
            Login::Iam(iam) => iam.targets.as_slice(),
            Login::Password { .. } => &[],
        };
        targets.iter().map(|target| &target.endpoint)
    }

    pub(crate) fn with(
        login: Login,
        max_lifetime: Option<Duration>,
        validate_after: Duration,
    ) -> RdsConnectionManager {
        RdsConnectionManager {
            login: Arc::new(login),
            max_lifetime,
            validate_after,
            attempts: Arc::default(),
            counters: Arc::default(),
            last_closed: Arc::default(),
            ready: Arc::default(),
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
                .field("endpoints", &self.endpoints().collect::<Vec<_>>())
                .finish_non_exhaustive(),
            Login::Password { .. } => shown.field("rds_iam_auth", &false).finish_non_exhaustive(),
        }
    }
}

impl ManageConnection for RdsConnectionManager {
    type Connection = PgConnection;
    type Error = Error;

    /// Signs a token and logs in with it.
    ///
    /// While the server refuses TCP, starts or shuts down, this tries again every 100 ms, and while
    /// it is not what `target_session_attrs` wants, every second; for `connect_timeout` and at most
    /// 10 seconds. After a refusal that waiting does not mend (no role rds_iam, a bad certificate,
    /// an unknown database), the next attempts fail with the same cause and do not dial: for 1
    /// second, then for 2, up to 10, until one succeeds.
    fn connect(&self) -> Result<PgConnection, Error> {
        let ready = self.ready.lock().take();
        if let Some(mut ready) = ready
            && self.is_valid(&mut ready).is_ok()
        {
            return Ok(ready);
        }
        self.attempts.begin(Instant::now())?;
        let note = |failure: Option<&Error>| {
            self.counters.login(failure);
            failure.inspect(|error| self.attempts.note(error));
        };
        let mut connection = self
            .login
            .connect(&note)
            .inspect_err(|error| self.attempts.failed(error, Instant::now()))?;
        self.attempts.succeeded();
        let counters = self.counters.clone();
        Record::start(
            &mut connection,
            Instant::now(),
            self.max_lifetime,
            fastrand::f64(),
            counters,
        );
        Ok(connection)
    }

    /// Whether the connection can be given out. A round trip to the server only if it was idle for
    /// longer than [`validate_after`](Builder::validate_after), saw an error, or LISTENs; else a
    /// look at its socket.
    fn is_valid(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let last_closed = *self.last_closed.lock();
        let fate = |it: &mut Record| it.fate(Instant::now(), self.validate_after, last_closed);
        let valid = match Record::of(connection).map_or(Fate::Ask, fate) {
            Fate::Retire(reason) => Err(Error::Retired { reason }),
            Fate::Ask => self.ask(connection),
            Fate::Use => self.look(connection),
        };
        valid.inspect_err(|error| self.note_closed(matches!(error, Error::Ping { .. })))
    }

    /// Whether the connection is not to be used again: it is past its end, was closed by the
    /// server, was left in a transaction begun through diesel, or was dropped in a panic.
    fn has_broken(&self, connection: &mut PgConnection) -> bool {
        let reason = self.why_broken(connection);
        if let Some(reason) = reason {
            log::debug!("a connection is retired: {reason}");
            retire(connection, reason);
        }
        reason.is_some()
    }
}

impl RdsConnectionManager {
    /// A server that closes one connection may be closing all.
    fn note_closed(&self, is_closed: bool) {
        if is_closed {
            *self.last_closed.lock() = Some(Instant::now());
        }
    }

    fn why_broken(&self, connection: &mut PgConnection) -> Option<Retirement> {
        let session = Record::of(connection);
        self.note_closed(session.as_ref().is_some_and(|session| session.is_closed()));
        let known = session.and_then(|session| session.retirement(Instant::now()));
        let panics = || std::thread::panicking().then_some(Retirement::Panic);
        known.or_else(panics).or_else(|| connection.is_broken().then_some(Retirement::Transaction))
    }

    /// A look at the socket, without waiting. Where there is something to read, the server is
    /// asked: a notification that nobody told us to expect can have an end of the connection behind
    /// it.
    fn look(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.counters.peeked();
        let found =
            look_at_socket(connection).inspect_err(|_| retire(connection, Retirement::Closed))?;
        if found { self.ask(connection) } else { Ok(()) }
    }

    /// One round trip, and a second one if it matters whether the server still is the primary.
    fn ask(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.counters.pinged();
        let answer = self.answer(connection);
        match &answer {
            Ok(()) => {
                if let Some(session) = Record::of(connection) {
                    session.found_sound();
                }
            }
            Err(Error::Retired { reason }) => retire(connection, *reason),
            Err(_) => retire(connection, Retirement::FailedCheck),
        }
        answer
    }

    fn answer(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let failed = |source| Error::Ping { source };
        // Not diesel's ping, which is a prepared statement: that never ends on a connection that
        // was left in a COPY.
        connection.batch_execute("SELECT 1").map_err(failed)?;
        let met_read_only = Record::of(connection).is_some_and(|session| session.met_read_only());
        if let Some(query) = self.role_check(met_read_only)
            && !diesel::dsl::sql::<Bool>(query).get_result(connection).map_err(failed)?
        {
            return Err(Error::Retired { reason: Retirement::Demoted });
        }
        Ok(())
    }

    fn role_check(&self, met_read_only: bool) -> Option<&'static str> {
        match &*self.login {
            _ if met_read_only => Some(IS_READ_WRITE),
            Login::Iam(iam) => iam.conninfo.role_check(),
            Login::Password { .. } => None,
        }
    }
}

/// Sees, without waiting, whether the server has closed the connection. Returns whether there is
/// something to read.
fn look_at_socket(connection: &mut PgConnection) -> Result<bool, Error> {
    let mut look = || {
        connection.notifications_iter().next().transpose().map_err(|source| Error::Ping { source })
    };
    // After the server has gone, the first look gives none and the second the error.
    Ok(look()?.is_some() || look()?.is_some())
}

/// Notes down why it will be closed.
fn retire(connection: &mut PgConnection, reason: Retirement) {
    if let Some(session) = Record::of(connection) {
        session.retire(reason);
    }
}
