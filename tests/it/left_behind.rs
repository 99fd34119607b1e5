//! Connections that must not be checked out again: what one user leaves behind, the next does not
//! get.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{PerThread, Pool, Retirement};

use crate::support::{backend, manager, start};

fn pool_of_one(rds: &LocalRds) -> Pool {
    let manager = manager(rds);
    manager.build_pool(manager.pool_builder().max_size(1)).unwrap()
}

fn count(rds: &LocalRds, table: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table}");
    diesel::dsl::sql::<BigInt>(&query).get_result(&mut rds.superuser().unwrap()).unwrap()
}

/// Leaves a transaction open in one of the ways of raw SQL.
type Leave = fn(&mut PgConnection);

const LEFT_OPEN: &[(&str, Leave)] = &[
    ("sql_query", |connection| {
        diesel::sql_query("BEGIN").execute(connection).unwrap();
    }),
    ("batch_execute", |connection| connection.batch_execute("BEGIN; SELECT 1").unwrap()),
    ("comment", |connection| {
        connection.batch_execute("/* x */ START TRANSACTION READ WRITE").unwrap();
    }),
    ("chain", |connection| connection.batch_execute("BEGIN; COMMIT AND CHAIN").unwrap()),
    ("after an error", |connection| {
        connection.batch_execute("BEGIN; SELECT 1/0").unwrap_err();
    }),
];

#[test]
fn a_raw_begin_does_not_swallow_the_writes_of_the_next_user() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    manager.connect().unwrap().batch_execute("CREATE TABLE kept (id INTEGER)").unwrap();
    let pool = pool_of_one(&rds);
    let connections = PerThread::new(manager);
    let mut written = 0;
    for (how, leave) in LEFT_OPEN {
        let mut connection = pool.get().unwrap();
        let first = backend(&mut connection);
        leave(&mut connection);
        drop(connection);
        let mut connection = pool.get().unwrap();
        assert_ne!(backend(&mut connection), first, "{how}");
        diesel::sql_query("INSERT INTO kept VALUES (1)").execute(&mut connection).unwrap();

        let mut connection = connections.get().unwrap();
        let first = backend(&mut connection);
        leave(&mut connection);
        drop(connection);
        let mut connection = connections.get().unwrap();
        assert_ne!(backend(&mut connection), first, "{how}");
        diesel::sql_query("INSERT INTO kept VALUES (1)").execute(&mut *connection).unwrap();
        written += 2;
        assert_eq!(count(&rds, "kept"), written, "{how}");
    }
    let stats = pool.manager().stats();
    assert_eq!(stats.retirements[&Retirement::Transaction], LEFT_OPEN.len() as u64);
}

#[test]
fn a_raw_transaction_that_ended_keeps_its_connection() {
    let rds = start(LocalRds::builder());
    let pool = pool_of_one(&rds);
    let first = backend(&mut pool.get().unwrap());
    let ends = [
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN; ROLLBACK",
        "START TRANSACTION; END",
        "BEGIN; SAVEPOINT a; ROLLBACK TO SAVEPOINT a; ABORT",
        "DO $$ BEGIN PERFORM 1; END $$",
        "SELECT 'BEGIN; x'",
    ];
    for text in ends {
        pool.get().unwrap().batch_execute(text).unwrap();
        assert_eq!(backend(&mut pool.get().unwrap()), first, "{text}");
    }
    pool.get().unwrap().transaction(|connection| connection.batch_execute("SELECT 1")).unwrap();
    assert_eq!(backend(&mut pool.get().unwrap()), first, "diesel's own transaction");
}

diesel::table! {
    changed (id) {
        id -> Integer,
        value -> Text,
    }
}

fn values(connection: &mut PgConnection) -> QueryResult<Vec<String>> {
    changed::table.select(changed::value).load(connection)
}

#[test]
fn a_changed_column_type_fails_once_and_not_for_14_minutes() {
    let rds = start(LocalRds::builder());
    let pool = pool_of_one(&rds);
    let table = "CREATE TABLE changed (id INTEGER PRIMARY KEY, value VARCHAR(10))";
    pool.get().unwrap().batch_execute(table).unwrap();
    values(&mut pool.get().unwrap()).unwrap();
    let change = "ALTER TABLE changed ALTER COLUMN value TYPE TEXT";
    manager(&rds).connect().unwrap().batch_execute(change).unwrap();
    let error = values(&mut pool.get().unwrap()).unwrap_err().to_string();
    assert!(error.contains("cached plan must not change result type"), "{error}");
    values(&mut pool.get().unwrap()).unwrap();
    assert_eq!(pool.manager().stats().retirements[&Retirement::StaleStatements], 1);
}

#[test]
fn deallocated_statements_do_not_fail_the_next_user() {
    let rds = start(LocalRds::builder());
    let pool = pool_of_one(&rds);
    let query = diesel::select(diesel::dsl::sql::<Integer>("1"));
    for text in ["DISCARD ALL", "DEALLOCATE ALL", "SELECT 1; DISCARD PLANS; DEALLOCATE ALL"] {
        let mut connection = pool.get().unwrap();
        let _: i32 = query.clone().get_result(&mut connection).unwrap();
        connection.batch_execute(text).unwrap();
        drop(connection);
        let one: i32 = query.clone().get_result(&mut pool.get().unwrap()).unwrap();
        assert_eq!(one, 1, "{text}");
    }
    let unchanged = pool.manager().stats().retirements[&Retirement::StaleStatements];
    assert_eq!(unchanged, 3);
}

#[test]
fn a_refused_write_on_a_standby_costs_no_login() {
    let rds = start(LocalRds::builder());
    manager(&rds).connect().unwrap().batch_execute("CREATE TABLE t (id INTEGER)").unwrap();
    rds.demote().unwrap();
    for attrs in ["any", "standby", "read-only", "prefer-standby"] {
        let url = format!("{}&target_session_attrs={attrs}", rds.database_url());
        let manager = rds.manager_builder().build(url).unwrap();
        let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
        let connections = PerThread::new(manager.clone());
        let before = rds.attempts().len();
        let insert = diesel::sql_query("INSERT INTO t VALUES (1)");
        for _ in 0..10 {
            insert.clone().execute(&mut pool.get().unwrap()).unwrap_err();
            insert.clone().execute(&mut *connections.get().unwrap()).unwrap_err();
        }
        assert_eq!(rds.attempts().len() - before, 1, "{attrs}: PerThread's own");
        assert_eq!(manager.stats().retirements[&Retirement::Demoted], 0, "{attrs}");
    }
}

#[test]
fn a_writer_that_refuses_writes_is_left_also_without_target_session_attrs() {
    let rds = start(LocalRds::builder());
    let pool = pool_of_one(&rds);
    pool.get().unwrap().batch_execute("CREATE TABLE t (id INTEGER)").unwrap();
    let mut superuser = rds.superuser().unwrap();
    let read_only = "ALTER SYSTEM SET default_transaction_read_only = on";
    superuser.batch_execute(read_only).unwrap();
    superuser.batch_execute("SELECT pg_reload_conf()").unwrap();
    let first = backend(&mut pool.get().unwrap());
    let insert = diesel::sql_query("INSERT INTO t VALUES (1)");
    crate::support::soon("an insert fails", || {
        insert.clone().execute(&mut pool.get().unwrap()).is_err()
    });
    assert_ne!(backend(&mut pool.get().unwrap()), first);
    assert_eq!(pool.manager().stats().retirements[&Retirement::Demoted], 1);
}

const TOO_LONG: &str = concat!("0123456789", "0123456789");

#[test]
fn a_write_of_the_query_builder_is_noticed_also_when_its_type_is_known() {
    let rds = start(LocalRds::builder());
    let table = "CREATE TABLE changed (id SERIAL PRIMARY KEY, value VARCHAR(19))";
    manager(&rds).connect().unwrap().batch_execute(table).unwrap();
    let pool = pool_of_one(&rds);
    let insert = || {
        let row = changed::value.eq("; BEGIN; LISTEN a");
        diesel::insert_into(changed::table).values(row).execute(&mut pool.get().unwrap())
    };
    let first = backend(&mut pool.get().unwrap());
    // A failed write makes the type known, and shows nothing about the server.
    let refused = diesel::insert_into(changed::table).values(changed::value.eq(TOO_LONG));
    refused.execute(&mut pool.get().unwrap()).unwrap_err();
    assert_eq!(insert(), Ok(1));
    assert_eq!(backend(&mut pool.get().unwrap()), first);
    let mut superuser = rds.superuser().unwrap();
    let read_only = "ALTER SYSTEM SET default_transaction_read_only = on";
    superuser.batch_execute(read_only).unwrap();
    superuser.batch_execute("SELECT pg_reload_conf()").unwrap();
    crate::support::soon("an insert fails", || insert().is_err());
    assert_ne!(backend(&mut pool.get().unwrap()), first);
    assert_eq!(pool.manager().stats().retirements[&Retirement::Demoted], 1);
}

#[test]
fn retire_all_replaces_open_connections_and_fails_no_operation() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(4)).unwrap();
    let select = diesel::sql_query("SELECT pg_sleep(0.001)");
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        select.clone().execute(&mut pool.get().unwrap()).unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let logins = rds.attempts().len();
            manager.retire_all();
            crate::support::soon("a login starts or all workers end", || {
                rds.attempts().len() > logins || workers.iter().all(|it| it.is_finished())
            });
        }
    });
    let mut held = pool.get().unwrap();
    let old = backend(&mut held);
    manager.retire_all();
    assert_eq!(backend(&mut held), old, "not in the middle of its use");
    drop(held);
    assert_ne!(backend(&mut pool.get().unwrap()), old);
    assert!(manager.stats().retirements[&Retirement::Requested] >= 4);
}
