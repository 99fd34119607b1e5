//! [`LocalRds`]: a PostgreSQL on this machine that asks for IAM tokens (feature `local`).
//!
//! It is for tests and laptops, and never for production: it trusts key pairs that it made itself.
//!
//! ```no_run
//! use diesel::prelude::*;
//! use diesel_rds_iam::local::LocalRds;
//!
//! let rds = LocalRds::start()?;
//! let manager = rds.manager_builder().build(rds.database_url())?;
//! let pool = manager.build_pool(manager.pool_builder().max_size(2))?;
//! diesel::sql_query("SELECT 1").execute(&mut pool.get()?)?;
//! assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! PostgreSQL itself is the real one, from this machine: it gets each token through its own `ldap`
//! method, which asks a small listener in this process, and that judges the token as AWS would.
//! Everything that was started and written is gone when the `LocalRds` is dropped, and also when
//! its process is killed.

mod certificates;
mod clock;
mod folder;
mod judge;
mod ldap;
mod server;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use aws_credential_types::Credentials;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;

pub use clock::Clock;
pub use judge::{Attempt, Refusal};
#[cfg(fuzzing)]
pub(crate) use {judge::judge, ldap::converse};

use crate::conninfo::{LONGEST_NAME, invalid};
use crate::error::Error;
use crate::manager::RdsConnectionManager;
use crate::token::{Endpoint, encode, hex};
use certificates::Certificates;
use judge::Judge;
use ldap::Listener;
use server::Server;

/// A running PostgreSQL whose users with the role `rds_iam` log in by token, over TLS only, as on
/// RDS.
///
/// It listens on 127.0.0.1, at a port of its own, and has one database,
/// [`DATABASE`](Self::DATABASE).
pub struct LocalRds {
    server: Server,
    // Ends after the server: fields are dropped in this order.
    _ldap: Listener,
    judge: Arc<Judge>,
    key_pair: Credentials,
    password: String,
    /// The names in its certificate, and that of the authority.
    names: (Vec<String>, String),
}

impl LocalRds {
    /// The database.
    pub const DATABASE: &str = "app";
    /// The user that owns the database, may create others, and logs in by token.
    pub const USER: &str = "app";
    /// A user without the role `rds_iam` and without a password: no login succeeds.
    pub const USER_WITHOUT_GRANT: &str = "without_grant";
    /// A user without the role `rds_iam` that logs in by [`password`](Self::password).
    pub const USER_WITH_PASSWORD: &str = "with_password";

    /// Starts one with all defaults.
    ///
    /// # Errors
    /// [`Error::Local`] when PostgreSQL's server programs are missing (the text says what to
    /// install) or do not start.
    pub fn start() -> Result<LocalRds, Error> {
        Self::builder().start()
    }

    /// A builder, for users and endpoint names of your own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The connection string of [`USER`](Self::USER), with our own keywords where they are needed.
    pub fn database_url(&self) -> String {
        self.database_url_for(Self::USER)
    }

    /// The connection string of another user that logs in by token.
    pub fn database_url_for(&self, user: &str) -> String {
        let endpoint = self.judge.endpoint();
        let mut url = self.plain_url(&encode(user));
        url.push_str(&format!("&region_name={}", endpoint.region()));
        if endpoint.host() != LOCALHOST {
            url.push_str(&format!("&iam_host={}", endpoint.host()));
        }
        if endpoint.port() != self.port() {
            url.push_str(&format!("&iam_port={}", endpoint.port()));
        }
        url
    }

    /// The connection string of [`USER_WITH_PASSWORD`](Self::USER_WITH_PASSWORD), password
    /// included, with `rds_iam_auth=false`.
    pub fn password_url(&self) -> String {
        let user = format!("{}:{}", Self::USER_WITH_PASSWORD, self.password);
        format!("{}&rds_iam_auth=false", self.plain_url(&user))
    }

    fn plain_url(&self, user: &str) -> String {
        let root = self.ca_file().to_string_lossy();
        let root = root.split('/').map(encode).collect::<Vec<_>>().join("/");
        let (port, database) = (self.port(), Self::DATABASE);
        format!(
            "postgres://{user}@{LOCALHOST}:{port}/{database}?sslmode=verify-full&sslrootcert={root}"
        )
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The certificate, as PEM, of the authority that signed the server's certificate.
    pub fn ca_file(&self) -> &Path {
        self.server.ca_file()
    }

    /// The key pair that the server trusts from the start.
    pub fn credentials(&self) -> &Credentials {
        &self.key_pair
    }

    /// The password of [`USER_WITH_PASSWORD`](Self::USER_WITH_PASSWORD).
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Environment variables that let any program with this crate, an AWS SDK or libpq find its way
    /// here.
    ///
    /// They hold the secret access key.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("DATABASE_URL", self.database_url()),
            ("PGSSLROOTCERT", self.ca_file().to_string_lossy().into_owned()),
            ("AWS_ACCESS_KEY_ID", self.key_pair.access_key_id().to_owned()),
            ("AWS_SECRET_ACCESS_KEY", self.key_pair.secret_access_key().to_owned()),
            // Somebody's own would go with our key pair.
            ("AWS_SESSION_TOKEN", String::new()),
            ("AWS_REGION", self.judge.endpoint().region().to_owned()),
        ]
    }

    /// A builder of managers that sign with this server's key pair, by its clock.
    pub fn manager_builder(&self) -> crate::Builder {
        RdsConnectionManager::builder()
            .credentials_provider(self.key_pair.clone())
            .time_source(self.clock())
    }

    /// A connection as superuser, past TLS and tokens: to create what a test needs, or to end
    /// sessions.
    ///
    /// # Errors
    /// [`Error::Local`] when the server does not answer.
    pub fn superuser(&self) -> Result<PgConnection, Error> {
        self.server.superuser(Self::DATABASE)
    }

    /// Shuts the server down, as an outage begins: its sessions end, and nothing listens at its
    /// port any more.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Starts the server again, with its data and at its port, and waits until it accepts
    /// connections. One that runs is shut down first, as a reboot or a failover does.
    ///
    /// # Errors
    /// [`Error::Local`] when PostgreSQL does not start.
    pub fn restart(&self) -> Result<(), Error> {
        self.server.restart()
    }

    /// Restarts the server as a standby that takes no writes, as the old writer after a failover.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub fn demote(&self) -> Result<(), Error> {
        self.server.demote()
    }

    /// Makes a demoted server take writes again. Sessions stay.
    ///
    /// # Errors
    /// [`Error::Local`] when it is stopped, or was not demoted.
    pub fn promote(&self) -> Result<(), Error> {
        let mut superuser = self.superuser()?;
        superuser.batch_execute("SELECT pg_promote()").map_err(failed("cannot promote the server"))
    }

    /// Gives the server a certificate of a new authority, and returns that authority's certificate,
    /// as PEM.
    ///
    /// [`ca_file`](Self::ca_file) stays as it was: whoever trusts it alone is not connected any
    /// more until the new authority is written there, as after a [rotation] that a client's bundle
    /// has missed. Sessions stay.
    ///
    /// [rotation]:
    /// https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.SSL-certificate-rotation.html
    ///
    /// # Errors
    /// [`Error::Local`] when it is stopped.
    pub fn rotate_certificate(&self) -> Result<Vec<u8>, Error> {
        let (names, authority) = &self.names;
        let certificates = Certificates::new(names, Ipv4Addr::LOCALHOST, authority)?;
        self.server.take(&certificates)?;
        Ok(certificates.authority)
    }

    /// Each login by token so far, oldest first.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.judge.attempts()
    }

    /// The clock by which tokens are judged.
    pub fn clock(&self) -> Clock {
        self.judge.clock()
    }

    /// Trusts a further key pair, in the place of one with the same access key id. Its session
    /// token and its end, where it has them, are checked too.
    pub fn add_key_pair(&self, key_pair: Credentials) {
        self.judge.add_key_pair(key_pair);
    }

    /// Trusts this key pair no longer.
    pub fn revoke_key_pair(&self, access_key_id: &str) {
        self.judge.revoke_key_pair(access_key_id);
    }

    /// Refuses the next `logins` by token, whatever they are signed with.
    pub fn refuse_next(&self, logins: usize) {
        self.judge.refuse_next(logins);
    }

    /// What the server believes to be: tokens for any other endpoint are refused.
    pub fn endpoint(&self) -> Endpoint {
        self.judge.endpoint()
    }

    /// Changes what the server believes to be. Its certificate stays.
    pub fn set_endpoint(&self, endpoint: Endpoint) {
        self.judge.set_endpoint(endpoint);
    }
}

/// Where it listens, without secrets.
impl fmt::Debug for LocalRds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRds")
            .field("port", &self.port())
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

const LOCALHOST: &str = "localhost";

/// How to start a [`LocalRds`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    endpoint: Option<(String, u16)>,
    region: String,
    names: Vec<String>,
    authority: String,
    users: Vec<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            endpoint: None,
            region: "us-east-1".into(),
            names: Vec::new(),
            authority: "LocalRds root".into(),
            users: vec![LocalRds::USER.into()],
        }
    }
}

impl Builder {
    /// The endpoint that the server believes to be, as an RDS name; its certificate carries that
    /// name too.
    ///
    /// Defaults to `localhost` and the port that it listens on.
    pub fn endpoint(mut self, host: impl Into<String>, port: u16) -> Self {
        self.endpoint = Some((host.into(), port));
        self
    }

    /// The region that the server believes to be in.
    ///
    /// Defaults to `us-east-1`.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// A further name for the server's certificate.
    ///
    /// Defaults to `localhost`, 127.0.0.1 and the endpoint's name only.
    pub fn certificate_name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// The name of the authority that signs the server's certificate, as `Amazon RDS eu-west-1 Root
    /// CA RSA2048 G1`. A number follows it, for each server has an authority of its own.
    ///
    /// Defaults to `LocalRds root`.
    pub fn authority(mut self, name: impl Into<String>) -> Self {
        self.authority = name.into();
        self
    }

    /// A further user with the role `rds_iam`: a name of 1 to 63 bytes that is not taken.
    ///
    /// Defaults to [`LocalRds::USER`] only.
    pub fn iam_user(mut self, name: impl Into<String>) -> Self {
        self.users.push(name.into());
        self
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    /// As [`LocalRds::start`]; [`Error::Conninfo`] when the endpoint or the region is none.
    pub fn start(mut self) -> Result<LocalRds, Error> {
        self.check_users()?;
        let (host, port) = self.endpoint.clone().unwrap_or((LOCALHOST.into(), UNKNOWN_PORT));
        let endpoint = Endpoint::new(&host, port, &self.region)?;
        self.names.extend([endpoint.host().to_owned(), LOCALHOST.to_owned()]);
        let certificates = Certificates::new(&self.names, Ipv4Addr::LOCALHOST, &self.authority)?;
        let key_pair = new_key_pair()?;
        let judge = Arc::new(Judge::new(endpoint, key_pair.clone()));
        let ldap = Listener::start(judge.clone())?;
        let server = Server::start(&certificates, ldap.port())?;
        if self.endpoint.is_none() {
            judge.set_endpoint(Endpoint::new(LOCALHOST, server.port(), &self.region)?);
        }
        let password = format!("local-rds-password-{}", random_hex()?);
        create_roles(&server, &self.users, &password)?;
        Ok(LocalRds {
            server,
            _ldap: ldap,
            judge,
            key_pair,
            password,
            names: (self.names, self.authority),
        })
    }

    fn check_users(&self) -> Result<(), Error> {
        let taken = [LocalRds::USER_WITHOUT_GRANT, LocalRds::USER_WITH_PASSWORD, "rds_iam"];
        for (i, user) in self.users.iter().enumerate() {
            let fits = (1..=LONGEST_NAME).contains(&user.len()) && !user.contains('\0');
            if !fits || taken.contains(&user.as_str()) || self.users[..i].contains(user) {
                return invalid(
                    "a name given to iam_user is taken, or has not 1 to 63 bytes; give another",
                );
            }
        }
        Ok(())
    }
}

/// Until the server has started.
const UNKNOWN_PORT: u16 = 1;

/// A key pair that is easy to tell from a real one.
fn new_key_pair() -> Result<Credentials, Error> {
    let id = random_hex()?.to_uppercase();
    let secret = format!("local-rds-secret-{}", random_hex()?);
    Ok(Credentials::new(format!("AKIA{}", &id[..16]), secret, None, None, "LocalRds"))
}

fn random_hex() -> Result<String, Error> {
    let mut bytes = [0; 16];
    openssl::rand::rand_bytes(&mut bytes).map_err(failed("no random bytes"))?;
    Ok(hex(&bytes))
}

fn create_roles(server: &Server, iam_users: &[String], password: &str) -> Result<(), Error> {
    let mut superuser = server.superuser("postgres")?;
    let mut sql = vec![
        "CREATE ROLE rds_iam".to_owned(),
        format!("CREATE ROLE {} LOGIN", LocalRds::USER_WITHOUT_GRANT),
        format!("CREATE ROLE {} LOGIN PASSWORD '{password}'", LocalRds::USER_WITH_PASSWORD),
    ];
    for user in iam_users {
        let user = user.replace('"', "\"\"");
        sql.push(format!("CREATE ROLE \"{user}\" LOGIN CREATEDB; GRANT rds_iam TO \"{user}\""));
    }
    sql.push(format!("CREATE DATABASE {} OWNER {}", LocalRds::DATABASE, LocalRds::USER));
    for statement in sql {
        superuser
            .batch_execute(&statement)
            .map_err(failed("cannot create the roles and the database"))?;
    }
    Ok(())
}

/// Names the step that an error belongs to.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    move |cause| Error::Local { step: step.into(), cause: cause.into() }
}
