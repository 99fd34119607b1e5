//! [`LoginFailure`]: why a login failed, as far as an alarm needs it.

use std::fmt;

/// Why a login failed, as far as an alarm needs it. [`Error`](crate::Error) has the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LoginFailure {
    /// There were no credentials, or no token could be signed with them.
    Credentials,
    /// No server answered: the name, the network, or a server that starts or stops.
    Unreachable,
    /// The server's certificate is not trusted, or the server does not support TLS.
    Certificate,
    /// The server refused the token. Causes are the IAM policy, the name that the token is signed
    /// for, and the clock.
    RefusedToken,
    /// The server does not accept this user in this database: the user or the database does not
    /// exist, or the user lacks the role `rds_iam`.
    RefusedUser,
    /// The server accepts no more connections or logins for now.
    Limit,
    /// The server is not what `target_session_attrs` asks for.
    Role,
    /// Another reason.
    Other,
}

impl LoginFailure {
    pub(crate) const ALL: [LoginFailure; 8] = [
        LoginFailure::Credentials,
        LoginFailure::Unreachable,
        LoginFailure::Certificate,
        LoginFailure::RefusedToken,
        LoginFailure::RefusedUser,
        LoginFailure::Limit,
        LoginFailure::Role,
        LoginFailure::Other,
    ];

    /// Returns the name for metrics, such as `refused_token`.
    pub fn as_str(self) -> &'static str {
        match self {
            LoginFailure::Credentials => "credentials",
            LoginFailure::Unreachable => "unreachable",
            LoginFailure::Certificate => "certificate",
            LoginFailure::RefusedToken => "refused_token",
            LoginFailure::RefusedUser => "refused_user",
            LoginFailure::Limit => "limit",
            LoginFailure::Role => "role",
            LoginFailure::Other => "other",
        }
    }
}

/// In words, such as "the server refused the token".
impl fmt::Display for LoginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LoginFailure::Credentials => "there are no usable AWS credentials",
            LoginFailure::Unreachable => "no server answers",
            LoginFailure::Certificate => "the server's certificate is not trusted",
            LoginFailure::RefusedToken => "the server refused the token",
            LoginFailure::RefusedUser => "the server refused the user",
            LoginFailure::Limit => "the server accepts no more logins for now",
            LoginFailure::Role => "the server is not what target_session_attrs asks for",
            LoginFailure::Other => "the login failed",
        })
    }
}
