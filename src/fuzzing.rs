//! Internal functions for the targets in fuzz/. Only cargo-fuzz sets the cfg of this module.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::SystemTime;

use aws_credential_types::Credentials;

use crate::conninfo::{ConnectionString, Keywords, libpq};
use crate::token::{Endpoint, HostKind, HostName};
use crate::{libpq_login, local};

/// The keywords that libpq never gets. The last one is libpq's own from version 16 on.
pub const OUR_OWN: &[&str] = &Keywords::ALL;

/// Returns the settings that libpq parses from a string.
pub fn read_by_libpq(conninfo: &str) -> Option<BTreeMap<String, String>> {
    libpq::parse(&CString::new(conninfo).ok()?).ok()
}

/// Returns the string that libpq gets for a login without IAM.
pub fn without_iam(conninfo: &str) -> Option<String> {
    Some(ConnectionString::parse(conninfo).ok()?.without_iam().ok()?.string.text())
}

/// Returns the string that libpq gets for a login with this token.
pub fn with_token(conninfo: &str, token: &str) -> Option<String> {
    Some(ConnectionString::parse(conninfo).ok()?.with_iam().ok()?.with_password(token, &[]))
}

/// Returns the line of a host in a passfile.
pub fn passfile_line(host: &str, port: u16, password: &str) -> String {
    libpq_login::passfile_line(host, port, password)
}

/// Returns what the listener of `LocalRds` answers to an input.
pub fn answers(input: &[u8], admits: impl Fn(&str, &str) -> bool) -> Vec<u8> {
    let mut output = Vec::new();
    // Invalid input ends with an error.
    let _ = local::converse(input, &mut output, admits);
    output
}

/// Returns whether `LocalRds` admits a token.
pub fn is_admitted(
    token: &str,
    user: &str,
    endpoint: &Endpoint,
    key_pair: &Credentials,
    now: SystemTime,
) -> bool {
    local::judge(token, user, endpoint, std::slice::from_ref(key_pair), now).is_ok()
}

/// Returns a host name in the form used in tokens, its region, and whether the region can be
/// missing.
pub fn host_name(host: &str) -> Option<(String, Option<String>, bool)> {
    let name = HostName::parse(host).ok()?;
    let may_lack_region = matches!(name.kind(), HostKind::GlobalWriter | HostKind::Other);
    Some((name.as_str().to_owned(), name.region().map(str::to_owned), may_lack_region))
}
