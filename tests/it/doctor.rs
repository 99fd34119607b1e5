//! What is wrong with a login, staged, and what the doctor says of it.

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

/// Examines, and lets the search for secrets see what comes out.
fn report(manager: &RdsConnectionManager) -> Report {
    let report = examine(manager);
    eprintln!("{report:#?}");
    for step in &report.steps {
        assert!(step.took < Duration::from_secs(11), "{} took {:?}", step.name, step.took);
    }
    report
}

/// Why nobody is let in: the step that fails, and what can be behind it.
fn causes_of(manager: &RdsConnectionManager) -> (&'static str, Vec<Cause>) {
    causes_in(&report(manager))
}

fn causes_in(report: &Report) -> (&'static str, Vec<Cause>) {
    assert!(!report.lets_in());
    let (step, diagnosis) = report.first_failure().expect("nothing is wrong");
    assert_eq!(report.steps.last().unwrap().name, step.name, "it went on");
    (step.name, diagnosis.causes.clone())
}

/// The first cause is the one that `cause` names, with this cure, and the step is this one.
fn assert_cured(manager: &RdsConnectionManager, step: &str, cause: &str, cure: &str) {
    let (failed, causes) = causes_of(manager);
    assert_eq!(failed, step, "{causes:?}");
    assert!(causes[0].cause.contains(cause), "{causes:?}");
    assert!(causes[0].cure.contains(cure), "{causes:?}");
}

/// Among those that look alike, one is this, and comes with a fact that decides.
fn assert_candidate(causes: &[Cause], cause: &str, cure: &str) {
    let candidate = causes.iter().find(|candidate| candidate.cause.contains(cause));
    let candidate = candidate.unwrap_or_else(|| panic!("{cause}: {causes:?}"));
    assert!(candidate.cure.contains(cure) && candidate.decided_by.is_some(), "{candidate:?}");
}

fn builder(credentials: &Credentials) -> Builder {
    RdsConnectionManager::builder().credentials_provider(credentials.clone())
}

/// A server that says this to whoever speaks to it, and then nothing more.
fn that_says(answer: &'static [u8]) -> RdsConnectionManager {
    that_does(move |mut stream| {
        let said = stream.read(&mut [0; 8]).and_then(|_| stream.write_all(answer));
        let _ = said.and_then(|()| stream.read_to_end(&mut Vec::new()));
    })
}

/// Its thread ends with the process.
fn that_does(serve: impl Fn(TcpStream) + Send + 'static) -> RdsConnectionManager {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    at_port(port)
}

/// Dials this machine, as a tunnel, with roots that are there.
fn at_port(port: u16) -> RdsConnectionManager {
    let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/roots.pem");
    let url = format!(
        "host=localhost port={port} user=app dbname=app iam_host={NAME} iam_port=5432 sslrootcert={roots}"
    );
    builder(&key_pair(None)).build(url).unwrap()
}

#[test]
fn a_login_that_works_is_told_step_by_step() {
    let rds = start(LocalRds::builder());
    let report = report(&manager(&rds));
    assert!(report.lets_in() && report.first_failure().is_none());
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
        "told by: region_name",
        "source: the given provider",
        "access key id: AKIA****",
        "addresses: 127.0.0.1",
        &format!("judged by: {ca}"),
        &format!("signed for: app at localhost:{} in us-east-1", rds.port()),
        "server: PostgreSQL",
        "clock: as the server's",
        "TLS: TLSv1.3",
        "member of rds_iam: yes",
        "takes writes: yes",
    ] {
        assert!(facts.iter().any(|fact| fact.contains(expected)), "{expected}: {facts:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_servers_certificate_is_shown() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let report = report(&manager(&rds));
    let tls = report.steps.iter().find(|step| step.name == "TLS").unwrap();
    let fact = |name: &str| tls.facts.iter().find(|fact| fact.name == name).unwrap().value.clone();
    assert!(fact("certificate").starts_with("LocalRds, by LocalRds root "), "{tls:?}");
    assert_eq!(fact("for"), format!("{NAME}, localhost"));
}

#[test]
fn it_can_be_called_inside_of_async_code() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(async { examine(&manager) }).lets_in());
}

#[test]
fn a_wrong_region_is_named_first() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let wrong = rds.database_url().replace("region_name=eu-west-1", "region_name=eu-west-2");
    let manager = rds.manager_builder().build(wrong).unwrap();
    assert_cured(&manager, "login", "region eu-west-2", "region_name=eu-west-1");
    assert_eq!(last_verdict(&rds), Err(Refusal::Region));
}

#[test]
fn a_key_pair_that_is_not_trusted_gets_the_statement_to_paste() {
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
            .cure
            .contains("\"Resource\": \"arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app\""),
        "{causes:?}"
    );
    assert_candidate(&causes, "may not log in", "--db-instance-identifier db --region eu-west-1");
    assert_candidate(&causes, "another account", "--assume-role");
    assert_candidate(&causes, "revoked", "new ones");
}

#[test]
fn the_account_of_the_credentials_is_filled_in() {
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
    assert_cured(
        &stranger,
        "login",
        "may not log in",
        "arn:aws:rds-db:eu-west-1:111122223333:dbuser:",
    );
}

#[test]
fn a_missing_grant_is_to_be_run() {
    let rds = start(LocalRds::builder());
    // Nobody looks at the token, whether or not there is such a user, and one with a password is
    // asked by SCRAM.
    for user in [LocalRds::USER_WITHOUT_GRANT, LocalRds::USER_WITH_PASSWORD, "nobody_knows"] {
        let manager = rds.manager_builder().build(rds.database_url_for(user)).unwrap();
        assert_cured(
            &manager,
            "login",
            "lacks the role rds_iam",
            &format!("GRANT rds_iam TO \"{user}\";"),
        );
    }
    assert!(rds.attempts().is_empty());
}

#[test]
fn a_cname_is_cured_by_the_name_in_the_certificate() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let ca = rds.ca_file().display();
    let dialled = format!(
        "host=localhost port={} user=app dbname=app sslrootcert='{ca}' region_name=us-east-1",
        rds.port()
    );
    let manager = rds.manager_builder().build(&dialled).unwrap();
    let cure = format!("iam_host={NAME}, and iam_port=5432");
    assert_cured(&manager, "login", "is the RDS endpoint behind localhost", &cure);
    assert_eq!(last_verdict(&rds), Err(Refusal::Endpoint));
    let cured = format!("{dialled} iam_host={NAME} iam_port=5432");
    assert!(report(&rds.manager_builder().build(cured).unwrap()).lets_in());
}

#[test]
fn a_tunnel_needs_the_endpoints_own_name_and_port() {
    let rds = start(LocalRds::builder());
    let by_its_near_end = manager(&rds);
    rds.set_endpoint(Endpoint::new(NAME, 5432, "us-east-1").unwrap());
    // The certificate tells nothing of an endpoint.
    assert_cured(&by_its_near_end, "login", "the near end of a tunnel: localhost", "add iam_host=");

    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let without_port = rds.database_url().replace("&iam_port=5432", "");
    let manager = rds.manager_builder().build(without_port).unwrap();
    assert_cured(
        &manager,
        "login",
        &format!("for port {} of a tunnel", rds.port()),
        "add iam_port=5432",
    );
}

#[test]
fn a_clock_that_is_off_is_a_candidate_with_the_fact_that_decides() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let manager = builder(rds.credentials()).build(rds.database_url()).unwrap();
    rds.clock().advance(minutes(20));
    let (_, causes) = causes_of(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::Expired));
    assert_candidate(&causes, "clock is off", "NTP");
}

#[test]
fn a_refusal_now_and_then_is_a_candidate() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(1);
    let (_, causes) = causes_of(&manager(&rds));
    assert_candidate(&causes, "more than 200 new logins", "pool");
}

#[test]
fn credentials_that_have_ended_are_told_before_anything_is_dialled() {
    let rds = start(LocalRds::builder());
    let ended = key_pair(Some(SystemTime::now() - minutes(1)));
    let manager =
        rds.manager_builder().credentials_provider(ended).build(rds.database_url()).unwrap();
    assert_cured(&manager, "credentials", "gave credentials that ended at", "aws sso login");
    assert!(rds.attempts().is_empty());
}

#[test]
fn credentials_that_end_earlier_than_they_say_are_a_candidate() {
    let rds = start(LocalRds::builder());
    rds.add_key_pair(key_pair(Some(SystemTime::now() - minutes(1))));
    let manager = rds
        .manager_builder()
        .credentials_provider(key_pair(None))
        .build(rds.database_url())
        .unwrap();
    let (_, causes) = causes_of(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::KeyPairExpired));
    assert_candidate(&causes, "end earlier than they say", "new ones");
}

#[test]
fn no_credentials_in_an_ecs_task_are_the_task_roles_matter() {
    in_a_child("doctor::without_credentials", &[("CURE", "AWS_PROFILE")]);
    let task =
        [("CURE", "taskRoleArn"), ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x")];
    in_a_child("doctor::without_credentials", &task);
}

#[test]
#[ignore = "runs as a process of its own, without anybody's AWS credentials"]
fn without_credentials() {
    let manager = RdsConnectionManager::new(format!("postgres://app@{NAME}/app")).unwrap();
    assert_cured(&manager, "credentials", "", &std::env::var("CURE").unwrap());
}

#[test]
fn another_authority_is_named() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let (ours, theirs) =
        (rds.ca_file().display().to_string(), other.ca_file().display().to_string());
    let manager = rds.manager_builder().build(rds.database_url().replace(&ours, &theirs)).unwrap();
    let (step, causes) = causes_of(&manager);
    assert_eq!(step, "TLS");
    assert_candidate(&causes, &theirs, "sslrootcert=");
    assert!(rds.attempts().is_empty(), "a token was sent to a server that nobody vouched for");
}

#[test]
fn a_missing_or_empty_root_file_says_where_to_get_one() {
    let rds = start(LocalRds::builder());
    for name in ["nowhere.pem", "server.key"] {
        let url = rds.database_url().replace("ca.pem", name);
        let manager = rds.manager_builder().build(url).unwrap();
        assert_cured(&manager, "TLS", "not where sslrootcert says", "curl -o global-bundle.pem");
    }
}

#[test]
fn a_wrong_name_is_cured_by_the_name_in_the_certificate() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let url = rds.database_url().replace(NAME, "db.example.com");
    let manager = rds.manager_builder().build(url).unwrap();
    assert_cured(
        &manager,
        "TLS",
        "and the token is for db.example.com",
        &format!("iam_host={NAME}"),
    );

    let rds = start(LocalRds::builder());
    let url = rds.database_url() + "&iam_host=db.example.com";
    let manager = rds.manager_builder().build(url).unwrap();
    assert_cured(&manager, "TLS", "CNAME or a tunnel", "set iam_host= to the endpoint's own name");
}

#[test]
fn sslmode_is_heeded() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let url = |mode: &str, ca: &LocalRds, more: &str| {
        format!(
            "host=localhost port={} user=app dbname=app region_name=us-east-1 sslmode={mode} sslrootcert='{}' {more}",
            rds.port(),
            ca.ca_file().display()
        )
    };
    let lets_in = |url: String| report(&rds.manager_builder().build(url).unwrap()).lets_in();
    assert!(lets_in(url("require", &rds, "")));
    assert!(lets_in(url("require", &rds, "").replace("ca.pem", "nowhere.pem")));
    assert!(!lets_in(url("require", &other, "")), "libpq takes it for verify-ca");
    assert!(lets_in(url("verify-ca", &rds, "")));
    assert!(!lets_in(url("verify-ca", &other, "")));
}

#[test]
fn a_server_without_tls_is_told() {
    assert_cured(&that_says(b"N"), "TLS", "not an RDS endpoint", "TLS only");
}

#[test]
fn a_server_that_is_not_postgresql_is_told() {
    let http = that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_cured(
        &http,
        "TLS",
        "something else than PostgreSQL listens at localhost",
        "check host and port",
    );
    // Found by a stranger: its first letter is PostgreSQL's yes to TLS.
    let ssh = that_says(b"SSH-2.0-OpenSSH_9.2p1\r\n");
    assert_cured(
        &ssh,
        "TLS",
        "something else than PostgreSQL listens at localhost",
        "check host and port",
    );
}

#[test]
fn a_server_that_has_no_room_is_told_in_its_own_words() {
    let full = that_says(b"E\0\0\0\x49SFATAL\0C53300\0Msorry, too many clients already\0\0");
    assert_cured(&full, "TLS", "sorry, too many clients already", "max_size");
}

#[test]
fn a_server_that_never_answers_is_left() {
    let silent = that_does(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    assert_cured(&silent, "TLS", "accepts for a server that it does not reach", "behind it");
}

#[test]
fn a_server_that_falls_silent_inside_of_tls_is_left() {
    assert_cured(&that_says(b"S"), "TLS", "accepts for a server", "behind it");
}

#[test]
fn a_server_that_hangs_up_is_told() {
    assert_cured(
        &that_does(drop),
        "TLS",
        "accepts for a server that it does not reach",
        "behind it",
    );
}

/// A login at a server with a certificate of these days, and with this answer to the token.
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
fn a_certificate_of_another_time_is_told() {
    let (step, causes) = at_fake(-20..-10, Vec::new());
    assert_eq!(step, "TLS");
    assert_candidate(&causes, "the server's certificate has ended", "rotate it");
    let (step, causes) = at_fake(10..20, Vec::new());
    assert_eq!(step, "TLS");
    assert_candidate(&causes, "clock is off", "NTP");
}

#[test]
fn what_rds_proxy_and_poolers_say_has_its_cure() {
    let cases = [
        (
            error_response("28000", "IAM authentication failed for the role app"),
            "may not log in",
            "rds-db:connect",
        ),
        (error_response("53300", "too many competing requests"), "competing", "pool"),
        (
            error_response("08P01", "string truncated"),
            "takes no password of",
            "raise its longest password",
        ),
        (Vec::new(), "takes no password of", "raise its longest password"),
    ];
    for (answer, cause, cure) in cases {
        let (step, causes) = at_fake(0..10, answer);
        assert_eq!(step, "login");
        let found = causes.iter().any(|it| it.cause.contains(cause) && it.cure.contains(cure));
        assert!(found, "{cause}: {causes:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_network_without_a_way_there_is_told() {
    in_a_network_of_its_own("doctor::without_a_way", "10.11.12.13", &[]);
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "runs in a network of its own, from which no other can be reached"]
fn without_a_way() {
    let url = format!("host={NAME} hostaddr=10.99.0.1 user=app dbname=app");
    let (step, causes) = causes_of(&builder(&key_pair(None)).build(url).unwrap());
    assert_eq!(step, "TCP");
    assert_candidate(&causes[..1], "outside of its VPC", "VPN");
    assert_candidate(&causes, "security group", "inbound rule for TCP 5432");
}

#[test]
fn a_closed_port_is_told() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    rds.stop();
    assert_cured(&manager, "TCP", &format!("listens at port {}", rds.port()), "ssh -N -L");
}

#[test]
fn a_name_without_an_address_is_told() {
    let url = "postgres://app@db.invalid/app?region_name=eu-west-1";
    let (step, causes) = causes_of(&builder(&key_pair(None)).build(url).unwrap());
    assert_eq!(step, "DNS");
    assert_candidate(&causes, "misspelt", "RDS console");
}

#[test]
fn an_unknown_database_is_told() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().build(rds.database_url().replace("/app?", "/nowhere?")).unwrap();
    assert_cured(
        &manager,
        "login",
        "database \"nowhere\" does not exist (SQLSTATE 3D000)",
        "names of database",
    );
}

#[test]
fn too_many_connections_are_told() {
    let rds = start(LocalRds::builder());
    rds.superuser().unwrap().batch_execute("ALTER ROLE app CONNECTION LIMIT 0").unwrap();
    assert_cured(&manager(&rds), "login", "SQLSTATE 53300", "CONNECTION LIMIT");
}

#[test]
fn what_libpq_alone_refuses_is_told_by_its_own_step() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().build(rds.database_url() + "&target_session_attrs=standby").unwrap();
    assert_cured(&manager, "libpq", "standby", "target_session_attrs");
}

#[test]
fn of_several_hosts_each_is_walked_and_one_is_enough() {
    let (down, up) = (start(LocalRds::builder()), start(LocalRds::builder()));
    down.stop();
    let (ports, ca) = (format!("{},{}", down.port(), up.port()), up.ca_file().display());
    let url = format!(
        "host=localhost,localhost port={ports} user=app dbname=app region_name=us-east-1 sslrootcert='{ca}'"
    );
    let report = report(&up.manager_builder().build(url).unwrap());
    assert!(report.lets_in());
    let (step, _) = report.first_failure().unwrap();
    assert_eq!((step.name, step.host.clone()), ("TCP", Some(format!("localhost:{}", down.port()))));
    assert_eq!(report.steps.last().unwrap().name, "session");
}

#[test]
fn a_login_by_password_is_told_too() {
    let rds = start(LocalRds::builder());
    let manager = RdsConnectionManager::new(rds.password_url()).unwrap();
    let names: Vec<&str> = report(&manager).steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["connection string", "libpq", "session"]);
    let wrong =
        RdsConnectionManager::new(rds.password_url().replace(rds.password(), "hunter2")).unwrap();
    assert_cured(
        &wrong,
        "libpq",
        "the password is another one",
        "check it in the connection string",
    );
}

#[test]
fn a_password_that_rds_iam_took_away_is_told() {
    let user = LocalRds::USER_WITH_PASSWORD;
    for grant in [
        format!("GRANT rds_iam TO {user}"),
        format!("CREATE ROLE staff; GRANT rds_iam TO staff; GRANT staff TO {user}"),
        // pg_hba.conf goes by membership: that the role is not inherited does not help.
        format!(
            "CREATE ROLE staff; GRANT rds_iam TO staff; GRANT staff TO {user}; ALTER ROLE {user} NOINHERIT"
        ),
    ] {
        let rds = start(LocalRds::builder());
        rds.superuser().unwrap().batch_execute(&grant).unwrap();
        let manager = RdsConnectionManager::new(rds.password_url()).unwrap();
        assert_cured(
            &manager,
            "libpq",
            "takes its password away",
            &format!("REVOKE rds_iam FROM \"{user}\";"),
        );
    }
}

#[test]
fn a_string_without_a_manager_has_a_report_too() {
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
            "leave that out",
        ),
        ("postgres://app@my.global-abc.global.rds.amazonaws.com/app", "region", "set region_name="),
    ];
    for (url, step, cure) in cases {
        let report = Report::without_manager(&RdsConnectionManager::new(url).unwrap_err());
        let (failed, causes) = causes_in(&report);
        assert_eq!(failed, step);
        assert!(causes[0].cure.contains(cure), "{causes:?}");
    }
}
