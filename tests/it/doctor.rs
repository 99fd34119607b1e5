//! Staged problems of a login, and what the doctor reports.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection;
use diesel_rds_iam::doctor::{Cause, Report, examine};
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::{Builder, Credentials, Endpoint, RdsConnectionManager};

use crate::support::fake::{FakePostgres, error_response};
use crate::support::{
    in_a_child, in_a_network_of_its_own, key_pair, last_verdict, log, manager, minutes, start,
};

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";

/// Examines, and prints the report: the output of all tests is searched for secrets.
fn report(manager: &RdsConnectionManager) -> Report {
    let report = examine(manager);
    eprintln!("{report:#?}");
    for step in &report.steps {
        assert!(step.took < Duration::from_secs(11), "{} took {:?}", step.name, step.took);
    }
    report
}

/// The step that fails, and its causes.
fn causes_of(manager: &RdsConnectionManager) -> (&'static str, Vec<Cause>) {
    causes_in(&report(manager))
}

fn causes_in(report: &Report) -> (&'static str, Vec<Cause>) {
    assert!(!report.can_log_in());
    let (step, diagnosis) = report.first_failure().expect("no step failed");
    assert_eq!(report.steps.last().unwrap().name, step.name, "a step after the failure");
    (step.name, diagnosis.causes.clone())
}

/// This step fails, with this first cause and its help.
fn assert_diagnosis(manager: &RdsConnectionManager, step: &str, cause: &str, help: &str) {
    let (failed, causes) = causes_of(manager);
    assert_eq!(failed, step, "{causes:?}");
    assert!(causes[0].cause.contains(cause), "{causes:?}");
    assert!(causes[0].help.contains(help), "{causes:?}");
}

/// One of several causes is this one, with a check.
fn assert_candidate(causes: &[Cause], cause: &str, help: &str) {
    let candidate = causes.iter().find(|candidate| candidate.cause.contains(cause));
    let candidate = candidate.unwrap_or_else(|| panic!("{cause}: {causes:?}"));
    assert!(candidate.help.contains(help) && candidate.check.is_some(), "{candidate:?}");
}

fn builder(credentials: &Credentials) -> Builder {
    RdsConnectionManager::builder().credentials_provider(credentials.clone())
}

/// A server that answers the first message with this, and then is silent.
fn that_says(answer: &'static [u8]) -> RdsConnectionManager {
    that_does(move |mut stream| {
        let said = stream.read(&mut [0; 8]).and_then(|_| stream.write_all(answer));
        let _ = said.and_then(|()| stream.read_to_end(&mut Vec::new()));
    })
}

/// The server's thread ends with the process.
fn that_does(serve: impl Fn(TcpStream) + Send + 'static) -> RdsConnectionManager {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    at_port(port)
}

/// Dials this machine, as with a tunnel, with a usable root file.
fn at_port(port: u16) -> RdsConnectionManager {
    let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/roots.pem");
    let url = format!(
        "host=localhost port={port} user=app dbname=app iam_host={NAME} iam_port=5432 \
         sslrootcert={roots}"
    );
    builder(&key_pair(None)).build(url).unwrap()
}

#[test]
fn a_successful_login_is_reported_step_by_step() {
    let rds = start(LocalRds::builder());
    let report = report(&manager(&rds));
    assert!(report.can_log_in() && report.first_failure().is_none());
    let names: Vec<&str> = report.steps.iter().map(|step| step.name).collect();
    let expected =
        "connection string, region, credentials, DNS, TCP, TLS, token, login, libpq, session";
    assert_eq!(names.join(", "), expected);
    let facts: Vec<String> = report
        .steps
        .iter()
        .flat_map(|step| &step.facts)
        .map(|fact| format!("{}: {}", fact.name, fact.value))
        .collect();
    let ca = rds.ca_file().display();
    for expected in [
        "set by: region_name",
        "source: the given provider",
        "access key id: AKIA****",
        &format!("checked by: {ca}"),
        &format!("signed for: app at localhost:{}", rds.port()),
        "server: PostgreSQL",
        "clock: equal to the server's",
        "TLS: TLSv1.3",
        "member of rds_iam: yes",
        "accepts writes: yes",
    ] {
        assert!(facts.iter().any(|fact| fact.contains(expected)), "{expected}: {facts:?}");
    }
    // localhost can have ::1 too.
    let is_address = |fact: &String| fact.starts_with("addresses: ") && fact.contains("127.0.0.1");
    assert!(facts.iter().any(is_address), "{facts:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_servers_certificate_is_reported() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let report = report(&manager(&rds));
    let tls = report.steps.iter().find(|step| step.name == "TLS").unwrap();
    let fact = |name: &str| tls.facts.iter().find(|fact| fact.name == name).unwrap().value.clone();
    assert!(fact("certificate").starts_with("LocalRds, issued by LocalRds root "), "{tls:?}");
    assert_eq!(fact("for"), format!("{NAME}, localhost"));
}

#[test]
fn examine_can_be_called_inside_of_async_code() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(async { examine(&manager) }).can_log_in());
}

#[test]
fn a_wrong_region_is_the_first_cause() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let wrong = rds.database_url().replace("region_name=eu-west-1", "region_name=eu-west-2");
    let manager = rds.manager_builder().build(wrong).unwrap();
    assert_diagnosis(&manager, "login", "signed for eu-west-2", "region_name=eu-west-1");
    assert_eq!(last_verdict(&rds), Err(Refusal::Region));
}

#[test]
fn an_unknown_key_pair_gets_the_policy_statement() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let stranger = rds
        .manager_builder()
        .credentials_provider(key_pair(None))
        .build(rds.database_url())
        .unwrap();
    let (step, causes) = causes_of(&stranger);
    assert_eq!((step, last_verdict(&rds)), ("login", Err(Refusal::UnknownKeyPair)));
    assert!(
        causes[0]
            .help
            .contains("\"Resource\": \"arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app\""),
        "{causes:?}"
    );
    assert_candidate(
        &causes,
        "not allowed to log in",
        "--db-instance-identifier db --region eu-west-1",
    );
    assert_candidate(&causes, "another account", "--assume-role");
    assert_candidate(&causes, "revoked", "get new credentials");
}

#[test]
fn the_policy_contains_the_account_of_the_credentials() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let of_an_account = Credentials::builder()
        .access_key_id("AKIAOTHER")
        .secret_access_key("local-rds-secret-other")
        .provider_name("test")
        .account_id("111122223333")
        .build();
    let stranger = rds
        .manager_builder()
        .credentials_provider(of_an_account)
        .build(rds.database_url())
        .unwrap();
    assert_diagnosis(
        &stranger,
        "login",
        "not allowed to log in",
        "arn:aws:rds-db:eu-west-1:111122223333:dbuser:",
    );
}

#[test]
fn a_missing_grant_is_reported() {
    let rds = start(LocalRds::builder());
    // The server checks no token of these users. It asks the one with a password for SCRAM.
    for user in [LocalRds::USER_WITHOUT_GRANT, LocalRds::USER_WITH_PASSWORD, "nobody_knows"] {
        let manager = rds.manager_builder().build(rds.database_url_for(user)).unwrap();
        assert_diagnosis(
            &manager,
            "login",
            "does not have the role rds_iam",
            &format!("GRANT rds_iam TO \"{user}\";"),
        );
    }
    assert!(rds.attempts().is_empty());
}

#[test]
fn a_cname_is_fixed_by_the_name_in_the_certificate() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let ca = rds.ca_file().display();
    let dialled = format!(
        "host=localhost port={} user=app dbname=app sslrootcert='{ca}' region_name=us-east-1",
        rds.port()
    );
    let manager = rds.manager_builder().build(&dialled).unwrap();
    let help = format!("iam_host={NAME} and iam_port=5432");
    assert_diagnosis(&manager, "login", "is the RDS endpoint behind localhost", &help);
    assert_eq!(last_verdict(&rds), Err(Refusal::Endpoint));
    let cured = format!("{dialled} iam_host={NAME} iam_port=5432");
    assert!(report(&rds.manager_builder().build(cured).unwrap()).can_log_in());
}

#[test]
fn a_tunnel_needs_the_endpoints_own_name_and_port() {
    let rds = start(LocalRds::builder());
    let by_its_near_end = manager(&rds);
    rds.set_endpoint(Endpoint::new(NAME, 5432, "us-east-1").unwrap());
    // The certificate does not contain the name of the endpoint.
    assert_diagnosis(
        &by_its_near_end,
        "login",
        "signed for localhost, the local end of a tunnel",
        "add iam_host=",
    );

    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let without_port = rds.database_url().replace("&iam_port=5432", "");
    let manager = rds.manager_builder().build(without_port).unwrap();
    assert_diagnosis(
        &manager,
        "login",
        &format!("signed for port {}, the tunnel's", rds.port()),
        "add iam_port=5432",
    );
}

#[test]
fn a_wrong_clock_is_a_candidate() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let manager = builder(rds.credentials()).build(rds.database_url()).unwrap();
    rds.clock().advance(minutes(20));
    let (_, causes) = causes_of(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::Expired));
    assert_candidate(&causes, "clock is wrong", "NTP");
}

#[test]
fn an_occasional_refusal_is_a_candidate() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(1);
    let (_, causes) = causes_of(&manager(&rds));
    assert_candidate(&causes, "more than 200 new logins", "pool");
}

#[test]
fn expired_credentials_are_reported_before_dialling() {
    let rds = start(LocalRds::builder());
    let ended = key_pair(Some(SystemTime::now() - minutes(1)));
    let manager =
        rds.manager_builder().credentials_provider(ended).build(rds.database_url()).unwrap();
    assert_diagnosis(&manager, "credentials", "gave credentials that ended at", "aws sso login");
    assert!(rds.attempts().is_empty());
}

#[test]
fn credentials_that_expire_early_are_a_candidate() {
    let rds = start(LocalRds::builder());
    rds.add_key_pair(key_pair(Some(SystemTime::now() - minutes(1))));
    let manager = rds
        .manager_builder()
        .credentials_provider(key_pair(None))
        .build(rds.database_url())
        .unwrap();
    let (_, causes) = causes_of(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::KeyPairExpired));
    assert_candidate(&causes, "expired", "get new credentials");
}

#[test]
fn missing_credentials_in_an_ecs_task_need_a_task_role() {
    in_a_child("doctor::without_credentials", &[("HELP", "AWS_PROFILE")]);
    let task =
        [("HELP", "taskRoleArn"), ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x")];
    in_a_child("doctor::without_credentials", &task);
}

#[test]
#[ignore = "runs in a separate process, without AWS credentials"]
fn without_credentials() {
    let manager = RdsConnectionManager::new(format!("postgres://app@{NAME}/app")).unwrap();
    assert_diagnosis(&manager, "credentials", "", &std::env::var("HELP").unwrap());
}

#[test]
fn another_authority_is_reported() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let (ours, theirs) =
        (rds.ca_file().display().to_string(), other.ca_file().display().to_string());
    let manager = rds.manager_builder().build(rds.database_url().replace(&ours, &theirs)).unwrap();
    let (step, causes) = causes_of(&manager);
    assert_eq!(step, "TLS");
    assert_candidate(&causes, &theirs, "sslrootcert=");
    assert!(rds.attempts().is_empty(), "a token was sent to a server that is not trusted");
}

#[test]
fn a_missing_root_file_is_downloaded_and_an_unusable_one_is_corrected() {
    let rds = start(LocalRds::builder());
    let cases = [
        ("nowhere.pem", "No such file", "curl --fail -o global-bundle.pem"),
        ("server.key", "no certificate", "make the file readable for this user"),
        ("", "Is a directory", "make the file readable for this user"),
    ];
    for (name, cause, help) in cases {
        let url = rds.database_url().replace("ca.pem", name);
        let manager = rds.manager_builder().build(url).unwrap();
        assert_diagnosis(&manager, "TLS", cause, help);
    }
}

#[test]
fn a_wrong_name_is_fixed_by_the_name_in_the_certificate() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let url = rds.database_url().replace(NAME, "db.example.com");
    let manager = rds.manager_builder().build(url).unwrap();
    assert_diagnosis(
        &manager,
        "TLS",
        "the token is for db.example.com",
        &format!("iam_host={NAME}"),
    );

    let rds = start(LocalRds::builder());
    let url = rds.database_url() + "&iam_host=db.example.com";
    let manager = rds.manager_builder().build(url).unwrap();
    let cause = "iam_host=db.example.com is not the name of the server at localhost";
    assert_diagnosis(&manager, "TLS", cause, "set iam_host= to the endpoint's name");
}

#[test]
fn certificates_are_checked_as_sslmode_says() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let url = |mode: &str, ca: &LocalRds, more: &str| {
        format!(
            "host=localhost port={} user=app dbname=app region_name=us-east-1 \
             sslmode={mode} sslrootcert='{}' {more}",
            rds.port(),
            ca.ca_file().display()
        )
    };
    let can_log_in = |url: String| report(&rds.manager_builder().build(url).unwrap()).can_log_in();
    assert!(can_log_in(url("require", &rds, "")));
    assert!(can_log_in(url("require", &rds, "").replace("ca.pem", "nowhere.pem")));
    assert!(!can_log_in(url("require", &other, "")), "libpq checks as with verify-ca");
    assert!(can_log_in(url("verify-ca", &rds, "")));
    assert!(!can_log_in(url("verify-ca", &other, "")));
}

#[test]
fn a_server_without_tls_is_reported() {
    assert_diagnosis(&that_says(b"N"), "TLS", "not an RDS endpoint", "only over TLS");
}

#[test]
fn a_server_that_is_not_postgresql_is_reported() {
    let http = that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_diagnosis(
        &http,
        "TLS",
        "another service than PostgreSQL listens at localhost",
        "check host and port",
    );
    // SSH's first letter is PostgreSQL's answer "yes" to an SSLRequest.
    let ssh = that_says(b"SSH-2.0-OpenSSH_9.2p1\r\n");
    assert_diagnosis(
        &ssh,
        "TLS",
        "another service than PostgreSQL listens at localhost",
        "check host and port",
    );
}

#[test]
fn an_error_before_tls_is_reported() {
    let full = that_says(b"E\0\0\0\x49SFATAL\0C53300\0Msorry, too many clients already\0\0");
    assert_diagnosis(&full, "TLS", "sorry, too many clients already", "max_size");
}

#[test]
fn a_silent_server_is_reported() {
    let silent = that_does(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    assert_diagnosis(
        &silent,
        "TLS",
        "accepts connections but does not reach the server",
        "behind it",
    );
}

#[test]
fn a_server_that_is_silent_during_the_handshake_is_reported() {
    assert_diagnosis(
        &that_says(b"S"),
        "TLS",
        "accepts connections but does not reach the server",
        "behind it",
    );
}

#[test]
fn a_server_that_closes_the_connection_is_reported() {
    assert_diagnosis(
        &that_does(drop),
        "TLS",
        "accepts connections but does not reach the server",
        "behind it",
    );
}

/// A login to a server with a certificate for these days, and with this answer to the token.
fn at_fake(days: Range<i64>, answer: Vec<u8>) -> (&'static str, Vec<Cause>) {
    let server = FakePostgres::start(days, answer);
    let (port, roots) = (server.port, server.roots.path().display());
    let url = format!(
        "host=localhost port={port} user=app dbname=app region_name=us-east-1 sslrootcert='{roots}'"
    );
    causes_of(&builder(&key_pair(None)).build(url).unwrap())
}

#[test]
#[cfg(target_os = "linux")]
fn an_expired_certificate_is_reported() {
    let (step, causes) = at_fake(-20..-10, Vec::new());
    assert_eq!(step, "TLS");
    assert_candidate(&causes, "the server's certificate has expired", "rotate it");
    let (step, causes) = at_fake(10..20, Vec::new());
    assert_eq!(step, "TLS");
    assert_candidate(&causes, "clock is wrong", "NTP");
}

#[test]
fn texts_of_rds_proxy_and_poolers_are_recognized() {
    let cases = [
        (
            error_response("28000", "IAM authentication failed for the role app"),
            "not allowed to log in",
            "rds-db:connect",
        ),
        (error_response("53300", "too many competing requests"), "competing", "pool"),
        (
            error_response("08P01", "string truncated"),
            "does not accept a password of",
            "raise its limit for passwords",
        ),
        (Vec::new(), "does not accept a password of", "raise its limit for passwords"),
    ];
    for (answer, cause, help) in cases {
        let (step, causes) = at_fake(0..10, answer);
        assert_eq!(step, "login");
        let found = causes.iter().any(|it| it.cause.contains(cause) && it.help.contains(help));
        assert!(found, "{cause}: {causes:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_network_without_a_route_is_reported() {
    in_a_network_of_its_own("doctor::without_a_route", "10.11.12.13", &[]);
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "runs in a separate network, without a route"]
fn without_a_route() {
    let url = format!("host={NAME} hostaddr=10.99.0.1 user=app dbname=app");
    let (step, causes) = causes_of(&builder(&key_pair(None)).build(url).unwrap());
    assert_eq!(step, "TCP");
    assert_candidate(&causes[..1], "only from its VPC", "VPN");
    assert_candidate(&causes, "security group", "inbound rule for TCP 5432");
}

#[test]
fn a_closed_port_is_reported() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    rds.stop();
    assert_diagnosis(&manager, "TCP", &format!("listens at port {}", rds.port()), "ssh -N -L");
}

#[test]
fn a_name_without_an_address_is_reported() {
    let url = "postgres://app@db.invalid/app?region_name=eu-west-1";
    let (step, causes) = causes_of(&builder(&key_pair(None)).build(url).unwrap());
    assert_eq!(step, "DNS");
    assert_candidate(&causes, "misspelt", "RDS console");
}

#[test]
fn an_unknown_database_is_reported() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().build(rds.database_url().replace("/app?", "/nowhere?")).unwrap();
    assert_diagnosis(
        &manager,
        "login",
        "database \"nowhere\" does not exist (SQLSTATE 3D000)",
        "names of database",
    );
}

#[test]
fn too_many_connections_are_reported() {
    let rds = start(LocalRds::builder());
    rds.superuser().unwrap().batch_execute("ALTER ROLE app CONNECTION LIMIT 0").unwrap();
    assert_diagnosis(&manager(&rds), "login", "SQLSTATE 53300", "CONNECTION LIMIT");
}

#[test]
fn what_only_libpq_refuses_is_reported_by_its_step() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().build(rds.database_url() + "&target_session_attrs=standby").unwrap();
    assert_diagnosis(&manager, "libpq", "standby", "target_session_attrs");
}

#[test]
fn each_of_several_hosts_is_examined_and_one_is_enough() {
    let (down, up) = (start(LocalRds::builder()), start(LocalRds::builder()));
    down.stop();
    let (ports, ca) = (format!("{},{}", down.port(), up.port()), up.ca_file().display());
    let url = format!(
        "host=localhost,localhost port={ports} user=app dbname=app region_name=us-east-1 \
         sslrootcert='{ca}'"
    );
    let report = report(&up.manager_builder().build(url).unwrap());
    assert!(report.can_log_in());
    let (step, _) = report.first_failure().unwrap();
    assert_eq!((step.name, step.host.clone()), ("TCP", Some(format!("localhost:{}", down.port()))));
    assert_eq!(report.steps.last().unwrap().name, "session");
}

#[test]
fn a_failed_password_login_is_reported() {
    let rds = start(LocalRds::builder());
    let manager = RdsConnectionManager::new(rds.password_url()).unwrap();
    let names: Vec<&str> = report(&manager).steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["connection string", "libpq", "session"]);
    let wrong =
        RdsConnectionManager::new(rds.password_url().replace(rds.password(), "hunter2")).unwrap();
    assert_diagnosis(&wrong, "libpq", "the password is wrong", "check it in the connection string");
}

#[test]
fn a_password_disabled_by_rds_iam_is_reported() {
    let user = LocalRds::USER_WITH_PASSWORD;
    for grant in [
        format!("GRANT rds_iam TO {user}"),
        format!("CREATE ROLE staff; GRANT rds_iam TO staff; GRANT staff TO {user}"),
        // pg_hba.conf depends on membership, whether the role is inherited or not.
        format!(
            "CREATE ROLE staff; GRANT rds_iam TO staff; GRANT staff TO {user}; \
             ALTER ROLE {user} NOINHERIT"
        ),
    ] {
        let rds = start(LocalRds::builder());
        rds.superuser().unwrap().batch_execute(&grant).unwrap();
        let manager = RdsConnectionManager::new(rds.password_url()).unwrap();
        assert_diagnosis(
            &manager,
            "libpq",
            "accepts no password",
            &format!("REVOKE rds_iam FROM \"{user}\";"),
        );
    }
}

#[test]
fn a_connection_string_without_a_manager_has_a_report() {
    log();
    let cases = [
        (
            "postgres://app@db.example.com/app?sslmode=disable&region_name=eu-west-1",
            "connection string",
            "verify-full",
        ),
        (
            "postgres://app:db:5432/?Action=connect&X-Amz-Signature=TOKEN@db/app",
            "connection string",
            "remove it",
        ),
        ("postgres://app@my.global-abc.global.rds.amazonaws.com/app", "region", "set region_name="),
    ];
    for (url, step, help) in cases {
        let report = Report::without_manager(&RdsConnectionManager::new(url).unwrap_err());
        let (failed, causes) = causes_in(&report);
        assert_eq!(failed, step);
        assert!(causes[0].help.contains(help), "{causes:?}");
    }
}
