//! Faults of a database, one after the other and twice, while 16 threads use it. The clients have
//! their own network, and a proxy is between them and the server. The limits come from the guide.

mod fault;
mod known_outcomes;
mod load;
mod source;

use std::cell::Cell;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use diesel_rds_iam::local::{Attempt, LocalRds};
use diesel_rds_iam::{PerThread, RdsConnectionManager};

use crate::support::network::{Cable, SERVER};
use crate::support::proxy::Proxy;
use crate::support::{eventually_equal, in_a_network_of_its_own, sessions, start};
use fault::{FAULTS, Fault, Scene};
use load::{Connections, Load, THREADS, Tally};
use source::Source;

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";
const GUIDE: &str = include_str!("../../../src/guide/faults.md");
const ROUNDS: usize = 2;
/// The allowed growth of the process from the end of one round to the end of the next, in MiB.
const MAX_GROWTH: f64 = 4.0;

#[test]
fn a_pool_recovers_from_each_fault() {
    in_a_network_of_its_own("faults::a_pool", SERVER, &[]);
}

#[test]
fn per_thread_recovers_from_each_fault() {
    in_a_network_of_its_own("faults::per_thread", SERVER, &[]);
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn a_pool() {
    run_faults(20, |manager| manager.build_pool(manager.pool_builder().max_size(10)).unwrap());
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn per_thread() {
    run_faults(40, PerThread::new);
}

/// Causes all faults under load. Fails if a second has `most_logins` logins or more.
fn run_faults<C: Connections + Send>(
    most_logins: usize,
    connections: impl FnOnce(RdsConnectionManager) -> C + Send,
) {
    run_rounds(ROUNDS, FAULTS, most_logins, connections);
}

fn run_rounds<C: Connections + Send>(
    rounds: usize,
    faults: &[(&str, Fault)],
    most_logins: usize,
    connections: impl FnOnce(RdsConnectionManager) -> C + Send,
) {
    let scene = make_scene();
    let manager = manager(&scene);
    let connections = scene.cable.across(|| connections(manager));
    let (cable, load, shared) = (&scene.cable, &scene.load, &connections);
    thread::scope(|scope| {
        let _end = End(load);
        for thread in 0..THREADS {
            scope.spawn(move || {
                cable.cross();
                load.work(thread, shared);
            });
        }
        let mut memory = Vec::new();
        for round in 1..=rounds {
            for (name, fault) in faults {
                cause(&scene, &connections, name, *fault, most_logins);
            }
            memory.push(resident());
            eprintln!("round {round}: {:.1} MiB", memory[round - 1]);
        }
        assert!(memory[rounds - 1] - memory[0] < MAX_GROWTH, "{memory:?}");
    });
    let rows = scene.load.check(&mut scene.rds.superuser().unwrap());
    eprintln!("{rows} rows, all as in the ledger");
    drop(connections);
    eventually_equal("sessions after the end", 0, || sessions(&scene.rds));
}

fn make_scene() -> Scene {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let (proxy, cable, source) = (Proxy::to(rds.port()), Cable::lay(), Source::of(&rds));
    let load = Load::new(&mut rds.superuser().unwrap());
    Scene { rds, proxy, cable, source, key_pair: Cell::new(0), load }
}

fn manager(scene: &Scene) -> RdsConnectionManager {
    let [direct, by_proxy] =
        [format!("localhost:{}", scene.rds.port()), format!("{SERVER}:{}", scene.proxy.port)];
    let url =
        scene.rds.database_url().replace(&direct, &by_proxy) + "&target_session_attrs=read-write";
    let builder = RdsConnectionManager::builder().credentials_provider(scene.source.clone());
    // Short, so that connections are also replaced without a fault.
    let builder =
        builder.time_source(scene.rds.clock()).max_lifetime(Some(Duration::from_secs(20)));
    builder.build(url).unwrap()
}

/// Ends the load, also if the test fails, because the scope waits for its threads.
struct End<'a>(&'a Load);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn cause(
    scene: &Scene,
    connections: &dyn Connections,
    name: &str,
    fault: Fault,
    most_logins: usize,
) {
    let load = &scene.load;
    let (tally, logins) = (load.tally(), scene.rds.attempts().len());
    fault(scene);
    let took = load
        .full_service(Instant::now(), bound(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let what = format!("sessions after \"{name}\", one for each connection");
    eventually_equal(&what, i64::from(connections.open()), || sessions(&scene.rds));
    let Tally { failed, unknown } = load.tally() - tally;
    let rate = busiest_second(&scene.rds.attempts()[logins..]);
    // The columns of the guide's table, and the logins.
    let limit = bound(name).as_secs();
    let recovery = took.as_secs_f64();
    eprintln!("| {name} | {limit} | {failed} | {unknown} | {recovery:.1} | {rate} logins/s");
    assert!(rate < most_logins, "{name}: {rate} logins in a second");
    if connections.knows_outcomes() {
        assert_eq!(unknown, 0, "{name}");
    } else {
        assert!(unknown > 0 || !name.contains("commits"), "no commit was cut");
    }
}

/// Returns the limit of a fault, from the column `limit, s` of the table in the guide.
fn bound(name: &str) -> Duration {
    let mut rows = GUIDE.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let header = rows.find(|row| row.get(1) == Some(&"fault")).expect("a table of faults");
    let column = header.iter().position(|cell| *cell == "limit, s").expect("a column of limits");
    let row = rows
        .find(|row| row.get(1) == Some(&name))
        .unwrap_or_else(|| panic!("{name} is not in the guide's table"));
    Duration::from_secs(row[column].parse().unwrap())
}

fn busiest_second(attempts: &[Attempt]) -> usize {
    let within = |first: &Attempt| {
        let end = first.at + Duration::from_secs(1);
        attempts.iter().filter(|attempt| (first.at..end).contains(&attempt.at)).count()
    };
    attempts.iter().map(within).max().unwrap_or(0)
}

/// Returns the resident memory of this process in MiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
