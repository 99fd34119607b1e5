//! [`Builder`]: how a manager is made.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use diesel::connection::Instrumentation;
use diesel::{PgConnection, QueryResult};

use crate::connection::Hooks;
use crate::conninfo::libpq::check_version;
use crate::conninfo::{ConnectionString, IamConninfo, Keywords, Topology, invalid};
use crate::credentials::{Configured, CredentialsCache, Role, Source};
use crate::error::Error;
use crate::login::ca_bundle::CaBundle;
use crate::login::{Iam, Login, Resolver, check_role, targets};
use crate::manager::{MAX_LIFETIME, RdsConnectionManager};

/// Aurora DSQL ends a connection after this time.
const DSQL_LIFETIME: Duration = Duration::from_secs(60 * 60);

impl RdsConnectionManager {
    /// Makes a manager for a libpq connection string (URI or key/value) without a password.
    ///
    /// What the string leaves out comes from libpq's PG* variables and service file, then from this
    /// crate's defaults. Nothing is dialled. The guide lists [all keywords and
    /// defaults](crate::guide::connection_strings).
    ///
    /// # Errors
    /// - [`Error::Conninfo`] if the string cannot be used.
    /// - [`Error::Region`] if nothing names the region.
    pub fn new(database_url: impl AsRef<str>) -> Result<RdsConnectionManager, Error> {
        Self::builder().build(database_url)
    }

    /// Makes a manager for `DATABASE_URL`, or for libpq's PG* variables if it is not set.
    ///
    /// # Errors
    /// As [`new`](Self::new). Also if `DATABASE_URL` is empty.
    pub fn from_env() -> Result<RdsConnectionManager, Error> {
        Self::builder().build_from_env()
    }

    /// Returns a builder, for settings that a connection string cannot have.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Settings of a manager. A setting here wins over the keyword of the same name in the connection
/// string.
///
/// ```no_run
/// use diesel_rds_iam::RdsConnectionManager;
///
/// let manager = RdsConnectionManager::builder()
///     .region_name("eu-west-1")
///     .iam_host("db.abc123.eu-west-1.rds.amazonaws.com")
///     .build("postgres://app@db.example.com/app")?;
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder {
    keywords: Keywords,
    provider: Option<SharedCredentialsProvider>,
    profile: Option<String>,
    role: Option<Role>,
    credentials_timeout: Duration,
    time_source: Option<SharedTimeSource>,
    ping_timeout: Option<Duration>,
    resolver: Option<Resolver>,
    hooks: Hooks,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            keywords: Keywords::default(),
            provider: None,
            profile: None,
            role: None,
            credentials_timeout: Duration::from_secs(10),
            time_source: None,
            ping_timeout: Some(Duration::from_secs(5)),
            resolver: None,
            hooks: Hooks::default(),
        }
    }
}

/// Shows the keywords that are set.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("keywords", &self.keywords).finish_non_exhaustive()
    }
}

impl Builder {
    /// Whether to log in with a token. With `false` the connection string goes to libpq as it is:
    /// for a laptop with a plain password.
    ///
    /// Defaults to `true`.
    pub fn rds_iam_auth(mut self, on: bool) -> Self {
        self.keywords.rds_iam_auth = Some(on);
        self
    }

    /// The AWS region of the database.
    ///
    /// Defaults to the region in the host name; then AWS_REGION, AWS_DEFAULT_REGION or the region
    /// of the profile.
    pub fn region_name(mut self, region: impl Into<String>) -> Self {
        self.keywords.region_name = Some(region.into());
        self
    }

    /// The host name to sign for and to expect in the certificate, if another name is dialled: a
    /// CNAME, an SSH tunnel, a port forward. Several hosts can share one name, or have one each, in
    /// a list with commas.
    ///
    /// Defaults to the host that is dialled.
    pub fn iam_host(mut self, host: impl Into<String>) -> Self {
        self.keywords.iam_host = Some(host.into());
        self
    }

    /// The port to sign for, if another port is dialled.
    ///
    /// Defaults to the port that is dialled.
    pub fn iam_port(mut self, port: u16) -> Self {
        self.keywords.iam_port = Some(port);
        self
    }

    /// The source of AWS credentials. It is called on the credentials thread, inside a
    /// current-thread tokio runtime that all managers share, so it should not block.
    ///
    /// Defaults to the AWS configuration: environment, profile, web identity, container, instance
    /// metadata, in this order. Managers that use it with equal settings in the same region share
    /// their credentials, unless they have their own [`time_source`](Self::time_source).
    pub fn credentials_provider(mut self, provider: impl ProvideCredentials + 'static) -> Self {
        self.provider = Some(SharedCredentialsProvider::new(provider));
        self
    }

    /// The profile to take credentials from. No other source is used.
    ///
    /// Defaults to the default chain, in which the profile is AWS_PROFILE's, or `default`.
    #[doc(alias = "AWS_PROFILE")]
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// The ARN of a role to assume with the credentials, such as for a database in another account.
    ///
    /// Defaults to no role.
    pub fn assume_role(mut self, arn: impl Into<String>) -> Self {
        self.role.get_or_insert_default().arn = arn.into();
        self
    }

    /// The external id that the role requires. Use it together with
    /// [`assume_role`](Self::assume_role).
    ///
    /// Defaults to no external id.
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.role.get_or_insert_default().external_id = Some(id.into());
        self
    }

    /// The session name of the role, which CloudTrail shows. Use it together with
    /// [`assume_role`](Self::assume_role).
    ///
    /// Defaults to `diesel-rds-iam`.
    pub fn session_name(mut self, name: impl Into<String>) -> Self {
        self.role.get_or_insert_default().session_name = Some(name.into());
        self
    }

    /// How long to wait for AWS credentials. A `credential_process` that takes longer is not ended:
    /// give it its own timeout, or each attempt leaves a process behind.
    ///
    /// Defaults to 10 seconds.
    pub fn credentials_timeout(mut self, timeout: Duration) -> Self {
        self.credentials_timeout = timeout;
        self
    }

    /// The maximum age of a connection. Each connection's own maximum is up to a tenth shorter, at
    /// random, so that a pool does not reconnect all at once. A connection past it is closed at its
    /// check-in or its next checkout, never during its use. `None` is no maximum.
    ///
    /// Defaults to 14 minutes. At an endpoint of Aurora DSQL, it must be less than 60 minutes.
    ///
    /// # Panics
    /// If it is zero, as r2d2's setter does.
    #[doc(alias = "CONN_MAX_AGE")]
    #[doc(alias = "MaxConnLifetime")]
    pub fn max_lifetime(mut self, max_lifetime: Option<Duration>) -> Self {
        assert_ne!(max_lifetime, Some(Duration::ZERO), "max_lifetime must be positive");
        self.keywords.max_lifetime = Some(max_lifetime);
        self
    }

    /// How long a connection may be idle before a checkout pings the server.
    ///
    /// Defaults to 1 second.
    #[doc(alias = "CONN_HEALTH_CHECKS")]
    #[doc(alias = "HealthCheckPeriod")]
    pub fn validate_after(mut self, idle: Duration) -> Self {
        self.keywords.validate_after = Some(idle);
        self
    }

    /// How long a connection of a [`Pool`](crate::Pool) may be in use before a warning is logged,
    /// which names the line of the program that checked it out. Each checkout is reported once. The
    /// pool has no thread for this: it checks at each later checkout, and at
    /// [`longest_checkout`](crate::Pool::longest_checkout).
    ///
    /// Defaults to no warning.
    #[doc(alias = "leakDetectionThreshold")]
    pub fn leak_detection_threshold(mut self, threshold: Duration) -> Self {
        self.keywords.leak_detection_threshold = Some(threshold);
        self
    }

    /// A function that [`connect`](r2d2::ManageConnection::connect) calls on each new connection:
    /// for settings of the session. Its changes survive a [reset](Self::reset_on_release), which
    /// calls it again. If it fails or panics, `connect` returns [`Error::Hook`]. A failure that is
    /// not [transient](Error::is_transient) starts the
    /// [back-off](crate::guide::limits#defaults-of-this-crate) of a permanent refusal.
    ///
    /// Defaults to no function.
    #[doc(alias = "AfterConnect")]
    #[doc(alias = "connectionInitSql")]
    #[doc(alias = "on_acquire")]
    pub fn after_connect(
        mut self,
        hook: impl Fn(&mut PgConnection) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.after_connect = Some(Arc::new(hook));
        self
    }

    /// A function that is called at each checkout of a pool with r2d2's `test_on_check_out`, after
    /// its check, and at each [`get`](crate::PerThread::get) of a
    /// [`PerThread`](crate::PerThread). If it fails or panics, the connection is closed, and the
    /// next one is tried. A failure on a new connection starts the back-off of a failed login.
    ///
    /// Defaults to no function.
    #[doc(alias = "PrepareConn")]
    #[doc(alias = "BeforeAcquire")]
    pub fn before_check_out(
        mut self,
        hook: impl Fn(&mut PgConnection) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.before_check_out = Some(Arc::new(hook));
        self
    }

    /// A function that is called at each check-in of a connection that can be used again, before a
    /// [reset](Self::reset_on_release). The pool waits for it, but no lock is held. If it fails or
    /// panics, the connection is closed.
    ///
    /// Defaults to no function.
    #[doc(alias = "AfterRelease")]
    pub fn after_release(
        mut self,
        hook: impl Fn(&mut PgConnection) -> QueryResult<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.after_release = Some(Arc::new(hook));
        self
    }

    /// Whether a check-in undoes what the user of the connection changed in the session: settings
    /// and roles, advisory locks, temporary tables, LISTEN, cursors. This takes one round trip, and
    /// only if a query changed the session. Then it calls [`after_connect`](Self::after_connect). A
    /// connection whose reset fails is closed. The guide lists
    /// [what is noticed](crate::guide::pools#reset-the-session).
    ///
    /// Defaults to `false`.
    #[doc(alias = "reset")]
    #[doc(alias = "No Reset On Close")]
    #[doc(alias = "DISCARD ALL")]
    pub fn reset_on_release(mut self, on: bool) -> Self {
        self.hooks.reset_on_release = on;
        self
    }

    /// A function that makes diesel's [`Instrumentation`] of each connection. It gets the events of
    /// queries after the manager, which needs them too. The events of a login go to diesel's
    /// default instrumentation. Do not use `set_instrumentation` instead: it replaces the
    /// [manager's own](crate::guide::connections#errors-listen-and-your-own-instrumentation).
    ///
    /// Defaults to diesel's default instrumentation.
    #[doc(alias = "set_instrumentation")]
    #[doc(alias = "tracer")]
    pub fn instrumentation<I: Instrumentation>(
        mut self,
        new: impl Fn() -> I + Send + Sync + 'static,
    ) -> Self {
        self.hooks.instrumentation = Some(Arc::new(move || Box::new(new())));
        self
    }

    /// How long a checkout waits for the answer to a ping. Then the connection is closed, and the
    /// next one is tried. A check-in waits as long for the answer to a
    /// [reset](Self::reset_on_release). `None` is no limit. It has no effect if the crate does not
    /// know the connection's socket: see [`set_deadline`](RdsConnectionManager::set_deadline).
    ///
    /// Defaults to 5 seconds: longer than a busy server takes, so that a slow answer does not cause
    /// a login.
    ///
    /// # Panics
    /// If it is zero.
    #[doc(alias = "PingTimeout")]
    #[doc(alias = "validationTimeout")]
    pub fn ping_timeout(mut self, timeout: Option<Duration>) -> Self {
        assert_ne!(timeout, Some(Duration::ZERO), "ping_timeout must be positive");
        self.ping_timeout = timeout;
        self
    }

    /// How to ask the cluster for its nodes, so that a failover does not depend on DNS. The guide
    /// [describes it](crate::guide::failover#know-the-nodes). It has no effect with
    /// `rds_iam_auth=false`, and for hosts that are not of a cluster.
    ///
    /// Defaults to [`Topology::Off`].
    #[doc(alias = "failover_v2")]
    pub fn topology(mut self, topology: Topology) -> Self {
        self.keywords.topology = Some(topology);
        self
    }

    /// Readers whose replica lag exceeds this are not used, as far as the cluster reports it. Needs
    /// [`topology`](Self::topology). The keyword has the unit milliseconds.
    ///
    /// Defaults to no maximum.
    ///
    /// # Panics
    /// If it is zero.
    pub fn max_replica_lag(mut self, lag: Duration) -> Self {
        assert_ne!(lag, Duration::ZERO, "max_replica_lag must be positive");
        self.keywords.max_replica_lag = Some(lag);
        self
    }

    /// A function that returns the addresses of a host name. It is called for each login, except if
    /// the connection string has a `hostaddr`. An empty list is an error of this host.
    ///
    /// Defaults to the system's resolver.
    pub fn resolver(
        mut self,
        resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Some(Arc::new(resolve));
        self
    }

    /// The clock that signs tokens and decides when credentials expire: for tests.
    ///
    /// Defaults to the system's clock.
    pub fn time_source(mut self, time_source: impl TimeSource + 'static) -> Self {
        self.time_source = Some(SharedTimeSource::new(time_source));
        self
    }

    /// Builds the manager for a connection string. Nothing is dialled.
    ///
    /// # Errors
    /// As [`RdsConnectionManager::new`]. Also [`Error::Config`] if settings of this builder exclude
    /// each other.
    pub fn build(self, database_url: impl AsRef<str>) -> Result<RdsConnectionManager, Error> {
        self.build_from(ConnectionString::parse(database_url.as_ref())?)
    }

    /// Builds the manager for `DATABASE_URL`, or for libpq's PG* variables if it is not set.
    ///
    /// # Errors
    /// As [`build`](Self::build). Also if `DATABASE_URL` is empty.
    pub fn build_from_env(self) -> Result<RdsConnectionManager, Error> {
        match std::env::var("DATABASE_URL") {
            Ok(url) if url.trim().is_empty() => invalid(
                "DATABASE_URL is empty; set it to postgres://USER@HOST:5432/DATABASE, or unset it \
                 to use PGHOST and the other PG* variables",
            ),
            Ok(url) => self.build(url),
            Err(std::env::VarError::NotPresent) => {
                self.build_from(ConnectionString::from_variables())
            }
            Err(std::env::VarError::NotUnicode(_)) => invalid("DATABASE_URL is not valid UTF-8"),
        }
    }

    fn build_from(self, string: ConnectionString) -> Result<RdsConnectionManager, Error> {
        keep_openssl_until_the_end();
        check_version()?;
        let keywords = self.keywords.clone().or(string.keywords.clone());
        let ping_timeout = self.ping_timeout;
        let hooks = self.hooks.clone();
        let login = if keywords.rds_iam_auth.unwrap_or(true) {
            Login::Iam(Arc::new(self.build_iam(string.with_iam()?, &keywords)?))
        } else {
            log::info!("IAM authentication is off: libpq logs in as the connection string says");
            Login::Password(Box::new(string.without_iam()?))
        };
        Ok(RdsConnectionManager::with(login, &keywords, ping_timeout, hooks))
    }

    fn build_iam(self, mut conninfo: IamConninfo, keywords: &Keywords) -> Result<Iam, Error> {
        let targets = targets(&conninfo, keywords, self.profile.as_deref())?;
        if targets.iter().any(|target| target.endpoint.is_dsql()) {
            let lifetime = keywords.max_lifetime.unwrap_or(Some(MAX_LIFETIME));
            if lifetime.is_none_or(|lifetime| lifetime >= DSQL_LIFETIME) {
                return Err(Error::Config(
                    "Aurora DSQL ends each connection after 60 minutes, also in the middle of a \
                     query; set max_lifetime to less"
                        .into(),
                ));
            }
            conninfo.adapt_to_dsql();
        }
        if keywords.topology.unwrap_or_default() != Topology::Off
            && let Some(role) = targets[0].default_role()
        {
            conninfo.default_role(role);
        }
        if targets.len() > 1 || keywords.topology.is_some() {
            check_role(conninfo.target_session_attrs())?;
        }
        let time_source = self.time_source.clone().unwrap_or_default();
        let resolver = self.resolver.clone();
        let credentials = self.credentials(targets[0].endpoint.region().to_owned())?;
        warn_of_sslmode(conninfo.sslmode());
        for target in &targets {
            let endpoint = &target.endpoint;
            log::info!("IAM authentication for {endpoint} in {}: {conninfo}", endpoint.region());
        }
        let regions = targets.iter().map(|it| it.endpoint.region().to_owned()).collect();
        let ca_bundle = conninfo.sslrootcert().map(|file| CaBundle::new(file, regions));
        Ok(Iam { conninfo, targets, credentials, time_source, ca_bundle, resolver })
    }

    fn credentials(self, region: String) -> Result<Arc<CredentialsCache>, Error> {
        let Some(provider) = self.provider else { return self.configured_credentials(region) };
        if self.profile.is_some() || self.role.is_some() {
            return Err(Error::Config(
                "profile and assume_role exclude credentials_provider; remove one of them".into(),
            ));
        }
        let time_source = self.time_source.unwrap_or_default();
        let source = Source::Provider(provider);
        Ok(Arc::new(CredentialsCache::new(source, self.credentials_timeout, time_source)))
    }

    /// Shared by all managers of equal settings, unless they have their own clock.
    fn configured_credentials(self, region: String) -> Result<Arc<CredentialsCache>, Error> {
        if self.role.as_ref().is_some_and(|role| role.arn.is_empty()) {
            return Err(Error::Config(
                "the role's ARN is empty; set it by assume_role, which external_id and \
                 session_name belong to"
                    .into(),
            ));
        }
        let configured = Configured { profile: self.profile, role: self.role, region };
        let Some(time_source) = self.time_source else {
            return Ok(CredentialsCache::shared(&configured, self.credentials_timeout));
        };
        let source = Source::configured(configured);
        Ok(Arc::new(CredentialsCache::new(source, self.credentials_timeout, time_source)))
    }
}

/// Initialises OpenSSL before libpq does, without its cleanup at exit. That cleanup would run while
/// the threads of a pool are in a handshake, and the program would end with SIGSEGV.
fn keep_openssl_until_the_end() {
    #[cfg(target_os = "linux")]
    openssl::init();
}

fn warn_of_sslmode(sslmode: &str) {
    if sslmode != "verify-full" {
        log::warn!(
            "sslmode={sslmode} does not check the server's name: another server can get the \
             token; use verify-full"
        );
    }
}
