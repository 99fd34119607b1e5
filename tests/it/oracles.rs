//! Compares our tokens with those of AWS's Python library, and what Python reads in our URLs with
//! what went into them. The unit tests of src/conninfo compare with libpq.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use diesel_rds_iam::{Credentials, Endpoint, RdsConnectionManager, presign};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::{Deserialize, Serialize};

use crate::support::moto::python_bin;
use crate::support::{minutes, output_of};

/// Runs a program in Python with `cases` as JSON, and returns its answers. Does not show them,
/// because they contain tokens.
fn run_python<Case: Serialize, Answer: for<'a> Deserialize<'a>>(
    program: &str,
    cases: &[Case],
) -> Vec<Answer> {
    let mut python = Command::new(python_bin().join("python3"));
    // botocore must not use a profile of this machine.
    python.args(["-c", program]).env_remove("AWS_PROFILE");
    let mut python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(&serde_json::to_vec(cases).unwrap()).unwrap();
    let output = output_of(python, minutes(5), "botocore signs");
    assert!(output.status.success(), "{}", output.status);
    let answers: Vec<Answer> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), cases.len());
    answers
}

fn some<S: Strategy>(count: usize, strategy: S) -> Vec<S::Value> {
    proptest::collection::vec(strategy, count)
        .new_tree(&mut TestRunner::default())
        .unwrap()
        .current()
}

#[derive(Debug, Serialize)]
struct Token {
    host: String,
    port: u16,
    region: String,
    user: String,
    key: String,
    secret: String,
    session_token: Option<String>,
    /// Since 1970.
    seconds: u64,
}

/// Names of RDS and other names, also in upper case and with a trailing dot. ASCII only: other
/// names are refused before anything is signed.
fn hosts() -> impl Strategy<Value = String> {
    let of_rds = "[a-z][a-z0-9-]{0,62}\\.(cluster-|cluster-ro-|proxy-)?\
         [a-z0-9]{12}\\.eu-west-1\\.rds\\.amazonaws\\.com";
    let written = (
        prop_oneof![of_rds, "[a-zA-Z0-9_-]{1,20}(\\.[a-zA-Z0-9_-]{1,20}){0,4}"],
        any::<bool>(),
        any::<bool>(),
    );
    written.prop_map(|(host, is_loud, has_dot)| {
        let host = if is_loud { host.to_uppercase() } else { host };
        if has_dot { host + "." } else { host }
    })
}

prop_compose! {
    fn tokens()(
        host in hosts(),
        // botocore names the port 443 in the token, and signs for a host without it.
        port in (1..=u16::MAX).prop_filter("443", |port| *port != 443),
        region in "(eu|us|ap|us-gov|cn)-(north|south|east|west|central)-[1-9]",
        user in any::<String>(),
        key in "(AKIA|ASIA)[A-Z0-9]{16}",
        secret in "[A-Za-z0-9/+]{40}",
        session_token in proptest::option::of(
            prop_oneof!["[A-Za-z0-9/+]{300,1200}={0,2}", "\\PC{1,50}"]
        ),
        seconds in 0..4_000_000_000_u64,
    ) -> Token {
        Token { host, port, region, user, key, secret, session_token, seconds }
    }
}

/// Its clock is a stub, because botocore signs with the time of the system.
const BOTOCORE: &str = "
import datetime, json, sys
import botocore.auth, botocore.credentials, botocore.session

client = botocore.session.get_session().create_client(
    'rds', region_name='us-east-1', aws_access_key_id='none', aws_secret_access_key='none')

def token(case):
    now = datetime.datetime.fromtimestamp(case['seconds'], datetime.timezone.utc)
    botocore.auth.get_current_datetime = lambda: now
    client._request_signer._credentials = botocore.credentials.Credentials(
        case['key'], case['secret'], case['session_token'])
    return client.generate_db_auth_token(case['host'], case['port'], case['user'], case['region'])

json.dump([token(case) for case in json.load(sys.stdin.buffer)], sys.stdout)
";

#[test]
fn botocore_signs_2_000_tokens_as_we_do() {
    let mut cases = some(2_000, tokens());
    let ours: Vec<String> = cases.iter().map(sign).collect();
    // botocore signs the host as it is written.
    cases.iter_mut().for_each(|case| {
        case.host = Endpoint::new(&case.host, 1, "eu-west-1").unwrap().host().to_owned()
    });
    let theirs: Vec<String> = run_python(BOTOCORE, &cases);
    for ((ours, theirs), case) in ours.iter().zip(&theirs).zip(&cases) {
        assert!(sorted(ours) == sorted(theirs), "{case:?}");
    }
}

fn sign(case: &Token) -> String {
    let endpoint = Endpoint::new(&case.host, case.port, &case.region).unwrap();
    let key_pair =
        Credentials::new(&case.key, &case.secret, case.session_token.clone(), None, "test");
    let token =
        presign(&endpoint, &case.user, &key_pair, UNIX_EPOCH + Duration::from_secs(case.seconds))
            .unwrap();
    token.as_str().to_owned()
}

/// botocore puts the parameters in another order.
fn sorted(token: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = token.split(['?', '&']).collect();
    parts.sort_unstable();
    parts
}

/// What a URL holds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Parts {
    user: String,
    password: String,
    host: String,
    port: u16,
    dbname: String,
    options: String,
}

const URLLIB: &str = "
import json, sys
from urllib.parse import parse_qs, unquote, urlsplit

def parts(text):
    url = urlsplit(text)
    parameters = parse_qs(url.query, keep_blank_values=True, strict_parsing=True)
    return {
        'user': unquote(url.username, errors='strict'),
        'password': unquote(url.password, errors='strict'),
        'host': url.hostname, 'port': url.port, 'dbname': unquote(url.path[1:], errors='strict'),
        'options': parameters['options'][0],
    }

json.dump([parts(url) for url in json.load(sys.stdin.buffer)], sys.stdout)
";

/// Text that libpq takes: without NUL.
fn text() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace('\0', ""))
}

prop_compose! {
    /// Without the password, which is to be a token.
    fn parts()(
        user in text().prop_filter("1 to 63 bytes", |user| (1..=63).contains(&user.len())),
        host in hosts(),
        port in 1..=u16::MAX,
        dbname in text().prop_filter("not empty", |name| !name.is_empty()),
        options in text().prop_filter("not empty", |options| !options.is_empty()),
    ) -> Parts {
        Parts { user, password: String::new(), host, port, dbname, options }
    }
}

/// The URLs of `rds-iam exec --in-url`.
#[test]
fn pythons_urllib_reads_500_urls_as_they_were_meant() {
    let (mut cases, mut urls) = (some(500, parts()), Vec::new());
    for case in &mut cases {
        let login = manager_of(case).libpq_login().unwrap();
        urls.push(login.database_url_with_token().unwrap());
        case.password = login.token().unwrap().as_str().to_owned();
        // The form in which the host is signed.
        case.host = Endpoint::new(&case.host, 1, "eu-west-1").unwrap().host().to_owned();
    }
    let read: Vec<Parts> = run_python(URLLIB, &urls);
    for (case, read) in cases.iter().zip(&read) {
        // Without the passwords.
        assert!(case == read, "{:?}", (&case.user, &case.host, &case.dbname, &case.options));
    }
}

fn manager_of(Parts { user, host, port, dbname, options, .. }: &Parts) -> RdsConnectionManager {
    let [user, dbname, options] =
        [user, dbname, options].map(|text| text.replace('\\', r"\\").replace('\'', r"\'"));
    let key_pair = Credentials::new(
        "ASIAEXAMPLE",
        "local-rds-secret-python",
        Some("SES/SION+/==".into()),
        None,
        "test",
    );
    let builder =
        RdsConnectionManager::builder().credentials_provider(key_pair).region_name("eu-west-1");
    builder
        .build(format!(
            "host={host} port={port} user='{user}' dbname='{dbname}' options='{options}'"
        ))
        .unwrap()
}
