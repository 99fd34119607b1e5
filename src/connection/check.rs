//! Checks of a live connection: the ping, and the peek at its socket.

use diesel::connection::SimpleConnection;
use diesel::sql_types::Bool;
use diesel::{PgConnection, RunQueryDsl};

use crate::error::{Error, Retirement};

/// Whether the server accepts writes, as libpq checks it for `target_session_attrs=read-write`.
pub(crate) const IS_READ_WRITE: &str = "SELECT NOT pg_is_in_recovery() AND NOT \
    current_setting('default_transaction_read_only')::boolean AS fits";

/// A query that checks the role of a server.
#[derive(Clone, Copy)]
pub(crate) struct RoleCheck {
    pub(crate) query: &'static str,
    /// Whether a connection whose server has another role is retired.
    pub(crate) is_required: bool,
}

/// Sends a query and waits for its answer. With `role_check` a second query checks that the server
/// still has the role.
pub(crate) fn ping(
    connection: &mut PgConnection,
    role_check: Option<RoleCheck>,
) -> Result<(), Error> {
    // Not diesel's ping: that is a prepared statement, which never ends on a connection that was
    // left in a COPY.
    connection.batch_execute("SELECT 1").map_err(failed)?;
    let Some(RoleCheck { query, .. }) = role_check else { return Ok(()) };
    match diesel::dsl::sql::<Bool>(query).get_result(connection).map_err(failed)? {
        true => Ok(()),
        false => Err(Error::Retired { reason: Retirement::Demoted }),
    }
}

/// Checks without waiting whether the server has closed the connection. Returns whether there is
/// something to read.
pub(crate) fn peek(connection: &mut PgConnection) -> Result<bool, Error> {
    let mut read = || connection.notifications_iter().next().transpose().map_err(failed);
    // After the server has closed it, the first read returns nothing and the second the error.
    Ok(read()?.is_some() || read()?.is_some())
}

fn failed(cause: diesel::result::Error) -> Error {
    Error::Ping { cause }
}
