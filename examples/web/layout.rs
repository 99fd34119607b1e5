//! The frame of all pages.

use axum::http::header::{self, HeaderName};
use axum::response::Html;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The headers of each response. No script runs, whatever a page contains.
pub(crate) const HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
];

/// Returns a page that does not reload itself.
pub(crate) fn page(title: &str, body: Markup) -> Html<String> {
    whole(title, html! {}, body)
}

/// Returns a page that reloads itself every 2 seconds.
pub(crate) fn live_page(title: &str, body: Markup) -> Html<String> {
    whole(title, html! { meta http-equiv="refresh" content="2"; }, body)
}

fn whole(title: &str, head: Markup, body: Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                (head)
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                nav { a href="/" { "Things to do" } a href="/status" { "Status" } }
                main { h1 { (title) } (body) }
            }
        }
    };
    Html(page.into_string())
}
