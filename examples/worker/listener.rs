//! Receives NOTIFY and rings the bell.

use std::time::Duration;

use diesel::prelude::*;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Error, RdsConnectionManager};

use crate::bell::Bell;
use crate::streak::{Streak, kind};

/// How often to poll, because diesel does not give access to the socket. Polling takes 1 us, also
/// over TLS, because it makes no round trip.
const POLL: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

/// Listens until the bell is stopped. The connection does not come from the pool, which would close
/// it after some minutes. It can stay open, because a token is only needed for the login. TCP
/// keepalives detect that the server has vanished.
pub(crate) fn listen(manager: &RdsConnectionManager, bell: &Bell) {
    let streak = Streak::default();
    while !bell.is_stopped() {
        if let Err(error) = listen_on_a_connection(manager, bell, &streak) {
            streak.failed(kind(&error), format_args!("listening failed, retrying: {error}"));
            bell.pause(PAUSE);
        }
    }
}

fn listen_on_a_connection(
    manager: &RdsConnectionManager,
    bell: &Bell,
    streak: &Streak,
) -> Result<(), Error> {
    let mut connection = manager.connect()?;
    diesel::sql_query("LISTEN jobs").execute(&mut connection)?;
    // Notifications before LISTEN were missed.
    bell.ring();
    while !bell.is_stopped() {
        if has_notifications(&mut connection)? {
            bell.ring();
        }
        streak.succeeded("listening works");
        bell.pause(POLL);
    }
    Ok(())
}

/// Removes all notifications, and returns whether there were any.
fn has_notifications(connection: &mut PgConnection) -> QueryResult<bool> {
    connection.notifications_iter().try_fold(false, |_, notification| notification.map(|_| true))
}
