//! The connections of a pool, collected from its events, because r2d2 does not list them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel_rds_iam::PoolLog;
use diesel_rds_iam::r2d2::HandleEvent;
use diesel_rds_iam::r2d2::event::{
    AcquireEvent, CheckinEvent, CheckoutEvent, ReleaseEvent, TimeoutEvent,
};

/// Records each connection, and passes all events on to [`PoolLog`]. Clones share the record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<BTreeMap<u64, Life>>>);

/// One connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) id: u64,
    pub(crate) in_use: bool,
    since: Instant,
}

impl Life {
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    pub(crate) fn state(&self) -> &'static str {
        if self.in_use { "in use" } else { "idle" }
    }
}

impl Watch {
    /// Returns the open connections, oldest first.
    pub(crate) fn connections(&self) -> Vec<Life> {
        self.lock().values().copied().collect()
    }

    fn set_in_use(&self, id: u64, in_use: bool) {
        if let Some(life) = self.lock().get_mut(&id) {
            life.in_use = in_use;
        }
    }

    /// Ignores poisoning: no panic leaves the map half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Life>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandleEvent for Watch {
    fn handle_acquire(&self, event: AcquireEvent) {
        let id = event.connection_id();
        self.lock().insert(id, Life { id, in_use: false, since: Instant::now() });
        PoolLog.handle_acquire(event);
    }

    fn handle_release(&self, event: ReleaseEvent) {
        self.lock().remove(&event.connection_id());
        PoolLog.handle_release(event);
    }

    fn handle_checkout(&self, event: CheckoutEvent) {
        self.set_in_use(event.connection_id(), true);
        PoolLog.handle_checkout(event);
    }

    fn handle_checkin(&self, event: CheckinEvent) {
        self.set_in_use(event.connection_id(), false);
        PoolLog.handle_checkin(event);
    }

    fn handle_timeout(&self, event: TimeoutEvent) {
        PoolLog.handle_timeout(event);
    }
}
