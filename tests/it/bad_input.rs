//! What cannot work is refused before anything is dialled, in words that help, and without an echo
//! of a secret.

use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{in_a_child, key_pair, log};

/// A connection string and the message that its user reads, less the words that all share.
const CASES: &[(&str, &str)] = &[
    ("", "it is empty; give postgres://USER@HOST:5432/DATABASE"),
    (" \n", "it is empty; give postgres://USER@HOST:5432/DATABASE"),
    ("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/a\0b", "it holds a NUL byte; remove it"),
    (
        "hunter2",
        "libpq says: missing \"***\" after \"***\" in connection info string; write a URI, postgres://USER@HOST:5432/DATABASE, or pairs keyword=value, with values that hold spaces in single quotes",
    ),
    (
        "host=db.example.com password=correct hunter2",
        "libpq says: missing \"***\" after \"***\" in connection info string; write a URI, postgres://USER@HOST:5432/DATABASE, or pairs keyword=value, with values that hold spaces in single quotes",
    ),
    (
        "host=db.example.com user='app",
        "libpq says: unterminated quoted string in connection info string; see \"Connection Strings\" in libpq's documentation",
    ),
    (
        "host=db.example.com hostt=x",
        "libpq says: invalid connection option \"hostt\"; check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port",
    ),
    (
        "postgres://app@db.example.com/app?sslmodus=require",
        "libpq says: invalid URI query parameter: \"sslmodus\"; check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port",
    ),
    (
        "postgres://app@db.example.com/app?rds_iam_auth",
        "libpq says: missing key/value separator \"=\" in URI query parameter: \"rds_iam_auth\"; see \"Connection Strings\" in libpq's documentation",
    ),
    (
        "postgres://app@db.example.com:port/app",
        "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default",
    ),
    (
        "postgres://app@db.example.com:0/app",
        "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default",
    ),
    (
        "postgres://app@db.example.com:65536/app",
        "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default",
    ),
    (
        "postgres://app%zz@db.example.com/app",
        "libpq says: invalid percent-encoded token: \"***\"; write a % that stands for itself as %25",
    ),
    (
        "postgres://app:hunter2%zz@db.example.com/app",
        "libpq says: invalid percent-encoded token: \"***\"; write a % that stands for itself as %25",
    ),
    (
        "postgres://app@db.example.com/app?region_name=%zz",
        "libpq says: invalid percent-encoded token: \"***\"; write a % that stands for itself as %25",
    ),
    (
        "postgres://app@db.example.com/app?rds_iam_auth==false",
        "libpq says: extra key/value separator \"=\" in URI query parameter: \"rds_iam_auth\"; see \"Connection Strings\" in libpq's documentation",
    ),
    (
        "RDS_IAM_AUTH=false host=db.example.com",
        "libpq says: invalid connection option \"RDS_IAM_AUTH\"; check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port",
    ),
    (
        "app:hunter2@db.example.com/app?sslmode=require",
        "libpq says: invalid connection option \"***\"; check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port",
    ),
    (
        "postgresql:/app:hunter2@db.example.com/app?sslmode=require",
        "libpq says: invalid connection option \"***\"; check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port",
    ),
    ("postgres://app:p@hunter2@localhost/db", AT_SIGN),
    ("postgres://app:p@hunter2@localhost/db?rds_iam_auth=false", AT_SIGN),
    ("postgres://app:s3cr/hunter2@localhost/db?rds_iam_auth=false", AT_SIGN),
    ("postgres://app:5432/hunter2@localhost/db?region_name=eu-west-1", AT_SIGN),
    (
        "host=localhost port=hunter2 rds_iam_auth=false",
        "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default",
    ),
    (
        "postgres://app:db.abc:5432/?Action=connect&X-Amz-Signature=hunter2@db.example.com/app",
        "libpq says: invalid URI query parameter: \"***\"; it holds a token; leave that out, for each connection signs its own",
    ),
    (
        "service=nowhere",
        "libpq says: definition of service \"nowhere\" not found; check PGSERVICE, PGSERVICEFILE and ~/.pg_service.conf",
    ),
    (
        "postgres://app@/app",
        "it names no host, and IAM authentication is for RDS over TCP; set host= or PGHOST to the RDS endpoint",
    ),
    (
        "hostaddr=10.0.0.1 user=app region_name=eu-west-1",
        "it names no host, and IAM authentication is for RDS over TCP; set host= or PGHOST to the RDS endpoint",
    ),
    (
        "postgres:///app?host=/var/run/postgresql",
        "the host is a unix socket, and IAM authentication is for RDS over TCP; name the RDS endpoint, or set rds_iam_auth=false",
    ),
    (
        "host=@abstract user=app",
        "the host is a unix socket, and IAM authentication is for RDS over TCP; name the RDS endpoint, or set rds_iam_auth=false",
    ),
    (
        "host=a.example.com,b.example.com port=5432 user=app iam_host=c.example.com,d.example.com,e.example.com region_name=eu-west-1",
        "iam_host is a list of 3 for 2 hosts; give one for each host",
    ),
    (
        "postgres://app@a.example.com,/app",
        "a place in its list of hosts is empty; name a host there, or take the comma away",
    ),
    (
        "host=a.example.com,b.example.com user=app iam_host=,b.example.com region_name=eu-west-1",
        "a place in the list iam_host is empty; name an endpoint there, or take the comma away",
    ),
    (
        "postgres://app@a.example.com/app?load_balance_hosts=yes",
        "load_balance_hosts is neither disable nor random; say one of them",
    ),
    (
        "postgres://app@db.example.com/app?hostaddr=10.0.0.1,10.0.0.2",
        "libpq says: could not match 1 host names to 2 hostaddr values; see \"Connection Strings\" in libpq's documentation",
    ),
    (
        "postgres://app:hunter2@db.example.com/app",
        "it holds a password, but IAM authentication makes its own: remove the password, or set rds_iam_auth=false to log in with it",
    ),
    (
        "host=db.example.com user=app password='hunter2'",
        "it holds a password, but IAM authentication makes its own: remove the password, or set rds_iam_auth=false to log in with it",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=disable",
        "sslmode=disable can send the token in clear text; use sslmode=verify-full with sslrootcert= the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=allow",
        "sslmode=allow can send the token in clear text; use sslmode=verify-full with sslrootcert= the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=prefer",
        "sslmode=prefer can send the token in clear text; use sslmode=verify-full with sslrootcert= the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=never",
        "libpq says: invalid sslmode value: \"never\"; see \"Connection Strings\" in libpq's documentation",
    ),
    (
        "postgres://app@10.0.0.1/app?region_name=eu-west-1",
        "the host is an IP address, and a token is signed for a name; set iam_host= to the RDS endpoint",
    ),
    (
        "postgres://app@[::1]/app?region_name=eu-west-1",
        "the host is an IP address, and a token is signed for a name; set iam_host= to the RDS endpoint",
    ),
    (
        "postgres://app@localhost/app?iam_host=10.0.0.1&region_name=eu-west-1",
        "the host is an IP address, and a token is signed for a name; set iam_host= to the RDS endpoint",
    ),
    (
        "postgres://app@bücher.example/app?region_name=eu-west-1",
        "the host is not a host name that a token can be signed for; give the RDS endpoint as the console shows it",
    ),
    (
        "postgres://app@localhost/app?iam_port=0",
        "iam_port is not a number from 1 to 65535; give the port of the real endpoint, as 5432",
    ),
    (
        "postgres://app@localhost/app?iam_port=x",
        "iam_port is not a number from 1 to 65535; give the port of the real endpoint, as 5432",
    ),
    (
        "postgres://app@localhost/app?rds_iam_auth=yes",
        "rds_iam_auth is neither true nor false; say rds_iam_auth=true or rds_iam_auth=false",
    ),
    (
        "postgres://app@db.example.com/app?region_name=Ireland",
        "the region is not of the form eu-west-1; give the code of the region that the database is in",
    ),
];

const AT_SIGN: &str = "an '@' stands in or after the host; percent-encode user and password (@ is %40, / is %2F, : is %3A)";

/// What no region can be told of.
const WITHOUT_REGION: &[(&str, &str)] = &[
    (
        "postgres://app@db.example.com/app",
        "no AWS region for db.example.com: the host name tells none, and neither AWS_REGION nor the AWS profile does; set region_name= in the connection string, or Builder::region_name",
    ),
    (
        "postgres://app@my.global-abc123.global.rds.amazonaws.com/app",
        "no AWS region for my.global-abc123.global.rds.amazonaws.com: the name of a global database carries none, and its writer can move; set region_name= in the connection string, or Builder::region_name",
    ),
];

#[test]
fn has_a_clear_error_each() {
    in_a_child("bad_input::table", &[]);
}

#[test]
#[ignore = "runs as a process of its own, without anybody's PG* variables"]
fn table() {
    log();
    for (conninfo, message) in CASES {
        let expected = format!("unusable connection string: {message}");
        assert_eq!(message_for(conninfo), expected, "{conninfo:?}");
    }
    for (conninfo, message) in WITHOUT_REGION {
        assert_eq!(message_for(conninfo), *message, "{conninfo:?}");
    }
}

fn message_for(conninfo: &str) -> String {
    let message = RdsConnectionManager::new(conninfo).expect_err(conninfo).to_string();
    assert!(!message.contains("hunter2"), "{message}");
    message
}

#[test]
fn a_user_name_is_as_long_as_postgresql_keeps() {
    let url = |length| {
        format!("postgres://{}@db.abc.eu-west-1.rds.amazonaws.com/app", "u".repeat(length))
    };
    assert!(RdsConnectionManager::new(url(63)).is_ok());
    for length in [64, 300] {
        let message = message_for(&url(length));
        assert!(message.contains(&format!("the user name has {length} bytes")), "{message}");
    }
}

#[test]
fn the_builders_settings_are_checked_as_those_of_the_string() {
    let url = "postgres://app@localhost/app";
    let builder = || RdsConnectionManager::builder().region_name("eu-west-1");
    assert!(builder().build(url).is_ok());
    for (builder, message) in [
        (builder().iam_host("127.0.0.1"), "the host is an IP address"),
        (builder().iam_port(0), "the port is 0"),
        (builder().region_name("Ireland"), "the region is not of the form eu-west-1"),
    ] {
        let shown = builder.build(url).unwrap_err().to_string();
        assert!(shown.contains(message), "{shown}");
    }
}

#[test]
fn without_credentials_the_error_says_where_they_can_come_from() {
    in_a_child("bad_input::no_credentials", &[]);
}

#[test]
#[ignore = "runs as a process of its own, without anybody's AWS credentials"]
fn no_credentials() {
    log();
    let manager =
        RdsConnectionManager::new("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app").unwrap();
    let message = manager.connect().err().expect("connected").to_string();
    assert_eq!(
        message,
        "no AWS credentials: environment: environment variable not set; profile \"default\": not set up; web identity: $AWS_WEB_IDENTITY_TOKEN_FILE was not set; container: ECS provider not configured; instance metadata: IMDS disabled by AWS_EC2_METADATA_DISABLED env var set to `true`; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the task or instance a role"
    );
}

#[test]
fn with_credentials_that_have_ended_nothing_is_signed() {
    let ended = std::time::SystemTime::now() - std::time::Duration::from_secs(30);
    let manager = RdsConnectionManager::builder()
        .credentials_provider(key_pair(Some(ended)))
        .build("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app")
        .unwrap();
    let message = manager.connect().err().expect("connected").to_string();
    assert!(message.contains("the given provider: gave credentials that ended at 20"), "{message}");
}
