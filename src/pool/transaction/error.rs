//! [`TransactionError`]: why a transaction did not commit.

use std::fmt;

use crate::error::{Error, one_line};

/// Why a transaction did not commit, or may not have.
///
/// After each variant but [`OutcomeUnknown`](Self::OutcomeUnknown) and
/// [`EndedByClosure`](Self::EndedByClosure) nothing of the transaction is in the database.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError<E> {
    /// The closure returned this error, and the transaction was rolled back. If the cause was a
    /// conflict or a lost connection, all attempts were used up or the time limit was reached.
    Closure(E),

    /// There was no connection. The closure was not run again.
    Connection(Error),

    /// The server refused BEGIN or COMMIT, or the connection was lost before COMMIT was sent. If
    /// the cause was a conflict or a lost connection, all attempts were used up or the time limit
    /// was reached.
    Database(diesel::result::Error),

    /// The answer to COMMIT was lost, and the outcome could not be queried within the time limit.
    /// The transaction is in the database completely, or not at all.
    #[non_exhaustive]
    OutcomeUnknown {
        /// The number of the transaction, for `SELECT pg_xact_status('...')`. `None` if the server
        /// does not support it.
        xid: Option<u64>,
        /// Why it could not be queried.
        reason: String,
    },

    /// A transaction was started in the closure of another one of the same manager. It could commit
    /// while the outer one is rolled back.
    Nested,

    /// The closure ran BEGIN, COMMIT or ROLLBACK as a raw query. What it did before may be in the
    /// database.
    EndedByClosure,

    /// The closure started a COPY and did not read or write it to its end.
    CopyLeftOpen,

    /// The closure started a nested transaction through diesel's transaction manager and did not
    /// end it.
    SavepointLeftOpen,

    /// A query failed and the closure returned `Ok`. PostgreSQL rolls back such a transaction.
    /// `connection.transaction` would return `Ok`.
    #[non_exhaustive]
    IgnoredFailure {
        /// What the server said about the query.
        failure: String,
    },
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Closure(error) => write!(f, "{error}"),
            TransactionError::Connection(error) => write!(f, "{error}"),
            TransactionError::Database(cause) => {
                write!(f, "the transaction was rolled back: {}", one_line(cause))
            }
            TransactionError::OutcomeUnknown { xid: Some(xid), reason } => write!(
                f,
                "the answer to COMMIT was lost and the outcome is unknown: {reason}; run SELECT \
                 pg_xact_status('{xid}') when the server can be reached"
            ),
            TransactionError::OutcomeUnknown { xid: None, reason } => write!(
                f,
                "the answer to COMMIT was lost and the outcome is unknown: {reason}; check \
                 whether the data is there before you run the transaction again"
            ),
            TransactionError::Nested => f.write_str(
                "a transaction was started in the closure of another one; use the closure's \
                 connection, and connection.transaction for a savepoint",
            ),
            TransactionError::EndedByClosure => f.write_str(
                "the closure ran BEGIN, COMMIT or ROLLBACK as a raw query; remove it: a closure \
                 that returns Ok is committed",
            ),
            TransactionError::CopyLeftOpen => {
                f.write_str("the closure left a COPY open; read or write it to its end")
            }
            TransactionError::SavepointLeftOpen => f.write_str(
                "the closure left a nested transaction open; end it, or use \
                 connection.transaction, which does",
            ),
            TransactionError::IgnoredFailure { failure } => write!(
                f,
                "the closure returned Ok after a failed query: {failure}; return the error, or \
                 run that query in connection.transaction to continue after it"
            ),
        }
    }
}

/// [`source`](std::error::Error::source) is `None`, because `Display` contains the texts of all
/// causes.
impl<E: fmt::Debug + fmt::Display> std::error::Error for TransactionError<E> {}
