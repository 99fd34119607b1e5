//! [`Watchdog`]: shuts down sockets at their deadlines.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::socket::Socket;
use crate::error::Retirement;

/// One thread for all deadlines of the process. It starts at the first deadline and never ends.
struct Watchdog {
    process: u32,
    schedule: Mutex<Schedule<(Arc<Socket>, Retirement)>>,
    is_earlier: Condvar,
}

impl Watchdog {
    /// Returns the running watchdog, or starts one. In the child of a fork there is no thread, and
    /// the parent's deadlines are not the child's.
    fn shared() -> io::Result<Arc<Watchdog>> {
        static RUNNING: Mutex<Option<Arc<Watchdog>>> = Mutex::new(None);
        let mut running = RUNNING.lock();
        if let Some(watchdog) = running.as_ref().filter(|watchdog| watchdog.is_running()) {
            return Ok(watchdog.clone());
        }
        let watchdog = Arc::new(Watchdog {
            process: std::process::id(),
            schedule: Mutex::default(),
            is_earlier: Condvar::new(),
        });
        let started = watchdog.clone();
        thread::Builder::new().name("rds-iam-watchdog".into()).spawn(move || started.run())?;
        *running = Some(watchdog.clone());
        Ok(watchdog)
    }

    fn is_running(&self) -> bool {
        self.process == std::process::id()
    }

    fn run(&self) {
        let mut schedule = self.schedule.lock();
        loop {
            // Under the lock: after the drop of an alarm nothing is shut down.
            while let Some((socket, reason)) = schedule.take_due(Instant::now()) {
                socket.shut_down(reason);
            }
            match schedule.sleep() {
                Some(at) => drop(self.is_earlier.wait_until(&mut schedule, at)),
                None => self.is_earlier.wait(&mut schedule),
            }
        }
    }
}

/// A deadline of a socket. Its drop removes the deadline.
pub(crate) struct Alarm {
    watchdog: Arc<Watchdog>,
    key: Key,
}

impl Alarm {
    /// Shuts the socket down `at` this time for this reason.
    pub(crate) fn set(socket: Arc<Socket>, at: Instant, reason: Retirement) -> io::Result<Alarm> {
        let watchdog = Watchdog::shared()?;
        let mut schedule = watchdog.schedule.lock();
        if schedule.is_earlier(at) {
            watchdog.is_earlier.notify_one();
        }
        let key = schedule.insert(at, (socket, reason));
        drop(schedule);
        Ok(Alarm { watchdog, key })
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // In the child of a fork the lock may be held by a thread that does not exist there.
        if self.watchdog.is_running() {
            self.watchdog.schedule.lock().values.remove(&self.key);
        }
    }
}

type Key = (Instant, u64);

/// Values in the order of their times.
struct Schedule<T> {
    values: BTreeMap<Key, T>,
    /// Distinguishes equal times.
    last: u64,
    /// When the thread wakes up by itself.
    wakes: Option<Instant>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule { values: BTreeMap::new(), last: 0, wakes: None }
    }
}

impl<T> Schedule<T> {
    fn insert(&mut self, at: Instant, value: T) -> Key {
        self.last += 1;
        self.values.insert((at, self.last), value);
        (at, self.last)
    }

    /// Whether the thread would be too late for this time.
    fn is_earlier(&self, at: Instant) -> bool {
        self.wakes.is_none_or(|wakes| at < wakes)
    }

    /// Takes the first value whose time has come.
    fn take_due(&mut self, now: Instant) -> Option<T> {
        let first = self.values.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Returns when the thread has to wake up.
    fn sleep(&mut self) -> Option<Instant> {
        self.wakes = self.values.keys().next().map(|(at, _)| *at);
        self.wakes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn values_are_taken_in_the_order_of_their_times_and_not_before() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for (ms, value) in [(2, "second"), (1, "first"), (2, "third"), (3, "last")] {
            schedule.insert(now + ms * MS, value);
        }
        assert_eq!(schedule.take_due(now + MS - Duration::from_nanos(1)), None);
        assert_eq!(schedule.take_due(now + MS), Some("first"));
        assert_eq!(schedule.take_due(now + MS), None);
        let due: Vec<_> = std::iter::from_fn(|| schedule.take_due(now + 2 * MS)).collect();
        assert_eq!(due, ["second", "third"]);
        assert_eq!(schedule.sleep(), Some(now + 3 * MS));
    }

    #[test]
    fn a_removed_value_is_not_taken() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        let [one, other] = ["one", "other"].map(|value| schedule.insert(now, value));
        schedule.values.remove(&one);
        assert_eq!(schedule.take_due(now), Some("other"));
        schedule.values.remove(&other);
        assert_eq!((schedule.sleep(), schedule.take_due(now)), (None, None));
    }

    #[test]
    fn the_thread_is_woken_only_for_an_earlier_time() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        assert!(schedule.is_earlier(now), "it sleeps without an end");
        let key = schedule.insert(now + 2 * MS, ());
        schedule.sleep();
        assert!(schedule.is_earlier(now + MS) && !schedule.is_earlier(now + 2 * MS));
        schedule.values.remove(&key);
        assert!(!schedule.is_earlier(now + 2 * MS), "it wakes up in any case");
    }
}
