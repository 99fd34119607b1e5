//! The connections of a pool as a picture: a bar for each, as long as it is old.

use std::time::Duration;

use maud::{Markup, html};

use crate::status::for_people;
use crate::watch::Life;

/// In pixels. Widths are in percent, so that the picture fits a phone and its text stays readable.
const ROW: usize = 34;
const BAR: usize = 26;

/// Where the manager begins to end connections: each in the last tenth of max_lifetime, at a moment
/// of its own.
const ENDS_FROM: f64 = 90.0;

/// As many rows as the pool may have connections; `max_lifetime` is the whole width.
pub(crate) fn picture(connections: &[Life], rows: usize, max_lifetime: Duration) -> Markup {
    let bottom = rows.max(connections.len()) * ROW;
    html! {
        svg role="img" aria-labelledby="picture-title picture-desc" width="100%" height=(bottom + 22) {
            title #picture-title { "The age of each connection" }
            desc #picture-desc { (description(connections, max_lifetime)) }
            @for row in 0..rows { rect.slot y=(row * ROW) width="100%" height=(BAR) rx="4" {} }
            @for (row, connection) in connections.iter().enumerate() { (bar(row * ROW, connection, max_lifetime)) }
            rect.end x={ (ENDS_FROM) "%" } width={ (100.0 - ENDS_FROM) "%" } height=(bottom - ROW + BAR) {}
            text.axis y=(bottom + 12) { "age 0:00 min" }
            text.axis.right x="100%" y=(bottom + 12) { "ends in here, at " (for_people(max_lifetime)) }
        }
    }
}

fn bar(top: usize, connection: &Life, max_lifetime: Duration) -> Markup {
    let share = (connection.age().as_secs_f64() / max_lifetime.as_secs_f64()).min(1.0);
    html! {
        rect class=(if connection.in_use { "in-use" } else { "idle" }) y=(top) width={ (format!("{:.1}", share * 100.0)) "%" }
            height=(BAR) rx="4" {}
        text x="10" y=(top + BAR / 2) { "#" (connection.id) " " (connection.state()) }
        text.right x="99%" y=(top + BAR / 2) { (for_people(connection.age())) }
    }
}

fn description(connections: &[Life], max_lifetime: Duration) -> String {
    let in_use = connections.iter().filter(|connection| connection.in_use).count();
    let (idle, end) = (connections.len() - in_use, for_people(max_lifetime));
    format!(
        "{in_use} in use, {idle} idle. Each ends in the last tenth of {end}. The table below says the same."
    )
}
