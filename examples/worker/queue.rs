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

/// After so many the job is dead.
const MAX_ATTEMPTS: i32 = 5;
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(600);

#[derive(Queryable, Selectable)]
struct Job {
    id: i64,
    payload: String,
    attempts: i32,
}

/// What has become of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    Done,
    /// It failed, and is tried again.
    Retried,
    Dead,
}

pub(crate) fn enqueue(payloads: &[String], connection: &mut PgConnection) -> QueryResult<usize> {
    let rows: Vec<_> = payloads.iter().map(|payload| jobs::payload.eq(payload)).collect();
    diesel::insert_into(jobs::table).values(rows).execute(connection)
}

/// Whether there is nothing left to do, now or later.
pub(crate) fn is_empty(connection: &mut PgConnection) -> QueryResult<bool> {
    diesel::select(not(exists(jobs::table.filter(jobs::died_at.is_null())))).get_result(connection)
}

/// Does the next job that is due, if there is one. An error is not of the job but of the
/// connection, and then nothing has happened; or all of it has, if the answer to the commit was
/// lost.
pub(crate) fn do_next(connection: &mut PgConnection) -> QueryResult<Option<Outcome>> {
    connection.transaction(|connection| {
        let Some(job) = next(connection)? else { return Ok(None) };
        let outcome = match perform(&job, connection) {
            Ok(()) => {
                diesel::delete(jobs::table.find(job.id)).execute(connection)?;
                Outcome::Done
            }
            Err(failure) => note(&failure, &job, connection)?,
        };
        log::debug!("job {}: {outcome:?}", job.id);
        Ok(Some(outcome))
    })
}

/// Locks it: others pass it over until the transaction ends.
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

/// Inside of a savepoint: what a job that fails has done goes, and the note of it stays. A panic is
/// a failure like others, or the job would come again for ever, and take a thread along each time.
fn perform(job: &Job, connection: &mut PgConnection) -> Result<(), Failure> {
    connection.transaction(|connection| {
        let ours = depth(connection)?;
        let perform = || job::perform(job.id, &job.payload, connection);
        // What a panic leaves in disorder is the connection, and that is put in order here.
        catch_unwind(AssertUnwindSafe(perform)).unwrap_or_else(|_| {
            while depth(connection)? > ours {
                AnsiTransactionManager::rollback_transaction(connection)?;
            }
            Err(Failure::Panic)
        })
    })
}

/// How many transactions are open, one in another.
fn depth(connection: &mut PgConnection) -> QueryResult<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    Ok(status.transaction_depth()?.map_or(0, NonZeroU32::get))
}

/// Notes the failure, if the connection lets it: that a connection died is not the job's fault, and
/// counts for nothing.
fn note(failure: &Failure, job: &Job, connection: &mut PgConnection) -> QueryResult<Outcome> {
    let attempts = job.attempts.saturating_add(1);
    let dies = attempts >= MAX_ATTEMPTS || matches!(failure, Failure::Payload(_));
    // PostgreSQL takes no NUL in a text. A note that cannot be made would let the job come again
    // for ever.
    let failure = failure.to_string().replace('\0', "");
    let noted = (jobs::attempts.eq(attempts), jobs::last_error.eq(&failure));
    let job_row = diesel::update(jobs::table.find(job.id));
    if dies {
        job_row.set((noted, jobs::died_at.eq(now))).execute(connection)?;
        log::error!("job {} is dead: {failure}", job.id);
        return Ok(Outcome::Dead);
    }
    let wait = back_off(job.attempts.unsigned_abs(), FIRST_BACK_OFF, LONGEST_BACK_OFF);
    // now() is when the transaction began, and the job.
    let run_at = sql::<Timestamptz>("clock_timestamp() + ")
        .bind::<Interval, _>(wait.as_secs_f64().seconds());
    job_row.set((noted, jobs::run_at.eq(run_at))).execute(connection)?;
    log::warn!("job {} failed, and is tried again in {wait:?}: {failure}", job.id);
    Ok(Outcome::Retried)
}

/// Doubles with each failure.
pub(crate) fn back_off(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures)).min(longest)
}
