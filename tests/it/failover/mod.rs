//! Failovers of a local cluster, with nothing but the cluster's name and `topology`.
//!
//! DNS leads to the old writer for longer than each test takes, so it never helps.

mod load;
mod readers;

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Builder, PerThread, Pool, RdsConnectionManager, Topology};

use crate::support::{backend, eventually, start};
use load::{Connections, Load, THREADS, rows};

/// Much longer than a failover takes, and much shorter than DNS.
const LIMIT: Duration = Duration::from_secs(10);

fn cluster(replicas: usize) -> LocalRds {
    let rds = start(LocalRds::builder().replicas(replicas).dns_lag(Duration::from_secs(600)));
    let sql = "CREATE TABLE rows (id bigint NOT NULL); GRANT ALL ON rows TO app";
    rds.superuser().unwrap().batch_execute(sql).unwrap();
    rds
}

fn builder(rds: &LocalRds) -> Builder {
    rds.manager_builder().topology(Topology::Aurora)
}

fn manager(rds: &LocalRds) -> RdsConnectionManager {
    builder(rds).build(rds.cluster_url()).unwrap()
}

fn pool(rds: &LocalRds) -> Pool {
    let manager = manager(rds);
    manager.build_pool(manager.pool_builder().max_size(THREADS as u32)).unwrap()
}

/// Returns the name of the node that a connection leads to.
fn node(connection: &mut PgConnection) -> String {
    use diesel::sql_types::Text;
    let name = diesel::dsl::sql::<Text>("SELECT aurora_db_instance_identifier()");
    name.get_result(connection).unwrap()
}

fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

fn assert_all_write_soon(load: &Load) {
    let took = load.await_all(Instant::now());
    assert!(took < LIMIT, "{took:?}");
}

fn failovers(rds: &LocalRds, connections: impl Connections + 'static) {
    let load = Load::start(connections);
    let mut logins = rds.attempts().len();
    for (kind, to) in [("planned", 1), ("planned, back to the first node", 0), ("killed", 2)] {
        if kind == "killed" {
            rds.kill(0).unwrap();
        }
        rds.failover(to).unwrap();
        let took = load.await_all(Instant::now());
        let errors = load.take_errors();
        let before = std::mem::replace(&mut logins, rds.attempts().len());
        let needed = logins - before;
        println!("{kind}: {took:?}, {needed} logins, {} errors", errors.len());
        assert!(took < LIMIT, "{kind}: {took:?}");
        assert!(needed <= 2 * THREADS, "{kind}: {needed} logins");
        // Only those in flight can fail, and the first one afterwards.
        assert!(errors.len() <= 2 * THREADS, "{kind}: {errors:?}");
    }
    load.end(rds);
}

#[test]
fn a_pool_follows_planned_failovers_and_one_after_a_killed_writer() {
    let rds = cluster(2);
    failovers(&rds, pool(&rds));
}

#[test]
fn per_thread_follows_planned_failovers_and_one_after_a_killed_writer() {
    let rds = cluster(2);
    failovers(&rds, PerThread::new(manager(&rds)));
}

/// Also the threads that wait inside a query.
#[test]
fn a_writer_that_is_frozen_and_stays_so_is_left() {
    let rds = cluster(2);
    let load = Load::start(pool(&rds));
    rds.freeze(0).unwrap();
    rds.failover(1).unwrap();
    assert_all_write_soon(&load);
    load.end(&rds);
}

#[test]
fn an_old_writer_that_comes_back_as_a_writer_gets_no_rows() {
    let rds = cluster(2);
    let load = Load::start(pool(&rds));
    rds.freeze(0).unwrap();
    rds.failover(1).unwrap();
    load.await_all(Instant::now());
    let replaced = load.acknowledged().into_iter().max().unwrap();
    // It still is a writer, and DNS leads to it.
    rds.thaw(0).unwrap();
    let lagging = manager(&rds);
    for _ in 0..5 {
        assert_eq!(node(&mut lagging.connect().unwrap()), name(1));
    }
    load.await_all(Instant::now());
    let behind: Vec<i64> = rows(&mut rds.superuser_of(0).unwrap());
    let wrong: Vec<&i64> = behind.iter().filter(|row| **row > replaced).collect();
    assert!(wrong.is_empty(), "written to the old writer: {wrong:?}");
    load.end(&rds);
}

#[test]
fn two_failovers_within_seconds_and_a_promoted_reader_that_drops_its_sessions() {
    let rds = cluster(2);
    let load = Load::start(pool(&rds));
    rds.failover(1).unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    rds.superuser().unwrap().batch_execute(end).unwrap();
    load.await_all(Instant::now());
    rds.failover(2).unwrap();
    assert_all_write_soon(&load);
    load.end(&rds);
}

#[test]
fn a_node_that_was_added_can_become_the_writer_and_one_that_was_removed_does_no_harm() {
    let rds = cluster(1);
    let pool = pool(&rds);
    let added = rds.add_replica().unwrap();
    let load = Load::start(pool);
    rds.remove(1).unwrap();
    rds.failover(added).unwrap();
    assert_all_write_soon(&load);
    load.end(&rds);
}

#[test]
fn all_nodes_down_and_back() {
    let rds = cluster(1);
    let pool = pool(&rds);
    rds.stop();
    let error = pool.get_timeout(Duration::from_millis(300)).map(drop).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
    rds.restart().unwrap();
    let started = Instant::now();
    let mut connection = pool.get().unwrap();
    assert!(started.elapsed() < LIMIT);
    assert_eq!(node(&mut connection), name(rds.writer()));
}

/// A process that starts while DNS leads to the old writer.
#[test]
fn the_first_login_finds_the_writer_while_dns_leads_to_the_old_one() {
    let rds = cluster(2);
    rds.failover(1).unwrap();
    eventually("the old writer is a reader", || {
        rds.superuser_of(0).is_ok_and(|mut old| node(&mut old) == name(0))
    });
    let manager = manager(&rds);
    assert_eq!(node(&mut manager.connect().unwrap()), name(1));
}

#[test]
fn in_peace_there_is_one_login_for_each_connection_and_no_other() {
    let rds = cluster(2);
    let pool = pool(&rds);
    let connections: Vec<_> = (0..THREADS).map(|_| pool.get().unwrap()).collect();
    assert_eq!(rds.attempts().len(), THREADS);
    assert_eq!(pool.manager().stats().login_attempts, THREADS as u64);
    drop(connections);
}

#[test]
fn a_cluster_without_the_functions_works_as_without_topology() {
    let rds = cluster(1);
    rds.superuser().unwrap().batch_execute("DROP FUNCTION aurora_replica_status()").unwrap();
    let manager = manager(&rds);
    let mut connection = manager.connect().unwrap();
    assert_eq!(node(&mut connection), name(0));
}

/// The tokens of a program must not leave the cluster, whatever a server says.
#[test]
fn a_node_outside_of_the_cluster_is_never_dialled() {
    let rds = cluster(1);
    let hostile = "
        DROP FUNCTION aurora_replica_status();
        CREATE FUNCTION aurora_replica_status(OUT server_id text, OUT session_id text,
            OUT last_update_timestamp timestamptz, OUT replica_lag_in_msec float8)
            RETURNS SETOF record LANGUAGE sql AS $$ SELECT * FROM (VALUES
                ('evil.example.com', 'MASTER_SESSION_ID', now(), 0::float8),
                ('x.evil1.us-east-1.rds.amazonaws.com', 'a', now(), 0),
                ('127.0.0.1', 'b', now(), 0), ('node-9/?', 'c', now(), 'NaN')) AS rows $$";
    rds.superuser().unwrap().batch_execute(hostile).unwrap();
    let dialled = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = dialled.clone();
    let manager = builder(&rds)
        .resolver(move |name| {
            seen.lock().unwrap().push(name.to_owned());
            Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()])
        })
        .build(rds.cluster_url())
        .unwrap();
    let first = backend(&mut manager.connect().unwrap());
    rds.kill(0).unwrap();
    assert!(manager.connect().is_err());
    let dialled = dialled.lock().unwrap();
    assert!(dialled.iter().all(|name| name.starts_with("local.cluster-")), "{first}: {dialled:?}");
}

/// Only the cluster's own name resolves, as with a tunnel.
#[test]
fn nodes_that_do_not_resolve_are_skipped() {
    let rds = cluster(1);
    let manager = builder(&rds)
        .resolver(|name| match name.starts_with("local.cluster-") {
            true => Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()]),
            false => Err(std::io::Error::other("no such name")),
        })
        .build(rds.cluster_url())
        .unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    rds.stop();
    assert!(pool.get_timeout(Duration::from_millis(300)).is_err());
    rds.restart().unwrap();
    assert_eq!(node(&mut pool.get().unwrap()), name(0));
}

#[test]
fn a_panic_in_a_function_of_the_program_is_reported() {
    let rds = cluster(1);
    let manager = builder(&rds).resolver(|_| panic!("as a test")).build(rds.cluster_url()).unwrap();
    let error = manager.connect().map(drop).unwrap_err().to_string();
    assert!(error.starts_with("resolver, or the default instrumentation, failed"), "{error}");
}

#[test]
fn an_unknown_role_is_refused() {
    let rds = cluster(1);
    let url = format!("{}&target_session_attrs=read_write", rds.cluster_url());
    let error = builder(&rds).build(url).unwrap_err().to_string();
    assert!(error.contains("target_session_attrs must be one of"), "{error}");
}

#[test]
fn the_unused_sessions_of_a_search_are_closed() {
    let rds = cluster(2);
    let pool = pool(&rds);
    rds.failover(1).unwrap();
    drop(pool.get().unwrap());
    let sessions = || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        let count = diesel::dsl::sql::<diesel::sql_types::BigInt>(count);
        rds.nodes()
            .into_iter()
            .map(|node| {
                let superuser = rds.superuser_of(node);
                superuser.map_or(-1, |mut it| count.clone().get_result::<i64>(&mut it).unwrap())
            })
            .sum::<i64>()
    };
    eventually("only the connections of the pool remain", || {
        sessions() == i64::from(pool.state().connections)
    });
}

/// Writes, fails over to node 1, and writes again.
fn survives_a_failover(rds: &LocalRds, manager: &RdsConnectionManager) {
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let write = || pool.get().unwrap().batch_execute("INSERT INTO rows VALUES (1)").unwrap();
    write();
    rds.failover(1).unwrap();
    write();
    assert_eq!(rows(&mut rds.superuser().unwrap()), [1, 1]);
}

#[test]
fn a_multi_az_cluster_lists_its_nodes_in_another_way() {
    let rds = cluster(1);
    let builder = rds.manager_builder().topology(Topology::MultiAz);
    survives_a_failover(&rds, &builder.build(rds.cluster_url()).unwrap());
}

/// The other region has no servers at all.
#[test]
fn a_global_database_has_nodes_in_the_region_of_each_named_endpoint() {
    let rds = cluster(1);
    let port = rds.port();
    let other = format!("local.cluster-xyz789.eu-west-1.rds.amazonaws.com:{port}");
    let url = rds.cluster_url().replacen(&format!(":{port}"), &format!(":{port},{other}"), 1);
    // Each host is signed for the region in its name.
    let url = url.replace("&region_name=us-east-1", "");
    assert!(!url.contains("region_name"), "{url}");
    survives_a_failover(&rds, &builder(&rds).build(url).unwrap());
}
