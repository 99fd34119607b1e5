//! What the targets in fuzz/ reach of the inside. Only cargo-fuzz sets its cfg: no other build has
//! this module.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::SystemTime;

use crate::conninfo::Given;
use crate::conninfo::libpq;
use crate::libpq_login;
use crate::local;
use crate::token::{Endpoint, HostKind, HostName};
use aws_credential_types::Credentials;

/// What libpq reads in a string.
pub fn read_by_libpq(conninfo: &str) -> Option<BTreeMap<String, String>> {
    libpq::parse(&CString::new(conninfo).ok()?).ok()
}

/// The string that libpq gets for a login without IAM.
pub fn without_iam(conninfo: &str) -> Option<String> {
    Some(Given::parse(conninfo).ok()?.without_iam().ok()?.0)
}

/// The string that libpq gets for a login with this token.
pub fn with_token(conninfo: &str, token: &str) -> Option<String> {
    Some(Given::parse(conninfo).ok()?.with_iam().ok()?.with_password(token, &[]))
}

/// A host's line in a passfile.
pub fn passfile_line(host: &str, port: u16, password: &str) -> String {
    libpq_login::passfile_line(host, port, password)
}

/// What the stand-in's listener answers, until the conversation ends.
pub fn answers(input: &[u8], admits: impl Fn(&str, &str) -> bool) -> Vec<u8> {
    let mut output = Vec::new();
    // That it ends with an error is the usual end of nonsense.
    let _ = local::converse(input, &mut output, admits);
    output
}

/// The stand-in's verdict.
pub fn is_admitted(
    token: &str,
    user: &str,
    endpoint: &Endpoint,
    key_pair: &Credentials,
    now: SystemTime,
) -> bool {
    local::judge(token, user, endpoint, std::slice::from_ref(key_pair), now).is_ok()
}

/// A host name as a token names it, and its region; the region can be missing only where the last
/// value is `true`.
pub fn host_name(host: &str) -> Option<(String, Option<String>, bool)> {
    let name = HostName::parse(host).ok()?;
    let may_lack_region = matches!(name.kind(), HostKind::GlobalWriter | HostKind::Other);
    Some((name.as_str().to_owned(), name.region().map(str::to_owned), may_lack_region))
}
