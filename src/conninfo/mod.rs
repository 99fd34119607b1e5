//! libpq connection strings: parsing, our own keywords, defaults, checks, rendering.

mod checks;
mod connection_string;
mod hosts;
mod iam;
mod keywords;
pub(crate) mod libpq;
mod malformed;
mod redact;
mod topology;
mod variables;

use std::collections::BTreeMap;
use std::ffi::CString;

use crate::error::Error;
#[cfg(feature = "local")]
pub(crate) use checks::LONGEST_NAME;
pub(crate) use checks::signed_host;
pub(crate) use connection_string::{ConnectionString, PasswordConninfo};
pub(crate) use hosts::{Host, one_or_one_for_each};
pub(crate) use iam::IamConninfo;
pub(crate) use keywords::{Keywords, PoolKeywords};
pub use topology::Topology;

/// Renders settings in the key/value form, with all values quoted (libpq, "Keyword/Value Connection
/// Strings").
pub(crate) fn render(settings: BTreeMap<&str, &str>) -> String {
    let quote = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
    let pairs =
        settings.into_iter().map(|(keyword, value)| format!("{keyword}='{}'", quote(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// Whether libpq reads `text` as a URI. It reads anything else as key/value.
fn is_uri(text: &str) -> bool {
    text.starts_with("postgresql://") || text.starts_with("postgres://")
}

/// Returns where the host begins. As in libpq, an '@' before the first '/' ends user and password,
/// which may contain a '?'.
fn host_of_uri(text: &str) -> usize {
    let authority = text.find("://").map_or(0, |i| i + 3);
    match text[authority..].find(['@', '/']) {
        Some(i) if text[authority + i..].starts_with('@') => authority + i + 1,
        _ => authority,
    }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).or_else(|_| invalid("it contains a NUL byte; remove it"))
}

/// Makes the error of a connection string. `reason` must not contain a part of the string.
pub(crate) fn invalid<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Conninfo(reason.into()))
}
