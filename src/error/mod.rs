mod retirement;

pub use retirement::Retirement;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_types::date_time::{DateTime, Format};
use diesel::ConnectionError;

use crate::stats::LoginFailure as Failure;

/// What went wrong: one variant for each step of the way to a usable connection.
///
/// `r2d2` keeps only the text of an error, so `Display` is complete: the step, what it said, and
/// what to do. `Debug` says the same, for it is what `unwrap` and `main` print. No text holds a
/// token, a secret key or a password.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that is not part of a connection string cannot be used: one of a builder, or of
    /// [`Endpoint::new`](crate::Endpoint::new).
    #[error("invalid configuration: {0}")]
    Config(String),

    /// A guard of this thread is still alive. A second connection would not see what the first one
    /// has not committed, and could wait for its locks without end.
    #[error(
        "this thread's connection is in use; drop the first guard, or pass on a reference to its connection"
    )]
    InUse,

    /// The thread is ending and has closed its connections.
    #[error("this thread is ending; use the connection before its thread-locals are dropped")]
    ThreadEnding,

    /// A query failed. Made by `?` from diesel's own error.
    #[error("the query failed: {}", one_line(.0))]
    Query(#[from] diesel::result::Error),

    /// The connection string, an environment variable that completes it, or a setting of the
    /// [`Builder`](crate::Builder) cannot be used. Nothing was dialled.
    #[error("unusable connection string: {0}")]
    Conninfo(String),

    /// Nothing tells the region that a token has to be signed for.
    #[error(
        "no AWS region for {host}: {reason}; set region_name= in the connection string, or Builder::region_name"
    )]
    Region {
        /// The host that a token was to be signed for.
        host: String,
        /// Where the region was looked for.
        reason: String,
    },

    /// There are no AWS credentials: none were found, the source failed, or it did not answer in
    /// time.
    #[error(
        "no AWS credentials: {}{}; {}",
        causes(source), last_end(.ended), credentials_cure(source)
    )]
    Credentials {
        /// What each source said.
        source: Arc<CredentialsError>,
        /// When the last credentials ended, if there were any.
        ended: Option<SystemTime>,
    },

    /// The credentials had already ended when a token was to be signed; the server would refuse it.
    #[error(
        "the AWS credentials {key} ended at {}; refresh them (aws sso login, or the role that gave them) and check this machine's clock",
        utc(*.ended)
    )]
    CredentialsExpired {
        /// The access key id, masked but for its first four characters.
        key: String,
        /// When the credentials ended.
        ended: SystemTime,
    },

    /// The token could not be signed.
    #[error("cannot sign a token: {}; check the host name, the user name and the credentials", chain(&**source))]
    Token {
        /// What the signer said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The name to dial could not be resolved (only with `iam_host`: libpq resolves the other
    /// names).
    #[error(
        "cannot resolve host name \"{host}\": {source}; check the name, and that DNS is reachable from here"
    )]
    Resolve {
        /// The name to dial.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },

    /// libpq could not open the connection, or the server refused the login.
    #[error("cannot connect to {target}: {}; {}", one_line(source), cure(&source.to_string()))]
    Connect {
        /// Whom we tried to log in, and where.
        target: String,
        /// What libpq or the server said.
        source: ConnectionError,
    },

    /// None of several hosts could be connected to.
    #[error("no host can be used: {}", all(failures))]
    Hosts {
        /// What became of each, in the order in which they were tried.
        failures: Vec<Error>,
    },

    /// The server has just refused a login in a way that waiting does not mend, or many logins have
    /// failed in a row, so it is not asked again yet: logins count against its limits. Nothing was
    /// dialled.
    #[error("not trying again for {:.1} s: {cause}", wait.as_secs_f64())]
    Paused {
        /// Until the next attempt.
        wait: Duration,
        /// The text of the last error, and what to do.
        cause: String,
    },

    /// A pool had no connection to give within its connection_timeout.
    #[error("timed out waiting for connection: {reason}")]
    Timeout {
        /// Why: the last error of a login, or that all connections are in use.
        reason: String,
        /// What r2d2 said.
        source: r2d2::Error,
    },

    /// An open connection did not answer a query: it is dropped and a new one takes its place.
    #[error(
        "the connection is no longer usable: {}; it is replaced by a new one",
        one_line(source)
    )]
    Ping {
        /// What diesel said.
        source: diesel::result::Error,
    },

    /// An open connection is closed before anything went wrong with it: it is too old, or its
    /// server was demoted. A new one takes its place.
    #[error("the connection is retired: {reason}; a new one takes its place")]
    Retired {
        /// Why.
        reason: Retirement,
    },

    /// The local stand-in for RDS could not be started or changed.
    #[cfg(feature = "local")]
    #[error("local RDS: {step}: {}", chain(&**source))]
    Local {
        /// What was being done, and what to do about it.
        step: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Whether a server looked at the token and refused it: PAM on RDS, LDAP on the stand-in.
    /// "password authentication failed" is for a user without the role rds_iam, whose token nobody
    /// looks at.
    pub(crate) fn is_refused_token(&self) -> bool {
        let Error::Connect { source, .. } = self else { return false };
        let text = source.to_string();
        text.contains("authentication failed for user")
            && !text.contains("password authentication failed")
    }

    /// Whether the server's certificate is signed by nobody in the file of roots.
    pub(crate) fn is_unknown_authority(&self) -> bool {
        matches!(self, Error::Connect { source, .. } if source.to_string().contains("certificate verify failed"))
    }

    /// What a login that failed so is counted as.
    pub(crate) fn login_failure(&self) -> Failure {
        match self {
            Error::Connect { source, .. } => {
                symptom(&source.to_string()).map_or(Failure::Other, |(_, it, ..)| *it)
            }
            Error::Resolve { .. } => Failure::Unreachable,
            Error::Credentials { .. } | Error::CredentialsExpired { .. } | Error::Token { .. } => {
                Failure::Credentials
            }
            _ => Failure::Other,
        }
    }

    /// What waiting will do about it.
    pub(crate) fn outlook(&self) -> Outlook {
        match self {
            Error::Connect { source, .. } => {
                symptom(&source.to_string()).map_or(Outlook::Unknown, |(_, _, it, _)| *it)
            }
            Error::Hosts { failures } => {
                let stays = failures.iter().all(|failure| failure.outlook() == Outlook::Stays);
                if stays { Outlook::Stays } else { Outlook::Unknown }
            }
            _ => Outlook::Unknown,
        }
    }
}

/// What to expect of the next attempt after a failed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// The server was not reached as it starts or stops, and may be back at any moment.
    ComesBack,
    /// The server lets us in, and is not what `target_session_attrs` wants, until the next
    /// failover.
    ChangesRole,
    /// It may work or not.
    Unknown,
    /// It fails until somebody mends something.
    Stays,
}

fn all(failures: &[Error]) -> String {
    failures.iter().map(Error::to_string).collect::<Vec<_>>().join("; or: ")
}

/// The cure of the first symptom that `text` shows.
pub(crate) fn cure_in(cures: &[(&str, &'static str)], text: &str) -> Option<&'static str> {
    cures.iter().find(|(symptom, _)| text.contains(symptom)).map(|(_, cure)| *cure)
}

/// What libpq or the server says when a login fails, what it is counted as, what waiting does about
/// it, and what to do.
type Symptom = (&'static str, Failure, Outlook, &'static str);

/// A text can hold several, for libpq tells of each address of a host: what an answer says comes
/// before what silence says.
const SYMPTOMS: &[Symptom] = &[
    ("password authentication failed", Failure::RefusedUser, Outlook::Stays, GRANT),
    // libpq's require_auth: the server wants SCRAM or MD5, so nobody looks at a token.
    ("authentication method requirement", Failure::RefusedUser, Outlook::Stays, GRANT),
    // RDS Proxy's.
    (
        "IAM authentication failed for the role",
        Failure::RefusedToken,
        Outlook::Unknown,
        "sign for the proxy's own endpoint (iam_host= for a CNAME or a tunnel); the AWS identity needs rds-db:connect for this user on the proxy's prx- id",
    ),
    (
        "IAM is allowed only with SSL",
        Failure::RefusedUser,
        Outlook::Stays,
        "the proxy wants TLS: use sslmode=verify-full",
    ),
    (
        "too many competing requests",
        Failure::Limit,
        Outlook::Unknown,
        "log in less often: keep connections in a pool",
    ),
    (
        "string truncated",
        Failure::RefusedUser,
        Outlook::Stays,
        "a pooler in between cuts the token off: raise its longest password, or go past it",
    ),
    (
        "authentication failed for user",
        Failure::RefusedToken,
        Outlook::Unknown,
        "the server refused the token: the AWS identity needs rds-db:connect for this user and database; sign for the real endpoint (iam_host= for a CNAME or a tunnel), in its region; check this machine's clock",
    ),
    (
        ", SSL encryption",
        Failure::RefusedUser,
        Outlook::Stays,
        "the server's pg_hba.conf has no line for this user and database by this way; RDS takes no replication connections",
    ),
    (
        "no pg_hba.conf entry",
        Failure::RefusedUser,
        Outlook::Stays,
        "the server wants TLS: use sslmode=verify-full",
    ),
    (
        "pg_hba.conf rejects",
        Failure::RefusedUser,
        Outlook::Stays,
        "the server wants TLS: use sslmode=verify-full",
    ),
    (
        "root certificate file",
        Failure::Certificate,
        Outlook::Stays,
        "download the RDS CA bundle (global-bundle.pem) and set sslrootcert= to its path",
    ),
    ("certificate verify failed", Failure::Certificate, Outlook::Stays, SET_SSLROOTCERT),
    ("self-signed certificate", Failure::Certificate, Outlook::Stays, SET_SSLROOTCERT),
    (
        "does not match host name",
        Failure::Certificate,
        Outlook::Stays,
        "set iam_host= to the endpoint's own name when you dial a CNAME, an address or a tunnel",
    ),
    ("remaining connection slots", Failure::Limit, Outlook::Unknown, SHARE_CONNECTIONS),
    ("too many clients", Failure::Limit, Outlook::Unknown, SHARE_CONNECTIONS),
    (
        "too many connections for",
        Failure::Limit,
        Outlook::Unknown,
        "lower max_size, of all programs together, or raise that CONNECTION LIMIT by ALTER ROLE or ALTER DATABASE",
    ),
    (
        "no password supplied",
        Failure::RefusedUser,
        Outlook::Stays,
        "give the password, or leave out rds_iam_auth=false to log in by token",
    ),
    (
        "requires a password",
        Failure::RefusedUser,
        Outlook::Stays,
        "the server's own answer is above; check its authentication method for this user",
    ),
    (
        "is not permitted to log in",
        Failure::RefusedUser,
        Outlook::Stays,
        "run ALTER ROLE ... LOGIN for this user",
    ),
    (
        "permission denied for database",
        Failure::RefusedUser,
        Outlook::Stays,
        "run GRANT CONNECT ON DATABASE ... TO this user",
    ),
    (
        "could not parse network address",
        Failure::Other,
        Outlook::Stays,
        "give hostaddr= an IP address",
    ),
    (
        "invalid integer value",
        Failure::Other,
        Outlook::Stays,
        "check the numbers in the connection string",
    ),
    (
        "does not exist",
        Failure::RefusedUser,
        Outlook::Stays,
        "check the names of database and user",
    ),
    (
        "server does not support SSL",
        Failure::Certificate,
        Outlook::Stays,
        "use the RDS endpoint itself: a token is sent over TLS only",
    ),
    ("session is read-only", Failure::Role, Outlook::ChangesRole, CHECK_SESSION_ATTRS),
    ("session is not read-only", Failure::Role, Outlook::ChangesRole, CHECK_SESSION_ATTRS),
    ("server is in hot standby mode", Failure::Role, Outlook::ChangesRole, CHECK_SESSION_ATTRS),
    ("server is not in hot standby mode", Failure::Role, Outlook::ChangesRole, CHECK_SESSION_ATTRS),
    (
        "target_session_attrs",
        Failure::Other,
        Outlook::Unknown,
        "check the value against libpq's parameter key words",
    ),
    (
        "could not translate host name",
        Failure::Unreachable,
        Outlook::Unknown,
        "check the name, and that DNS is reachable from here",
    ),
    (
        "timeout expired",
        Failure::Unreachable,
        Outlook::Unknown,
        "check the security group, the VPC and the port from this network",
    ),
    // SQLSTATE 57P03, cannot_connect_now.
    ("the database system is starting up", Failure::Unreachable, Outlook::ComesBack, WAIT),
    ("the database system is shutting down", Failure::Unreachable, Outlook::ComesBack, WAIT),
    ("the database system is in recovery mode", Failure::Unreachable, Outlook::ComesBack, WAIT),
    (
        "the database system is not yet accepting connections",
        Failure::Unreachable,
        Outlook::ComesBack,
        WAIT,
    ),
    // SQLSTATE 57P01: it began to shut down in the middle of the login.
    (
        "terminating connection due to administrator command",
        Failure::Unreachable,
        Outlook::ComesBack,
        WAIT,
    ),
    (
        "Connection refused",
        Failure::Unreachable,
        Outlook::ComesBack,
        "check host and port, and that the server is running",
    ),
    ("server closed the connection unexpectedly", Failure::Unreachable, Outlook::Unknown, CUT),
    ("SSL connection has been closed unexpectedly", Failure::Unreachable, Outlook::Unknown, CUT),
    ("EOF detected", Failure::Unreachable, Outlook::Unknown, CUT),
    ("Connection reset by peer", Failure::Unreachable, Outlook::Unknown, CUT),
];

const GRANT: &str = "the user does not exist; or, for a login by token, lacks the role: run GRANT rds_iam TO the user; or, for a login by password (rds_iam_auth=false), has another one: never grant rds_iam there";
const SET_SSLROOTCERT: &str = "set sslrootcert= to the CA bundle that signed the server's certificate (for RDS: global-bundle.pem)";
const SHARE_CONNECTIONS: &str = "lower max_size, of all programs together, or raise max_connections; RDS Proxy shares connections";
const CHECK_SESSION_ATTRS: &str =
    "check target_session_attrs, and which of the servers is the writer";
const CUT: &str =
    "the server went down, or something on the way to it hangs up; see its log if it stays so";
const WAIT: &str = "wait until the server is up, and see its log if it stays so";

fn symptom(text: &str) -> Option<&'static Symptom> {
    SYMPTOMS.iter().find(|(symptom, ..)| text.contains(symptom))
}

/// The cure for what libpq or the server says when a login fails.
pub(crate) fn cure(text: &str) -> &'static str {
    symptom(text).map_or("check the server's log for the cause", |(.., cure)| cure)
}

/// The cure for what the sources of credentials say.
pub(crate) fn credentials_cure(error: &CredentialsError) -> &'static str {
    const CURES: &[(&str, &str)] = &[
        ("cargo feature", "build diesel-rds-iam with its feature sso or credentials-process"),
        (
            "gave credentials that ended",
            "log in again (aws sso login) or refresh that source, and check this machine's clock",
        ),
        ("no answer within", "see why that source does not answer, or raise credentials_timeout"),
        ("the given provider", "see to the provider that the builder was given"),
        ("panicked", "see to the provider that the builder was given"),
        ("sso/cache", "log in: aws sso login --profile NAME"),
        (
            "could not parse profile",
            "mend ~/.aws/config and ~/.aws/credentials, or what AWS_CONFIG_FILE names",
        ),
        ("not authorized", "allow that role or action to the identity that asks, in IAM"),
        ("AccessDenied", "allow that role or action to the identity that asks, in IAM"),
        ("dns error", "check that this name can be resolved from here, and AWS_REGION"),
        ("io error", "check that this source can be reached from here, and HTTPS_PROXY"),
    ];
    cure_in(CURES, &causes(error)).unwrap_or(match error {
        CredentialsError::CredentialsNotLoaded(_) if std::env::var_os("AWS_PROFILE").is_some() => {
            "check AWS_PROFILE, which is set: the profile of that name, or one that it refers to, has no credentials"
        }
        CredentialsError::CredentialsNotLoaded(_) => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the task or instance a role"
        }
        _ => "mend that source; those after it are not asked",
    })
}

/// The texts of an error and its sources, each once. The SDK's general words before them are left
/// out, and what is too long for a line of a log is cut: a credential_process can say anything.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = one_line(error);
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = one_line(cause);
        if !text.contains(&cause_text) && !cause.is::<CredentialsError>() {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    cut(text)
}

/// In characters.
const LONGEST_TEXT: usize = 1000;

/// libpq's messages have several lines and a closing newline; a log line has one.
pub(crate) fn one_line(error: &(impl fmt::Display + ?Sized)) -> String {
    let text = error.to_string();
    // A server can say anything: send colours to a terminal, or a token back to us.
    let shown = |word: &str| match word.contains("X-Amz-") {
        true => "***".to_owned(),
        false => word.chars().filter(|c| !c.is_control()).collect(),
    };
    cut(text.split_whitespace().map(shown).collect::<Vec<_>>().join(" "))
}

/// What is too long for a line of a log.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
        text.replace_range(end.., "...");
    }
    text
}

/// What a credentials error has to say, without the SDK's general words before it.
pub(crate) fn causes(error: &CredentialsError) -> String {
    std::error::Error::source(error).map_or_else(|| chain(error), chain)
}

fn last_end(ended: &Option<SystemTime>) -> String {
    ended.map_or_else(String::new, |end| format!(" (the last ones ended at {})", utc(end)))
}

/// A time for people: `2026-01-31T12:00:00Z`.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = DateTime::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.fmt(Format::DateTime).unwrap_or_else(|_| "an unknown time".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_symptom_has_its_own_cure() {
        let cases = [
            ("FATAL:  PAM authentication failed for user \"app\"", "rds-db:connect"),
            ("FATAL:  LDAP authentication failed for user \"app\"", "rds-db:connect"),
            ("FATAL:  password authentication failed for user \"app\"", "GRANT rds_iam"),
            ("FATAL:  no pg_hba.conf entry for host \"10.0.0.1\", no encryption", "verify-full"),
            (
                "FATAL:  no pg_hba.conf entry for replication connection from host \"10.0.0.1\", SSL encryption",
                "no line",
            ),
            ("FATAL:  role \"app\" is not permitted to log in", "ALTER ROLE"),
            ("FATAL:  permission denied for database \"app\"", "GRANT CONNECT"),
            (
                "root certificate file \"/root/.postgresql/root.crt\" does not exist",
                "global-bundle.pem",
            ),
            ("SSL error: certificate verify failed", "sslrootcert="),
            ("server certificate for \"a\" does not match host name \"b\"", "iam_host="),
            ("FATAL:  database \"x\" does not exist", "names of database"),
            ("FATAL:  authentication method requirement \"password\" failed", "GRANT rds_iam"),
            ("FATAL:  IAM authentication failed for the role app", "the proxy's own endpoint"),
            ("FATAL:  IAM is allowed only with SSL connections", "sslmode=verify-full"),
            ("FATAL:  too many competing requests", "in a pool"),
            ("FATAL:  too many connections for role \"app\"", "CONNECTION LIMIT"),
            ("ERROR:  string truncated", "a pooler in between"),
            (
                "FATAL:  terminating connection due to administrator command",
                "wait until the server is up",
            ),
            ("SSL connection has been closed unexpectedly", "went down"),
            ("something never seen before", "server's log"),
            ("a host:1/?Action=connect&X-Amz-Signature=ab \u{1b}[2J back", "a *** [2J back"),
        ];
        for (text, expected) in cases {
            let error = Error::Connect {
                target: "app@db:5432/app".into(),
                source: ConnectionError::BadConnection(format!("{text}\n")),
            };
            let shown = error.to_string();
            assert!(shown.contains(expected), "{shown}");
            assert!(!shown.contains('\n'), "{shown:?}");
            assert_eq!(format!("{error:?}"), shown);
            assert!(std::error::Error::source(&error).is_some());
        }
    }

    #[test]
    fn a_credentials_error_shows_its_inner_cause() {
        let source = CredentialsError::not_loaded("environment: not set");
        let error = Error::Credentials { source: Arc::new(source), ended: None };
        assert!(error.to_string().contains("environment: not set"), "{error}");
    }
}
