//! Errors for libpq's complaints, without any part of the connection string.

use super::keywords::Keywords;
use super::libpq::{self, Complaint};
use crate::error::Error;

/// Makes an error of libpq's complaint about `conninfo`.
///
/// libpq quotes the string, and a quote inside of the string hides where a quotation ends. So the
/// error has our own words, chosen by the beginning of libpq's, which is not part of the string.
/// The names of known keywords are all that it shows.
pub(super) fn redacted(Complaint(message): &Complaint, conninfo: &str) -> Error {
    Error::Conninfo(reason(message, conninfo))
}

fn reason(message: &str, conninfo: &str) -> String {
    if conninfo.contains("X-Amz-") {
        return "it contains a token; remove it, because each connection signs its own".into();
    }
    if let Some(keyword) = unknown_keyword(message) {
        return unknown_keyword_reason(keyword);
    }
    if let Some(keyword) = value_of(message) {
        let cure = "see libpq's \"Parameter Key Words\" for its values";
        return format!("the value of {keyword} is not one that libpq accepts; {cure}");
    }
    let known = REASONS.iter().find(|(beginning, _)| message.starts_with(beginning));
    known.map_or(UNKNOWN, |(_, reason)| *reason).to_owned()
}

/// How libpq's complaints begin (PostgreSQL, fe-connect.c), and our words. The first match counts.
const REASONS: &[(&str, &str)] = &[
    (
        "missing \"=\"",
        "it has a word without =; write postgres://USER@HOST:5432/DATABASE, or pairs keyword=value \
         with single quotes around values that contain spaces",
    ),
    (
        "unterminated quoted string",
        "a quoted value has no closing quote; add it, and write a quote inside a value as \\'",
    ),
    (
        "invalid percent-encoded token",
        "a % is not followed by two hexadecimal digits; write a literal % as %25",
    ),
    ("forbidden value %00", "it contains %00; remove it"),
    (
        "missing key/value separator",
        "a parameter of the URI has no =; write it as keyword=value, and a literal & as %26",
    ),
    (
        "extra key/value separator",
        "a parameter of the URI has two = signs; write a literal = as %3D",
    ),
    (
        "end of string reached when looking for matching",
        "the IPv6 address in the URI has no closing ]; write the host as [ADDRESS]",
    ),
    ("IPv6 host address may not be empty", "the host is []; write the name of the host"),
    (
        "unexpected character",
        "the ] of the IPv6 address is not followed by : or /; correct the host",
    ),
    (
        "could not match",
        "host, hostaddr and port are lists of different lengths; give one value for each host",
    ),
    (
        "definition of service",
        "the service that it or PGSERVICE names is not defined; check its name, PGSERVICEFILE and \
         ~/.pg_service.conf",
    ),
    ("service file", "the service file is missing; check PGSERVICEFILE"),
    ("syntax error in service file", "the service file has a syntax error; correct that file"),
    ("nested service specifications", "the service file names another service; correct that file"),
    ("line ", "the service file has a line that is too long; correct that file"),
    (
        "could not look up local user",
        "libpq finds no name of this system's user; set user= to the database user",
    ),
    ("local user with ID", "this system's user has no name; set user= to the database user"),
    ("weak sslmode", "sslrootcert=system needs sslmode=verify-full; set it"),
    (
        "invalid SSL protocol version range",
        "ssl_min_protocol_version is above ssl_max_protocol_version; remove one of them",
    ),
    ("out of memory", "libpq has no memory left"),
];

const UNKNOWN: &str = "libpq does not accept it; see \"Connection Strings\" in its documentation";

/// Returns what stands in the place of a keyword. It can be anything: the second half of a password
/// with a space in it.
fn unknown_keyword(message: &str) -> Option<&str> {
    const BEGINNINGS: [&str; 2] =
        ["invalid connection option \"", "invalid URI query parameter: \""];
    let rest = BEGINNINGS.iter().find_map(|beginning| message.strip_prefix(beginning))?;
    Some(rest.rsplit_once('"').map_or(rest, |(keyword, _)| keyword))
}

/// Keywords of libpq 16 to 18, which this libpq may not know.
const NEWER: &str = "gssdelegation max_protocol_version min_protocol_version oauth_client_id \
                     oauth_issuer require_auth scram_client_key scram_server_key sslcertmode \
                     sslkeylogfile sslnegotiation";

fn unknown_keyword_reason(keyword: &str) -> String {
    let written = keyword.trim().to_ascii_lowercase();
    if let Some(newer) = NEWER.split(' ').find(|newer| *newer == written) {
        return format!(
            "this libpq is too old for {newer}; remove the keyword, or update libpq (the feature \
             bundled builds libpq 18)"
        );
    }
    let of_libpq = libpq::keywords().into_keys();
    let known = of_libpq.chain(Keywords::ALL.map(str::to_owned));
    let nearest = known
        .map(|known| (distance(&written, &known), known))
        .min()
        .filter(|(distance, _)| *distance <= LARGEST_DISTANCE);
    match nearest {
        Some((_, known)) => {
            format!("it has a keyword that libpq does not know; did you mean {known}?")
        }
        None => {
            "it has a keyword that libpq does not know; check the keywords, and percent-encode \
                 user and password if it is a URI"
                .into()
        }
    }
}

const LARGEST_DISTANCE: usize = 2;

/// Returns how many characters to insert, delete or replace to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // Longer texts are too far from any keyword, and cost quadratic time.
    if a.len() > b.len() + LARGEST_DISTANCE {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Returns the keyword of `invalid KEYWORD value: "..."`, if libpq knows it.
fn value_of(message: &str) -> Option<String> {
    let (word, _) = message.strip_prefix("invalid ")?.split_once(" value: ")?;
    libpq::keywords().into_keys().find(|known| known == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        let cases =
            [("host", "host", 0), ("hostt", "host", 1), ("hsot", "host", 2), ("", "host", 4)];
        for (a, b, expected) in cases {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn suggests_a_keyword_and_shows_none_of_the_input() {
        let cases = [
            ("region", None),
            ("region-name", Some("region_name")),
            ("regoin_name", Some("region_name")),
            ("SSLMODE", Some("sslmode")),
            ("sslmodus", Some("sslmode")),
            ("iam_prt", Some("iam_port")),
            ("hunter2", None),
            ("hunter2\" is not \"host", None),
        ];
        for (keyword, expected) in cases {
            let message = format!("invalid connection option \"{keyword}\"\n");
            let shown = reason(&message, "");
            match expected {
                Some(known) => assert!(shown.ends_with(&format!("mean {known}?")), "{shown}"),
                None => assert!(shown.contains("check the keywords"), "{keyword}: {shown}"),
            }
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_value_is_not_shown() {
        let shown = reason("invalid sslmode value: \"hunter2\"\n", "");
        assert!(shown.starts_with("the value of sslmode is not one"), "{shown}");
        assert_eq!(reason("invalid hunter2 value: \"hunter2\"\n", ""), UNKNOWN);
        assert_eq!(reason("hunter2", ""), UNKNOWN);
    }
}
