//! The statistics of the manager and the state of its pool, in Prometheus' text format, version
//! 0.0.4.

use axum::http::header;
use axum::response::IntoResponse;
use diesel_rds_iam::{Pool, Stats};

pub(crate) fn response(stats: &Stats, pool: &Pool) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(stats, pool))
}

/// Labels with their count. A family with one sample has no label.
type Samples = Vec<(String, u64)>;

fn text(stats: &Stats, pool: &Pool) -> String {
    let one = |count: u64| vec![(String::new(), count)];
    let state = pool.state();
    let in_use = state.connections - state.idle_connections;
    let states = [("in_use", in_use.into()), ("idle", state.idle_connections.into())];
    let checkouts = [("pinged", stats.checkouts_pinged), ("peeked", stats.checkouts_peeked)];
    let causes = stats.failed_logins.iter().map(|(cause, count)| (cause.as_str(), *count));
    let reasons = stats.retirements.iter().map(|(reason, count)| (reason.as_str(), *count));
    let families = [
        family("logins_total", "Login attempts, including failed ones.", one(stats.login_attempts)),
        family("failed_logins_total", "Failed logins.", labelled("cause", causes)),
        family(
            "refreshes_total",
            "Refreshes of the AWS credentials, including failed ones.",
            one(stats.refreshes),
        ),
        family(
            "failed_refreshes_total",
            "Failed refreshes of the AWS credentials.",
            one(stats.failed_refreshes),
        ),
        family("retirements_total", "Closed connections.", labelled("reason", reasons)),
        family(
            "checkouts_total",
            "Checkouts that pinged the server or peeked at the socket.",
            labelled("check", checkouts),
        ),
        family("connections", "Connections of the pool.", labelled("state", states)),
        family("max_connections", "The maximum size of the pool.", one(pool.max_size().into())),
    ];
    families.concat()
}

/// Formats labels. None of their values needs escaping.
fn labelled(name: &str, counts: impl IntoIterator<Item = (&'static str, u64)>) -> Samples {
    counts.into_iter().map(|(value, count)| (format!("{{{name}=\"{value}\"}}"), count)).collect()
}

fn family(name: &str, help: &str, samples: Samples) -> String {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let samples = samples.iter().map(|(labels, count)| format!("rds_iam_{name}{labels} {count}\n"));
    format!(
        "# HELP rds_iam_{name} {help}\n# TYPE rds_iam_{name} {kind}\n{}",
        samples.collect::<String>()
    )
}
