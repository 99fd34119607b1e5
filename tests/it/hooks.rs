//! The functions of a program that the manager calls for its connections.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::result::Error::{NotFound, QueryBuilderError};
use diesel::sql_types::Text;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{HandleError, ManageConnection};
use diesel_rds_iam::{Builder, Error, PerThread, Pool, RdsConnectionManager, Retirement};

use crate::support::{backend, sessions, soon, start};

fn build(rds: &LocalRds, builder: Builder) -> RdsConnectionManager {
    builder.build(rds.database_url()).unwrap()
}

fn pool_of(size: u32, manager: &RdsConnectionManager) -> Pool {
    manager.build_pool(manager.pool_builder().max_size(size)).unwrap()
}

fn timeout_of(connection: &mut PgConnection) -> String {
    sql::<Text>("SELECT current_setting('statement_timeout')").get_result(connection).unwrap()
}

#[test]
fn after_connect_prepares_each_new_connection_once() {
    let rds = start(LocalRds::builder());
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let manager = build(
        &rds,
        rds.manager_builder().after_connect(move |connection| {
            counter.fetch_add(1, SeqCst);
            connection.batch_execute("SET statement_timeout = '5s'")
        }),
    );
    assert_eq!(timeout_of(&mut manager.connect().unwrap()), "5s");
    let pool = pool_of(1, &manager);
    let connections = PerThread::new(manager);
    for _ in 0..3 {
        assert_eq!(timeout_of(&mut pool.get().unwrap()), "5s");
        assert_eq!(timeout_of(&mut connections.get().unwrap()), "5s");
    }
    assert_eq!(calls.load(SeqCst), 3, "one for each connection");
}

#[test]
fn a_failed_after_connect_closes_the_connection_and_starts_a_back_off() {
    let rds = start(LocalRds::builder());
    let broken = |connection: &mut PgConnection| connection.batch_execute("SET nothing = 1");
    let manager = build(&rds, rds.manager_builder().after_connect(broken));
    let error = manager.connect().err().unwrap();
    assert!(matches!(error, Error::Hook { hook: "after_connect", .. }), "{error}");
    assert!(error.to_string().contains("\"nothing\"") && !error.is_transient(), "{error}");
    assert!(matches!(manager.connect(), Err(Error::Paused { is_transient: false, .. })));
    assert_eq!((rds.attempts().len(), sessions(&rds)), (1, 0));
    assert_eq!(manager.stats().retirements[&Retirement::Hook], 1);
}

#[test]
fn a_pool_whose_after_connect_fails_makes_few_logins_and_reports_the_cause() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().after_connect(|_| Err(NotFound)));
    let first = manager.build_pool(manager.pool_builder()).err().unwrap().to_string();
    assert!(first.starts_with("after_connect failed: "), "{first}");
    let before = rds.attempts().len();
    let timeout = Duration::from_millis(2500);
    let pool = manager.pool_builder().max_size(4).connection_timeout(timeout);
    let pool = pool.build_unchecked(manager.clone());
    let error = pool.get().err().unwrap().to_string();
    assert!(error.contains("after_connect failed: "), "{error}");
    let logins = rds.attempts().len() - before;
    assert!((1..=4).contains(&logins), "{logins} logins in 2.5 seconds");
}

#[test]
fn an_after_connect_whose_connection_is_lost_starts_no_back_off() {
    let rds = start(LocalRds::builder());
    let ended = |connection: &mut PgConnection| {
        connection.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")
    };
    let manager = build(&rds, rds.manager_builder().after_connect(ended));
    for _ in 0..2 {
        let error = manager.connect().err().unwrap();
        assert!(matches!(error, Error::Hook { .. }) && error.is_transient(), "{error}");
    }
}

/// Panics at the first call.
fn panics_once() -> impl Fn(&mut PgConnection) -> QueryResult<()> + Send + Sync + 'static {
    let calls = AtomicUsize::new(0);
    move |_| {
        assert_ne!(calls.fetch_add(1, SeqCst), 0, "the hook of this test panics once");
        Ok(())
    }
}

#[derive(Debug, Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

impl HandleError<Error> for Errors {
    fn handle_error(&self, error: Error) {
        self.0.lock().unwrap().push(error.to_string());
    }
}

#[test]
fn a_panic_in_after_connect_costs_the_pool_no_connection() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().after_connect(panics_once()));
    let errors = Errors::default();
    let builder = manager.pool_builder().max_size(2).error_handler(Box::new(errors.clone()));
    let pool = builder.build_unchecked(manager.clone());
    soon("the pool has both connections", || pool.state().connections == 2);
    let errors = errors.0.lock().unwrap().join("\n");
    let expected = "after_connect failed: it panicked: assertion `left != right` failed: the hook";
    assert!(errors.contains(expected), "{errors}");
}

#[test]
fn a_panic_in_the_other_hooks_closes_the_connection() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder();
    let manager = build(&rds, builder.before_check_out(panics_once()).after_release(panics_once()));
    let error = manager.is_valid(&mut manager.connect().unwrap()).unwrap_err();
    assert!(
        matches!(&error, Error::Hook { cause: QueryBuilderError(_), .. }),
        "before_check_out: {error}"
    );
    assert!(manager.has_broken(&mut manager_connection(&manager)), "after_release");
    assert!(!manager.has_broken(&mut manager_connection(&manager)));
    assert_eq!(manager.stats().retirements[&Retirement::Hook], 2);
}

/// Waits for the end of a back-off.
fn manager_connection(manager: &RdsConnectionManager) -> PgConnection {
    let mut connection = None;
    soon("the back-off ends", || {
        connection = manager.connect().ok();
        connection.is_some()
    });
    connection.unwrap()
}

#[test]
fn before_check_out_retires_a_connection_and_the_next_one_is_tried() {
    let rds = start(LocalRds::builder());
    let unwanted = Arc::new(AtomicI32::new(0));
    let refused = unwanted.clone();
    let manager = build(
        &rds,
        rds.manager_builder().before_check_out(move |connection| {
            if backend(connection) == refused.load(SeqCst) { Err(NotFound) } else { Ok(()) }
        }),
    );
    let pool = pool_of(2, &manager);
    let connections = PerThread::new(manager.clone());
    let first = backend(&mut pool.get().unwrap());
    unwanted.store(first, SeqCst);
    let (mut one, mut other) = (pool.get().unwrap(), pool.get().unwrap());
    assert!(backend(&mut one) != first && backend(&mut other) != first);

    let first = backend(&mut connections.get().unwrap());
    unwanted.store(first, SeqCst);
    assert_ne!(backend(&mut connections.get().unwrap()), first);
    assert_eq!(manager.stats().retirements[&Retirement::Hook], 2);
}

#[test]
fn a_before_check_out_that_always_fails_makes_few_logins() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().before_check_out(|_| Err(NotFound)));
    let builder = manager.pool_builder().max_size(1);
    let pool = builder.connection_timeout(Duration::from_millis(1500)).build_unchecked(manager);
    let error = pool.get().err().unwrap().to_string();
    assert!(error.contains("before_check_out failed: "), "{error}");
    let logins = rds.attempts().len();
    assert!((1..=3).contains(&logins), "{logins} logins in 1.5 seconds");
}

#[test]
fn a_failed_after_release_closes_the_connection() {
    let rds = start(LocalRds::builder());
    let releases = Arc::new(AtomicUsize::new(0));
    let counter = releases.clone();
    let manager = build(
        &rds,
        rds.manager_builder().after_release(move |_| {
            if counter.fetch_add(1, SeqCst).is_multiple_of(2) { Ok(()) } else { Err(NotFound) }
        }),
    );
    let pool = pool_of(1, &manager);
    let connections = PerThread::new(manager);
    let backends = [(); 3].map(|()| backend(&mut pool.get().unwrap()));
    assert!(backends[0] == backends[1] && backends[1] != backends[2], "{backends:?}");
    releases.store(0, SeqCst);
    let backends = [(); 3].map(|()| backend(&mut connections.get().unwrap()));
    assert!(backends[0] == backends[1] && backends[1] != backends[2], "{backends:?}");
}

#[test]
fn a_hook_that_leaves_a_transaction_open_does_not_reach_the_next_user() {
    let rds = start(LocalRds::builder());
    let manager = build(
        &rds,
        rds.manager_builder().after_release(|connection| connection.batch_execute("BEGIN")),
    );
    let pool = pool_of(1, &manager);
    let first = backend(&mut pool.get().unwrap());
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn each_hook_is_called_once_for_each_use() {
    let rds = start(LocalRds::builder());
    let calls = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (before, after) = (calls.clone(), calls.clone());
    let builder = rds.manager_builder().before_check_out(move |_| {
        before[0].fetch_add(1, SeqCst);
        Ok(())
    });
    let manager = build(
        &rds,
        builder.after_release(move |_| {
            after[1].fetch_add(1, SeqCst);
            Ok(())
        }),
    );
    let counts = || [calls[0].load(SeqCst), calls[1].load(SeqCst)];
    let connections = PerThread::new(manager.clone());
    for unit in 1..=3 {
        let mut connection = connections.get().unwrap();
        assert_eq!(counts(), [unit, unit - 1]);
        // After an error the end of the unit checks the connection too.
        connection.batch_execute("SELECT 1/0").unwrap_err();
        drop(connection);
        assert_eq!(counts(), [unit, unit]);
    }
    let pool = pool_of(1, &manager);
    assert_eq!(counts(), [3, 3]);
    drop(pool.get().unwrap());
    assert_eq!(counts(), [4, 4]);
}

#[test]
fn an_instrumentation_of_the_builder_gets_the_queries_and_the_manager_too() {
    let rds = start(LocalRds::builder());
    let queries = Arc::new(Mutex::new(Vec::new()));
    let seen = queries.clone();
    let manager = build(
        &rds,
        rds.manager_builder().validate_after(Duration::from_secs(3600)).instrumentation(
            move || {
                let seen = seen.clone();
                move |event: InstrumentationEvent<'_>| {
                    if let InstrumentationEvent::StartQuery { query, .. } = event {
                        seen.lock().unwrap().push(query.to_string());
                    }
                }
            },
        ),
    );
    let pool = pool_of(1, &manager);
    let mut connection = pool.get().unwrap();
    connection.batch_execute("BEGIN").unwrap();
    drop(connection);
    assert_eq!(*queries.lock().unwrap(), ["BEGIN"]);
    drop(pool.get().unwrap());
    assert_eq!(manager.stats().retirements[&Retirement::Transaction], 1);
}

#[test]
fn an_instrumentation_that_panics_when_it_is_made_is_an_error() {
    let rds = start(LocalRds::builder());
    fn panics() -> fn(InstrumentationEvent<'_>) {
        panic!("no instrumentation")
    }
    let manager = build(&rds, rds.manager_builder().instrumentation(panics));
    let error = manager.connect().err().unwrap().to_string();
    assert!(error.starts_with("instrumentation failed: it panicked: no instr"), "{error}");
}

#[test]
fn set_instrumentation_replaces_both_and_the_hooks_are_still_called() {
    let rds = start(LocalRds::builder());
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    fn replaced(_: InstrumentationEvent<'_>) {
        panic!("the program replaced it");
    }
    let manager = build(
        &rds,
        rds.manager_builder()
            .instrumentation(|| replaced as fn(InstrumentationEvent<'_>))
            .after_release(move |_| {
                counter.fetch_add(1, SeqCst);
                Ok(())
            }),
    );
    let mut connection = manager.connect().unwrap();
    connection.set_instrumentation(|_: InstrumentationEvent<'_>| {});
    connection.batch_execute("SELECT 1").unwrap();
    manager.is_valid(&mut connection).unwrap();
    assert!(!manager.has_broken(&mut connection));
    assert_eq!(calls.load(SeqCst), 1);
}
