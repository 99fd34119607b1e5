//! Connection strings that cannot work: refused before anything is dialled, with what to do, and
//! without a part of the string.

use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{in_a_child, key_pair, log};

/// A connection string, and its error without the words that all share.
const CASES: &[(&str, &str)] = &[
    ("", "it is empty; set it to postgres://USER@HOST:5432/DATABASE"),
    (" \n", "it is empty; set it to postgres://USER@HOST:5432/DATABASE"),
    ("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/a\0b", "it contains a NUL byte; remove it"),
    ("hunter2", NO_EQUALS),
    ("host=db.example.com password=correct hunter2", NO_EQUALS),
    (
        "host=db.example.com user='app",
        "a quoted value has no closing quote; add it, and write a quote inside a value as \\'",
    ),
    (
        "host=db.example.com hostt=x",
        "it has a keyword that libpq does not know; did you mean host?",
    ),
    (
        "postgres://app@db.example.com/app?sslmodus=require",
        "it has a keyword that libpq does not know; did you mean sslmode?",
    ),
    (
        "postgres://app@db.example.com/app?rds_iam_auth",
        "a parameter of the URI has no =; write it as keyword=value, and a literal & as %26",
    ),
    ("postgres://app@db.example.com:port/app", PORT),
    ("postgres://app@db.example.com:0/app", PORT),
    ("postgres://app@db.example.com:65536/app", PORT),
    ("postgres://app%zz@db.example.com/app", PERCENT),
    ("postgres://app:hunter2%zz@db.example.com/app", PERCENT),
    ("postgres://app@db.example.com/app?region_name=%zz", PERCENT),
    (
        "postgres://app@db.example.com/app?rds_iam_auth==false",
        "a parameter of the URI has two = signs; write a literal = as %3D",
    ),
    (
        "RDS_IAM_AUTH=false host=db.example.com",
        "it has a keyword that libpq does not know; did you mean rds_iam_auth?",
    ),
    (
        "postgres://app@db.example.com/app?pool_maxsize=8",
        "it has a keyword that libpq does not know; did you mean pool_max_size?",
    ),
    (
        "postgres://app@db.example.com/app?max_lifetime=hunter2",
        "max_lifetime must be a whole number of seconds, without a unit, from 1 to 2147483647",
    ),
    (
        "postgres://app@db.example.com/app?pool_min_idle=11",
        "pool_min_idle is larger than pool_max_size, which is 10 by default",
    ),
    (
        "app:hunter2@db.example.com/app?sslmode=require",
        "it has no scheme; write postgres://USER@HOST:5432/DATABASE, or pairs keyword=value",
    ),
    (
        "postgresql:/app:hunter2@db.example.com/app?sslmode=require",
        "its scheme lacks a slash; write postgres://",
    ),
    ("postgres://app:p@hunter2@localhost/db", AT_SIGN),
    ("postgres://app:p@hunter2@localhost/db?rds_iam_auth=false", AT_SIGN),
    ("postgres://app:s3cr/hunter2@localhost/db?rds_iam_auth=false", AT_SIGN),
    ("postgres://app:5432/hunter2@localhost/db?region_name=eu-west-1", AT_SIGN),
    ("host=localhost port=hunter2 rds_iam_auth=false", PORT),
    (
        "postgres://app:db.abc:5432/?Action=connect&X-Amz-Signature=hunter2@db.example.com/app",
        "it contains a token; remove it, because each connection signs its own",
    ),
    (
        "service=nowhere",
        "the service that it or PGSERVICE names is not defined; check its name, PGSERVICEFILE \
         and ~/.pg_service.conf",
    ),
    ("postgres://app@/app", NO_HOST),
    ("hostaddr=10.0.0.1 user=app region_name=eu-west-1", NO_HOST),
    ("postgres:///app?host=/var/run/postgresql", UNIX_SOCKET),
    ("host=@abstract user=app", UNIX_SOCKET),
    (
        "host=a.example.com,b.example.com port=5432 user=app \
         iam_host=c.example.com,d.example.com,e.example.com region_name=eu-west-1",
        "iam_host has 3 values for 2 hosts; give one value for each host",
    ),
    (
        "postgres://app@a.example.com,/app",
        "its list of hosts has an empty item; name a host, or remove the comma",
    ),
    (
        "host=a.example.com,b.example.com user=app iam_host=,b.example.com region_name=eu-west-1",
        "iam_host has an empty item; name an endpoint there, or remove the comma",
    ),
    (
        "postgres://app@a.example.com/app?load_balance_hosts=yes",
        "load_balance_hosts must be \"disable\" or \"random\"",
    ),
    (
        "postgres://app@db.example.com/app?hostaddr=10.0.0.1,10.0.0.2",
        "host, hostaddr and port are lists of different lengths; give one value for each host",
    ),
    ("postgres://app:hunter2@db.example.com/app", PASSWORD),
    ("host=db.example.com user=app password='hunter2'", PASSWORD),
    (
        "postgres://app@db.example.com/app?sslmode=disable",
        "sslmode=disable can send the token in clear text; set sslmode=verify-full, and \
         sslrootcert= to the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=allow",
        "sslmode=allow can send the token in clear text; set sslmode=verify-full, and \
         sslrootcert= to the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=prefer",
        "sslmode=prefer can send the token in clear text; set sslmode=verify-full, and \
         sslrootcert= to the RDS CA bundle",
    ),
    (
        "postgres://app@db.example.com/app?sslmode=never",
        "the value of sslmode is not one that libpq accepts; see libpq's \"Parameter Key Words\" \
         for its values",
    ),
    ("postgres://app@10.0.0.1/app?region_name=eu-west-1", ADDRESS),
    ("postgres://app@[::1]/app?region_name=eu-west-1", ADDRESS),
    ("postgres://app@localhost/app?iam_host=10.0.0.1&region_name=eu-west-1", ADDRESS),
    (
        "postgres://app@bücher.example/app?region_name=eu-west-1",
        "the host is not a valid host name; write the RDS endpoint as the AWS console shows it",
    ),
    ("postgres://app@localhost/app?iam_port=0", IAM_PORT),
    ("postgres://app@localhost/app?iam_port=x", IAM_PORT),
    ("postgres://app@localhost/app?rds_iam_auth=yes", "rds_iam_auth must be \"true\" or \"false\""),
    (
        "postgres://app@db.example.com/app?region_name=Ireland",
        "the region is not of the form eu-west-1; set it to the code of the database's region",
    ),
];

const AT_SIGN: &str = "it has an @ in or after the host; percent-encode user and password (@ is \
                       %40, / is %2F, : is %3A)";
const NO_EQUALS: &str = "it has a word without =; write postgres://USER@HOST:5432/DATABASE, or \
                         pairs keyword=value with single quotes around values that contain spaces";
const PORT: &str = "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432";
const PERCENT: &str = "a % is not followed by two hexadecimal digits; write a literal % as %25";
const NO_HOST: &str =
    "it names no host; set DATABASE_URL to postgres://USER@HOST:5432/DATABASE, or set PGHOST";
const UNIX_SOCKET: &str = "the host is a unix socket, and IAM works over TCP only; name the RDS \
                           endpoint, or set rds_iam_auth=false";
const PASSWORD: &str = "it contains a password, but IAM makes its own; remove the password, or \
                        set rds_iam_auth=false to log in with it";
const ADDRESS: &str = "the host is an IP address, and a token is signed for a name; set \
                       iam_host= to the RDS endpoint";
const IAM_PORT: &str =
    "iam_port is not a number from 1 to 65535; set it to the port of the RDS endpoint";

/// Strings without a region.
const WITHOUT_REGION: &[(&str, &str)] = &[
    (
        "postgres://app@db.example.com/app",
        "no AWS region for db.example.com: the host name contains none, and neither AWS_REGION \
         nor the AWS profile \"default\" names one; set region_name=, or iam_host= if the \
         host is a CNAME or a tunnel",
    ),
    (
        "postgres://app@my.global-abc123.global.rds.amazonaws.com/app",
        "no AWS region for my.global-abc123.global.rds.amazonaws.com: the name of a global \
         database contains no region, and its writer can move; set region_name=, or iam_host= if \
         the host is a CNAME or a tunnel",
    ),
];

#[test]
fn each_has_a_clear_error() {
    in_a_child("bad_input::table", &[]);
}

#[test]
#[ignore = "runs in its own process, without PG* variables"]
fn table() {
    log();
    for (conninfo, message) in CASES {
        let expected = format!("unusable connection string: {message}");
        assert_eq!(message_for(conninfo), expected, "{conninfo:?}");
        assert!(expected.chars().count() <= LONGEST_TEXT, "{expected}");
    }
    for (conninfo, message) in WITHOUT_REGION {
        assert_eq!(message_for(conninfo), *message, "{conninfo:?}");
        assert!(message.chars().count() <= LONGEST_TEXT, "{message}");
    }
}

/// In characters, without what a server said.
const LONGEST_TEXT: usize = 240;

fn message_for(conninfo: &str) -> String {
    let message = RdsConnectionManager::new(conninfo).expect_err(conninfo).to_string();
    assert!(!message.contains("hunter2"), "{message}");
    message
}

#[test]
fn a_user_name_has_at_most_63_bytes() {
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
fn the_builders_settings_are_checked_like_the_strings() {
    let url = "postgres://app@localhost/app";
    let builder = || RdsConnectionManager::builder().region_name("eu-west-1");
    assert!(builder().build(url).is_ok());
    for (builder, message) in [
        (builder().iam_host("127.0.0.1"), "unusable connection string: the host is an IP address"),
        (builder().iam_port(0), "invalid configuration: the port is 0"),
        (
            builder().region_name("Ireland"),
            "invalid configuration: the region is not of the form eu-west-1",
        ),
    ] {
        let shown = builder.build(url).unwrap_err().to_string();
        assert!(shown.starts_with(message), "{shown}");
    }
}

#[test]
fn without_credentials_the_error_says_what_to_set() {
    in_a_child("bad_input::no_credentials", &[]);
}

#[test]
#[ignore = "runs in its own process, without AWS credentials"]
fn no_credentials() {
    log();
    let manager =
        RdsConnectionManager::new("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app").unwrap();
    let message = manager.connect().err().expect("connected").to_string();
    assert_eq!(
        message,
        "no AWS credentials: environment: environment variable not set; profile \"default\": not \
         set up; web identity: $AWS_WEB_IDENTITY_TOKEN_FILE was not set; container: ECS provider \
         not configured; instance metadata: IMDS disabled by AWS_EC2_METADATA_DISABLED env var \
         set to `true`; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give \
         the task or instance a role"
    );
}

#[test]
fn expired_credentials_sign_nothing() {
    let ended = std::time::SystemTime::now() - std::time::Duration::from_secs(30);
    let manager = RdsConnectionManager::builder()
        .credentials_provider(key_pair(Some(ended)))
        .build("postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app")
        .unwrap();
    let message = manager.connect().err().expect("connected").to_string();
    assert!(message.contains("the given provider: gave credentials that ended at 20"), "{message}");
}
