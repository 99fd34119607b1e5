//! A PostgreSQL server in a temporary folder, made of the programs on this machine.

mod replication;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use diesel::{Connection, PgConnection, RunQueryDsl};
use parking_lot::Mutex;

use super::certificates::Certificates;
use super::folder::Folder;
use super::process::{START_TIMEOUT, Watchdog, end, start};
use super::{failed, failed_with_cure, ldap, programs};
use crate::conninfo::render;
use crate::error::Error;

pub(super) const SUPERUSER: &str = "rdsadmin";

/// The file in the folder of a node with the settings that change.
pub(super) const NODE_SETTINGS: &str = "postgresql.conf";

pub(super) struct Server {
    port: u16,
    ca_file: PathBuf,
    bin: PathBuf,
    /// `None` while the server is stopped.
    postgres: Mutex<Option<Child>>,
    /// Removes the folder when it is dropped.
    watchdog: Watchdog,
    folder: Folder,
    access: Access,
}

/// How clients reach PostgreSQL.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// By a free port of 127.0.0.1.
    Tcp,
    /// By the unix socket for this port. Another listener has the port.
    Socket(u16),
    /// A node of a cluster, which also replicates.
    Node { name: String, address: Ipv4Addr, port: u16 },
}

impl Server {
    pub(super) fn start(
        certificates: &Certificates,
        ldap_port: u16,
        access: Access,
    ) -> Result<Server, Error> {
        let mut server = Server::create(certificates, ldap_port, access)?;
        server.initdb()?;
        let Server { bin, folder, watchdog, access, .. } = &server;
        let (postgres, port) = start_on_a_free_port(bin, folder, watchdog, access)?;
        (server.postgres, server.port) = (Mutex::new(Some(postgres)), port);
        Ok(server)
    }

    /// Creates a server without data, which does not run.
    pub(super) fn create(
        certificates: &Certificates,
        ldap_port: u16,
        access: Access,
    ) -> Result<Server, Error> {
        let bin = programs::find()?;
        let folder = Folder::create()?;
        let watchdog = Watchdog::start(&folder)?;
        let ca_file = folder.write("ca.pem", &certificates.authority)?;
        write_certificate(&folder, certificates)?;
        folder.write_for_server("pg_hba.conf", pg_hba(ldap_port, &access).as_bytes())?;
        let port = match access {
            Access::Node { port, .. } => port,
            Access::Tcp | Access::Socket(_) => 0,
        };
        Ok(Server { port, ca_file, bin, postgres: Mutex::new(None), watchdog, folder, access })
    }

    pub(super) fn initdb(&self) -> Result<(), Error> {
        initdb(&self.bin, &self.folder)
    }

    /// Shuts PostgreSQL down ("fast shutdown") and waits until it has ended.
    pub(super) fn stop(&self) {
        end(&mut self.postgres.lock(), "INT", &self.watchdog);
    }

    pub(super) fn restart(&self) -> Result<(), Error> {
        let mut postgres = self.postgres.lock();
        end(&mut postgres, "INT", &self.watchdog);
        let settings = settings(&self.folder, self.port, &self.access);
        let started = start(&self.bin.join("postgres"), &self.folder, &settings, &self.watchdog);
        *postgres = Some(started.map_err(failed("cannot start postgres again"))?);
        Ok(())
    }

    /// Restarts as a standby without a primary.
    pub(super) fn demote(&self) -> Result<(), Error> {
        self.mark_as_standby()?;
        self.restart()
    }

    /// The next start is that of a standby.
    pub(super) fn mark_as_standby(&self) -> Result<(), Error> {
        // By the account, because it owns the folder and can create a symbolic link there.
        let mut touch = self.folder.command("sh");
        touch.args(["-c", ": > data/standby.signal"]);
        let status = touch.status().map_err(failed("cannot run sh"))?;
        if !status.success() {
            return Err(failed("cannot write data/standby.signal")(status.to_string()));
        }
        Ok(())
    }

    /// Ends PostgreSQL without a shutdown.
    pub(super) fn quit(&self) {
        end(&mut self.postgres.lock(), "QUIT", &self.watchdog);
    }

    /// Replaces the server's certificate.
    pub(super) fn set_certificate(&self, certificates: &Certificates) -> Result<(), Error> {
        let loaded = self.load_time()?;
        self.write_certificate(certificates)?;
        let mut superuser = self.superuser("postgres")?;
        superuser
            .batch_execute("SELECT pg_reload_conf()")
            .map_err(failed("cannot reload the certificate"))?;
        // A new session inherits the load time of the postmaster.
        let deadline = Instant::now() + START_TIMEOUT;
        while self.load_time()? == loaded {
            if Instant::now() > deadline {
                let seconds = START_TIMEOUT.as_secs();
                return Err(failed("cannot reload the certificate")(format!(
                    "PostgreSQL did not reload its settings within {seconds} s"
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Replaces the certificate, which is in force after a start or `reload`.
    pub(super) fn write_certificate(&self, certificates: &Certificates) -> Result<(), Error> {
        write_certificate(&self.folder, certificates)
    }

    /// Returns the time at which PostgreSQL last loaded its settings.
    fn load_time(&self) -> Result<String, Error> {
        sql::<Text>("SELECT pg_conf_load_time()::text")
            .get_result(&mut self.superuser("postgres")?)
            .map_err(failed("cannot read when the settings were loaded"))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the unix socket of PostgreSQL.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.run().join(format!(".s.PGSQL.{}", self.port))
    }

    /// Creates the file for the verdicts of the judge.
    pub(super) fn verdict_file(&self) -> Result<PathBuf, Error> {
        self.folder.write("verdict", b"")
    }

    pub(super) fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Connects as superuser through the unix socket, which other users cannot reach.
    pub(super) fn superuser(&self, database: &str) -> Result<PgConnection, Error> {
        let (folder, port) = (self.folder.run().display().to_string(), self.port.to_string());
        // Overrides all PG* variables, which are for other servers.
        let settings = [
            ("host", folder.as_str()),
            ("hostaddr", ""),
            ("port", &port),
            ("user", SUPERUSER),
            ("dbname", database),
            ("options", ""),
            ("client_encoding", "UTF8"),
            // A server that is stopped by a signal accepts the connection and never answers.
            ("connect_timeout", "10"),
            ("channel_binding", "disable"),
            ("gssencmode", "disable"),
            ("sslmode", "disable"),
            ("target_session_attrs", "any"),
        ];
        PgConnection::establish(&render(settings.into()))
            .map_err(failed("cannot connect as superuser"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The watchdog may have been killed.
        self.quit();
    }
}

fn write_certificate(folder: &Folder, certificates: &Certificates) -> Result<(), Error> {
    folder.write_for_server("server.pem", &certificates.server)?;
    folder.write_for_server("server.key", &certificates.server_key)?;
    Ok(())
}

fn initdb(bin: &Path, folder: &Folder) -> Result<(), Error> {
    let mut initdb = folder.command(bin.join("initdb"));
    initdb.args([
        "--auth=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--username",
        SUPERUSER,
        "--pgdata",
    ]);
    initdb.arg(folder.data()).stderr(Stdio::piped());
    let output = initdb.output().map_err(failed_with_cure(
        "cannot run initdb",
        "set TMPDIR to a folder that the server's account (as root: postgres or nobody) can enter",
    ))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed("initdb failed")(String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Tries another port if another process takes the free port before PostgreSQL does.
fn start_on_a_free_port(
    bin: &Path,
    folder: &Folder,
    watchdog: &Watchdog,
    access: &Access,
) -> Result<(Child, u16), Error> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let port = match access {
            Access::Tcp => port_of(&free_port()?)?,
            Access::Socket(port) | Access::Node { port, .. } => *port,
        };
        match start(&bin.join("postgres"), folder, &settings(folder, port, access), watchdog) {
            Ok(postgres) => return Ok((postgres, port)),
            Err(log) if tries > 0 && log.contains("Address already in use") => {}
            Err(log) => return Err(failed("cannot start postgres")(log)),
        }
    }
}

/// Listens on a free port below those that kernels give to outgoing connections. Such a connection,
/// even one to this server, could otherwise take the port while the server is stopped.
pub(super) fn free_port() -> Result<TcpListener, Error> {
    std::iter::repeat_with(|| fastrand::u16(10_000..32_000))
        .take(1_000)
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .ok_or_else(|| failed("no free port on 127.0.0.1")("1,000 ports are in use"))
}

/// Returns a port that is free on all these addresses.
pub(super) fn free_port_on(
    addresses: impl Iterator<Item = Ipv4Addr> + Clone,
) -> Result<u16, Error> {
    let is_free = |port: &u16| {
        let mut addresses = addresses.clone();
        addresses.all(|address| TcpListener::bind((address, *port)).is_ok())
    };
    std::iter::repeat_with(|| fastrand::u16(10_000..32_000))
        .take(1_000)
        .find(is_free)
        .ok_or_else(|| failed("no free port on 127.0.0.0/8")("1,000 ports are in use"))
}

pub(super) fn port_of(listener: &TcpListener) -> Result<u16, Error> {
    let address = listener.local_addr().map_err(failed("cannot listen on 127.0.0.1"))?;
    Ok(address.port())
}

fn settings(folder: &Folder, port: u16, access: &Access) -> Vec<(&'static str, String)> {
    let file = |name: &str| folder.path().join(name).display().to_string();
    let addresses = match access {
        Access::Tcp => Ipv4Addr::LOCALHOST.to_string(),
        Access::Socket(_) => String::new(),
        Access::Node { address, .. } => address.to_string(),
    };
    // A list of names, which can be quoted.
    let sockets = format!("\"{}\"", file("run").replace('"', "\"\""));
    let mut settings = vec![
        ("listen_addresses", addresses),
        ("port", port.to_string()),
        ("unix_socket_directories", sockets),
        ("hba_file", file("pg_hba.conf")),
        ("ssl", "on".into()),
        ("ssl_cert_file", file("server.pem")),
        ("ssl_key_file", file("server.key")),
        ("max_connections", "200".into()),
        ("shared_buffers", "16MB".into()),
        // The data is temporary.
        ("fsync", "off".into()),
        // A statement that fails may contain a secret.
        ("log_min_error_statement", "panic".into()),
    ];
    if let Access::Node { name, .. } = access {
        settings.extend([
            ("cluster_name", name.clone()),
            ("config_file", file(NODE_SETTINGS)),
            // In files of the folder: a server that is killed does not remove other segments.
            ("dynamic_shared_memory_type", "mmap".into()),
            ("max_wal_senders", "40".into()),
            ("wal_keep_size", "256MB".into()),
            // How soon a standby tries again to reach its writer.
            ("wal_retrieve_retry_interval", "100ms".into()),
        ]);
    }
    settings
}

/// Returns the access rules of RDS: TLS for all, tokens for users with the role rds_iam, passwords
/// for all others. The superuser logs in through the unix socket, in a private folder.
fn pg_hba(ldap_port: u16, access: &Access) -> String {
    let (prefix, suffix) = (ldap::PREFIX, ldap::SUFFIX);
    let (users, others) = match access {
        Access::Tcp | Access::Node { .. } => ("hostssl all +rds_iam all", "hostssl all all all"),
        Access::Socket(_) => ("local all +rds_iam", "local all all"),
    };
    let replication = match access {
        Access::Node { .. } => format!("local replication {SUPERUSER} trust\n"),
        Access::Tcp | Access::Socket(_) => String::new(),
    };
    format!(
        "local all {SUPERUSER} trust\n\
         {replication}\
         {users} ldap ldapserver=127.0.0.1 ldapport={ldap_port} \
         ldapprefix=\"{prefix}\" ldapsuffix=\"{suffix}\"\n\
         {others} scram-sha-256\n"
    )
}
