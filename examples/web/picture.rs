//! The connections of a pool as a picture. The length of a bar is the age of a connection.

use std::time::Duration;

use maud::{Markup, html};

use crate::status::for_people;
use crate::watch::Life;

/// In pixels. Widths are in percent, so that the picture fits a phone with readable text.
const ROW: usize = 34;
const BAR: usize = 26;

/// In percent of max_lifetime. The manager closes each connection at a random moment after this.
const ENDS_FROM: f64 = 90.0;

/// Draws one row for each connection that the pool may have. The width is `max_lifetime`.
pub(crate) fn picture(connections: &[Life], rows: usize, max_lifetime: Duration) -> Markup {
    let bottom = rows.max(connections.len()) * ROW;
    html! {
        svg role="img" aria-labelledby="picture-title picture-desc" width="100%"
            height=(bottom + 22)
        {
            title #picture-title { "The age of each connection" }
            desc #picture-desc { (description(connections, max_lifetime)) }
            @for row in 0..rows { rect.slot y=(row * ROW) width="100%" height=(BAR) rx="4" {} }
            @for (row, connection) in connections.iter().enumerate() {
                (bar(row * ROW, connection, max_lifetime))
            }
            rect.end x={ (ENDS_FROM) "%" } width={ (100.0 - ENDS_FROM) "%" }
                height=(bottom - ROW + BAR) {}
            text.axis y=(bottom + 12) { "age 0:00 min" }
            text.axis.right x="100%" y=(bottom + 12) {
                "closed by " (for_people(max_lifetime))
            }
        }
    }
}

fn bar(top: usize, connection: &Life, max_lifetime: Duration) -> Markup {
    let share = (connection.age().as_secs_f64() / max_lifetime.as_secs_f64()).min(1.0);
    html! {
        rect class=(if connection.in_use { "in-use" } else { "idle" }) y=(top)
            width={ (format!("{:.1}", share * 100.0)) "%" } height=(BAR) rx="4" {}
        text x="10" y=(top + BAR / 2) { "#" (connection.id) " " (connection.state()) }
        text.right x="99%" y=(top + BAR / 2) { (for_people(connection.age())) }
    }
}

/// Returns the picture in words, for screen readers.
fn description(connections: &[Life], max_lifetime: Duration) -> String {
    let in_use = connections.iter().filter(|connection| connection.in_use).count();
    let (idle, end) = (connections.len() - in_use, for_people(max_lifetime));
    let ages = connections.iter().map(|connection| {
        format!(" #{} {}, {}.", connection.id, connection.state(), for_people(connection.age()))
    });
    format!(
        "{in_use} in use, {idle} idle. Each is closed in the last tenth of {end}.{}",
        ages.collect::<String>()
    )
}
