//! The server's process: start, signals, end, and the watchdog.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::failed;
use super::folder::{Folder, detached};
use crate::error::Error;

/// The log line ends with "connections", or with "read-only connections" on a standby.
const READY: &str = "database system is ready to accept";
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process may take to end after a signal. PostgreSQL itself waits 5 seconds for a
/// backend that is stopped.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Ends the server and removes its folder when its standard input is closed: on drop, and also
/// when this process is killed. Each line of its input is the process id of the server, or empty
/// while the server is stopped. (The server's account can write any number to postmaster.pid.)
/// An initdb that still runs creates files until its folder is removed, so rm is repeated.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
pid=
while read -r line; do pid=$line; done
runs() { [ -n "$pid" ] && kill -0 "$pid"; }
runs && kill -QUIT "$pid" && kill -CONT "$pid"
tries=400
while [ "$tries" -gt 0 ] && { runs || ! rm -rf "$1"; }; do
    tries=$((tries - 1))
    [ "$tries" -eq 200 ] && runs && kill -KILL "$pid"
    sleep 0.05
done
rm -rf "$1"
"#;

pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Starts the watchdog as this process's user, who owns the folder.
    pub(super) fn start(folder: &Folder) -> Result<Watchdog, Error> {
        let mut command = detached("sh");
        command.args(["-c", WATCHDOG, "watchdog"]).arg(folder.path()).stdin(Stdio::piped());
        command.spawn().map(Watchdog).map_err(failed("cannot run sh"))
    }

    /// Sets the process to end. `None` if there is none.
    fn watch(&self, process: Option<u32>) {
        let line = process.map_or_else(String::new, |id| id.to_string()) + "\n";
        // The watchdog may have been killed. `Server` ends its process without it.
        let _ = self.0.stdin.as_ref().map(|mut stdin| stdin.write_all(line.as_bytes()));
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Starts postgres and waits until it accepts connections. Fails with the log of postgres.
pub(super) fn start(
    postgres: &Path,
    folder: &Folder,
    settings: &[(&str, String)],
    watchdog: &Watchdog,
) -> Result<Child, String> {
    let mut command = folder.command(postgres);
    command.arg("-D").arg(folder.data()).stderr(Stdio::piped());
    for (name, value) in settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let mut process = command.spawn().map_err(|error| error.to_string())?;
    watchdog.watch(Some(process.id()));
    let lines = process.stderr.take().map(read_lines);
    let deadline = Instant::now() + START_TIMEOUT;
    let next_line = || {
        let left = deadline.saturating_duration_since(Instant::now());
        lines.as_ref()?.recv_timeout(left).ok()
    };
    let mut log = String::new();
    while let Some(line) = next_line() {
        if line.contains(READY) {
            return Ok(process);
        }
        log.push_str(&line);
        log.push('\n');
    }
    if Instant::now() >= deadline {
        log.push_str(&format!("postgres was not ready after {} s", START_TIMEOUT.as_secs()));
    }
    let _ = process.kill();
    let _ = process.wait();
    watchdog.watch(None);
    Err(log)
}

/// Sends `signal` and waits until the process has ended. Kills it after `END_TIMEOUT`.
pub(super) fn end(process: &mut Option<Child>, signal: &str, watchdog: &Watchdog) {
    let Some(mut process) = process.take() else { return };
    // A stopped process handles the signal only after SIGCONT.
    for signal in [signal, "CONT"] {
        send(signal, &[process.id()]);
    }
    let deadline = Instant::now() + END_TIMEOUT;
    while matches!(process.try_wait(), Ok(None)) {
        if Instant::now() >= deadline {
            let _ = process.kill();
            let _ = process.wait();
            break;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    watchdog.watch(None);
}

/// Sends a signal to processes.
pub(super) fn send(signal: &str, processes: &[u32]) {
    let mut kill = detached("sh");
    kill.args(["-c", "kill -s \"$0\" \"$@\"", signal]);
    let _ = kill.args(processes.iter().map(u32::to_string)).status();
}

/// Stops the server and its backends with SIGSTOP, and returns all their process ids.
pub(super) fn freeze(process: &Child) -> Vec<u32> {
    let server = process.id();
    send("STOP", &[server]);
    // The server starts no more backends when it has stopped.
    let deadline = Instant::now() + END_TIMEOUT;
    while stat(server).is_some_and(|(state, _)| state != "T") && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
    let backends = children(server);
    if !backends.is_empty() {
        send("STOP", &backends);
    }
    [vec![server], backends].concat()
}

/// Continues the server and its backends.
pub(super) fn thaw(process: &Child) {
    let server = process.id();
    // The backends first, because the server ends those that do not answer.
    send("CONT", &[children(server), vec![server]].concat());
}

/// Kills the server and its backends at the same time, as if their host had lost power.
pub(super) fn kill(process: &mut Option<Child>, watchdog: &Watchdog) {
    let Some(mut process) = process.take() else { return };
    send("KILL", &freeze(&process));
    let _ = process.wait();
    watchdog.watch(None);
}

/// Returns the child processes of a process (proc(5)). Each backend has its own process group.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Returns the state and the parent of a process.
fn stat(id: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it is in brackets, and can contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// Returns the lines of the server's log. Reads the log to its end, because PostgreSQL blocks if
/// the pipe is full.
fn read_lines(log: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            log::trace!("PostgreSQL: {line}");
            // The receiver is dropped after the server has started.
            let _ = sender.send(line);
        }
    });
    receiver
}
