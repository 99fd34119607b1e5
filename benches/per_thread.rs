//! Measures the begin and end of a unit of work on the connection of a thread, beside a checkout
//! from a pool.
//!
//!     cargo bench --features full --bench per_thread
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use std::sync::Barrier;
use std::thread;

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::Pool;
use diesel_rds_iam::{PerThread, RdsConnectionManager};

use support::{conninfo, in_alternation, median, microseconds};

const ROUNDS: usize = 501;
const UNITS: u32 = 1000;

fn main() {
    let rds = LocalRds::start().unwrap();
    let conninfo = conninfo(rds.port(), rds.ca_file());
    let manager =
        rds.manager_builder().region_name(rds.endpoint().region()).build(conninfo).unwrap();
    println!(
        "Medians in microseconds of {ROUNDS} rounds of {UNITS} units of work without a query.\n"
    );
    println!("| threads | PerThread | PerThread, untested | pool | pool, untested |");
    println!("|---|---|---|---|---|");
    for threads in [1, 2, 8] {
        let [per_thread, per_thread_untested, pool, pool_untested] = measure(&manager, threads);
        println!(
            "| {threads} | {per_thread:.2} | {per_thread_untested:.2} | {pool:.2} | \
             {pool_untested:.2} |"
        );
    }
}

/// Measures all threads on the same side at the same time.
fn measure(manager: &RdsConnectionManager, threads: u32) -> [f64; 4] {
    let per_thread = PerThread::new(manager.clone());
    let per_thread_untested = PerThread::new(manager.clone()).test_on_check_out(false);
    let pool = |tested| {
        Pool::builder().max_size(threads).test_on_check_out(tested).build(manager.clone()).unwrap()
    };
    let pool_untested = pool(false);
    let pool = pool(true);
    let start = Barrier::new(threads as usize);
    let at_once = |unit: &dyn Fn()| {
        start.wait();
        microseconds(UNITS, unit)
    };
    let one_thread = || {
        let sides: [&mut dyn FnMut() -> f64; 4] = [
            &mut || at_once(&|| drop(per_thread.get().unwrap())),
            &mut || at_once(&|| drop(per_thread_untested.get().unwrap())),
            &mut || at_once(&|| drop(pool.get().unwrap())),
            &mut || at_once(&|| drop(pool_untested.get().unwrap())),
        ];
        in_alternation(ROUNDS, sides)
    };
    let medians: Vec<[f64; 4]> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    [0, 1, 2, 3].map(|side| median(medians.iter().map(|of_thread| of_thread[side]).collect()))
}
