//! [`Retirement`]: why a connection is closed.

use std::fmt;

/// Why a connection was closed, in [`Error::Retired`](crate::Error::Retired) and in
/// [`Stats`](crate::Stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Retirement {
    /// It had reached its [`max_lifetime`](crate::Builder::max_lifetime).
    Age,
    /// The server had closed it, or the way there was cut.
    Closed,
    /// A checkout asked the server, and the answer was an error, as in a transaction that was begun
    /// by a query of one's own and has failed.
    FailedCheck,
    /// It was left in a transaction begun through diesel, or in one in an unknown state.
    Transaction,
    /// It was dropped in a panic.
    Panic,
    /// Its server was the primary, and is so no longer.
    Demoted,
    /// Nothing was wrong: a pool had no use for it any more, a thread ended, or it was dropped.
    /// (One that is given an instrumentation of its own counts here, and is not counted again.)
    Released,
}

impl Retirement {
    pub(crate) const ALL: [Retirement; 7] = [
        Retirement::Age,
        Retirement::Closed,
        Retirement::FailedCheck,
        Retirement::Transaction,
        Retirement::Panic,
        Retirement::Demoted,
        Retirement::Released,
    ];

    /// A name for metrics: `failed_check`.
    pub fn as_str(self) -> &'static str {
        match self {
            Retirement::Age => "age",
            Retirement::Closed => "closed",
            Retirement::FailedCheck => "failed_check",
            Retirement::Transaction => "transaction",
            Retirement::Panic => "panic",
            Retirement::Demoted => "demoted",
            Retirement::Released => "released",
        }
    }
}

/// For people.
impl fmt::Display for Retirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Retirement::Age => "it is past its max_lifetime",
            Retirement::Closed => "the server has closed it",
            Retirement::FailedCheck => "it failed a check",
            Retirement::Transaction => "it was left in a transaction",
            Retirement::Panic => "it was dropped in a panic",
            Retirement::Demoted => "its server is no longer the primary",
            Retirement::Released => "it is no longer needed",
        })
    }
}
