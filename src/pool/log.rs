//! [`PoolLog`]: what happens in a pool, for the log.

use r2d2::event::{AcquireEvent, CheckinEvent, CheckoutEvent, ReleaseEvent};
use r2d2::{HandleError, HandleEvent};

use crate::error::Error;

/// Logs what happens in a pool: *debug* for each connection that is added or closed, *trace* for
/// each checkout and check-in.
///
/// The manager itself logs failed logins and closed connections.
/// [`pool_builder`](crate::RdsConnectionManager::pool_builder) sets it as both of r2d2's handlers.
/// A handler of a program can call it:
///
/// ```
/// use diesel_rds_iam::PoolLog;
/// use diesel_rds_iam::r2d2::HandleEvent;
/// use diesel_rds_iam::r2d2::event::CheckinEvent;
///
/// #[derive(Debug)]
/// struct LongUses;
///
/// impl HandleEvent for LongUses {
///     fn handle_checkin(&self, event: CheckinEvent) {
///         if event.duration().as_secs() >= 5 {
///             eprintln!("a connection was in use for {:?}", event.duration());
///         }
///         PoolLog.handle_checkin(event);
///     }
/// }
/// ```
///
/// While all connections of a [`Pool`](crate::Pool) are in use, threads wait in the `Pool` and not
/// in r2d2. So [`CheckoutEvent::duration`] has a part of the wait only, and r2d2 reports few
/// timeouts. [`Stats::checkout_wait`](crate::Stats::checkout_wait) has all of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolLog;

/// The manager has logged the errors of logins and checks, once per cause. What remains are the
/// errors of a `CustomizeConnection`.
impl HandleError<Error> for PoolLog {
    fn handle_error(&self, error: Error) {
        let is_of_manager = error.login_failure().is_some()
            || matches!(
                error,
                Error::Ping { .. }
                    | Error::Retired { .. }
                    | Error::Paused { .. }
                    | Error::Hook { .. }
                    | Error::PoolClosed
            );
        if !is_of_manager {
            log::error!("{error}");
        }
    }
}

/// `handle_timeout` is not implemented, because r2d2 calls it while it holds the lock of the pool:
/// a logger that uses the pool would wait for ever. [`Pool::get`](crate::Pool::get) logs timeouts.
impl HandleEvent for PoolLog {
    fn handle_acquire(&self, event: AcquireEvent) {
        log::debug!("connection {} added to the pool", event.connection_id());
    }

    fn handle_release(&self, event: ReleaseEvent) {
        let (id, age) = (event.connection_id(), event.age());
        log::debug!("connection {id} left the pool ({age:.1?} old)");
    }

    fn handle_checkout(&self, event: CheckoutEvent) {
        let (id, waited) = (event.connection_id(), event.duration());
        log::trace!("connection {id} checked out (waited {waited:.1?} in r2d2)");
    }

    fn handle_checkin(&self, event: CheckinEvent) {
        let (id, used) = (event.connection_id(), event.duration());
        log::trace!("connection {id} checked in (used for {used:.1?})");
    }
}
