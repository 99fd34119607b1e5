//! What the handlers share: the pool, the way to run blocking diesel code, and the answers to
//! errors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use diesel::PgConnection;
use diesel::result::{DatabaseErrorKind as Kind, Error as QueryError, QueryResult};
use diesel_rds_iam::{Error, Pool, RdsConnectionManager};
use maud::html;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::watch::Watch;
use crate::{entries, health, layout, metrics, status};

const CONNECTIONS: u32 = 8;

/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a request may take in all, from the end of its header to its answer.
const LIMIT: Duration = Duration::from_secs(10);

/// In bytes. The longest text that is percent-encoded has 2,400.
const LONGEST_BODY: usize = 16 * 1024;

/// Clones are the same app.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) manager: RdsConnectionManager,
    pub(crate) pool: Pool,
    pub(crate) watch: Watch,
    pub(crate) probes: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl App {
    pub(crate) fn new(manager: RdsConnectionManager) -> Result<App, Error> {
        let watch = Watch::default();
        let builder =
            manager.pool_builder().max_size(CONNECTIONS).event_handler(Box::new(watch.clone()));
        let pool = manager.build_pool(builder)?;
        // One connection is left to /health, which is to tell of the database and not of the load.
        let turns = Arc::new(Semaphore::new(CONNECTIONS as usize - 1));
        Ok(App { manager, pool, watch, probes: Arc::new(Semaphore::new(1)), turns })
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/", get(entries::list))
            // Where a page that told what is wrong is asked for anew.
            .route("/entries", get(async || Redirect::to("/")).post(entries::add))
            .route("/entries.json", get(entries::json))
            .route("/entries/{id}/finish", post(entries::finish))
            .route("/health", get(health::health))
            .route(
                "/metrics",
                get(async |State(app): State<App>| {
                    metrics::answer(&app.manager.stats(), &app.pool)
                }),
            )
            .route("/status", get(status::status))
            .fallback(async || Problem::NotFound)
            .layer(DefaultBodyLimit::max(LONGEST_BODY))
            .layer(middleware::from_fn(in_time))
            .layer(CatchPanicLayer::custom(|_| Problem::Internal.into_response()))
            .layer(middleware::map_response(async |answer: Response| (layout::HEADERS, answer)))
            .with_state(self)
    }

    /// Runs blocking `work` with a connection, on a thread that may block. Who waits for a turn
    /// holds no thread: 500 clients take as many as there are connections.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let end = Instant::now() + PATIENCE;
        let turn = tokio::time::timeout_at(end.into(), self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            log::warn!("no connection was free within {} s", PATIENCE.as_secs());
            return Err(Problem::Unavailable);
        };
        let pool = self.pool.clone();
        let job = tokio::task::spawn_blocking(move || {
            // Also of a client that has gone: the turn ends with the work, and after the connection
            // is given back.
            let _turn = turn;
            let mut connection = pool.get_timeout(end.saturating_duration_since(Instant::now()))?;
            Ok(work(&mut connection)?)
        });
        // Its panic goes on here, and is answered as any other.
        job.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

/// Answers also where the database, or who sends the body, is silent. A thread that waits for the
/// database waits on.
async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(LIMIT, next.run(request))
        .await
        .unwrap_or_else(|_| Problem::Late.into_response())
}

/// Why a request cannot be done. What a client is told of it is no more than it needs; the log has
/// the cause.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Problem {
    NotFound,
    Unavailable,
    Late,
    Internal,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        log::warn!("{error}");
        Problem::Unavailable
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Problem {
        match error {
            QueryError::NotFound => Problem::NotFound,
            // The database went away or was demoted, and will be back.
            QueryError::DatabaseError(
                Kind::ClosedConnection | Kind::UnableToSendCommand | Kind::ReadOnlyTransaction,
                _,
            ) => {
                log::warn!("{error}");
                Problem::Unavailable
            }
            error => {
                log::error!("{error}");
                Problem::Internal
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Problem::NotFound => (StatusCode::NOT_FOUND, "There is nothing here."),
            Problem::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "The database is busy or away. Try again soon.")
            }
            Problem::Late => {
                (StatusCode::GATEWAY_TIMEOUT, "That took too long. It may have been done or not.")
            }
            Problem::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong. It was not your fault.")
            }
        };
        let retry = matches!(self, Problem::Unavailable).then_some([(header::RETRY_AFTER, "3")]);
        let page =
            layout::page(status.canonical_reason().unwrap_or_default(), html! { p { (text) } });
        (status, retry, page).into_response()
    }
}
