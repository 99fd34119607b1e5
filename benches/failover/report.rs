//! The figures of a client.

use std::fmt;
use std::time::Duration;

use crate::client::Operation;

/// What a client did in a failover.
pub(crate) struct Round {
    /// For each thread: the seconds until the end of its first write that started after the
    /// promotion. `None` if it did not write within the limit.
    pub(crate) recoveries: Vec<Option<f64>>,
    /// Those that ended since the start of the failover.
    pub(crate) operations: Vec<Operation>,
    pub(crate) logins: usize,
    pub(crate) cpu: f64,
    /// The connections beside those of the pool before the failover.
    pub(crate) in_peace: i64,
}

impl Round {
    fn failed(&self) -> f64 {
        self.operations.iter().filter(|operation| operation.error.is_some()).count() as f64
    }

    /// The failures with SQLSTATE 25006.
    fn read_only(&self) -> f64 {
        let is_read_only = |error: &String| error.contains("in a read-only transaction");
        let errors = self.operations.iter().filter_map(|operation| operation.error.as_ref());
        errors.filter(|error| is_read_only(error)).count() as f64
    }

    /// The longest operation. Those that have not ended are not known.
    fn longest(&self) -> f64 {
        let lengths = self.operations.iter().map(|operation| operation.ended - operation.started);
        lengths.fold(0.0, f64::max)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recoveries: Vec<_> = self
            .recoveries
            .iter()
            .map(|it| it.map_or("never".into(), |it| format!("{it:.2}")))
            .collect();
        let first_error = self.operations.iter().find_map(|operation| operation.error.as_deref());
        write!(
            f,
            "recovered after {} s; {} failed, {} read-only, {} logins, longest {:.2} s, \
             CPU {:.2} s, {} connections in peace; first error: {}",
            recoveries.join(" "),
            self.failed(),
            self.read_only(),
            self.logins,
            self.longest(),
            self.cpu,
            self.in_peace,
            first_error.unwrap_or("none")
        )
    }
}

pub(crate) fn header(kind: &str) -> String {
    let columns = format!(
        "| {kind} | first write: median, s | 99 %, s | longest, s | failed operations | \
         read-only errors | logins | longest operation, s | CPU, s | further connections |"
    );
    let dashes = "---|".repeat(columns.matches('|').count() - 1);
    format!("{columns}\n|{dashes}")
}

pub(crate) fn row(title: &str, rounds: &[Round], limit: Duration) -> String {
    let limit = limit.as_secs_f64();
    let all = rounds.iter().flat_map(|round| &round.recoveries);
    let mut recoveries: Vec<f64> = all.map(|seconds| seconds.unwrap_or(limit)).collect();
    recoveries.sort_by(f64::total_cmp);
    let quantile = |part: f64| {
        let seconds = recoveries[((recoveries.len() - 1) as f64 * part).ceil() as usize];
        if seconds < limit { format!("{seconds:.2}") } else { format!("> {limit}") }
    };
    let mean = |of: fn(&Round) -> f64| rounds.iter().map(of).sum::<f64>() / rounds.len() as f64;
    let longest = rounds.iter().map(Round::longest).fold(0.0, f64::max);
    let has_hung = recoveries.last() == Some(&limit);
    let longest = if has_hung { format!("> {limit}") } else { format!("{longest:.1}") };
    // Logins with a password are not counted.
    let logins = mean(|round| round.logins as f64);
    let logins = if logins > 0.0 { format!("{logins:.1}") } else { "–".into() };
    format!(
        "| {title} | {} | {} | {} | {:.1} | {:.1} | {logins} | {longest} | {:.2} | {:.0} |",
        quantile(0.5),
        quantile(0.99),
        quantile(1.0),
        mean(Round::failed),
        mean(Round::read_only),
        mean(|round| round.cpu),
        mean(|round| round.in_peace as f64)
    )
}
