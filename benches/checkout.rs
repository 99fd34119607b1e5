//! What it costs to check a connection that was just used out of a pool and in again: with our
//! manager and with diesel's, each with and without its test at checkout.
//!
//!     cargo bench --all-features --bench checkout
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use std::time::Duration;

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::ConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{ManageConnection, Pool};

use support::relay::relay_to;
use support::{conninfo, in_alternation, microseconds};

const ROUNDS: usize = 2001;

fn main() {
    let rds = LocalRds::start().unwrap();
    let farther = relay_to(rds.port(), Duration::from_micros(500)).unwrap();
    println!("Medians in microseconds of {ROUNDS} checkouts, each right after a query.\n");
    println!("| | ours | ours, untested | difference | diesel's | diesel's, untested |");
    println!("|---|---|---|---|---|---|");
    for (name, port) in [("loopback", rds.port()), ("with a round trip of 1 ms added", farther)] {
        let [ours, ours_untested, diesels, diesels_untested] = measure(&rds, port);
        let difference = ours - ours_untested;
        println!(
            "| {name} | {ours:.2} | {ours_untested:.2} | {difference:.2} | {diesels:.2} | {diesels_untested:.2} |"
        );
    }
}

fn measure(rds: &LocalRds, port: u16) -> [f64; 4] {
    let conninfo = conninfo(port, rds.ca_file());
    let ours = rds
        .manager_builder()
        .region_name(rds.endpoint().region())
        .iam_host("localhost")
        .iam_port(rds.port());
    let ours = ours.build(&conninfo).unwrap();
    let token = ours.token().unwrap();
    let diesels = || ConnectionManager::new(format!("{conninfo} password='{}'", token.as_str()));
    let (tested, untested) = (pool(ours.clone(), true), pool(ours, false));
    let (diesels_tested, diesels_untested) = (pool(diesels(), true), pool(diesels(), false));
    let (mut ours, mut ours_untested) = (|| checkout(&tested), || checkout(&untested));
    let (mut diesels, mut diesels_bare) =
        (|| checkout(&diesels_tested), || checkout(&diesels_untested));
    in_alternation(ROUNDS, [&mut ours, &mut ours_untested, &mut diesels, &mut diesels_bare])
}

fn pool<M: ManageConnection<Connection = PgConnection>>(
    manager: M,
    test_on_check_out: bool,
) -> Pool<M> {
    Pool::builder().max_size(1).test_on_check_out(test_on_check_out).build(manager).unwrap()
}

/// Of a connection that was just used, and with what a query leaves in the caches.
fn checkout<M: ManageConnection<Connection = PgConnection>>(pool: &Pool<M>) -> f64 {
    pool.get().unwrap().batch_execute("SELECT 1").unwrap();
    microseconds(1, || drop(pool.get().unwrap()))
}
