//! [`Retirement`]: why a connection is closed.

use super::named::named;

named! {
    /// Why a connection was closed, in [`Error::Retired`](crate::Error::Retired) and in
    /// [`Stats`](crate::Stats).
    pub enum Retirement {
        /// It reached its [`max_lifetime`](crate::Builder::max_lifetime).
        Age = "age", "it is older than max_lifetime";
        /// The server closed it, or the network connection ended.
        Closed = "closed", "the server closed it";
        /// A ping at its checkout failed.
        FailedCheck = "failed_check", "a check failed";
        /// The [deadline](crate::RdsConnectionManager::set_deadline) of a unit of work passed.
        Deadline = "deadline", "its deadline passed";
        /// It was checked in with an open transaction, or in an unknown state.
        Transaction = "transaction", "it was checked in with an open transaction";
        /// Its prepared statements, or its cached plans, no longer fit the schema.
        StaleStatements = "stale_statements", "its prepared statements are stale";
        /// A thread panicked while it used the connection.
        Panic = "panic", "a thread panicked while it used it";
        /// Its server was the primary and is a standby now.
        Demoted = "demoted", "its server is no longer the primary";
        /// [`retire_all`](crate::RdsConnectionManager::retire_all) was called after its login.
        Requested = "requested", "retire_all was called";
        /// [`after_connect`](crate::Builder::after_connect),
        /// [`before_check_out`](crate::Builder::before_check_out),
        /// [`after_release`](crate::Builder::after_release) or the
        /// [reset](crate::Builder::reset_on_release) failed.
        Hook = "hook", "a hook or the reset failed";
        /// Nothing was wrong: the pool did not need it, a thread ended, or it was dropped. A
        /// connection whose instrumentation was replaced counts here and is not counted again.
        Released = "released", "it is no longer needed";
    }
}
