//! [`Retirement`]: why a connection is closed.

use std::fmt;

/// Why a connection was closed, in [`Error::Retired`](crate::Error::Retired) and in
/// [`Stats`](crate::Stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Retirement {
    /// It reached its [`max_lifetime`](crate::Builder::max_lifetime).
    Age,
    /// The server closed it, or the network connection ended.
    Closed,
    /// A ping at its checkout failed.
    FailedCheck,
    /// The [deadline](crate::RdsConnectionManager::set_deadline) of a unit of work passed.
    Deadline,
    /// It was checked in with an open transaction, or in an unknown state.
    Transaction,
    /// Its prepared statements, or its cached plans, no longer fit the schema.
    StaleStatements,
    /// A thread panicked while it used the connection.
    Panic,
    /// Its server was the primary and is a standby now.
    Demoted,
    /// [`retire_all`](crate::RdsConnectionManager::retire_all) was called after its login.
    Requested,
    /// Nothing was wrong: the pool did not need it, a thread ended, or it was dropped. A connection
    /// whose instrumentation was replaced counts here and is not counted again.
    Released,
}

impl Retirement {
    pub(crate) const ALL: [Retirement; 10] = [
        Retirement::Age,
        Retirement::Closed,
        Retirement::FailedCheck,
        Retirement::Deadline,
        Retirement::Transaction,
        Retirement::StaleStatements,
        Retirement::Panic,
        Retirement::Demoted,
        Retirement::Requested,
        Retirement::Released,
    ];

    /// Returns the name for metrics, such as `failed_check`.
    pub fn as_str(self) -> &'static str {
        match self {
            Retirement::Age => "age",
            Retirement::Closed => "closed",
            Retirement::FailedCheck => "failed_check",
            Retirement::Deadline => "deadline",
            Retirement::Transaction => "transaction",
            Retirement::StaleStatements => "stale_statements",
            Retirement::Panic => "panic",
            Retirement::Demoted => "demoted",
            Retirement::Requested => "requested",
            Retirement::Released => "released",
        }
    }
}

/// In words, such as "it is older than max_lifetime".
impl fmt::Display for Retirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Retirement::Age => "it is older than max_lifetime",
            Retirement::Closed => "the server closed it",
            Retirement::FailedCheck => "a check failed",
            Retirement::Deadline => "its deadline passed",
            Retirement::Transaction => "it was checked in with an open transaction",
            Retirement::StaleStatements => "its prepared statements are stale",
            Retirement::Panic => "a thread panicked while it used it",
            Retirement::Requested => "retire_all was called",
            Retirement::Demoted => "its server is no longer the primary",
            Retirement::Released => "it is no longer needed",
        })
    }
}
