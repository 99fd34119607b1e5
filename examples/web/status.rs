//! What the pool does, as a page. It asks the app only, so it works while the database is away.

use std::time::Duration;

use axum::extract::State;
use axum::response::Html;
use diesel_rds_iam::Stats;
use maud::{Markup, html};

use crate::app::App;
use crate::layout;
use crate::picture::picture;
use crate::watch::Life;

pub(crate) async fn status(State(app): State<App>) -> Html<String> {
    let (connections, state, stats) =
        (app.watch.connections(), app.pool.state(), app.manager.stats());
    let size = app.pool.max_size();
    let body = html! {
        dl.numbers {
            (number("in use", state.connections - state.idle_connections))
            (number("idle", state.idle_connections))
            (number("at most", size))
            (number("logins", stats.logins))
            (number("retired", stats.retirements.values().sum::<u64>()))
        }
        @if let Some(max_lifetime) = app.pool.as_ref().max_lifetime() {
            (picture(&connections, size as usize, max_lifetime))
            p.small {
                "A connection ends in the last tenth of its max_lifetime, so that not all end at once. One that nobody "
                "uses may end half a minute later, for r2d2 looks that often."
            }
        }
        div.tables { (table("Connections", &of_connections(&connections))) (of_stats(&stats)) }
        h2 { "Last error" }
        p #last-error { (app.manager.last_error().as_deref().unwrap_or("None: the last login was a success.")) }
    };
    layout::live_page("Status", body)
}

/// `14:00 min`
pub(crate) fn for_people(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

fn of_connections(connections: &[Life]) -> Vec<(String, String)> {
    let row = |it: &Life| (format!("#{}, {}", it.id, it.state()), for_people(it.age()));
    connections.iter().map(row).collect()
}

fn of_stats(stats: &Stats) -> Markup {
    let failed: u64 = stats.failed_logins.values().sum();
    let mut logins = rows(&[("tried", stats.logins), ("failed", failed)]);
    let causes = stats.failed_logins.iter().filter(|(_, count)| **count > 0);
    logins.extend(
        causes.map(|(cause, count)| (format!("failed: {}", cause.as_str()), count.to_string())),
    );
    let retirements =
        stats.retirements.iter().map(|(reason, count)| (reason.to_string(), count.to_string()));
    html! {
        (table("Retired, for", &retirements.collect::<Vec<_>>()))
        (table("Logins", &logins))
        (table("Credentials", &rows(&[("refreshes", stats.refreshes), ("failed", stats.failed_refreshes)])))
        (table("Checkouts", &rows(&[
            ("asked the server", stats.checkouts_pinged), ("looked at the socket", stats.checkouts_peeked)
        ])))
    }
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
