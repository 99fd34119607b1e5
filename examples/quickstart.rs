//! A pool on RDS. Each connection logs in with a new token.
//!
//! Without DATABASE_URL it starts a local stand-in for RDS, moves its clock past the lifetime of a
//! token, and checks what it prints. With DATABASE_URL it uses the same pool on your database.
//!
//!     cargo run --example quickstart --features local

use std::thread;
use std::time::Duration;

use diesel::prelude::*;
use diesel_rds_iam::local::{Attempt, LocalRds};
use diesel_rds_iam::{Pool, RdsConnectionManager};

mod migrations;
mod schema;
use schema::notes;

const CONNECTIONS: u32 = 4;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    env_logger::init();
    match std::env::var_os("DATABASE_URL") {
        Some(_) => on_your_database(),
        None => on_a_local_rds(),
    }
}

fn on_your_database() -> Result<(), Failure> {
    let manager = RdsConnectionManager::from_env()?;
    let pool = manager.build_pool(manager.pool_builder().max_size(CONNECTIONS))?;
    migrate(&pool)?;
    let backends = work(&pool)?;
    println!("{} threads wrote notes through {} connections", CONNECTIONS, backends.len());
    Ok(())
}

fn on_a_local_rds() -> Result<(), Failure> {
    let rds = LocalRds::start()?;
    println!("1. A local RDS listens on port {}. Its user logs in with IAM tokens.", rds.port());

    let manager = rds.manager()?;
    let first_token = manager.token()?;
    let pool =
        manager.build_pool(manager.pool_builder().max_size(CONNECTIONS).min_idle(Some(0)))?;
    migrate(&pool)?;
    println!("2. Migrated the database through a connection of the pool.");

    let backends = fill(&pool, &rds)?;
    let before = rds.attempts();
    println!("3. {} connections, each with its own token:", backends.len());
    before.iter().for_each(show);
    ensure(before.len() == CONNECTIONS as usize, "one login for each connection")?;
    ensure(distinct(&before) == before.len(), "one token for each login")?;
    ensure(before.iter().all(|attempt| attempt.verdict.is_ok()), "each login is accepted")?;

    rds.clock().advance(Duration::from_secs(16 * 60));
    println!("4. 16 minutes later:");
    let refused = log_in_with(first_token.as_str(), &rds);
    ensure(refused.is_err(), "a token of 16 minutes ago is refused")?;
    show(rds.attempts().last().ok_or("no attempt")?);

    ensure(
        work(&pool)?.iter().all(|backend| backends.contains(backend)),
        "open connections stay up",
    )?;
    println!(
        "   the {} open connections still work, because a token is checked only at login",
        backends.len()
    );

    end_sessions(&rds)?;
    let after = fill(&pool, &rds)?;
    let new = &rds.attempts()[before.len() + 1..];
    println!("5. The server ended all sessions. The pool opens new connections with new tokens:");
    new.iter().for_each(show);
    ensure(after.iter().all(|backend| !backends.contains(backend)), "all connections are new")?;
    ensure(
        new.len() == after.len() && new.iter().all(|attempt| attempt.verdict.is_ok()),
        "each login is accepted",
    )?;
    println!("All as expected.");
    Ok(())
}

fn migrate(pool: &Pool) -> Result<(), Failure> {
    migrations::run(pool.manager(), &mut *pool.get()?, |_| {})
}

/// Opens all connections of the pool, and returns the process ids of their backends. The clock
/// moves by 1 s between them, because two tokens of the same second are equal.
fn fill(pool: &Pool, rds: &LocalRds) -> Result<Vec<i32>, Failure> {
    let mut held = Vec::new();
    let mut backends = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = pool.get()?;
        backends.push(write_note(&mut connection)?);
        held.push(connection);
        rds.clock().advance(Duration::from_secs(1));
    }
    Ok(backends)
}

/// Writes notes from several threads, and returns the backends that wrote them.
fn work(pool: &Pool) -> Result<Vec<i32>, Failure> {
    let write = || -> Result<i32, Failure> { write_note(&mut *pool.get()?) };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(write)).collect();
        let mut backends = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
            .collect::<Result<Vec<i32>, Failure>>()?;
        backends.sort_unstable();
        backends.dedup();
        Ok(backends)
    })
}

fn write_note(connection: &mut PgConnection) -> Result<i32, Failure> {
    let backend = diesel::insert_into(notes::table)
        .values(notes::text.eq("hello"))
        .returning(notes::backend)
        .get_result(connection)?;
    Ok(backend)
}

/// Logs in with an old token, as a program with a token in its DATABASE_URL would.
fn log_in_with(token: &str, rds: &LocalRds) -> ConnectionResult<PgConnection> {
    let (port, root) = (rds.port(), rds.ca_file().display());
    PgConnection::establish(&format!(
        "host=localhost port={port} user=app dbname=app sslmode=verify-full \
         sslrootcert='{root}' password='{token}'"
    ))
}

fn end_sessions(rds: &LocalRds) -> Result<(), Failure> {
    diesel::sql_query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'",
    )
    .execute(&mut rds.superuser()?)?;
    Ok(())
}

fn show(attempt: &Attempt) {
    let verdict = match &attempt.verdict {
        Ok(()) => "accepted".to_owned(),
        Err(refusal) => format!("refused: {refusal}"),
    };
    println!("   token {}  {} {verdict}", &attempt.token_sha256[..8], attempt.user);
}

fn distinct(attempts: &[Attempt]) -> usize {
    let tokens: std::collections::BTreeSet<_> =
        attempts.iter().map(|attempt| &attempt.token_sha256).collect();
    tokens.len()
}

fn ensure(holds: bool, claim: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(format!("check failed: {claim}").into()) }
}
