//! Measures the CPU time of queries in this process, on a connection of our manager and on one of
//! diesel alone, to the same server.
//!
//!     cargo bench --features full --bench query
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use rustix::time::{ClockId, clock_gettime};

use schema::items;
use support::{conninfo, in_alternation};

const SCHEMA: &str = "CREATE UNLOGGED TABLE items (id integer NOT NULL, a text NOT NULL, \
    b text NOT NULL, c text NOT NULL, d integer NOT NULL, e integer NOT NULL, f bigint NOT NULL, \
    g boolean NOT NULL); CREATE INDEX ON items (id); GRANT ALL ON items TO app";

mod schema {
    diesel::table! {
        items (id) {
            id -> Integer,
            a -> Text,
            b -> Text,
            c -> Text,
            d -> Integer,
            e -> Integer,
            f -> BigInt,
            g -> Bool,
        }
    }
}

#[derive(Insertable)]
#[diesel(table_name = items)]
struct Item {
    id: i32,
    a: String,
    b: String,
    c: String,
    d: i32,
    e: i32,
    f: i64,
    g: bool,
}

impl Item {
    fn new(id: i32) -> Item {
        let text = |column| format!("{column} of row {id}");
        Item { id, a: text("a"), b: text("b"), c: text("c"), d: id, e: 0, f: 1, g: id < 500 }
    }
}

type Query<'a> = &'a dyn Fn(&mut PgConnection);

fn main() {
    let rds = LocalRds::start().unwrap();
    rds.superuser().unwrap().batch_execute(SCHEMA).unwrap();
    let conninfo = conninfo(rds.port(), rds.ca_file());
    let builder = rds.manager_builder().region_name(rds.endpoint().region());
    let manager = builder.iam_host("localhost").iam_port(rds.port()).build(&conninfo).unwrap();
    let token = manager.token().unwrap();
    let with_token = format!("{conninfo} password='{}'", token.as_str());
    let mut ours = manager.connect().unwrap();
    let mut diesels = PgConnection::establish(&with_token).unwrap();

    let rows: Vec<Item> = (0..1000).map(Item::new).collect();
    let ids: Vec<i32> = (0..10_000).collect();
    let insert: Query = &|connection| {
        diesel::insert_into(items::table).values(&rows).execute(connection).unwrap();
    };
    let by_id: Query = &|connection| {
        let query = items::table.filter(items::id.eq(7)).select((items::a, items::d));
        query.first::<(String, i32)>(connection).unwrap();
    };
    let eq_any: Query = &|connection| {
        let query = items::table.filter(items::id.eq_any(&ids)).select(items::id);
        assert_eq!(query.load::<i32>(connection).unwrap().len(), 1000);
    };
    let cached: Query = &|connection| {
        diesel::select(diesel::dsl::now).execute(connection).unwrap();
    };
    let raw: Query = &|connection| {
        diesel::sql_query("SELECT 1").execute(connection).unwrap();
    };

    println!("Medians in microseconds of the client's CPU time.\n");
    println!("| query | rounds | ours | diesel's | ratio |");
    println!("|---|---|---|---|---|");
    let cases = [
        ("insert of 1,000 rows with 8 columns", 301, 1, insert),
        ("select by id", 1001, 100, by_id),
        ("`eq_any` of 10,000 ids", 501, 1, eq_any),
        ("cached statement without binds", 1001, 100, cached),
        ("`sql_query`", 1001, 100, raw),
    ];
    for (name, rounds, calls, query) in cases {
        let sample = |connection: &mut PgConnection| {
            if name.starts_with("insert") {
                connection.batch_execute("TRUNCATE items").unwrap();
            }
            microseconds_of_cpu(calls, || query(connection))
        };
        let [ours, diesels] =
            in_alternation(rounds, [&mut || sample(&mut ours), &mut || sample(&mut diesels)]);
        println!("| {name} | {rounds} | {ours:.1} | {diesels:.1} | {:.3} |", ours / diesels);
    }
}

/// Returns the CPU time of this thread for one call. libpq works in the calling thread.
fn microseconds_of_cpu(calls: u32, mut call: impl FnMut()) -> f64 {
    let cpu = || clock_gettime(ClockId::ThreadCPUTime);
    let started = cpu();
    (0..calls).for_each(|_| call());
    let spent = cpu() - started;
    (spent.tv_sec as f64 * 1e6 + spent.tv_nsec as f64 / 1e3) / f64::from(calls)
}
