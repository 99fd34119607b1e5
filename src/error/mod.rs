//! [`Error`]: one variant for each step that can fail.

mod credentials;
mod cure;
mod login_failure;
mod named;
mod refusal;
mod retirement;
mod text;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use diesel::ConnectionError;

pub(crate) use credentials::credentials_cure;
pub(crate) use cure::LoginKind;
pub use login_failure::LoginFailure;
pub(crate) use refusal::{Outlook, Refusal};
pub use retirement::Retirement;
use text::without_hints;
pub(crate) use text::{causes, chain, cut, one_line, utc};

/// What failed: one variant for each step from the settings to a usable connection.
///
/// `Display` is complete, because r2d2 keeps only the text of an error: it says which step failed,
/// what was said, and what to do. `Debug` says the same, because `unwrap` and `main` print it. No
/// text contains a token, a secret key or a password.
///
/// [`source`](std::error::Error::source) is `None`, because `Display` contains the texts of all
/// causes. The causes themselves are fields.
///
/// [`login_failure`](Self::login_failure) and [`is_transient`](Self::is_transient) classify an
/// error for a program.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection string, or an environment variable that completes it, cannot be used. Nothing
    /// was dialled.
    #[error("unusable connection string: {0}")]
    Conninfo(String),

    /// A setting outside of the connection string cannot be used: one of a builder, or an argument
    /// of [`Endpoint::new`](crate::Endpoint::new).
    #[error("invalid configuration: {0}")]
    Config(String),

    /// Nothing names the region to sign a token for.
    #[error(
        "no AWS region for {host}: {reason}; set region_name=, or iam_host= if the host is a \
         CNAME or a tunnel"
    )]
    #[non_exhaustive]
    Region {
        /// The host to sign a token for.
        host: String,
        /// Where the region was searched.
        reason: String,
    },

    /// There are no AWS credentials: no source has any, a source failed, or it did not answer in
    /// time.
    #[error(
        "no AWS credentials: {}{}; {}",
        causes(.cause),
        last_end(.ended),
        credentials_cure(.cause)
    )]
    #[non_exhaustive]
    Credentials {
        /// What each source said.
        cause: Arc<CredentialsError>,
        /// When the last credentials expired, if there were any.
        ended: Option<SystemTime>,
    },

    /// The credentials had expired when a token was to be signed. The server would refuse it.
    #[error(
        "the AWS credentials {key} expired at {}; refresh them (aws sso login, or the role that \
         provides them) and check this machine's clock",
        utc(*.ended)
    )]
    #[non_exhaustive]
    CredentialsExpired {
        /// The access key id. Only its first four characters are shown.
        key: String,
        /// When the credentials expired.
        ended: SystemTime,
    },

    /// The token could not be signed.
    #[error("cannot sign a token: {reason}; check the user name, the credentials and the clock")]
    #[non_exhaustive]
    Token {
        /// Why.
        reason: String,
    },

    /// The name to dial could not be resolved. Only with `iam_host` or `load_balance_hosts`: libpq
    /// resolves all other names.
    #[error("cannot resolve host name \"{}\": {}; {cure}", one_line(host), one_line(cause))]
    #[non_exhaustive]
    Resolve {
        /// The name to dial.
        host: String,
        /// What the resolver said.
        cause: io::Error,
        /// What to do.
        cure: String,
    },

    /// libpq could not open the connection, or the server refused the login.
    #[error("cannot connect to {target}: {}; {cure}", without_hints(cause))]
    #[non_exhaustive]
    Connect {
        /// The user and the server.
        target: String,
        /// What libpq or the server said.
        cause: ConnectionError,
        /// What to do.
        cure: String,
    },

    /// All of several hosts failed.
    #[error("no host can be used: {}", all(failures))]
    #[non_exhaustive]
    Hosts {
        /// The error of each host, in the order of the attempts.
        failures: Vec<Error>,
    },

    /// A back-off is in progress. Logins count against the server's limits, so the manager waits
    /// after a permanent refusal, and after several failures in a row. Nothing was dialled.
    #[error("waiting {:.1} s before the next login, after: {cause}", wait.as_secs_f64())]
    #[non_exhaustive]
    Paused {
        /// How long until the next attempt.
        wait: Duration,
        /// The text of the last error, which says what to do.
        cause: String,
        /// Why the last login failed, as [`login_failure`](Error::login_failure).
        failure: Option<LoginFailure>,
        /// Whether the last error is [transient](Error::is_transient).
        is_transient: bool,
    },

    /// A pool had no connection within its `connection_timeout`.
    #[error("timed out waiting for connection: {reason}")]
    #[non_exhaustive]
    Timeout {
        /// Why: the text of the last login error, or that all connections are in use.
        reason: String,
        /// Why the last login failed, if that is the reason.
        failure: Option<LoginFailure>,
        /// Whether waiting longer can help.
        is_transient: bool,
    },

    /// [`Pool::close`](crate::Pool::close) was called.
    #[error("the pool is closed, so there are no more checkouts; end this work, or build a pool")]
    PoolClosed,

    /// A guard of this thread is still alive. A second connection would not see what the first one
    /// has not committed, and could wait for its locks without end.
    #[error("this thread's connection is in use; drop the first guard, or pass a reference to it")]
    InUse,

    /// The thread is ending and has closed its connections.
    #[error("this thread is ending; use the connection before its thread-locals are dropped")]
    ThreadEnding,

    /// A hook of the [`Builder`](crate::Builder) failed on a connection, which is closed.
    #[error("{hook} failed: {}; correct what it does or what it needs", one_line(cause))]
    #[non_exhaustive]
    Hook {
        /// The setter: `after_connect`, `before_check_out`, `after_release`, `reset_on_release` or
        /// `instrumentation`.
        hook: &'static str,
        /// What the function returned. A panic is a
        /// [`QueryBuilderError`](diesel::result::Error::QueryBuilderError).
        cause: diesel::result::Error,
    },

    /// An open connection failed a ping. It is closed and replaced.
    #[error("the connection is not usable: {}; it is replaced by a new one", one_line(cause))]
    #[non_exhaustive]
    Ping {
        /// What diesel said.
        cause: diesel::result::Error,
    },

    /// An open connection is closed before an operation failed on it: it is too old, or its server
    /// is no longer the primary. It is replaced.
    #[error("the connection is retired because {reason}; it is replaced by a new one")]
    #[non_exhaustive]
    Retired {
        /// Why.
        reason: Retirement,
    },

    /// [`set_deadline`](crate::RdsConnectionManager::set_deadline) cannot limit this connection.
    #[error("cannot set a deadline: {reason}")]
    #[non_exhaustive]
    Deadline {
        /// Why, and what to do.
        reason: String,
    },

    /// A query of the program failed. `?` makes this from diesel's error.
    #[error("the query failed: {}", one_line(.0))]
    Query(diesel::result::Error),

    /// The local stand-in for RDS could not be started or changed.
    #[cfg(feature = "local")]
    #[error("local RDS: {step}: {}", chain(&**cause))]
    #[non_exhaustive]
    Local {
        /// The step that failed, and what to do.
        step: String,
        /// Why.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Error {
        Error::Query(error)
    }
}

impl Error {
    pub(crate) fn connect(target: String, login: LoginKind, cause: ConnectionError) -> Error {
        let cure = login.cure(Refusal::of(&cause.to_string())).to_owned();
        Error::Connect { target, cause, cure }
    }

    pub(crate) fn resolve(host: &str, login: LoginKind, cause: io::Error) -> Error {
        let cure = login.cure(unresolved(&cause)).to_owned();
        Error::Resolve { host: host.to_owned(), cause, cure }
    }

    /// Returns the error of a login for which all these failed.
    pub(crate) fn of_hosts(mut failures: Vec<Error>) -> Error {
        if failures.len() == 1 { failures.remove(0) } else { Error::Hosts { failures } }
    }

    /// Returns why a login failed, or `None` if this is not the error of a login.
    pub fn login_failure(&self) -> Option<LoginFailure> {
        match self {
            Error::Connect { .. } | Error::Resolve { .. } => Some(self.refusal()?.failure()),
            Error::Credentials { .. } | Error::CredentialsExpired { .. } | Error::Token { .. } => {
                Some(LoginFailure::Credentials)
            }
            Error::Hosts { failures } => {
                let mut causes = failures.iter().filter_map(Error::login_failure);
                let answer = causes.clone().find(|cause| *cause != LoginFailure::Unreachable);
                answer.or_else(|| causes.next())
            }
            Error::Paused { failure, .. } | Error::Timeout { failure, .. } => *failure,
            _ => None,
        }
    }

    /// Returns whether the same call can succeed later without a change by a person.
    ///
    /// `true` for a server that starts, fails over, cannot be reached or has no connection left,
    /// for a source of credentials that did not answer, for a connection that was replaced, and for
    /// a pool whose connections are all in use. With several hosts one transient failure is enough.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Connect { .. } | Error::Resolve { .. } => {
                self.refusal().is_some_and(Refusal::is_transient)
            }
            Error::Credentials { cause, .. } => {
                let text = causes(cause);
                ["no answer within", "dns error", "io error"].iter().any(|it| text.contains(it))
            }
            Error::Hosts { failures } => failures.iter().any(Error::is_transient),
            Error::Paused { is_transient, .. } | Error::Timeout { is_transient, .. } => {
                *is_transient
            }
            Error::Ping { .. } | Error::Retired { .. } => true,
            Error::Query(cause) | Error::Hook { cause, .. } => {
                use diesel::result::{DatabaseErrorKind as Kind, Error::DatabaseError};
                // A read-only server after a failover: the connection is replaced.
                matches!(
                    cause,
                    DatabaseError(
                        Kind::ClosedConnection
                            | Kind::UnableToSendCommand
                            | Kind::ReadOnlyTransaction
                            | Kind::SerializationFailure,
                        _
                    )
                )
            }
            _ => false,
        }
    }

    /// Returns what the text of libpq, of the server or of the resolver means.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Error::Connect { cause, .. } => Some(Refusal::of(&cause.to_string())),
            Error::Resolve { cause, .. } => Some(unresolved(cause)),
            _ => None,
        }
    }

    /// Returns what to expect of the next attempt.
    pub(crate) fn outlook(&self) -> Outlook {
        match self {
            Error::Hosts { failures } => {
                let all = |outlook| failures.iter().all(|failure| failure.outlook() == outlook);
                if all(Outlook::Permanent) { Outlook::Permanent } else { Outlook::Unknown }
            }
            Error::Resolve { .. } => Outlook::Unknown,
            Error::Hook { .. } if !self.is_transient() => Outlook::Permanent,
            other => other.refusal().map_or(Outlook::Unknown, Refusal::outlook),
        }
    }
}

/// The resolver's own texts, as libpq has them.
fn unresolved(cause: &io::Error) -> Refusal {
    Refusal::of(&format!("could not translate host name: {cause}"))
}

fn all(failures: &[Error]) -> String {
    failures.iter().map(Error::to_string).collect::<Vec<_>>().join("; or: ")
}

fn last_end(ended: &Option<SystemTime>) -> String {
    ended.map_or_else(String::new, |end| format!(" (the last ones expired at {})", utc(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Error {
        let cause = ConnectionError::BadConnection(format!("{text}\n"));
        Error::connect("app@db:5432".into(), LoginKind::Rds, cause)
    }

    #[test]
    fn a_refused_login_is_told_in_one_line_with_its_cure() {
        let error = refused("FATAL: PAM authentication failed for user \"app\"");
        let shown = error.to_string();
        assert!(shown.starts_with("cannot connect to app@db:5432: "), "{shown}");
        assert!(shown.contains("rds-db:connect") && !shown.contains('\n'), "{shown:?}");
        assert_eq!(format!("{error:?}"), shown);
        assert!(std::error::Error::source(&error).is_none(), "anyhow would print it twice");
        assert_eq!(error.login_failure(), Some(LoginFailure::RefusedToken));
    }

    #[test]
    fn a_credentials_error_shows_its_inner_cause() {
        let cause = Arc::new(CredentialsError::not_loaded("environment: not set"));
        let error = Error::Credentials { cause, ended: None };
        assert!(error.to_string().contains("environment: not set"), "{error}");
        assert!(!error.is_transient());
    }

    #[test]
    fn what_waiting_helps_is_transient_also_inside_other_errors() {
        let (down, no_grant) =
            (refused("Connection refused"), refused("password authentication failed"));
        assert!(down.is_transient() && !no_grant.is_transient());
        let hosts = Error::Hosts { failures: vec![down, refused("does not match host name")] };
        assert!(hosts.is_transient());
        assert_eq!(hosts.login_failure(), Some(LoginFailure::Certificate));
        assert_eq!(hosts.outlook(), Outlook::Unknown);
    }
}
