//! [`Condition`]: what the errors of a connection mean for it.

use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;

use crate::error::Retirement;

/// What the errors and answers so far mean.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Condition {
    Sound,
    /// An error may have affected the connection: it has to be pinged.
    Suspect,
    /// The connection cannot be used again.
    Broken(Retirement),
}

/// Returns what an error means for the connection. An error that the data or the query cause means
/// nothing, unless it leaves a transaction that can only be rolled back.
pub(super) fn condition_after(error: &QueryError, in_transaction: bool) -> Condition {
    match error {
        QueryError::DatabaseError(kind, information) => match kind {
            Kind::ClosedConnection | Kind::UnableToSendCommand => {
                Condition::Broken(Retirement::Closed)
            }
            Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::RestrictViolation
            | Kind::NotNullViolation
            | Kind::CheckViolation
            | Kind::ExclusionViolation
                if !in_transaction =>
            {
                Condition::Sound
            }
            _ if has_stale_statements(information.message()) => {
                Condition::Broken(Retirement::StaleStatements)
            }
            _ => Condition::Suspect,
        },
        QueryError::BrokenTransactionManager => Condition::Broken(Retirement::Transaction),
        _ => Condition::Sound,
    }
}

/// Whether a prepared statement of diesel's cache, or a plan of the session, can never work again:
/// the schema has changed, or the statement was deallocated. A new connection has neither. The name
/// of diesel's statements is in the message in every language. What follows a colon may be text of
/// a user, as in `syntax error in tsquery: "..."`.
fn has_stale_statements(message: &str) -> bool {
    const TEXTS: &[&str] = &[
        "__diesel_stmt_",
        "cached plan must not change result type",
        "cache lookup failed for",
        "could not find tuple for",
        "with OID ",
        "table row type and query-specified row type do not match",
    ];
    let message = message.split(": ").next().unwrap_or_default();
    TEXTS.iter().any(|text| message.contains(text))
}
