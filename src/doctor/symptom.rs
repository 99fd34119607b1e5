//! [`Symptom`]: what was seen when a step failed.

use std::fmt;

/// What was seen when a step failed, before it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Symptom {
    /// The name has no address.
    NoAddress(String),
    /// Nobody listens at the port.
    NobodyListens(String),
    /// Nothing comes back from there.
    NoWay(String),
    /// TCP is accepted, and then there is silence.
    Silence,
    /// TCP is accepted, and then closed.
    HangsUp(String),
    /// The other end speaks, but not PostgreSQL.
    NotPostgres(String),
    /// PostgreSQL's, when asked for TLS: no.
    NoTls,
    /// The root file cannot be read.
    NoRoots(String),
    /// The certificate is not signed by any of these roots.
    Untrusted { text: String, roots: String, issuer: Option<String> },
    /// The certificate has ended, or begins in the future.
    Outdated { text: String, is_early: bool },
    /// The certificate has other names.
    WrongName { text: String },
    /// A server or libpq said something.
    Said { text: String, sqlstate: Option<String> },
}

impl Symptom {
    pub(super) fn said(text: impl Into<String>) -> Symptom {
        Symptom::Said { text: text.into(), sqlstate: None }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symptom::Silence => f.write_str("TCP is accepted, but there is no answer"),
            Symptom::NotPostgres(text) => write!(f, "the server does not speak PostgreSQL: {text}"),
            Symptom::NoTls => f.write_str("the server does not support TLS"),
            Symptom::Said { text, sqlstate: Some(sqlstate) } => {
                write!(f, "{text} (SQLSTATE {sqlstate})")
            }
            Symptom::NoAddress(text)
            | Symptom::NobodyListens(text)
            | Symptom::NoWay(text)
            | Symptom::HangsUp(text)
            | Symptom::NoRoots(text)
            | Symptom::Untrusted { text, .. }
            | Symptom::Outdated { text, .. }
            | Symptom::WrongName { text }
            | Symptom::Said { text, .. } => f.write_str(text),
        }
    }
}
