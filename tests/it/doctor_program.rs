//! The output of `rds-iam doctor`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

use diesel::connection::SimpleConnection;
use diesel_rds_iam::local::LocalRds;
use serde_json::Value;

use crate::support::fake::{FakePostgres, error_response};
use crate::support::{RDS_IAM, output, start, with_no_settings};

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";

fn doctor(environment: &[(&'static str, String)], arguments: &[&str]) -> Output {
    run(Command::new(RDS_IAM).arg("doctor").args(arguments), environment)
}

fn run(command: &mut Command, environment: &[(&'static str, String)]) -> Output {
    // There is no file .env in /.
    let output =
        output(with_no_settings(command).envs(environment.iter().cloned()).current_dir("/"));
    // The output of all tests is searched for secrets.
    eprint!("{}{}", text(&output), String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// As on RDS, which does not say why it refuses a token.
fn with_url(rds: &LocalRds, url: String) -> Vec<(&'static str, String)> {
    let mut environment = rds.environment();
    environment.retain(|(name, _)| !["DATABASE_URL", "RDS_IAM_LOCAL_VERDICT"].contains(name));
    environment.push(("DATABASE_URL", url));
    environment
}

fn as_user(rds: &LocalRds, user: &str) -> Vec<(&'static str, String)> {
    with_url(rds, rds.database_url_for(user))
}

/// A key pair that no server trusts.
fn stranger(rds: &LocalRds, url: String) -> Vec<(&'static str, String)> {
    let mut environment = with_url(rds, url);
    environment.push(("AWS_ACCESS_KEY_ID", "AKIAOTHER".into()));
    environment.push(("AWS_SECRET_ACCESS_KEY", "local-rds-secret-other".into()));
    environment
}

/// A server that answers an SSLRequest with this. Its thread ends with the process.
fn server_that_says(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let sent = stream.read(&mut [0; 8]).and_then(|_| stream.write_all(answer));
            let _ = sent.and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
    });
    port
}

/// With a key pair and no server of its own.
fn at(url: String) -> Vec<(&'static str, String)> {
    vec![
        ("DATABASE_URL", url),
        ("AWS_ACCESS_KEY_ID", "AKIAOTHER".into()),
        ("AWS_SECRET_ACCESS_KEY", "local-rds-secret-other".into()),
    ]
}

/// The step that fails comes with its symptom, then the likeliest cause (if the symptom does not
/// explain itself), then the help. The whole output has at most 25 lines, as a terminal has, and so
/// has the failure in a terminal of 100 columns.
fn assert_failure(environment: &[(&'static str, String)], step: &str, cause: &str, help: &str) {
    let output = doctor(environment, &[]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    let failure = &shown[shown.find('✗').expect("no step failed")..];
    assert!(failure.starts_with(&format!("✗ {step}")), "{shown}");
    let first_two: Vec<&str> = failure.lines().take(2).collect();
    assert!(first_two.join(" ").contains(cause), "{cause}: {shown}");
    let helped = failure.lines().find(|line| line.starts_with("  help: "));
    assert!(helped.is_some(), "{shown}");
    let others = failure.find("  other cause:").unwrap_or(failure.len());
    assert!(failure[..others].contains(help), "{help}: {shown}");
    assert_eq!(failure.matches("  help: ").count(), 1, "{shown}");
    assert!(shown.lines().last().unwrap().starts_with("1 problem: "), "{shown}");
    assert!(shown.lines().count() <= 25, "{} lines: {shown}", shown.lines().count());
    let rows: usize = failure.lines().map(|line| line.chars().count().div_ceil(100)).sum();
    assert!(rows <= 25, "{rows} rows: {shown}");
}

#[test]
fn a_failure_names_its_cause_and_help_on_25_lines() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let url = rds.database_url();
    let cname = format!(
        "host=localhost port={} user=app dbname=app region_name=us-east-1 sslrootcert='{}'",
        rds.port(),
        rds.ca_file().display()
    );
    assert_failure(
        &as_user(&rds, LocalRds::USER_WITHOUT_GRANT),
        "login",
        "likely cause: the user does not have the role rds_iam",
        "help: run as the master user: GRANT rds_iam TO \"without_grant\";",
    );
    assert_failure(
        &stranger(&rds, url.clone()),
        "login",
        "not allowed to log in as this user",
        "arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app",
    );
    assert_failure(
        &with_url(&rds, url.replace("region_name=eu-west-1", "region_name=eu-west-2")),
        "login",
        "signed for eu-west-2",
        "set region_name=eu-west-1",
    );
    assert_failure(&with_url(&rds, cname), "login", "RDS endpoint behind", &format!("={NAME}"));
    assert_failure(
        &with_url(&rds, url.replace(NAME, "db.example.com")),
        "TLS",
        "db.example.com",
        &format!("add iam_host={NAME}"),
    );
    assert_failure(
        &with_url(&rds, url.replace("ca.pem", "nowhere.pem")),
        "TLS",
        "nowhere.pem",
        "curl --fail -o global-bundle.pem",
    );
    assert_failure(
        &with_url(&rds, url.replace("/app?", "/nowhere?")),
        "login",
        "database \"nowhere\" does not exist",
        "check the names",
    );
    rds.superuser().unwrap().batch_execute("ALTER ROLE app CONNECTION LIMIT 0").unwrap();
    assert_failure(&rds.environment(), "login", "too many connections", "CONNECTION LIMIT");
    rds.stop();
    assert_failure(&rds.environment(), "TCP", "no tunnel or server listens", "ssh -N -L");
}

#[test]
fn the_verdict_of_the_stand_in_is_the_only_cause() {
    let rds = start(LocalRds::builder());
    let mut environment = rds.environment();
    environment.push(("AWS_ACCESS_KEY_ID", "AKIAOTHER".into()));
    assert_failure(
        &environment,
        "login",
        "the LocalRds says: signed with an unknown key pair",
        "export the AWS key pair",
    );
    let shown = text(&doctor(&environment, &[]));
    assert!(!shown.contains("other cause") && !shown.contains("tunnel"), "{shown}");
}

#[test]
fn the_longest_list_of_causes_fits_on_25_lines() {
    let rds = start(LocalRds::builder());
    let url = rds.database_url();
    rds.set_endpoint(diesel_rds_iam::Endpoint::new(NAME, 5432, "us-east-1").unwrap());
    assert_failure(&stranger(&rds, url), "login", "the local end of a tunnel", "add iam_host=");
}

#[test]
fn problems_before_a_login_fit_on_25_lines() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let ours = rds.ca_file().display().to_string();
    let theirs = other.ca_file().display().to_string();
    assert_failure(
        &with_url(&rds, rds.database_url().replace(&ours, &theirs)),
        "TLS",
        "the server's certificate is not trusted (",
        "sslrootcert=",
    );
    let local = |port: u16| {
        at(format!("postgres://app@localhost:{port}/app?region_name=eu-west-1&sslrootcert={ours}"))
    };
    let http = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_failure(&local(http), "TLS", "does not speak PostgreSQL", "check host and port");
    let plain = server_that_says(b"N");
    assert_failure(&local(plain), "TLS", "does not support TLS", "only over TLS");
    let silent = server_that_says(b"");
    assert_failure(&local(silent), "TLS", "does not answer", "behind it");
    let dead = server_that_says(b"E\0\0\0\x49SFATAL\0C53300\0Msorry, too many clients already\0\0");
    assert_failure(&local(dead), "TLS", "too many clients already", "max_size");
    let unknown = at("postgres://app@db.invalid/app?region_name=eu-west-1".into());
    assert_failure(&unknown, "DNS", "db.invalid", "copy the endpoint");
    let no_credentials = [("DATABASE_URL", format!("postgres://app@{NAME}/app"))];
    assert_failure(&no_credentials, "credentials", "no AWS credentials", "AWS_PROFILE");
    let no_region = at("postgres://app@db.example.com/app".into());
    assert_failure(&no_region, "region", "no AWS region for db.example.com", "region_name=");
    let typo = at("postgres://app@db.example.com/app?regionname=eu-west-1".into());
    let unknown = "it has a keyword that libpq does not know";
    assert_failure(&typo, "connection string", unknown, "did you mean region_name?");
}

#[test]
fn a_step_that_passed_has_one_line_and_its_facts_with_verbose() {
    let rds = start(LocalRds::builder());
    let shown = text(&doctor(&rds.environment(), &[]));
    assert_eq!(shown.lines().count(), 11, "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("✓ ")).count(), 10, "{shown}");
    assert_eq!(shown.lines().last(), Some("app can log in"), "{shown}");
    let verbose = text(&doctor(&rds.environment(), &["-v"]));
    assert!(verbose.contains("  access key id: AKIA****"), "{verbose}");
    assert!(verbose.contains("  member of rds_iam: yes"), "{verbose}");

    let refused = text(&doctor(&as_user(&rds, LocalRds::USER_WITHOUT_GRANT), &["--verbose"]));
    assert!(refused.contains("help: run as the master user: CREATE USER"), "{refused}");
}

/// Before TLS anyone can answer. A server can send back the token.
#[test]
fn escapes_and_tokens_of_a_server_are_not_printed() {
    let early = server_that_says(
        b"E\0\0\0\x49SFATAL\0C28000\0M\x1b]0;x\x07host/?X-Amz-Signature=abc\x1b[2J nothing like \
          it\0\0",
    );
    let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/roots.pem");
    let early = at(format!(
        "postgres://app@localhost:{early}/app?region_name=eu-west-1&sslrootcert={roots}"
    ));
    let echo = "\x1b[31mhost:1/?Action=connect&X-Amz-Signature=abcdef\x1b[2J nothing like it";
    let late = FakePostgres::start(0..10, error_response("XX000", echo));
    let late = at(format!(
        "postgres://app@localhost:{}/app?region_name=eu-west-1&sslrootcert={}",
        late.port,
        late.roots.path().display()
    ));
    for environment in [early, late] {
        for arguments in [&[][..], &["--verbose"], &["--json"]] {
            let output = doctor(&environment, arguments);
            let shown = text(&output) + &String::from_utf8_lossy(&output.stderr);
            assert!(shown.contains("nothing like it"), "{shown}");
            for secret in ["\x1b", "\\u001b", "\x07", "Signature", "abc"] {
                assert!(!shown.contains(secret), "{secret:?}: {shown}");
            }
        }
    }
}

/// libpq refuses a revoked certificate, and other TLS versions. The doctor's own login knows
/// nothing of these settings.
#[test]
fn settings_of_libpq_alone_leave_the_login_to_libpq() {
    let rds = start(LocalRds::builder());
    for setting in ["sslcrl=/nowhere.crl", "ssl_max_protocol_version=TLSv1.2", "sslcert=/nowhere"] {
        let environment = with_url(&rds, format!("{}&{setting}", rds.database_url()));
        let shown = text(&doctor(&environment, &[]));
        assert!(!shown.contains(" login "), "{setting}: {shown}");
        assert!(shown.contains(" libpq"), "{setting}: {shown}");
    }
    // libpq asks for a TLS version that this server does not have.
    let attempts = rds.attempts().len();
    rds.superuser()
        .unwrap()
        .batch_execute("ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'")
        .unwrap();
    rds.restart().unwrap();
    let tls13 = format!("{}&ssl_min_protocol_version=TLSv1.3", rds.database_url());
    let shown = text(&doctor(&with_url(&rds, tls13), &[]));
    assert!(shown.contains("✗ libpq"), "{shown}");
    assert_eq!(rds.attempts().len(), attempts, "a token was sent: {shown}");
}

/// The folder of libpq's own files.
#[test]
fn a_crl_in_the_home_folder_leaves_the_login_to_libpq() {
    let rds = start(LocalRds::builder());
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".postgresql")).unwrap();
    std::fs::write(home.path().join(".postgresql/root.crl"), "not a CRL").unwrap();
    let mut environment = rds.environment();
    environment.push(("HOME", home.path().display().to_string()));
    let shown = text(&doctor(&environment, &["-v"]));
    assert!(shown.contains("checked by libpq only: ") && !shown.contains("✓ login"), "{shown}");
}

#[test]
fn exit_code_is_0_only_if_a_login_works() {
    let rds = start(LocalRds::builder());
    let works = doctor(&rds.environment(), &[]);
    assert_eq!(works.status.code(), Some(0));
    assert!(!text(&works).contains('✗'), "{}", text(&works));

    let refused = doctor(&as_user(&rds, LocalRds::USER_WITHOUT_GRANT), &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("✗ login"), "{}", text(&refused));
    assert!(text(&refused).contains("GRANT rds_iam TO \"without_grant\";"), "{}", text(&refused));

    let no_string = doctor(&[], &["--database-url", "postgres://app:swordfish@db.example.com/app"]);
    assert_eq!(no_string.status.code(), Some(1));
    assert!(text(&no_string).contains("✗ connection string"), "{}", text(&no_string));
    assert!(text(&no_string).contains("help: remove the password"), "{}", text(&no_string));
}

#[test]
fn json_is_one_object() {
    let rds = start(LocalRds::builder());
    let parse = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let works = parse(&doctor(&rds.environment(), &["--json"]));
    assert_eq!(works["can_log_in"], true);
    let names: Vec<&str> = works["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 10, "{names:?}");

    let refused = doctor(&as_user(&rds, LocalRds::USER_WITHOUT_GRANT), &["--json"]);
    assert_eq!(refused.status.code(), Some(1));
    let refused = parse(&refused);
    let last = refused["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((&refused["can_log_in"], &last["ok"]), (&Value::from(false), &Value::from(false)));
    let cause = &last["diagnosis"]["causes"][0];
    assert!(cause["help"].as_str().unwrap().contains("GRANT rds_iam"), "{cause}");
    assert!(cause["check"].is_string(), "{cause}");

    let no_string = parse(&doctor(&[], &["--json", "--database-url", "hostt=x"]));
    assert_eq!(no_string["steps"][0]["name"], "connection string");
}

const ESCAPE: char = '\x1b';

#[test]
fn a_pipe_gets_no_colour() {
    let piped = doctor(&[("TERM", "xterm".into())], &["--database-url", "hostt=x"]);
    assert!(!text(&piped).contains(ESCAPE), "{}", text(&piped));
}

#[test]
#[cfg(target_os = "linux")]
fn a_terminal_gets_colour_unless_no_color_says_otherwise() {
    let on_a_terminal = |no_color: &str| {
        // util-linux's script gives its command a terminal.
        let line = format!("{RDS_IAM} doctor --database-url hostt=x");
        let mut script = Command::new("script");
        text(&run(script.args(["-qec", &line, "/dev/null"]), &[("NO_COLOR", no_color.into())]))
    };
    assert!(on_a_terminal("").contains(ESCAPE));
    let plain = on_a_terminal("1");
    assert!(plain.contains("✗ connection string") && !plain.contains(ESCAPE), "{plain}");
}
