//! libpq's complaints: with a cure, and without secrets.

use crate::conninfo::libpq::Complaint;
use crate::error::Error;

/// libpq's complaint, with its cure, and without what it quotes where that can be part of a
/// password.
pub(super) fn safe(Complaint(message): &Complaint, conninfo: &str) -> Error {
    let message = message.trim_end();
    // What stands where a keyword should can be anything: the second half of a password with a
    // space in it.
    let hide_all = message.starts_with(NO_EQUALS_SIGN) || may_hold_secret(conninfo);
    let parts = message.split('"').enumerate();
    let shown = parts.map(|(i, part)| match i % 2 {
        0 => part.to_owned(),
        _ if hide_all || !is_word(part) => "\"***\"".to_owned(),
        _ => format!("\"{part}\""),
    });
    Error::Conninfo(format!(
        "libpq says: {}; {}",
        shown.collect::<String>(),
        cure(message, conninfo)
    ))
}

/// A keyword, or one of the words that are the values of some: nothing else is shown.
fn is_word(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphabetic() || b"_-=".contains(&b))
}

const UNKNOWN_KEYWORD: &str = "check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port";

const NO_EQUALS_SIGN: &str = "missing \"=\"";

fn cure(message: &str, conninfo: &str) -> &'static str {
    const CURES: &[(&str, &str)] = &[
        (
            NO_EQUALS_SIGN,
            "write a URI, postgres://USER@HOST:5432/DATABASE, or pairs keyword=value, with values that hold spaces in single quotes",
        ),
        ("invalid connection option", UNKNOWN_KEYWORD),
        ("invalid URI query parameter", UNKNOWN_KEYWORD),
        ("percent-encoded", "write a % that stands for itself as %25"),
        ("of service", "check PGSERVICE, PGSERVICEFILE and ~/.pg_service.conf"),
    ];
    if conninfo.contains("X-Amz-") {
        return "it holds a token; leave that out, for each connection signs its own";
    }
    let known = CURES.iter().find(|(symptom, _)| message.contains(symptom));
    known.map(|(_, cure)| *cure).unwrap_or("see \"Connection Strings\" in libpq's documentation")
}

/// A password, or a token where it does not belong.
fn may_hold_secret(conninfo: &str) -> bool {
    let authority = conninfo.split_once("://").map_or("", |(_, rest)| rest);
    authority.contains('@') && authority.contains(':')
        || conninfo.contains("pass")
        || conninfo.contains("X-Amz-")
}
