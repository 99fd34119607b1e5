//! Measures a restart and an outage of 13 seconds under the load of eight threads, beside diesel's
//! manager: how many operations fail, and when all threads succeed again.
//!
//!     cargo bench --features full --bench outage
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

/// The operations of one outage.
struct Outcome {
    failed: f64,
    /// Seconds from the end of the outage until all threads have succeeded.
    recovery: f64,
}

fn main() {
    let rds = LocalRds::start().unwrap();
    println!(
        "| outage | ours: failed, s | diesel's: failed, s | \
         diesel's without test_on_check_out: failed, s |"
    );
    println!("|---|---|---|---|");
    for (name, outage, rounds) in [("a restart", 0, 7), ("13 seconds", 13, 3)] {
        let mut outcomes: [Vec<Outcome>; 3] = Default::default();
        for _ in 0..rounds {
            outcomes[0].push(with_ours(&rds, Duration::from_secs(outage)));
            outcomes[1].push(with_diesels(&rds, Duration::from_secs(outage), true));
            outcomes[2].push(with_diesels(&rds, Duration::from_secs(outage), false));
        }
        let cells = outcomes.map(|outcomes| {
            let failed = outcomes.iter().map(|outcome| outcome.failed).collect();
            let recovery = outcomes.iter().map(|outcome| outcome.recovery).collect();
            format!("{}, {:.2}", median(failed), median(recovery))
        });
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn with_ours(rds: &LocalRds, outage: Duration) -> Outcome {
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(CONNECTIONS)).unwrap();
    run_outage(rds, pool.as_ref(), outage)
}

fn with_diesels(rds: &LocalRds, outage: Duration, test_on_check_out: bool) -> Outcome {
    let token = rds.manager_builder().build(rds.database_url()).unwrap().token().unwrap();
    let conninfo = format!("{} password='{}'", conninfo(rds.port(), rds.ca_file()), token.as_str());
    let builder = r2d2::Pool::builder().max_size(CONNECTIONS).test_on_check_out(test_on_check_out);
    // By default r2d2 logs each refused connection.
    let builder = builder.error_handler(Box::new(r2d2::NopErrorHandler));
    run_outage(
        rds,
        &builder.build(ConnectionManager::<PgConnection>::new(conninfo)).unwrap(),
        outage,
    )
}

fn run_outage<M: ManageConnection<Connection = PgConnection>>(
    rds: &LocalRds,
    pool: &r2d2::Pool<M>,
    outage: Duration,
) -> Outcome {
    let back = OnceLock::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| work(pool, &back))).collect();
        thread::sleep(Duration::from_millis(200));
        rds.stop();
        thread::sleep(outage);
        rds.restart().unwrap();
        back.set(Instant::now()).unwrap();
        let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
        outcomes.fold(Outcome { failed: 0.0, recovery: 0.0 }, |all, one| Outcome {
            failed: all.failed + one.failed,
            recovery: all.recovery.max(one.recovery),
        })
    })
}

/// Runs queries until the first success after the outage.
fn work<M: ManageConnection<Connection = PgConnection>>(
    pool: &r2d2::Pool<M>,
    back: &OnceLock<Instant>,
) -> Outcome {
    let mut failed = 0.0;
    loop {
        let worked = pool
            .get()
            .is_ok_and(|mut connection| connection.batch_execute("SELECT pg_sleep(0.001)").is_ok());
        match back.get() {
            Some(back) if worked => {
                return Outcome { failed, recovery: back.elapsed().as_secs_f64() };
            }
            _ if worked => {}
            _ => failed += 1.0,
        }
    }
}
