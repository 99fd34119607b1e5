//! The life of a connection in a pool: age, errors, checks at a checkout.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{ManageConnection, Pool};
use diesel_rds_iam::{Builder, Error, RdsConnectionManager};

use crate::support::{backend, log, soon, start};

fn pool_of(size: u32, builder: Builder, url: &str) -> Pool<RdsConnectionManager> {
    let manager = builder.build(url).unwrap();
    manager.pool_builder().max_size(size).build(manager).unwrap()
}

/// Returns the last query of a backend.
fn last_query(rds: &LocalRds, backend: i32) -> String {
    let query = format!("SELECT query FROM pg_stat_activity WHERE pid = {backend}");
    diesel::dsl::sql::<Text>(&query).get_result(&mut rds.superuser().unwrap()).unwrap()
}

#[test]
fn connections_in_use_are_retired_at_max_lifetime() {
    const LIFETIME: Duration = Duration::from_secs(2);
    const LOAD: Duration = Duration::from_secs(40);
    let rds = start(LocalRds::builder());
    let pool = pool_of(4, rds.manager_builder().max_lifetime(Some(LIFETIME)), &rds.database_url());
    let started = Instant::now();
    // The first and the last use of each backend.
    let seen = Mutex::new(BTreeMap::<i32, (Instant, Instant)>::new());
    let longest_use = Mutex::new(Duration::ZERO);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while started.elapsed() < LOAD {
                    let mut connection = pool.get().unwrap();
                    let begun = Instant::now();
                    let backend = backend(&mut connection);
                    // In use without CPU time, which other tests need.
                    connection.batch_execute("SELECT pg_sleep(0.005)").unwrap();
                    drop(connection);
                    seen.lock().unwrap().entry(backend).or_insert((begun, begun)).1 = begun;
                    let mut longest = longest_use.lock().unwrap();
                    *longest = begun.elapsed().max(*longest);
                }
            });
        }
    });
    let (seen, longest_use) = (seen.into_inner().unwrap(), longest_use.into_inner().unwrap());
    for (backend, (first, last)) in &seen {
        let age = last.duration_since(*first);
        assert!(age <= LIFETIME + longest_use, "{backend} was used at the age of {age:?}");
    }
    assert!((60..=180).contains(&seen.len()), "{} connections in 40 seconds", seen.len());
}

#[test]
fn a_checkout_makes_a_round_trip_only_after_validate_after() {
    let rds = start(LocalRds::builder());
    for (validate_after, last) in
        [(Duration::from_secs(3600), "SELECT 'mine'"), (Duration::ZERO, "SELECT 1")]
    {
        let pool =
            pool_of(1, rds.manager_builder().validate_after(validate_after), &rds.database_url());
        let backend = backend(&mut pool.get().unwrap());
        pool.get().unwrap().batch_execute("SELECT 'mine'").unwrap();
        drop(pool.get().unwrap());
        assert_eq!(last_query(&rds, backend), last);
    }
}

#[test]
fn after_an_error_a_checkout_pings() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(
        1,
        rds.manager_builder().validate_after(Duration::from_secs(3600)),
        &rds.database_url(),
    );
    let mut connection = pool.get().unwrap();
    let backend = backend(&mut connection);
    connection.batch_execute("CREATE TABLE t (id INTEGER UNIQUE)").unwrap();
    connection.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    let violation = "INSERT INTO t VALUES (1)";
    connection.batch_execute(violation).unwrap_err();
    drop(connection);
    drop(pool.get().unwrap());
    assert_eq!(last_query(&rds, backend), violation, "a violated constraint caused a ping");
    pool.get().unwrap().batch_execute("SELECT nonsense").unwrap_err();
    drop(pool.get().unwrap());
    assert_eq!(last_query(&rds, backend), "SELECT 1");
    // One ping is enough.
    pool.get().unwrap().batch_execute("SELECT 'mine'").unwrap();
    drop(pool.get().unwrap());
    assert_eq!(last_query(&rds, backend), "SELECT 'mine'");
}

#[test]
fn a_closed_connection_found_by_a_load_does_not_go_back_into_the_pool() {
    // diesel's `is_broken` stays false after a load on a connection that the server has closed.
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    rds.superuser()
        .unwrap()
        .batch_execute(&format!("SELECT pg_terminate_backend({first}, 5000)"))
        .unwrap();
    let load: QueryResult<i32> =
        diesel::select(diesel::dsl::sql::<Integer>("1")).get_result(&mut connection);
    assert!(load.is_err());
    assert!(pool.state().connections == 1);
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    assert!(manager.has_broken(&mut connection));
    drop(connection);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn a_checkout_keeps_notifications() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(
        1,
        rds.manager_builder().validate_after(Duration::from_secs(3600)),
        &rds.database_url(),
    );
    pool.get().unwrap().batch_execute("LISTEN jobs").unwrap();
    rds.superuser().unwrap().batch_execute("NOTIFY jobs, 'hello'").unwrap();
    let mut connection = pool.get().unwrap();
    let mut arrived = None;
    soon("the notification", || {
        arrived = connection.notifications_iter().next();
        arrived.is_some()
    });
    assert_eq!(arrived.unwrap().unwrap().payload, "hello");
}

fn demote(rds: &LocalRds) {
    let mut superuser = rds.superuser().unwrap();
    superuser.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    superuser.batch_execute("SELECT pg_reload_conf()").unwrap();
}

#[test]
fn a_connection_to_a_demoted_server_fails_the_next_check() {
    let rds = start(LocalRds::builder());
    let url = format!("{}&target_session_attrs=read-write", rds.database_url());
    let manager = rds.manager_builder().validate_after(Duration::ZERO).build(&url).unwrap();
    let mut connection = manager.connect().unwrap();
    manager.is_valid(&mut connection).unwrap();
    demote(&rds);
    let started = Instant::now();
    // The reload reaches the session some time after pg_reload_conf() has returned.
    let error = loop {
        match manager.is_valid(&mut connection) {
            Err(error) => break error,
            Ok(()) => assert!(
                started.elapsed() < Duration::from_secs(10),
                "waited 10 s for the failed check"
            ),
        }
    };
    assert!(matches!(error, Error::Retired { .. }), "{error}");
}

#[test]
fn a_connection_to_a_read_only_server_is_not_handed_out_again() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    connection.batch_execute("SET default_transaction_read_only = on").unwrap();
    connection.batch_execute("CREATE TABLE t ()").unwrap_err();
    drop(connection);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn a_read_only_transaction_does_not_close_the_connection() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    let written: QueryResult<()> = connection
        .build_transaction()
        .read_only()
        .run(|connection| connection.batch_execute("CREATE TABLE t ()"));
    assert!(written.is_err());
    drop(connection);
    assert_eq!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn a_connection_in_an_aborted_raw_transaction_is_not_handed_out() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    pool.get().unwrap().batch_execute("CREATE TABLE t (id INTEGER UNIQUE)").unwrap();
    pool.get().unwrap().batch_execute("INSERT INTO t VALUES (1)").unwrap();
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    connection.batch_execute("BEGIN").unwrap();
    connection.batch_execute("INSERT INTO t VALUES (1)").unwrap_err();
    drop(connection);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn an_unfinished_copy_does_not_affect_the_next_checkout() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    diesel::table! { t (id) { id -> Integer, } }
    let mut connection = pool.get().unwrap();
    connection.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 100000) AS id").unwrap();
    let mut rows = diesel::copy_to(t::table).load_raw(&mut *connection).unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut rows, &mut line).unwrap();
    assert_eq!(line, "1\n");
    drop(rows);
    drop(connection);
    backend(&mut pool.get().unwrap());
}

#[test]
fn a_query_that_diesel_cannot_build_returns_an_error() {
    // Regression: our instrumentation panicked, because diesel cannot render such a query.
    diesel::table! { t (id) { id -> Integer, name -> Text, } }
    #[derive(AsChangeset)]
    #[diesel(table_name = t)]
    struct Nothing {
        name: Option<String>,
    }
    let rds = start(LocalRds::builder());
    let mut connection = pool_of(1, rds.manager_builder(), &rds.database_url()).get().unwrap();
    let update = diesel::update(t::table.find(1)).set(&Nothing { name: None });
    let error = update.execute(&mut connection).unwrap_err();
    assert!(matches!(error, diesel::result::Error::QueryBuilderError(_)), "{error}");
}

/// A query as diesel's builder renders it. Counts how often it is rendered or bound.
#[derive(Clone, Default, diesel::query_builder::QueryId)]
struct Counted(std::rc::Rc<std::cell::Cell<usize>>);

impl diesel::query_builder::QueryFragment<diesel::pg::Pg> for Counted {
    fn walk_ast<'b>(
        &'b self,
        mut out: diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
    ) -> QueryResult<()> {
        self.0.set(self.0.get() + 1);
        out.push_sql("SELECT \"datname\" FROM pg_database WHERE \"oid\"::integer = ");
        out.push_bind_param::<Integer, _>(&1)
    }
}

impl RunQueryDsl<PgConnection> for Counted {}

#[test]
fn a_query_of_the_builder_is_rendered_as_often_as_by_diesel_alone() {
    let rds = start(LocalRds::builder());
    let ours = &mut rds.manager_builder().build(rds.database_url()).unwrap().connect().unwrap();
    let token = crate::support::token_of(&rds, std::time::SystemTime::now());
    let diesels = &mut crate::support::log_in(&rds, LocalRds::USER, &token).unwrap();
    let of_second_execution = |connection: &mut PgConnection| {
        let query = Counted::default();
        query.clone().execute(connection).unwrap();
        let before = query.0.replace(0);
        assert!(before > 0);
        query.clone().execute(connection).unwrap();
        query.0.get()
    };
    assert_eq!(of_second_execution(ours), of_second_execution(diesels));
}

#[test]
fn a_max_lifetime_of_duration_max_has_no_end() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().max_lifetime(Some(Duration::MAX)).build(rds.database_url()).unwrap();
    let mut connection = manager.connect().unwrap();
    assert!(!manager.has_broken(&mut connection));
}

#[test]
fn another_instrumentation_works_and_needs_a_ping_at_each_checkout() {
    let rds = start(LocalRds::builder());
    let pool = pool_of(1, rds.manager_builder(), &rds.database_url());
    let mut connection = pool.get().unwrap();
    let backend = backend(&mut connection);
    connection.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
    connection.batch_execute("SELECT 'mine'").unwrap();
    drop(connection);
    drop(pool.get().unwrap());
    assert_eq!(last_query(&rds, backend), "SELECT 1");
}

#[test]
#[should_panic(expected = "max_lifetime must be positive")]
fn a_max_lifetime_of_zero_panics() {
    log();
    let _ = RdsConnectionManager::builder().max_lifetime(Some(Duration::ZERO));
}

#[test]
fn the_pool_leaves_the_age_of_connections_to_the_manager() {
    let rds = start(LocalRds::builder());
    for lifetime in [Some(Duration::from_secs(60)), None] {
        let builder = rds.manager_builder().max_lifetime(lifetime);
        let manager = builder.build(rds.database_url()).unwrap();
        let pool = manager.pool_builder().max_size(1).build(manager.clone()).unwrap();
        assert_eq!((pool.max_lifetime(), pool.idle_timeout()), (None, None));
        assert_eq!(manager.max_lifetime(), lifetime);
    }
}
