//! What a node of a cluster needs besides: copies of data, settings that change, and signals to all
//! of its processes.

use std::process::{Command, Stdio};

use super::{NODE_SETTINGS, SUPERUSER, Server};
use crate::conninfo::render;
use crate::error::Error;
use crate::local::{failed, process, programs};

impl Server {
    /// Copies the data of another server, which does not run.
    pub(in crate::local) fn copy_data_of(&self, other: &Server) -> Result<(), Error> {
        let mut copy = self.folder.command("cp");
        copy.arg("-R").arg(other.folder.data().join(".")).arg(self.folder.data());
        run(copy, "cannot copy the data of another node")
    }

    /// Replaces the data by a copy of that of a server that runs.
    pub(in crate::local) fn back_up(&self, other: &Server) -> Result<(), Error> {
        let mut clear = self.folder.command("sh");
        clear.args(["-c", "rm -rf data/*"]);
        run(clear, "cannot remove the data of a node")?;
        let mut backup = self.folder.command(programs::pg_basebackup(&self.bin)?);
        backup.args(["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--no-password"]);
        backup.arg("--pgdata").arg(self.folder.data());
        backup.arg("--dbname").arg(other.primary_conninfo("pg_basebackup"));
        run(backup, "pg_basebackup failed")
    }

    /// Returns the connection string by which a standby replicates.
    pub(in crate::local) fn primary_conninfo(&self, standby: &str) -> String {
        let (folder, port) = (self.folder.run().display().to_string(), self.port.to_string());
        let settings = [
            ("host", folder.as_str()),
            ("port", &port),
            ("user", SUPERUSER),
            ("application_name", standby),
            ("sslmode", "disable"),
            ("gssencmode", "disable"),
        ];
        render(settings.into())
    }

    /// Writes the settings of a node that change. They are in force after a start or `reload`.
    pub(in crate::local) fn write_settings(
        &self,
        settings: &[(&str, String)],
    ) -> Result<(), Error> {
        let quote = |value: &str| value.replace('\\', r"\\").replace('\'', "''");
        let initial = self.folder.data().join("postgresql.conf").display().to_string();
        let mut text = format!("include '{}'\n", quote(&initial));
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{}'\n", quote(value)));
        }
        self.folder.write_for_server(NODE_SETTINGS, text.as_bytes()).map(drop)
    }

    /// Lets PostgreSQL read its settings again, without waiting for it.
    pub(in crate::local) fn reload(&self) {
        if let Some(postgres) = &*self.postgres.lock() {
            process::send("HUP", &[postgres.id()]);
        }
    }

    /// Kills all processes of PostgreSQL.
    pub(in crate::local) fn kill(&self) {
        let mut postgres = self.postgres.lock();
        if postgres.is_none() {
            return;
        }
        process::kill(&mut postgres, &self.watchdog);
        // PostgreSQL removes its segment of shared memory only if it ends itself.
        let mut remove = self.folder.command("sh");
        remove.args(["-c", "set -- $(sed -n 7p data/postmaster.pid) && ipcrm -m \"$2\""]);
        let _ = remove.status();
    }

    /// Stops all processes of PostgreSQL. Connections remain open.
    pub(in crate::local) fn freeze(&self) {
        if let Some(postgres) = &*self.postgres.lock() {
            process::freeze(postgres);
        }
    }

    pub(in crate::local) fn thaw(&self) {
        if let Some(postgres) = &*self.postgres.lock() {
            process::thaw(postgres);
        }
    }
}

fn run(mut command: Command, step: &'static str) -> Result<(), Error> {
    let output = command.stderr(Stdio::piped()).output().map_err(failed(step))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(step)(String::from_utf8_lossy(&output.stderr).into_owned()))
}
