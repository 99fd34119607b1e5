pub(crate) mod browser;
pub(crate) mod cloud;
pub(crate) mod fake;
pub(crate) mod moto;
#[cfg(target_os = "linux")]
pub(crate) mod network;
#[cfg(target_os = "linux")]
pub(crate) mod proxy;
pub(crate) mod web;

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_rds_iam::local::{Builder, LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, Error, RdsConnectionManager, presign};

/// The program `rds-iam`. `cargo test --workspace` builds it.
pub(crate) const RDS_IAM: &str = if cfg!(debug_assertions) {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/../debug/rds-iam")
} else {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/../release/rds-iam")
};

/// A server, with our log on standard error as RUST_LOG says.
pub(crate) fn start(builder: Builder) -> LocalRds {
    log();
    builder.start().unwrap()
}

pub(crate) fn log() {
    let _ = env_logger::builder().is_test(std::env::var_os("RUST_LOG").is_none()).try_init();
}

pub(crate) fn manager(rds: &LocalRds) -> RdsConnectionManager {
    rds.manager_builder().build(rds.database_url()).unwrap()
}

pub(crate) fn current_user(connection: &mut PgConnection) -> String {
    diesel::select(sql::<Text>("current_user::text")).get_result(connection).unwrap()
}

/// The process id of the server's end.
pub(crate) fn backend(connection: &mut PgConnection) -> i32 {
    diesel::select(sql::<Integer>("pg_backend_pid()")).get_result(connection).unwrap()
}

/// The sessions that the server has of the user that logs in by token.
pub(crate) fn sessions(rds: &LocalRds) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    sql::<BigInt>(query).get_result(&mut rds.superuser().unwrap()).unwrap()
}

/// The text of the error that a login ends in.
pub(crate) fn refused(manager: &RdsConnectionManager) -> String {
    match manager.connect() {
        Ok(_) => panic!("let in: {manager:?}"),
        Err(error @ Error::Connect { .. }) => error.to_string(),
        Err(error) => panic!("not a refused login: {error}"),
    }
}

/// Logs in through libpq with a ready password, as a program without this crate would.
pub(crate) fn log_in(rds: &LocalRds, user: &str, password: &str) -> ConnectionResult<PgConnection> {
    let quote = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
    let (user, password) = (quote(user), quote(password));
    let (port, root) = (rds.port(), rds.ca_file().display());
    PgConnection::establish(&format!(
        "host=localhost port={port} user='{user}' dbname=app sslmode=verify-full sslrootcert='{root}' password='{password}'"
    ))
}

/// A token for the server's own endpoint and user, signed at `when` by the server's key pair.
pub(crate) fn token_of(rds: &LocalRds, when: SystemTime) -> String {
    presign(&rds.endpoint(), LocalRds::USER, rds.credentials(), when).unwrap().as_str().to_owned()
}

pub(crate) fn last_verdict(rds: &LocalRds) -> Result<(), Refusal> {
    rds.attempts().last().expect("no login").verdict.clone()
}

pub(crate) fn key_pair(expiry: Option<SystemTime>) -> Credentials {
    Credentials::new("AKIAOTHER", "local-rds-secret-other", None, expiry, "test")
}

/// One of the examples. `cargo test` builds them beside this binary.
pub(crate) fn example(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let folder: PathBuf = this.ancestors().nth(2).unwrap().join("examples");
    let mut command = Command::new(folder.join(name));
    command.env_remove("DATABASE_URL");
    command
}

/// Waits for what no event tells, and another thread of this process does.
pub(crate) fn soon(happens: impl FnMut() -> bool) {
    within(Duration::from_secs(10), happens);
}

/// Waits for what no event tells, and another process does.
pub(crate) fn eventually(happens: impl FnMut() -> bool) {
    within(Duration::from_secs(30), happens);
}

fn within(limit: Duration, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !happens() {
        assert!(Instant::now() < deadline, "it did not come to pass");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal, named as kill(1) names it. By the shell's own kill: not each machine has the
/// program.
pub(crate) fn send(signal: &str, pid: impl Display) {
    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -s {signal} {pid}")])
            .status()
            .unwrap()
            .success()
    );
}

/// Ends all sessions of the user that logs in by token, and waits until they have ended.
pub(crate) fn end_sessions(rds: &LocalRds) {
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'";
    diesel::sql_query(end).execute(&mut rds.superuser().unwrap()).unwrap();
}

pub(crate) const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Runs one ignored test of this binary in a process of its own, with these environment variables
/// and no others: a process that has threads cannot change its own. Returns what it printed and
/// logged.
pub(crate) fn in_a_child(test: &str, environment: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().unwrap();
    run_alone(Command::new(program), test, environment)
}

/// The same under valgrind, which makes a memory error a failure.
#[cfg(target_os = "linux")]
pub(crate) fn in_a_child_under_valgrind(test: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=99"]).arg(std::env::current_exe().unwrap());
    run_alone(command, test, environment);
}

/// The same with so few file descriptors.
pub(crate) fn in_a_child_with_descriptors(
    test: &str,
    descriptors: usize,
    environment: &[(&str, &str)],
) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]);
    command.arg(std::env::current_exe().unwrap());
    run_alone(command, test, environment);
}

/// The same in a network namespace of its own, where the loopback interface has `address`, too.
pub(crate) fn in_a_network_of_its_own(test: &str, address: &str, environment: &[(&str, &str)]) {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let rights: &[&str] = if is_root { &[] } else { &["--map-current-user", "--keep-caps"] };
    let set_up =
        format!("ip link set lo up && ip address add {address}/32 dev lo && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command
        .arg("--net")
        .args(rights)
        .args(["sh", "-c", &set_up])
        .arg(std::env::current_exe().unwrap());
    run_alone(command, test, environment);
}

/// Takes all from a program's environment but what it needs. Nobody's profile, and no metadata
/// service: there are no AWS credentials but those that it is given.
pub(crate) fn with_no_settings(command: &mut Command) -> &mut Command {
    let kept = ["PATH", "TMPDIR", "RUST_LOG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    command
        .env_clear()
        .envs(kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs([("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")])
}

fn run_alone(mut command: Command, test: &str, environment: &[(&str, &str)]) -> String {
    command.args(["--exact", test, "--include-ignored", "--nocapture"]);
    let output = with_no_settings(&mut command).envs(environment.iter().copied()).output().unwrap();
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    // For the search for secrets.
    eprint!("{stdout}{stderr}");
    // "1 passed": a name that no test has passes, too.
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    stdout.into_owned() + &stderr
}
