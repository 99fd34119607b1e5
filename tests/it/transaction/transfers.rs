//! Serializable transfers between few accounts by many threads.

use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::result::Error as QueryError;
use diesel_rds_iam::TransactionError;

use super::{add, insert, pool, rows, server, values};

const ACCOUNTS: i32 = 10;
const THREADS: usize = 16;

#[test]
fn serializable_transfers_keep_the_sum_and_no_error_reaches_the_caller() {
    transfer_for(Duration::from_secs(3));
}

#[test]
#[ignore = "takes 30 s; run it with --ignored"]
fn serializable_transfers_for_30_s() {
    transfer_for(Duration::from_secs(30));
}

fn transfer_for(duration: Duration) {
    let rds = server();
    let pool = pool(&rds, 10);
    pool.transaction(|connection| {
        for account in 0..ACCOUNTS {
            insert(account, connection)?;
            add(account, 1000, connection)?;
        }
        Ok::<(), QueryError>(())
    })
    .unwrap();
    let end = Instant::now() + duration;
    let work = || {
        let (mut transfers, mut runs) = (0, 0);
        while Instant::now() < end {
            let [from, to] = [(); 2].map(|()| fastrand::i32(0..ACCOUNTS));
            let transfer = |connection: &mut PgConnection| {
                runs += 1;
                // Reads all accounts, so that transfers between others conflict too.
                let all: Vec<i32> = rows::table.select(rows::value).load(connection)?;
                assert_eq!(all.iter().sum::<i32>(), ACCOUNTS * 1000);
                add(from, -1, connection)?;
                add(to, 1, connection)
            };
            let moved: Result<usize, TransactionError<QueryError>> =
                pool.build_transaction().serializable().run(transfer);
            moved.unwrap();
            transfers += 1;
        }
        (transfers, runs)
    };
    let (transfers, runs) = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap());
        counts.fold((0, 0), |(all, runs), (its, its_runs)| (all + its, runs + its_runs))
    });
    eprintln!("{transfers} transfers in {duration:?}, the closures ran {runs} times");
    let sum: i32 = values(&rds).iter().map(|(_, value)| value).sum();
    assert_eq!(sum, ACCOUNTS * 1000);
    assert!(transfers > 0 && runs > transfers, "{transfers} transfers, {runs} runs");
}
