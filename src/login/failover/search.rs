//! [`Search`]: logins at all hosts, until one has the role.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::hope::Hope;

pub(super) struct Search {
    pub(super) id: u64,
    pub(super) started: Instant,
    pub(super) first: Option<String>,
    /// The hosts that a thread watches. `None` until the first result.
    pub(super) watched: BTreeMap<String, Option<Hope>>,
    /// The hosts that can take the place of one with the role.
    pub(super) substitutes: BTreeSet<String>,
    /// All hosts are tried.
    pub(super) is_wide: bool,
    /// When a thread last waited for the result.
    pub(super) wanted: Instant,
    pub(super) is_reported: bool,
}

impl Search {
    /// Starts with this host. Without one, all hosts are tried at once.
    pub(super) fn new(id: u64, first: Option<String>, now: Instant) -> Search {
        Search {
            id,
            started: now,
            first,
            watched: BTreeMap::new(),
            substitutes: BTreeSet::new(),
            is_wide: false,
            wanted: now,
            is_reported: false,
        }
    }
}
