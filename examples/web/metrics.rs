//! The statistics of the manager and the state of its pool, in Prometheus' text format, version
//! 0.0.4.

use std::fmt::Display;
use std::time::Duration;

use axum::http::header;
use axum::response::IntoResponse;
use diesel_rds_iam::{Histogram, Pool, Stats};

pub(crate) fn response(stats: &Stats, pool: &Pool) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(stats, pool))
}

/// Labels with their value. A family with one sample has no label.
type Samples = Vec<(String, String)>;

fn text(stats: &Stats, pool: &Pool) -> String {
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
        family("max_connections", "The maximum size of the pool.", one(pool.max_size())),
        family("waiting_threads", "Threads that wait for a connection.", one(pool.waiting())),
        family(
            "longest_checkout_seconds",
            "How long the connection that was checked out first is in use.",
            one(seconds(pool.longest_checkout().unwrap_or_default())),
        ),
        family(
            "last_outage_seconds",
            "How long logins failed in the last outage that is over.",
            one(seconds(stats.last_outage.unwrap_or_default())),
        ),
        histogram(
            "checkout_wait_seconds",
            "How long checkouts took, including failed ones.",
            &stats.checkout_wait,
        ),
        histogram(
            "login_duration_seconds",
            "How long successful logins took.",
            &stats.login_duration,
        ),
    ];
    families.concat()
}

fn one(value: impl Display) -> Samples {
    vec![(String::new(), value.to_string())]
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Formats labels. None of their values needs escaping.
fn labelled(name: &str, counts: impl IntoIterator<Item = (&'static str, u64)>) -> Samples {
    let sample =
        |(value, count): (&str, u64)| (format!("{{{name}=\"{value}\"}}"), count.to_string());
    counts.into_iter().map(sample).collect()
}

fn family(name: &str, help: &str, samples: Samples) -> String {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let samples = samples.iter().map(|(labels, value)| format!("rds_iam_{name}{labels} {value}\n"));
    header(name, help, kind) + &samples.collect::<String>()
}

fn histogram(name: &str, help: &str, histogram: &Histogram) -> String {
    let Histogram { buckets, count, sum, .. } = histogram;
    let bucket = |(bound, count): &(Duration, u64)| {
        format!("rds_iam_{name}_bucket{{le=\"{}\"}} {count}\n", seconds(*bound))
    };
    let buckets: String = buckets.iter().map(bucket).collect();
    let infinite = format!("rds_iam_{name}_bucket{{le=\"+Inf\"}} {count}\n");
    let totals = format!("rds_iam_{name}_sum {}\nrds_iam_{name}_count {count}\n", seconds(*sum));
    [header(name, help, "histogram"), buckets, infinite, totals].concat()
}

fn header(name: &str, help: &str, kind: &str) -> String {
    format!("# HELP rds_iam_{name} {help}\n# TYPE rds_iam_{name} {kind}\n")
}
