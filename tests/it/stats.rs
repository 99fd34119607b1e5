//! The counters of a manager, compared with the events.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Answer;
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{
    Builder, Credentials, Histogram, LoginFailure, PerThread, RdsConnectionManager, Retirement,
    Stats,
};

use crate::support::{end_sessions, in_a_child, key_pair, manager, minutes, soon, start};

/// Returns the counters of failed logins that are not zero.
fn failures(stats: &Stats) -> Vec<(LoginFailure, u64)> {
    stats
        .failed_logins
        .iter()
        .map(|(cause, count)| (*cause, *count))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn retirements(stats: &Stats) -> Vec<(Retirement, u64)> {
    stats
        .retirements
        .iter()
        .map(|(reason, count)| (*reason, *count))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[test]
fn logins_are_counted_as_by_the_server() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(3)).unwrap();
    manager.clone().connect().unwrap();
    drop(pool.get().unwrap());
    let stats = manager.stats();
    assert_eq!(stats.login_attempts, rds.attempts().len() as u64);
    assert_eq!((stats.login_attempts, failures(&stats)), (4, vec![]));
    assert_eq!(retirements(&stats), [(Retirement::Released, 1)]);
}

#[test]
fn each_failed_login_is_counted_by_its_cause() {
    let rds = start(LocalRds::builder());
    let url = |suffix: &str| rds.database_url() + suffix;
    let no_credentials =
        Source { key_pair: key_pair(None), fails: Arc::new(AtomicBool::new(true)) };
    let other_roots = format!("&sslrootcert={}/tests/data/roots.pem", env!("CARGO_MANIFEST_DIR"));
    rds.superuser()
        .unwrap()
        .batch_execute("CREATE ROLE full LOGIN CONNECTION LIMIT 0; GRANT rds_iam TO full")
        .unwrap();
    let plain = || rds.manager_builder();
    let cases: [(LoginFailure, Builder, String); 7] = [
        (LoginFailure::Credentials, plain().credentials_provider(no_credentials), url("")),
        (LoginFailure::Unreachable, plain(), url("&connect_timeout=2&port=1&iam_port=1")),
        (LoginFailure::Certificate, plain(), url(&other_roots)),
        (LoginFailure::RefusedUser, plain(), rds.database_url_for(LocalRds::USER_WITHOUT_GRANT)),
        (LoginFailure::Limit, plain(), rds.database_url_for("full")),
        (LoginFailure::Role, plain(), url("&connect_timeout=2&target_session_attrs=standby")),
        (LoginFailure::Other, plain(), url("&target_session_attrs=whatever")),
    ];
    for (cause, builder, url) in cases {
        let manager = builder.build(url).unwrap();
        let error = manager.connect().map(drop).unwrap_err();
        let stats = manager.stats();
        assert_eq!(failures(&stats), [(cause, stats.login_attempts)], "{error}");
    }
}

#[test]
fn a_refused_token_is_counted_once_and_a_pause_is_not_counted() {
    let rds = start(LocalRds::builder());
    let refused = manager(&rds);
    rds.refuse_next(1);
    refused.connect().map(drop).unwrap_err();
    assert_eq!(failures(&refused.stats()), [(LoginFailure::RefusedToken, 1)]);
    refused.connect().unwrap();
    assert_eq!((refused.stats().login_attempts, failures(&refused.stats()).len()), (2, 1));

    let without_grant =
        rds.manager_builder().build(rds.database_url_for(LocalRds::USER_WITHOUT_GRANT)).unwrap();
    (0..3).for_each(|_| drop(without_grant.connect().map(drop).unwrap_err()));
    assert_eq!(
        (without_grant.stats().login_attempts, failures(&without_grant.stats())),
        (1, vec![(LoginFailure::RefusedUser, 1)])
    );
}

/// Provides a key pair, or fails if `fails` is set.
#[derive(Debug)]
struct Source {
    key_pair: Credentials,
    fails: Arc<AtomicBool>,
}

impl ProvideCredentials for Source {
    fn provide_credentials<'a>(&'a self) -> Answer<'a>
    where
        Self: 'a,
    {
        Answer::ready(if self.fails.load(Ordering::Relaxed) {
            Err(CredentialsError::provider_error("the source fails"))
        } else {
            Ok(self.key_pair.clone())
        })
    }
}

#[test]
fn refreshes_and_failed_refreshes_are_counted() {
    let rds = start(LocalRds::builder());
    let (id, secret) = (rds.credentials().access_key_id(), rds.credentials().secret_access_key());
    let key_pair =
        Credentials::new(id, secret, None, Some(SystemTime::now() + minutes(20)), "test");
    rds.add_key_pair(key_pair.clone());
    let fails = Arc::new(AtomicBool::new(false));
    let source = Source { key_pair, fails: fails.clone() };
    let manager =
        rds.manager_builder().credentials_provider(source).build(rds.database_url()).unwrap();
    let refreshes = || (manager.stats().refreshes, manager.stats().failed_refreshes);
    assert_eq!(refreshes(), (0, 0));
    manager.connect().unwrap();
    manager.connect().unwrap();
    assert_eq!(refreshes(), (1, 0));

    fails.store(true, Ordering::Relaxed);
    rds.clock().advance(minutes(16));
    manager.connect().unwrap();
    soon("one refresh succeeds and one fails", || refreshes() == (2, 1));
}

/// Uses a connection of a pool in a way that ends it. Returns how the end was counted.
fn end_of(
    builder: Builder,
    url: &str,
    use_up: impl FnOnce(&mut PgConnection),
) -> Vec<(Retirement, u64)> {
    let manager = builder.build(url).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let _ = catch_unwind(AssertUnwindSafe(|| use_up(&mut pool.get().unwrap())));
    drop(pool.get());
    retirements(&manager.stats())
}

#[test]
fn each_retirement_is_counted_by_its_reason() {
    let rds = start(LocalRds::builder());
    let url = &rds.database_url();
    let plain = || rds.manager_builder();
    let life = Duration::from_secs(1);
    let short = plain().max_lifetime(Some(life));
    assert_eq!(end_of(short, url, |_| std::thread::sleep(life)), [(Retirement::Age, 1)]);
    let close = |connection: &mut PgConnection| {
        connection.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").unwrap_err();
    };
    assert_eq!(end_of(plain(), url, close), [(Retirement::Closed, 1)]);
    let begin = |connection: &mut PgConnection| {
        AnsiTransactionManager::begin_transaction(connection).unwrap()
    };
    assert_eq!(end_of(plain(), url, begin), [(Retirement::Transaction, 1)]);
    let panic = |_: &mut PgConnection| panic!("in a handler");
    assert_eq!(end_of(plain(), url, panic), [(Retirement::Panic, 1)]);
    let abort = |connection: &mut PgConnection| {
        drop(connection.batch_execute("BEGIN; SELECT 1/0").unwrap_err())
    };
    assert_eq!(end_of(plain(), url, abort), [(Retirement::Transaction, 1)]);
    let abort_a_test_transaction = |connection: &mut PgConnection| {
        connection.begin_test_transaction().unwrap();
        drop(connection.batch_execute("SELECT 1/0").unwrap_err())
    };
    assert_eq!(end_of(plain(), url, abort_a_test_transaction), [(Retirement::FailedCheck, 1)]);
    let read_only = |connection: &mut PgConnection| {
        connection.batch_execute("SET default_transaction_read_only = on").unwrap();
        connection.batch_execute("CREATE TABLE t ()").unwrap_err();
    };
    assert_eq!(end_of(plain(), url, read_only), [(Retirement::Demoted, 1)]);
    assert_eq!(end_of(plain(), url, |_| {}), []);
}

#[test]
fn a_connection_that_the_server_closed_while_idle_is_counted_as_closed() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let mut connection = manager.connect().unwrap();
    end_sessions(&rds);
    soon("the connection is found closed", || manager.is_valid(&mut connection).is_err());
    drop(connection);
    assert_eq!(retirements(&manager.stats()), [(Retirement::Closed, 1)]);
}

fn checkouts(manager: &RdsConnectionManager) -> (u64, u64) {
    let stats = manager.stats();
    (stats.checkouts_pinged, stats.checkouts_peeked)
}

#[test]
fn checkouts_are_counted_as_pinged_or_peeked() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().validate_after(minutes(1)).build(rds.database_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let (pinged, peeked) = checkouts(&manager);
    drop(pool.get().unwrap());
    assert_eq!(checkouts(&manager), (pinged, peeked + 1));
    pool.get().unwrap().batch_execute("SELECT 1/0").unwrap_err();
    drop(pool.get().unwrap());
    assert_eq!(checkouts(&manager), (pinged + 1, peeked + 2));
}

#[test]
fn the_end_of_a_unit_of_work_is_counted_as_a_checkin() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    drop(PerThread::new(manager.clone()).max_lifetime(Some(Duration::ZERO)).get().unwrap());
    let connections = PerThread::new(manager.clone());
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _connection = connections.get().unwrap();
        panic!("in a job");
    }));
    assert_eq!(retirements(&manager.stats()), [(Retirement::Age, 1), (Retirement::Panic, 1)]);
}

#[test]
fn a_thread_that_ends_releases_its_connection() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let connections = PerThread::new(manager.clone());
    std::thread::scope(|scope| scope.spawn(|| drop(connections.get().unwrap())).join().unwrap());
    assert_eq!(retirements(&manager.stats()), [(Retirement::Released, 1)]);
    assert_eq!(checkouts(&manager), (0, 0));
}

#[test]
fn the_log_of_a_pool_uses_its_levels() {
    let shown = in_a_child("stats::logs_checkouts", &[("RUST_LOG", "diesel_rds_iam=trace")]);
    let lines = [
        ("DEBUG", "added to the pool"),
        ("TRACE", "checked out (waited"),
        ("TRACE", "checked in (used for"),
        ("DEBUG", "left the pool ("),
        ("WARN", "no connection within"),
        ("WARN", "a connection was lost"),
        ("DEBUG", "the connection is not usable"),
    ];
    for (level, text) in lines {
        assert!(
            shown.lines().any(|line| line.contains(level) && line.contains(text)),
            "{level} {text}: {shown}"
        );
    }
}

#[test]
#[ignore = "runs in a child process, whose log the test above reads"]
fn logs_checkouts() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let held = pool.get().unwrap();
    pool.get_timeout(Duration::from_millis(1)).map(drop).unwrap_err();
    drop(held);
    rds.restart().unwrap();
    drop(pool.get().unwrap());
}

#[test]
fn waits_and_logins_are_counted_by_their_duration() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let before = manager.stats().checkout_wait.count;
    assert_eq!((pool.waiting(), pool.longest_checkout()), (0, None));
    let held = pool.get().unwrap();
    let wait = Duration::from_millis(30);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(pool.get().unwrap()));
        soon("a thread waits", || pool.waiting() == 1);
        pool.get_timeout(wait).map(drop).unwrap_err();
        assert!(pool.longest_checkout().unwrap() >= wait);
        drop(held);
        waiting.join().unwrap();
    });
    assert_eq!((pool.waiting(), pool.longest_checkout()), (0, None));
    let Stats { checkout_wait, login_duration, last_outage, .. } = manager.stats();
    let over_25_ms = |it: &Histogram| it.count - it.buckets[4].1;
    assert_eq!(checkout_wait.buckets[4].0, Duration::from_millis(25));
    assert_eq!((checkout_wait.count - before, over_25_ms(&checkout_wait)), (3, 2));
    assert!(checkout_wait.sum >= 2 * wait, "{checkout_wait:?}");
    assert_eq!((login_duration.count, last_outage), (1, None));
    assert!(login_duration.sum > Duration::from_millis(1), "{login_duration:?}");
}

#[test]
fn an_outage_lasts_from_the_first_failed_login_to_the_next_success() {
    let rds = start(LocalRds::builder());
    let manager = rds.manager_builder().build(rds.database_url() + "&connect_timeout=1").unwrap();
    manager.connect().unwrap();
    rds.stop();
    let stopped = Instant::now();
    manager.connect().map(drop).unwrap_err();
    let failed = Instant::now();
    assert_eq!(manager.stats().last_outage, None, "it is not over");
    rds.restart().unwrap();
    let least = failed.elapsed();
    manager.connect().unwrap();
    let outage = manager.stats().last_outage.unwrap();
    assert!((least..stopped.elapsed()).contains(&outage), "{outage:?}");
    assert_eq!(manager.stats().login_duration.count, 2, "failed logins are not counted");
}

#[test]
fn slow_checkouts_and_connections_that_stay_in_use_are_warnings_once() {
    let shown = in_a_child("stats::holds_a_connection", &[("RUST_LOG", "diesel_rds_iam=warn")]);
    let warnings = shown.lines().filter(|line| line.contains("WARN")).collect::<Vec<_>>();
    let expected = [
        "checkout was slow (waited 2.",
        "no connection within 2.1s",
        "is still in use (for 2.",
        "is checked in (used for 2.",
    ];
    for text in expected {
        assert_eq!(warnings.iter().filter(|it| it.contains(text)).count(), 1, "{text}: {shown}");
    }
    let place = |it: &&&str| it.contains("the connection checked out at tests/it/stats.rs:");
    assert_eq!((warnings.len(), warnings.iter().filter(place).count()), (4, 2), "{shown}");
}

#[test]
#[ignore = "runs in a child process, whose log the test above reads"]
fn holds_a_connection() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().leak_detection_threshold(Duration::from_secs(1));
    let manager = builder.build(rds.database_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let held = pool.get().unwrap();
    std::thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(|| drop(pool.get().unwrap()))));
        soon("2 threads wait", || pool.waiting() == 2);
        pool.get_timeout(Duration::from_millis(2100)).map(drop).unwrap_err();
        assert!(pool.longest_checkout().is_some());
        drop(held);
    });
    pool.get_timeout(Duration::ZERO).map(drop).unwrap();
}
