//! The answer to COMMIT is lost.

use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::result::Error as QueryError;
use diesel::sql_types::{Bool, Text};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{PerThread, Pool, TransactionError};

use super::{Runs, SCHEMA, insert, values};
use crate::support::proxy::{Proxy, Weather};
use crate::support::{backend, eventually, send, start};

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";

/// COMMIT waits for the advisory lock 1.
const COMMIT_WAITS: &str = "
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON rows DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait()";

/// A server behind a proxy, whose COMMITs wait.
struct Scene {
    rds: LocalRds,
    proxy: Proxy,
    pool: Pool,
    runs: Runs,
    pid: AtomicI32,
}

impl Scene {
    fn new() -> Scene {
        Scene::on(start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1")))
    }

    fn on(rds: LocalRds) -> Scene {
        rds.superuser().unwrap().batch_execute(&[SCHEMA, COMMIT_WAITS].join(";")).unwrap();
        let proxy = Proxy::at("127.0.0.1", rds.port(), Duration::from_secs(5));
        let manager = manager(&rds, &proxy);
        let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
        Scene { rds, proxy, pool, runs: Runs::default(), pid: AtomicI32::new(0) }
    }

    /// The closure of each transaction.
    fn insert(&self, connection: &mut PgConnection) -> QueryResult<u32> {
        self.pid.store(backend(connection), SeqCst);
        insert(1, connection)?;
        Ok(self.runs.next())
    }

    /// Waits until the first COMMIT is in progress. Returns the server process.
    fn wait_for_commit(&self) -> i32 {
        let mut superuser = self.rds.superuser().unwrap();
        eventually("a COMMIT that waits", || {
            let pid = self.pid.load(SeqCst);
            let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'COMMIT' \
                         AND wait_event_type = 'Lock' AND pid = ";
            let waits = format!("{waits}{pid})");
            sql::<Bool>(&waits).get_result::<bool>(&mut superuser).unwrap()
        });
        self.pid.load(SeqCst)
    }

    fn wait_until_idle(&self, pid: i32) {
        let mut superuser = self.rds.superuser().unwrap();
        let idle = format!(
            "SELECT NOT EXISTS \
             (SELECT FROM pg_stat_activity WHERE pid = {pid} AND state = 'active')"
        );
        eventually("an idle session", || {
            sql::<Bool>(&idle).get_result::<bool>(&mut superuser).unwrap()
        });
    }

    /// Ends all connections, and lets new ones through.
    fn cut(&self) {
        self.proxy.set(Weather::Fair);
        self.proxy.cut();
    }
}

fn manager(rds: &LocalRds, proxy: &Proxy) -> diesel_rds_iam::RdsConnectionManager {
    let [direct, by_proxy] = [rds.port(), proxy.port].map(|port| format!("localhost:{port}"));
    rds.manager_builder().build(rds.database_url().replace(&direct, &by_proxy)).unwrap()
}

/// Runs a transaction while `fault` does something to its COMMIT.
fn with_fault<T: Send>(
    scene: &Scene,
    transaction: impl FnOnce(&Scene) -> T + Send,
    fault: impl FnOnce(&Scene, i32),
) -> T {
    let mut holder = scene.rds.superuser().unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(1)").unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| transaction(scene));
        fault(scene, scene.wait_for_commit());
        running.join().unwrap()
    })
}

/// Lets the COMMITs go on.
fn release(scene: &Scene) {
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    scene.rds.superuser().unwrap().batch_execute(end).unwrap();
}

fn in_pool(scene: &Scene) -> Result<u32, TransactionError<QueryError>> {
    scene.pool.transaction(|connection| scene.insert(connection))
}

fn per_thread(scene: &Scene) -> Result<u32, TransactionError<QueryError>> {
    let connections = PerThread::new(manager(&scene.rds, &scene.proxy));
    connections.transaction(|connection| scene.insert(connection))
}

#[test]
fn a_committed_transaction_returns_its_value() {
    for transaction in [in_pool, per_thread] {
        let scene = Scene::new();
        let outcome = with_fault(&scene, transaction, |scene, pid| {
            scene.proxy.set(Weather::Mute);
            release(scene);
            scene.wait_until_idle(pid);
            scene.cut();
        });
        assert_eq!(outcome.unwrap(), 1);
        assert_eq!(scene.runs.count(), 1);
        assert_eq!(values(&scene.rds), [(1, 0)]);
    }
}

#[test]
fn on_dsql_the_outcome_is_unknown() {
    let scene = Scene::on(start(LocalRds::builder().dsql()));
    let outcome = with_fault(&scene, in_pool, |scene, pid| {
        scene.proxy.set(Weather::Mute);
        release(scene);
        scene.wait_until_idle(pid);
        scene.cut();
    });
    assert!(matches!(outcome, Err(TransactionError::OutcomeUnknown { .. })), "{outcome:?}");
    assert_eq!((scene.runs.count(), values(&scene.rds)), (1, vec![(1, 0)]));
}

#[test]
fn the_outcome_is_found_while_the_pool_closes() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, pid| {
        assert_eq!(scene.pool.close(Duration::ZERO), 1);
        scene.proxy.set(Weather::Mute);
        release(scene);
        scene.wait_until_idle(pid);
        scene.cut();
    });
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!(scene.pool.close(Duration::from_secs(10)), 0);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn an_aborted_transaction_runs_again() {
    for transaction in [in_pool, per_thread] {
        let scene = Scene::new();
        let outcome = with_fault(&scene, transaction, |scene, pid| {
            scene.proxy.set(Weather::Mute);
            let end = format!("SELECT pg_terminate_backend({pid}, 5000)");
            scene.rds.superuser().unwrap().batch_execute(&end).unwrap();
            release(scene);
            scene.cut();
        });
        assert_eq!(outcome.unwrap(), 2);
        assert_eq!(values(&scene.rds), [(1, 0)]);
    }
}

#[test]
fn a_session_that_still_commits_is_terminated_and_the_transaction_runs_again() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, pid| {
        // The server does not notice that its client is gone while it waits for a lock.
        scene.cut();
        scene.wait_until_idle(pid);
        release(scene);
    });
    assert_eq!(outcome.unwrap(), 2);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn a_commit_that_ends_in_time_is_waited_for() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, _| {
        scene.cut();
        thread::sleep(Duration::from_millis(300));
        release(scene);
    });
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn without_a_server_the_outcome_is_unknown_and_the_number_can_be_asked_for_later() {
    let scene = Scene::new();
    let limited = |scene: &Scene| {
        let builder = scene.pool.build_transaction().time_limit(Duration::from_secs(1));
        builder.run(|connection| scene.insert(connection))
    };
    let outcome = with_fault(&scene, limited, |scene, pid| {
        scene.proxy.set(Weather::Mute);
        release(scene);
        scene.wait_until_idle(pid);
        scene.rds.stop();
        scene.cut();
    });
    let error = outcome.unwrap_err();
    let TransactionError::OutcomeUnknown { xid: Some(xid), .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains(&format!("pg_xact_status('{xid}')")), "{error}");
    scene.rds.restart().unwrap();
    let status = format!("SELECT pg_xact_status('{xid}')");
    let status = sql::<Text>(&status).get_result::<String>(&mut scene.rds.superuser().unwrap());
    assert_eq!(status.unwrap(), "committed");
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

/// Ends the server as a crash does, and starts it again.
fn crash(scene: &Scene) {
    let mut superuser = scene.rds.superuser().unwrap();
    let pid = backend(&mut superuser);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    send("QUIT", parent.trim());
    eventually("the end of the server", || superuser.batch_execute("SELECT 1").is_err());
    scene.rds.restart().unwrap();
}

#[test]
fn after_a_crash_in_the_middle_of_a_commit_the_transaction_runs_again() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, _| {
        scene.proxy.set(Weather::Mute);
        crash(scene);
        scene.cut();
    });
    assert_eq!(outcome.unwrap(), 2);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn after_a_crash_that_follows_a_commit_the_value_is_returned() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, pid| {
        scene.proxy.set(Weather::Mute);
        release(scene);
        scene.wait_until_idle(pid);
        crash(scene);
        scene.cut();
    });
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn a_standby_is_not_asked_and_a_new_primary_knows_the_outcome() {
    let scene = Scene::new();
    let outcome = with_fault(&scene, in_pool, |scene, pid| {
        scene.proxy.set(Weather::Mute);
        release(scene);
        scene.wait_until_idle(pid);
        scene.rds.demote().unwrap();
        scene.cut();
        thread::sleep(Duration::from_secs(1));
        scene.rds.promote().unwrap();
    });
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!(values(&scene.rds), [(1, 0)]);
}

#[test]
fn a_transaction_that_wrote_nothing_runs_again() {
    let scene = Scene::new();
    let outcome = scene.pool.transaction(|connection| {
        let run = scene.runs.next();
        if run == 1 {
            // The connection ends at the COMMIT.
            connection.batch_execute("SET LOCAL idle_in_transaction_session_timeout = 1")?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok::<u32, QueryError>(run)
    });
    assert_eq!(outcome.unwrap(), 2);
}
