//! The page about the pool. It needs no database, so it works during an outage.

use std::time::Duration;

use axum::extract::State;
use axum::response::Html;
use diesel_rds_iam::{Histogram, Pool, Stats};
use maud::{Markup, html};

use crate::app::App;
use crate::layout;
use crate::picture::picture;

pub(crate) async fn status(State(app): State<App>) -> Html<String> {
    let (connections, state, stats) =
        (app.watch.connections(), app.pool.state(), app.manager.stats());
    let size = app.pool.max_size();
    let body = html! {
        (health(&app, state.connections))
        dl.numbers {
            (number("in use", state.connections - state.idle_connections))
            (number("idle", state.idle_connections))
            (number("maximum", size))
            (number("logins", stats.login_attempts))
            (number("closed", stats.retirements.values().sum::<u64>()))
        }
        @if let Some(max_lifetime) = app.manager.max_lifetime() {
            (picture(&connections, size as usize, max_lifetime))
            p.small {
                "A connection is closed in the last tenth of its max_lifetime, at a random moment, "
                "so that not all close at once. r2d2 checks unused connections every 30 seconds, "
                "so they can be older."
            }
        }
        div.tables { (of_stats(&stats, &app.pool)) }
    };
    layout::live_page("Status", body)
}

/// Shows whether logins succeed. During an outage, this is the most important part of the page.
fn health(app: &App, connections: u32) -> Markup {
    let Some(error) = app.manager.last_error() else {
        return html! {
            section.health {
                h2 { "Connected" }
                p { "Logins as " (app.login) " succeed." }
            }
        };
    };
    html! {
        section.health.outage role="alert" {
            h2 { @if connections == 0 { "Outage: no connection" } @else { "Outage: logins fail" } }
            p {
                "Logins as " (app.login) " fail. "
                @if connections == 0 { "Requests that need the database get status 503." }
                @else { "Open connections: " (connections) "." }
            }
            p #last-error { (error) }
        }
    }
}

/// Formats a duration: `14:00 min`.
pub(crate) fn for_people(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

fn of_stats(stats: &Stats, pool: &Pool) -> Markup {
    let failed: u64 = stats.failed_logins.values().sum();
    let mut logins = rows(&[("all", stats.login_attempts), ("failed", failed)]);
    let causes = stats.failed_logins.iter().filter(|(_, count)| **count > 0);
    logins.extend(
        causes.map(|(cause, count)| (format!("failed: {}", cause.as_str()), count.to_string())),
    );
    logins.push(("average duration".into(), average(&stats.login_duration)));
    if let Some(outage) = stats.last_outage {
        logins.push(("last outage".into(), format!("{outage:.1?}")));
    }
    let mut checkouts =
        rows(&[("pinged", stats.checkouts_pinged), ("peeked", stats.checkouts_peeked)]);
    checkouts.push(("average wait".into(), average(&stats.checkout_wait)));
    checkouts.push(("threads waiting".into(), pool.waiting().to_string()));
    if let Some(longest) = pool.longest_checkout() {
        checkouts.push(("longest in progress".into(), for_people(longest)));
    }
    let retirements =
        stats.retirements.iter().map(|(reason, count)| (reason.to_string(), count.to_string()));
    html! {
        (table("Closed connections", &retirements.collect::<Vec<_>>()))
        (table("Logins", &logins))
        (table("Credentials", &rows(&[
            ("refreshes", stats.refreshes), ("failed", stats.failed_refreshes)
        ])))
        (table("Checkouts", &checkouts))
    }
}

fn average(histogram: &Histogram) -> String {
    let milliseconds = histogram.sum.as_secs_f64() * 1e3 / histogram.count.max(1) as f64;
    format!("{milliseconds:.2} ms")
}

fn rows(counts: &[(&str, u64)]) -> Vec<(String, String)> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), count.to_string())).collect()
}

fn number(name: &str, value: impl maud::Render) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn table(caption: &str, rows: &[(String, String)]) -> Markup {
    html! {
        table {
            caption { (caption) }
            @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } }
        }
    }
}
