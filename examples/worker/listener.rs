//! Hears NOTIFY, and rings the bell.

use std::time::Duration;

use diesel::prelude::*;
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::Failure;
use crate::bell::Bell;

/// How often it looks: diesel lends nobody the socket to wait at. A look takes a microsecond, over
/// TLS too, for it does not ask the server.
const LOOK: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

/// Listens until the bell is stopped. Its connection is its own, for in a pool it would be checked
/// and retired, and stays open as long as it lasts: a token counts at login only. Keepalives find
/// out when the server has vanished.
pub(crate) fn listen(manager: &RdsConnectionManager, bell: &Bell) {
    while !bell.is_stopped() {
        if let Err(error) = listen_on_a_connection(manager, bell) {
            log::warn!("no notifications until there is a new connection: {error}");
            bell.pause(PAUSE);
        }
    }
}

fn listen_on_a_connection(manager: &RdsConnectionManager, bell: &Bell) -> Result<(), Failure> {
    let mut connection = manager.connect()?;
    diesel::sql_query("LISTEN jobs").execute(&mut connection)?;
    // Whatever was said before was not heard.
    bell.ring();
    while !bell.is_stopped() {
        if has_heard(&mut connection)? {
            bell.ring();
        }
        bell.pause(LOOK);
    }
    Ok(())
}

/// Takes all notifications there are.
fn has_heard(connection: &mut PgConnection) -> QueryResult<bool> {
    connection.notifications_iter().try_fold(false, |_, notification| notification.map(|_| true))
}
