//! A server that restarts, or is away for 13 seconds, under the load of eight threads: what fails,
//! and how soon after its return all threads are served again. Beside diesel's own manager.
//!
//!     cargo bench --all-features --bench outage
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::ConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{self, ManageConnection};

use support::{conninfo, median};

const THREADS: usize = 8;
const CONNECTIONS: u32 = 10;

/// What became of the operations of one outage.
struct Toll {
    failed: f64,
    /// From the server's return until the last thread was served, in seconds.
    late: f64,
}

fn main() {
    let rds = LocalRds::start().unwrap();
    println!(
        "| outage | ours: failed, s | diesel's: failed, s | diesel's without test_on_check_out: failed, s |"
    );
    println!("|---|---|---|---|");
    for (name, outage, rounds) in [("a restart", 0, 7), ("13 seconds", 13, 3)] {
        let mut tolls: [Vec<Toll>; 3] = Default::default();
        for _ in 0..rounds {
            tolls[0].push(with_ours(&rds, Duration::from_secs(outage)));
            tolls[1].push(with_diesels(&rds, Duration::from_secs(outage), true));
            tolls[2].push(with_diesels(&rds, Duration::from_secs(outage), false));
        }
        let cells = tolls.map(|tolls| {
            let (failed, late) = tolls.into_iter().map(|toll| (toll.failed, toll.late)).unzip();
            format!("{}, {:.2}", median(failed), median(late))
        });
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn with_ours(rds: &LocalRds, outage: Duration) -> Toll {
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(CONNECTIONS)).unwrap();
    toll(rds, pool.as_ref(), outage)
}

fn with_diesels(rds: &LocalRds, outage: Duration, test_on_check_out: bool) -> Toll {
    let token = rds.manager_builder().build(rds.database_url()).unwrap().token().unwrap();
    let conninfo = format!("{} password='{}'", conninfo(rds.port(), rds.ca_file()), token.as_str());
    let builder = r2d2::Pool::builder().max_size(CONNECTIONS).test_on_check_out(test_on_check_out);
    // r2d2 would log each refused connection.
    let builder = builder.error_handler(Box::new(r2d2::NopErrorHandler));
    toll(rds, &builder.build(ConnectionManager::<PgConnection>::new(conninfo)).unwrap(), outage)
}

fn toll<M: ManageConnection<Connection = PgConnection>>(
    rds: &LocalRds,
    pool: &r2d2::Pool<M>,
    outage: Duration,
) -> Toll {
    let back = OnceLock::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| work(pool, &back))).collect();
        thread::sleep(Duration::from_millis(200));
        rds.stop();
        thread::sleep(outage);
        rds.restart().unwrap();
        back.set(Instant::now()).unwrap();
        let tolls = threads.into_iter().map(|thread| thread.join().unwrap());
        tolls.fold(Toll { failed: 0.0, late: 0.0 }, |all, one| Toll {
            failed: all.failed + one.failed,
            late: all.late.max(one.late),
        })
    })
}

/// Until the first success after the server is back.
fn work<M: ManageConnection<Connection = PgConnection>>(
    pool: &r2d2::Pool<M>,
    back: &OnceLock<Instant>,
) -> Toll {
    let mut failed = 0.0;
    loop {
        let worked = pool
            .get()
            .is_ok_and(|mut connection| connection.batch_execute("SELECT pg_sleep(0.001)").is_ok());
        match back.get() {
            Some(back) if worked => return Toll { failed, late: back.elapsed().as_secs_f64() },
            _ if worked => {}
            _ => failed += 1.0,
        }
    }
}
