//! Migrations on Aurora DSQL, which refuses those of diesel's own harness.
//!
//! Aurora DSQL accepts one DDL statement per transaction, and no DDL together with other
//! statements. diesel's harness sends a whole file at once, together with the row in
//! `__diesel_schema_migrations`. [`run_pending_migrations`] sends one statement after the other:
//!
//! ```
//! use diesel_migrations::{EmbeddedMigrations, embed_migrations};
//! use diesel_rds_iam::dsql;
//!
//! const MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations_dsql");
//! # #[cfg(feature = "local")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use diesel_rds_iam::{local::LocalRds, r2d2::ManageConnection};
//! # let rds = LocalRds::builder().dsql().start()?;
//! # let manager = rds.manager_builder().build(rds.database_url())?;
//!
//! let mut connection = manager.connect()?;
//! for name in dsql::run_pending_migrations(&mut connection, MIGRATIONS)? {
//!     println!("{name}");
//! }
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "local"))]
//! # fn main() {}
//! ```
//!
//! [The guide](crate::guide::dsql) shows how to write such migrations.

mod error;
mod journal;
mod script;

use std::collections::HashSet;

use diesel::PgConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;

use crate::error::one_line;
pub use error::MigrationError;
use journal::Journal;
use script::Script;

/// Runs the pending migrations in the order of their versions, and returns their names.
///
/// - Each DDL statement is a transaction. A file can have several statements.
/// - Each other statement is one transaction together with the record that it was executed. So it
///   takes effect once, also if a connection is lost.
/// - `CREATE INDEX ASYNC` is complete when its job has succeeded. The function waits for it.
/// - The row in `__diesel_schema_migrations` follows after the last statement of a migration.
/// - A conflict with another transaction (SQLSTATE 40001) is retried a few times.
///
/// A second program waits until the first has finished. For that, and for the progress within a
/// migration, there is a table `__diesel_dsql_migrations` with one row. A program that was killed
/// blocks others for 2 minutes.
///
/// After a failure, run it again: statements that were executed are not repeated. If a connection
/// was lost during a DDL statement, it is not known whether the server executed it. The statement
/// is repeated then. If the server answers that the object already exists (or that the object of a
/// DROP does not), it counts as executed, and a warning is logged. For other statements this is
/// [`MigrationError::Unknown`].
///
/// It works on PostgreSQL, too. There, a transaction for each migration is better, as
/// [the guide](crate::guide::migrations) shows.
///
/// # Errors
/// Before anything runs: [`MigrationError::Source`], [`MigrationError::NotSql`],
/// [`MigrationError::Control`] and [`MigrationError::Changed`]. Later:
/// [`MigrationError::Statement`], [`MigrationError::Unknown`], [`MigrationError::Job`],
/// [`MigrationError::Taken`] and [`MigrationError::Bookkeeping`].
pub fn run_pending_migrations(
    connection: &mut PgConnection,
    migrations: impl MigrationSource<Pg>,
) -> Result<Vec<String>, MigrationError> {
    let scripts = script::read(&migrations)?;
    let mut journal = Journal::open(connection)?;
    let outcome = run(scripts, &mut journal, connection);
    journal.close(connection);
    outcome
}

fn run(
    mut scripts: Vec<Script>,
    journal: &mut Journal,
    connection: &mut PgConnection,
) -> Result<Vec<String>, MigrationError> {
    let applied: HashSet<String> = journal::applied(connection)?.into_iter().collect();
    scripts.retain(|script| !applied.contains(&script.version));
    journal.check(&mut scripts, &applied)?;
    for script in &scripts {
        journal.wait(script, connection)?;
        for number in journal.executed(script)..script.statements.len() {
            if script.statements[number].is_ddl() {
                execute_ddl(script, number, journal, connection)?;
            } else {
                journal.execute(script, number, connection)?;
            }
        }
        journal.finish(script, connection)?;
        log::info!("migration {} has run ({} statements)", script.name, script.statements.len());
    }
    Ok(scripts.into_iter().map(|script| script.name).collect())
}

/// Executes a statement between two records.
fn execute_ddl(
    script: &Script,
    number: usize,
    journal: &mut Journal,
    connection: &mut PgConnection,
) -> Result<(), MigrationError> {
    let statement = &script.statements[number];
    let is_repeated = journal.start(script, number, connection)?;
    let job = match journal::retried(|| journal::execute(statement, connection)) {
        Ok(job) => job,
        Err(cause) if journal::is_lost(&cause) => {
            return Err(MigrationError::Statement { at: script.at(number), cause });
        }
        Err(cause) if is_repeated && statement.is_done_by(&cause) => {
            let (at, cause) = (script.at(number), one_line(&cause));
            log::warn!("{at} was executed before a connection was lost: the server says {cause}");
            None
        }
        Err(cause) if is_repeated && script::is_of_repetition(&cause) => {
            return Err(MigrationError::Unknown { at: script.at(number), cause });
        }
        Err(cause) => {
            journal.undo(script, number, connection)?;
            return Err(MigrationError::Statement { at: script.at(number), cause });
        }
    };
    journal.end(script, number, job, connection)
}
