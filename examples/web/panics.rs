//! A panic of a handler is an answer to its client, and the end of nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Answers 500 where the handler panics. The panic itself is on standard error.
pub(crate) async fn answer(request: Request, next: Next) -> Response {
    let mut handler = pin!(next.run(request));
    // What the panic may have left half done is dropped with the handler, for it is not polled again.
    let poll = |context: &mut std::task::Context<'_>| {
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)));
        polled.unwrap_or_else(|_| Poll::Ready(StatusCode::INTERNAL_SERVER_ERROR.into_response()))
    };
    std::future::poll_fn(poll).await
}
