//! Starts a [`LocalRds`].

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use diesel::connection::SimpleConnection;

use super::certificates::Certificates;
use super::cluster::{Cluster, MOST_REPLICAS, Settings};
use super::dsql::{CLUSTER, Proxy, SYS};
use super::judge::{Entrance, Judge};
use super::ldap::Listener;
use super::server::{Access, Server, free_port, port_of};
use super::{LOCALHOST, LocalRds, One, Servers, failed};
use crate::conninfo::LONGEST_NAME;
use crate::error::Error;
use crate::token::{Endpoint, hex};

/// Settings of a [`LocalRds`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    endpoint: Option<(String, u16)>,
    region: String,
    names: Vec<String>,
    authority: String,
    users: Vec<String>,
    is_dsql: bool,
    replicas: usize,
    dns_lag: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            endpoint: None,
            region: "us-east-1".into(),
            names: Vec::new(),
            authority: "LocalRds root".into(),
            users: vec![LocalRds::USER.into()],
            is_dsql: false,
            replicas: 0,
            dns_lag: Duration::from_secs(30),
        }
    }
}

impl Builder {
    /// Sets the endpoint for which tokens must be signed, for example an RDS endpoint. The server's
    /// certificate contains its host name.
    ///
    /// Defaults to `localhost` and the port on which the server listens.
    pub fn endpoint(mut self, host: impl Into<String>, port: u16) -> Self {
        self.endpoint = Some((host.into(), port));
        self
    }

    /// Sets the region for which tokens must be signed.
    ///
    /// Defaults to `us-east-1`.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// Adds a host name to the server's certificate.
    ///
    /// Defaults to `localhost`, 127.0.0.1 and the host name of the endpoint.
    pub fn certificate_name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Sets the name of the certificate authority, for example `Amazon RDS eu-west-1 Root CA
    /// RSA2048 G1`. A random number is appended, because each server has its own authority.
    ///
    /// Defaults to `LocalRds root`.
    pub fn authority(mut self, name: impl Into<String>) -> Self {
        self.authority = name.into();
        self
    }

    /// Adds a user with the role `rds_iam`. The name has 1 to 63 bytes and must not be in use.
    ///
    /// Defaults to [`LocalRds::USER`] only.
    pub fn iam_user(mut self, name: impl Into<String>) -> Self {
        self.users.push(name.into());
        self
    }

    /// Starts a cluster: a writer, and this number of replicas with streaming replication. At most
    /// 15, as in Aurora. Only on Linux.
    ///
    /// - All nodes listen on the same port: node 0 on 127.0.0.1, node 1 on 127.0.0.2.
    /// - The host names are those of RDS: `local.cluster-localrds.REGION.rds.amazonaws.com` is the
    ///   endpoint of the cluster, `local.cluster-ro-localrds.REGION.rds.amazonaws.com` that of the
    ///   readers, and `node-1.localrds.REGION.rds.amazonaws.com` that of node 0.
    /// - A node accepts tokens for its own endpoint and for the endpoints of cluster and readers.
    ///   [`endpoint`](Self::endpoint) cannot be set.
    /// - Each node has the functions by which clients find the nodes: `aurora_replica_status()`,
    ///   `aurora_db_instance_identifier()`, `aurora_global_db_instance_status()`,
    ///   `rds_tools.show_topology()`, `rds_tools.dbi_resource_id()` and
    ///   `rds_tools.multi_az_db_cluster_source_dbi_resource_id()`. All nodes return the current
    ///   roles, a former writer too.
    /// - Replication is synchronous: a COMMIT waits for all replicas that run.
    ///
    /// Defaults to 0: one server without these names and functions.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Sets how long the names of a cluster and of its readers still lead to the old nodes after a
    /// change, as DNS does.
    ///
    /// Defaults to 30 s.
    pub fn dns_lag(mut self, lag: Duration) -> Self {
        self.dns_lag = lag;
        self
    }

    /// Lets the server speak the dialect of [Aurora DSQL](crate::guide::dsql).
    ///
    /// - The host name is one of DSQL, so tokens are for the action `DbConnect`, or
    ///   `DbConnectAdmin` for the user `admin`. A host name given to [`endpoint`](Self::endpoint)
    ///   is kept.
    /// - A proxy before PostgreSQL refuses what DSQL refuses, with the SQLSTATE of DSQL: two
    ///   statements of DDL, or DDL and DML, in one transaction; `SAVEPOINT`, `TRUNCATE`, `LISTEN`,
    ///   PL/pgSQL, triggers, enums, arrays and other types as columns, `SERIAL`, advisory locks,
    ///   most of `SET` and of `ALTER TABLE`.
    /// - `CREATE INDEX ASYNC` and `ALTER TABLE ASYNC` return a job. `sys.jobs` and `CALL
    ///   sys.wait_for_job('...')` know it.
    /// - A transaction can change 3,000 rows and 10 MiB, and has the isolation `REPEATABLE READ`.
    /// - A connection ends after 60 minutes on the server's [`clock`](LocalRds::clock), or when its
    ///   transaction ends, at the latest after 65 minutes.
    /// - The errors for conflicts are those of DSQL: SQLSTATE 40001, with `OC000`, or with `OC001`
    ///   if DDL was committed during the transaction.
    /// - `AWS IAM GRANT` and `AWS IAM REVOKE` of the user `admin`. The ARN is not checked.
    ///
    /// The answers are those of published records of a cluster, and of AWS' documentation. No DSQL
    /// cluster was used for this crate. Known differences:
    ///
    /// - A conflict of data is an error of the statement, which first waits for the other
    ///   transaction. On DSQL it is an error of COMMIT. A conflict with a changed schema occurs in
    ///   transactions with BEGIN and a COMMIT that is not prepared, and with each DDL.
    /// - A job has ended when its statement returns. A unique index for which there are duplicates
    ///   does not exist afterwards. On DSQL it exists and is invalid.
    /// - The database is `app` instead of `postgres`. The user `app` can create objects.
    /// - A primary key column can be dropped. `PREPARE` and `EXECUTE` in SQL are not checked.
    /// - The version is that of PostgreSQL on this machine. `pg_trigger` and `sys` contain what the
    ///   stand-in needs.
    /// - `options` in a connection string are passed on. TLS begins after a request, so
    ///   `sslnegotiation=direct` fails.
    /// - There is no limit for logins per second, and none of 5 minutes for a transaction.
    /// - After [`stop`](LocalRds::stop) the port accepts connections and closes them at once.
    /// - [`superuser`](LocalRds::superuser) is not limited.
    ///
    /// Defaults to the dialect of PostgreSQL.
    pub fn dsql(mut self) -> Self {
        self.is_dsql = true;
        self
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// # Errors
    /// - [`Error::Config`] if the endpoint, the region or a user is invalid, or if `replicas` are
    ///   combined with `dsql` or `endpoint`.
    /// - [`Error::Local`] as in [`LocalRds::start`].
    pub fn start(mut self) -> Result<LocalRds, Error> {
        if self.is_dsql {
            self.users.push(ADMIN.into());
        }
        self.check_users()?;
        if self.replicas > 0 {
            return self.start_cluster();
        }
        let (host, port) = self.endpoint.clone().unwrap_or((self.default_host(), UNKNOWN_PORT));
        let endpoint = Endpoint::new(&host, port, &self.region).map_err(invalid_setting)?;
        self.names.extend([endpoint.host().to_owned(), LOCALHOST.to_owned()]);
        let certificates = Certificates::new(&self.names, Ipv4Addr::LOCALHOST, &self.authority)?;
        let key_pair = new_key_pair()?;
        let judge = Arc::new(Judge::new(endpoint, key_pair.clone()));
        let ldap = Listener::start(judge.clone(), Entrance::default())?;
        let listener = self.is_dsql.then(free_port).transpose()?;
        let access = match &listener {
            Some(listener) => Access::Socket(port_of(listener)?),
            None => Access::Tcp,
        };
        let server = Server::start(&certificates, ldap.port(), access)?;
        judge.set_verdict_file(server.verdict_file()?);
        if self.endpoint.is_none() {
            judge.set_endpoint(Endpoint::new(&host, server.port(), &self.region)?);
        }
        let password = new_password()?;
        create_roles(&server, &self.users, &password)?;
        let proxy = match listener {
            Some(listener) => {
                prepare_dialect(&server)?;
                let clock = judge.clock();
                Some(Proxy::start(listener, server.socket(), &certificates, clock)?)
            }
            None => None,
        };
        let (names, authority) = (self.names, self.authority);
        let one = One { proxy, server, _ldap: ldap, names, authority };
        Ok(LocalRds { servers: Servers::One(Box::new(one)), judge, key_pair, password })
    }

    fn start_cluster(self) -> Result<LocalRds, Error> {
        self.check_cluster()?;
        let settings = Settings {
            replicas: self.replicas,
            dns_lag: self.dns_lag,
            region: self.region,
            certificate_names: self.names,
            authority: self.authority,
        };
        let key_pair = new_key_pair()?;
        let password = new_password()?;
        let (cluster, judge) = Cluster::start(
            &settings,
            |endpoint| Judge::new(endpoint, key_pair.clone()),
            |server| create_roles(server, &self.users, &password),
        )?;
        Ok(LocalRds { servers: Servers::Cluster(cluster), judge, key_pair, password })
    }

    fn check_cluster(&self) -> Result<(), Error> {
        let excluded = match (self.is_dsql, &self.endpoint) {
            (true, _) => "replicas exclude dsql; remove one of them",
            (_, Some(_)) => "replicas exclude endpoint; remove one of them",
            _ if self.replicas > MOST_REPLICAS => "a cluster has at most 15 replicas; use fewer",
            _ => return Ok(()),
        };
        Err(Error::Config(excluded.into()))
    }

    fn default_host(&self) -> String {
        match self.is_dsql {
            true => format!("{CLUSTER}.dsql.{}.on.aws", self.region),
            false => LOCALHOST.into(),
        }
    }

    fn check_users(&self) -> Result<(), Error> {
        let taken = [LocalRds::USER_WITHOUT_GRANT, LocalRds::USER_WITH_PASSWORD, "rds_iam"];
        for (i, user) in self.users.iter().enumerate() {
            let fits = (1..=LONGEST_NAME).contains(&user.len()) && !user.contains('\0');
            if !fits || taken.contains(&user.as_str()) || self.users[..i].contains(user) {
                return Err(Error::Config(
                    "the name given to iam_user is in use or does not have 1 to 63 bytes; use \
                     another name"
                        .into(),
                ));
            }
        }
        Ok(())
    }
}

/// The user of DSQL whose tokens have another action.
const ADMIN: &str = "admin";

/// The port of the endpoint until the server has started.
const UNKNOWN_PORT: u16 = 1;

/// Replaces the error for connection strings, because the endpoint is a setting of the builder.
fn invalid_setting(error: Error) -> Error {
    match error {
        Error::Conninfo(text) => Error::Config(text),
        error => error,
    }
}

/// Returns a key pair that cannot be mistaken for a real one.
fn new_key_pair() -> Result<Credentials, Error> {
    let id = random_hex()?.to_uppercase();
    let secret = format!("local-rds-secret-{}", random_hex()?);
    Ok(Credentials::new(format!("AKIA{}", &id[..16]), secret, None, None, "LocalRds"))
}

fn new_password() -> Result<String, Error> {
    Ok(format!("local-rds-password-{}", random_hex()?))
}

fn random_hex() -> Result<String, Error> {
    let mut bytes = [0; 16];
    openssl::rand::rand_bytes(&mut bytes).map_err(failed("cannot get random bytes"))?;
    Ok(hex(&bytes))
}

/// Each transaction of DSQL has this isolation. `admin` can do what the owner of the database can.
fn prepare_dialect(server: &Server) -> Result<(), Error> {
    let (database, user) = (LocalRds::DATABASE, LocalRds::USER);
    let roles = format!(
        "ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read';
         ALTER ROLE {ADMIN} CREATEROLE;
         GRANT rds_iam TO {ADMIN} WITH ADMIN OPTION;
         GRANT {user} TO {ADMIN}"
    );
    let mut superuser = server.superuser(database)?;
    for script in [roles.as_str(), SYS] {
        superuser.batch_execute(script).map_err(failed("cannot prepare the dialect of DSQL"))?;
    }
    Ok(())
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
