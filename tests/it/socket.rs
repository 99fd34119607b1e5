//! What the socket of a connection gives: checkouts that consume nothing, a limit for pings, and
//! deadlines.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::result::DatabaseErrorKind;
use diesel::result::Error as QueryError;
use diesel::sql_types::Text;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Error, PerThread, Pool, RdsConnectionManager, Retirement};

use crate::reports::process;
use crate::support::proxy::{Proxy, Weather};
use crate::support::{backend, in_a_child, manager, minutes, send, soon, start};

const SECOND: Duration = Duration::from_secs(1);

/// Added to each bound for a busy machine.
const SLACK: Duration = Duration::from_secs(4);

/// A query that takes longer than the test.
const SLEEP: &str = "SELECT pg_sleep(600)";

fn pinged(manager: &RdsConnectionManager) -> u64 {
    manager.stats().checkouts_pinged
}

fn retired(manager: &RdsConnectionManager, reason: Retirement) -> u64 {
    manager.stats().retirements[&reason]
}

/// Returns a manager that pings only if it must.
fn peeking(rds: &LocalRds, url: &str) -> RdsConnectionManager {
    rds.manager_builder().validate_after(minutes(60)).build(url).unwrap()
}

fn pool_of(size: u32, manager: &RdsConnectionManager) -> Pool {
    manager.build_pool(manager.pool_builder().max_size(size)).unwrap()
}

/// A proxy to the server, and a manager that connects through it.
fn through_a_proxy(rds: &LocalRds) -> (Proxy, diesel_rds_iam::Builder, String) {
    let proxy = Proxy::at("127.0.0.1", rds.port(), minutes(5));
    let port = |port| format!("localhost:{port}");
    let url = rds.database_url().replace(&port(rds.port()), &port(proxy.port));
    let endpoint = rds.endpoint();
    let builder = rds.manager_builder().iam_host(endpoint.host()).iam_port(endpoint.port());
    (proxy, builder.region_name(endpoint.region()), url)
}

/// A server whose processes are stopped. They continue at the drop.
struct Frozen(Vec<i32>);

impl Frozen {
    /// Stops the backends, and the server that would start others.
    fn freeze(rds: &LocalRds, backends: &[i32]) -> Frozen {
        let file = diesel::select(diesel::dsl::sql::<Text>("pg_read_file('postmaster.pid')"));
        let file: String = file.get_result(&mut rds.superuser().unwrap()).unwrap();
        let mut frozen = Frozen(vec![file.lines().next().unwrap().parse().unwrap()]);
        frozen.0.extend(backends);
        frozen.0.iter().for_each(|process| send("STOP", process));
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|process| send("CONT", process));
    }
}

#[test]
fn a_checkout_does_not_ping_because_of_what_tls_sends_after_the_login() {
    let rds = start(LocalRds::builder());
    for url in [rds.database_url(), rds.password_url()] {
        let manager = peeking(&rds, &url);
        let pool = pool_of(2, &manager);
        for _ in 0..20 {
            pool.get().unwrap().batch_execute("SELECT 1").unwrap();
        }
        assert_eq!(pinged(&manager), 0, "{}", manager.stats().checkouts_peeked);
        assert!(manager.stats().checkouts_peeked >= 20);
    }
}

#[test]
fn a_connection_that_listens_is_pinged_only_if_a_notification_came() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let pool = pool_of(1, &manager);
    drop(pool.get().unwrap());
    let before = pinged(&manager);
    pool.get().unwrap().batch_execute("LISTEN jobs; NOTIFY jobs, 'own'").unwrap();
    drop(pool.get().unwrap());
    assert_eq!(pinged(&manager), before, "a LISTEN alone");
    manager.connect().unwrap().batch_execute("NOTIFY jobs, 'other'").unwrap();
    soon("a checkout that pings", || {
        drop(pool.get().unwrap());
        pinged(&manager) > before
    });
    for _ in 0..10 {
        drop(pool.get().unwrap());
    }
    assert_eq!(pinged(&manager), before + 1);
    let mut connection = pool.get().unwrap();
    let received = connection.notifications_iter().map(|it| it.unwrap().payload);
    assert_eq!(received.collect::<Vec<_>>(), ["own", "other"]);
}

/// A LISTEN that the crate does not see: the checkouts consumed its notifications.
#[test]
fn checkouts_consume_no_notification_of_a_listen_inside_of_a_function() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let pool = pool_of(1, &manager);
    pool.get().unwrap().batch_execute("DO $$ BEGIN LISTEN jobs; END $$").unwrap();
    manager.connect().unwrap().batch_execute("NOTIFY jobs").unwrap();
    soon("a checkout that pings", || {
        drop(pool.get().unwrap());
        pinged(&manager) > 0
    });
    assert_eq!(pool.get().unwrap().notifications_iter().count(), 1);
}

#[test]
fn a_listening_connection_with_an_instrumentation_of_the_program_is_pinged() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let mut connection = manager.connect().unwrap();
    connection.set_instrumentation(|_: InstrumentationEvent<'_>| ());
    manager.is_valid(&mut connection).unwrap();
    assert_eq!(pinged(&manager), 1);
    let error = RdsConnectionManager::set_deadline(&mut connection, Some(Instant::now()));
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("the connection's socket is not known"), "{error}");
    RdsConnectionManager::set_deadline(&mut connection, None).unwrap();
    connection.batch_execute("SELECT 1").unwrap();
}

#[test]
fn over_a_unix_socket_a_deadline_is_an_error() {
    let rds = start(LocalRds::builder());
    let folder: String =
        diesel::select(diesel::dsl::sql::<Text>("current_setting('unix_socket_directories')"))
            .get_result(&mut rds.superuser().unwrap())
            .unwrap();
    let (folder, port) = (folder.trim_matches('"'), rds.port());
    let url = format!("host={folder} port={port} user=rdsadmin dbname=app rds_iam_auth=false");
    let manager = RdsConnectionManager::new(url).unwrap();
    let mut connection = manager.connect().unwrap();
    assert!(RdsConnectionManager::set_deadline(&mut connection, Some(Instant::now())).is_err());
    manager.is_valid(&mut connection).unwrap();
}

/// A sidecar, a tunnel or a frozen server acknowledges and never answers. The checkout waited for
/// as long as it did.
#[test]
fn a_check_in_with_a_reset_ends_while_the_server_is_frozen() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().reset_on_release(true).ping_timeout(Some(SECOND));
    let manager = builder.build(rds.database_url()).unwrap();
    let pool = pool_of(1, &manager);
    let mut connection = pool.get().unwrap();
    connection.batch_execute("SET search_path = tenant").unwrap();
    let _frozen = Frozen::freeze(&rds, &[backend(&mut connection)]);
    let started = Instant::now();
    drop(connection);
    assert!(started.elapsed() < SECOND + SLACK, "{:?}", started.elapsed());
    assert_eq!(retired(&manager, Retirement::FailedCheck), 1);
}

#[test]
fn get_timeout_of_a_second_ends_while_the_server_is_frozen() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().validate_after(Duration::ZERO).ping_timeout(Some(SECOND));
    let manager = builder.build(rds.database_url()).unwrap();
    let pool = pool_of(4, &manager);
    let held: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    let backends: Vec<i32> = held.into_iter().map(|mut it| backend(&mut it)).collect();
    let frozen = Frozen::freeze(&rds, &backends);
    let begun = Instant::now();
    let error = pool.get_timeout(SECOND).map(drop).unwrap_err();
    let waited = begun.elapsed();
    assert!(waited >= SECOND && waited < 2 * SECOND + SLACK, "{waited:?}");
    assert!(error.to_string().contains("do not answer a ping"), "{error}");
    assert!(matches!(error, Error::Timeout { is_transient: true, .. }));
    // One connection was pinged. The others are still in the pool.
    assert_eq!(retired(&manager, Retirement::FailedCheck), 1);
    assert_eq!(pool.state().idle_connections, 3);
    let begun = Instant::now();
    assert!(pool.try_get().is_none());
    assert!(begun.elapsed() < SECOND + SLACK, "{:?}", begun.elapsed());
    drop(frozen);
    pool.get().unwrap().batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_checkout_ends_behind_a_relay_that_acknowledges_and_never_answers() {
    let rds = start(LocalRds::builder());
    let (proxy, builder, url) = through_a_proxy(&rds);
    let builder = builder.validate_after(Duration::ZERO).ping_timeout(Some(SECOND / 2));
    let manager = builder.build(format!("{url}&connect_timeout=2")).unwrap();
    let pool = pool_of(1, &manager);
    let connections = PerThread::new(manager.clone());
    drop(connections.get().unwrap());
    proxy.set(Weather::Swallowed);
    let begun = Instant::now();
    pool.get_timeout(SECOND).map(drop).unwrap_err();
    assert!(begun.elapsed() < SECOND + SECOND / 2 + SLACK, "{:?}", begun.elapsed());
    let begun = Instant::now();
    let error = connections.get().map(drop).unwrap_err();
    assert!(begun.elapsed() < 3 * SECOND + SLACK, "{:?}", begun.elapsed());
    assert!(error.login_failure().is_some(), "{error}");
    assert_eq!(retired(&manager, Retirement::FailedCheck), 2);
}

#[test]
fn a_backend_that_does_not_answer_costs_its_own_connection_only() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().validate_after(Duration::ZERO);
    let manager = builder.ping_timeout(Some(SECOND / 2)).build(rds.database_url()).unwrap();
    let pool = pool_of(2, &manager);
    let (mut one, mut other) = (pool.get().unwrap(), pool.get().unwrap());
    let (kept, stuck) = (backend(&mut one), backend(&mut other));
    drop(one);
    // The last one that is checked in is the next one that is checked out.
    drop(other);
    send("STOP", stuck);
    let next = backend(&mut pool.get().unwrap());
    send("CONT", stuck);
    assert_eq!(next, kept);
    assert_eq!(retired(&manager, Retirement::FailedCheck), 1);
}

#[test]
fn an_answer_within_ping_timeout_keeps_the_connection() {
    let rds = start(LocalRds::builder());
    let (proxy, builder, url) = through_a_proxy(&rds);
    let manager = builder.validate_after(Duration::ZERO).build(url).unwrap();
    let pool = pool_of(1, &manager);
    let first = backend(&mut pool.get().unwrap());
    proxy.set(Weather::Slow(Duration::from_millis(300)));
    // A checkout that has no time left still waits for the answer.
    drop(pool.get_timeout(Duration::from_millis(1)).unwrap());
    proxy.set(Weather::Fair);
    assert_eq!(backend(&mut pool.get().unwrap()), first);
}

fn in_half_a_second(connection: &mut PgConnection) {
    let deadline = Instant::now() + SECOND / 2;
    RdsConnectionManager::set_deadline(connection, Some(deadline)).unwrap();
}

/// Runs a query that waits. Asserts that the deadline ends it.
fn is_ended(connection: &mut PgConnection) {
    in_half_a_second(connection);
    let begun = Instant::now();
    let error = connection.batch_execute(SLEEP).unwrap_err();
    let waited = begun.elapsed();
    let least = SECOND / 2 - Duration::from_millis(10);
    assert!(waited >= least && waited < SECOND / 2 + SLACK, "{waited:?}: {error}");
    let closed = DatabaseErrorKind::ClosedConnection;
    let is_closed = matches!(&error, QueryError::DatabaseError(kind, _) if *kind == closed);
    assert!(is_closed, "{error:?}");
    let again = connection.batch_execute("SELECT 1");
    assert!(again.is_err(), "the connection cannot be used again");
}

#[test]
fn a_deadline_ends_a_query_and_retires_its_connection() {
    let rds = start(LocalRds::builder());
    for url in [rds.database_url(), rds.password_url()] {
        let manager = peeking(&rds, &url);
        let (pool, connections) = (pool_of(1, &manager), PerThread::new(manager.clone()));
        is_ended(&mut pool.get().unwrap());
        pool.get().unwrap().batch_execute("SELECT 1").unwrap();
        is_ended(&mut connections.get().unwrap());
        connections.get().unwrap().batch_execute("SELECT 1").unwrap();
        assert_eq!(retired(&manager, Retirement::Deadline), 2);
        assert_eq!(retired(&manager, Retirement::Closed), 0);
        assert_eq!(pinged(&manager), 0, "it says nothing about other connections");
    }
}

#[test]
fn a_deadline_frees_the_thread_while_the_server_is_frozen() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let mut connection = manager.connect().unwrap();
    let _frozen = Frozen::freeze(&rds, &[backend(&mut connection)]);
    is_ended(&mut connection);
    let begun = Instant::now();
    drop(connection);
    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
}

#[test]
fn a_deadline_that_passes_between_two_queries_retires_the_connection() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let pool = pool_of(1, &manager);
    let mut connection = pool.get().unwrap();
    RdsConnectionManager::set_deadline(&mut connection, Some(Instant::now())).unwrap();
    soon("the connection is shut down", || connection.batch_execute("SELECT 1").is_err());
    drop(connection);
    assert_eq!(retired(&manager, Retirement::Deadline), 1);
}

#[test]
fn a_deadline_ends_with_its_unit_of_work() {
    let rds = start(LocalRds::builder());
    let manager = peeking(&rds, &rds.database_url());
    let (pool, connections) = (pool_of(1, &manager), PerThread::new(manager.clone()));
    let slow = "SELECT pg_sleep(1)";
    let first = backend(&mut pool.get().unwrap());
    in_half_a_second(&mut pool.get().unwrap());
    pool.get().unwrap().batch_execute(slow).unwrap();
    in_half_a_second(&mut connections.get().unwrap());
    connections.get().unwrap().batch_execute(slow).unwrap();
    let mut connection = pool.get().unwrap();
    in_half_a_second(&mut connection);
    let later = Instant::now() + minutes(60);
    RdsConnectionManager::set_deadline(&mut connection, Some(later)).unwrap();
    connection.batch_execute(slow).unwrap();
    assert_eq!(backend(&mut connection), first);
    drop((pool, connections, connection));
    let stats = manager.stats();
    assert_eq!(stats.retirements.values().sum::<u64>(), stats.retirements[&Retirement::Released]);
}

#[test]
fn a_program_ends_before_its_deadlines_and_a_child_of_a_fork_has_its_own() {
    let begun = Instant::now();
    in_a_child("socket::forks_with_a_deadline", &[]);
    assert!(begun.elapsed() < minutes(10));
}

#[test]
#[ignore = "runs in its own process, which forks"]
fn forks_with_a_deadline() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let mut connection = manager.connect().unwrap();
    let an_hour = Instant::now() + minutes(60);
    RdsConnectionManager::set_deadline(&mut connection, Some(an_hour)).unwrap();
    let mut unused = manager.connect().unwrap();
    in_half_a_second(&mut unused);
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    if process::fork() == 0 {
        let mut own = manager.connect().unwrap();
        in_half_a_second(&mut own);
        let outcome = own.batch_execute(SLEEP);
        let _ = theirs.write_all(if outcome.is_err() { b"ended" } else { b"answered" });
        process::_exit(0);
    }
    drop(theirs);
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut outcome = String::new();
    ours.read_to_string(&mut outcome).expect("the child answers within 30 s");
    assert_eq!(outcome, "ended");
    connection.batch_execute("SELECT 1").unwrap();
    soon("the parent's own deadline", || unused.batch_execute("SELECT 1").is_err());
}

const LOGINS: usize = 1_000;
const THREADS: usize = 8;

/// Sockets of the program that have nothing to do with connections. Returns how many were used.
fn use_other_sockets(is_over: &AtomicBool) -> usize {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut open = BTreeMap::new();
    let mut made = 0;
    while !is_over.load(SeqCst) {
        let client = TcpStream::connect(address).unwrap();
        open.insert(made, (client, listener.accept().unwrap().0));
        made += 1;
        for (number, (client, server)) in &mut open {
            client.write_all(&[7]).unwrap();
            let mut byte = [0];
            server.read_exact(&mut byte).unwrap_or_else(|error| panic!("socket {number}: {error}"));
        }
        // The numbers of the oldest are reused.
        if open.len() > 16 {
            open.pop_first();
        }
        thread::sleep(Duration::from_micros(200));
    }
    made
}

#[test]
fn deadlines_around_the_close_of_1000_connections_shut_down_no_other_socket() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let (left, is_over) = (AtomicUsize::new(LOGINS), AtomicBool::new(false));
    let work = || {
        while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            let mut connection = manager.connect().unwrap();
            let random = |most| Duration::from_micros(fastrand::u64(0..most));
            let deadline = Instant::now() + random(5_000);
            RdsConnectionManager::set_deadline(&mut connection, Some(deadline)).unwrap();
            // Fails if the deadline comes first.
            let _ = connection.batch_execute("SELECT 1");
            thread::sleep(random(1_000));
        }
    };
    let others = thread::scope(|scope| {
        let others = scope.spawn(|| use_other_sockets(&is_over));
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, SeqCst);
        assert!(ends.iter().all(Result::is_ok), "each login succeeds, and its socket is known");
        others.join().expect("no other socket is shut down")
    });
    let ended = retired(&manager, Retirement::Deadline);
    let released = retired(&manager, Retirement::Released);
    eprintln!("{ended} deadlines passed before the close, {released} after it, {others} others");
    assert_eq!(ended + released, LOGINS as u64);
    assert!(ended > 50 && released > 50, "{ended} and {released}");
}
