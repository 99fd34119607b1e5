//! Faults of the server, the network and the credentials source.

use std::cell::Cell;
use std::fs;
use std::thread;
use std::time::Duration;

use diesel_rds_iam::local::LocalRds;

use super::load::Load;
use super::source::{LIFE, Source, id};
use crate::support::network::Cable;
use crate::support::proxy::{Proxy, Weather};
use crate::support::{backend, end_sessions, minutes, send, soon};

pub(crate) struct Scene {
    pub(crate) rds: LocalRds,
    pub(crate) proxy: Proxy,
    pub(crate) cable: Cable,
    pub(crate) source: Source,
    /// The number of the key pair in use.
    pub(crate) key_pair: Cell<usize>,
    pub(crate) load: Load,
}

/// Causes a fault, waits, and ends it.
pub(crate) type Fault = fn(&Scene);

/// The names are those of the table in the guide, which has the bound for the recovery from each
/// fault.
pub(crate) const FAULTS: &[(&str, Fault)] = &[
    ("all backends terminated", |scene| end_sessions(&scene.rds)),
    ("server restarted", |scene| scene.rds.restart().unwrap()),
    ("server frozen for 10 s (SIGSTOP)", freeze),
    ("network silent for 20 s", |scene| {
        scene.cable.cut();
        wait_seconds(20);
        scene.cable.mend();
    }),
    ("network swallows and acknowledges for 5 s, then hangs up", |scene| {
        scene.proxy.set(Weather::Swallowed);
        wait_seconds(5);
        scene.proxy.set(Weather::Fair);
        scene.proxy.cut();
    }),
    ("each piece 200 ms late for 5 s", |scene| {
        scene.proxy.set(Weather::Slow(Duration::from_millis(200)));
        wait_seconds(5);
        scene.proxy.set(Weather::Fair);
    }),
    ("cut in the middle of logins for 5 s", |scene| {
        // A login needs a little more than `most` in each direction.
        scene.proxy.set(Weather::Truncated { after: 1, step: 171, most: 1_300 });
        scene.proxy.cut();
        wait_seconds(5);
        scene.proxy.set(Weather::Fair);
        scene.proxy.cut();
    }),
    ("cut in the middle of commits", |scene| while !cut_a_commit(scene) {}),
    ("credentials source down for longer than its key pair lives", |scene| {
        scene.source.go_down();
        scene.rds.clock().advance(LIFE + minutes(1));
        end_sessions(&scene.rds);
        wait_seconds(4);
        scene.source.give(&scene.rds, scene.key_pair.get());
    }),
    ("key pair revoked, replaced after 4 s", |scene| {
        scene.rds.revoke_key_pair(&id(scene.key_pair.get()));
        end_sessions(&scene.rds);
        wait_seconds(4);
        scene.key_pair.set(scene.key_pair.get() + 1);
        scene.source.give(&scene.rds, scene.key_pair.get());
    }),
    ("clock moved on by 16 minutes", |scene| {
        scene.rds.clock().advance(minutes(16));
        end_sessions(&scene.rds);
    }),
    ("server read-only for 4 s", |scene| {
        scene.rds.demote().unwrap();
        wait_seconds(4);
        scene.rds.promote().unwrap();
    }),
    ("certificate of another CA, in the bundle after 4 s", |scene| {
        let authority = scene.rds.rotate_certificate().unwrap();
        end_sessions(&scene.rds);
        wait_seconds(4);
        fs::write(scene.rds.ca_file(), authority).unwrap();
    }),
];

/// Waits while a fault lasts.
fn wait_seconds(seconds: u64) {
    thread::sleep(Duration::from_secs(seconds));
}

/// Closes the connections after a commit and before its answer. Returns `false` if no commit was in
/// progress any more.
fn cut_a_commit(scene: &Scene) -> bool {
    soon("a commit is in progress", || scene.load.committing() > 0);
    scene.proxy.set(Weather::Mute);
    // A commit takes 20 ms.
    thread::sleep(Duration::from_millis(100));
    let is_one_left = scene.load.committing() > 0;
    // In this order, because a login that starts in between would wait for its connect_timeout.
    scene.proxy.set(Weather::Fair);
    scene.proxy.cut();
    is_one_left
}

fn freeze(scene: &Scene) {
    let mut session = scene.rds.superuser().unwrap();
    let server = parent(&backend(&mut session).to_string()).unwrap();
    drop(session);
    // First the server, so that it starts no backend in between.
    send("STOP", &server);
    let backends: Vec<String> =
        processes().filter(|process| parent(process).as_ref() == Some(&server)).collect();
    backends.iter().for_each(|backend| send("STOP", backend));
    wait_seconds(10);
    backends.iter().for_each(|backend| send("CONT", backend));
    send("CONT", &server);
}

fn processes() -> impl Iterator<Item = String> {
    let names = fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns `None` if the process has ended.
fn parent(process: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix("PPid:")?.trim().to_owned()))
}
