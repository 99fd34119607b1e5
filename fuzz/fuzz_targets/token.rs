//! A token: it contains what was signed, and the stand-in admits it. The stand-in refuses it if one
//! bit is changed.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use diesel_rds_iam::fuzzing::is_admitted;
use diesel_rds_iam::{Credentials, Endpoint, presign};
use libfuzzer_sys::fuzz_target;

// `HOST|PORT|PLACE|SESSION TOKEN|USER`. The place is the position of the changed bit.
fuzz_target!(|input: &str| {
    let parts: Vec<&str> = input.splitn(5, '|').collect();
    let [host, port, place, session_token, user] = parts[..] else { return };
    let (Ok(port), Ok(place)) = (port.parse(), place.parse::<u16>()) else { return };
    let Ok(endpoint) = Endpoint::new(host, port, "eu-west-1") else { return };
    let session_token = (!session_token.is_empty()).then_some(session_token);
    let key_pair =
        Credentials::new("AKIDEXAMPLE", "secret", session_token.map(str::to_owned), None, "fuzz");
    let now = UNIX_EPOCH + Duration::from_secs(1_478_540_373);
    let Ok(token) = presign(&endpoint, user, &key_pair, now) else { return };
    check_parts(token.as_str(), &endpoint, user, session_token);
    let admits = |token: &str| is_admitted(token, user, &endpoint, &key_pair, now);
    assert!(admits(token.as_str()));
    assert!(!admits(&with_one_bit_changed(token.as_str(), place.into())));
});

fn check_parts(token: &str, endpoint: &Endpoint, user: &str, session_token: Option<&str>) {
    let (authority, query) = token.split_once("/?").expect("a host, and a query");
    assert!(query.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%=&".contains(&b)));
    let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let value =
        |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| &**value);
    if authority == endpoint.to_string() {
        assert!(value("Action") == Some("connect") && value("DBUser") == Some(user));
    } else {
        assert!(authority == endpoint.host() && authority.ends_with(".on.aws"));
        assert_eq!(
            value("Action"),
            Some(if user == "admin" { "DbConnectAdmin" } else { "DbConnect" })
        );
    }
    assert_eq!(value("X-Amz-Expires"), Some("900"));
    assert_eq!(value("X-Amz-Security-Token"), session_token);
    let (signature, signed) = pairs.split_last().expect("parameters");
    assert!(signature.0 == "X-Amz-Signature" && signed.is_sorted(), "as SigV4 sorts them");
}

/// Changes a bit of an ASCII text, which stays ASCII.
fn with_one_bit_changed(token: &str, place: usize) -> String {
    let mut bytes = token.as_bytes().to_vec();
    bytes[place / 7 % token.len()] ^= 1 << (place % 7);
    String::from_utf8(bytes).expect("still ASCII")
}
