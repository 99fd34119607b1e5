//! [`Hooks`]: the functions of a program that a manager calls for its connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::{
    AnsiTransactionManager, Instrumentation, SimpleConnection, TransactionManager,
    get_default_instrumentation,
};
use diesel::result::Error as QueryError;
use diesel::{PgConnection, QueryResult};

use super::Record;
use crate::error::{Error, Retirement};

type Hook = Arc<dyn Fn(&mut PgConnection) -> QueryResult<()> + Send + Sync>;

/// What the builder sets for the connections of a manager.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) after_connect: Option<Hook>,
    pub(crate) before_check_out: Option<Hook>,
    pub(crate) after_release: Option<Hook>,
    pub(crate) instrumentation: Option<Arc<dyn Fn() -> Box<dyn Instrumentation> + Send + Sync>>,
    pub(crate) reset_on_release: bool,
}

/// `DISCARD ALL` without what it does to prepared statements, and the settings of diesel's login.
const RESET: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
    SET TIME ZONE 'UTC'; SET CLIENT_ENCODING TO 'UTF8'";

impl Hooks {
    /// Returns the instrumentation that a new connection calls.
    pub(super) fn new_instrumentation(&self) -> Result<Option<Box<dyn Instrumentation>>, Error> {
        let Some(new) = &self.instrumentation else { return Ok(get_default_instrumentation()) };
        let made = without_panic(|| Ok(new()));
        made.map(Some).map_err(|cause| Error::Hook { hook: "instrumentation", cause })
    }

    /// Prepares a connection that is new or was reset.
    pub(crate) fn after_connect(&self, connection: &mut PgConnection) -> Result<(), Error> {
        if let Some(hook) = &self.after_connect {
            call("after_connect", &**hook, connection)?;
        }
        if let Some(record) = Record::of(connection) {
            record.session_is_unchanged();
        }
        Ok(())
    }

    pub(crate) fn before_check_out(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let Some(hook) = &self.before_check_out else { return Ok(()) };
        call("before_check_out", &**hook, connection)
    }

    /// Ends the use of a connection. The server has `timeout` to answer to the reset.
    pub(crate) fn after_release(
        &self,
        connection: &mut PgConnection,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        if let Some(hook) = &self.after_release {
            call("after_release", &**hook, connection)?;
        }
        // Without a record nothing is known of the session.
        let is_due = self.reset_on_release
            && Record::of(connection).is_none_or(|record| record.has_changed_session)
            && !is_in_transaction(connection);
        if is_due { self.reset(connection, timeout) } else { Ok(()) }
    }

    /// Undoes what the last user changed in the session, in one round trip.
    fn reset(&self, connection: &mut PgConnection, timeout: Option<Duration>) -> Result<(), Error> {
        let record = Record::of(connection).zip(timeout);
        let limit = record.and_then(|(record, timeout)| record.limit_answer(timeout));
        call("reset_on_release", &|connection| connection.batch_execute(RESET), connection)?;
        drop(limit);
        if let Some(record) = Record::of(connection) {
            record.session_was_reset();
        }
        self.after_connect(connection)
    }
}

/// A test transaction stays open on purpose.
fn is_in_transaction(connection: &mut PgConnection) -> bool {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    !matches!(status.transaction_depth(), Ok(None))
}

/// Calls the function. Its failure retires the connection.
fn call(
    name: &'static str,
    hook: &dyn Fn(&mut PgConnection) -> QueryResult<()>,
    connection: &mut PgConnection,
) -> Result<(), Error> {
    without_panic(|| hook(connection)).map_err(|cause| {
        if let Some(record) = Record::of(connection) {
            record.retire(Retirement::Hook);
        }
        Error::Hook { hook: name, cause }
    })
}

/// Turns a panic into an error. In a thread of r2d2, it would take a connection from the pool for
/// ever.
fn without_panic<T>(function: impl FnOnce() -> QueryResult<T>) -> QueryResult<T> {
    catch_unwind(AssertUnwindSafe(function)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(QueryError::QueryBuilderError(format!("it panicked: {text}").into()))
    })
}
