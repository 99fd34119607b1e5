//! Checks of a live connection: the ping, and the peek at its socket.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::result::DatabaseErrorKind;
use diesel::sql_types::Bool;
use diesel::{PgConnection, RunQueryDsl};

use super::{CheckoutTimeout, Record};
use crate::error::{Error, Retirement};

/// Whether the server accepts writes, as libpq checks it for `target_session_attrs=read-write`.
pub(crate) const IS_READ_WRITE: &str = "SELECT NOT pg_is_in_recovery() AND NOT \
    current_setting('default_transaction_read_only')::boolean AS fits";

/// Returns the query whether the server still has the role that `target_session_attrs` asks for, or
/// `None` if every server has it.
pub(crate) fn role_check(target_session_attrs: &str) -> Option<&'static str> {
    match target_session_attrs {
        "read-write" => Some(IS_READ_WRITE),
        "primary" => Some("SELECT NOT pg_is_in_recovery() AS fits"),
        _ => None,
    }
}

/// A query that checks the role of a server.
#[derive(Clone, Copy)]
pub(crate) struct RoleCheck {
    pub(crate) query: &'static str,
    /// Whether a connection whose server has another role is retired.
    pub(crate) is_required: bool,
}

/// What a ping found out about the role of the server.
pub(crate) enum Role {
    /// It is what the check asks for, or there was no check.
    Expected,
    /// The server does not accept writes, and this connection never depended on that.
    Reader,
}

/// Sends a query and waits for its answer. With `role_check` a second query checks that the server
/// still has the role. After `timeout` the connection is ended, if its socket is known.
pub(crate) fn ping(
    connection: &mut PgConnection,
    role_check: Option<RoleCheck>,
    timeout: Option<Duration>,
) -> Result<Role, Error> {
    let alarm = timeout.and_then(|timeout| Record::of(connection)?.limit_answer(timeout));
    let answer = answer(connection, role_check);
    drop(alarm);
    match Record::of(connection).and_then(|record| record.shut_down_for()) {
        Some(_) => {
            CheckoutTimeout::ping_timed_out();
            Err(lost(format!("no answer to a ping within {:.1?}", timeout.unwrap_or_default())))
        }
        None => answer,
    }
}

fn answer(connection: &mut PgConnection, role_check: Option<RoleCheck>) -> Result<Role, Error> {
    // Not diesel's ping: that is a prepared statement, which never ends on a connection that was
    // left in a COPY.
    connection.batch_execute("SELECT 1").map_err(failed)?;
    let Some(check) = role_check else { return Ok(Role::Expected) };
    if is_true(check.query, connection)? {
        return Ok(Role::Expected);
    }
    if check.is_required || is_true(IS_READ_ONLY_BY_THE_SESSION, connection)? {
        return Err(Error::Retired { reason: Retirement::Demoted });
    }
    Ok(Role::Reader)
}

/// The last user changed the setting, so the next one would get it.
const IS_READ_ONLY_BY_THE_SESSION: &str = "SELECT EXISTS (SELECT FROM pg_settings \
    WHERE name = 'default_transaction_read_only' AND setting <> reset_val)";

fn is_true(query: &str, connection: &mut PgConnection) -> Result<bool, Error> {
    diesel::dsl::sql::<Bool>(query).get_result(connection).map_err(failed)
}

/// Checks without waiting whether the server has closed the connection. Returns whether there is
/// something to read. Without the socket, what is read is consumed.
pub(crate) fn peek(connection: &mut PgConnection) -> Result<bool, Error> {
    if let Some(socket) = Record::of(connection).and_then(|record| record.socket()) {
        return socket.peek().map_err(|error| lost(error.to_string()));
    }
    let mut read = || connection.notifications_iter().next().transpose().map_err(failed);
    // After the server has closed it, the first read returns nothing and the second the error.
    Ok(read()?.is_some() || read()?.is_some())
}

fn failed(cause: diesel::result::Error) -> Error {
    Error::Ping { cause }
}

/// The error of a connection that no longer works.
fn lost(reason: String) -> Error {
    failed(diesel::result::Error::DatabaseError(
        DatabaseErrorKind::ClosedConnection,
        Box::new(reason),
    ))
}
