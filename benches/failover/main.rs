//! Measures failovers of a cluster under load: when all threads write again, and at what cost.
//! Beside this crate: AWS' driver for Python, and psycopg's pool. Only on Linux.
//!
//!     cargo bench --features full --bench failover -- threads=64 connections=16 lag=60
//!
//! Without arguments it runs the scenarios of the README. The arguments, with the defaults:
//! `threads=8`, `connections=8`, `failovers=12` (of each kind), `lag=30` (seconds for which DNS is
//! stale), `limit=120` (seconds after which a round ends), `kinds=planned,killed`,
//! `clients=ours,ours-list,aws,libpq-list,libpq-cluster`.
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod client;
mod ours;
mod report;

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::sql_types::BigInt;
use diesel::{PgConnection, RunQueryDsl};
use diesel_rds_iam::local::LocalRds;
use rustix::time::{ClockId, clock_gettime};

use client::{CLIENTS, Client};
use report::Round;

/// Settings of a run.
pub(crate) struct Scenario {
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    failovers: usize,
    lag: Duration,
    pub(crate) limit: Duration,
    kinds: Vec<String>,
    clients: Vec<String>,
}

/// How long a client writes before its failover, so that it knows the nodes.
const PEACE: Duration = Duration::from_secs(3);
const START_LIMIT: Duration = Duration::from_secs(60);
const SCENARIOS: [&str; 3] = [
    "",
    "threads=64 connections=16 lag=60 failovers=10",
    "kinds=frozen failovers=3 limit=75 clients=ours,ours-list,aws,aws-default,libpq-list",
];

fn main() {
    // cargo adds --bench.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, threads, connections] = arguments.as_slice()
        && mode == "client"
    {
        return ours::run(threads.parse().unwrap(), connections.parse().unwrap());
    }
    let python = install_python();
    match arguments.is_empty() {
        true => SCENARIOS.iter().for_each(|words| {
            Scenario::new(words.split_whitespace()).measure(&python);
        }),
        false => Scenario::new(arguments.iter().map(String::as_str)).measure(&python),
    }
}

impl Scenario {
    fn new<'a>(arguments: impl Iterator<Item = &'a str>) -> Scenario {
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        let mut scenario = Scenario {
            threads: 8,
            connections: 8,
            failovers: 12,
            lag: Duration::from_secs(30),
            limit: Duration::from_secs(120),
            kinds: list("planned,killed"),
            clients: list("ours,ours-list,aws,libpq-list,libpq-cluster"),
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap();
            let number = || value.parse().unwrap();
            let seconds = || Duration::from_secs(value.parse().unwrap());
            match name {
                "threads" => scenario.threads = number(),
                "connections" => scenario.connections = number(),
                "failovers" => scenario.failovers = number(),
                "lag" => scenario.lag = seconds(),
                "limit" => scenario.limit = seconds(),
                "kinds" => scenario.kinds = list(value),
                "clients" => scenario.clients = list(value),
                _ => panic!("unknown argument {name}"),
            }
        }
        scenario
    }

    fn measure(&self, python: &std::path::Path) {
        let mut rounds: Vec<Vec<Round>> = Vec::new();
        rounds.resize_with(self.kinds.len() * self.clients.len(), Vec::new);
        for _ in 0..self.failovers {
            for (k, kind) in self.kinds.iter().enumerate() {
                for (c, client) in self.clients.iter().enumerate() {
                    let round = self.run(kind, client, python);
                    eprintln!("{client}, {kind}: {round}");
                    rounds[k * self.clients.len() + c].push(round);
                }
            }
        }
        println!(
            "\n{} threads, {} connections, {} failovers of each kind, DNS stale for {} s.",
            self.threads,
            self.connections,
            self.failovers,
            self.lag.as_secs()
        );
        for (kind, rounds) in self.kinds.iter().zip(rounds.chunks(self.clients.len())) {
            println!("\n{}", report::header(kind));
            for (client, rounds) in self.clients.iter().zip(rounds) {
                let (_, title) = CLIENTS.iter().find(|(name, _)| name == client).unwrap();
                println!("{}", report::row(title, rounds, self.limit));
            }
        }
    }

    /// Starts a cluster and a client, and runs one failover. A new cluster for each round: its DNS
    /// is not stale yet.
    fn run(&self, kind: &str, name: &str, python: &std::path::Path) -> Round {
        let rds = LocalRds::builder().replicas(2).dns_lag(self.lag).start().unwrap();
        let table = "CREATE TABLE written (at timestamptz DEFAULT now());
                     GRANT ALL ON written TO PUBLIC";
        rds.superuser().unwrap().batch_execute(table).unwrap();
        let client = Client::start(name, &rds, self, python);
        let writes = client.first_writes(self.threads, now(), START_LIMIT);
        assert!(
            writes.iter().all(Option::is_some),
            "{name} did not write: {:?}",
            client.operations_since(0.0).last().and_then(|last| last.error.clone())
        );
        sleep(PEACE);
        let in_peace = connections(&rds) - self.connections as i64;
        let (started, logins, cpu) = (now(), rds.attempts().len(), client.cpu());
        let old = rds.writer();
        match kind {
            "planned" => {}
            "killed" => rds.kill(old).unwrap(),
            "frozen" => rds.freeze(old).unwrap(),
            _ => panic!("unknown kind {kind}"),
        }
        if kind != "planned" {
            // The cluster notices it and chooses a new writer.
            sleep(Duration::from_millis(fastrand::u64(1000..2000)));
        }
        rds.failover(old + 1).unwrap();
        let promoted = now();
        let writes = client.first_writes(self.threads, promoted, self.limit);
        Round {
            recoveries: writes.iter().map(|end| end.map(|end| end - promoted)).collect(),
            operations: client.operations_since(started),
            logins: rds.attempts().len() - logins,
            cpu: client.cpu() - cpu,
            in_peace,
        }
    }
}

/// Returns the number of the client's connections at all nodes.
fn connections(rds: &LocalRds) -> i64 {
    let count = |connection: &mut PgConnection| -> i64 {
        let query = "(SELECT count(*) FROM pg_stat_activity \
             WHERE usename IN ('app', 'with_password'))";
        diesel::select(sql::<BigInt>(query)).get_result(connection).unwrap()
    };
    rds.nodes().iter().map(|node| count(&mut rds.superuser_of(*node).unwrap())).sum()
}

/// Installs what the clients in Python need, and returns the interpreter.
fn install_python() -> PathBuf {
    let python = PathBuf::from("target/failover-python/bin/python");
    let run = |command: &mut Command| assert!(command.status().unwrap().success());
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv", "target/failover-python"]));
    }
    let requirements = "benches/failover/requirements.txt";
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(install).arg(requirements));
    python
}

/// Seconds of the monotonic clock, which is the same in all processes.
pub(crate) fn now() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
