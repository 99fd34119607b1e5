//! What the handlers share: the pool, a way to run blocking diesel code, and the responses to
//! errors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use diesel::PgConnection;
use diesel::result::{Error as QueryError, QueryResult};
use diesel_rds_iam::{Error, Pool, RdsConnectionManager};
use maud::html;
use serde_json::json;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::streak::{Streak, kind};
use crate::transaction::cause;
use crate::watch::Watch;
use crate::{entries, health, layout, metrics, status};

const CONNECTIONS: u32 = 8;

/// How long a request waits for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a request may take, from the end of its header to the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// In bytes. The longest percent-encoded text has 2,400 bytes.
const LONGEST_BODY: usize = 16 * 1024;

/// A handle. Clones share everything.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) manager: RdsConnectionManager,
    pub(crate) pool: Pool,
    /// What the app logs in with and to, in words.
    pub(crate) login: Arc<str>,
    pub(crate) watch: Watch,
    pub(crate) probes: Arc<Semaphore>,
    pub(crate) streak: Arc<Streak>,
    turns: Arc<Semaphore>,
}

impl App {
    /// Opens the pool of the app. `user` is the database user.
    pub(crate) fn new(manager: RdsConnectionManager, user: &str) -> Result<App, Error> {
        let endpoints: Vec<_> = manager.endpoints().map(ToString::to_string).collect();
        let watch = Watch::default();
        let builder =
            manager.pool_builder().max_size(CONNECTIONS).event_handler(Box::new(watch.clone()));
        let pool = manager.build_pool(builder)?;
        // One connection is left for /health, which reports the database and not the load.
        let turns = Arc::new(Semaphore::new(CONNECTIONS as usize - 1));
        Ok(App {
            manager,
            pool,
            login: format!("user {user} at {}", endpoints.join(" or ")).into(),
            watch,
            probes: Arc::new(Semaphore::new(1)),
            streak: Arc::default(),
            turns,
        })
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/", get(entries::list))
            // A reload after an invalid text requests this path.
            .route("/entries", get(async || Redirect::to("/")).post(entries::add))
            .route("/entries.json", get(entries::json))
            .route("/entries/{id}/finish", post(entries::finish))
            .route("/health", get(health::health))
            .route(
                "/metrics",
                get(async |State(app): State<App>| {
                    metrics::response(&app.manager.stats(), &app.pool)
                }),
            )
            .route("/status", get(status::status))
            .fallback(async || Problem::NotFound)
            .layer(DefaultBodyLimit::max(LONGEST_BODY))
            .layer(middleware::from_fn(in_time))
            .layer(CatchPanicLayer::custom(|_| Problem::Internal.into_response()))
            .layer(middleware::from_fn(in_json_if_asked))
            .layer(middleware::map_response(async |response: Response| (layout::HEADERS, response)))
            .with_state(self)
    }

    /// Runs blocking `work` with a connection.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.in_turn(|pool, left| Ok(work(&mut *pool.get_timeout(left)?)?)).await
    }

    /// Runs blocking `work` in a transaction. It may run more than once.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.in_turn(|pool, left| {
            pool.build_transaction().time_limit(left).run(work).map_err(cause)
        })
        .await
    }

    /// Runs `work` on a thread that may block, with the time that is left. A request that waits for
    /// its turn holds no thread: 500 clients need only as many threads as there are connections.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pool, Duration) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let end = Instant::now() + CONNECTION_TIMEOUT;
        let turn = tokio::time::timeout_at(end.into(), self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let seconds = CONNECTION_TIMEOUT.as_secs();
            self.streak.failed("busy", format_args!("no connection was free within {seconds} s"));
            return Err(Problem::Unavailable);
        };
        let pool = self.pool.clone();
        let job = tokio::task::spawn_blocking(move || {
            // The turn ends after the connection is checked in, also if the client has left.
            let _turn = turn;
            work(&pool, end.saturating_duration_since(Instant::now()))
        });
        // A panic of `work` continues here and gets the response of any panic.
        let done = job.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        done.inspect(|_| self.streak.succeeded("database requests succeed"))
            .map_err(|error| self.problem(&error))
    }

    /// Logs an error, and returns the response to it.
    fn problem(&self, error: &Error) -> Problem {
        match error {
            Error::Query(QueryError::NotFound) => Problem::NotFound,
            error if error.is_transient() => {
                self.streak.failed(kind(error), error);
                Problem::Unavailable
            }
            // The program's own mistake, so each one is logged.
            Error::Query(_) => {
                log::error!("{error}");
                Problem::Internal
            }
            error => {
                self.streak.failed(kind(error), error);
                Problem::Unusable
            }
        }
    }
}

/// Responds in time, also if the database or the sender of the body is silent. A thread that waits
/// for the database continues to wait.
async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_| Problem::Late.into_response())
}

/// Gives an error to a client of a `.json` path as JSON.
async fn in_json_if_asked(request: Request, next: Next) -> Response {
    let is_json = request.uri().path().ends_with(".json");
    let response = next.run(request).await;
    match response.extensions().get::<Problem>() {
        Some(problem) if is_json => problem.json(),
        _ => response,
    }
}

/// Why a request failed. The client learns no more than it needs, and the log has the cause.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Problem {
    NotFound,
    /// Waiting helps.
    Unavailable,
    /// The login fails until a person changes something.
    Unusable,
    Late,
    Internal,
}

impl Problem {
    fn json(self) -> Response {
        let (status, text) = self.status();
        (status, self.headers(), Json(json!({ "error": text }))).into_response()
    }

    fn status(self) -> (StatusCode, &'static str) {
        match self {
            Problem::NotFound => (StatusCode::NOT_FOUND, "This page does not exist."),
            Problem::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database is busy or cannot be reached. Try again in a few seconds.",
            ),
            Problem::Unusable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The login to the database fails. The log has the cause.",
            ),
            Problem::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "The request took too long. Reload to see whether the change was saved.",
            ),
            Problem::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "The request failed. The log has the cause.")
            }
        }
    }

    fn headers(self) -> Option<[(header::HeaderName, &'static str); 1]> {
        matches!(self, Problem::Unavailable).then_some([(header::RETRY_AFTER, "3")])
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, text) = self.status();
        let page =
            layout::page(status.canonical_reason().unwrap_or_default(), html! { p { (text) } });
        (status, Extension(self), self.headers(), page).into_response()
    }
}
