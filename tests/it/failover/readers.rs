//! The reader endpoint of a local cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::prelude::*;
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::eventually_equal;

use super::{builder, cluster, name, node};

fn manager(rds: &LocalRds, more: &str) -> RdsConnectionManager {
    builder(rds).build(format!("{}&{more}", rds.reader_url())).unwrap()
}

/// Returns how many of 6 new connections each node has.
fn spread(manager: &RdsConnectionManager) -> BTreeMap<String, usize> {
    let mut connections: Vec<PgConnection> = (0..6).map(|_| manager.connect().unwrap()).collect();
    let mut counts = BTreeMap::new();
    for connection in &mut connections {
        *counts.entry(node(connection)).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(counts: [(usize, usize); N]) -> BTreeMap<String, usize> {
    counts.map(|(node, count)| (name(node), count)).into()
}

#[test]
fn connections_are_spread_over_the_readers() {
    let rds = cluster(2);
    let manager = manager(&rds, "");
    // It learns of the readers.
    drop(manager.connect().unwrap());
    assert_eq!(spread(&manager), counts([(1, 3), (2, 3)]));
}

#[test]
fn a_reader_that_is_behind_is_not_used() {
    let rds = cluster(2);
    rds.set_replica_lag(1, Duration::from_secs(20)).unwrap();
    let manager = manager(&rds, "max_replica_lag=5000");
    drop(manager.connect().unwrap());
    assert_eq!(spread(&manager), counts([(2, 6)]));
    rds.set_replica_lag(2, Duration::from_secs(20)).unwrap();
    let manager = self::manager(&rds, "max_replica_lag=5000");
    // Also the connections by the reader endpoint, which does not say to which node it leads. The
    // list of nodes can be a second old.
    eventually_equal("the writer takes their place", counts([(0, 6)]), || spread(&manager));
}

#[test]
fn a_reader_that_is_down_is_replaced_by_another() {
    let rds = cluster(2);
    let manager = manager(&rds, "");
    drop(manager.connect().unwrap());
    rds.kill(1).unwrap();
    assert_eq!(spread(&manager), counts([(2, 6)]));
}

#[test]
fn without_readers_the_writer_takes_their_place_and_a_strict_standby_does_not() {
    let rds = cluster(1);
    let preferring = manager(&rds, "");
    let strict = manager(&rds, "target_session_attrs=standby&connect_timeout=2");
    drop(preferring.connect().unwrap());
    rds.kill(1).unwrap();
    assert_eq!(spread(&preferring), counts([(0, 6)]));
    let error = strict.connect().map(drop).unwrap_err().to_string();
    assert!(error.contains("not in hot standby mode"), "{error}");
    rds.rejoin(1).unwrap();
    assert_eq!(spread(&strict), counts([(1, 6)]));
}
