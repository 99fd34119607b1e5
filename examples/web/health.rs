//! Whether the database can be reached, for a load balancer.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use diesel::connection::SimpleConnection;
use diesel_rds_iam::Pool;

use crate::app::App;

/// How long to wait for a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait for an answer in all. A server that is silent is noticed by libpq later than that.
const LIMIT: Duration = Duration::from_secs(3);

type Answer = (StatusCode, String);

/// A round trip to the database, past the queue of the other requests.
pub(crate) async fn health(State(app): State<App>) -> Answer {
    let asked = tokio::task::spawn_blocking(move || ask(&app.pool));
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(Ok(()))) => (StatusCode::OK, "ok\n".into()),
        Ok(Ok(Err(cause))) => unavailable(&cause),
        Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        Err(_) => unavailable(&format!(
            "the database has not answered within {} s; see whether it is overloaded, or cut off from here",
            LIMIT.as_secs()
        )),
    }
}

fn ask(pool: &Pool) -> Result<(), String> {
    let mut connection = pool.get_timeout(PATIENCE).map_err(|error| error.to_string())?;
    // The checkout may have found it enough to look at the socket.
    connection.batch_execute("SELECT 1").map_err(|error| error.to_string())
}

fn unavailable(cause: &str) -> Answer {
    log::warn!("not healthy: {cause}");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n"))
}
