//! [`PoolLog`]: what goes on in a pool, for the log.

use r2d2::event::{AcquireEvent, CheckinEvent, CheckoutEvent, ReleaseEvent, TimeoutEvent};
use r2d2::{HandleError, HandleEvent};

use crate::error::Error;

/// Logs what goes on in a pool: *error* for a login that failed, *warn* for a connection that was
/// found dead and replaced, and for a waiter that got none in time; *debug* for each connection
/// that comes or goes; *trace* for each checkout and checkin.
///
/// [`pool_builder`](crate::RdsConnectionManager::pool_builder) plugs it in as both of r2d2's
/// handlers. A handler of your own can hand on to it:
///
/// ```
/// use diesel_rds_iam::PoolLog;
/// use diesel_rds_iam::r2d2::HandleEvent;
/// use diesel_rds_iam::r2d2::event::CheckoutEvent;
///
/// #[derive(Debug)]
/// struct SlowCheckouts;
///
/// impl HandleEvent for SlowCheckouts {
///     fn handle_checkout(&self, event: CheckoutEvent) {
///         if event.duration().as_millis() > 500 {
///             eprintln!("waited {:?} for a connection", event.duration());
///         }
///         PoolLog.handle_checkout(event);
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolLog;

/// r2d2's default handler logs everything as an error.
impl HandleError<Error> for PoolLog {
    fn handle_error(&self, error: Error) {
        match error {
            // The refusal itself was logged.
            Error::Retired { .. } | Error::Paused { .. } => log::debug!("{error}"),
            Error::Ping { .. } => log::warn!("{error}"),
            error => log::error!("{error}"),
        }
    }
}

impl HandleEvent for PoolLog {
    fn handle_acquire(&self, event: AcquireEvent) {
        log::debug!("connection {} is in the pool", event.connection_id());
    }

    fn handle_release(&self, event: ReleaseEvent) {
        log::debug!(
            "connection {} has left the pool, {:.1?} old",
            event.connection_id(),
            event.age()
        );
    }

    fn handle_checkout(&self, event: CheckoutEvent) {
        log::trace!("connection {} is out, after {:.1?}", event.connection_id(), event.duration());
    }

    fn handle_timeout(&self, event: TimeoutEvent) {
        log::warn!("a waiter got no connection within {:.1?}", event.timeout());
    }

    fn handle_checkin(&self, event: CheckinEvent) {
        log::trace!("connection {} is back, after {:.1?}", event.connection_id(), event.duration());
    }
}
