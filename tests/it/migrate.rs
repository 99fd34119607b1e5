//! The example migrate, as in a deployment.

use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::examples::{logged, printed, run};
use crate::support::fake::{FakePostgres, error_response};
use crate::support::{example, manager, minutes, output_of, start};

const UP_TO_DATE: &str = "the schema is up to date; migrations run: ";
const LAST: &str = "2026-01-03-000000_create_jobs";

/// The key of the advisory lock in examples/migrations.rs.
const LOCK: i64 = 0x6469_6573_656c;

fn migrate(rds: &LocalRds) -> Command {
    let mut command = example("migrate");
    command.envs(rds.environment());
    command
}

/// A running migrate, whose output is read while it runs.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, (sender, lines)) = (child.stdout.take().unwrap(), channel());
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // The receiver is dropped if the test has failed.
                let _ = sender.send(line.unwrap() + "\n");
            }
        });
        Running { child, lines }
    }

    /// Returns the next line. Prints it, so that the test in secrets.rs can search it.
    fn line(&self) -> String {
        let line = self.lines.recv_timeout(minutes(1)).expect("migrate prints a line");
        eprint!("{line}");
        line
    }

    /// Waits for the end. Returns whether it succeeded, and the rest of its output and log.
    fn end(self) -> (bool, String, String) {
        let output = output_of(self.child, minutes(2), "migrate");
        let printed: String = self.lines.iter().collect();
        eprint!("{printed}{}", logged(&output));
        (output.status.success(), printed, logged(&output))
    }
}

fn count(connection: &mut PgConnection, from: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {from}"))
        .get_result(connection)
        .unwrap()
}

fn lock(connection: &mut PgConnection) {
    connection.batch_execute(&format!("SELECT pg_advisory_lock({LOCK})")).unwrap();
}

#[test]
fn without_settings_it_migrates_a_local_rds() {
    let output = run(&mut example("migrate"));
    assert!(output.status.success(), "{}", logged(&output));
    assert!(printed(&output).starts_with("DATABASE_URL is not set: "), "{}", printed(&output));
    assert!(
        printed(&output).ends_with(&format!("3 of 3: {LAST}\n{UP_TO_DATE}3\n")),
        "{}",
        printed(&output)
    );
}

#[test]
fn a_migration_that_only_the_database_knows_is_ignored() {
    let rds = start(LocalRds::builder());
    assert!(run(&mut migrate(&rds)).status.success());
    let insert = "INSERT INTO __diesel_schema_migrations (version) VALUES ('20270101000000')";
    rds.superuser().unwrap().batch_execute(insert).unwrap();
    let output = run(&mut migrate(&rds));
    assert!(output.status.success(), "{}", logged(&output));
    assert_eq!(printed(&output), format!("{UP_TO_DATE}0\n"));
}

#[test]
fn with_4_at_the_same_time_each_migration_runs_once() {
    let rds = start(LocalRds::builder());
    let all: Vec<Running> = (0..4).map(|_| Running::start(&mut migrate(&rds))).collect();
    let mut run = Vec::new();
    for one in all {
        let (success, printed, logged) = one.end();
        assert!(success, "{logged}");
        run.push(printed.lines().last().unwrap().strip_prefix(UP_TO_DATE).unwrap().to_owned());
    }
    run.sort_unstable();
    assert_eq!(run, ["0", "0", "0", "3"]);
    assert_eq!(count(&mut rds.superuser().unwrap(), "__diesel_schema_migrations"), 3);
}

#[test]
fn waits_for_another_migration_and_says_so() {
    let rds = start(LocalRds::builder());
    let mut other = manager(&rds).connect().unwrap();
    lock(&mut other);
    let waiting = Running::start(&mut migrate(&rds));
    assert_eq!(waiting.line(), "another program migrates this database; waiting for it\n");
    assert_eq!(count(&mut other, "pg_tables WHERE tablename = 'notes'"), 0);
    // Regression: this was a deadlock while migrate waited in pg_advisory_lock.
    other.batch_execute("CREATE TABLE t (a INT)").unwrap();
    other.batch_execute("CREATE INDEX CONCURRENTLY ON t (a)").unwrap();
    drop(other);
    let (success, printed, logged) = waiting.end();
    assert!(success && printed.ends_with(&format!("{UP_TO_DATE}3\n")), "{printed}{logged}");
}

#[test]
fn a_connection_closed_during_the_wait_for_the_lock_is_reported() {
    let rds = start(LocalRds::builder());
    let mut other = manager(&rds).connect().unwrap();
    lock(&mut other);
    let waiting = Running::start(&mut migrate(&rds));
    waiting.line();
    // CASE, because AND does not define the order of evaluation.
    let is_waiting = "query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()";
    let end = format!(
        "pg_stat_activity \
         WHERE CASE WHEN {is_waiting} THEN pg_terminate_backend(pid) ELSE FALSE END"
    );
    assert_eq!(count(&mut other, &end), 1);
    let (success, _, logged) = waiting.end();
    assert!(
        !success && logged.contains("while waiting for the program that migrates: "),
        "{logged}"
    );
}

#[test]
fn a_failed_migration_is_named_and_rolled_back() {
    let rds = start(LocalRds::builder());
    let mut connection = manager(&rds).connect().unwrap();
    connection.batch_execute("CREATE TABLE ledger ()").unwrap();
    let output = run(&mut migrate(&rds));
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).ends_with(&format!("3 of 3: {LAST}\n")), "{}", printed(&output));
    assert!(logged(&output).contains(LAST), "{}", logged(&output));
    assert!(logged(&output).contains("relation \"ledger\" already exists"), "{}", logged(&output));
    // The failed migration is rolled back. The earlier migrations are kept.
    let tables = "pg_tables WHERE schemaname = 'public' AND tablename IN ";
    assert_eq!(count(&mut connection, &format!("{tables} ('jobs')")), 0);
    assert_eq!(count(&mut connection, &format!("{tables} ('notes', 'entries')")), 2);

    connection.batch_execute("DROP TABLE ledger").unwrap();
    let output = run(&mut migrate(&rds));
    assert!(output.status.success(), "{}", logged(&output));
    assert_eq!(printed(&output), format!("1 of 1: {LAST}\n{UP_TO_DATE}1\n"));
}

#[test]
fn waits_for_a_stopped_server_and_reports_the_cause_once() {
    let rds = start(LocalRds::builder());
    rds.stop();
    let waiting = Running::start(&mut migrate(&rds));
    let why = waiting.line();
    assert!(
        why.starts_with("waiting for the database: ") && why.contains("Connection refused"),
        "{why}"
    );
    rds.restart().unwrap();
    let (success, printed, logged) = waiting.end();
    assert!(success && printed.ends_with(&format!("{UP_TO_DATE}3\n")), "{printed}{logged}");
    assert!(!printed.contains("Connection refused"), "{printed}");
}

#[test]
fn the_wait_ends_after_the_given_time() {
    let rds = start(LocalRds::builder());
    rds.stop();
    let started = Instant::now();
    let output = run(migrate(&rds).args(["--wait", "2"]));
    let elapsed = started.elapsed();
    assert_eq!(output.status.code(), Some(1));
    assert!(logged(&output).contains("no database within 2 s: "), "{}", logged(&output));
    assert!(logged(&output).contains("Connection refused"), "{}", logged(&output));
    assert!((Duration::from_secs(2)..Duration::from_secs(7)).contains(&elapsed), "{elapsed:?}");
}

#[test]
fn waits_while_a_token_is_refused() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(5);
    let output = run(&mut migrate(&rds));
    assert!(output.status.success(), "{}", logged(&output));
    let reports = printed(&output).lines().filter(|line| line.contains("rds-db:connect")).count();
    assert_eq!(reports, 1, "{}", printed(&output));
}

#[test]
fn a_failure_that_waiting_does_not_fix_is_reported_at_once() {
    let rds = start(LocalRds::builder());
    let other = start(LocalRds::builder());
    let url = rds.database_url();
    let (root, other_root) = (rds.ca_file().to_str().unwrap(), other.ca_file().to_str().unwrap());
    let cases = [
        (rds.database_url_for(LocalRds::USER_WITHOUT_GRANT), "GRANT rds_iam"),
        (url.replace("/app?", "/none?"), "check the names of database and user"),
        (url.replace(root, other_root), "sslrootcert="),
        (format!("{url}&sslmode=prefer"), "unusable connection string"),
    ];
    for (url, cause) in cases {
        let started = Instant::now();
        let output = run(migrate(&rds).env("DATABASE_URL", url));
        assert_eq!(output.status.code(), Some(1));
        assert!(logged(&output).contains(cause), "{}", logged(&output));
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}: {cause}", started.elapsed());
    }
}

#[test]
fn without_credentials_it_does_not_wait() {
    let rds = start(LocalRds::builder());
    let mut command = migrate(&rds);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("HOME", "/nonexistent");
    let output = run(command.env("AWS_EC2_METADATA_DISABLED", "true").args(["--wait", "600"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(logged(&output).contains("migrate: no AWS credentials: "), "{}", logged(&output));
}

#[test]
fn a_missing_privilege_is_named() {
    let rds = start(LocalRds::builder());
    let mut superuser = rds.superuser().unwrap();
    superuser
        .batch_execute(
            "ALTER SCHEMA public OWNER TO CURRENT_USER; REVOKE ALL ON SCHEMA public FROM PUBLIC",
        )
        .unwrap();
    let output = run(&mut migrate(&rds));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        logged(&output).contains("allow the user to create tables in this schema"),
        "{}",
        logged(&output)
    );
}

/// Listens in front of `rds` as an Aurora Serverless v2 cluster that resumes from auto-pause. The
/// first login is held, the second is cut, the third is answered by `fake`, all others by `rds`.
fn resuming(rds: u16, fake: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut held = Vec::new();
        for (login, client) in listener.incoming().flatten().enumerate() {
            match login {
                0 => held.push(client),
                1 => drop((&client).read(&mut [0; 8])),
                2 => relay(client, fake),
                _ => relay(client, rds),
            }
        }
    });
    port
}

fn relay(client: TcpStream, port: u16) {
    let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let clones = (server.try_clone().unwrap(), client.try_clone().unwrap());
    for (mut from, mut to) in [(client, server), clones] {
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

#[test]
fn waits_for_an_aurora_cluster_that_resumes_from_auto_pause() {
    const NO_ENTRY: &str = "no pg_hba.conf entry for host \"10.0.0.1\", user \"app\", database \
                            \"app\", SSL encryption";
    let rds = start(LocalRds::builder());
    let fake = FakePostgres::start(-1..1, error_response("28000", NO_ENTRY));
    let roots = tempfile::NamedTempFile::new().unwrap();
    let both =
        [rds.ca_file(), fake.roots.path()].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(roots.path(), both.concat()).unwrap();
    let port = resuming(rds.port(), fake.port);
    let url = format!(
        "host=localhost port={port} iam_port={} user=app dbname=app region_name={} \
         sslrootcert='{}' connect_timeout=2",
        rds.port(),
        rds.endpoint().region(),
        roots.path().display()
    );
    let output = run(migrate(&rds).env("DATABASE_URL", url).args(["--wait", "60"]));
    assert!(output.status.success(), "{}", logged(&output));
    for cause in ["timeout expired", NO_ENTRY] {
        assert!(logged(&output).contains(cause), "{}", logged(&output));
    }
    assert!(printed(&output).ends_with(&format!("{UP_TO_DATE}3\n")), "{}", printed(&output));
}

#[test]
fn unknown_arguments_are_explained() {
    for arguments in [
        ["--wait", "soon"].as_slice(),
        &["--wait", "0"],
        &["--wait"],
        &["--now"],
        &["--wait", "1", "2"],
    ] {
        let output = run(example("migrate").args(arguments));
        assert_eq!(output.status.code(), Some(1));
        assert!(
            logged(&output).ends_with("usage: migrate [--wait SECONDS]\n"),
            "{}",
            logged(&output)
        );
    }
}
