//! What a job does.

use diesel::prelude::*;
use diesel::sql_types::Double;
use serde::Deserialize;

use crate::schema::ledger;

/// What a payload says: an account is to pay its share of an amount.
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

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Another time will be no better.
    #[error("unusable payload: {0}")]
    Payload(#[from] serde_json::Error),
    #[error("{0}")]
    Query(#[from] diesel::result::Error),
    #[error("it panicked; the log says where")]
    Panic,
}

/// What it does on this connection is done once, and what it does elsewhere can be done twice. A
/// constraint that is deferred to the commit is past the savepoint, and its violation no attempt:
/// end such a job by SET CONSTRAINTS ALL IMMEDIATE. Jobs of two kinds are here to fail: the ledger
/// takes no amount of 0, and a share of one in 0 panics.
pub(crate) fn perform(
    job: i64,
    payload: &str,
    connection: &mut PgConnection,
) -> Result<(), Failure> {
    let share: Share = serde_json::from_str(payload)?;
    // Inside of the queue's transaction it is one more savepoint.
    connection.transaction(|connection| {
        let amount = share.amount / share.of;
        let row =
            (ledger::job_id.eq(job), ledger::account.eq(share.account), ledger::amount.eq(amount));
        diesel::insert_into(ledger::table).values(row).execute(connection)?;
        diesel::sql_query("SELECT pg_sleep($1)")
            .bind::<Double, _>(share.seconds)
            .execute(connection)?;
        Ok(())
    })
}

/// Jobs to show, one of them broken.
pub(crate) fn samples() -> Vec<String> {
    let mut samples: Vec<String> = (1..=20)
        .map(|account| {
            format!(r#"{{"account": {account}, "amount": 60, "of": 20, "seconds": 0.05}}"#)
        })
        .collect();
    samples.push("broken".into());
    samples
}
