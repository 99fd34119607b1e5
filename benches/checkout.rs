//! Measures a checkout and the check-in of a connection that was just used: with our manager and
//! with diesel's, each with and without its test at checkout.
//!
//!     cargo bench --features full --bench checkout
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
    let far = relay_to(rds.port(), Duration::from_micros(500)).unwrap();
    println!("Medians in microseconds of {ROUNDS} checkouts, each right after a query.\n");
    println!("| | ours | ours, untested | difference | diesel's | diesel's, untested |");
    println!("|---|---|---|---|---|---|");
    for (name, port) in [("loopback", rds.port()), ("with a round trip of 1 ms added", far)] {
        let [ours, ours_untested, diesels, diesels_untested] = measure(&rds, port);
        let difference = ours - ours_untested;
        println!(
            "| {name} | {ours:.2} | {ours_untested:.2} | {difference:.2} | {diesels:.2} | \
             {diesels_untested:.2} |"
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
    let ours_untested = pool(ours.clone(), false);
    let ours = pool(ours, true);
    let diesels_untested = pool(diesels(), false);
    let diesels = pool(diesels(), true);
    let sides: [&mut dyn FnMut() -> f64; 4] = [
        &mut || checkout(&ours),
        &mut || checkout(&ours_untested),
        &mut || checkout(&diesels),
        &mut || checkout(&diesels_untested),
    ];
    in_alternation(ROUNDS, sides)
}

fn pool<M: ManageConnection<Connection = PgConnection>>(
    manager: M,
    test_on_check_out: bool,
) -> Pool<M> {
    Pool::builder().max_size(1).test_on_check_out(test_on_check_out).build(manager).unwrap()
}

/// Returns the microseconds of a checkout and check-in right after a query, which fills the caches
/// as in a program.
fn checkout<M: ManageConnection<Connection = PgConnection>>(pool: &Pool<M>) -> f64 {
    pool.get().unwrap().batch_execute("SELECT 1").unwrap();
    microseconds(1, || drop(pool.get().unwrap()))
}
