//! What a manager has counted and what its pool holds, as Prometheus wants it: its text format, version 0.0.4.

use std::fmt::{Display, Write};

use axum::http::header;
use axum::response::IntoResponse;
use diesel_rds_iam::{Pool, Stats};

pub(crate) fn answer(stats: &Stats, pool: &Pool) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(stats, pool))
}

fn text(stats: &Stats, pool: &Pool) -> String {
    let mut out = String::new();
    let causes = stats.failed_logins.iter().map(|(cause, count)| (labelled("cause", cause.label()), *count));
    let reasons = stats.retirements.iter().map(|(reason, count)| (labelled("reason", reason.label()), *count));
    counter(&mut out, "logins", "Logins tried, failed ones included.", [(String::new(), stats.logins)]);
    counter(&mut out, "failed_logins", "Logins that failed, by cause.", causes);
    counter(&mut out, "refreshes", "Answers of the source of AWS credentials.", [(String::new(), stats.refreshes)]);
    counter(&mut out, "failed_refreshes", "Those without credentials.", [(String::new(), stats.failed_refreshes)]);
    counter(&mut out, "retirements", "Connections closed, by reason.", reasons);
    let checkouts = [("asked", stats.checkouts_asked), ("looked", stats.checkouts_looked)];
    let checkouts = checkouts.map(|(check, count)| (labelled("check", check), count));
    counter(&mut out, "checkouts", "Checkouts that asked the server, or only looked at the socket.", checkouts);
    let state = pool.state();
    let in_use = state.connections - state.idle_connections;
    let states = [("in_use", in_use), ("idle", state.idle_connections)];
    let states = states.map(|(state, count)| (labelled("state", state), count));
    gauge(&mut out, "connections", "Connections of the pool.", states);
    gauge(&mut out, "max_connections", "The most that the pool may have.", [(String::new(), pool.max_size())]);
    out
}

/// Labels of ours have nothing to escape.
fn labelled(name: &str, value: &str) -> String {
    format!("{{{name}=\"{value}\"}}")
}

fn counter<N: Display>(out: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, N)>) {
    family(out, &format!("{name}_total"), "counter", help, samples);
}

fn gauge<N: Display>(out: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, N)>) {
    family(out, name, "gauge", help, samples);
}

fn family<N: Display>(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, N)>,
) {
    let name = format!("rds_iam_{name}");
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}
