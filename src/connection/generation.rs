//! [`Generation`]: events that concern all open connections of a manager.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::series::Series;

/// Counts the events that concern all open connections. Each connection compares the current number
/// with its own at its checkout and check-in.
#[derive(Default)]
pub(crate) struct Generation {
    current: AtomicU64,
    /// The last one that requires a check of the server's role.
    role_changed: AtomicU64,
    /// Connections that are older are retired.
    oldest: AtomicU64,
    /// A restart or a failover is reported once.
    events: Series,
}

impl Generation {
    pub(crate) fn current(&self) -> u64 {
        self.current.load(SeqCst)
    }

    /// A connection was closed or does not answer, possibly together with all others.
    pub(crate) fn connection_closed(&self) {
        self.current.fetch_add(1, SeqCst);
        self.report("a connection was lost: open connections are checked before their use");
    }

    /// A server that accepted writes refuses them now.
    pub(crate) fn writer_demoted(&self) {
        let next = self.current.fetch_add(1, SeqCst) + 1;
        self.role_changed.fetch_max(next, SeqCst);
        self.report("the writer refuses writes: open connections are checked before their use");
    }

    /// All open connections are to be replaced.
    pub(crate) fn retire_all(&self) {
        let next = self.current.fetch_add(1, SeqCst) + 1;
        self.oldest.fetch_max(next, SeqCst);
    }

    pub(super) fn is_retired(&self, born: u64) -> bool {
        born < self.oldest.load(SeqCst)
    }

    pub(super) fn needs_check(&self, checked: u64) -> bool {
        checked < self.current()
    }

    pub(super) fn needs_role_check(&self, checked: u64) -> bool {
        checked < self.role_changed.load(SeqCst)
    }

    fn report(&self, text: &str) {
        log::log!(self.events.next_level(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_concerns_the_older_connections_only() {
        let generation = Generation::default();
        let first = generation.current();
        assert!(!generation.needs_check(first) && !generation.is_retired(first));
        generation.connection_closed();
        let second = generation.current();
        assert!(generation.needs_check(first) && !generation.needs_role_check(first));
        assert!(!generation.needs_check(second));
        generation.writer_demoted();
        assert!(generation.needs_role_check(second));
        assert!(!generation.needs_role_check(generation.current()));
        assert!(!generation.is_retired(first));
        generation.retire_all();
        assert!(generation.is_retired(second) && !generation.is_retired(generation.current()));
    }
}
