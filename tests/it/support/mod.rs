//! Helpers of the integration tests.

pub(crate) mod browser;
pub(crate) mod cloud;
pub(crate) mod fake;
pub(crate) mod moto;
#[cfg(target_os = "linux")]
pub(crate) mod network;
#[cfg(target_os = "linux")]
pub(crate) mod proxy;
pub(crate) mod web;

use std::fmt::{Debug, Display};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_rds_iam::local::{Builder, LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, Error, RdsConnectionManager, presign};

/// The program `rds-iam`, which `cargo test --workspace` builds.
pub(crate) const RDS_IAM: &str = if cfg!(debug_assertions) {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/../debug/rds-iam")
} else {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/../release/rds-iam")
};

/// Starts a server, with the log on standard error according to RUST_LOG.
pub(crate) fn start(builder: Builder) -> LocalRds {
    log();
    builder.start().unwrap()
}

pub(crate) fn log() {
    limit_this_test();
    let _ = env_logger::builder().is_test(std::env::var_os("RUST_LOG").is_none()).try_init();
}

pub(crate) fn manager(rds: &LocalRds) -> RdsConnectionManager {
    rds.manager().unwrap()
}

pub(crate) fn current_user(connection: &mut PgConnection) -> String {
    diesel::select(sql::<Text>("current_user::text")).get_result(connection).unwrap()
}

/// Returns the process id of the connection's backend.
pub(crate) fn backend(connection: &mut PgConnection) -> i32 {
    diesel::select(sql::<Integer>("pg_backend_pid()")).get_result(connection).unwrap()
}

/// Returns the number of sessions of the user that logs in with a token.
pub(crate) fn sessions(rds: &LocalRds) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    sql::<BigInt>(query).get_result(&mut rds.superuser().unwrap()).unwrap()
}

/// Returns the error text of a login that must fail.
pub(crate) fn refused(manager: &RdsConnectionManager) -> String {
    match manager.connect() {
        Ok(_) => panic!("admitted: {manager:?}"),
        Err(error @ Error::Connect { .. }) => error.to_string(),
        Err(error) => panic!("not a refused login: {error}"),
    }
}

/// Logs in through libpq with this password, like a program that does not use this crate.
pub(crate) fn log_in(rds: &LocalRds, user: &str, password: &str) -> ConnectionResult<PgConnection> {
    let quote = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
    let (user, password) = (quote(user), quote(password));
    let (port, root) = (rds.port(), rds.ca_file().display());
    PgConnection::establish(&format!(
        "host=localhost port={port} user='{user}' dbname=app sslmode=verify-full \
         sslrootcert='{root}' password='{password}'"
    ))
}

/// Returns a token for the server's endpoint and user, signed at `when` with the server's key pair.
pub(crate) fn token_of(rds: &LocalRds, when: SystemTime) -> String {
    presign(&rds.endpoint(), LocalRds::USER, rds.credentials(), when).unwrap().as_str().to_owned()
}

pub(crate) fn last_verdict(rds: &LocalRds) -> Result<(), Refusal> {
    rds.attempts().last().expect("no login").verdict.clone()
}

pub(crate) fn key_pair(expiry: Option<SystemTime>) -> Credentials {
    Credentials::new("AKIAOTHER", "local-rds-secret-other", None, expiry, "test")
}

/// Writes a file that only its owner can read, as a file with a secret should be.
pub(crate) fn write_private(path: &Path, contents: impl AsRef<[u8]>) {
    let mut file = OpenOptions::new();
    file.write(true).create(true).truncate(true).mode(0o600);
    file.open(path).and_then(|mut file| file.write_all(contents.as_ref())).unwrap();
}

/// Returns one of the examples, which `cargo test` builds.
pub(crate) fn example(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let folder: PathBuf = this.ancestors().nth(2).unwrap().join("examples");
    let mut command = Command::new(folder.join(name));
    command.env_remove("DATABASE_URL");
    command
}

/// Waits for another thread of this process.
pub(crate) fn soon(what: &str, happened: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, happened);
}

/// Waits for another process.
pub(crate) fn eventually(what: &str, happened: impl FnMut() -> bool) {
    within(Duration::from_secs(30), what, happened);
}

/// As `eventually`, and shows both values if they still differ.
pub(crate) fn eventually_equal<T: PartialEq + Debug>(
    what: &str,
    expected: T,
    mut actual: impl FnMut() -> T,
) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let last = actual();
        if last == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: still {last:?} after 30 s, not {expected:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the process if the test of this thread runs for 15 minutes. A thread that waits inside
/// libpq, and a test that joins it, cannot be stopped in another way.
fn limit_this_test() {
    thread_local! {
        static END: Sender<()> = {
            let test = thread::current().name().unwrap_or("a thread").to_owned();
            let (end, ended) = channel();
            // The end of the thread drops the sender.
            thread::spawn(move || {
                if ended.recv_timeout(minutes(15)) == Err(RecvTimeoutError::Timeout) {
                    eprintln!("{test} did not end within 15 minutes");
                    std::process::abort();
                }
            });
            end
        };
    }
    END.with(|_| ());
}

/// Polls, for conditions without an event to wait for.
fn within(limit: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !happened() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a child process has ended. Kills it after 60 s and fails.
pub(crate) fn end_of(child: &mut Child, what: &str) -> ExitStatus {
    poll_end(Duration::from_secs(60), child)
        .unwrap_or_else(|| panic!("killed, because it ran for 60 s: {what}"))
}

/// Returns `None` if the child did not end within the limit and was killed.
fn poll_end(limit: Duration, child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program until it ends, with the limit of `output_of`.
pub(crate) fn output(command: &mut Command) -> Output {
    let what = format!("{:?} {:?}", command.get_program(), command.get_args().next());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    output_of(child.unwrap(), minutes(5), &what)
}

/// Reads the output of a child process until both have ended. Kills the child at the limit and
/// fails.
pub(crate) fn output_of(child: Child, limit: Duration, what: &str) -> Output {
    let (id, (sender, output)) = (child.id(), channel());
    thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    output.recv_timeout(limit).unwrap_or_else(|_| {
        send("KILL", id);
        panic!("killed, because it ran for {limit:?}: {what}")
    })
}

/// Waits 60 s for a line from which `find` returns a value. Reads the output to its end, so that
/// the child process never blocks.
pub(crate) fn await_line<T: Send + 'static>(
    what: &str,
    output: impl Read + Send + 'static,
    find: impl Fn(&str) -> Option<T> + Send + 'static,
) -> T {
    let (sender, found) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // The receiver is dropped after the first value.
            let _ = find(&line).map(|value| sender.send(value));
        }
    });
    let received = found.recv_timeout(Duration::from_secs(60));
    received.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Returns whether this process ignores SIGINT, as under nohup. Child processes inherit that.
pub(crate) fn ignores_sigint() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|it| it & 2 != 0)
}

/// Sends a signal, with its name as in kill(1). The shell's builtin is used because the program is
/// not on every machine.
pub(crate) fn send(signal: &str, pid: impl Display) {
    assert!(
        Command::new("sh")
            .args(["-c", &format!("kill -s {signal} {pid}")])
            .status()
            .unwrap()
            .success()
    );
}

/// Ends all sessions of the user that logs in with a token, and waits until they have ended.
pub(crate) fn end_sessions(rds: &LocalRds) {
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'";
    diesel::sql_query(end).execute(&mut rds.superuser().unwrap()).unwrap();
}

pub(crate) const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Runs one ignored test of this binary in a child process with only these environment variables.
/// (A process with threads cannot change its own environment.) Returns the output and the log.
pub(crate) fn in_a_child(test: &str, environment: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().unwrap();
    run_alone(Command::new(program), test, environment)
}

/// As `in_a_child`, under valgrind. A memory error is a failure.
#[cfg(target_os = "linux")]
pub(crate) fn in_a_child_under_valgrind(test: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=99"]).arg(std::env::current_exe().unwrap());
    run_alone(command, test, environment);
}

/// As `in_a_child`, with a limited number of file descriptors.
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

/// As `in_a_child`, in a new network namespace whose loopback interface also has `address`.
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

/// Clears the environment of a program except for what it needs. The program finds no AWS profile
/// and no metadata service, so it has only the credentials that the test sets.
pub(crate) fn with_no_settings(command: &mut Command) -> &mut Command {
    let kept = ["PATH", "TMPDIR", "RUST_LOG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    command
        .env_clear()
        .envs(kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs([("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")])
}

fn run_alone(mut command: Command, test: &str, environment: &[(&str, &str)]) -> String {
    command.args(["--exact", test, "--include-ignored", "--nocapture"]);
    with_no_settings(&mut command).envs(environment.iter().copied());
    // Files, because a process that the child leaves behind can hold a pipe open.
    let [stdout, stderr] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    command.stdout(stdout.reopen().unwrap()).stderr(stderr.reopen().unwrap()).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let read = |file: &tempfile::NamedTempFile| {
        String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned()
    };
    let ended = poll_end(Duration::from_secs(600), &mut child);
    let (stdout, stderr) = (read(&stdout), read(&stderr));
    // The output is searched for secrets.
    eprint!("{stdout}{stderr}");
    let status = ended.unwrap_or_else(|| panic!("{test} did not end within 10 minutes"));
    // "1 passed", because an unknown test name succeeds too.
    assert!(status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    stdout + &stderr
}
