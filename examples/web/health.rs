//! Whether the database can be reached, for a load balancer.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use diesel::connection::SimpleConnection;
use diesel_rds_iam::Pool;

use crate::app::App;

/// How long to wait for a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait for an answer in all. A server that is silent is noticed by libpq later than
/// that.
const LIMIT: Duration = Duration::from_secs(3);

type Answer = (StatusCode, String);

/// A round trip to the database, past the queue of the other requests.
pub(crate) async fn health(State(app): State<App>) -> Answer {
    match tokio::time::timeout(LIMIT, ask(app)).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n".into()),
        Ok(Err(cause)) => unavailable(&cause),
        Err(_) => unavailable(&format!(
            "the database has not answered within {} s; see whether it is overloaded, or cut off from here",
            LIMIT.as_secs()
        )),
    }
}

/// One asks at a time, and the others wait: while the database is silent they would use up the
/// pool, and tell of that.
async fn ask(app: App) -> Result<(), String> {
    let turn = app.probes.acquire_owned().await.map_err(|closed| closed.to_string())?;
    let asked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        round_trip(&app.pool)
    });
    asked.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn round_trip(pool: &Pool) -> Result<(), String> {
    let mut connection = pool.get_timeout(PATIENCE).map_err(|error| error.to_string())?;
    // The checkout may have found it enough to look at the socket.
    connection.batch_execute("SELECT 1").map_err(|error| error.to_string())
}

fn unavailable(cause: &str) -> Answer {
    log::warn!("not healthy: {cause}");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n"))
}
