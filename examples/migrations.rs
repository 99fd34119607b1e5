//! The examples' migrations, run by one program at a time.

use diesel::migration::{Migration, Result};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations");

/// Any number will do, as long as all programs that migrate this database have the same.
const LOCK: i64 = 0x6469_6573_656c;

/// Runs what is pending, and tells what it does, line by line. A program that comes second waits, and then finds nothing
/// to do. Each migration is a transaction: one that fails leaves nothing behind, and those before it stay.
pub(crate) fn run(connection: &mut PgConnection, tell: impl Fn(&str)) -> Result<()> {
    let is_ours = diesel::dsl::sql::<Bool>("SELECT pg_try_advisory_lock(").bind::<BigInt, _>(LOCK).sql(")");
    if !is_ours.get_result::<bool>(connection)? {
        tell("another program migrates this database; waiting for it");
        lock_by("SELECT pg_advisory_lock($1)", connection)
            .map_err(|error| format!("while waiting for the program that migrates: {error}"))?;
    }
    let outcome = run_pending(connection, tell);
    // A pool keeps the connection, and the lock with it. If the connection is broken, the lock has gone.
    let unlocked = lock_by("SELECT pg_advisory_unlock($1)", connection);
    outcome.and(unlocked.map_err(Into::into))
}

fn lock_by(query: &str, connection: &mut PgConnection) -> QueryResult<()> {
    diesel::sql_query(query).bind::<BigInt, _>(LOCK).execute(connection).map(drop)
}

fn run_pending(connection: &mut PgConnection, tell: impl Fn(&str)) -> Result<()> {
    let pending: Vec<Box<dyn Migration<Pg>>> = connection.pending_migrations(MIGRATIONS)?;
    for (i, migration) in pending.iter().enumerate() {
        let name = migration.name().to_string();
        tell(&format!("{} of {}: {name}", i + 1, pending.len()));
        connection.run_migration(migration).map_err(|error| format!("migration {name}: {error}"))?;
    }
    tell(&format!("the schema is up to date; migrations run: {}", pending.len()));
    Ok(())
}
