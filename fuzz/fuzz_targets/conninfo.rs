//! A connection string: libpq gets all its settings, and none of our keywords.
#![no_main]

use diesel_rds_iam::fuzzing::{OUR_OWN, read_by_libpq, with_token, without_iam};
use libfuzzer_sys::fuzz_target;

/// Keywords that are read before a token is signed, or have no effect for a login with a token.
const NOT_HANDED_ON: &[&str] =
    &["load_balance_hosts", "passfile", "password", "service", "servicefile"];

const TOKEN: &str = r"db.example.com:5432/?A='b'&C=\%2F";

fuzz_target!(|conninfo: &str| {
    let plain = without_iam(conninfo);
    if let Some(plain) = &plain {
        // libpq refuses unknown keywords, so a string that it parses has none of ours.
        let read = read_by_libpq(plain).expect("libpq reads what it gets");
        // White space at the ends is removed, because secret stores add it.
        let is_blank = |c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}';
        let is_trimmed = conninfo.trim_matches(is_blank) == conninfo;
        if is_trimmed && !OUR_OWN.iter().any(|keyword| conninfo.contains(keyword)) {
            assert_eq!(read_by_libpq(conninfo), Some(read));
        }
    }
    let Some(rendered) = with_token(conninfo, TOKEN) else { return };
    let read = read_by_libpq(&rendered).expect("libpq reads what we render");
    assert_eq!(read["password"], TOKEN);
    assert!(!["disable", "allow", "prefer"].contains(&read["sslmode"].as_str()));
    let said = plain.and_then(|plain| read_by_libpq(&plain)).unwrap_or_default();
    for (keyword, value) in
        said.iter().filter(|(keyword, _)| !NOT_HANDED_ON.contains(&keyword.as_str()))
    {
        // An empty value can mean libpq's default, or ours.
        assert!(value.is_empty() || read.get(keyword) == Some(value), "{keyword}");
    }
});
