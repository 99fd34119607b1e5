//! [`MigrationError`]: why migrations did not run.

use std::error::Error;

use diesel::result::Error as QueryError;

use crate::error::one_line;

/// Why [`run_pending_migrations`](super::run_pending_migrations) failed.
///
/// Statements before the one that failed stay executed, and another call does not repeat them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The migrations could not be read. Nothing ran.
    #[error("cannot read the migrations: {}", one_line(.0))]
    Source(Box<dyn Error + Send + Sync>),

    /// A migration is not a file of SQL. Nothing ran.
    #[error("migration {name} is not a file of SQL: {}; write it as up.sql", one_line(cause))]
    #[non_exhaustive]
    NotSql {
        /// The name of the migration.
        name: String,
        /// What it said.
        cause: Box<dyn Error + Send + Sync>,
    },

    /// A migration contains BEGIN, COMMIT, SAVEPOINT or the like. Nothing ran.
    #[error(
        "migration {at} controls a transaction, but each statement is one already; remove it, and \
         write the body of a function as a string ($$...$$)"
    )]
    #[non_exhaustive]
    Control {
        /// The migration and its statement.
        at: String,
    },

    /// A migration was executed in part, and its file was changed or removed since. Nothing ran.
    #[error(
        "migration {version} was interrupted after {executed} statements, which have changed since; \
         restore them, or undo them by hand and then run UPDATE __diesel_dsql_migrations SET \
         version = NULL"
    )]
    #[non_exhaustive]
    Changed {
        /// The version of the migration.
        version: String,
        /// How many of its statements were executed.
        executed: i32,
    },

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
        "migration {at} was perhaps executed before a connection was lost, the server says: {}; undo \
         it (DROP INDEX for an index) and run again, or keep it: UPDATE __diesel_dsql_migrations SET \
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
        "migration {at}: job {job} ended as {status}: {}; drop the index or the constraint, correct \
         the cause, and run again",
        one_line(details)
    )]
    #[non_exhaustive]
    Job {
        /// The migration and its statement.
        at: String,
        /// The id of the job in `sys.jobs`.
        job: String,
        /// Its status.
        status: String,
        /// What the server says about it.
        details: String,
    },

    /// Another program runs the migrations, because this one was silent for too long.
    #[error("another program has taken over the migrations; wait for it, and run again")]
    Taken,

    /// The tables about the migrations could not be read or written.
    #[error(
        "cannot record the progress of the migrations: {}; allow the user to create tables in this \
         schema, or run again if the connection was lost",
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
