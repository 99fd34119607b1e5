//! The name service of a cluster, and the file of hosts with its answers.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::history::{History, Roles};
use super::names::{Names, address};
use crate::local::LOCALHOST;

/// Answers for the names of one cluster.
pub(super) struct Dns {
    names: Names,
    zone: Mutex<Zone>,
    changed: Condvar,
    file: PathBuf,
}

struct Zone {
    nodes: Vec<usize>,
    history: History,
    hosts: File,
    /// What is in the file.
    written: String,
    has_ended: bool,
}

impl Dns {
    /// Creates the file of hosts in `folder`.
    pub(super) fn new(names: Names, first: Roles, lag: Duration, folder: &Path) -> io::Result<Dns> {
        let file = folder.join("hosts");
        let mut options = OpenOptions::new();
        let hosts = options.write(true).create_new(true).mode(0o644).open(&file)?;
        let nodes = [vec![first.writer], first.readers.clone()].concat();
        let history = History::new(first, lag);
        let mut zone = Zone { nodes, history, hosts, written: String::new(), has_ended: false };
        zone.write(&names, Instant::now())?;
        Ok(Dns { names, zone: Mutex::new(zone), changed: Condvar::new(), file })
    }

    pub(super) fn hosts_file(&self) -> &Path {
        &self.file
    }

    /// Sets the nodes that exist, and those to which the names will lead after the lag.
    pub(super) fn set(&self, nodes: Vec<usize>, roles: Roles) {
        let mut zone = self.zone.lock();
        let now = Instant::now();
        zone.nodes = nodes;
        zone.history.push(roles, now);
        zone.update(&self.names, now);
        self.changed.notify_all();
    }

    pub(super) fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name == LOCALHOST {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let zone = self.zone.lock();
        let roles = zone.history.at(Instant::now());
        let mut nodes = if name == self.names.cluster() {
            vec![roles.writer]
        } else if name == self.names.reader() {
            roles.readers()
        } else {
            let named = zone.nodes.iter().find(|node| name == self.names.node(**node));
            named.copied().into_iter().collect()
        };
        fastrand::shuffle(&mut nodes);
        if nodes.is_empty() {
            let text = format!("the LocalRds has no node with the name {name}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(nodes.into_iter().map(|node| address(node).into()).collect())
    }
}

impl Zone {
    fn update(&mut self, names: &Names, now: Instant) {
        if let Err(error) = self.write(names, now) {
            log::warn!("LocalRds could not write its file of hosts: {error}");
        }
    }

    /// Writes into the existing file, because a bind mount does not follow to another file.
    fn write(&mut self, names: &Names, now: Instant) -> io::Result<()> {
        let roles = self.history.at(now);
        let mut text = format!("127.0.0.1 {LOCALHOST}\n");
        let mut add = |node, name: String| text.push_str(&format!("{} {name}\n", address(node)));
        add(roles.writer, names.cluster());
        roles.readers().into_iter().for_each(|node| add(node, names.reader()));
        self.nodes.iter().for_each(|node| add(*node, names.node(*node)));
        if text != self.written {
            self.hosts.write_all_at(text.as_bytes(), 0)?;
            self.hosts.set_len(text.len() as u64)?;
            self.written = text;
        }
        Ok(())
    }
}

/// The thread that writes the file of hosts when the lag of a change ends.
pub(super) struct Updates {
    dns: Arc<Dns>,
    thread: Option<JoinHandle<()>>,
}

impl Updates {
    pub(super) fn start(dns: Arc<Dns>) -> Updates {
        let theirs = dns.clone();
        Updates { dns, thread: Some(std::thread::spawn(move || keep_current(&theirs))) }
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        self.dns.zone.lock().has_ended = true;
        self.dns.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep_current(dns: &Dns) {
    let mut zone = dns.zone.lock();
    while !zone.has_ended {
        let now = Instant::now();
        zone.update(&dns.names, now);
        match zone.history.next_change(now) {
            Some(next) => {
                dns.changed.wait_until(&mut zone, next);
            }
            None => dns.changed.wait(&mut zone),
        }
    }
}
