//! Transactions that are retried and whose outcome is known.

mod lost_answer;
mod transfers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind as Kind, Error as QueryError};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Error, PerThread, Pool, TransactionError};

use crate::support::{backend, manager, soon, start};

diesel::table! {
    rows (id) {
        id -> Integer,
        value -> Integer,
    }
}

const SCHEMA: &str = "CREATE TABLE rows (id int PRIMARY KEY, value int NOT NULL DEFAULT 0); \
                      GRANT ALL ON rows TO app";

fn server() -> LocalRds {
    let rds = start(LocalRds::builder());
    rds.superuser().unwrap().batch_execute(SCHEMA).unwrap();
    rds
}

fn pool(rds: &LocalRds, max_size: u32) -> Pool {
    let manager = manager(rds);
    manager.build_pool(manager.pool_builder().max_size(max_size)).unwrap()
}

fn insert(id: i32, connection: &mut PgConnection) -> QueryResult<i32> {
    diesel::insert_into(rows::table)
        .values(rows::id.eq(id))
        .returning(rows::id)
        .get_result(connection)
}

fn values(rds: &LocalRds) -> Vec<(i32, i32)> {
    rows::table.order(rows::id).load(&mut rds.superuser().unwrap()).unwrap()
}

fn add(id: i32, amount: i32, connection: &mut PgConnection) -> QueryResult<usize> {
    diesel::update(rows::table.find(id))
        .set(rows::value.eq(rows::value + amount))
        .execute(connection)
}

/// Counts the runs of a closure.
#[derive(Default)]
struct Runs(AtomicU32);

impl Runs {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    fn count(&self) -> u32 {
        self.0.load(SeqCst)
    }
}

#[test]
fn a_transaction_commits_and_returns_the_value_of_its_closure() {
    let rds = server();
    let pool = pool(&rds, 1);
    let id = pool.transaction(|connection| insert(1, connection)).unwrap();
    let connections = PerThread::new(manager(&rds));
    let other = connections.transaction(|connection| insert(2, connection)).unwrap();
    assert_eq!((id, other), (1, 2));
    assert_eq!(values(&rds), [(1, 0), (2, 0)]);
}

#[test]
fn the_closures_own_error_rolls_back_and_is_not_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    let outcome = pool.transaction(|connection| {
        runs.next();
        insert(1, connection).map_err(|error| error.to_string())?;
        Err::<(), String>("not enough".into())
    });
    assert!(matches!(&outcome, Err(TransactionError::Closure(error)) if error == "not enough"));
    let violation = pool.transaction(|connection| {
        runs.next();
        insert(1, connection)?;
        insert(1, connection)
    });
    assert!(matches!(
        violation,
        Err(TransactionError::Closure(QueryError::DatabaseError(Kind::UniqueViolation, _)))
    ));
    assert_eq!(runs.count(), 2);
    assert_eq!(values(&rds), []);
}

#[test]
fn a_serialization_failure_is_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)).unwrap();
    pool.build_transaction()
        .repeatable_read()
        .run(|connection| {
            // The snapshot is taken here.
            rows::table.count().get_result::<i64>(connection)?;
            if runs.next() == 1 {
                add(1, 10, &mut rds.superuser().unwrap())?;
            }
            add(1, 1, connection)
        })
        .unwrap();
    assert_eq!(runs.count(), 2);
    assert_eq!(values(&rds), [(1, 11)]);
}

#[test]
fn a_closure_that_ignores_a_serialization_failure_is_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)).unwrap();
    let run = |connection: &mut PgConnection| {
        rows::table.count().get_result::<i64>(connection)?;
        if runs.next() == 1 {
            add(1, 10, &mut rds.superuser().unwrap())?;
        }
        let _ = add(1, 1, connection);
        Ok::<(), QueryError>(())
    };
    pool.build_transaction().repeatable_read().run(run).unwrap();
    assert_eq!(runs.count(), 2);
    assert_eq!(values(&rds), [(1, 11)]);
}

#[test]
fn a_serialization_failure_at_commit_is_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)?.pipe(|_| insert(2, connection))).unwrap();
    // Write skew: each reads what the other writes.
    pool.build_transaction()
        .serializable()
        .run(|connection| {
            let read: i32 = rows::table.find(1).select(rows::value).get_result(connection)?;
            if runs.next() == 1 {
                let mut other = rds.superuser().unwrap();
                other.build_transaction().serializable().run(|other| {
                    rows::table.find(2).select(rows::value).get_result::<i32>(other)?;
                    add(1, 10, other)
                })?;
            }
            add(2, read + 1, connection)
        })
        .unwrap();
    assert_eq!(values(&rds), [(1, 10), (2, if runs.count() == 2 { 11 } else { 1 })]);
}

/// Lets a value be used by a closure in an expression.
trait Pipe: Sized {
    fn pipe<T>(self, then: impl FnOnce(Self) -> T) -> T {
        then(self)
    }
}

impl Pipe for i32 {}

#[test]
fn a_deadlock_is_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)?.pipe(|_| insert(2, connection))).unwrap();
    let barrier = std::sync::Barrier::new(2);
    let transfer = |from: i32, to: i32| {
        let mut is_first = true;
        pool.transaction(|connection| {
            runs.next();
            add(from, -1, connection)?;
            if std::mem::take(&mut is_first) {
                barrier.wait();
            }
            add(to, 1, connection)
        })
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| transfer(1, 2).unwrap());
        transfer(2, 1).unwrap();
        other.join().unwrap();
    });
    assert_eq!(runs.count(), 3);
    assert_eq!(values(&rds), [(1, 0), (2, 0)]);
}

#[test]
fn a_failure_that_a_savepoint_undid_makes_no_retry() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)).unwrap();
    let outcome = pool.build_transaction().repeatable_read().run(|connection| {
        runs.next();
        rows::table.count().get_result::<i64>(connection)?;
        add(1, 10, &mut rds.superuser().unwrap())?;
        let nested = connection.transaction(|connection| add(1, 1, connection));
        assert!(nested.is_err());
        Err::<(), QueryError>(QueryError::RollbackTransaction)
    });
    assert!(matches!(outcome, Err(TransactionError::Closure(QueryError::RollbackTransaction))));
    assert_eq!(runs.count(), 1);
}

#[test]
fn a_connection_lost_before_commit_is_replaced_and_the_closure_runs_again() {
    let rds = server();
    let pool = pool(&rds, 2);
    for returns_ok in [false, true] {
        let runs = Runs::default();
        pool.transaction(|connection| {
            insert(i32::from(returns_ok), connection)?;
            if runs.next() == 1 {
                let end = format!("SELECT pg_terminate_backend({}, 5000)", backend(connection));
                rds.superuser().unwrap().batch_execute(&end)?;
                let lost = connection.batch_execute("SELECT 1");
                return if returns_ok { Ok(()) } else { lost };
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(runs.count(), 2);
    }
    assert_eq!(values(&rds), [(0, 0), (1, 0)]);
}

#[test]
fn the_attempts_and_the_time_are_limited() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)).unwrap();
    let conflict = |connection: &mut PgConnection| {
        runs.next();
        rows::table.count().get_result::<i64>(connection)?;
        add(1, 10, &mut rds.superuser().unwrap())?;
        add(1, 1, connection)
    };
    let builder = pool.build_transaction().repeatable_read();
    let outcome = builder.attempts(3).run(conflict);
    assert!(matches!(
        outcome,
        Err(TransactionError::Closure(QueryError::DatabaseError(Kind::SerializationFailure, _)))
    ));
    assert_eq!(runs.count(), 3);
    builder.time_limit(Duration::ZERO).run(conflict).unwrap_err();
    assert_eq!(runs.count(), 4);
}

#[test]
fn a_panic_rolls_back_and_is_propagated() {
    let rds = server();
    let pool = pool(&rds, 1);
    let run = AssertUnwindSafe(|| {
        pool.transaction(|connection| {
            insert(1, connection).unwrap();
            if values(&rds).is_empty() {
                panic!("in the middle");
            }
            Ok::<(), QueryError>(())
        })
    });
    let panic = catch_unwind(run).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the middle"));
    // The lock of the row is free at once, and the manager is not taken as still in a transaction.
    pool.transaction(|connection| insert(1, connection)).unwrap();
    assert_eq!(values(&rds), [(1, 0)]);
}

#[test]
fn a_nested_transaction_is_refused() {
    let rds = server();
    let pool = pool(&rds, 2);
    let connections = PerThread::new(pool.manager().clone());
    let nested = pool.transaction(|connection| {
        insert(1, connection)?;
        let of_pool = pool.transaction(|connection| insert(2, connection));
        let of_thread = connections.transaction(|connection| insert(3, connection));
        Ok::<_, QueryError>([of_pool, of_thread])
    });
    for error in nested.unwrap() {
        let error = error.unwrap_err();
        assert!(matches!(error, TransactionError::Nested), "{error}");
        assert!(error.to_string().contains("use the closure's connection"), "{error}");
    }
    assert_eq!(values(&rds), [(1, 0)]);
    let other = server();
    let of_others = PerThread::new(manager(&other));
    let in_another_database = pool.transaction(|_| of_others.transaction(|it| insert(1, it)));
    assert_eq!(in_another_database.unwrap(), 1);
}

#[test]
fn a_guard_of_the_same_thread_is_refused() {
    let rds = server();
    let connections = PerThread::new(manager(&rds));
    let _guard = connections.get().unwrap();
    let error = connections.transaction(|connection| insert(1, connection)).unwrap_err();
    assert!(matches!(error, TransactionError::Connection(Error::InUse)), "{error}");
}

#[test]
fn a_closure_that_ends_the_transaction_by_itself_is_an_error() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    for raw in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "COMMIT AND CHAIN", "END", "BEGIN"] {
        for fails in [false, true] {
            let outcome = pool.transaction(|connection| {
                runs.next();
                connection.batch_execute(raw)?;
                if fails { Err(QueryError::NotFound) } else { Ok(()) }
            });
            assert!(matches!(outcome, Err(TransactionError::EndedByClosure)), "{raw}: {outcome:?}");
        }
    }
    assert_eq!(runs.count(), 12);
    pool.transaction(|connection| insert(1, connection)).unwrap();
}

#[test]
fn a_copy_that_is_left_open_is_an_error() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    pool.transaction(|connection| insert(1, connection)).unwrap();
    let outcome = pool.transaction(|connection| {
        runs.next();
        connection.batch_execute("COPY rows FROM STDIN")
    });
    assert!(matches!(outcome, Err(TransactionError::CopyLeftOpen)), "{outcome:?}");
    let outcome = pool.transaction(|connection| {
        runs.next();
        connection.batch_execute("COPY rows FROM STDIN")?;
        Err::<(), _>(QueryError::NotFound)
    });
    assert!(matches!(outcome, Err(TransactionError::Closure(QueryError::NotFound))));
    assert_eq!(runs.count(), 2);
    // What is not read of a COPY TO is lost to the closure only.
    for builder in [pool.build_transaction(), pool.build_transaction().read_only()] {
        builder.run(|connection| connection.batch_execute("COPY rows TO STDOUT")).unwrap();
    }
    pool.transaction(|connection| insert(2, connection)).unwrap();
}

#[test]
fn a_copy_that_is_read_to_its_end_is_fine() {
    use std::io::Read;
    let rds = server();
    let pool = pool(&rds, 1);
    let text = pool.transaction(|connection| {
        insert(7, connection)?;
        let mut text = String::new();
        diesel::copy_to(rows::table)
            .with_format(diesel::pg::CopyFormat::Csv)
            .load_raw(connection)?
            .read_to_string(&mut text)
            .unwrap();
        Ok::<_, QueryError>(text)
    });
    assert_eq!(text.unwrap(), "7,0\n");
}

#[test]
fn a_nested_transaction_that_is_left_open_is_an_error() {
    let rds = server();
    let pool = pool(&rds, 1);
    let outcome = pool.transaction(|connection| {
        AnsiTransactionManager::begin_transaction(connection)?;
        insert(1, connection)
    });
    assert!(matches!(outcome, Err(TransactionError::SavepointLeftOpen)), "{outcome:?}");
    assert_eq!(values(&rds), []);
}

#[test]
fn an_ignored_failure_is_an_error_because_postgresql_rolls_back() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    let outcome = pool.transaction(|connection| {
        runs.next();
        insert(1, connection)?;
        let _ = insert(1, connection);
        Ok::<(), QueryError>(())
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, TransactionError::IgnoredFailure { .. }), "{error}");
    assert!(error.to_string().contains("duplicate key"), "{error}");
    assert_eq!((runs.count(), values(&rds)), (1, vec![]));
}

#[test]
fn a_read_only_transaction_refuses_writes_and_is_not_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    let builder = pool.build_transaction().serializable().read_only().deferrable();
    let count: i64 = builder.run(|connection| rows::table.count().get_result(connection)).unwrap();
    assert_eq!(count, 0);
    let write = |connection: &mut PgConnection| {
        runs.next();
        insert(1, connection)
    };
    let outcome = builder.run(write);
    assert!(matches!(
        outcome,
        Err(TransactionError::Closure(QueryError::DatabaseError(Kind::ReadOnlyTransaction, _)))
    ));
    assert_eq!(runs.count(), 1);
}

#[test]
fn a_read_only_error_after_a_failover_is_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 2), Runs::default());
    rds.demote().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            soon("a retry", || runs.count() > 1);
            rds.promote().unwrap();
        });
        pool.transaction(|connection| {
            runs.next();
            insert(1, connection)
        })
        .unwrap();
    });
    assert_eq!(values(&rds), [(1, 0)]);
}

#[test]
fn a_server_that_is_down_is_waited_for() {
    let rds = server();
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(1).connection_timeout(Duration::from_secs(1));
    let pool = manager.build_pool(builder).unwrap();
    rds.stop();
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(3));
            rds.restart().unwrap();
        });
        pool.build_transaction().attempts(2).run(|connection| insert(1, connection)).unwrap();
    });
    assert!(started.elapsed() > Duration::from_secs(2));
    rds.stop();
    let limited = pool.build_transaction().time_limit(Duration::from_millis(100));
    let error = limited.run(|connection| insert(2, connection)).unwrap_err();
    assert!(matches!(error, TransactionError::Connection(_)), "{error}");
}

#[test]
fn a_pool_that_is_all_in_use_is_not_waited_for_twice() {
    let rds = server();
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(1).connection_timeout(Duration::from_millis(200));
    let pool = manager.build_pool(builder).unwrap();
    let _in_use = pool.get().unwrap();
    let started = Instant::now();
    let error = pool.transaction(|connection| insert(1, connection)).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_program_with_its_own_instrumentation_still_gets_its_transactions() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    let run = |id: i32, connection: &mut PgConnection| {
        runs.next();
        connection.set_instrumentation(|_: diesel::connection::InstrumentationEvent<'_>| {});
        insert(id, connection)
    };
    for id in [1, 2] {
        pool.transaction(|connection| run(id, connection)).unwrap();
    }
    let outcome = pool.transaction(|connection| {
        let _ = run(1, connection);
        Ok::<(), QueryError>(())
    });
    assert!(matches!(outcome, Err(TransactionError::IgnoredFailure { .. })), "{outcome:?}");
    assert_eq!((runs.count(), values(&rds)), (3, vec![(1, 0), (2, 0)]));
}

#[test]
fn a_constraint_that_is_checked_at_commit_is_reported_and_not_retried() {
    let rds = server();
    let (pool, runs) = (pool(&rds, 1), Runs::default());
    let defer = "ALTER TABLE rows ADD CONSTRAINT one UNIQUE (value) DEFERRABLE INITIALLY DEFERRED";
    rds.superuser().unwrap().batch_execute(defer).unwrap();
    let outcome = pool.transaction(|connection| {
        runs.next();
        insert(1, connection)?;
        insert(2, connection)
    });
    assert!(matches!(
        outcome,
        Err(TransactionError::Database(QueryError::DatabaseError(Kind::UniqueViolation, _)))
    ));
    assert_eq!((runs.count(), values(&rds)), (1, vec![]));
}
