//! One attempt of a transaction, on one connection.

use std::any::Any;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::dsl::sql;
use diesel::result::Error as QueryError;
use diesel::sql_types::Bool;
use diesel::{NullableExpressionMethods, PgConnection, QueryResult, RunQueryDsl};

use super::error::TransactionError;
use super::options::Options;
use super::outcome::Written;
use super::retries::Cause;
use crate::connection::{Backend, Failure, IS_READ_WRITE, Lsn, Means, Record};

use crate::error::{Retirement, one_line};

/// How an attempt ended.
pub(super) enum End<T, E> {
    Committed(T),
    /// The transaction is not in the database.
    Failed {
        cause: Cause,
        error: TransactionError<E>,
    },
    /// COMMIT was sent, and the connection was lost before the answer.
    AnswerLost {
        value: T,
        written: Written,
        error: QueryError,
    },
    Panicked(Box<dyn Any + Send>),
}

fn failed<T, E>(cause: impl Into<Cause>, error: TransactionError<E>) -> End<T, E> {
    End::Failed { cause: cause.into(), error }
}

pub(super) fn attempt<T, E>(
    connection: &mut PgConnection,
    options: &Options,
    run: &mut impl FnMut(&mut PgConnection) -> Result<T, E>,
) -> End<T, E> {
    let tracking = match begin(connection, options) {
        Ok(tracking) => tracking,
        Err(error) => return failed(Failure::of(&error), TransactionError::Database(error)),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| run(connection)));
    match outcome {
        Err(panic) => {
            roll_back(connection);
            if let Some(record) = Record::of(connection) {
                record.retire(Retirement::Panic);
            }
            End::Panicked(panic)
        }
        Ok(_) if was_ended(connection) => {
            roll_back(connection);
            failed(Cause::Other, TransactionError::EndedByClosure)
        }
        Ok(Err(error)) => {
            let failure = noted_failure(connection).map_or(Failure::Other, |(failure, _)| failure);
            let cause = cause_after_rollback(connection, options, failure);
            failed(cause, TransactionError::Closure(error))
        }
        Ok(Ok(value)) => commit(connection, options, tracking, value),
    }
}

/// How the outcome can be found later: not at all for a transaction that writes nothing.
enum Tracking {
    ReadOnly,
    By(Backend),
}

fn begin(connection: &mut PgConnection, options: &Options) -> QueryResult<Tracking> {
    let tracking =
        if options.is_read_only { Tracking::ReadOnly } else { Tracking::By(backend(connection)?) };
    AnsiTransactionManager::begin_transaction_sql(connection, &options.begin())?;
    if let Some(record) = Record::of(connection) {
        record.restart_progress();
    }
    Ok(tracking)
}

/// Asks once for each connection. If the program replaced the record, once for each transaction.
fn backend(connection: &mut PgConnection) -> QueryResult<Backend> {
    if let Some(known) = Record::of(connection).and_then(|record| record.backend()) {
        return Ok(known);
    }
    let backend = Backend::of(connection)?;
    // A standby that is promoted has an end of the log.
    if !backend.is_standby
        && let Some(record) = Record::of(connection)
    {
        record.set_backend(backend);
    }
    Ok(backend)
}

fn was_ended(connection: &mut PgConnection) -> bool {
    let has_raw_control =
        Record::of(connection).is_some_and(|record| record.progress().has_raw_control);
    has_raw_control || matches!(depth(connection), Ok(None))
}

/// Returns how many transactions are open, one in another, as diesel knows it.
fn depth(connection: &mut PgConnection) -> QueryResult<Option<NonZeroU32>> {
    AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth()
}

fn noted_failure(connection: &mut PgConnection) -> Option<(Failure, String)> {
    let (failure, text) = Record::of(connection)?.progress().failure()?;
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

fn cause_after_rollback(
    connection: &mut PgConnection,
    options: &Options,
    failure: Failure,
) -> Cause {
    roll_back(connection);
    match failure {
        Failure::ReadOnly if options.is_read_only => Cause::Other,
        Failure::ReadOnly => {
            let accepts_writes = sql::<Bool>(IS_READ_WRITE).get_result::<bool>(connection);
            Cause::ReadOnly { is_server: !accepts_writes.unwrap_or(false) }
        }
        other => other.into(),
    }
}

fn commit<T, E>(
    connection: &mut PgConnection,
    options: &Options,
    tracking: Tracking,
    value: T,
) -> End<T, E> {
    let written = match before_commit(connection, options, &tracking) {
        Ok(written) => written,
        Err(end) => return end,
    };
    let error = match AnsiTransactionManager::commit_transaction(connection) {
        Ok(()) => return End::Committed(value),
        Err(error) => error,
    };
    match Failure::of(&error) {
        Failure::ConnectionLost => {
            log::debug!("no answer to COMMIT: {}", one_line(&error));
            if let Some(record) = Record::of(connection) {
                record.retire(Retirement::Closed);
            }
            End::AnswerLost { value, written, error }
        }
        _ => refused(connection, options, error),
    }
}

/// Checks that the transaction can be committed, and asks for its number.
fn before_commit<T, E>(
    connection: &mut PgConnection,
    options: &Options,
    tracking: &Tracking,
) -> Result<Written, End<T, E>> {
    match depth(connection) {
        Ok(Some(depth)) if depth.get() > 1 => {
            roll_back(connection);
            return Err(failed(Cause::Other, TransactionError::SavepointLeftOpen));
        }
        Ok(_) => {}
        Err(error) => {
            return Err(failed(Failure::of(&error), TransactionError::Database(error)));
        }
    }
    let noted = noted_failure(connection);
    let has_record = Record::of(connection).is_some();
    // A COPY that was left open would go wrong without an error: libpq ends it at the next query.
    let has_copied = Record::of(connection).is_none_or(|record| record.progress().has_copied);
    if (has_copied || noted.is_some())
        && let Err(error) = connection.batch_execute("SELECT 1")
    {
        let is_aborted = Failure::of(&error) == Failure::Other;
        return Err(match noted {
            Some((failure, text)) if is_aborted => {
                let cause = cause_after_rollback(connection, options, failure);
                failed(cause, TransactionError::IgnoredFailure { failure: text })
            }
            None if is_aborted && has_record => {
                roll_back(connection);
                failed(Cause::Other, TransactionError::CopyLeftOpen)
            }
            None if is_aborted => {
                roll_back(connection);
                let failure = one_line(&error);
                failed(Cause::Other, TransactionError::IgnoredFailure { failure })
            }
            _ => refused(connection, options, error),
        });
    }
    let Tracking::By(backend) = tracking else { return Ok(Written::Nothing) };
    let backend = *backend;
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
fn refused<T, E>(connection: &mut PgConnection, options: &Options, error: QueryError) -> End<T, E> {
    let cause = cause_after_rollback(connection, options, Failure::of(&error));
    failed(cause, TransactionError::Database(error))
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
