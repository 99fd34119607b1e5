//! The examples' migrations, run by one program at a time.

use std::thread;
use std::time::Duration;

use diesel::migration::{Migration, Result};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations");

/// Any number will do, as long as all programs that migrate this database have the same.
const LOCK: i64 = 0x6469_6573_656c;

/// How often to ask for the lock.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs what is pending, and tells what it does, line by line. A program that comes second waits,
/// and then finds nothing to do. Each migration is a transaction (unless its metadata.toml says
/// otherwise): one that fails leaves nothing behind, and those before it stay.
pub(crate) fn run(connection: &mut PgConnection, tell: impl Fn(&str)) -> Result<()> {
    if !try_lock(connection)? {
        tell("another program migrates this database; waiting for it");
        lock(connection)
            .map_err(|error| format!("while waiting for the program that migrates: {error}"))?;
    }
    let outcome = run_pending(connection, tell);
    // A pool keeps the connection, and the lock with it. If the connection is broken, the lock has
    // gone.
    let unlock = diesel::sql_query("SELECT pg_advisory_unlock($1)").bind::<BigInt, _>(LOCK);
    outcome.and(unlock.execute(connection).map(drop).map_err(Into::into))
}

/// Asks again and again. A query that waits for the lock would hold a snapshot, for which a CREATE
/// INDEX CONCURRENTLY of the program that has the lock would wait: a deadlock.
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

fn run_pending(connection: &mut PgConnection, tell: impl Fn(&str)) -> Result<()> {
    let unknown = |error| {
        format!(
            "cannot tell what is pending: {error}; the user has to create tables in this schema"
        )
    };
    let pending: Vec<Box<dyn Migration<Pg>>> =
        connection.pending_migrations(MIGRATIONS).map_err(unknown)?;
    for (i, migration) in pending.iter().enumerate() {
        let name = migration.name().to_string();
        tell(&format!("{} of {}: {name}", i + 1, pending.len()));
        connection
            .run_migration(migration)
            .map_err(|error| format!("migration {name}: {error}"))?;
    }
    tell(&format!("the schema is up to date; migrations run: {}", pending.len()));
    Ok(())
}
