//! [`Builder`]: how a manager is put together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};

use crate::conninfo::{
    Given, Host, IamConninfo, OwnKeys, invalid, one_or_one_for_each, signed_host,
};
use crate::credentials::{
    Configured, CredentialsCache, Role, Source, configured_region, https, unreadable_files,
};
use crate::error::Error;
use crate::login::ca_bundle::Roots;
use crate::login::{Iam, Login, RegionFrom, Target};
use crate::manager::RdsConnectionManager;
use crate::token::{Endpoint, HostKind, HostName, is_region};

/// Settings that a connection string cannot say, and those it can: what is set here wins.
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
#[must_use]
pub struct Builder {
    own: OwnKeys,
    origin: Origin,
    profile: Option<String>,
    role: Option<Role>,
    credentials_timeout: Duration,
    time_source: Option<SharedTimeSource>,
    max_lifetime: Option<Duration>,
    validate_after: Duration,
}

/// Where the builder was told to take credentials from.
enum Origin {
    Configuration,
    Provider(SharedCredentialsProvider),
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            own: OwnKeys::default(),
            origin: Origin::Configuration,
            profile: None,
            role: None,
            credentials_timeout: Duration::from_secs(10),
            time_source: None,
            max_lifetime: Some(Duration::from_secs(14 * 60)),
            validate_after: Duration::from_secs(1),
        }
    }
}

/// Which settings are set.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Builder {
    /// Whether to log in with a token (`rds_iam_auth` in the connection string).
    ///
    /// With `false` the connection string goes to libpq as it is: for a laptop with a plain
    /// password.
    ///
    /// Defaults to `true`.
    pub fn rds_iam_auth(mut self, on: bool) -> Self {
        self.own.rds_iam_auth = Some(on);
        self
    }

    /// The AWS region that the database is in (`region_name` in the connection string).
    ///
    /// Defaults to the one in the host name; then AWS_REGION, AWS_DEFAULT_REGION or the profile's.
    pub fn region_name(mut self, region: impl Into<String>) -> Self {
        self.own.region_name = Some(region.into());
        self
    }

    /// The host name to sign for and to expect in the certificate, when another one is dialled: a
    /// CNAME, an SSH tunnel, a port forward.
    ///
    /// Several hosts can share one, or have one each, in a list with commas.
    ///
    /// Defaults to the host that is dialled.
    pub fn iam_host(mut self, host: impl Into<String>) -> Self {
        self.own.iam_host = Some(host.into());
        self
    }

    /// The port to sign for, when another one is dialled.
    ///
    /// Defaults to the port that is dialled.
    pub fn iam_port(mut self, port: u16) -> Self {
        self.own.iam_port = Some(port);
        self
    }

    /// Where AWS credentials come from. It is asked on a thread of ours, inside a current-thread
    /// tokio runtime that all managers share: it should not block.
    ///
    /// Defaults to AWS configuration: environment, profile, web identity, container, instance
    /// metadata, in this order.
    pub fn credentials_provider(mut self, provider: impl ProvideCredentials + 'static) -> Self {
        self.origin = Origin::Provider(SharedCredentialsProvider::new(provider));
        self
    }

    /// The profile in the shared configuration files to take credentials from, and no other source.
    ///
    /// Defaults to the default chain, in which the profile is AWS_PROFILE's, or `default`.
    #[doc(alias = "AWS_PROFILE")]
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// The ARN of a role to assume with the credentials found, as for a database in another
    /// account.
    ///
    /// Defaults to none.
    pub fn assume_role(mut self, arn: impl Into<String>) -> Self {
        self.role.get_or_insert_default().arn = arn.into();
        self
    }

    /// The external id that the role asks for. Goes with [`assume_role`](Self::assume_role).
    ///
    /// Defaults to none.
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.role.get_or_insert_default().external_id = Some(id.into());
        self
    }

    /// The name of the role's session, as CloudTrail shows it. Goes with
    /// [`assume_role`](Self::assume_role).
    ///
    /// Defaults to `diesel-rds-iam`.
    pub fn session_name(mut self, name: impl Into<String>) -> Self {
        self.role.get_or_insert_default().session_name = Some(name.into());
        self
    }

    /// How long to wait for AWS credentials. The program of a `credential_process` that takes
    /// longer is not ended: give it a limit of its own, or each attempt leaves one behind.
    ///
    /// Defaults to 10 seconds.
    pub fn credentials_timeout(mut self, timeout: Duration) -> Self {
        self.credentials_timeout = timeout;
        self
    }

    /// How old a connection may become; each one's end is up to a tenth earlier, by chance, so that
    /// a pool does not reconnect all at once. A connection past its end is retired at its check-in
    /// or its next checkout: never in the middle of its use, and not only when it is idle, as r2d2
    /// does by itself. None never ends one.
    ///
    /// Defaults to 14 minutes.
    ///
    /// # Panics
    /// If it is zero, as r2d2's.
    #[doc(alias = "CONN_MAX_AGE")]
    #[doc(alias = "MaxConnLifetime")]
    pub fn max_lifetime(mut self, max_lifetime: Option<Duration>) -> Self {
        assert_ne!(max_lifetime, Some(Duration::ZERO), "max_lifetime must be positive");
        self.max_lifetime = max_lifetime;
        self
    }

    /// How long a connection may have been idle to be given out without a round trip to the server.
    ///
    /// Defaults to 1 second.
    #[doc(alias = "CONN_HEALTH_CHECKS")]
    #[doc(alias = "HealthCheckPeriod")]
    pub fn validate_after(mut self, idle: Duration) -> Self {
        self.validate_after = idle;
        self
    }

    /// The clock that tokens are signed by, and that tells when credentials end: for tests.
    ///
    /// Defaults to the system's.
    pub fn time_source(mut self, time_source: impl TimeSource + 'static) -> Self {
        self.time_source = Some(SharedTimeSource::new(time_source));
        self
    }

    /// Builds the manager for a connection string. Nothing is dialled.
    ///
    /// # Errors
    /// As [`RdsConnectionManager::new`].
    pub fn build(self, database_url: impl AsRef<str>) -> Result<RdsConnectionManager, Error> {
        self.build_given(Given::parse(database_url.as_ref())?)
    }

    /// Builds the manager for `DATABASE_URL` or, where that is not set, for libpq's PG* variables.
    ///
    /// # Errors
    /// As [`RdsConnectionManager::from_env`].
    pub fn build_from_env(self) -> Result<RdsConnectionManager, Error> {
        match std::env::var("DATABASE_URL") {
            Ok(url) if url.trim().is_empty() => invalid(
                "DATABASE_URL is set to nothing; set it to postgres://USER@HOST:5432/DATABASE, or unset it to use PGHOST and its like",
            ),
            Ok(url) => self.build(url),
            Err(std::env::VarError::NotPresent) => self.build_given(Given::from_variables()),
            Err(std::env::VarError::NotUnicode(_)) => {
                invalid("DATABASE_URL is not UTF-8; set it anew")
            }
        }
    }

    fn build_given(self, given: Given) -> Result<RdsConnectionManager, Error> {
        let own = self.own.clone().or(given.own.clone());
        let (max_lifetime, validate_after) = (self.max_lifetime, self.validate_after);
        let login = if own.rds_iam_auth.unwrap_or(true) {
            Login::Iam(Box::new(self.build_iam(given.with_iam()?, own)?))
        } else {
            log::info!("IAM authentication is off: logging in as the connection string says");
            let (conninfo, connect_timeout) = given.without_iam()?;
            Login::Password { conninfo, connect_timeout }
        };
        Ok(RdsConnectionManager::with(login, max_lifetime, validate_after))
    }

    fn build_iam(self, conninfo: IamConninfo, own: OwnKeys) -> Result<Iam, Error> {
        let targets = targets(&conninfo, own, self.profile.as_deref())?;
        let time_source = self.time_source.clone().unwrap_or_default();
        let credentials = self.credentials(targets[0].endpoint.region().to_owned())?;
        warn_of_sslmode(conninfo.sslmode());
        for Target { endpoint, .. } in &targets {
            log::info!("IAM authentication for {endpoint} in {}: {conninfo}", endpoint.region());
        }
        let regions = targets.iter().map(|target| target.endpoint.region().to_owned()).collect();
        let roots = conninfo.sslrootcert().map(|file| Roots::new(file, regions));
        Ok(Iam { conninfo, targets, credentials, time_source, roots })
    }

    fn credentials(self, region: String) -> Result<Arc<CredentialsCache>, Error> {
        let source = match self.origin {
            Origin::Configuration => return self.configured(region),
            _ if self.profile.is_some() || self.role.is_some() => {
                return invalid(
                    "profile and assume_role are for AWS configuration; leave out the other source of credentials",
                );
            }
            Origin::Provider(provider) => Source::Given(provider),
        };
        let time_source = self.time_source.unwrap_or_default();
        Ok(Arc::new(CredentialsCache::new(source, self.credentials_timeout, time_source)))
    }

    /// Shared with all managers of the same settings, unless something of its own tells it apart.
    fn configured(self, region: String) -> Result<Arc<CredentialsCache>, Error> {
        if self.role.as_ref().is_some_and(|role| role.arn.is_empty()) {
            return invalid(
                "the role's ARN is empty; external_id and session_name go with the role that assume_role names",
            );
        }
        let configured = Configured { profile: self.profile, role: self.role, region };
        if self.time_source.is_none() {
            return Ok(CredentialsCache::shared(&configured, self.credentials_timeout));
        }
        let source = Source::Configured(configured, https::client());
        let time_source = self.time_source.unwrap_or_default();
        Ok(Arc::new(CredentialsCache::new(source, self.credentials_timeout, time_source)))
    }
}

/// The hosts to dial, each with the endpoint to sign for: its own name, or what `iam_host` has for
/// all or for each.
fn targets(
    conninfo: &IamConninfo,
    own: OwnKeys,
    profile: Option<&str>,
) -> Result<Vec<Target>, Error> {
    let hosts = conninfo.hosts();
    let iam_hosts = own
        .iam_host
        .as_deref()
        .map(|list| one_or_one_for_each("iam_host", list, hosts.len()))
        .transpose()?;
    let target = |(i, host): (usize, &Host)| {
        let iam_host = iam_hosts.as_ref().map(|names| names[i]);
        if iam_host == Some("") {
            return invalid(
                "a place in the list iam_host is empty; name an endpoint there, or take the comma away",
            );
        }
        let name = signed_host(iam_host.unwrap_or(&host.name))?;
        let (region, region_from) = region_for(&name, own.region_name.clone(), profile)?;
        let endpoint = Endpoint::new(name.as_str(), own.iam_port.unwrap_or(host.port), &region)?;
        Ok(Target { user: conninfo.user().to_owned(), host: host.clone(), endpoint, region_from })
    };
    hosts.iter().enumerate().map(target).collect()
}

fn warn_of_sslmode(sslmode: &str) {
    if sslmode != "verify-full" {
        log::warn!(
            "sslmode={sslmode} lets a server of another name take the token; use verify-full"
        );
    }
}

/// The region: explicit, else the host's own, else AWS configuration. Never a guess.
fn region_for(
    name: &HostName,
    explicit: Option<String>,
    profile: Option<&str>,
) -> Result<(String, RegionFrom), Error> {
    match (explicit, name.region()) {
        (Some(region), Some(told)) if region != told => {
            log::warn!(
                "signing for the region {region}, as set, though {} says {told}",
                name.as_str()
            );
            Ok((region, RegionFrom::Setting))
        }
        (Some(region), _) => Ok((region, RegionFrom::Setting)),
        (None, Some(told)) => Ok((told.to_owned(), RegionFrom::HostName)),
        // AWS_REGION tells where we are; a global database's writer may be elsewhere.
        (None, None) if name.kind() == HostKind::GlobalWriter => Err(Error::Region {
            host: name.as_str().to_owned(),
            reason: "the name of a global database carries none, and its writer can move".into(),
        }),
        (None, None) => Ok((told_by_configuration(name, profile)?, RegionFrom::Configuration)),
    }
}

fn told_by_configuration(name: &HostName, profile: Option<&str>) -> Result<String, Error> {
    let host = name.as_str().to_owned();
    match configured_region(profile) {
        Some(region) if is_region(&region) => Ok(region),
        Some(region) => {
            let reason = format!(
                "AWS_REGION or the AWS profile says {region:?}, which is not of the form eu-west-1"
            );
            Err(Error::Region { host, reason })
        }
        None => {
            let mut reasons = vec![
                "the host name tells none, and neither AWS_REGION nor the AWS profile does"
                    .to_owned(),
            ];
            reasons.extend(unreadable_files());
            Err(Error::Region { host, reason: reasons.join("; ") })
        }
    }
}
