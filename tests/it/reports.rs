//! What public bug reports describe, each as a test of this crate.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, PerThread, RdsConnectionManager};
use proptest::prelude::*;

use crate::credentials::{FakeSource, WallClock, numbered};
use crate::sources::Stage;
use crate::support::cloud::{self, Cloud, Request, reply};
use crate::support::{in_a_child, log, minutes, start, write_private};

const URL: &str = "postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app";

fn error_of(conninfo: &str) -> String {
    RdsConnectionManager::new(conninfo).expect_err("it was accepted").to_string()
}

#[test]
fn a_quoted_url_of_docker_env_file_does_not_show_its_password() {
    let text = error_of("\"postgres://app:hunter2@h/app\"");
    assert!(text.contains("it is in quotes; remove them"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

/// A text without meaning for libpq, which is searched for in all texts.
const SECRET: &str = "hunter2";

/// Pieces that hide where the secret begins or ends.
fn noise() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "['\"`\\\\ \t\n\r@:/?&=%#+,;\\[\\]]",
        "%[0-9a-f]{2}",
        "\u{0}|\u{feff}|\u{a0}|é",
        "[a-z]{1,3}"
    ];
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// Strings in which the secret is a password, or what is left of one after a mistake.
fn strings_with_a_secret() -> impl Strategy<Value = String> {
    let parts = (
        prop_oneof![
            "",
            "\"",
            "'",
            "psql ",
            "psql '",
            " ",
            "\u{feff}",
            "DATABASE_URL=",
            "export DATABASE_URL=\"",
            "jdbc:",
        ],
        prop_oneof![
            "postgres://app:",
            "postgresql://app:",
            "postgresql+asyncpg://app:",
            "POSTGRES://app:",
            "postgres:/app:",
            "app:",
            "host=h user=app password=",
            "host=h user=app password='",
            "host=h user=app passwd=",
            "host=h user=app sslpassword=",
            "user=app host=h password = x ",
            "service=nowhere password=",
        ],
        noise(),
        noise(),
        prop_oneof![
            "@h/app",
            "@h:5432/app?sslmode=require",
            "@h/app?rds_iam_auth=false",
            "@h,i:1/app?region_name=eu-west-1",
            "'",
            " sslmode=require",
            " rds_iam_auth=false",
            "\"",
            "",
        ],
    );
    parts.prop_map(|(around, start, before, after, end)| {
        format!("{around}{start}{before}{SECRET}{after}{end}")
    })
}

#[test]
fn no_text_shows_a_part_of_a_password() {
    in_a_child("reports::no_text_shows_a_secret", &[("RUST_LOG", "off")]);
}

#[test]
#[ignore = "runs in its own process, without PG* variables"]
fn no_text_shows_a_secret() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&strings_with_a_secret(), |conninfo| {
        let built = RdsConnectionManager::builder().region_name("eu-west-1").build(&conninfo);
        let text = match &built {
            // With a user or a host that contains the secret, the string has no mistake.
            Ok(manager) if manager.endpoints().count() > 0 => return Ok(()),
            Ok(manager) => format!("{manager:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!text.contains(SECRET), "{}", text.replace(SECRET, "***"));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{}", error.to_string().replace(SECRET, "***"));
    }
}

#[test]
fn a_password_in_a_variable_or_a_file_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &str| {
        let path = folder.path().join(name);
        write_private(&path, contents);
        path.display().to_string()
    };
    let service = file("service", "[mine]\nhost=h\npassword=hunter2\n");
    let no_service = file("no_service", "[mine]\nhunter2\n");
    let unknown = file("unknown", "[mine]\nhunter2=x\n");
    let passfile = file("passfile", "*:*:*:*:hunter2\n");
    let cases: [&[(&str, &str)]; 8] = [
        &[("PGPASSWORD", "hunter2"), ("PGHOST", "h")],
        &[("PGSERVICEFILE", &service), ("PGSERVICE", "mine")],
        &[("PGSERVICEFILE", &no_service), ("PGSERVICE", "mine")],
        &[("PGSERVICEFILE", &unknown), ("PGSERVICE", "mine")],
        &[("PGSERVICEFILE", &service), ("PGSERVICE", "hunter2")],
        &[("PGPASSFILE", &passfile), ("PGHOST", "h"), ("PGSSLMODE", "disable")],
        &[("PGSSLMODE", "hunter2"), ("PGHOST", "h")],
        &[("PGPORT", "hunter2"), ("PGHOST", "h")],
    ];
    for case in cases {
        let mut environment = case.to_vec();
        environment.extend([("EXPECTED", "unusable connection string"), ("PGUSER", "app")]);
        in_a_child("environment::fails_as_expected", &environment);
    }
}

#[test]
fn a_jdbc_url_a_psql_command_and_an_upper_case_scheme_are_named() {
    let cases = [
        ("jdbc:postgresql://h/app?user=app", "it is a JDBC URL"),
        ("psql postgres://app@h/app", "it is a psql command"),
        ("postgresql+asyncpg://app@h/app", "its scheme names a driver"),
        ("POSTGRES://app@h/app", "its scheme is in upper case"),
        ("DATABASE_URL=postgres://app@h/app", "it begins with the name of a variable"),
        ("host=h regoin_name=eu-west-1", "did you mean region_name?"),
    ];
    for (conninfo, expected) in cases {
        let text = error_of(conninfo);
        assert!(text.contains(expected), "{conninfo}: {text}");
    }
}

#[test]
fn a_leading_space_and_a_byte_order_mark_are_ignored() {
    for around in [" ", "\n", "\u{feff}", "\u{a0}"] {
        assert!(RdsConnectionManager::new(format!("{around}{URL}")).is_ok(), "{around:?}");
    }
}

/// As Kubernetes secrets made by `echo` have it.
#[test]
fn a_newline_at_the_end_of_each_variable_does_not_matter() {
    let rds = start(LocalRds::builder());
    let (root, secret) =
        (rds.ca_file().display().to_string(), rds.credentials().secret_access_key());
    let variables = [
        ("DATABASE_URL", format!("postgres://app@localhost:{}?region_name=", rds.port())),
        ("PGDATABASE", "app".to_owned()),
        ("PGSSLMODE", "verify-full".to_owned()),
        ("PGSSLROOTCERT", root),
        ("PGCONNECT_TIMEOUT", "5".to_owned()),
        ("PGGSSENCMODE", "disable".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", rds.credentials().access_key_id().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
    ];
    for end in ["\n", "\r\n", " "] {
        let ended: Vec<(&str, String)> =
            variables.iter().map(|(name, value)| (*name, format!("{value}{end}"))).collect();
        let environment: Vec<(&str, &str)> =
            ended.iter().map(|(name, value)| (*name, value.as_str())).collect();
        in_a_child("environment::logs_in", &environment);
    }
    assert_eq!(rds.attempts().len(), 3);
}

#[test]
fn a_newline_in_a_variable_that_libpq_reads_itself_is_named() {
    for (name, url) in [
        ("PGDATABASE", "postgres://app@h?rds_iam_auth=false"),
        ("PGSSLMODE", "postgres://app@h/app?rds_iam_auth=false"),
    ] {
        let expected = format!("{name} ends in a newline; remove it");
        let environment =
            [(name, "require\n"), ("DATABASE_URL", url), ("EXPECTED", expected.as_str())];
        in_a_child("environment::fails_as_expected", &environment);
    }
}

#[test]
fn a_profile_and_a_region_with_a_newline_are_found() {
    let mut stage = Stage::new();
    let role = stage.role.clone();
    let keys = format!(
        "[profile mine]\naws_access_key_id={}\naws_secret_access_key={}\naws_session_token={}\n",
        role.access_key_id(),
        role.secret_access_key(),
        role.session_token().unwrap()
    );
    stage.write(".aws/config", &keys);
    stage.set("AWS_PROFILE", "mine\n");
    stage.logs_in();
}

#[test]
fn settings_that_never_work_with_a_token_are_refused_at_build() {
    for (setting, expected) in [
        ("sslmode=disable", "can send the token in clear text"),
        ("channel_binding=require", "channel_binding=require needs SCRAM"),
        ("replication=database", "no replication connections by IAM"),
    ] {
        let text = error_of(&format!("{URL}?{setting}"));
        assert!(text.contains(expected), "{setting}: {text}");
    }
    // libpq itself can lack GSSAPI, or not know require_auth: then it says so.
    for setting in ["gssencmode=require", "require_auth=scram-sha-256", "connect_timeout=soon"] {
        let text = error_of(&format!("{URL}?{setting}"));
        assert!(text.contains(setting.split('=').next().unwrap()), "{setting}: {text}");
    }
}

/// With PrivateLink each region has its own label.
#[test]
fn dsql_over_privatelink_gets_a_dsql_token() {
    let url = "postgres://admin@abc123.dsql-fnh4.us-east-2.on.aws/postgres";
    let key_pair = numbered(1, None);
    let manager = RdsConnectionManager::builder().credentials_provider(key_pair).build(url);
    let token = manager.unwrap().token().unwrap();
    let start = "abc123.dsql-fnh4.us-east-2.on.aws/?Action=DbConnectAdmin&";
    assert!(token.as_str().starts_with(start) && token.as_str().contains("us-east-2%2Fdsql%2F"));
}

pub(crate) mod process {
    #![expect(unsafe_code, reason = "std has no fork")]

    unsafe extern "C" {
        pub(crate) safe fn fork() -> i32;
        pub(crate) safe fn _exit(status: i32) -> !;
    }
}

/// As daemons and preforking servers do.
#[test]
fn a_fork_after_the_first_login_gets_new_credentials() {
    in_a_child("reports::forks", &[]);
}

#[test]
#[ignore = "runs in its own process, which forks"]
fn forks() {
    log();
    let clock = WallClock::new();
    let now = diesel_rds_iam::aws::TimeSource::now(&clock);
    let source =
        FakeSource::new(move |i| Ok(numbered(i, Some(now + minutes(60 * (i as u64 + 1))))));
    let manager = RdsConnectionManager::builder()
        .credentials_provider(source)
        .time_source(clock.clone())
        .build(URL)
        .unwrap();
    manager.token().unwrap();
    clock.forward(minutes(61));
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    if process::fork() == 0 {
        let started = Instant::now();
        let outcome = manager.token().map(|_| "signed".to_owned());
        let text = outcome.unwrap_or_else(|error| error.to_string());
        let in_time = if started.elapsed() < Duration::from_secs(5) { "" } else { ", too late" };
        let _ = theirs.write_all(format!("{text}{in_time}").as_bytes());
        process::_exit(0);
    }
    drop(theirs);
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut outcome = String::new();
    ours.read_to_string(&mut outcome).expect("the child answers within 30 s");
    assert_eq!(outcome, "signed");
    manager.token().expect("the parent's own worker still runs");
}

#[test]
fn a_profile_of_aws_login_logs_in() {
    let stage = Stage::new();
    let session = "arn:aws:iam::111122223333:user/Admin";
    stage.write(".aws/config", &format!("[default]\nlogin_session = {session}\n"));
    let (role, name) = (&stage.role, openssl::sha::sha256(session.as_bytes()));
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1)
        .and_then(|group| openssl::ec::EcKey::generate(&group))
        .and_then(|key| key.private_key_to_pem())
        .unwrap();
    let token = serde_json::json!({
        "accessToken": {
            "accessKeyId": role.access_key_id(),
            "secretAccessKey": role.secret_access_key(),
            "sessionToken": role.session_token(),
            "accountId": "111122223333",
            "expiresAt": "2100-01-01T00:00:00Z",
        },
        "tokenType": "aws_sigv4",
        "refreshToken": "refresh",
        "idToken": "id",
        "clientId": "arn:aws:signin:::devtools/same-device",
        "dpopKey": String::from_utf8(key).unwrap(),
    });
    stage.write(&format!(".aws/login/cache/{name}.json"), &token.to_string());
    stage.logs_in();
}

#[test]
fn without_a_session_of_aws_login_the_error_names_the_command() {
    let mut stage = Stage::new();
    stage
        .write(".aws/config", "[profile mine]\nlogin_session = arn:aws:iam::111122223333:user/A\n");
    stage.set("AWS_PROFILE", "mine");
    stage.set("EXPECTED", "profile \"mine\": ");
    stage.set("CURE", "run `aws login --profile mine`");
    stage.run("sources::the_error_names_the_cause");
}

/// In a container on EC2, the answer to the request for a token does not pass the second hop.
#[test]
fn an_instance_whose_hop_limit_is_1_is_told_from_a_missing_role() {
    let mut stage = Stage::new();
    let imds = Cloud::start(|request: &Request| {
        if request.line.starts_with("PUT ") {
            std::thread::park();
        }
        reply(404, "")
    });
    stage.set("AWS_EC2_METADATA_DISABLED", "false");
    stage.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
    stage.set("EXPECTED", "instance metadata: ");
    stage.set("CURE", "--http-put-response-hop-limit 2");
    stage.run("sources::the_error_names_the_cause");
}

#[test]
fn a_profile_with_mfa_serial_is_told_from_a_missing_permission() {
    let mut stage = Stage::new();
    let denied = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                  <Message>not authorized to assume r</Message></Error></ErrorResponse>";
    let sts = Cloud::start(move |_: &Request| reply(403, denied));
    stage.set("AWS_ENDPOINT_URL_STS", sts.url());
    stage.write(
        ".aws/config",
        "[profile admin]\nrole_arn=arn:aws:iam::111122223333:role/r\nsource_profile=base\n\
         mfa_serial=arn:aws:iam::111122223333:mfa/me\n[profile base]\n\
         aws_access_key_id=AKIABASE\naws_secret_access_key=local-rds-secret-base\n",
    );
    stage.set("AWS_PROFILE", "admin");
    stage.set("EXPECTED", "; the AWS SDK ignores its mfa_serial; run ");
    stage.set("CURE", "aws configure export-credentials --profile admin --format env");
    stage.run("sources::the_error_names_the_cause");
}

/// Behind a proxy that inspects TLS, with its own authority.
#[test]
fn aws_ca_bundle_and_ca_bundle_are_trusted() {
    for is_variable in [true, false] {
        let mut stage = Stage::new();
        stage.set_keys();
        let folder = stage.rds.ca_file().parent().unwrap().display().to_string();
        let proxy = cloud::https_proxy(
            &format!("{folder}/server.pem"),
            &format!("{folder}/server.key"),
            cloud::sts(stage.role.clone()),
        );
        stage.set("HTTPS_PROXY", proxy.url());
        let bundle = stage.rds.ca_file().display().to_string();
        if is_variable {
            stage.set("AWS_CA_BUNDLE", bundle);
        } else {
            stage.write(".aws/config", &format!("[default]\nca_bundle = {bundle}\n"));
        }
        stage.run("sources::a_role_of_the_builder");
        assert_eq!(proxy.calls(), 1);
    }
}

#[test]
fn an_aws_ca_bundle_that_cannot_be_read_is_named() {
    let mut stage = Stage::new();
    stage.set_keys();
    stage.set("AWS_CA_BUNDLE", "/nowhere/bundle.pem");
    stage.set("EXPECTED", "cannot read AWS_CA_BUNDLE or ca_bundle, /nowhere/bundle.pem");
    stage.run("reports::role_is_not_assumed");
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn role_is_not_assumed() {
    log();
    let builder = RdsConnectionManager::builder().assume_role("arn:aws:iam::111122223333:role/r");
    let text = builder.build_from_env().unwrap().token().unwrap_err().to_string();
    assert!(text.contains(&std::env::var("EXPECTED").unwrap()), "{text}");
}

/// With AssumeRole each call of STS gives other credentials. They were taken for rotated ones.
#[test]
fn a_wrong_policy_costs_one_call_of_sts_per_back_off_step() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let keys =
        [("AWS_ACCESS_KEY_ID", "AKIABASE"), ("AWS_SECRET_ACCESS_KEY", "local-rds-secret-base")];
    let environment = [keys[0], keys[1], ("AWS_ENDPOINT_URL_STS", url.as_str())];
    in_a_child("reports::with_a_wrong_policy", &environment);
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn with_a_wrong_policy() {
    let rds = start(LocalRds::builder());
    let address = std::env::var("AWS_ENDPOINT_URL_STS").unwrap().replace("http://", "");
    let made = std::sync::atomic::AtomicUsize::new(0);
    let sts = Cloud::start_at(&address, move |_: &Request| {
        let number = made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        cloud::sts_reply("AssumeRole", &cloud::role_credentials(&format!("{number:04}")))
    });
    // The server knows none of these key pairs, as if a policy denied them.
    let manager = |name: &str| {
        let builder = RdsConnectionManager::builder().assume_role("arn:aws:iam::1:role/r");
        builder.session_name(name).build(rds.database_url()).unwrap()
    };
    for threads in [1, 16] {
        let before = sts.calls();
        let pool = manager(&format!("pool-{threads}"));
        // The pool itself logs in, in r2d2's threads.
        let pool = pool.pool_builder().max_size(threads).build_unchecked(pool.clone());
        std::thread::sleep(TEST);
        drop(pool);
        assert!((2..=MOST_CALLS).contains(&(sts.calls() - before)), "{}", sts.calls() - before);

        let before = sts.calls();
        let per_thread = PerThread::new(manager(&format!("per-thread-{threads}")));
        let deadline = Instant::now() + TEST;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while Instant::now() < deadline {
                        assert!(per_thread.get().is_err());
                    }
                });
            }
        });
        assert!((2..=MOST_CALLS).contains(&(sts.calls() - before)), "{}", sts.calls() - before);
    }
}

/// How long the logins fail. It is a measurement, not a wait.
const TEST: Duration = Duration::from_millis(2_500);

/// The first credentials, and those after back-offs of 0 and 1 second. The next takes 2 more.
const MOST_CALLS: usize = 3;

#[test]
fn the_same_pair_with_a_new_expiry_is_not_tried_again() {
    let rds = start(LocalRds::builder());
    let source = FakeSource::new(|i| {
        let end = std::time::SystemTime::now() + minutes(60 + i as u64);
        Ok(Credentials::new("AKIASAME", "local-rds-secret-same", None, Some(end), "test"))
    });
    let builder = rds.manager_builder().credentials_provider(source.clone());
    let manager = builder.build(rds.database_url()).unwrap();
    assert!(manager.connect().is_err());
    assert_eq!((source.calls(), rds.attempts().len()), (2, 1));
}
