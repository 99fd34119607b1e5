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

use diesel::PgConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;

use crate::error::one_line;
pub use error::MigrationError;
use journal::{Journal, Progress};
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
/// Before anything runs: [`MigrationError::Unusable`]. Later: all others.
pub fn run_pending_migrations(
    connection: &mut PgConnection,
    migrations: impl MigrationSource<Pg>,
) -> Result<Vec<String>, MigrationError> {
    let scripts = script::read(&migrations)?;
    let mut journal = Journal::open(connection)?;
    let outcome = run(scripts, &mut journal);
    journal.close();
    outcome
}

fn run(scripts: Vec<Script>, journal: &mut Journal<'_>) -> Result<Vec<String>, MigrationError> {
    let scripts = journal.pending(scripts)?;
    for script in &scripts {
        journal.wait(script)?;
        for number in journal.executed(script)..script.statements.len() {
            execute(script, number, journal)?;
            journal.wait(script)?;
        }
        journal.finish(script)?;
        log::info!("migration {} has run ({} statements)", script.name, script.statements.len());
    }
    Ok(scripts.into_iter().map(|script| script.name).collect())
}

/// Executes one statement. A DDL statement is a transaction between two others that record it.
fn execute(
    script: &Script,
    number: usize,
    journal: &mut Journal<'_>,
) -> Result<(), MigrationError> {
    let statement = &script.statements[number];
    let failed = |cause| MigrationError::Statement { at: script.at(number), cause };
    let executed = Progress::after(number + 1, number + 1, script);
    if !script::is_ddl(statement) {
        return journal.execute(statement, executed)?.map_err(failed);
    }
    let is_repeated = journal.is_started();
    journal.record(Progress { is_started: true, ..Progress::after(number, number + 1, script) })?;
    let job = match journal.send(statement) {
        Ok(job) => job,
        Err(cause) if journal::is_lost(&cause) => return Err(failed(cause)),
        Err(cause) => {
            let answer = one_line(&cause);
            let is_done =
                if is_repeated { script::is_done(statement, &answer) } else { Some(false) };
            match is_done {
                Some(true) => log::warn!("{} was executed before: {answer}", script.at(number)),
                Some(false) => {
                    journal.record(Progress::after(number, number, script))?;
                    return Err(failed(cause));
                }
                None => return Err(MigrationError::Unknown { at: script.at(number), cause }),
            }
            None
        }
    };
    journal.record(Progress { job, ..executed })
}
