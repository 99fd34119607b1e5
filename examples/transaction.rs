//! What a transaction's error means for the examples.

use diesel::result::{DatabaseErrorKind, Error as QueryError};
use diesel_rds_iam::{Error, TransactionError};

/// Returns the cause as the error of a connection or of a query. An unknown outcome becomes a lost
/// connection, and a mistake in the closure an unknown error of a query.
pub(crate) fn cause(error: TransactionError<QueryError>) -> Error {
    let text = error.to_string();
    let kind = match error {
        TransactionError::Closure(cause) | TransactionError::Database(cause) => {
            return cause.into();
        }
        TransactionError::Connection(error) => return error,
        TransactionError::OutcomeUnknown { .. } => DatabaseErrorKind::ClosedConnection,
        _ => DatabaseErrorKind::Unknown,
    };
    QueryError::DatabaseError(kind, Box::new(text)).into()
}
