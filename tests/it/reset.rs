//! The reset of a session at its check-in.

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Builder, PerThread, Pool, RdsConnectionManager, Retirement};

use crate::support::{backend, start};

fn build(rds: &LocalRds, builder: Builder) -> RdsConnectionManager {
    builder.build(rds.database_url()).unwrap()
}

fn pool_of_one(manager: &RdsConnectionManager) -> Pool {
    manager.build_pool(manager.pool_builder().max_size(1)).unwrap()
}

fn text(connection: &mut PgConnection, query: &str) -> String {
    sql::<Text>(query).get_result(connection).unwrap()
}

/// Returns the last query of the connection's backend, as the server has it.
fn last_query(rds: &LocalRds, backend: i32) -> String {
    let query = format!("SELECT query FROM pg_stat_activity WHERE pid = {backend}");
    text(&mut rds.superuser().unwrap(), &query)
}

type Leave = fn(&mut PgConnection);

/// What a user leaves behind, and the query that shows it.
const LEFT: &[(Leave, &str)] = &[
    (|it| it.batch_execute("SET search_path = pg_catalog").unwrap(), SEARCH_PATH),
    (|it| it.batch_execute("SELECT 1; SET search_path = pg_catalog").unwrap(), SEARCH_PATH),
    (
        |it| {
            diesel::sql_query("SET search_path = pg_catalog").execute(it).unwrap();
        },
        SEARCH_PATH,
    ),
    (
        |it| {
            let set = sql::<Text>("set_config('search_path', 'pg_catalog', false)");
            diesel::select(set).get_result::<String>(it).unwrap();
        },
        SEARCH_PATH,
    ),
    (|it| it.batch_execute("SET ROLE other").unwrap(), "SELECT current_user::text"),
    (
        |it| it.batch_execute("SET SESSION AUTHORIZATION app; SET ROLE other").unwrap(),
        "SELECT current_user::text",
    ),
    (
        |it| it.batch_execute("SET TIME ZONE 'Asia/Tokyo'").unwrap(),
        "SELECT current_setting('TimeZone')",
    ),
    (
        |it| it.batch_execute("SET client_encoding = 'LATIN1'").unwrap(),
        "SELECT current_setting('client_encoding')",
    ),
    (
        |it| {
            let lock = sql::<Bool>("pg_try_advisory_lock(7)");
            assert!(diesel::select(lock).get_result::<bool>(it).unwrap());
        },
        "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory'",
    ),
    (
        |it| it.batch_execute("CREATE TEMP TABLE left_behind ()").unwrap(),
        "SELECT coalesce(to_regclass('pg_temp.left_behind')::text, 'none')",
    ),
    (
        |it| it.batch_execute("SELECT 1 INTO TEMPORARY left_behind").unwrap(),
        "SELECT coalesce(to_regclass('pg_temp.left_behind')::text, 'none')",
    ),
    (
        |it| it.batch_execute("LISTEN jobs").unwrap(),
        "SELECT count(*)::text FROM pg_listening_channels()",
    ),
    (
        |it| it.batch_execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1").unwrap(),
        "SELECT count(*)::text FROM pg_cursors",
    ),
];

const SEARCH_PATH: &str = "SELECT current_setting('search_path')";

#[test]
fn a_reset_undoes_what_the_last_user_left_and_keeps_the_connection() {
    let rds = start(LocalRds::builder());
    let role = "CREATE ROLE other; GRANT other TO app";
    rds.superuser().unwrap().batch_execute(role).unwrap();
    let manager = build(&rds, rds.manager_builder().reset_on_release(true));
    let pool = pool_of_one(&manager);
    let connections = PerThread::new(manager);
    let not_reset = pool_of_one(&build(&rds, rds.manager_builder()));
    for (i, (leave, show)) in LEFT.iter().enumerate() {
        let mut connection = pool.get().unwrap();
        let (first, before) = (backend(&mut connection), text(&mut connection, show));
        leave(&mut connection);
        assert_ne!(text(&mut connection, show), before, "{i}: it changes what is shown");
        drop(connection);
        let mut connection = pool.get().unwrap();
        assert_eq!(text(&mut connection, show), before, "{i}: {show}");
        assert_eq!(backend(&mut connection), first, "{i}: {show}");
        drop(connection);

        leave(&mut connections.get().unwrap());
        assert_eq!(text(&mut connections.get().unwrap(), show), before, "{i}: PerThread, {show}");

        leave(&mut not_reset.get().unwrap());
        let mut connection = not_reset.get().unwrap();
        assert_ne!(text(&mut connection, show), before, "{i}: without the option, {show}");
        connection.batch_execute("DISCARD ALL").unwrap();
    }
}

#[test]
fn cached_statements_survive_a_reset() {
    let rds = start(LocalRds::builder());
    let pool = pool_of_one(&build(&rds, rds.manager_builder().reset_on_release(true)));
    let query = || diesel::select(1.into_sql::<Integer>());
    for _ in 0..3 {
        let mut connection = pool.get().unwrap();
        let one: i32 = query().get_result(&mut connection).unwrap();
        assert_eq!(one, 1);
        connection.batch_execute("SET statement_timeout = '5s'").unwrap();
    }
    let mut connection = pool.get().unwrap();
    let statements = "SELECT count(*)::text FROM pg_prepared_statements \
                      WHERE statement LIKE 'SELECT $1%'";
    assert_eq!(text(&mut connection, statements), "1", "prepared once, and kept");
}

#[test]
fn a_reset_calls_after_connect_again() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().reset_on_release(true).after_connect(|connection| {
        connection.batch_execute("SET statement_timeout = '5s'; LISTEN jobs")
    });
    let pool = pool_of_one(&build(&rds, builder));
    let show = "SELECT current_setting('statement_timeout') || pg_listening_channels()";
    let first = backend(&mut pool.get().unwrap());
    for _ in 0..2 {
        let mut connection = pool.get().unwrap();
        assert_eq!(text(&mut connection, show), "5sjobs");
        connection.batch_execute("SET statement_timeout = '1s'; UNLISTEN *").unwrap();
    }
    assert_eq!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn an_unchanged_session_is_not_reset() {
    let rds = start(LocalRds::builder());
    let builder = rds.manager_builder().reset_on_release(true);
    let pool =
        pool_of_one(&build(&rds, builder.after_connect(|it| it.batch_execute("SET a.b = 1"))));
    let first = backend(&mut pool.get().unwrap());
    for query in ["SELECT 'SET a = 1'", "SET LOCAL search_path = a", "NOTIFY jobs"] {
        pool.get().unwrap().batch_execute(query).unwrap();
        assert_eq!(last_query(&rds, first), query);
    }
    pool.get().unwrap().batch_execute("SET a.b = 2").unwrap();
    assert_eq!(last_query(&rds, first), "SET a.b = 1", "the reset, then after_connect");
}

#[test]
fn a_test_transaction_is_not_reset() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().reset_on_release(true));
    let mut connection = manager.connect().unwrap();
    connection.begin_test_transaction().unwrap();
    connection.batch_execute("SET statement_timeout = '5s'").unwrap();
    assert!(!manager.has_broken(&mut connection));
    assert_eq!(text(&mut connection, "SELECT current_setting('statement_timeout')"), "5s");
}

#[test]
fn a_connection_that_cannot_be_reset_is_closed() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().reset_on_release(true));
    let pool = pool_of_one(&manager);
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    connection.batch_execute("SET a.b = 1").unwrap();
    let end = format!("SELECT pg_terminate_backend({first}, 5000)");
    rds.superuser().unwrap().batch_execute(&end).unwrap();
    drop(connection);
    assert_eq!(manager.stats().retirements[&Retirement::Closed], 1);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn a_session_of_another_instrumentation_is_always_reset() {
    let rds = start(LocalRds::builder());
    let manager = build(&rds, rds.manager_builder().reset_on_release(true));
    let pool = pool_of_one(&manager);
    let mut connection = pool.get().unwrap();
    connection.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
    connection.batch_execute("SET statement_timeout = '5s'").unwrap();
    drop(connection);
    let show = "SELECT current_setting('statement_timeout')";
    assert_eq!(text(&mut pool.get().unwrap(), show), "0");
}
