//! The checks of a connection at its checkout and its check-in.

use diesel::PgConnection;
use diesel::r2d2::R2D2Connection;

use super::RdsConnectionManager;
use crate::connection::{CheckoutDecision, Moment, Record, Role, RoleCheck, peek, ping};
use crate::error::{Error, Retirement};
use crate::login::Login;

impl RdsConnectionManager {
    /// The check of a checkout.
    pub(crate) fn check(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let record = Record::of(connection);
        let decision = record.map_or(CheckoutDecision::Ping, |record| {
            record.checkout_decision(Moment::now(), self.validate_after)
        });
        let valid = match decision {
            CheckoutDecision::Retire(reason) => Err(Error::Retired { reason }),
            CheckoutDecision::Ping => self.ping(connection),
            CheckoutDecision::Peek => self.peek(connection),
        };
        valid.inspect_err(|error| {
            log::debug!("{error}");
            if matches!(error, Error::Ping { .. }) {
                self.generation.connection_closed();
            }
        })
    }

    /// Calls the hook of a checkout. If it fails on a new connection, this counts as a failed
    /// login: a pool would log in again and again.
    pub(crate) fn before_check_out(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let called = self.hooks.before_check_out(connection);
        let is_new = Record::of(connection).is_some_and(Record::checked_out);
        called.inspect_err(|error| match is_new {
            true => self.login_failed(error),
            false => log::debug!("{error}"),
        })
    }

    /// Whether the connection must not be used again, as its record says.
    pub(crate) fn is_retired(&self, connection: &mut PgConnection) -> bool {
        let _ = Self::set_deadline(connection, None);
        let reason = self.retirement(connection);
        if let Some(reason) = reason {
            log::debug!("a connection is retired: {reason}");
            retire(connection, reason);
        }
        let is_closed = reason.is_some() || self.checkouts.is_without_use();
        if let (false, Some(record)) = (is_closed, Record::of(connection)) {
            record.checkout = None;
        }
        is_closed
    }

    /// Calls the hook of a check-in, and resets the session.
    pub(crate) fn release(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let released = self.hooks.after_release(connection, self.ping_timeout);
        released.inspect_err(|error| log::debug!("{error}"))?;
        match self.retirement(connection) {
            Some(reason) => Err(Error::Retired { reason }),
            None => Ok(()),
        }
    }

    fn retirement(&self, connection: &mut PgConnection) -> Option<Retirement> {
        let record = Record::of(connection);
        let reason = record.and_then(|record| record.retirement(Moment::now()));
        if reason.is_some() {
            return reason;
        }
        if std::thread::panicking() {
            return Some(Retirement::Panic);
        }
        connection.is_broken().then_some(Retirement::Transaction)
    }

    /// If there is something to read, the server is pinged: a notification that we did not expect
    /// can be followed by the end of the connection.
    fn peek(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.counters.peeked();
        let has_input = peek(connection).inspect_err(|_| retire(connection, Retirement::Closed))?;
        if has_input { self.ping(connection) } else { Ok(()) }
    }

    fn ping(&self, connection: &mut PgConnection) -> Result<(), Error> {
        self.counters.pinged();
        let generation = self.generation.current();
        let role_check = self.role_check(connection);
        let answer = ping(connection, role_check, self.ping_timeout);
        let Some(record) = Record::of(connection) else { return answer.map(|_| ()) };
        match answer {
            Ok(role) => {
                record.ping_succeeded(generation);
                if let Role::Reader = role {
                    record.is_on_a_reader();
                }
                Ok(())
            }
            Err(error) => {
                record.retire(match error {
                    Error::Retired { reason } => reason,
                    _ => Retirement::FailedCheck,
                });
                Err(error)
            }
        }
    }

    fn role_check(&self, connection: &mut PgConnection) -> Option<RoleCheck> {
        let wanted = match &*self.login {
            // Each endpoint accepts writes.
            Login::Iam(iam) if iam.conninfo.is_dsql => return None,
            Login::Iam(iam) => iam.conninfo.role_check(),
            Login::Password(password) => password.role_check,
        };
        if let Some(query) = wanted {
            return Some(RoleCheck { query, is_required: true });
        }
        Record::of(connection)?.role_check()
    }
}

/// Records why the connection will be closed.
fn retire(connection: &mut PgConnection, reason: Retirement) {
    if let Some(record) = Record::of(connection) {
        record.retire(reason);
    }
}
