//! [`Refusal`]: what the text of a failed login means.

use super::LoginFailure;

/// Why libpq or the server refused a login.
///
/// Everything that depends on such a text matches on this value: error texts, statistics, back-off,
/// key rotation, log levels, the doctor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The server checked the token and refused it.
    Token,
    /// RDS Proxy checked the token and refused it.
    ProxyToken,
    /// The server did not ask for a token: the user lacks `rds_iam` or does not exist. In a login
    /// by password: the password is wrong.
    NoGrant,
    /// The server refuses connections without TLS.
    NoEncryption,
    /// `pg_hba.conf` has no entry for this user and database.
    NoEntry,
    /// A pooler in between cut the token.
    Truncated,
    /// The file of root certificates does not exist.
    RootFileMissing,
    /// The file of root certificates exists and cannot be used.
    RootFileUnusable,
    /// The server's certificate is not signed by a root certificate in the file.
    UnknownAuthority,
    /// The server's certificate is for other names.
    WrongName,
    /// The server does not support TLS.
    NoTls,
    /// The server has no connection left.
    ConnectionLimit,
    /// The user or the database has no connection left.
    RoleLimit,
    /// RDS Proxy gets too many logins.
    LoginRate,
    /// The server asks for a password and the connection string has none.
    NoPassword,
    /// The server asks for another authentication method.
    OtherMethod,
    /// The role lacks LOGIN.
    NoLogin,
    /// The role lacks CONNECT on the database.
    NoConnect,
    /// The database or the role does not exist.
    NoSuchName,
    /// A setting of the connection string has an invalid value.
    BadSetting,
    /// The server is not what `target_session_attrs` asks for.
    OtherRole,
    /// The host name does not exist.
    UnknownHost,
    /// The resolver gave no answer.
    NoResolver,
    /// The server, or something before it, did not answer in time.
    Timeout,
    /// The network has no route to the server.
    NoRoute,
    /// The server is starting, stopping or recovering.
    Starting,
    /// The server's host refuses TCP connections at the port.
    TcpRefused,
    /// The connection was closed in the middle of the login.
    Closed,
    /// An unknown text.
    Other,
}

/// What to expect of the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// The server is starting or stopping, and can be available at any moment.
    Starting,
    /// The server accepts logins but is not what `target_session_attrs` asks for, until the next
    /// failover.
    OtherRole,
    /// The next attempt may succeed.
    Unknown,
    /// Each attempt fails until a person changes something.
    Permanent,
}

/// The texts of each cause, in which `...` stands for any text. The first match counts, so the more
/// specific texts come first.
const TEXTS: &[(Refusal, &str)] = &[
    // libpq's own, before any login.
    (Refusal::RootFileMissing, "root certificate file ... does not exist"),
    (Refusal::RootFileUnusable, "could not read root certificate"),
    (Refusal::RootFileUnusable, "could not load ... root certificate"),
    (Refusal::UnknownAuthority, "certificate verify failed"),
    (Refusal::UnknownAuthority, "self-signed certificate"),
    (Refusal::UnknownAuthority, "unable to get local issuer certificate"),
    (Refusal::WrongName, "does not match host name"),
    (Refusal::NoTls, "server does not support SSL"),
    (Refusal::NoPassword, "no password supplied"),
    (Refusal::BadSetting, "could not parse network address"),
    (Refusal::BadSetting, "invalid integer value"),
    (Refusal::BadSetting, "invalid ... value: \""),
    (Refusal::OtherRole, "session is ... read-only"),
    (Refusal::OtherRole, "server is ... in hot standby mode"),
    // SQLSTATE 28P01, and libpq's require_auth: the server asks for SCRAM or MD5.
    (Refusal::NoGrant, "password authentication failed"),
    (Refusal::NoGrant, "authentication method requirement"),
    // RDS Proxy.
    (Refusal::ProxyToken, "IAM authentication failed for the role"),
    (Refusal::NoEncryption, "IAM is allowed only with SSL"),
    (Refusal::LoginRate, "too many competing requests"),
    (Refusal::Truncated, "string truncated"),
    // SQLSTATE 28000: PAM on RDS, LDAP on LocalRds.
    (Refusal::Token, "authentication failed for user"),
    (Refusal::NoEntry, "no pg_hba.conf entry ... , SSL encryption"),
    (Refusal::NoEncryption, "no pg_hba.conf entry"),
    (Refusal::NoEncryption, "pg_hba.conf rejects"),
    (Refusal::OtherMethod, "requires a password"),
    (Refusal::NoLogin, "is not permitted to log in"),
    (Refusal::NoConnect, "permission denied for database"),
    // SQLSTATE 53300.
    (Refusal::ConnectionLimit, "remaining connection slots"),
    (Refusal::ConnectionLimit, "too many clients"),
    (Refusal::RoleLimit, "too many connections for"),
    // SQLSTATE 57P03, and 57P01: the server begins to shut down in the middle of the login.
    (Refusal::Starting, "the database system is"),
    (Refusal::Starting, "terminating connection due to administrator command"),
    (Refusal::NoSuchName, "database \" ... does not exist"),
    (Refusal::NoSuchName, "role \" ... does not exist"),
    (Refusal::NoResolver, "could not translate host name ... Temporary failure"),
    // The doctor resolves names itself.
    (Refusal::NoResolver, "cannot resolve host name ... Temporary failure"),
    (Refusal::NoResolver, "cannot resolve host name ... no answer"),
    (Refusal::UnknownHost, "could not translate host name"),
    (Refusal::Timeout, "timeout expired"),
    (Refusal::Timeout, "Connection timed out"),
    (Refusal::NoRoute, "No route to host"),
    (Refusal::NoRoute, "Network is unreachable"),
    (Refusal::TcpRefused, "Connection refused"),
    (Refusal::Closed, "closed ... unexpectedly"),
    (Refusal::Closed, "EOF detected"),
    (Refusal::Closed, "unexpected eof"),
    (Refusal::Closed, "Connection reset by peer"),
];

impl Refusal {
    /// Classifies the text of a failed login. It can hold the texts of several addresses, because
    /// libpq reports each address of a host: an answer from a server outranks silence, and silence
    /// outranks a refused TCP connection.
    pub(crate) fn of(text: &str) -> Refusal {
        let of_addresses =
            text.split("connection to server ").filter(|part| !part.trim().is_empty());
        let refusals = of_addresses.map(Refusal::of_one_address);
        refusals.reduce(|a, b| if b.rank() > a.rank() { b } else { a }).unwrap_or(Refusal::Other)
    }

    fn of_one_address(text: &str) -> Refusal {
        let matches = |known: &str| known.split(" ... ").all(|part| text.contains(part));
        let found = TEXTS.iter().find(|(_, known)| matches(known));
        found.map_or(Refusal::Other, |(refusal, _)| *refusal)
    }

    /// How much the refusal of one address says about the server.
    fn rank(self) -> u8 {
        match self {
            Refusal::TcpRefused | Refusal::Starting => 0,
            _ if self.failure() == LoginFailure::Unreachable => 1,
            Refusal::Other => 2,
            _ => 3,
        }
    }

    /// Whether a server or a proxy checked the token and refused it. Another key pair may succeed.
    pub(crate) fn is_of_token(self) -> bool {
        self.failure() == LoginFailure::RefusedToken
    }

    pub(crate) fn outlook(self) -> Outlook {
        match self {
            Refusal::TcpRefused | Refusal::Starting => Outlook::Starting,
            Refusal::OtherRole => Outlook::OtherRole,
            // RDS reports a throttled login like a refused token.
            Refusal::Token | Refusal::ProxyToken | Refusal::Other => Outlook::Unknown,
            _ if self.is_transient() => Outlook::Unknown,
            _ => Outlook::Permanent,
        }
    }

    /// Whether waiting helps.
    pub(crate) fn is_transient(self) -> bool {
        match self.failure() {
            LoginFailure::Limit | LoginFailure::Role => true,
            LoginFailure::Unreachable => self != Refusal::UnknownHost,
            // An Aurora Serverless cluster says this while it resumes from auto-pause.
            _ => self == Refusal::NoEntry,
        }
    }

    /// What this refusal is counted as.
    pub(crate) fn failure(self) -> LoginFailure {
        use Refusal::*;
        match self {
            Token | ProxyToken => LoginFailure::RefusedToken,
            NoGrant | NoEncryption | NoEntry | Truncated | NoPassword | OtherMethod | NoLogin
            | NoConnect | NoSuchName => LoginFailure::RefusedUser,
            RootFileMissing | RootFileUnusable | UnknownAuthority | WrongName | NoTls => {
                LoginFailure::Certificate
            }
            ConnectionLimit | RoleLimit | LoginRate => LoginFailure::Limit,
            OtherRole => LoginFailure::Role,
            UnknownHost | NoResolver | Timeout | NoRoute | Starting | TcpRefused | Closed => {
                LoginFailure::Unreachable
            }
            BadSetting | Other => LoginFailure::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libpq says before the text of one address.
    const AT: &str = "connection to server at \"db\" (10.0.0.1), port 5432 failed: ";

    #[test]
    fn each_text_has_its_own_refusal() {
        let cases = [
            ("FATAL:  PAM authentication failed for user \"app\"", Refusal::Token),
            ("FATAL:  LDAP authentication failed for user \"app\"", Refusal::Token),
            ("FATAL:  password authentication failed for user \"app\"", Refusal::NoGrant),
            (
                "authentication method requirement \"password\" failed: server requested SASL \
                 authentication",
                Refusal::NoGrant,
            ),
            ("FATAL:  IAM authentication failed for the role app", Refusal::ProxyToken),
            ("FATAL:  IAM is allowed only with SSL connections", Refusal::NoEncryption),
            ("FATAL:  no pg_hba.conf entry for host \"::1\", no encryption", Refusal::NoEncryption),
            ("FATAL:  no pg_hba.conf entry for host \"::1\", SSL encryption", Refusal::NoEntry),
            ("FATAL:  pg_hba.conf rejects connection", Refusal::NoEncryption),
            ("root certificate file \"/root.crt\" does not exist", Refusal::RootFileMissing),
            ("could not read root certificate file \"/r\"", Refusal::RootFileUnusable),
            ("SSL error: certificate verify failed", Refusal::UnknownAuthority),
            ("server certificate for \"a\" does not match host name \"b\"", Refusal::WrongName),
            ("FATAL:  database \"x\" does not exist", Refusal::NoSuchName),
            ("FATAL:  role \"x\" does not exist", Refusal::NoSuchName),
            ("FATAL:  role \"app\" is not permitted to log in", Refusal::NoLogin),
            ("FATAL:  permission denied for database \"app\"", Refusal::NoConnect),
            ("FATAL:  too many connections for role \"app\"", Refusal::RoleLimit),
            ("ERROR:  string truncated", Refusal::Truncated),
            ("FATAL:  terminating connection due to administrator command", Refusal::Starting),
            ("SSL connection has been closed unexpectedly", Refusal::Closed),
            ("session is read-only", Refusal::OtherRole),
            ("Connection refused\n\tIs the server running on that host?", Refusal::TcpRefused),
            ("something new", Refusal::Other),
        ];
        for (text, expected) in cases {
            assert_eq!(Refusal::of(text), expected, "{text}");
            assert_eq!(Refusal::of(&format!("{AT}{text}\n")), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_outranks_silence_and_silence_outranks_a_refused_connection() {
        let refused = "Connection refused\n\tIs the server running?\n";
        let cases = [
            (refused, "FATAL:  database \"x\" does not exist", Refusal::NoSuchName),
            (refused, "SSL error: certificate verify failed", Refusal::UnknownAuthority),
            (refused, "timeout expired", Refusal::Timeout),
            (refused, "FATAL:  the database system is starting up", Refusal::TcpRefused),
            ("timeout expired\n", "FATAL:  the database system is starting up", Refusal::Timeout),
            (refused, refused, Refusal::TcpRefused),
        ];
        for (one, other, expected) in cases {
            assert_eq!(Refusal::of(&format!("{AT}{one}{AT}{other}\n")), expected, "{one}{other}");
            assert_eq!(
                Refusal::of(&format!("{AT}{other}\n{AT}{one}")).outlook(),
                expected.outlook()
            );
        }
    }

    #[test]
    fn a_host_that_starts_is_the_only_one_that_is_retried_at_once() {
        let starting = [Refusal::TcpRefused, Refusal::Starting];
        for (refusal, _) in TEXTS {
            let is_starting = starting.contains(refusal);
            assert_eq!(refusal.outlook() == Outlook::Starting, is_starting, "{refusal:?}");
        }
    }
}
