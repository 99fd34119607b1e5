//! The example worker: no job is lost, and none takes effect twice.

use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::deserialize::FromSqlRow;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryId;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, SingleValue, Text};
use diesel_rds_iam::local::LocalRds;

use crate::examples::{logged, printed, run};
use crate::support::{eventually, example, send, start};

const DEADLINE: Duration = Duration::from_secs(60);

/// As in examples/worker/workers.rs.
const POLL: Duration = Duration::from_secs(5);

const IN_A_JOB: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = \
                        'active' AND query LIKE '%pg_sleep%'";
const LISTENERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN jobs'";
const LEFT: &str = "SELECT count(*) FROM jobs WHERE died_at IS NULL";
const DONE: &str = "SELECT count(*) FROM ledger";

/// A server with the tables.
fn migrated() -> LocalRds {
    let rds = start(LocalRds::builder());
    assert!(run(example("migrate").envs(rds.environment())).status.success());
    rds
}

fn worker(rds: &LocalRds, arguments: &[&str]) -> Command {
    let mut command = example("worker");
    command.envs(rds.environment()).args(arguments);
    command
}

/// A running worker, which is killed when the test ends.
struct Running {
    id: u32,
    ended: Option<Receiver<Output>>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let child: Child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (id, (sender, ended)) = (child.id(), channel());
        // Reads continuously, because a full pipe would block the worker.
        thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
        Running { id, ended: Some(ended) }
    }

    fn send(&self, signal: &str) {
        send(signal, self.id);
    }

    /// Waits for its end. Prints its output, so that the test in secrets.rs can search it.
    fn end(mut self) -> Output {
        let output = self
            .ended
            .as_ref()
            .unwrap()
            .recv_timeout(DEADLINE)
            .expect("the worker did not end in time");
        self.ended = None;
        eprint!("{}{}", printed(&output), logged(&output));
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            self.send("KILL");
        }
    }
}

fn summary(counts: [usize; 3]) -> String {
    let [done, retried, dead] = counts;
    format!("jobs done: {done}, retried: {retried}, dead: {dead}\n")
}

fn ask<Type, T>(connection: &mut PgConnection, query: &str) -> T
where
    Type: SingleValue + QueryId + 'static,
    Pg: diesel::sql_types::HasSqlType<Type>,
    T: FromSqlRow<Type, Pg> + 'static,
{
    diesel::dsl::sql::<Type>(query).get_result(connection).unwrap()
}

fn count(connection: &mut PgConnection, query: &str) -> i64 {
    ask::<BigInt, _>(connection, query)
}

fn insert(connection: &mut PgConnection, jobs: i64, seconds: f64) {
    let payload = "json_build_object('account', n % 10, 'amount', 1, 'seconds', $2)::text";
    let insert =
        format!("INSERT INTO jobs (payload) SELECT {payload} FROM generate_series(1, $1) n");
    diesel::sql_query(insert)
        .bind::<BigInt, _>(jobs)
        .bind::<Double, _>(seconds)
        .execute(connection)
        .unwrap();
}

/// Ends a random session of the workers, and returns whether it was active.
fn end_a_session(superuser: &mut PgConnection) -> bool {
    let victim =
        "SELECT pid, state FROM pg_stat_activity WHERE usename = 'app' ORDER BY random() LIMIT 1";
    // A session that has just started has no state.
    let is_active = "coalesce(state <> 'idle', false)";
    let end = format!("SELECT {is_active} AND pg_terminate_backend(pid) FROM ({victim}) victim");
    diesel::dsl::sql::<Bool>(&end).get_result(superuser).optional().unwrap().unwrap_or(false)
}

/// Ends a session for each 20 jobs, until only `left` jobs are left. Returns how many sessions were
/// active.
fn end_sessions_until(left: i64, rds: &LocalRds) -> usize {
    let mut superuser = rds.superuser().unwrap();
    let mut hits = 0;
    let mut next = count(&mut superuser, LEFT);
    while next > left {
        hits += usize::from(end_a_session(&mut superuser));
        next -= 20;
        eventually("jobs are done", || count(&mut superuser, LEFT) <= next.max(left));
    }
    hits
}

/// Returns how many active sessions were ended, and how many logins there were.
fn does_each_job_once(jobs: i64, options: &[&str]) -> (usize, usize) {
    let rds = migrated();
    insert(&mut rds.superuser().unwrap(), jobs, 0.01);
    let running = Running::start(worker(
        &rds,
        &[["--until-empty", "--threads", "8"].as_slice(), options].concat(),
    ));
    let mut hits = 0;
    for left in [jobs * 2 / 3, jobs / 3] {
        hits += end_sessions_until(left, &rds);
        rds.restart().unwrap();
        assert!(
            count(&mut rds.superuser().unwrap(), LEFT) > left / 2,
            "too few jobs were left at the restart"
        );
    }
    hits += end_sessions_until(0, &rds);
    let output = running.end();
    assert!(output.status.success(), "{}", logged(&output));
    assert!(printed(&output).ends_with(", retried: 0, dead: 0\n"), "{}", printed(&output));
    let mut superuser = rds.superuser().unwrap();
    assert_eq!(count(&mut superuser, DONE), jobs);
    assert_eq!(count(&mut superuser, "SELECT count(DISTINCT job_id) FROM ledger"), jobs);
    assert_eq!(count(&mut superuser, "SELECT count(*) FROM jobs"), 0);
    (hits, rds.attempts().len())
}

#[test]
fn does_each_job_once_while_connections_are_lost() {
    let (hits, logins) = does_each_job_once(2000, &[]);
    assert!(hits > 30 && logins > 5 * 8, "{hits} hits, {logins} logins");
}

#[test]
fn does_each_job_once_on_a_pool_too() {
    let (hits, logins) = does_each_job_once(600, &["--pool"]);
    assert!(hits > 8 && logins > 2 * 8, "{hits} hits, {logins} logins");
}

/// Makes retried jobs due at once, until no job is left.
fn skip_the_waiting(superuser: &mut PgConnection) {
    let skip = "UPDATE jobs SET run_at = now() WHERE died_at IS NULL; NOTIFY jobs";
    eventually("all jobs are done", || {
        superuser.batch_execute(skip).unwrap();
        count(superuser, LEFT) == 0
    });
}

/// Records the wait after each failure of a job, in seconds.
const HISTORY: &str = "
    CREATE TABLE history (job_id BIGINT, attempts INTEGER, seconds FLOAT8);
    CREATE FUNCTION note() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO history VALUES
            (NEW.id, NEW.attempts, extract(epoch FROM NEW.run_at - clock_timestamp()));
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER note AFTER UPDATE ON jobs FOR EACH ROW
        WHEN (OLD.attempts <> NEW.attempts AND NEW.died_at IS NULL)
        EXECUTE FUNCTION note();
    GRANT INSERT ON history TO app";

#[test]
fn a_job_that_fails_or_panics_is_retried_with_back_off_and_then_dead() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    superuser.batch_execute(HISTORY).unwrap();
    let payloads = [r#"{"account": 1, "amount": 0}"#, r#"{"account": 2, "amount": 1, "of": 0}"#];
    assert!(run(&mut worker(&rds, &[["enqueue"].as_slice(), &payloads].concat())).status.success());
    insert(&mut superuser, 3, 0.0);
    let running = Running::start(worker(&rds, &["--until-empty", "--threads", "1"]));
    skip_the_waiting(&mut superuser);
    let output = running.end();
    assert!(output.status.success(), "{}", logged(&output));
    assert_eq!(printed(&output), summary([3, 8, 2]));
    for (job, error) in [(1, "violates check constraint"), (2, "the job panicked")] {
        let seconds = format!(
            "SELECT array_agg(seconds ORDER BY attempts) FROM history WHERE job_id = {job}"
        );
        let seconds: Vec<f64> = ask::<Array<Double>, _>(&mut superuser, &seconds);
        let expected = [1.0, 2.0, 4.0, 8.0];
        assert!(
            seconds.iter().zip(expected).all(|(is, to_be)| (to_be - 0.5..=to_be).contains(is)),
            "{seconds:?}"
        );
        assert_eq!(seconds.len(), expected.len());
        let dead = format!("FROM jobs WHERE id = {job} AND died_at IS NOT NULL");
        assert_eq!(ask::<Integer, i32>(&mut superuser, &format!("SELECT attempts {dead}")), 5);
        let last_error: String =
            ask::<Text, _>(&mut superuser, &format!("SELECT last_error {dead}"));
        assert!(last_error.contains(error), "{last_error}");
    }
    assert_eq!(count(&mut superuser, DONE), 3, "failed jobs have no effect");
}

#[test]
fn a_job_with_an_invalid_payload_is_dead_at_once() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    let good = r#"{"account": 1, "amount": 1}"#;
    let nul = r#"{"account": 1, "amount": 1, "\u0000": 1}"#;
    let payloads = [
        "enqueue",
        "",
        good,
        "{",
        r#"{"account": 1}"#,
        nul,
        good,
        r#"{"account": 1, "amount": 1, "x": 1}"#,
    ];
    assert!(run(&mut worker(&rds, &payloads)).status.success());
    // The largest possible number of attempts.
    let worn = r#"INSERT INTO jobs (payload, attempts)
        VALUES ('{"account": 1, "amount": 0}', 2147483647)"#;
    superuser.batch_execute(worn).unwrap();
    let output = run(&mut worker(&rds, &["--until-empty", "--threads", "1"]));
    assert!(output.status.success(), "{}", logged(&output));
    assert_eq!(printed(&output), summary([2, 0, 6]));
    let dead =
        "SELECT count(*) FROM jobs WHERE attempts = 1 AND last_error LIKE 'unusable payload: %'";
    assert_eq!([DONE, LEFT, dead].map(|query| count(&mut superuser, query)), [2, 0, 5]);
}

/// Runs `before`, and returns the time from the insert of a job until it is done.
fn latency(superuser: &mut PgConnection, before: &str) -> Duration {
    let (done, started) = (count(superuser, DONE), Instant::now());
    superuser.batch_execute(before).unwrap();
    insert(superuser, 1, 0.0);
    eventually("the job is done", || count(superuser, DONE) > done);
    started.elapsed()
}

#[test]
fn notify_wakes_the_worker_also_after_the_listener_lost_its_connection() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    let running = Running::start(worker(&rds, &["--threads", "1"]));
    eventually("the worker listens", || count(&mut superuser, LISTENERS) == 1);
    let mut latencies: Vec<Duration> =
        (0..5).map(|_| latency(&mut superuser, "SELECT 1")).collect();
    // Nothing listens when the job is inserted.
    let end =
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = 'LISTEN jobs'";
    let without_listener = latency(&mut superuser, end);
    latencies.extend((0..5).map(|_| latency(&mut superuser, "SELECT 1")));
    eprintln!("{latencies:?}; {without_listener:?} without a listener");
    assert!(latencies.iter().all(|latency| *latency < POLL / 5), "{latencies:?}");
    assert!(without_listener < POLL / 2, "{without_listener:?}");
    running.send("TERM");
    let output = running.end();
    assert!(output.status.success(), "{}", logged(&output));
    assert_eq!(printed(&output), summary([11, 0, 0]));
}

#[test]
fn after_a_signal_running_jobs_finish_and_no_other_starts() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    for signal in ["TERM", "INT"] {
        superuser.batch_execute("TRUNCATE jobs, ledger").unwrap();
        insert(&mut superuser, 2, 1.0);
        let running = Running::start(worker(&rds, &["--threads", "1"]));
        eventually("a job starts", || count(&mut superuser, IN_A_JOB) == 1);
        running.send(signal);
        let output = running.end();
        assert_eq!(output.status.code(), Some(0), "{}", logged(&output));
        assert_eq!(printed(&output), summary([1, 0, 0]));
        assert_eq!([DONE, LEFT].map(|query| count(&mut superuser, query)), [1, 1]);
    }
}

#[test]
fn a_second_signal_ends_the_worker_at_once_and_the_job_runs_again() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    insert(&mut superuser, 1, 600.0);
    let running = Running::start(worker(&rds, &["--threads", "1"]));
    eventually("a job starts", || count(&mut superuser, IN_A_JOB) == 1);
    running.send("TERM");
    // The listener's session ends with the first signal: the second one is not merged with it.
    eventually("the listener ends", || count(&mut superuser, LISTENERS) == 0);
    running.send("TERM");
    let output = running.end();
    assert_eq!(output.status.code(), None, "{}", printed(&output));
    let unharmed = format!("{LEFT} AND attempts = 0");
    assert_eq!([DONE, &unharmed].map(|query| count(&mut superuser, query)), [0, 1]);
}

#[test]
fn a_signal_ends_the_worker_while_the_server_is_stopped() {
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    insert(&mut superuser, 1, 600.0);
    let mut command = worker(&rds, &["--threads", "1"]);
    // The worker ends after its attempt to connect, which takes up to 10 s by default.
    command.env("DATABASE_URL", rds.database_url() + "&connect_timeout=2");
    let running = Running::start(command);
    eventually("a job starts", || count(&mut superuser, IN_A_JOB) == 1);
    rds.stop();
    running.send("TERM");
    let output = running.end();
    assert_eq!(output.status.code(), Some(0), "{}", logged(&output));
    assert_eq!(printed(&output), summary([0, 0, 0]));
}

#[test]
fn two_workers_share_the_jobs() {
    const JOBS: usize = 120;
    let rds = migrated();
    let mut superuser = rds.superuser().unwrap();
    insert(&mut superuser, JOBS as i64, 0.05);
    let both = [(); 2].map(|()| Running::start(worker(&rds, &["--threads", "2"])));
    eventually("all jobs are done", || count(&mut superuser, LEFT) == 0);
    let done = both.map(|one| {
        one.send("TERM");
        let output = one.end();
        assert!(output.status.success(), "{}", logged(&output));
        let printed = printed(&output);
        printed
            .strip_prefix("jobs done: ")
            .unwrap()
            .split_once(',')
            .unwrap()
            .0
            .parse::<usize>()
            .unwrap()
    });
    assert!(done[0] > 0 && done[1] > 0 && done[0] + done[1] == JOBS, "{done:?}");
    assert_eq!(count(&mut superuser, DONE), JOBS as i64);
    assert_eq!(count(&mut superuser, "SELECT count(DISTINCT job_id) FROM ledger"), JOBS as i64);
}

#[test]
fn without_settings_it_runs_samples_on_a_local_rds() {
    let output = run(&mut example("worker"));
    assert!(output.status.success(), "{}", logged(&output));
    assert!(printed(&output).ends_with(&summary([20, 0, 1])), "{}", printed(&output));
    assert!(printed(&output).contains("1 that fails on purpose"), "{}", printed(&output));
    assert!(logged(&output).contains("job 21 is dead: unusable payload: "), "{}", logged(&output));
}

#[test]
fn reports_why_it_does_not_start() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    let output = run(&mut worker(&rds, &[]));
    assert_eq!(output.status.code(), Some(1));
    assert!(logged(&output).contains("rds-db:connect"), "{}", logged(&output));
    let local = run(example("worker").args(["enqueue", "{}"]));
    assert_eq!(local.status.code(), Some(1));
    assert!(logged(&local).contains("enqueue needs DATABASE_URL"), "{}", logged(&local));
    for arguments in [
        ["--threads", "0"].as_slice(),
        &["--threads", "1001"],
        &["--threads"],
        &["--now"],
        &["enqueue"],
    ] {
        let output = run(example("worker").args(arguments));
        assert_eq!(output.status.code(), Some(1));
        assert!(logged(&output).contains("usage: worker "), "{}", logged(&output));
    }
}
