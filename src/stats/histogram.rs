//! [`Histogram`]: how long something took, each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long something took, as Prometheus counts it: durations up to each of some fixed bounds,
/// their number, and their sum.
///
/// ```
/// # use diesel_rds_iam::RdsConnectionManager;
/// # let url = "postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app?sslmode=require";
/// # let manager = RdsConnectionManager::new(url)?;
/// let waits = manager.stats().checkout_wait;
/// for (bound, count) in &waits.buckets {
///     println!("checkout_wait_seconds_bucket{{le=\"{}\"}} {count}", bound.as_secs_f64());
/// }
/// println!("checkout_wait_seconds_bucket{{le=\"+Inf\"}} {}", waits.count);
/// println!("checkout_wait_seconds_sum {}", waits.sum.as_secs_f64());
/// println!("checkout_wait_seconds_count {}", waits.count);
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Histogram {
    /// Each bound, and how many durations are not longer. The bounds are 1, 2.5, 5, 10, 25, 50,
    /// 100, 250 and 500 milliseconds, and 1, 2.5, 5 and 10 seconds.
    pub buckets: Vec<(Duration, u64)>,
    /// How many durations there are, also longer ones.
    pub count: u64,
    /// The sum of all durations.
    pub sum: Duration,
}

const BOUNDS: [Duration; 13] = [
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// The counters behind a [`Histogram`].
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// Not cumulative. The last one is for durations above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    pub(super) fn add(&self, duration: Duration) {
        let i = BOUNDS.iter().position(|bound| duration <= *bound).unwrap_or(BOUNDS.len());
        self.counts[i].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn histogram(&self) -> Histogram {
        let mut count = 0;
        let mut cumulative = self.counts.iter().map(|it| {
            count += it.load(Ordering::Relaxed);
            count
        });
        let buckets = BOUNDS.into_iter().zip(cumulative.by_ref()).collect();
        let count = cumulative.last().unwrap_or_default();
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        Histogram { buckets, count, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_at_its_bound_and_at_all_longer_ones() {
        let durations = Durations::default();
        let nanosecond = Duration::from_nanos(1);
        for duration in [Duration::ZERO, BOUNDS[3], BOUNDS[3] + nanosecond, BOUNDS[12]] {
            durations.add(duration);
        }
        durations.add(BOUNDS[12] + nanosecond);
        let Histogram { buckets, count, sum } = durations.histogram();
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!((count, sum), (5, 2 * (BOUNDS[3] + BOUNDS[12] + nanosecond)));
        assert!(BOUNDS.is_sorted());
    }
}
