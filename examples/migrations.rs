//! Runs the examples' migrations, in one program at a time.

use std::thread;
use std::time::Duration;

use diesel::migration::{Migration, Result};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_rds_iam::{Endpoint, RdsConnectionManager, dsql};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations");
/// The same tables, in the SQL of Aurora DSQL.
const DSQL_MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations_dsql");

/// The key of the advisory lock. All programs that migrate this database must use the same one.
const LOCK: i64 = 0x6469_6573_656c;

/// How long to wait between attempts to get the lock.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs the pending migrations, and reports each step as a line. A second program waits for the
/// first, and then has nothing to do. Each migration is a transaction, unless its metadata.toml
/// says otherwise: a failed one changes nothing, and those before it stay.
///
/// On Aurora DSQL each statement is a transaction.
pub(crate) fn run(
    manager: &RdsConnectionManager,
    connection: &mut PgConnection,
    report: impl Fn(&str),
) -> Result<()> {
    if manager.endpoints().any(Endpoint::is_dsql) {
        let names = dsql::run_pending_migrations(connection, DSQL_MIGRATIONS)?;
        names.iter().for_each(|name| report(&format!("migration run: {name}")));
        report(&format!("the schema is up to date; migrations run: {}", names.len()));
        return Ok(());
    }
    if !try_lock(connection)? {
        report("another program migrates this database; waiting for it");
        lock(connection)
            .map_err(|error| format!("while waiting for the program that migrates: {error}"))?;
    }
    let outcome = run_pending(connection, report);
    // A pool keeps the connection open, and with it the lock. A broken connection holds no lock.
    let unlock = diesel::sql_query("SELECT pg_advisory_unlock($1)").bind::<BigInt, _>(LOCK);
    outcome.and(unlock.execute(connection).map(drop).map_err(Into::into))
}

/// Polls until it has the lock. A query that waits for the lock would hold a snapshot. A CREATE
/// INDEX CONCURRENTLY of the program with the lock waits for that snapshot: a deadlock.
fn lock(connection: &mut PgConnection) -> QueryResult<()> {
    while !try_lock(connection)? {
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn try_lock(connection: &mut PgConnection) -> QueryResult<bool> {
    diesel::dsl::sql::<Bool>("SELECT pg_try_advisory_lock(")
        .bind::<BigInt, _>(LOCK)
        .sql(")")
        .get_result(connection)
}

fn run_pending(connection: &mut PgConnection, report: impl Fn(&str)) -> Result<()> {
    let unknown = |error| {
        format!(
            "cannot list pending migrations: {error}; \
             allow the user to create tables in this schema"
        )
    };
    let pending: Vec<Box<dyn Migration<Pg>>> =
        connection.pending_migrations(MIGRATIONS).map_err(unknown)?;
    for (i, migration) in pending.iter().enumerate() {
        let name = migration.name().to_string();
        report(&format!("{} of {}: {name}", i + 1, pending.len()));
        connection
            .run_migration(migration)
            .map_err(|error| format!("migration {name}: {error}"))?;
    }
    report(&format!("the schema is up to date; migrations run: {}", pending.len()));
    Ok(())
}
