//! A passfile: libpq finds the password of each host in it, with any characters in the password.
#![no_main]

use std::ffi::{CStr, CString};
use std::fs;
use std::ptr;
use std::sync::LazyLock;

use diesel_rds_iam::fuzzing::{host_name, passfile_line};
use libfuzzer_sys::fuzz_target;
use pq_sys::{PQconnectStartParams, PQfinish, PQpass};
use tempfile::NamedTempFile;

static FILE: LazyLock<NamedTempFile> = LazyLock::new(|| NamedTempFile::new().expect("a file"));

#[derive(PartialEq)]
struct Entry<'a> {
    host: &'a str,
    port: u16,
    password: &'a str,
}

/// An entry that a login can have. A token has no control characters, and a passfile cannot contain
/// them.
fn entry(line: &str) -> Option<Entry<'_>> {
    let parts: Vec<&str> = line.splitn(3, '|').collect();
    let [host, port, password] = parts[..] else { return None };
    let (port, name) = (port.parse().ok()?, host_name(host)?);
    let fits = port > 0 && name.0 == host && !password.contains(char::is_control);
    fits.then_some(Entry { host, port, password })
}

// Lines `HOST|PORT|PASSWORD`. The first line for a host and port counts.
fuzz_target!(|input: &str| {
    let entries: Vec<Entry> = input.lines().filter_map(entry).collect();
    let line = |entry: &Entry| passfile_line(entry.host, entry.port, entry.password);
    fs::write(&*FILE, entries.iter().map(line).collect::<String>()).expect("written");
    for Entry { host, port, .. } in &entries {
        let first = entries
            .iter()
            .find(|other| (&other.host, other.port) == (host, *port))
            .expect("itself");
        assert_eq!(found_by_libpq(host, *port), first.password);
    }
});

/// libpq searches the password, then refuses our `gssencmode`, and does not dial.
fn found_by_libpq(host: &str, port: u16) -> String {
    let text = |text: &str| CString::new(text).expect("no NUL");
    let (host, port, file) =
        (text(host), text(&port.to_string()), text(FILE.path().to_str().expect("Unicode")));
    let keywords = [c"host", c"port", c"user", c"passfile", c"gssencmode"].map(CStr::as_ptr);
    let values = [&host, &port, c"app", &file, c"none of libpq's"].map(CStr::as_ptr);
    let [keywords, values] = [keywords, values].map(|list| [&list[..], &[ptr::null()]].concat());
    // SAFETY: both lists end in NULL, hold strings that end in NUL, and live through the call. The
    // password belongs to libpq until PQfinish, and is copied before that.
    unsafe {
        let conn = PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0);
        let password = CStr::from_ptr(PQpass(conn)).to_str().expect("as it was written").to_owned();
        PQfinish(conn);
        password
    }
}
