//! [`Stats`]: what a manager has counted.

mod histogram;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, LoginFailure, Retirement};
use histogram::Durations;
pub use histogram::Histogram;

/// The counters of a manager and its clones since the manager was made, for metrics. From
/// [`stats`](crate::RdsConnectionManager::stats).
///
/// Counting is an atomic addition. A snapshot reads one counter after the other, so sums can differ
/// by the events of that moment. A [`Pool`](crate::Pool) has the figures of this moment:
/// [`state`](crate::Pool::state), [`waiting`](crate::Pool::waiting),
/// [`longest_checkout`](crate::Pool::longest_checkout).
///
/// ```
/// # use diesel_rds_iam::RdsConnectionManager;
/// # let url = "postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app?sslmode=require";
/// # let manager = RdsConnectionManager::new(url)?;
/// let stats = manager.stats();
/// println!("# TYPE logins_failed_total counter");
/// for (cause, count) in &stats.failed_logins {
///     println!("logins_failed_total{{cause=\"{}\"}} {count}", cause.as_str());
/// }
/// # assert_eq!(stats.failed_logins.values().sum::<u64>(), 0);
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Attempts to log in, one for each host that was tried. Failures are included. A retry with a
    /// rotated key pair is part of its attempt.
    pub login_attempts: u64,
    /// Attempts that failed, by cause. Each cause is present, also with 0.
    pub failed_logins: BTreeMap<LoginFailure, u64>,
    /// Answers of the source of AWS credentials, including failures. Managers that share their
    /// credentials share this count and the next.
    pub refreshes: u64,
    /// Answers without credentials.
    pub failed_refreshes: u64,
    /// Connections that were closed, by reason. Each reason is present, also with 0.
    pub retirements: BTreeMap<Retirement, u64>,
    /// Checkouts that pinged the server. The end of a unit of work of a
    /// [`PerThread`](crate::PerThread) is counted too if it pings after an error.
    pub checkouts_pinged: u64,
    /// Checkouts that only peeked at the socket. With `test_on_check_out(false)` a checkout does
    /// neither.
    pub checkouts_peeked: u64,
    /// How long each checkout of a [`Pool`](crate::Pool) took, from the call to the connection or
    /// the error. The wait for a connection and the check of the connection are included.
    pub checkout_wait: Histogram,
    /// How long each successful login took, at one host. Failed attempts are not included.
    pub login_duration: Histogram,
    /// How long the last outage was: from the first failed login to the next success. `None` if
    /// there was none, or if the first one is not over.
    pub last_outage: Option<Duration>,
}

/// The counters behind [`Stats`]. No counter guards other data, so their order does not matter.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    logins: AtomicU64,
    failed_logins: [AtomicU64; LoginFailure::ALL.len()],
    retirements: [AtomicU64; Retirement::ALL.len()],
    checkouts_pinged: AtomicU64,
    checkouts_peeked: AtomicU64,
    checkout_wait: Durations,
    login_duration: Durations,
    last_outage: Mutex<Option<Duration>>,
}

impl Counters {
    /// An attempt at one host.
    pub(crate) fn login(&self, failure: Option<&Error>, took: Duration) {
        add_one(&self.logins);
        if let Some(error) = failure {
            let cause = error.login_failure().unwrap_or(LoginFailure::Other);
            add_one(&self.failed_logins[cause as usize]);
        } else {
            self.login_duration.add(took);
        }
    }

    pub(crate) fn outage_ended(&self, lasted: Duration) {
        *self.last_outage.lock() = Some(lasted);
    }

    pub(crate) fn checkout(&self, waited: Duration) {
        self.checkout_wait.add(waited);
    }

    pub(crate) fn retirement(&self, reason: Retirement) {
        add_one(&self.retirements[reason as usize]);
    }

    pub(crate) fn pinged(&self) {
        add_one(&self.checkouts_pinged);
    }

    pub(crate) fn peeked(&self) {
        add_one(&self.checkouts_peeked);
    }

    /// With what the credentials have counted: answers, and failed ones among them.
    pub(crate) fn stats(&self, (refreshes, failed_refreshes): (u64, u64)) -> Stats {
        Stats {
            login_attempts: read(&self.logins),
            failed_logins: LoginFailure::ALL
                .into_iter()
                .zip(self.failed_logins.iter().map(read))
                .collect(),
            refreshes,
            failed_refreshes,
            retirements: Retirement::ALL
                .into_iter()
                .zip(self.retirements.iter().map(read))
                .collect(),
            checkouts_pinged: read(&self.checkouts_pinged),
            checkouts_peeked: read(&self.checkouts_peeked),
            checkout_wait: self.checkout_wait.histogram(),
            login_duration: self.login_duration.histogram(),
            last_outage: *self.last_outage.lock(),
        }
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_and_each_reason_is_counted_at_its_own_place() {
        let counters = Counters::default();
        for (i, reason) in Retirement::ALL.into_iter().enumerate() {
            (0..=i).for_each(|_| counters.retirement(reason));
        }
        let retirements = counters.stats((0, 0)).retirements;
        assert_eq!(
            retirements.into_values().collect::<Vec<_>>(),
            (1..=Retirement::ALL.len() as u64).collect::<Vec<_>>()
        );
        for (i, cause) in LoginFailure::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, i);
        }
    }

    #[test]
    fn labels_are_fit_for_metrics_and_differ() {
        let mut labels: Vec<_> = LoginFailure::ALL.iter().map(|cause| cause.as_str()).collect();
        labels.extend(Retirement::ALL.iter().map(|reason| reason.as_str()));
        assert!(
            labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_')),
            "{labels:?}"
        );
        let count = labels.len();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
