use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use diesel::prelude::*;
use diesel_rds_iam::local::{Builder, LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, Error, RdsConnectionManager, presign};

/// A server, with our log on standard error as RUST_LOG says.
pub(crate) fn start(builder: Builder) -> LocalRds {
    let _ = env_logger::builder().is_test(std::env::var_os("RUST_LOG").is_none()).try_init();
    builder.start().unwrap()
}

pub(crate) fn manager(rds: &LocalRds) -> RdsConnectionManager {
    rds.manager_builder().build(rds.database_url()).unwrap()
}

pub(crate) fn current_user(connection: &mut PgConnection) -> String {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Text>("current_user::text")).get_result(connection).unwrap()
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

pub(crate) const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Runs one ignored test of this binary in a process of its own, with these environment variables and no others: a
/// process that has threads cannot change its own.
pub(crate) fn in_a_child(test: &str, environment: &[(&str, &str)]) {
    let output = child(test, environment);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn child(test: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env_clear();
    let kept = ["PATH", "TMPDIR", "RUST_LOG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    command.envs(kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // Nobody's profile, and no metadata service: there are no AWS credentials but those given here.
    command.envs([("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")]);
    command.envs(environment.iter().copied()).output().unwrap()
}
