//! A host name: one that is taken is in the form that tokens are signed for, and its region is in
//! it.
#![no_main]

use diesel_rds_iam::{Endpoint, HostKind, HostName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|host: &str| {
    let Ok(name) = HostName::parse(host) else { return };
    let shown = name.as_str();
    assert!(
        shown.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    );
    assert!(shown.len() <= 253 && shown.split('.').all(|label| !label.is_empty()));
    assert!(host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(shown));
    for same in [shown.to_owned(), shown.to_uppercase(), format!("{shown}.")] {
        assert_eq!(HostName::parse(&same).as_ref().ok(), Some(&name));
    }
    if let Some(region) = name.region() {
        assert!(shown.split('.').any(|label| label == region));
        let endpoint =
            Endpoint::new(host, 5432, region).expect("a region that a name tells is one");
        assert_eq!(endpoint.to_string(), format!("{shown}:5432"));
    }
    // Only these can be without: one moves, the other is nobody's that we know.
    assert!(
        name.region().is_some() || [HostKind::GlobalWriter, HostKind::Other].contains(&name.kind())
    );
});
