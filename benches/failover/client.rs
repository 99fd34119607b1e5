//! A client in a separate process, and what it has printed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use diesel_rds_iam::local::LocalRds;
use parking_lot::{Condvar, Mutex};

use crate::{Scenario, now};

/// The clients. Each is named in the arguments by its first word.
pub(crate) const CLIENTS: [(&str, &str); 6] = [
    ("ours", "this crate, cluster endpoint, `topology=aurora`"),
    ("ours-list", "this crate, list of hosts"),
    ("aws", "AWS' wrapper, `failover_v2,iam`"),
    ("aws-default", "AWS' wrapper, its default plugins and `iam`"),
    ("libpq-list", "psycopg_pool, list of hosts"),
    ("libpq-cluster", "psycopg_pool, cluster endpoint"),
];

/// A write of a client. The times are in seconds of the monotonic clock.
#[derive(Clone)]
pub(crate) struct Operation {
    pub(crate) thread: usize,
    pub(crate) started: f64,
    pub(crate) ended: f64,
    pub(crate) error: Option<String>,
}

/// Ends with its standard input, also if this process is killed.
pub(crate) struct Client {
    process: Child,
    _stdin: ChildStdin,
    operations: Arc<(Mutex<Vec<Operation>>, Condvar)>,
}

impl Client {
    /// Starts a client that resolves the cluster's names as the hosts file says.
    pub(crate) fn start(name: &str, rds: &LocalRds, scenario: &Scenario, python: &Path) -> Client {
        // A process without root's rights has its own user namespace.
        const IN_NAMESPACE: &str = r#"
            [ "$(id -u)" -eq 0 ] || map=--map-root-user
            exec unshare $map --mount sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", IN_NAMESPACE, "sh"]).arg(rds.hosts_file());
        if name.starts_with("ours") {
            command.arg(std::env::current_exe().unwrap()).arg("client");
        } else {
            command.arg(python).arg("benches/failover/clients.py").arg(name);
        }
        command.args([scenario.threads.to_string(), scenario.connections.to_string()]);
        // botocore signs an empty session token.
        command.envs(rds.environment().into_iter().filter(|(_, value)| !value.is_empty()));
        command.env("CONNINFO", conninfo(name, rds)).env("PGPASSWORD", rds.password());
        if name.starts_with("ours") || name.starts_with("aws") {
            command.env_remove("PGPASSWORD");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let operations = Arc::<(Mutex<Vec<Operation>>, Condvar)>::default();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let theirs = operations.clone();
        thread::spawn(move || {
            for line in lines {
                theirs.0.lock().push(parse(&line.unwrap()));
                theirs.1.notify_all();
            }
        });
        Client { _stdin: process.stdin.take().unwrap(), process, operations }
    }

    /// Waits until each thread has written once with a write that started after `time`. Returns
    /// when these writes ended; `None` for those that did not within the limit.
    pub(crate) fn first_writes(
        &self,
        threads: usize,
        time: f64,
        limit: Duration,
    ) -> Vec<Option<f64>> {
        let end = time + limit.as_secs_f64();
        let mut operations = self.operations.0.lock();
        let (mut seen, mut first) = (0, vec![None; threads]);
        loop {
            for operation in &operations[seen..] {
                if operation.started >= time && operation.error.is_none() {
                    first[operation.thread].get_or_insert(operation.ended);
                }
            }
            seen = operations.len();
            let left = end - now();
            if left <= 0.0 || first.iter().all(Option::is_some) {
                return first;
            }
            self.operations.1.wait_for(&mut operations, Duration::from_secs_f64(left));
        }
    }

    /// Returns the operations that ended after `time`.
    pub(crate) fn operations_since(&self, time: f64) -> Vec<Operation> {
        let operations = self.operations.0.lock();
        operations.iter().filter(|operation| operation.ended >= time).cloned().collect()
    }

    /// Returns the CPU seconds of the process so far.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The name of the program before the bracket can contain spaces.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn conninfo(name: &str, rds: &LocalRds) -> String {
    let (endpoint, root) = (rds.endpoint(), rds.ca_file().display());
    let of_libpq = |host: &str, user: &str| {
        let port = rds.port();
        format!(
            "host={host} port={port} user={user} dbname={} sslmode=verify-full \
             sslrootcert={root} connect_timeout=5",
            LocalRds::DATABASE
        )
    };
    match name {
        "ours" => format!("{}&topology=aurora", rds.cluster_url()),
        "ours-list" => rds.database_url(),
        "libpq-list" => {
            let addresses: Vec<_> =
                rds.nodes().iter().map(|node| format!("127.0.0.{}", node + 1)).collect();
            let conninfo = of_libpq(&addresses.join(","), LocalRds::USER_WITH_PASSWORD);
            format!("{conninfo} target_session_attrs=read-write")
        }
        "libpq-cluster" => {
            let conninfo = of_libpq(endpoint.host(), LocalRds::USER_WITH_PASSWORD);
            format!("{conninfo} target_session_attrs=read-write")
        }
        _ => of_libpq(endpoint.host(), LocalRds::USER),
    }
}

fn parse(line: &str) -> Operation {
    let mut fields = line.splitn(4, ' ');
    let mut next = || fields.next().unwrap();
    let (thread, started, ended) = (next(), next(), next());
    Operation {
        thread: thread.parse().unwrap(),
        started: started.parse().unwrap(),
        ended: ended.parse().unwrap(),
        error: fields.next().map(str::to_owned),
    }
}
