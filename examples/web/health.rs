//! Tells a load balancer whether the database can be used.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use diesel::connection::SimpleConnection;
use diesel_rds_iam::{Error, Pool};

use crate::app::App;
use crate::streak::kind;

/// How long to wait for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the whole check may take. libpq notices a silent server only later.
const TIMEOUT: Duration = Duration::from_secs(3);

type Answer = (StatusCode, String);

/// Makes a round trip to the database. It does not wait in the queue of the other requests.
pub(crate) async fn health(State(app): State<App>) -> Answer {
    match tokio::time::timeout(TIMEOUT, ping(app.clone())).await {
        Ok(Ok(())) => {
            app.streak.succeeded("database requests succeed");
            (StatusCode::OK, "ok\n".into())
        }
        Ok(Err(error)) => unavailable(&app, kind(&error), &error.to_string()),
        Err(_) => {
            let text = format!(
                "the database did not answer within {} s; check its load and the network",
                TIMEOUT.as_secs()
            );
            unavailable(&app, "silent", &text)
        }
    }
}

/// Lets one check run at a time. While the database is silent, parallel checks would use up the
/// pool and then report that.
async fn ping(app: App) -> Result<(), Error> {
    let turn = app.probes.acquire_owned().await;
    let pinged = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        round_trip(&app.pool)
    });
    pinged.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn round_trip(pool: &Pool) -> Result<(), Error> {
    let mut connection = pool.get_timeout(CONNECTION_TIMEOUT)?;
    // The checkout may have peeked at the socket only.
    Ok(connection.batch_execute("SELECT 1")?)
}

fn unavailable(app: &App, kind: &'static str, cause: &str) -> Answer {
    app.streak.failed(kind, format_args!("the health check failed: {cause}"));
    (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n"))
}
