//! [`MigrationError`]: why migrations did not run.

use diesel::result::Error as QueryError;

use crate::error::one_line;

/// Why [`run_pending_migrations`](super::run_pending_migrations) failed.
///
/// Statements before the one that failed stay executed, and another call does not repeat them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The migrations cannot be used, and nothing ran: they cannot be read, are not SQL, or contain
    /// BEGIN, COMMIT, SAVEPOINT or the like. Or one was executed in part, and was changed since.
    #[error("{0}")]
    Unusable(String),

    /// A statement failed, or the connection was lost.
    #[error("migration {at}: {}; {}", one_line(cause), cure(at, cause))]
    #[non_exhaustive]
    Statement {
        /// The migration and its statement.
        at: String,
        /// What the server said.
        cause: QueryError,
    },

    /// A connection was lost during this statement, and it is not clear whether the server
    /// executed it.
    #[error(
        "migration {at} was perhaps executed before a connection was lost: {}; undo it (for an \
         index, DROP INDEX) and run again, or keep it: UPDATE __diesel_dsql_migrations SET \
         executed = executed + 1, is_started = false",
        one_line(cause)
    )]
    #[non_exhaustive]
    Unknown {
        /// The migration and its statement.
        at: String,
        /// What the server said to its repetition.
        cause: QueryError,
    },

    /// The job of an index or a constraint failed.
    #[error(
        "migration {at}: its job ended as {}; drop the index or the constraint, correct the cause, \
         and run again",
        one_line(details)
    )]
    #[non_exhaustive]
    Job {
        /// The migration and its statement.
        at: String,
        /// The status of the job, and what `sys.jobs` says about it.
        details: String,
    },

    /// Another program runs the migrations, because this one was silent for too long.
    #[error("another program has taken over the migrations; wait for it, and run again")]
    Taken,

    /// The tables about the migrations could not be read or written.
    #[error(
        "cannot record the progress of the migrations: {}; allow the user to create tables in \
         this schema, or run again if the connection was lost",
        one_line(.0)
    )]
    Bookkeeping(#[from] QueryError),
}

/// diesel's own first migration.
const INITIAL_SETUP: &str = "00000000000000_diesel_initial_setup";

fn cure(at: &str, cause: &QueryError) -> &'static str {
    if super::journal::is_lost(cause) {
        "run again: the progress is recorded"
    } else if at.starts_with(INITIAL_SETUP) {
        "on Aurora DSQL delete this migration's folder: there is no PL/pgSQL, and nothing needs it"
    } else {
        "correct it and run again: the statements before it are not repeated"
    }
}
