//! A web app with blocking diesel code: a list of entries, and a page about its connection pool.
//!
//!     cargo run --example web --features local
//!
//! Environment variables:
//! - `DATABASE_URL`: the database. Without it, a local stand-in for RDS is started.
//! - `LISTEN`: the address to listen on, `127.0.0.1:8080` by default.
//! - `MAX_LIFETIME`: the maximum age of a connection, in seconds. A small value shows how
//!   connections are replaced.
//!
//! SIGTERM and SIGINT end it after the open requests have finished, and close its connections.
//!
//! A client waits at most 10 seconds, but its query continues. Limit queries in the database:
//! `ALTER ROLE app SET statement_timeout = '10s'`. Run the app behind a load balancer or a reverse
//! proxy, because axum's server waits for a request's header without a limit. /health, /status and
//! /metrics show the host and the user, so do not make them public.

use std::net::TcpListener;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Builder, RdsConnectionManager};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

mod app;
mod entries;
mod health;
mod layout;
mod metrics;
mod picture;
mod status;
mod watch;

// Shared with the other examples.
#[path = "../database.rs"]
mod database;
#[path = "../migrations.rs"]
mod migrations;
#[path = "../schema.rs"]
mod schema;
#[path = "../streak.rs"]
mod streak;
#[path = "../transaction.rs"]
mod transaction;

use app::App;
use database::Database;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long open requests may take after a signal. This is longer than the timeout of a request.
const GRACE: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let address = variable("LISTEN")?.unwrap_or("127.0.0.1:8080".into());
    let database = Database::open(manager_builder()?)?;
    // Not on a connection of the pool, because a second replica may wait here for a long time.
    let mut connection = database.manager.connect()?;
    migrations::run(&database.manager, &mut connection, |line| log::info!("{line}"))?;
    let user: String =
        diesel::select(sql::<Text>("current_user::text")).get_result(&mut connection)?;
    drop(connection);
    let app = App::new(database.manager.clone(), &user)?;
    // Listens last, so that a client that can connect gets a response.
    let listener = TcpListener::bind(&address)
        .map_err(|error| format!("cannot listen on LISTEN={address}: {error}"))?;
    serve(app, listener)
}

fn manager_builder() -> Result<Builder, Failure> {
    let builder = RdsConnectionManager::builder();
    let Some(text) = variable("MAX_LIFETIME")? else { return Ok(builder) };
    let seconds: NonZeroU32 = text
        .parse()
        .map_err(|error| format!("MAX_LIFETIME={text}: expected a number of seconds: {error}"))?;
    Ok(builder.max_lifetime(Some(Duration::from_secs(seconds.get().into()))))
}

fn variable(name: &str) -> Result<Option<String>, Failure> {
    let as_text = |value: std::ffi::OsString| {
        value.into_string().map_err(|_| format!("{name} is not valid UTF-8").into())
    };
    std::env::var_os(name).map(as_text).transpose()
}

/// Responds to requests until a signal arrives, and then finishes the open ones.
fn serve(app: App, listener: TcpListener) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let runtime = Runtime::new()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let address = listener.local_addr()?;
    let pool = app.pool.clone();
    let server = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = axum::serve(listener, app.router())
            .with_graceful_shutdown(async { drop(stopped.await) });
        Ok::<_, std::io::Error>(tokio::spawn(server.into_future()))
    })?;
    println!("listening on http://{address}");
    signals.forever().next();
    let deadline = Instant::now() + GRACE;
    drop(stop);
    let ended = runtime.block_on(async { tokio::time::timeout(GRACE, server).await });
    // A query continues after its request has timed out. The pool logs how many are left.
    pool.close(deadline.saturating_duration_since(Instant::now()));
    // Does not wait for threads that are still in a query.
    runtime.shutdown_background();
    match ended {
        Ok(served) => served??,
        Err(_) => {
            log::warn!("requests aborted (still open {} s after the signal)", GRACE.as_secs());
        }
    }
    Ok(())
}
