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

/// One way to keep connections.
pub(crate) trait Side: Sync {
    /// Checks out a connection, queries a number, and checks it in. Returns the error text that a
    /// user of the program would read.
    fn query(&self, sql: &'static str) -> Result<f64, String>;
    /// Returns the microseconds of a checkout and check-in.
    fn checkout(&self) -> f64;
    /// Connects outside of the pool.
    fn login(&self) -> Box<dyn Any>;
}

/// The settings of all sides. The rest is in libpq's and AWS's variables.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) connections: u32,
    pub(crate) max_lifetime: Duration,
    /// The interval of new tokens for sides without a hook.
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
        "ours-per-thread" => Box::new(ours::Threads::new(&settings, true)?),
        "ours-per-thread-untested" => Box::new(ours::Threads::new(&settings, false)?),
        "diesel" => Box::new(diesels::Pooled::new(settings, true)?),
        "diesel-untested" => Box::new(diesels::Pooled::new(settings, false)?),
        "diesel-renewed" => Box::new(diesels::Renewed::new(settings)?),
        "postgres" => Box::new(postgres::Pooled::new(settings)?),
        "deadpool-fast" => Box::new(deadpool::Pooled::new(settings, RecyclingMethod::Fast)),
        "deadpool-verified" => Box::new(deadpool::Pooled::new(settings, RecyclingMethod::Verified)),
        "diesel-async" => Box::new(diesel_async::Pooled::new(settings)?),
        "sqlx" => Box::new(sqlx::Pooled::new(settings)),
        _ => panic!("unknown side: {name}"),
    })
}

fn microseconds(call: impl FnOnce()) -> f64 {
    let started = Instant::now();
    call();
    started.elapsed().as_secs_f64() * 1e6
}

/// The same for async pools. Does not count the time to enter the runtime.
async fn microseconds_to(task: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    task.await;
    started.elapsed().as_secs_f64() * 1e6
}

/// Returns an error and its sources in one line, without sources that the text already contains.
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
