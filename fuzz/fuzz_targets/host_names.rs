//! A host name that is accepted is in the form that tokens are signed for, and contains its region.
#![no_main]

use diesel_rds_iam::Endpoint;
use diesel_rds_iam::fuzzing::host_name;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|host: &str| {
    let Some((shown, region, may_lack_region)) = host_name(host) else { return };
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    assert!(shown.bytes().all(is_plain));
    assert!(shown.len() <= 253 && shown.split('.').all(|label| !label.is_empty()));
    assert!(host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case(&shown));
    for same in [shown.clone(), shown.to_uppercase(), format!("{shown}.")] {
        let expected = Some((shown.clone(), region.clone(), may_lack_region));
        assert_eq!(host_name(&same), expected);
    }
    if let Some(region) = &region {
        assert!(shown.split('.').any(|label| label == region));
        let endpoint = Endpoint::new(host, 5432, region).expect(
            "a host name carries a valid \
            region",
        );
        assert_eq!(endpoint.to_string(), format!("{shown}:5432"));
    }
    assert!(region.is_some() || may_lack_region);
});
