//! `PerThread` on real connections.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{PerThread, RdsConnectionManager};

#[cfg(target_os = "linux")]
use crate::support::in_a_child_under_valgrind;
use crate::support::{self, manager, sessions, start};

fn backend(connections: &PerThread) -> i32 {
    support::backend(&mut connections.get().unwrap())
}

fn wait_for_sessions(rds: &LocalRds, expected: i64) {
    let started = std::time::Instant::now();
    while sessions(rds) != expected {
        assert!(started.elapsed().as_secs() < 10, "{} sessions, not {expected}", sessions(rds));
    }
}

#[test]
fn threads_keep_their_connections_and_close_them_when_they_end() {
    let rds = start(LocalRds::builder());
    let connections = PerThread::new(manager(&rds));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let first = backend(&connections);
                (0..20).for_each(|_| assert_eq!(backend(&connections), first));
            });
        }
    });
    assert_eq!(rds.attempts().len(), 8);
    wait_for_sessions(&rds, 0);
}

#[test]
fn after_an_error_a_connection_is_kept_only_if_it_is_usable() {
    let rds = start(LocalRds::builder());
    let connections = PerThread::new(manager(&rds));
    let first = backend(&connections);
    connections.get().unwrap().batch_execute("SELECT nonsense").unwrap_err();
    assert_eq!(backend(&connections), first, "a usable connection was replaced");
    let mut connection = connections.get().unwrap();
    connection.batch_execute("SELECT nonsense").unwrap_err();
    rds.superuser()
        .unwrap()
        .batch_execute(&format!("SELECT pg_terminate_backend({first}, 5000)"))
        .unwrap();
    drop(connection);
    assert_ne!(backend(&connections), first);
}

#[test]
fn test_on_check_out_replaces_a_connection_that_the_server_closed() {
    let rds = start(LocalRds::builder());
    let connections = PerThread::new(manager(&rds)).test_on_check_out(true);
    let first = backend(&connections);
    rds.superuser()
        .unwrap()
        .batch_execute(&format!("SELECT pg_terminate_backend({first}, 5000)"))
        .unwrap();
    assert_ne!(backend(&connections), first);
}

#[test]
fn a_closed_connection_with_another_instrumentation_is_replaced() {
    let rds = start(LocalRds::builder());
    let connections = PerThread::new(manager(&rds));
    let first = backend(&connections);
    let mut connection = connections.get().unwrap();
    connection.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
    rds.superuser()
        .unwrap()
        .batch_execute(&format!("SELECT pg_terminate_backend({first}, 5000)"))
        .unwrap();
    connection.batch_execute("SELECT 1").unwrap_err();
    drop(connection);
    assert_ne!(backend(&connections), first);
}

#[test]
fn max_lifetime_applies_to_a_connection_with_another_instrumentation() {
    let rds = start(LocalRds::builder());
    let lifetime = std::time::Duration::from_millis(100);
    let manager =
        rds.manager_builder().max_lifetime(Some(lifetime)).build(rds.database_url()).unwrap();
    let connections = PerThread::new(manager);
    let mut connection = connections.get().unwrap();
    connection.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
    drop(connection);
    let started = std::time::Instant::now();
    while rds.attempts().len() < 2 {
        assert!(started.elapsed().as_secs() < 10, "waited 10 s for the retirement");
        backend(&connections);
    }
}

#[test]
fn a_transaction_left_open_closes_the_connection() {
    let rds = start(LocalRds::builder());
    let connections = PerThread::new(manager(&rds));
    let first = backend(&connections);
    let mut connection = connections.get().unwrap();
    diesel::connection::AnsiTransactionManager::begin_transaction_sql(&mut *connection, "BEGIN")
        .unwrap();
    drop(connection);
    assert_ne!(backend(&connections), first);
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_ends_cleanly_with_guards_and_connections_alive() {
    let rds = start(LocalRds::builder());
    // valgrind is slow.
    let url = format!("{}&connect_timeout=60", rds.database_url());
    let key = rds.credentials();
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("AWS_ACCESS_KEY_ID", key.access_key_id()),
        ("AWS_SECRET_ACCESS_KEY", key.secret_access_key()),
    ];
    in_a_child_under_valgrind("per_thread::ends_with_guards_alive", &environment);
    wait_for_sessions(&rds, 0);
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "runs in a child process that ends with connections in use"]
fn ends_with_guards_alive() {
    let connections: &'static _ =
        Box::leak(Box::new(PerThread::new(RdsConnectionManager::from_env().unwrap())));
    let (sender, receiver) = std::sync::mpsc::channel();
    for in_use in [true, false] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let guard = connections.get().unwrap();
            let _guard = in_use.then_some(guard);
            sender.send(()).unwrap();
            std::thread::park();
        });
    }
    // A thread that panics drops its sender, so that this does not wait for ever.
    drop(sender);
    assert_eq!(receiver.iter().take(2).count(), 2, "a thread did not get its connection");
    let guard = connections.get().unwrap();
    std::mem::forget(guard);
}
