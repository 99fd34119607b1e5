//! The table of jobs.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::dsl::{IntervalDsl, exists, not, now, sql};
use diesel::prelude::*;
use diesel::sql_types::{Interval, Timestamptz};

use crate::job::{self, Failure};
use crate::schema::jobs;

/// A job is dead after this many failures.
const MAX_ATTEMPTS: i32 = 5;
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(600);

#[derive(Queryable, Selectable)]
struct Job {
    id: i64,
    payload: String,
    attempts: i32,
}

/// The result of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Done,
    /// It failed and will be retried.
    Retried,
    Dead,
}

pub(crate) fn enqueue(payloads: &[String], connection: &mut PgConnection) -> QueryResult<usize> {
    let rows: Vec<_> = payloads.iter().map(|payload| jobs::payload.eq(payload)).collect();
    diesel::insert_into(jobs::table).values(rows).execute(connection)
}

/// Returns whether no job is left, including those that are due later.
pub(crate) fn is_empty(connection: &mut PgConnection) -> QueryResult<bool> {
    diesel::select(not(exists(jobs::table.filter(jobs::died_at.is_null())))).get_result(connection)
}

/// Runs the next job that is due, if there is one. In a transaction, and again if that is retried:
/// what a job does belongs on this connection.
pub(crate) fn run_next(connection: &mut PgConnection) -> QueryResult<Option<Outcome>> {
    let Some(job) = next(connection)? else { return Ok(None) };
    let outcome = match perform(&job, connection) {
        Ok(()) => {
            diesel::delete(jobs::table.find(job.id)).execute(connection)?;
            Outcome::Done
        }
        Err(failure) => record(&failure, &job, connection)?,
    };
    log::debug!("job {}: {outcome:?}", job.id);
    Ok(Some(outcome))
}

/// A job that failed without a savepoint.
pub(crate) struct Failed {
    job: Job,
    failure: Failure,
}

/// As [`run_next`], but without a savepoint, which Aurora DSQL does not have. A failure of the job
/// rolls the transaction back, and needs another one for [`record_failed`].
pub(crate) fn run_next_alone(
    connection: &mut PgConnection,
    failed: &mut Option<Failed>,
) -> QueryResult<Option<Outcome>> {
    *failed = None;
    let Some(job) = next(connection)? else { return Ok(None) };
    let perform = || job::perform(job.id, &job.payload, false, connection);
    if let Err(failure) = catch_unwind(AssertUnwindSafe(perform)).unwrap_or(Err(Failure::Panic)) {
        *failed = Some(Failed { job, failure });
        return Err(diesel::result::Error::RollbackTransaction);
    }
    diesel::delete(jobs::table.find(job.id)).execute(connection)?;
    Ok(Some(Outcome::Done))
}

pub(crate) fn record_failed(
    failed: &Failed,
    connection: &mut PgConnection,
) -> QueryResult<Option<Outcome>> {
    record(&failed.failure, &failed.job, connection).map(Some)
}

/// Returns the next job and locks its row. Other threads skip it until the transaction ends.
fn next(connection: &mut PgConnection) -> QueryResult<Option<Job>> {
    jobs::table
        .filter(jobs::died_at.is_null().and(jobs::run_at.le(now)))
        .order((jobs::run_at, jobs::id))
        .limit(1)
        .for_update()
        .skip_locked()
        .select(Job::as_select())
        .get_result(connection)
        .optional()
}

/// Runs a job in a savepoint: the changes of a failed job are rolled back, and its failure can be
/// recorded. A panic counts as a failure. Otherwise the job would run and panic without end.
fn perform(job: &Job, connection: &mut PgConnection) -> Result<(), Failure> {
    connection.transaction(|connection| {
        let ours = depth(connection)?;
        let perform = || job::perform(job.id, &job.payload, true, connection);
        // A panic can leave transactions of the job open. They are rolled back here.
        catch_unwind(AssertUnwindSafe(perform)).unwrap_or_else(|_| {
            while depth(connection)? > ours {
                AnsiTransactionManager::rollback_transaction(connection)?;
            }
            Err(Failure::Panic)
        })
    })
}

/// Returns the number of nested transactions.
fn depth(connection: &mut PgConnection) -> QueryResult<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    Ok(status.transaction_depth()?.map_or(0, NonZeroU32::get))
}

/// Records a failure. If the connection is lost, this fails too, and the failure is not counted.
fn record(failure: &Failure, job: &Job, connection: &mut PgConnection) -> QueryResult<Outcome> {
    let attempts = job.attempts.saturating_add(1);
    let dies = attempts >= MAX_ATTEMPTS || matches!(failure, Failure::Payload(_));
    // PostgreSQL accepts no NUL in a text. Without a record, the job would be retried without end.
    let failure = failure.to_string().replace('\0', "");
    let changes = (jobs::attempts.eq(attempts), jobs::last_error.eq(&failure));
    let job_row = diesel::update(jobs::table.find(job.id));
    if dies {
        job_row.set((changes, jobs::died_at.eq(now))).execute(connection)?;
        log::error!("job {} is dead: {failure}", job.id);
        return Ok(Outcome::Dead);
    }
    let wait = back_off(job.attempts.unsigned_abs(), FIRST_BACK_OFF, LONGEST_BACK_OFF);
    // now() is the start of the transaction, before the job ran.
    let run_at = sql::<Timestamptz>("clock_timestamp() + ")
        .bind::<Interval, _>(wait.as_secs_f64().seconds());
    job_row.set((changes, jobs::run_at.eq(run_at))).execute(connection)?;
    log::warn!("job {} failed (next attempt in {wait:?}): {failure}", job.id);
    Ok(Outcome::Retried)
}

/// Returns a wait that doubles with each failure.
pub(crate) fn back_off(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures)).min(longest)
}
