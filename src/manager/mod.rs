//! [`RdsConnectionManager`]: r2d2's three verbs.

mod check;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use parking_lot::Mutex;
use r2d2::ManageConnection;

use crate::connection::{
    CheckoutTimeout, Checkouts, Generation, Hooks, Moment, Record, Shared, Sockets,
};
use crate::conninfo::{Keywords, PoolKeywords};
use crate::error::Error;
use crate::login::backoff::Backoff;
use crate::login::{Connected, Events, Failover, Login, SUBSTITUTE_LIFETIME};
use crate::stats::{Counters, Stats};
use crate::token::{AuthToken, Endpoint};

/// An [`r2d2::ManageConnection`] for diesel's [`PgConnection`] that logs in to RDS with a new IAM
/// token each time.
///
/// It replaces `diesel::r2d2::ConnectionManager<PgConnection>`:
///
/// ```no_run
/// use diesel_rds_iam::RdsConnectionManager;
///
/// let url = "postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app";
/// let manager = RdsConnectionManager::new(url)?;
/// let pool = manager.build_pool(manager.pool_builder().max_size(8))?;
/// let mut connection = pool.get()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Clones are cheap. They share the credentials, the statistics and the back-off.
#[doc(alias = "BeforeConnect")]
#[doc(alias = "ConnectionManager")]
#[doc(alias = "get_connection_params")]
#[derive(Clone)]
pub struct RdsConnectionManager {
    pub(crate) login: Arc<Login>,
    failover: Option<Arc<Failover>>,
    pub(crate) max_lifetime: Option<Duration>,
    validate_after: Duration,
    ping_timeout: Option<Duration>,
    pub(crate) leak_detection_threshold: Option<Duration>,
    pub(crate) pool_keywords: PoolKeywords,
    pub(crate) backoff: Arc<Backoff>,
    pub(crate) counters: Arc<Counters>,
    generation: Arc<Generation>,
    sockets: Option<Arc<Sockets>>,
    hooks: Arc<Hooks>,
    /// The first connection of a pool, made before the pool is built.
    first: Arc<Mutex<Option<PgConnection>>>,
    is_of_pool: bool,
    /// Of the pool that this clone is for.
    pub(crate) checkouts: Arc<Checkouts>,
}

/// Shorter than the life of a token.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(14 * 60);

impl RdsConnectionManager {
    /// Returns the text of the last error of [`connect`](ManageConnection::connect), which says
    /// what to do. Returns `None` after a success.
    ///
    /// r2d2 reports an error to one of the waiting threads. [`Pool`](crate::Pool) reports it to
    /// all.
    pub fn last_error(&self) -> Option<String> {
        self.backoff.last_error().map(|last| last.text)
    }

    /// Returns the figures: logins, refreshes of credentials, retirements, checkouts.
    pub fn stats(&self) -> Stats {
        self.counters.stats(match &*self.login {
            Login::Iam(iam) => iam.credentials.answers(),
            Login::Password(_) => (0, 0),
        })
    }

    /// Closes each connection that is open now, at its next check-in or checkout. No operation
    /// fails.
    ///
    /// Use it after a change that only new connections see: rights that were rotated, a restored
    /// database, a server that moved.
    pub fn retire_all(&self) {
        self.generation.retire_all();
        log::info!("open connections will be replaced, because retire_all was called");
    }

    /// Sets the time at which a unit of work on this connection has to end. Then the query in
    /// flight fails with an error of a closed connection, and so do all later ones. This works also
    /// if the server is frozen, or if something on the way acknowledges and does not answer. `None`
    /// removes the deadline. The check-in removes it too.
    ///
    /// The connection is closed afterwards. The reason is
    /// [`Retirement::Deadline`](crate::Retirement::Deadline). The server can go on with the query:
    /// set PostgreSQL's `statement_timeout` in addition, to a shorter time.
    ///
    /// ```no_run
    /// use std::time::{Duration, Instant};
    ///
    /// use diesel_rds_iam::RdsConnectionManager;
    ///
    /// let manager = RdsConnectionManager::from_env()?;
    /// let pool = manager.build_pool(manager.pool_builder())?;
    /// let mut connection = pool.get()?;
    /// let deadline = Instant::now() + Duration::from_secs(30);
    /// RdsConnectionManager::set_deadline(&mut connection, Some(deadline))?;
    /// # Ok::<(), diesel_rds_iam::Error>(())
    /// ```
    ///
    /// It takes a `PgConnection`, so it works with the guards of a [`Pool`](crate::Pool), of a pool
    /// of r2d2 and of [`PerThread`](crate::PerThread), and with a single connection.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the crate does not know the connection's socket: on a system other
    /// than Linux, over a unix socket, or if the program replaced the instrumentation of the
    /// connection.
    #[doc(alias = "timeout")]
    #[doc(alias = "networkTimeout")]
    pub fn set_deadline(
        connection: &mut PgConnection,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let set = match Record::of(connection) {
            Some(record) => record.set_deadline(deadline),
            None => deadline.map_or(Ok(()), |_| Err(io::ErrorKind::Unsupported.into())),
        };
        set.map_err(|error| Error::Deadline {
            reason: match error.kind() {
                io::ErrorKind::Unsupported => NO_SOCKET.into(),
                _ => format!("cannot start a thread: {error}; raise the limit of threads"),
            },
        })
    }

    /// Returns the maximum age of a connection.
    pub fn max_lifetime(&self) -> Option<Duration> {
        self.max_lifetime
    }

    /// Signs a new token for the first host, as [`connect`](ManageConnection::connect) does for
    /// each connection.
    ///
    /// # Errors
    /// - [`Error::Credentials`] if there are no credentials.
    /// - [`Error::CredentialsExpired`] if they have expired.
    /// - [`Error::Config`] with `rds_iam_auth=false`.
    pub fn token(&self) -> Result<AuthToken, Error> {
        match &*self.login {
            Login::Iam(iam) => iam.token_for(&iam.targets[0].endpoint),
            Login::Password(_) => Err(without_token()),
        }
    }

    /// Signs a new token for an endpoint, such as one of [`endpoints`](Self::endpoints).
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn token_for(&self, endpoint: &Endpoint) -> Result<AuthToken, Error> {
        match &*self.login {
            Login::Iam(iam) => iam.token_for(endpoint),
            Login::Password(_) => Err(without_token()),
        }
    }

    /// Returns the endpoints that tokens are signed for, one for each host. Empty with
    /// `rds_iam_auth=false`.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let targets = match &*self.login {
            Login::Iam(iam) => iam.targets.as_slice(),
            Login::Password(_) => &[],
        };
        targets.iter().map(|target| &target.endpoint)
    }

    pub(crate) fn with(
        login: Login,
        keywords: &Keywords,
        ping_timeout: Option<Duration>,
        hooks: Hooks,
    ) -> RdsConnectionManager {
        let backoff = Arc::<Backoff>::default();
        let counters = Arc::<Counters>::default();
        let generation = Arc::<Generation>::default();
        let sockets = Arc::<Sockets>::default();
        let events = Events {
            backoff: backoff.clone(),
            counters: counters.clone(),
            generation: generation.clone(),
            sockets: sockets.clone(),
        };
        let topology = keywords.topology.unwrap_or_default();
        let failover = match &login {
            Login::Iam(iam) => {
                Failover::new(iam.clone(), topology, keywords.max_replica_lag, events)
            }
            Login::Password(_) => None,
        };
        let follows_the_writer = failover.as_ref().is_some_and(|it| it.follows_the_writer());
        RdsConnectionManager {
            login: Arc::new(login),
            failover,
            max_lifetime: keywords.max_lifetime.unwrap_or(Some(MAX_LIFETIME)),
            validate_after: keywords.validate_after.unwrap_or(Duration::from_secs(1)),
            ping_timeout,
            leak_detection_threshold: keywords.leak_detection_threshold,
            pool_keywords: keywords.pool,
            backoff,
            counters,
            generation,
            sockets: follows_the_writer.then_some(sockets),
            hooks: Arc::new(hooks),
            first: Arc::default(),
            is_of_pool: false,
            checkouts: Arc::default(),
        }
    }

    /// Returns a clone for a new pool. Its first `connect` returns this connection.
    pub(crate) fn for_pool(&self, first: PgConnection) -> RdsConnectionManager {
        let first = Arc::new(Mutex::new(Some(first)));
        RdsConnectionManager { first, is_of_pool: true, checkouts: Arc::default(), ..self.clone() }
    }

    /// Whether the connection of [`for_pool`](Self::for_pool) was not asked for yet.
    pub(crate) fn has_first(&self) -> bool {
        self.first.lock().is_some()
    }
}

/// For a pool in a failover.
const LONGEST_SEARCH: Duration = Duration::from_secs(60);

const NO_SOCKET: &str =
    "the connection's socket is not known; connect over TCP on Linux and keep its instrumentation";

fn without_token() -> Error {
    Error::Config("rds_iam_auth=false: a login by password has no token; remove it".into())
}

/// Shows the settings without secrets.
impl fmt::Debug for RdsConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RdsConnectionManager");
        match &*self.login {
            Login::Iam(iam) => shown
                .field("conninfo", &iam.conninfo.to_string())
                .field("endpoints", &self.endpoints().collect::<Vec<_>>())
                .finish_non_exhaustive(),
            Login::Password(_) => shown.field("rds_iam_auth", &false).finish_non_exhaustive(),
        }
    }
}

impl ManageConnection for RdsConnectionManager {
    type Connection = PgConnection;
    type Error = Error;

    /// Signs a token and logs in with it. Then calls
    /// [`after_connect`](crate::Builder::after_connect).
    ///
    /// Retries while the server refuses TCP connections, starts, stops, or is not what
    /// `target_session_attrs` asks for. After a permanent refusal, and after several failures in a
    /// row, the next calls return [`Error::Paused`] without dialling. The
    /// guide's [limits](crate::guide::limits) list the intervals.
    fn connect(&self) -> Result<PgConnection, Error> {
        self.check_open()?;
        let first = self.first.lock().take();
        if let Some(mut first) = first
            && self.check(&mut first).is_ok()
        {
            return Ok(first);
        }
        self.backoff.begin(Instant::now())?;
        let connection = self.log_in().inspect_err(|error| self.login_failed(error))?;
        self.login_succeeded();
        self.check_open().map(|()| connection)
    }

    /// Checks whether the connection can be checked out. It is pinged after an error, after
    /// [`validate_after`](crate::Builder::validate_after) of idle time, and once after another
    /// connection was found closed or demoted. Otherwise this only peeks at its socket, and pings
    /// if there is something to read. A ping takes
    /// [`ping_timeout`](crate::Builder::ping_timeout) at most. Then calls
    /// [`before_check_out`](crate::Builder::before_check_out).
    ///
    /// If the socket is not known, a connection that LISTENs is pinged each time.
    fn is_valid(&self, connection: &mut PgConnection) -> Result<(), Error> {
        // `Pool` checks it in again.
        if self.checkouts.is_closed() || CheckoutTimeout::is_over() {
            return Ok(());
        }
        self.check(connection)?;
        self.before_check_out(connection)
    }

    /// Whether the connection must not be used again: it is too old, was closed by the server, has
    /// an open transaction, or was dropped in a panic. Calls
    /// [`after_release`](crate::Builder::after_release) on a connection that can be used again, and
    /// [resets](crate::Builder::reset_on_release) it.
    fn has_broken(&self, connection: &mut PgConnection) -> bool {
        self.is_retired(connection) || self.release(connection).is_err()
    }
}

impl RdsConnectionManager {
    fn log_in(&self) -> Result<PgConnection, Error> {
        let shared = Shared {
            counters: self.counters.clone(),
            born: self.generation.current(),
            generation: self.generation.clone(),
            hooks: self.hooks.clone(),
            sockets: self.sockets.clone(),
        };
        let Connected { mut connection, socket, server, is_substitute } = match &self.failover {
            Some(failover) => {
                let patience = || self.longest_search();
                failover.connect(patience, self.is_of_pool, || self.checkouts.is_without_use())?
            }
            None => self.login.connect(&self.backoff, &self.counters)?,
        };
        let now = Moment::now();
        let jitter = fastrand::f64();
        let max_lifetime = match (is_substitute, self.max_lifetime) {
            (true, Some(lifetime)) => Some(lifetime.min(SUBSTITUTE_LIFETIME)),
            (true, None) => Some(SUBSTITUTE_LIFETIME),
            (false, lifetime) => lifetime,
        };
        Record::start(&mut connection, socket, now, max_lifetime, jitter, shared)?;
        if let (Some(record), Some(server)) = (Record::of(&mut connection), server) {
            record.watch(server);
        }
        self.hooks.after_connect(&mut connection)?;
        Ok(connection)
    }

    /// In a [`Pool`](crate::Pool) the waiting threads have their own timeouts. A failed login would
    /// start r2d2's back-off, which cannot be ended when there is a new writer.
    fn longest_search(&self) -> Duration {
        // One is that of this manager, which r2d2 keeps while it logs in.
        let has_pool = self.is_of_pool && Arc::strong_count(&self.checkouts) > 1;
        if has_pool { LONGEST_SEARCH } else { self.login.longest_retry() }
    }

    /// Reports each cause once, until a login succeeds: r2d2 retries without end.
    fn login_failed(&self, error: &Error) {
        if matches!(error, Error::PoolClosed) {
            return;
        }
        let is_new = self.backoff.failed(error, Instant::now());
        let level = if is_new { log::Level::Error } else { log::Level::Debug };
        log::log!(level, "{error}");
    }

    fn login_succeeded(&self) {
        if let Some(ended) = self.backoff.succeeded(Instant::now()) {
            let failures = ended.failures;
            log::warn!("logins succeed again ({failures} failed in {:.1?})", ended.lasted);
            self.counters.outage_ended(ended.lasted);
        }
    }

    /// A pool that is closed needs no connections, unless threads still wait for one in r2d2.
    fn check_open(&self) -> Result<(), Error> {
        if self.checkouts.is_without_use() { Err(Error::PoolClosed) } else { Ok(()) }
    }
}
