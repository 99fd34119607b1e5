//! What befalls the server, the network and the source of credentials.

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

/// Breaks something, leaves it so for a while, and mends it.
pub(crate) type Fault = fn(&Scene);

/// By the names of the table in the guide, which tells within what time there is to be full service
/// again.
pub(crate) const FAULTS: &[(&str, Fault)] = &[
    ("all backends terminated", |scene| end_sessions(&scene.rds)),
    ("server restarted", |scene| scene.rds.restart().unwrap()),
    ("server frozen for 10 s (SIGSTOP)", freeze),
    ("network silent for 20 s", |scene| {
        scene.cable.cut();
        last(20);
        scene.cable.mend();
    }),
    ("network swallows and acknowledges for 5 s, then hangs up", |scene| {
        scene.proxy.set(Weather::Swallowed);
        last(5);
        scene.proxy.set(Weather::Fair);
        scene.proxy.cut();
    }),
    ("each piece 200 ms late for 5 s", |scene| {
        scene.proxy.set(Weather::Slow(Duration::from_millis(200)));
        last(5);
        scene.proxy.set(Weather::Fair);
    }),
    ("cut in the middle of logins for 5 s", |scene| {
        // In a login either side sends a little more than that.
        scene.proxy.set(Weather::Truncated { after: 1, step: 171, most: 1_300 });
        scene.proxy.cut();
        last(5);
        scene.proxy.set(Weather::Fair);
        scene.proxy.cut();
    }),
    ("cut in the middle of commits", |scene| while !cut_a_commit(scene) {}),
    ("credentials source down for longer than its key pair lives", |scene| {
        scene.source.go_down();
        scene.rds.clock().advance(LIFE + minutes(1));
        end_sessions(&scene.rds);
        last(4);
        scene.source.give(&scene.rds, scene.key_pair.get());
    }),
    ("key pair revoked, replaced after 4 s", |scene| {
        scene.rds.revoke_key_pair(&id(scene.key_pair.get()));
        end_sessions(&scene.rds);
        last(4);
        scene.key_pair.set(scene.key_pair.get() + 1);
        scene.source.give(&scene.rds, scene.key_pair.get());
    }),
    ("clock moved on by 16 minutes", |scene| {
        scene.rds.clock().advance(minutes(16));
        end_sessions(&scene.rds);
    }),
    ("server read-only for 4 s", |scene| {
        scene.rds.demote().unwrap();
        last(4);
        scene.rds.promote().unwrap();
    }),
    ("certificate of another CA, in the bundle after 4 s", |scene| {
        let authority = scene.rds.rotate_certificate().unwrap();
        end_sessions(&scene.rds);
        last(4);
        fs::write(scene.rds.ca_file(), authority).unwrap();
    }),
];

/// What a fault lasts is part of it.
fn last(seconds: u64) {
    thread::sleep(Duration::from_secs(seconds));
}

/// Cuts when the server has committed and nobody has been told. False: the last commit was through
/// already.
fn cut_a_commit(scene: &Scene) -> bool {
    soon("a commit is in progress", || scene.load.committing() > 0);
    scene.proxy.set(Weather::Mute);
    // A commit takes 20 ms.
    thread::sleep(Duration::from_millis(100));
    let is_one_left = scene.load.committing() > 0;
    // In this order: a login that began in between would wait for its connect_timeout.
    scene.proxy.set(Weather::Fair);
    scene.proxy.cut();
    is_one_left
}

fn freeze(scene: &Scene) {
    let mut session = scene.rds.superuser().unwrap();
    let server = parent(&backend(&mut session).to_string()).unwrap();
    drop(session);
    // It first, so that no backend begins in between.
    send("STOP", &server);
    let backends: Vec<String> =
        processes().filter(|process| parent(process).as_ref() == Some(&server)).collect();
    backends.iter().for_each(|backend| send("STOP", backend));
    last(10);
    backends.iter().for_each(|backend| send("CONT", backend));
    send("CONT", &server);
}

fn processes() -> impl Iterator<Item = String> {
    let names = fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// None if the process has ended.
fn parent(process: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix("PPid:")?.trim().to_owned()))
}
