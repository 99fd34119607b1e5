//! One attempt of a transaction, on one connection.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::dsl::sql;
use diesel::result::Error as QueryError;
use diesel::sql_types::Bool;
use diesel::{NullableExpressionMethods, PgConnection, QueryResult, RunQueryDsl};

use super::error::TransactionError;
use super::options::Options;
use super::outcome::Written;
use crate::connection::{Backend, Failure, IS_READ_WRITE, Lsn, Means, Progress, Record};
use crate::error::{Retirement, one_line};

/// How an attempt ended that sent COMMIT.
pub(super) enum End<T> {
    Committed(T),
    /// The connection was lost before the answer.
    AnswerLost {
        value: T,
        written: Written,
        error: QueryError,
    },
}

/// Why the transaction is not in the database.
pub(super) type Failed<E> = (Failure, TransactionError<E>);

fn failed<E>(error: QueryError) -> Failed<E> {
    (Failure::of(&error), TransactionError::Database(error))
}

/// # Panics
/// If `run` panics. The connection is closed at its check-in.
pub(super) fn attempt<T, E>(
    connection: &mut PgConnection,
    options: &Options,
    run: &mut impl FnMut(&mut PgConnection) -> Result<T, E>,
) -> Result<End<T>, Failed<E>> {
    let backend = begin(connection, options).map_err(failed)?;
    let outcome = catch_unwind(AssertUnwindSafe(|| run(connection))).unwrap_or_else(|panic| {
        roll_back(connection);
        resume_unwind(panic)
    });
    match outcome {
        _ if was_ended(connection) => {
            roll_back(connection);
            Err((Failure::Other, TransactionError::EndedByClosure))
        }
        Err(error) => {
            let failure = noted_failure(connection).map_or(Failure::Other, |(failure, _)| failure);
            let failure = failure_after_rollback(connection, options, failure);
            Err((failure, TransactionError::Closure(error)))
        }
        Ok(value) => commit(connection, options, backend, value),
    }
}

/// Returns by what the outcome can be found later. Returns `None` for a transaction that writes
/// nothing.
fn begin(connection: &mut PgConnection, options: &Options) -> QueryResult<Option<Backend>> {
    let backend = if options.is_read_only { None } else { Some(backend(connection)?) };
    AnsiTransactionManager::begin_transaction_sql(connection, &options.begin())?;
    if let Some(record) = Record::of(connection) {
        record.progress = Progress::default();
    }
    Ok(backend)
}

/// Queries it once for each connection, or for each transaction if the program replaced the record.
fn backend(connection: &mut PgConnection) -> QueryResult<Backend> {
    if let Some(known) = Record::of(connection).and_then(|record| record.backend) {
        return Ok(known);
    }
    let backend = Backend::of(connection)?;
    // A standby that is promoted has an end of the log.
    if !backend.is_standby
        && let Some(record) = Record::of(connection)
    {
        record.backend = Some(backend);
    }
    Ok(backend)
}

fn was_ended(connection: &mut PgConnection) -> bool {
    let has_raw_control =
        Record::of(connection).is_some_and(|record| record.progress.has_raw_control);
    has_raw_control || matches!(depth(connection), Ok(None))
}

/// Returns how many transactions are open, one in another, as diesel knows it.
fn depth(connection: &mut PgConnection) -> QueryResult<Option<NonZeroU32>> {
    AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth()
}

fn noted_failure(connection: &mut PgConnection) -> Option<(Failure, String)> {
    let (failure, text) = Record::of(connection)?.progress.failure()?;
    Some((failure, text.to_owned()))
}

/// A connection that this cannot clean is lost or will be closed at its check-in. The server rolls
/// back then.
fn roll_back(connection: &mut PgConnection) {
    while let Ok(Some(_)) = depth(connection) {
        if let Err(error) = AnsiTransactionManager::rollback_transaction(connection) {
            log::debug!("cannot roll back: {}", one_line(&error));
            return;
        }
    }
}

/// Rolls back. A server that refuses all writes, as a standby does, counts as a lost connection.
fn failure_after_rollback(
    connection: &mut PgConnection,
    options: &Options,
    failure: Failure,
) -> Failure {
    roll_back(connection);
    if failure != Failure::ReadOnly {
        return failure;
    }
    if options.is_read_only {
        return Failure::Other;
    }
    let accepts_writes = sql::<Bool>(IS_READ_WRITE).get_result::<bool>(connection);
    if accepts_writes.unwrap_or(false) { Failure::ReadOnly } else { Failure::ConnectionLost }
}

fn commit<T, E>(
    connection: &mut PgConnection,
    options: &Options,
    backend: Option<Backend>,
    value: T,
) -> Result<End<T>, Failed<E>> {
    let written = before_commit(connection, options, backend)?;
    let Err(error) = AnsiTransactionManager::commit_transaction(connection) else {
        return Ok(End::Committed(value));
    };
    if Failure::of(&error) != Failure::ConnectionLost {
        return Err(refused(connection, options, error));
    }
    log::debug!("no answer to COMMIT: {}", one_line(&error));
    if let Some(record) = Record::of(connection) {
        record.retire(Retirement::Closed);
    }
    Ok(End::AnswerLost { value, written, error })
}

/// Checks that the transaction can be committed, and queries its number.
fn before_commit<E>(
    connection: &mut PgConnection,
    options: &Options,
    backend: Option<Backend>,
) -> Result<Written, Failed<E>> {
    if depth(connection).map_err(failed)?.is_some_and(|depth| depth.get() > 1) {
        roll_back(connection);
        return Err((Failure::Other, TransactionError::SavepointLeftOpen));
    }
    let noted = noted_failure(connection);
    let has_record = Record::of(connection).is_some();
    // A COPY that was left open would go wrong without an error: libpq ends it at the next query.
    let has_copied = Record::of(connection).is_none_or(|record| record.progress.has_copied);
    if (has_copied || noted.is_some())
        && let Err(error) = connection.batch_execute("SELECT 1")
    {
        if Failure::of(&error) != Failure::Other {
            return Err(refused(connection, options, error));
        }
        let cause = noted.as_ref().map_or(Failure::Other, |(failure, _)| *failure);
        let failure = failure_after_rollback(connection, options, cause);
        return Err(match noted {
            None if has_record => (failure, TransactionError::CopyLeftOpen),
            noted => {
                let text = noted.map_or_else(|| one_line(&error), |(_, text)| text);
                (failure, TransactionError::IgnoredFailure { failure: text })
            }
        });
    }
    let Some(backend) = backend else { return Ok(Written::Nothing) };
    if backend.means == Means::Nothing {
        return Ok(Written::Unknown);
    }
    match xid_and_lsn(connection, backend.means) {
        Ok((Some(xid), lsn)) => Ok(Written::Xid { xid, lsn, backend }),
        Ok((None, _)) => Ok(Written::Nothing),
        Err(error) => Err(refused(connection, options, error)),
    }
}

/// The server refused a statement of the transaction itself.
fn refused<E>(connection: &mut PgConnection, options: &Options, error: QueryError) -> Failed<E> {
    let failure = failure_after_rollback(connection, options, Failure::of(&error));
    (failure, TransactionError::Database(error))
}

diesel::define_sql_function! {
    /// PostgreSQL's type is xid8. On the wire it is like a bigint.
    fn pg_current_xact_id_if_assigned() -> Nullable<BigInt>;
}

diesel::define_sql_function! {
    /// PostgreSQL's type is pg_lsn. On the wire it is like a bigint.
    fn pg_current_wal_insert_lsn() -> BigInt;
}

/// A prepared statement: parsing takes the server longer than all else here.
fn xid_and_lsn(
    connection: &mut PgConnection,
    means: Means,
) -> QueryResult<(Option<u64>, Option<Lsn>)> {
    let xid = pg_current_xact_id_if_assigned();
    let (xid, lsn): (Option<i64>, Option<i64>) = match means {
        Means::XidAndLsn => {
            let row = diesel::select((xid, pg_current_wal_insert_lsn().nullable()));
            row.get_result(connection)?
        }
        Means::Xid | Means::Nothing => (diesel::select(xid).get_result(connection)?, None),
    };
    Ok((xid.map(i64::cast_unsigned), lsn.map(|lsn| Lsn(lsn.cast_unsigned()))))
}
