//! The same faults for transactions whose outcome is known: none stays unknown.

use std::ops::DerefMut;

use diesel::PgConnection;
use diesel_rds_iam::{PerThread, Pool, TransactionError};

use super::fault::{FAULTS, Fault};
use super::load::{Connections, Run, WriteError};
use super::{run_faults, run_rounds};
use crate::support::in_a_network_of_its_own;
use crate::support::network::SERVER;

/// Runs its transactions by `Pool::transaction` or `PerThread::transaction`.
struct KnownOutcomes<C>(C);

#[test]
fn no_outcome_of_a_pool_stays_unknown() {
    in_a_network_of_its_own("faults::known_outcomes::a_pool", SERVER, &[]);
}

#[test]
fn no_outcome_of_per_thread_stays_unknown() {
    in_a_network_of_its_own("faults::known_outcomes::per_thread", SERVER, &[]);
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn a_pool() {
    run_faults(20, |manager| {
        KnownOutcomes(manager.build_pool(manager.pool_builder().max_size(10)).unwrap())
    });
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn per_thread() {
    run_faults(40, |manager| KnownOutcomes(PerThread::new(manager)));
}

/// Takes about 1 minute:
///
///     cargo test --workspace --features full --test it if_commits_are_cut_100_times -- --ignored
#[test]
#[ignore = "takes 1 minute"]
fn no_outcome_stays_unknown_if_commits_are_cut_100_times() {
    in_a_network_of_its_own("faults::known_outcomes::commits_cut_often", SERVER, &[]);
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn commits_cut_often() {
    let is_cut = |(name, _): &&(&str, Fault)| name.contains("middle of commits");
    let faults: Vec<_> = FAULTS.iter().filter(is_cut).copied().collect();
    assert_eq!(faults.len(), 1);
    run_rounds(100, &faults, 40, |manager| {
        KnownOutcomes(manager.build_pool(manager.pool_builder().max_size(10)).unwrap())
    });
}

impl Connections for KnownOutcomes<Pool> {
    fn get(&self) -> Result<Box<dyn DerefMut<Target = PgConnection> + '_>, String> {
        Connections::get(&self.0)
    }

    fn open(&self) -> u32 {
        self.0.open()
    }

    fn transaction(&self, run: Run<'_>) -> Result<(), WriteError> {
        self.0.transaction(run).map_err(write_error)
    }

    fn knows_outcomes(&self) -> bool {
        true
    }
}

impl Connections for KnownOutcomes<PerThread> {
    fn get(&self) -> Result<Box<dyn DerefMut<Target = PgConnection> + '_>, String> {
        Connections::get(&self.0)
    }

    fn open(&self) -> u32 {
        self.0.open()
    }

    fn transaction(&self, run: Run<'_>) -> Result<(), WriteError> {
        self.0.transaction(run).map_err(write_error)
    }

    fn knows_outcomes(&self) -> bool {
        true
    }
}

fn write_error(error: TransactionError<diesel::result::Error>) -> WriteError {
    let text = error.to_string();
    match error {
        TransactionError::OutcomeUnknown { .. } => WriteError::Unknown(text),
        _ => WriteError::Failed(text),
    }
}
