//! A web app of blocking diesel code: a list of things to do, and what its pool of connections
//! does.
//!
//!     cargo run --example web --features local
//!
//! `DATABASE_URL` is its database; where that is not set, it starts a local stand-in for RDS.
//! `LISTEN` is its address, 127.0.0.1:8080 by default. `MAX_LIFETIME` is that of connections, in
//! seconds, to see many of them come and go. SIGTERM and SIGINT end it, once requests in hand are
//! answered.
//!
//! A client waits ten seconds at most. When a query is to end, the database is to say: `ALTER ROLE
//! app SET statement_timeout = '10s'`. It wants a load balancer or a reverse proxy in front: axum's
//! server waits for ever for a header, and /health, /status and /metrics, which tell of the host
//! and the user, are for those who run it.

use std::net::TcpListener;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

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

// These are shared with the other examples.
#[path = "../database.rs"]
mod database;
#[path = "../migrations.rs"]
mod migrations;
#[path = "../schema.rs"]
mod schema;

use app::App;
use database::Database;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long requests in hand may take once the program is to end: longer than they may take anyway.
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
    // Not by a connection of the pool: a replica that comes second may have to wait.
    migrations::run(&mut database.manager.connect()?, |line| log::info!("{line}"))?;
    let app = App::new(database.manager.clone())?;
    // The last of all: who asks whether somebody listens is to find one who answers.
    let listener = TcpListener::bind(&address)
        .map_err(|error| format!("cannot listen on LISTEN={address}: {error}"))?;
    serve(app, listener)
}

fn manager_builder() -> Result<Builder, Failure> {
    let builder = RdsConnectionManager::builder();
    let Some(text) = variable("MAX_LIFETIME")? else { return Ok(builder) };
    let seconds: NonZeroU32 =
        text.parse().map_err(|error| format!("MAX_LIFETIME={text}: give it seconds: {error}"))?;
    Ok(builder.max_lifetime(Some(Duration::from_secs(seconds.get().into()))))
}

fn variable(name: &str) -> Result<Option<String>, Failure> {
    let as_text = |value: std::ffi::OsString| {
        value.into_string().map_err(|_| format!("{name} is not UTF-8").into())
    };
    std::env::var_os(name).map(as_text).transpose()
}

/// Answers requests until a signal comes, and then those in hand.
fn serve(app: App, listener: TcpListener) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let runtime = Runtime::new()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let address = listener.local_addr()?;
    let server = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = axum::serve(listener, app.router())
            .with_graceful_shutdown(async { drop(stopped.await) });
        Ok::<_, std::io::Error>(tokio::spawn(server.into_future()))
    })?;
    println!("listening on http://{address}");
    signals.forever().next();
    drop(stop);
    let ended = runtime.block_on(async { tokio::time::timeout(GRACE, server).await });
    // A thread that is still in a query is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(served) => served??,
        Err(_) => {
            log::warn!("requests are cut off, for they took longer than {} s", GRACE.as_secs())
        }
    }
    Ok(())
}
