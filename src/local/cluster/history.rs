//! Who was the writer when: what a name of the cluster leads to at a time.

use std::time::{Duration, Instant};

/// The nodes to which the names of the cluster lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) writer: usize,
    pub(super) readers: Vec<usize>,
}

impl Roles {
    /// Returns the nodes of the reader endpoint: the writer if there is no reader.
    pub(super) fn readers(&self) -> Vec<usize> {
        if self.readers.is_empty() { vec![self.writer] } else { self.readers.clone() }
    }
}

/// All changes of the roles. The names follow each of them after `lag`.
#[derive(Debug)]
pub(super) struct History {
    lag: Duration,
    first: Roles,
    changes: Vec<(Instant, Roles)>,
}

impl History {
    pub(super) fn new(first: Roles, lag: Duration) -> History {
        History { lag, first, changes: Vec::new() }
    }

    /// Records a change. `now` must not be before the last change.
    pub(super) fn push(&mut self, roles: Roles, now: Instant) {
        if *self.newest() != roles {
            self.changes.push((now, roles));
        }
    }

    fn newest(&self) -> &Roles {
        self.changes.last().map_or(&self.first, |(_, roles)| roles)
    }

    /// Returns the roles to which the names lead at `now`: those of `lag` ago.
    pub(super) fn at(&self, now: Instant) -> &Roles {
        let seen = self.changes.iter().rev().find(|(changed, _)| self.visible(*changed) <= now);
        seen.map_or(&self.first, |(_, roles)| roles)
    }

    /// Returns when the names will next lead to other nodes.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        self.changes.iter().map(|(changed, _)| self.visible(*changed)).find(|at| *at > now)
    }

    fn visible(&self, changed: Instant) -> Instant {
        // A lag that no clock can express is one that does not end.
        let never = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        changed + self.lag.min(never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG: Duration = Duration::from_secs(30);

    fn roles(writer: usize, readers: &[usize]) -> Roles {
        Roles { writer, readers: readers.to_vec() }
    }

    #[test]
    fn the_names_follow_each_change_exactly_after_the_lag() {
        let start = Instant::now();
        let mut history = History::new(roles(0, &[1]), LAG);
        let second = Duration::from_secs(1);
        history.push(roles(1, &[]), start + second);
        history.push(roles(1, &[0]), start + 2 * second);
        history.push(roles(1, &[0]), start + 3 * second);
        let at = |time| history.at(start + time).clone();
        assert_eq!(at(Duration::ZERO), roles(0, &[1]));
        assert_eq!(at(LAG + second - Duration::from_nanos(1)), roles(0, &[1]));
        assert_eq!(at(LAG + second), roles(1, &[]));
        assert_eq!(at(LAG + 2 * second), roles(1, &[0]));
        let next = |time| history.next_change(start + time);
        assert_eq!(next(Duration::ZERO), Some(start + second + LAG));
        assert_eq!(next(second + LAG), Some(start + 2 * second + LAG));
        assert_eq!(next(2 * second + LAG), None, "an equal change is not recorded");
    }

    #[test]
    fn without_a_lag_a_change_is_seen_at_once_and_with_an_endless_one_never() {
        let start = Instant::now();
        let mut history = History::new(roles(0, &[1]), Duration::ZERO);
        history.push(roles(1, &[0]), start);
        assert_eq!(*history.at(start), roles(1, &[0]));
        let mut history = History::new(roles(0, &[1]), Duration::MAX);
        history.push(roles(1, &[0]), start);
        assert_eq!(*history.at(start + Duration::from_secs(1_000_000)), roles(0, &[1]));
    }

    #[test]
    fn without_readers_the_reader_endpoint_leads_to_the_writer() {
        assert_eq!(roles(2, &[]).readers(), [2]);
        assert_eq!(roles(2, &[0, 1]).readers(), [0, 1]);
    }
}
