//! A PostgreSQL server in a private folder, from the programs on this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use diesel::{Connection, PgConnection, RunQueryDsl};
use parking_lot::Mutex;

use super::certificates::Certificates;
use super::folder::{Folder, quiet};
use super::{failed, ldap};
use crate::conninfo::render;
use crate::error::Error;

const SUPERUSER: &str = "rdsadmin";
/// Followed by "connections", or by "read-only connections" on a standby.
const READY: &str = "database system is ready to accept";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Ends the server and removes its folder as soon as our end of its standard input is closed: on
/// drop, and also when this process is killed. The server's own process id is the first line of
/// postmaster.pid; an initdb that still runs writes until its folder is gone. PostgreSQL itself
/// waits five seconds for a backend that was stopped.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid") && kill -QUIT "$pid"
tries=400
while [ "$tries" -gt 0 ] && { kill -0 "$pid" || ! rm -rf "$1"; }; do tries=$((tries - 1)); sleep 0.05; done
"#;

pub(super) struct Server {
    port: u16,
    ca_file: PathBuf,
    bin: PathBuf,
    /// None while it is stopped.
    postgres: Mutex<Option<Child>>,
    /// Its drop removes the folder.
    _watchdog: Watchdog,
    folder: Folder,
}

impl Server {
    pub(super) fn start(certificates: &Certificates, ldap_port: u16) -> Result<Server, Error> {
        let bin = find_programs(candidates())?;
        let folder = Folder::create()?;
        let watchdog = Watchdog::start(&folder)?;
        let ca_file = folder.write("ca.pem", &certificates.authority)?;
        write_certificate(&folder, certificates)?;
        folder.write("pg_hba.conf", pg_hba(ldap_port).as_bytes())?;
        initdb(&bin, &folder)?;
        let (postgres, port) = start_on_a_free_port(&bin, &folder)?;
        let postgres = Mutex::new(Some(postgres));
        Ok(Server { port, ca_file, bin, postgres, _watchdog: watchdog, folder })
    }

    /// PostgreSQL's fast shutdown, to its end.
    pub(super) fn stop(&self) {
        end(&mut self.postgres.lock(), "INT");
    }

    pub(super) fn restart(&self) -> Result<(), Error> {
        let mut postgres = self.postgres.lock();
        end(&mut postgres, "INT");
        let started = start(&self.bin, &self.folder, self.port);
        *postgres = Some(started.map_err(failed("postgres does not start again"))?);
        Ok(())
    }

    /// Begins again as a standby, which waits for what its primary would send.
    pub(super) fn demote(&self) -> Result<(), Error> {
        self.stop();
        self.folder.write("data/standby.signal", b"")?;
        self.restart()
    }

    /// Shows another certificate from now on.
    pub(super) fn take(&self, certificates: &Certificates) -> Result<(), Error> {
        let loaded = self.loaded()?;
        write_certificate(&self.folder, certificates)?;
        let mut superuser = self.superuser("postgres")?;
        superuser
            .batch_execute("SELECT pg_reload_conf()")
            .map_err(failed("cannot reload the certificate"))?;
        // A new session begins as the server is then.
        let deadline = Instant::now() + START_TIMEOUT;
        while self.loaded()? == loaded {
            if Instant::now() > deadline {
                return Err(failed("cannot reload the certificate")("the server does not take it"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// When the server last read its settings.
    fn loaded(&self) -> Result<String, Error> {
        let when = sql::<Text>("SELECT pg_conf_load_time()::text")
            .get_result(&mut self.superuser("postgres")?);
        when.map_err(failed("cannot ask when the settings were read"))
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Over the unix socket, which nobody else can reach.
    pub(super) fn superuser(&self, database: &str) -> Result<PgConnection, Error> {
        let (folder, port) = (self.folder.path().display().to_string(), self.port.to_string());
        // All that PG* variables could say otherwise, for they are meant for somebody else's
        // server.
        let settings = [
            ("host", folder.as_str()),
            ("hostaddr", ""),
            ("port", &port),
            ("user", SUPERUSER),
            ("dbname", database),
            ("options", ""),
            ("client_encoding", "UTF8"),
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
        // Not left to the watchdog, which somebody may have killed, or be about to.
        end(&mut self.postgres.lock(), "QUIT");
    }
}

fn write_certificate(folder: &Folder, certificates: &Certificates) -> Result<(), Error> {
    folder.write("server.pem", &certificates.server)?;
    folder.write("server.key", &certificates.server_key)?;
    Ok(())
}

/// Sends a signal that PostgreSQL ends by, and waits for that.
fn end(postgres: &mut Option<Child>, signal: &str) {
    let Some(mut postgres) = postgres.take() else { return };
    let sent = quiet("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", signal, &postgres.id().to_string()])
        .status();
    if !sent.is_ok_and(|status| status.success()) {
        let _ = postgres.kill();
    }
    let _ = postgres.wait();
}

struct Watchdog(Child);

impl Watchdog {
    /// As ourselves: the server's account need not be allowed to remove our folder.
    fn start(folder: &Folder) -> Result<Watchdog, Error> {
        let mut sh = quiet("sh");
        let watchdog = sh
            .arg("-c")
            .arg(WATCHDOG)
            .arg("watchdog")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .spawn();
        watchdog.map(Watchdog).map_err(failed("cannot run sh"))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Where the server's programs can be: on PATH, where pg_config says, or where Debian puts them,
/// newest first.
fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    let mut versions = entries("/usr/lib/postgresql");
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    folders.extend(versions.into_iter().map(|path| path.join("bin")));
    folders
}

/// The first folder that holds both initdb and postgres.
fn find_programs(candidates: Vec<PathBuf>) -> Result<PathBuf, Error> {
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
    };
    candidates.into_iter().find(complete).ok_or_else(|| {
        failed("PostgreSQL's server is missing")(
            "no folder on PATH, by pg_config or in /usr/lib/postgresql holds initdb and postgres; install them (apt install postgresql, dnf install postgresql-server, brew install postgresql)",
        )
    })
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn version(path: &Path) -> u32 {
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default()
}

fn initdb(bin: &Path, folder: &Folder) -> Result<(), Error> {
    let mut initdb = folder.run(bin.join("initdb"));
    initdb.args([
        "--auth=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--username",
        SUPERUSER,
        "--pgdata",
    ]);
    initdb.arg(folder.path().join("data")).stderr(Stdio::piped());
    let step = "cannot run initdb; its account (root's servers run as postgres or nobody) must be able to enter TMPDIR, so set that to another folder";
    let output = initdb.output().map_err(failed(step))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed("initdb failed")(String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Another process can take the port between our look and PostgreSQL's: then the next one.
fn start_on_a_free_port(bin: &Path, folder: &Folder) -> Result<(Child, u16), Error> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let port = free_port()?;
        match start(bin, folder, port) {
            Ok(postgres) => return Ok((postgres, port)),
            Err(log) if tries > 0 && log.contains("Address already in use") => {}
            Err(log) => return Err(failed("postgres does not start")(log)),
        }
    }
}

/// Below those that kernels give to outgoing connections, one of which could hold it while the
/// server is stopped: even that of a client which tries to reach the server.
fn free_port() -> Result<u16, Error> {
    let mut ports = std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).take(1_000);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports
        .find(is_free)
        .ok_or_else(|| failed("no free port on 127.0.0.1")("of 1,000 tried, all are taken"))
}

/// Starts postgres and waits until it is ready; else gives what it wrote.
fn start(bin: &Path, folder: &Folder, port: u16) -> Result<Child, String> {
    let mut postgres = folder.run(bin.join("postgres"));
    postgres.arg("-D").arg(folder.path().join("data"));
    for (name, value) in settings(folder.path(), port) {
        postgres.arg("-c").arg(format!("{name}={value}"));
    }
    let mut postgres =
        postgres.stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let lines = postgres.stderr.take().map(follow);
    let mut seen = String::new();
    while let Some(line) = lines.as_ref().and_then(|lines| lines.recv_timeout(START_TIMEOUT).ok()) {
        if line.contains(READY) {
            return Ok(postgres);
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    let _ = postgres.kill();
    let _ = postgres.wait();
    Err(seen)
}

/// The server's log, line by line. It is read to its end, or the server would wait for us.
fn follow(log: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            log::trace!("PostgreSQL: {line}");
            // Nobody listens any more once the server is ready.
            let _ = sender.send(line);
        }
    });
    receiver
}

fn settings(folder: &Path, port: u16) -> Vec<(&'static str, String)> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        ("listen_addresses", Ipv4Addr::LOCALHOST.to_string()),
        ("port", port.to_string()),
        // A list, whose names can be quoted.
        (
            "unix_socket_directories",
            format!("\"{}\"", folder.display().to_string().replace('"', "\"\"")),
        ),
        ("hba_file", file("pg_hba.conf")),
        ("ssl", "on".into()),
        ("ssl_cert_file", file("server.pem")),
        ("ssl_key_file", file("server.key")),
        ("max_connections", "200".into()),
        ("shared_buffers", "16MB".into()),
        // Nothing here outlives the process: the disk need not be waited for.
        ("fsync", "off".into()),
        // A statement that fails may hold a secret.
        ("log_min_error_statement", "panic".into()),
    ]
}

/// As on RDS: tokens for those with the role rds_iam, passwords for the others, TLS for all. The
/// superuser comes through the folder, which is private.
fn pg_hba(ldap_port: u16) -> String {
    let (prefix, suffix) = (ldap::PREFIX, ldap::SUFFIX);
    format!(
        "local all {SUPERUSER} trust\n\
         hostssl all +rds_iam all ldap ldapserver=127.0.0.1 ldapport={ldap_port} ldapprefix=\"{prefix}\" ldapsuffix=\"{suffix}\"\n\
         hostssl all all all scram-sha-256\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_folder_with_both_programs_and_says_what_to_install_without_one() {
        let (with_one, with_both) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, program) in
            [(&with_one, "initdb"), (&with_both, "initdb"), (&with_both, "postgres")]
        {
            fs::write(folder.path().join(program), "").unwrap();
        }
        let [one, both] = [&with_one, &with_both].map(|folder| folder.path().to_owned());
        assert_eq!(find_programs(vec![one.clone(), both.clone()]).unwrap(), both);
        let error = find_programs(vec![one]).unwrap_err().to_string();
        assert!(
            error.contains(
                "apt install postgresql, dnf install postgresql-server, brew install postgresql"
            ),
            "{error}"
        );
    }
}
