//! [`Bell`]: wakes the threads.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts its rings, so that a thread that was busy does not miss one.
#[derive(Default)]
pub(crate) struct Bell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rings: u64,
    is_stopped: bool,
}

impl Bell {
    /// Wakes all threads.
    pub(crate) fn ring(&self) {
        self.lock().rings += 1;
        self.changed.notify_all();
    }

    /// Ends all waits, also later ones.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    /// Returns how often it has rung. A thread calls this before it searches for work.
    pub(crate) fn rings(&self) -> u64 {
        self.lock().rings
    }

    /// Waits until it has rung more often than `heard`, at most for `limit`.
    pub(crate) fn wait(&self, heard: u64, limit: Duration) {
        self.wait_while(limit, |state| !state.is_stopped && state.rings == heard);
    }

    /// Waits for `limit`, or until it is stopped.
    pub(crate) fn pause(&self, limit: Duration) {
        self.wait_while(limit, |state| !state.is_stopped);
    }

    pub(crate) fn wait_until_stopped(&self) {
        while !self.is_stopped() {
            self.pause(Duration::MAX);
        }
    }

    fn wait_while(&self, limit: Duration, condition: impl Fn(&State) -> bool) {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| condition(state));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Ignores poisoning: no panic leaves the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
