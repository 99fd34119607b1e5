//! Settings from environment variables and service files, each test in its own process.

use std::io::Write;

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Error, RdsConnectionManager};

use crate::support::{current_user, in_a_child, log, start};

/// Returns the variables for the key pair of `rds`.
fn keys(rds: &LocalRds) -> Vec<(&'static str, String)> {
    rds.environment().into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect()
}

fn run(test: &str, environment: &[(&str, String)]) -> String {
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    in_a_child(test, &environment)
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn logs_in() {
    log();
    let manager = RdsConnectionManager::from_env().unwrap();
    assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn fails_as_expected() {
    log();
    let error: Error = RdsConnectionManager::from_env().expect_err("built");
    let expected = std::env::var("EXPECTED").unwrap();
    assert!(error.to_string().contains(&expected), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn database_url() {
    let rds = start(LocalRds::builder());
    run("environment::logs_in", &rds.environment());
    assert_eq!(rds.attempts().len(), 1);
}

/// Common on laptops, where it is meant for another server.
#[test]
fn a_pgpassword_beside_a_database_url_is_ignored() {
    let rds = start(LocalRds::builder());
    let mut environment = rds.environment();
    environment.extend([("PGPASSWORD", "hunter2".into()), ("PGSSLMODE", "disable".into())]);
    assert_eq!(
        warnings(environment),
        ["PGPASSWORD is ignored: the connection string has no password, so it logs in by IAM"]
    );
}

/// Returns the warnings of a login with this environment.
fn warnings(mut environment: Vec<(&'static str, String)>) -> Vec<String> {
    environment.push(("RUST_LOG", "warn".into()));
    let shown = run("environment::logs_in", &environment);
    let warned = shown
        .lines()
        .filter_map(|line| Some(line.split_once("WARN ")?.1.split_once("] ")?.1.to_owned()));
    warned.collect()
}

#[test]
fn each_doubtful_setting_is_warned_of_once() {
    let rds = start(LocalRds::builder().endpoint("db.abc.eu-west-1.rds.amazonaws.com", 5432));
    assert_eq!(
        warnings(rds.environment()),
        ["region_name=us-east-1 is used to sign, but db.abc.eu-west-1.rds.amazonaws.com is in \
             eu-west-1"]
    );
    let rds = start(LocalRds::builder());
    assert!(warnings(rds.environment()).is_empty());
    for sslmode in ["require", "verify-ca"] {
        let mut environment = rds.environment();
        environment[0].1 =
            rds.database_url().replace("sslmode=verify-full", &format!("sslmode={sslmode}"));
        let expected = format!(
            "sslmode={sslmode} does not check the server's name: another server can get the \
             token; use verify-full"
        );
        assert_eq!(warnings(environment), [expected]);
    }
}

#[test]
fn gssencmode_comes_from_its_variable() {
    let rds = start(LocalRds::builder());
    let mut environment = rds.environment();
    environment.extend([("PGGSSENCMODE", "prefer".into()), ("PGAPPNAME", "mine".into())]);
    run("environment::shows_its_settings", &environment);
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn shows_its_settings() {
    log();
    let shown = format!("{:?}", RdsConnectionManager::from_env().unwrap());
    assert!(
        shown.contains("gssencmode='prefer'") && shown.contains("application_name='mine'"),
        "{shown}"
    );
}

#[test]
fn pg_variables() {
    let rds = start(LocalRds::builder());
    let mut environment = keys(&rds);
    environment.extend([
        ("PGHOST", "localhost".into()),
        ("PGPORT", rds.port().to_string()),
        ("PGUSER", "app".into()),
        ("PGDATABASE", "app".into()),
        ("PGSSLROOTCERT", rds.ca_file().display().to_string()),
    ]);
    run("environment::logs_in", &environment);
}

#[test]
fn pg_variables_complete_a_database_url() {
    let rds = start(LocalRds::builder());
    let mut environment = keys(&rds);
    environment.extend([
        ("DATABASE_URL", format!("postgres://app@localhost:{}", rds.port())),
        ("PGDATABASE", "app".into()),
        ("PGSSLROOTCERT", rds.ca_file().display().to_string()),
    ]);
    run("environment::logs_in", &environment);
}

#[test]
fn services_by_variable_and_by_keyword() {
    let rds = start(LocalRds::builder());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let (port, root) = (rds.port(), rds.ca_file().display());
    writeln!(file, "[mine]\nhost=localhost\nport={port}\nuser=app\ndbname=app\nsslrootcert={root}")
        .unwrap();
    for (name, value) in [("PGSERVICE", "mine"), ("DATABASE_URL", "service=mine")] {
        let mut environment = keys(&rds);
        environment
            .extend([("PGSERVICEFILE", file.path().display().to_string()), (name, value.into())]);
        run("environment::logs_in", &environment);
    }
}

#[test]
fn bad_variables_are_named() {
    let url =
        || ("DATABASE_URL", "postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app".to_owned());
    let cases: Vec<(&str, Vec<(&str, String)>)> = vec![
        ("DATABASE_URL is empty", vec![("DATABASE_URL", String::new())]),
        ("it names no host", vec![]),
        (
            "PGPASSWORD contains a password",
            vec![("PGHOST", "localhost".into()), ("PGPASSWORD", "hunter2".into())],
        ),
        ("sslmode=prefer can send", vec![url(), ("PGSSLMODE", "prefer".into())]),
        ("the port is not a number", vec![url(), ("PGPORT", "five".into())]),
        ("the service that it or PGSERVICE names", vec![url(), ("PGSERVICE", "nowhere".into())]),
    ];
    for (expected, mut environment) in cases {
        environment.push(("EXPECTED", expected.to_owned()));
        run("environment::fails_as_expected", &environment);
    }
}

#[test]
fn a_password_in_a_service_file_is_reported() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[mine]\nhost=db.example.com\npassword=hunter2").unwrap();
    let path = file.path().display().to_string();
    let expected = "the service file contains a password".to_owned();
    let environment =
        [("PGSERVICEFILE", path), ("PGSERVICE", "mine".into()), ("EXPECTED", expected)];
    run("environment::fails_as_expected", &environment);
}

#[test]
fn an_invalid_region_is_reported_and_an_empty_one_is_ignored() {
    let url = ("DATABASE_URL", "postgres://app@db.example.com/app".to_owned());
    let expected = |text: &str| ("EXPECTED", text.to_owned());
    let nonsense =
        "AWS_REGION or the AWS profile says \"EU-WEST-1\", which is not of the form eu-west-1";
    run(
        "environment::fails_as_expected",
        &[url.clone(), ("AWS_REGION", "EU-WEST-1".into()), expected(nonsense)],
    );
    let none = "neither AWS_REGION nor the AWS profile \"default\" names one";
    let empty = ("AWS_REGION", String::new());
    run("environment::fails_as_expected", &[url.clone(), empty.clone(), expected(none)]);
    let none = "neither AWS_REGION nor the AWS profile \"prod\" names one";
    let profile = ("AWS_PROFILE", "prod".to_owned());
    run("environment::fails_as_expected", &[url, empty, profile, expected(none)]);
}

#[test]
fn the_region_comes_from_the_profile_last() {
    let rds = start(LocalRds::builder().region("eu-central-1"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let credentials = rds.credentials();
    writeln!(
        file,
        "[default]\nregion=eu-central-1\naws_access_key_id={}\naws_secret_access_key={}",
        credentials.access_key_id(),
        credentials.secret_access_key()
    )
    .unwrap();
    let url = rds.database_url().replace("region_name=eu-central-1", "region_name=");
    let environment =
        [("AWS_CONFIG_FILE", file.path().display().to_string()), ("DATABASE_URL", url)];
    run("environment::logs_in", &environment);
}
