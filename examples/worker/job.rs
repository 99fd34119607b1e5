//! The work of one job.

use diesel::prelude::*;
use diesel::sql_types::Double;
use serde::Deserialize;

use crate::schema::ledger;

/// The payload of a job: an account pays its share of an amount.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    account: i32,
    amount: i32,
    #[serde(default = "one")]
    of: i32,
    /// How long the job takes.
    #[serde(default)]
    seconds: f64,
}

fn one() -> i32 {
    1
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A retry would fail too.
    #[error("unusable payload: {0}")]
    Payload(#[from] serde_json::Error),
    #[error("{0}")]
    Query(#[from] diesel::result::Error),
    #[error("the job panicked; the log has the details")]
    Panic,
}

/// Runs a job. Its changes on this connection happen once. Effects elsewhere can happen twice.
///
/// A deferred constraint fails at the commit, after the savepoint of the job, and is not counted as
/// a failure of the job: end such a job with SET CONSTRAINTS ALL IMMEDIATE.
///
/// For tests, two payloads fail: the ledger refuses the amount 0, and `"of": 0` panics.
pub(crate) fn perform(
    job: i64,
    payload: &str,
    has_savepoints: bool,
    connection: &mut PgConnection,
) -> Result<(), Failure> {
    let share: Share = serde_json::from_str(payload)?;
    if has_savepoints {
        connection.transaction(|connection| share.pay(job, connection))
    } else {
        share.pay(job, connection)
    }
}

impl Share {
    fn pay(&self, job: i64, connection: &mut PgConnection) -> Result<(), Failure> {
        let amount = self.amount / self.of;
        let row =
            (ledger::job_id.eq(job), ledger::account.eq(self.account), ledger::amount.eq(amount));
        diesel::insert_into(ledger::table).values(row).execute(connection)?;
        diesel::sql_query("SELECT pg_sleep($1)")
            .bind::<Double, _>(self.seconds)
            .execute(connection)?;
        Ok(())
    }
}

pub(crate) const ABOUT_SAMPLES: &str =
    "enqueued 20 jobs, and 1 that fails on purpose, to show a dead job";

/// Returns the jobs of [`ABOUT_SAMPLES`].
pub(crate) fn samples() -> Vec<String> {
    let mut samples: Vec<String> = (1..=20)
        .map(|account| {
            format!(r#"{{"account": {account}, "amount": 60, "of": 20, "seconds": 0.05}}"#)
        })
        .collect();
    samples.push("broken on purpose".into());
    samples
}
