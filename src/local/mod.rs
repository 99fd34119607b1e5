//! [`LocalRds`]: a PostgreSQL server on this machine that requires IAM tokens (feature `local`).
//!
//! It is for tests and for development, never for production: it trusts a key pair that it created
//! itself.
//!
//! ```no_run
//! use diesel::prelude::*;
//! use diesel_rds_iam::local::LocalRds;
//!
//! let rds = LocalRds::start()?;
//! let manager = rds.manager()?;
//! let pool = manager.build_pool(manager.pool_builder().max_size(2))?;
//! diesel::sql_query("SELECT 1").execute(&mut pool.get()?)?;
//! assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! PostgreSQL's own programs on this machine are used. PostgreSQL sends each token through its
//! `ldap` method to a listener in this process, which checks the token as AWS does. All processes
//! and files are removed when the `LocalRds` is dropped, and also when this process is killed.

mod builder;
mod certificates;
mod clock;
mod cluster;
mod dsql;
mod folder;
mod judge;
mod ldap;
mod process;
mod programs;
mod refusal;
mod server;

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use aws_credential_types::Credentials;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;

pub use builder::Builder;
pub use clock::Clock;
use cluster::Cluster;
pub use cluster::{Condition, NodeStatus};
pub use judge::Attempt;
pub use refusal::Refusal;
#[cfg(fuzzing)]
pub(crate) use {judge::judge, ldap::converse};

use crate::error::Error;
use crate::manager::RdsConnectionManager;
use crate::token::{Endpoint, encode};
use certificates::Certificates;
use dsql::Proxy;
use judge::Judge;
use ldap::Listener;
use server::Server;

const LOCALHOST: &str = "localhost";

/// A running PostgreSQL server whose users with the role `rds_iam` log in with a token, and only
/// over TLS, as on RDS.
///
/// It listens on a free port of 127.0.0.1 and has one database, [`DATABASE`](Self::DATABASE). With
/// [`replicas`](Builder::replicas) it is a cluster of several servers.
pub struct LocalRds {
    // Dropped first, because it asks the judge.
    servers: Servers,
    judge: Arc<Judge>,
    key_pair: Credentials,
    password: String,
}

enum Servers {
    One(Box<One>),
    Cluster(Cluster),
}

/// A server without replicas.
struct One {
    /// Only with the dialect of Aurora DSQL.
    proxy: Option<Proxy>,
    server: Server,
    // Dropped after the server, because fields are dropped in this order.
    _ldap: Listener,
    /// The host names in the server's certificate.
    names: Vec<String>,
    /// The name of the certificate authority.
    authority: String,
}

impl LocalRds {
    /// The name of the database.
    pub const DATABASE: &str = "app";
    /// The user that owns the database and logs in with a token. It can create databases.
    pub const USER: &str = "app";
    /// A user without the role `rds_iam` and without a password. Its logins always fail.
    pub const USER_WITHOUT_GRANT: &str = "without_grant";
    /// A user without the role `rds_iam` that logs in with [`password`](Self::password).
    pub const USER_WITH_PASSWORD: &str = "with_password";

    /// Starts a server with the defaults of [`Builder`].
    ///
    /// # Errors
    /// [`Error::Local`] if PostgreSQL's server programs are missing (the text names the packages)
    /// or do not start.
    pub fn start() -> Result<LocalRds, Error> {
        Self::builder().start()
    }

    /// Returns a builder, to set users, endpoint and certificate.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the connection string of [`USER`](Self::USER).
    ///
    /// Without [`credentials`](Self::credentials) a manager for it does not log in: use
    /// [`manager`](Self::manager) or [`environment`](Self::environment).
    ///
    /// That of a cluster lists all nodes with their addresses, and leads to the writer without
    /// DNS. A token is for one node, so a program signs for each node of the list.
    pub fn database_url(&self) -> String {
        self.database_url_for(Self::USER)
    }

    /// Returns the connection string of another user that logs in with a token.
    pub fn database_url_for(&self, user: &str) -> String {
        let endpoint = self.judge.endpoint();
        let mut url = self.plain_url(&encode(user));
        url.push_str(&format!("&region_name={}", endpoint.region()));
        if matches!(self.servers, Servers::Cluster(_)) {
            return url;
        }
        if endpoint.host() != LOCALHOST {
            url.push_str(&format!("&iam_host={}", endpoint.host()));
        }
        if endpoint.port() != self.port() {
            url.push_str(&format!("&iam_port={}", endpoint.port()));
        }
        url
    }

    /// Returns the connection string of [`USER_WITH_PASSWORD`](Self::USER_WITH_PASSWORD). It
    /// contains the password, and `rds_iam_auth=false`.
    pub fn password_url(&self) -> String {
        let user = format!("{}:{}", Self::USER_WITH_PASSWORD, self.password);
        format!("{}&rds_iam_auth=false", self.plain_url(&user))
    }

    fn plain_url(&self, user: &str) -> String {
        match &self.servers {
            Servers::One(_) => self.url_with(user, &format!("{LOCALHOST}:{}", self.port()), ""),
            Servers::Cluster(cluster) => {
                let (hosts, addresses) = cluster.hosts();
                let writer = format!("hostaddr={addresses}&target_session_attrs=read-write&");
                self.url_with(user, &hosts, &writer)
            }
        }
    }

    /// Returns a connection string. `parameters` end with '&' unless they are empty.
    fn url_with(&self, user: &str, hosts: &str, parameters: &str) -> String {
        let root = self.ca_file().to_string_lossy();
        let root = root.split('/').map(encode).collect::<Vec<_>>().join("/");
        let database = Self::DATABASE;
        let tls = format!("sslmode=verify-full&sslrootcert={root}");
        format!("postgres://{user}@{hosts}/{database}?{parameters}{tls}")
    }

    /// Returns the port on 127.0.0.1. All nodes of a cluster have the same port.
    pub fn port(&self) -> u16 {
        match &self.servers {
            Servers::One(one) => one.server.port(),
            Servers::Cluster(cluster) => cluster.port(),
        }
    }

    /// Returns the path of the certificate (PEM) of the authority that signed the server's
    /// certificate.
    pub fn ca_file(&self) -> &Path {
        match &self.servers {
            Servers::One(one) => one.server.ca_file(),
            Servers::Cluster(cluster) => cluster.ca_file(),
        }
    }

    /// Returns the key pair that the server trusts from the start.
    pub fn credentials(&self) -> &Credentials {
        &self.key_pair
    }

    /// Returns the password of [`USER_WITH_PASSWORD`](Self::USER_WITH_PASSWORD).
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Returns the environment variables with which a program that uses this crate, an AWS SDK or
    /// libpq logs in to this server.
    ///
    /// They contain the secret access key. Those of a cluster also have its
    /// [`cluster_url`](Self::cluster_url) as `RDS_IAM_LOCAL_CLUSTER_URL`, and its
    /// [`hosts_file`](Self::hosts_file) as `RDS_IAM_LOCAL_HOSTS`.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let verdict_file = self.judge.verdict_file().unwrap_or(Path::new(""));
        let mut variables = vec![
            ("DATABASE_URL", self.database_url()),
            ("PGSSLROOTCERT", self.ca_file().to_string_lossy().into_owned()),
            ("AWS_ACCESS_KEY_ID", self.key_pair.access_key_id().to_owned()),
            ("AWS_SECRET_ACCESS_KEY", self.key_pair.secret_access_key().to_owned()),
            // An inherited session token belongs to another key pair.
            ("AWS_SESSION_TOKEN", String::new()),
            ("AWS_REGION", self.judge.endpoint().region().to_owned()),
            // `rds-iam doctor` reads it.
            ("RDS_IAM_LOCAL_VERDICT", verdict_file.to_string_lossy().into_owned()),
        ];
        if matches!(self.servers, Servers::Cluster(_)) {
            let hosts = self.hosts_file().to_string_lossy().into_owned();
            variables.push(("RDS_IAM_LOCAL_CLUSTER_URL", self.cluster_url()));
            variables.push(("RDS_IAM_LOCAL_HOSTS", hosts));
        }
        variables
    }

    /// Returns a manager of connections as [`USER`](Self::USER).
    ///
    /// # Errors
    /// As [`Builder::build`](crate::builder::Builder::build).
    pub fn manager(&self) -> Result<RdsConnectionManager, Error> {
        self.manager_builder().build(self.database_url())
    }

    /// Returns a builder of managers that sign with this server's key pair and clock, and resolve
    /// the names of a cluster with [`resolve`](Self::resolve).
    pub fn manager_builder(&self) -> crate::builder::Builder {
        let builder = RdsConnectionManager::builder()
            .credentials_provider(self.key_pair.clone())
            .time_source(self.clock());
        match &self.servers {
            Servers::One(_) => builder,
            Servers::Cluster(cluster) => builder.resolver(cluster.resolver()),
        }
    }

    /// Connects as superuser without TLS and token. Tests use it to create objects or to end
    /// sessions. In a cluster it connects to the writer.
    ///
    /// # Errors
    /// [`Error::Local`] if the connection fails.
    pub fn superuser(&self) -> Result<PgConnection, Error> {
        match &self.servers {
            Servers::One(one) => one.server.superuser(Self::DATABASE),
            Servers::Cluster(cluster) => cluster.superuser(Self::DATABASE),
        }
    }

    /// Shuts the server, or all nodes that run, down: the sessions end, and the port refuses
    /// connections.
    pub fn stop(&self) {
        match &self.servers {
            Servers::One(one) => one.server.stop(),
            Servers::Cluster(cluster) => cluster.stop(),
        }
    }

    /// Starts the server again with the same data and port, and waits until it accepts connections.
    /// A running server is shut down first, as in a reboot or a failover. In a cluster all nodes
    /// are started again in their roles, except those that were killed or frozen.
    ///
    /// # Errors
    /// [`Error::Local`] if PostgreSQL does not start.
    pub fn restart(&self) -> Result<(), Error> {
        match &self.servers {
            Servers::One(one) => one.server.restart(),
            Servers::Cluster(cluster) => cluster.restart(),
        }
    }

    /// Restarts the server as a standby that refuses writes, like the old writer after a failover.
    ///
    /// # Errors
    /// As [`restart`](Self::restart), and for a cluster: use [`failover`](Self::failover).
    pub fn demote(&self) -> Result<(), Error> {
        self.one()?.server.demote()
    }

    /// Lets a demoted server accept writes again. Its sessions remain open.
    ///
    /// # Errors
    /// [`Error::Local`] if the server is stopped, or was not demoted, and for a cluster.
    pub fn promote(&self) -> Result<(), Error> {
        let mut superuser = self.one()?.server.superuser(Self::DATABASE)?;
        superuser.batch_execute("SELECT pg_promote()").map_err(failed("cannot promote the server"))
    }

    /// Returns the server without replicas.
    fn one(&self) -> Result<&One, Error> {
        match &self.servers {
            Servers::One(one) => Ok(one),
            Servers::Cluster(_) => {
                let text = "demote and promote are for a single server; call failover";
                Err(failed("the LocalRds is a cluster")(text))
            }
        }
    }

    /// Gives the server, or each node, a certificate of a new authority, and returns the
    /// authority's certificate as PEM.
    ///
    /// [`ca_file`](Self::ca_file) does not change: until the new authority is written there, new
    /// connections fail, as after a [rotation] if a client still uses the old CA bundle. Sessions
    /// remain open.
    ///
    /// [rotation]:
    /// https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.SSL-certificate-rotation.html
    ///
    /// # Errors
    /// [`Error::Local`] if the server, or the writer of the cluster, is stopped.
    pub fn rotate_certificate(&self) -> Result<Vec<u8>, Error> {
        let one = match &self.servers {
            Servers::One(one) => one,
            Servers::Cluster(cluster) => return cluster.rotate_certificate(),
        };
        let certificates = Certificates::new(&one.names, Ipv4Addr::LOCALHOST, &one.authority)?;
        match &one.proxy {
            Some(proxy) => proxy.set_certificate(&certificates)?,
            None => one.server.set_certificate(&certificates)?,
        }
        Ok(certificates.authority)
    }

    /// Returns all logins with a token so far, the oldest first.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.judge.attempts()
    }

    /// Returns the clock with which the server checks tokens.
    pub fn clock(&self) -> Clock {
        self.judge.clock()
    }

    /// Trusts a further key pair. It replaces a key pair with the same access key id. If it has a
    /// session token or an expiry, they are checked too.
    pub fn add_key_pair(&self, key_pair: Credentials) {
        self.judge.add_key_pair(key_pair);
    }

    /// Stops to trust a key pair.
    pub fn revoke_key_pair(&self, access_key_id: &str) {
        self.judge.revoke_key_pair(access_key_id);
    }

    /// Refuses the next `logins` logins with a token, even if the token is valid.
    pub fn refuse_next(&self, logins: usize) {
        self.judge.refuse_next(logins);
    }

    /// Returns the endpoint for which tokens must be signed. That of a cluster is its cluster
    /// endpoint. A node also accepts tokens for its own endpoint and for the reader endpoint.
    pub fn endpoint(&self) -> Endpoint {
        self.judge.endpoint()
    }

    /// Sets the endpoint for which tokens must be signed. The certificate does not change.
    pub fn set_endpoint(&self, endpoint: Endpoint) {
        self.judge.set_endpoint(endpoint);
    }
}

/// Shows no secrets.
impl fmt::Debug for LocalRds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRds")
            .field("port", &self.port())
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

/// Returns a function that makes an [`Error::Local`] of a cause.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    step: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    move |cause| Error::Local { step: step.into(), cause: cause.into() }
}

/// Returns a function that makes an [`Error::Local`] of a cause, and appends what to do.
fn failed_with_cure<E: Display>(step: &'static str, cure: &'static str) -> impl FnOnce(E) -> Error {
    move |cause| failed(step)(format!("{cause}; {cure}"))
}
