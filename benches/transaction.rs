//! Measures a transaction of one query: by `Pool::transaction`, and by `connection.transaction` on
//! a connection of the same pool.
//!
//!     cargo bench --features full --bench transaction
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error;
use diesel_rds_iam::Pool;
use diesel_rds_iam::local::LocalRds;

use schema::counters;
use support::relay::relay_to;
use support::{conninfo, in_alternation, microseconds};

const ROUNDS: usize = 1001;
const SCHEMA: &str = "CREATE TABLE counters (id integer PRIMARY KEY, value integer NOT NULL); \
                      INSERT INTO counters VALUES (1, 0); GRANT ALL ON counters TO app";

mod schema {
    diesel::table! {
        counters (id) {
            id -> Integer,
            value -> Integer,
        }
    }
}

fn main() {
    let rds = LocalRds::start().unwrap();
    rds.superuser().unwrap().batch_execute(SCHEMA).unwrap();
    let farther = relay_to(rds.port(), Duration::from_micros(500)).unwrap();
    println!("Medians in microseconds of {ROUNDS} transactions with one query.\n");
    println!("| | connection.transaction | pool.transaction | difference | round trips |");
    println!("|---|---|---|---|---|");
    for (name, port) in [("loopback", rds.port()), ("with a round trip of 1 ms added", farther)] {
        let pool = pool(&rds, port);
        let round_trip = median_round_trip(&pool);
        for (what, [theirs, ours]) in [("write", writes(&pool)), ("read only", reads(&pool))] {
            let difference = ours - theirs;
            println!(
                "| {name}, {what} | {theirs:.0} | {ours:.0} | {difference:.0} | {:.1} |",
                difference / round_trip
            );
        }
    }
}

fn pool(rds: &LocalRds, port: u16) -> Pool {
    let builder = rds.manager_builder().region_name(rds.endpoint().region());
    let manager = builder
        .iam_host("localhost")
        .iam_port(rds.port())
        .build(conninfo(port, rds.ca_file()))
        .unwrap();
    manager.build_pool(manager.pool_builder().max_size(1)).unwrap()
}

fn median_round_trip(pool: &Pool) -> f64 {
    let mut connection = pool.get().unwrap();
    let [median] = in_alternation(
        ROUNDS,
        [&mut || microseconds(1, || connection.batch_execute("SELECT 1").unwrap())],
    );
    median
}

fn writes(pool: &Pool) -> [f64; 2] {
    let write = |connection: &mut PgConnection| {
        let row = diesel::update(counters::table.find(1));
        row.set(counters::value.eq(counters::value + 1)).execute(connection)
    };
    // Their commits wait for the disk in the same way, which would hide the difference.
    pool.get().unwrap().batch_execute("SET synchronous_commit = off").unwrap();
    in_alternation(
        ROUNDS,
        [
            &mut || {
                microseconds(1, || {
                    let mut connection = pool.get().unwrap();
                    (*connection).transaction::<_, Error, _>(write).unwrap();
                })
            },
            &mut || {
                microseconds(1, || {
                    pool.transaction(write).unwrap();
                })
            },
        ],
    )
}

fn reads(pool: &Pool) -> [f64; 2] {
    let read = |connection: &mut PgConnection| {
        counters::table.find(1).select(counters::value).get_result::<i32>(connection)
    };
    in_alternation(
        ROUNDS,
        [
            &mut || {
                microseconds(1, || {
                    let mut connection = pool.get().unwrap();
                    connection.build_transaction().read_only().run::<_, Error, _>(read).unwrap();
                })
            },
            &mut || {
                microseconds(1, || {
                    pool.build_transaction().read_only().run(read).unwrap();
                })
            },
        ],
    )
}
