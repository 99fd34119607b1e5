//! The dialect of `LocalRds::builder().dsql()` against one that we did not write: ministack's proxy
//! before a PostgreSQL. Each statement is accepted or refused alike, and the SQLSTATE is the same.
//!
//! tests/data/dsql_statements.tsv has the statements in the order in which they run, the expected
//! answer (`ok` or a SQLSTATE), and ministack's answer with the reason if it differs. The reason
//! `recorded` refers to the published answers of a real cluster (September 2026, test/conformance
//! in Dreamescaper/dsql-emulator).

use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use diesel::connection::SimpleConnection;
use diesel_rds_iam::local::LocalRds;
use tokio_postgres::{Client, NoTls};

use crate::support::moto::python_bin;
use crate::support::{await_line, start, token_of};

const STATEMENTS: &str = include_str!("../data/dsql_statements.tsv");

/// Prints the port on which the proxy listens.
const MINISTACK: &str = "
import asyncio, socket, sys
from ministack.core import pgproxy

async def main():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    await pgproxy.start_proxy('test', port, '127.0.0.1', int(sys.argv[1]))
    print(port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
";

struct Case {
    statement: String,
    expected: &'static str,
    ministack: &'static str,
    reason: &'static str,
}

impl Case {
    /// Returns the answer that is listed for ministack.
    fn of_ministack(&self) -> &'static str {
        if self.ministack.is_empty() { self.expected } else { self.ministack }
    }
}

fn cases() -> Vec<Case> {
    let case = |line: &'static str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [expected, ministack, reason, statement] = columns.try_into().expect("four columns");
        let statement = statement.replace("\\n", "\n");
        Case { statement, expected, ministack, reason }
    };
    STATEMENTS.lines().skip(1).map(case).collect()
}

/// ministack's proxy, and the PostgreSQL behind it.
pub(crate) struct Ministack {
    process: Child,
    pub(crate) port: u16,
    _postgres: LocalRds,
}

impl Ministack {
    pub(crate) fn start() -> Ministack {
        let postgres = trusting_postgres();
        let mut process = Command::new(python_bin().join("python3"))
            .args(["-c", MINISTACK, &postgres.port().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        let port = await_line("ministack prints its port", output, |line| line.parse().ok());
        Ministack { process, port, _postgres: postgres }
    }
}

impl Drop for Ministack {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// ministack logs in as `postgres`, without TLS and password. Here this user has the rights of the
/// user `app`.
fn trusting_postgres() -> LocalRds {
    let rds = start(LocalRds::builder());
    let rules = rds.ca_file().with_file_name("pg_hba.conf");
    let text = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("{text}host app postgres 127.0.0.1/32 trust\n")).unwrap();
    let setup = "CREATE ROLE postgres LOGIN IN ROLE app;
        ALTER DATABASE app SET default_transaction_isolation = 'repeatable read';
        SELECT pg_reload_conf()";
    rds.superuser().unwrap().batch_execute(setup).unwrap();
    rds
}

/// The two ways to send a statement.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Simple,
    /// A text with several statements cannot be prepared, and is sent as it is.
    Prepared,
}

async fn answers(client: &Client, protocol: Protocol) -> Vec<String> {
    let mut answers = Vec::new();
    for Case { statement, .. } in cases() {
        let outcome = if protocol == Protocol::Simple || statement.contains("; ") {
            client.simple_query(&statement).await.map(drop)
        } else {
            client.execute(&statement, &[]).await.map(drop)
        };
        answers.push(match outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) => match error.code() {
                Some(code) => code.code().to_owned(),
                None => error.to_string(),
            },
        });
    }
    answers
}

async fn ours(protocol: Protocol) -> Vec<String> {
    let rds = start(LocalRds::builder().dsql());
    let root = std::fs::read(rds.ca_file()).unwrap();
    let connector = native_tls::TlsConnector::builder()
        .add_root_certificate(native_tls::Certificate::from_pem(&root).unwrap())
        .build()
        .unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host("localhost").port(rds.port()).user(LocalRds::USER).dbname(LocalRds::DATABASE);
    config.password(token_of(&rds, SystemTime::now()));
    let tls = postgres_native_tls::MakeTlsConnector::new(connector);
    let (client, connection) = config.connect(tls).await.unwrap();
    tokio::spawn(connection);
    answers(&client, protocol).await
}

async fn theirs() -> Vec<String> {
    let ministack = Ministack::start();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(ministack.port).user("admin").dbname(LocalRds::DATABASE);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    answers(&client, Protocol::Simple).await
}

#[test]
fn each_statement_is_answered_as_by_ministack_or_as_recorded() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ours = runtime.block_on(ours(Protocol::Simple));
    let cases = cases();
    let as_listed = |answers: &[String]| {
        let mut known = cases.iter().map(Case::of_ministack);
        answers.iter().all(|answer| known.next() == Some(answer.as_str()))
    };
    // On a busy machine ministack has once accepted statements that it refuses.
    let mut theirs = runtime.block_on(theirs());
    for _ in 0..2 {
        if !as_listed(&theirs) {
            theirs = runtime.block_on(self::theirs());
        }
    }
    let mut wrong = Vec::new();
    for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        let Case { statement, expected, ministack, reason } = case;
        let known = case.of_ministack();
        if ours != expected {
            wrong.push(format!("{statement}: {expected} expected, {ours}"));
        }
        if theirs != known {
            wrong.push(format!("{statement}: ministack {known} expected, {theirs}"));
        }
        if ministack.is_empty() != reason.is_empty() || ministack == expected {
            wrong.push(format!("{statement}: a difference needs a reason, and only a difference"));
        }
    }
    assert!(cases.len() >= 100, "{} statements", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_prepared_statement_has_the_same_answer() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answers = runtime.block_on(ours(Protocol::Prepared));
    let wrong = cases().into_iter().zip(answers).filter(|(case, answer)| case.expected != answer);
    let wrong: Vec<String> = wrong
        .map(|(case, answer)| format!("{}: {} expected, {answer}", case.statement, case.expected))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
