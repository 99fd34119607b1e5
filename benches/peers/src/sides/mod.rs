//! The sides that are written in Rust.

mod deadpool;
mod diesel_async;
mod diesels;
mod ours;
mod postgres;
mod sqlx;

use std::any::Any;
use std::env::var;
use std::error::Error;
use std::time::{Duration, Instant};

use aws_smithy_async::time::TimeSource;
use deadpool_postgres::RecyclingMethod;
use diesel_rds_iam::local::Clock;
use diesel_rds_iam::{Credentials, Endpoint, presign};

/// One way to have connections.
pub(crate) trait Side: Sync {
    /// Takes a connection, asks it for a number, gives it back. Or what a program's user would
    /// read.
    fn ask(&self, sql: &'static str) -> Result<f64, String>;
    /// Microseconds of taking a connection and giving it back.
    fn checkout(&self) -> f64;
    /// A connection, apart from those that are kept.
    fn login(&self) -> Box<dyn Any>;
}

/// What is the same for all sides. The rest is in libpq's and AWS's variables.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) connections: u32,
    pub(crate) max_lifetime: Duration,
    /// How often those without a hook get a new token.
    pub(crate) renewal: Duration,
    pub(crate) clock: Clock,
}

impl Settings {
    fn token(&self) -> String {
        let port = var("PGPORT").unwrap().parse().unwrap();
        let endpoint =
            Endpoint::new(&var("PGHOST").unwrap(), port, &var("AWS_REGION").unwrap()).unwrap();
        let (id, secret) =
            (var("AWS_ACCESS_KEY_ID").unwrap(), var("AWS_SECRET_ACCESS_KEY").unwrap());
        let credentials = Credentials::new(id, secret, None, None, "bench");
        let token = presign(&endpoint, &var("PGUSER").unwrap(), &credentials, self.clock.now());
        token.unwrap().as_str().to_owned()
    }
}

pub(crate) fn start(name: &str, settings: Settings) -> Result<Box<dyn Side>, String> {
    Ok(match name {
        "ours" => Box::new(ours::Pooled::new(&settings)?),
        "ours-per-thread" => Box::new(ours::Threads::new(&settings, false)?),
        "ours-per-thread-tested" => Box::new(ours::Threads::new(&settings, true)?),
        "diesel" => Box::new(diesels::Pooled::new(settings, true)?),
        "diesel-untested" => Box::new(diesels::Pooled::new(settings, false)?),
        "diesel-renewed" => Box::new(diesels::Renewed::new(settings)?),
        "postgres" => Box::new(postgres::Pooled::new(settings)?),
        "deadpool-fast" => Box::new(deadpool::Pooled::new(settings, RecyclingMethod::Fast)),
        "deadpool-verified" => Box::new(deadpool::Pooled::new(settings, RecyclingMethod::Verified)),
        "diesel-async" => Box::new(diesel_async::Pooled::new(settings)?),
        "sqlx" => Box::new(sqlx::Pooled::new(settings)),
        _ => panic!("there is no side {name}"),
    })
}

fn microseconds(call: impl FnOnce()) -> f64 {
    let started = Instant::now();
    call();
    started.elapsed().as_secs_f64() * 1e6
}

/// The same for async pools: within the runtime, whose entering is not counted.
async fn microseconds_to(task: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    task.await;
    started.elapsed().as_secs_f64() * 1e6
}

/// An error with those behind it that it does not quote itself, in one line.
fn text(error: impl Error) -> String {
    let in_a_line =
        |error: &dyn Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let mut text = in_a_line(&error);
    let mut source = error.source();
    while let Some(error) = source {
        let cause = in_a_line(error);
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
