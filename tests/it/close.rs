//! `Pool::close`.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Error, Pool};

use crate::local_rds::postmaster;
use crate::support::{backend, current_user, manager, send, sessions, soon, start};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

fn pool(rds: &LocalRds, max_size: u32) -> Pool {
    let manager = manager(rds);
    manager.build_pool(manager.pool_builder().max_size(max_size).connection_timeout(LONG)).unwrap()
}

fn is_closed<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::PoolClosed))
}

#[test]
fn close_waits_for_connections_in_use_and_fails_those_who_wait() {
    let rds = start(LocalRds::builder());
    let pool = pool(&rds, 2);
    let mut held = [pool.get().unwrap(), pool.get().unwrap()];
    thread::scope(|scope| {
        let started = Instant::now();
        let waiting = [(); 3].map(|()| scope.spawn(|| pool.get()));
        soon("3 threads wait", || pool.waiting() == 3);
        let close = scope.spawn(|| pool.close(LONG));
        for waiting in waiting {
            assert!(is_closed(&waiting.join().unwrap()));
        }
        assert!(is_closed(&pool.get()) && pool.try_get().is_none());
        assert!(started.elapsed() < LONG / 2, "they did not wait for connection_timeout");
        for connection in &mut held {
            assert_eq!(current_user(connection), LocalRds::USER);
        }
        assert!(!close.is_finished(), "2 connections are in use");
        let [first, second] = held;
        drop(first);
        soon("1 connection is open", || pool.state().connections == 1);
        assert!(!close.is_finished(), "1 connection is in use");
        drop(second);
        assert_eq!(close.join().unwrap(), 0);
    });
    assert_eq!((pool.state().connections, pool.waiting(), pool.longest_checkout()), (0, 0, None));
    soon("the server has no sessions", || sessions(&rds) == 0);
    assert_eq!(pool.close(Duration::ZERO), 0);
}

#[test]
fn close_returns_how_many_connections_are_in_use_after_the_timeout() {
    let rds = start(LocalRds::builder());
    let pool = pool(&rds, 3);
    let mut held = pool.get().unwrap();
    // Neither of these is counted as a checkout. r2d2 knows of them.
    let not_by_us = pool.as_ref().get().unwrap();
    let mut replaced = pool.get().unwrap();
    replaced.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
    assert_eq!(pool.close(Duration::from_millis(20)), 3);
    assert_eq!(current_user(&mut held), LocalRds::USER);
    drop(replaced);
    assert_eq!(pool.close(Duration::ZERO), 2);
    drop(not_by_us);
    drop(held);
    assert_eq!(pool.close(Duration::ZERO), 0);
    soon("the server has no sessions", || sessions(&rds) == 0);
}

#[test]
fn close_under_full_load_loses_no_operation() {
    let rds = start(LocalRds::builder());
    rds.superuser()
        .unwrap()
        .batch_execute("CREATE TABLE done (); GRANT ALL ON done TO app")
        .unwrap();
    let pool = pool(&rds, 4);
    let done = AtomicU64::new(0);
    let work = || loop {
        let outcome = pool.get().and_then(|mut connection| {
            connection.batch_execute("BEGIN; INSERT INTO done DEFAULT VALUES; COMMIT")?;
            Ok(())
        });
        match outcome {
            Ok(()) => done.fetch_add(1, SeqCst),
            Err(Error::PoolClosed) => break,
            Err(error) => panic!("{error}"),
        };
    };
    thread::scope(|scope| {
        (0..16).for_each(|_| drop(scope.spawn(work)));
        soon("100 operations succeed", || done.load(SeqCst) > 100);
        assert_eq!(pool.close(LONG), 0);
    });
    let query = "SELECT count(*) FROM done";
    let stored: i64 = sql::<BigInt>(query).get_result(&mut rds.superuser().unwrap()).unwrap();
    assert_eq!(stored, i64::try_from(done.load(SeqCst)).unwrap());
    soon("the server has no sessions", || sessions(&rds) == 0);
}

#[test]
fn close_waits_for_no_login_and_a_thread_that_waits_for_one_fails_at_its_end() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(3).min_idle(Some(0)).connection_timeout(LONG);
    let pool = manager.build_pool(builder).unwrap();
    let held = pool.get().unwrap();
    let postmaster = postmaster(&rds);
    send("STOP", &postmaster);
    thread::scope(|scope| {
        let started = Instant::now();
        let waiting = [(); 2].map(|()| scope.spawn(|| pool.get()));
        soon("2 threads wait for a login", || pool.waiting() == 2);
        let close = scope.spawn(|| pool.close(LONG));
        soon("the pool is closed", || is_closed(&pool.get_timeout(Duration::ZERO)));
        drop(held);
        // The connection that was checked in wakes both of them.
        for waiting in waiting {
            assert!(is_closed(&waiting.join().unwrap()));
        }
        assert_eq!(close.join().unwrap(), 0);
        send("CONT", &postmaster);
        assert!(started.elapsed() < LONG / 2, "they did not wait for connection_timeout");
    });
    soon("the server has no sessions", || sessions(&rds) == 0);
}

#[test]
fn a_thread_that_waits_gets_a_new_connection_if_one_breaks_and_min_idle_is_0() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(1).min_idle(Some(0)).connection_timeout(LONG);
    let pool = manager.build_pool(builder).unwrap();
    for _ in 0..20 {
        let mut held = pool.get().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.get_timeout(LONG / 2).map(drop));
            soon("a thread waits", || pool.waiting() == 1);
            held.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").unwrap_err();
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}

#[test]
fn close_does_not_wait_for_a_frozen_server() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().validate_after(Duration::ZERO).build(rds.database_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let frozen = backend(&mut pool.get().unwrap());
    send("STOP", frozen);
    let (sender, closed) = channel();
    thread::scope(|scope| {
        scope.spawn(move || sender.send(pool.close(LONG)));
        let closed = closed.recv_timeout(LONG / 2);
        send("CONT", frozen);
        assert_eq!(closed, Ok(0));
    });
}
