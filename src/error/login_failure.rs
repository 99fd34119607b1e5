//! [`LoginFailure`]: why a login failed, as far as an alarm needs it.

use super::named::named;

named! {
    /// Why a login failed, as far as an alarm needs it. [`Error`](crate::Error) has the details.
    pub enum LoginFailure {
        /// There were no credentials, or no token could be signed with them.
        Credentials = "credentials", "there are no usable AWS credentials";
        /// No server answered: the name, the network, or a server that starts or stops.
        Unreachable = "unreachable", "no server answers";
        /// The server's certificate is not trusted, or the server does not support TLS.
        Certificate = "certificate", "the server's certificate is not trusted";
        /// The server refused the token. Causes are the IAM policy, the name that the token is
        /// signed for, and the clock.
        RefusedToken = "refused_token", "the server refused the token";
        /// The server does not accept this user in this database: the user or the database does
        /// not exist, or the user lacks the role `rds_iam`.
        RefusedUser = "refused_user", "the server refused the user";
        /// The server accepts no more connections or logins for now.
        Limit = "limit", "the server accepts no more logins for now";
        /// The server is not what `target_session_attrs` asks for.
        Role = "role", "the server is not what target_session_attrs asks for";
        /// Another reason.
        Other = "other", "the login failed";
    }
}
