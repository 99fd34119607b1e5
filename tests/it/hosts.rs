//! Several hosts in one connection string.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Builder, Error};
use tempfile::NamedTempFile;

use crate::support::{in_a_child, last_verdict, start};

/// Two servers, and a CA bundle for both.
struct Two {
    a: LocalRds,
    b: LocalRds,
    roots: NamedTempFile,
}

impl Two {
    fn start() -> Two {
        let (a, b) = (start(LocalRds::builder()), start(LocalRds::builder()));
        let roots = NamedTempFile::new().unwrap();
        let both = [&a, &b].map(|rds| std::fs::read(rds.ca_file()).unwrap()).concat();
        std::fs::write(roots.path(), both).unwrap();
        b.add_key_pair(a.credentials().clone());
        Two { a, b, roots }
    }

    fn builder(&self) -> Builder {
        self.a.manager_builder()
    }

    fn conninfo(&self, more: &str) -> String {
        let (a, b, roots) = (self.a.port(), self.b.port(), self.roots.path().display());
        format!(
            "host=localhost,localhost port={a},{b} user=app dbname=app region_name=us-east-1 \
             sslrootcert='{roots}' {more}"
        )
    }

    /// Returns the server that a connection with these settings goes to.
    fn goes_to(&self, more: &str) -> Result<&'static str, Error> {
        let mut connection = self.builder().build(self.conninfo(more)).unwrap().connect()?;
        Ok(if port(&mut connection) == i32::from(self.a.port()) { "a" } else { "b" })
    }
}

fn port(connection: &mut PgConnection) -> i32 {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("inet_server_port()"))
        .get_result(connection)
        .unwrap()
}

#[test]
fn the_first_reachable_host_gets_a_token_signed_for_it() {
    let two = Two::start();
    assert_eq!(two.goes_to("").unwrap(), "a");
    two.a.stop();
    assert_eq!(two.goes_to("").unwrap(), "b");
    assert_eq!((two.a.attempts().len(), two.b.attempts().len()), (1, 1));
    assert_eq!(last_verdict(&two.b), Ok(()));
}

#[test]
fn after_a_refused_token_the_next_host_is_tried() {
    // libpq would stop there, because it has one password for all hosts.
    let two = Two::start();
    two.a.revoke_key_pair(two.a.credentials().access_key_id());
    assert_eq!(two.goes_to("").unwrap(), "b");
    assert_eq!(last_verdict(&two.a), Err(Refusal::UnknownKeyPair));
}

#[test]
fn the_error_names_each_host_and_its_cause() {
    let two = Two::start();
    two.a.stop();
    two.b.refuse_next(usize::MAX);
    let error = two.goes_to("connect_timeout=2").unwrap_err();
    let Error::Hosts { failures, .. } = &error else { panic!("{error}") };
    let expected = [(&two.a, "Connection refused"), (&two.b, "authentication failed for user")];
    for (failure, (rds, cause)) in failures.iter().zip(expected) {
        let (own, all) = (failure.to_string(), error.to_string());
        assert!(
            own.contains(&format!("app@localhost:{}", rds.port())) && own.contains(cause),
            "{own}"
        );
        assert!(all.contains(&own), "{all}");
    }
}

#[test]
fn target_session_attrs_chooses_as_libpq_does() {
    let two = Two::start();
    two.a.demote().unwrap();
    let cases = [
        ("any", "a"),
        ("read-write", "b"),
        ("read-only", "a"),
        ("primary", "b"),
        ("standby", "a"),
        ("prefer-standby", "a"),
    ];
    for (wanted, expected) in cases {
        assert_eq!(
            two.goes_to(&format!("target_session_attrs={wanted}")).unwrap(),
            expected,
            "{wanted}"
        );
    }
    two.a.promote().unwrap();
    two.b.demote().unwrap();
    let cases = [
        ("read-write", "a"),
        ("read-only", "b"),
        ("primary", "a"),
        ("standby", "b"),
        ("prefer-standby", "b"),
    ];
    for (wanted, expected) in cases {
        assert_eq!(
            two.goes_to(&format!("target_session_attrs={wanted}")).unwrap(),
            expected,
            "{wanted}"
        );
    }
    two.b.promote().unwrap();
    assert_eq!(
        two.goes_to("target_session_attrs=prefer-standby").unwrap(),
        "a",
        "there is no standby"
    );
    let error =
        two.goes_to("target_session_attrs=standby connect_timeout=2").unwrap_err().to_string();
    assert!(
        error.contains("not in hot standby mode") && error.contains("check target_session_attrs"),
        "{error}"
    );
}

#[test]
fn a_pool_moves_to_the_new_writer_after_a_failover() {
    let two = Two::start();
    two.b.demote().unwrap();
    let conninfo = two.conninfo("target_session_attrs=read-write");
    let manager = two.builder().validate_after(Duration::ZERO).build(conninfo).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    assert_eq!(port(&mut pool.get().unwrap()), i32::from(two.a.port()));
    two.b.promote().unwrap();
    two.a.demote().unwrap();
    assert_eq!(port(&mut pool.get().unwrap()), i32::from(two.b.port()));
}

/// Waits for a connection while no writer is reachable. Returns how long after `recover` it came.
fn recovery_time(two: &Two, conninfo: &str, recover: impl FnOnce()) -> Duration {
    let manager = two.builder().build(conninfo).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    two.a.stop();
    let waiting = std::thread::spawn(move || pool.get().map(|_| Instant::now()));
    // Without our retries, r2d2 would retry after 0.2, 0.6, 1.4, 3, 6.2 and 13 seconds.
    std::thread::sleep(Duration::from_millis(6500));
    recover();
    let recovered = Instant::now();
    waiting.join().unwrap().unwrap().saturating_duration_since(recovered)
}

#[test]
fn a_pool_recovers_with_its_writer_while_a_standby_is_reachable() {
    // Regression: the answer of the standby ended the retries of connect().
    let two = Two::start();
    two.b.demote().unwrap();
    let conninfo = two.conninfo("target_session_attrs=read-write");
    let recovery = recovery_time(&two, &conninfo, || two.a.restart().unwrap());
    assert!(recovery < Duration::from_secs(3), "{recovery:?}");
    assert!(two.b.attempts().len() < 30, "{} logins at the standby", two.b.attempts().len());
}

#[test]
fn a_pool_recovers_with_a_promoted_standby() {
    let two = Two::start();
    two.b.demote().unwrap();
    let conninfo = two.conninfo("target_session_attrs=read-write");
    let recovery = recovery_time(&two, &conninfo, || two.b.promote().unwrap());
    assert!(recovery < Duration::from_secs(3), "{recovery:?}");
}

#[test]
fn prefer_standby_tries_a_host_that_refused_its_token_only_once() {
    let two = Two::start();
    for rds in [&two.a, &two.b] {
        rds.refuse_next(usize::MAX);
    }
    two.goes_to("target_session_attrs=prefer-standby").unwrap_err();
    assert_eq!((two.a.attempts().len(), two.b.attempts().len()), (1, 1));
}

#[test]
fn an_empty_hostaddr_and_one_with_gaps_are_read_as_by_libpq() {
    // Regression: libpq used the variable again at each connect.
    let two = Two::start();
    let keys = two.a.credentials();
    for (hostaddr, more) in [("127.0.0.9", "hostaddr=''"), (",127.0.0.1", "")] {
        let conninfo = two.conninfo(more);
        let environment = [
            ("DATABASE_URL", conninfo.as_str()),
            ("PGHOSTADDR", hostaddr),
            ("AWS_ACCESS_KEY_ID", keys.access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", keys.secret_access_key()),
        ];
        in_a_child("hosts::connects_from_the_environment", &environment);
    }
    assert_eq!(two.a.attempts().len(), 2);
}

#[test]
#[ignore = "runs in a child process with PGHOSTADDR"]
fn connects_from_the_environment() {
    diesel_rds_iam::RdsConnectionManager::from_env().unwrap().connect().unwrap();
}

#[test]
fn load_balance_hosts_tries_the_hosts_in_random_order() {
    let two = Two::start();
    let seen: std::collections::BTreeSet<_> =
        (0..40).map(|_| two.goes_to("load_balance_hosts=random").unwrap()).collect();
    assert_eq!(seen.len(), 2);
    assert_eq!(two.goes_to("load_balance_hosts=disable").unwrap(), "a");
}

#[test]
fn load_balance_hosts_is_read_from_the_environment() {
    let shown = in_a_child("hosts::reads_the_variable", &[("PGLOADBALANCEHOSTS", "perhaps")]);
    assert!(shown.contains("load_balance_hosts must be"), "{shown}");
}

#[test]
#[ignore = "runs in a child process with PGLOADBALANCEHOSTS"]
fn reads_the_variable() {
    let error =
        diesel_rds_iam::RdsConnectionManager::new("postgres://app@a.example.com/app").unwrap_err();
    println!("{error}");
}

#[test]
fn each_host_has_its_own_iam_host() {
    let names = ["a.abc.us-east-1.rds.amazonaws.com", "b.abc.eu-west-1.rds.amazonaws.com"];
    let conninfo =
        format!("host=localhost,localhost port=5001,5002 user=app iam_host={}", names.join(","));
    let manager =
        diesel_rds_iam::RdsConnectionManager::builder().iam_port(5432).build(&conninfo).unwrap();
    let shown: Vec<String> =
        manager.endpoints().map(|it| format!("{it} in {}", it.region())).collect();
    let expected = ["us-east-1", "eu-west-1"]
        .iter()
        .zip(names)
        .map(|(region, name)| format!("{name}:5432 in {region}"));
    assert_eq!(shown, expected.collect::<Vec<_>>());
}
