//! [`Keywords`]: our own, taken out of a connection string before libpq gets it.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::time::Duration;

use super::libpq;
use super::redact::redacted;
use super::topology::Topology;
use super::{c_string, host_of_uri, invalid, is_uri};
use crate::error::Error;

/// Our own keywords. libpq does not know them and never gets them.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Keywords {
    pub(crate) rds_iam_auth: Option<bool>,
    pub(crate) region_name: Option<String>,
    pub(crate) iam_host: Option<String>,
    pub(crate) iam_port: Option<u16>,
    /// The inner `None` is no maximum.
    pub(crate) max_lifetime: Option<Option<Duration>>,
    pub(crate) validate_after: Option<Duration>,
    pub(crate) leak_detection_threshold: Option<Duration>,
    pub(crate) topology: Option<Topology>,
    pub(crate) max_replica_lag: Option<Duration>,
    pub(crate) pool: PoolKeywords,
    /// libpq's own keyword, if this libpq is too old to know it.
    pub(crate) load_balance_hosts: Option<String>,
}

/// What r2d2's builder has setters for.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(crate) struct PoolKeywords {
    pub(crate) max_size: Option<u32>,
    pub(crate) min_idle: Option<u32>,
    pub(crate) connection_timeout: Option<Duration>,
}

/// As for libpq's `connect_timeout`.
const SECONDS: RangeInclusive<u32> = 1..=i32::MAX as u32;
/// The largest `max_connections` of PostgreSQL.
const LARGEST_POOL: u32 = 262_143;
/// r2d2's default.
const DEFAULT_MAX_SIZE: u32 = 10;

/// Whether this libpq knows `load_balance_hosts` (16 does).
static BALANCES: LazyLock<bool> =
    LazyLock::new(|| libpq::parse(c"load_balance_hosts=random").is_ok());

impl Keywords {
    pub(crate) const ALL: [&'static str; 13] = [
        "rds_iam_auth",
        "region_name",
        "iam_host",
        "iam_port",
        "max_lifetime",
        "validate_after",
        "leak_detection_threshold",
        "topology",
        "max_replica_lag",
        "pool_max_size",
        "pool_min_idle",
        "pool_connection_timeout",
        "load_balance_hosts",
    ];

    /// Takes our keywords out of `text`. Returns the rest, and the keywords. libpq unquotes the
    /// values.
    pub(super) fn take_from(text: &str) -> Result<(String, Keywords), Error> {
        let (carrier, (rest, pairs)) = match is_uri(text) {
            true => ("postgresql:///?application_name=", cut_uri(text)),
            false => ("application_name=", cut_key_value(text)),
        };
        let mut keywords = Keywords::default();
        for (keyword, raw) in pairs {
            let carried = c_string(&format!("{carrier}{raw}"))?;
            let parsed = libpq::parse(&carried).map_err(|complaint| redacted(&complaint, text))?;
            let value = parsed.get("application_name").map(String::as_str).unwrap_or_default();
            keywords.set(keyword, value)?;
        }
        let PoolKeywords { max_size, min_idle, .. } = keywords.pool;
        if min_idle > Some(max_size.unwrap_or(DEFAULT_MAX_SIZE)) {
            return invalid(format!(
                "pool_min_idle is larger than pool_max_size, which is {DEFAULT_MAX_SIZE} by default"
            ));
        }
        Ok((rest, keywords))
    }

    fn find(keyword: &str) -> Option<&'static str> {
        let own = Self::ALL.into_iter().find(|own| *own == keyword)?;
        (own != "load_balance_hosts" || !*BALANCES).then_some(own)
    }

    /// Returns these keywords, completed by `others`. White space at the end of a value is removed:
    /// values often come from a file or a secret store.
    pub(crate) fn or(self, others: Keywords) -> Keywords {
        let trimmed = |value: Option<String>| {
            Some(value?.trim().to_owned()).filter(|value| !value.is_empty())
        };
        Keywords {
            rds_iam_auth: self.rds_iam_auth.or(others.rds_iam_auth),
            region_name: trimmed(self.region_name.or(others.region_name)),
            iam_host: trimmed(self.iam_host.or(others.iam_host)),
            iam_port: self.iam_port.or(others.iam_port),
            max_lifetime: self.max_lifetime.or(others.max_lifetime),
            validate_after: self.validate_after.or(others.validate_after),
            leak_detection_threshold: self
                .leak_detection_threshold
                .or(others.leak_detection_threshold),
            topology: self.topology.or(others.topology),
            max_replica_lag: self.max_replica_lag.or(others.max_replica_lag),
            // The builder has no setters for these.
            pool: others.pool,
            load_balance_hosts: self.load_balance_hosts.or(others.load_balance_hosts),
        }
    }

    fn set(&mut self, keyword: &str, value: &str) -> Result<(), Error> {
        let some = (!value.is_empty()).then(|| value.to_owned());
        match keyword {
            "region_name" => self.region_name = some,
            "iam_host" => self.iam_host = some,
            "load_balance_hosts" => self.load_balance_hosts = some,
            "rds_iam_auth" => match value.trim().to_ascii_lowercase().parse() {
                Ok(on) => self.rds_iam_auth = Some(on),
                Err(_) => return invalid("rds_iam_auth must be \"true\" or \"false\""),
            },
            "iam_port" => match value.trim().parse::<NonZeroU16>() {
                Ok(port) => self.iam_port = Some(port.get()),
                Err(_) if value.is_empty() => self.iam_port = None,
                Err(_) => {
                    return invalid(
                        "iam_port is not a number from 1 to 65535; set it to the port of the RDS \
                         endpoint",
                    );
                }
            },
            "max_lifetime" => self.max_lifetime = seconds(keyword, value, SECONDS)?.map(Some),
            "validate_after" => {
                self.validate_after = seconds(keyword, value, 0..=*SECONDS.end())?;
            }
            "leak_detection_threshold" => {
                self.leak_detection_threshold = seconds(keyword, value, SECONDS)?;
            }
            "topology" => match Topology::parse(value.trim()) {
                Some(topology) => self.topology = Some(topology),
                None if value.is_empty() => self.topology = None,
                None => {
                    return invalid("topology must be \"aurora\", \"multi-az\" or \"off\"");
                }
            },
            "max_replica_lag" => {
                let unit = " of milliseconds, without a unit,";
                let lag = number(keyword, value, unit, SECONDS)?;
                self.max_replica_lag = lag.map(|lag| Duration::from_millis(lag.into()));
            }
            "pool_max_size" => self.pool.max_size = number(keyword, value, "", 1..=LARGEST_POOL)?,
            "pool_min_idle" => self.pool.min_idle = number(keyword, value, "", 0..=LARGEST_POOL)?,
            _ => self.pool.connection_timeout = seconds(keyword, value, SECONDS)?,
        }
        Ok(())
    }
}

fn seconds(
    keyword: &str,
    value: &str,
    allowed: RangeInclusive<u32>,
) -> Result<Option<Duration>, Error> {
    let seconds = number(keyword, value, " of seconds, without a unit,", allowed)?;
    Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
}

/// Returns `None` for an empty value, as if the keyword were not there.
fn number(
    keyword: &str,
    value: &str,
    unit: &str,
    allowed: RangeInclusive<u32>,
) -> Result<Option<u32>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.trim().parse() {
        Ok(number) if allowed.contains(&number) => Ok(Some(number)),
        _ => {
            let (least, most) = allowed.into_inner();
            invalid(format!("{keyword} must be a whole number{unit} from {least} to {most}"))
        }
    }
}

/// Returns the URI without our parameters, and our parameters with their raw values.
fn cut_uri(text: &str) -> (String, Vec<(&str, &str)>) {
    let host = host_of_uri(text);
    let Some(query) = text[host..].find('?').map(|i| host + i) else {
        return (text.to_owned(), Vec::new());
    };
    let is_own = |pair: &&str| {
        pair.split_once('=').is_some_and(|(keyword, _)| Keywords::find(keyword).is_some())
    };
    let (own, others): (Vec<&str>, Vec<&str>) = text[query + 1..].split('&').partition(is_own);
    let separator = if others.is_empty() { "" } else { "?" };
    let rest = format!("{}{separator}{}", &text[..query], others.join("&"));
    (rest, own.into_iter().filter_map(|pair| pair.split_once('=')).collect())
}

/// Returns the key/value string without our keywords, and these with their raw values.
fn cut_key_value(text: &str) -> (String, Vec<(&str, &str)>) {
    let (mut rest, mut own) = (String::new(), Vec::new());
    let mut input = text;
    while let Some((keyword, after)) = input.split_once('=') {
        let value_start = after.len() - after.trim_start_matches(is_space).len();
        let value_end = value_start + value_length(&after[value_start..]);
        let setting_length = input.len() - after.len() + value_end;
        if let Some(keyword) = Keywords::find(keyword.trim_matches(is_space)) {
            own.push((keyword, &after[value_start..value_end]));
            // The next keyword may follow a closing quote without a space.
            rest.push(' ');
        } else {
            rest.push_str(&input[..setting_length]);
        }
        input = &input[setting_length..];
    }
    rest.push_str(input);
    (rest, own)
}

/// Returns the length of the value at the start of `text`, with its quotes, by libpq's rules.
fn value_length(text: &str) -> usize {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return at + 1,
            _ if !quoted && is_space(c) => return at,
            _ => {}
        }
    }
    text.len()
}

/// isspace() of the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (String, Keywords) {
        Keywords::take_from(text).unwrap()
    }

    #[test]
    fn are_cut_out_of_both_forms() {
        let uri = taken("postgres://h/d?region_name=eu-west-1&iam_port=1&sslmode=require");
        let pairs = taken("region_name='eu-west-1' iam_port = 1 host=h");
        assert_eq!(uri.0, "postgres://h/d?sslmode=require");
        assert_eq!(pairs.0, "   host=h");
        assert_eq!(uri.1, pairs.1);
        assert_eq!((uri.1.region_name.as_deref(), uri.1.iam_port), (Some("eu-west-1"), Some(1)));
    }

    #[test]
    fn values_are_unquoted_as_libpq_does() {
        let cases = [
            (r"iam_host=a\ b", "a\\ b"),
            (r"iam_host=a\\b", "a\\b"),
            (r"iam_host='it\'s'", "it's"),
            ("postgres://h?iam_host=a%20b%26c", "a b&c"),
        ];
        for (text, expected) in cases {
            let expected = expected.replace("a\\ b", "a b");
            assert_eq!(taken(text).1.iam_host.as_deref(), Some(expected.as_str()), "{text}");
        }
    }

    #[test]
    fn a_question_mark_in_the_password_does_not_begin_the_parameters() {
        let (rest, keywords) = taken("postgres://u:p?iam_host=x@h/d?iam_host=y");
        assert_eq!(rest, "postgres://u:p?iam_host=x@h/d");
        assert_eq!(keywords.iam_host.as_deref(), Some("y"));
    }

    #[test]
    fn the_builder_wins_and_white_space_goes() {
        let builder = Keywords { region_name: Some("eu-west-1\n".into()), ..Keywords::default() };
        let string = Keywords {
            region_name: Some("us-east-1".into()),
            iam_host: Some(" h\r\n".into()),
            ..Keywords::default()
        };
        let merged = builder.or(string);
        assert_eq!(merged.region_name.as_deref(), Some("eu-west-1"));
        assert_eq!(merged.iam_host.as_deref(), Some("h"));
    }

    #[test]
    fn numbers_are_accepted_up_to_their_limits() {
        const LIMITS: [(&str, u32, u32); 7] = [
            ("max_lifetime", 1, i32::MAX as u32),
            ("validate_after", 0, i32::MAX as u32),
            ("leak_detection_threshold", 1, i32::MAX as u32),
            ("max_replica_lag", 1, i32::MAX as u32),
            ("pool_connection_timeout", 1, i32::MAX as u32),
            ("pool_max_size", 1, LARGEST_POOL),
            ("pool_min_idle", 0, DEFAULT_MAX_SIZE),
        ];
        for (keyword, least, most) in LIMITS {
            for value in [least, most] {
                let keywords = taken(&format!("{keyword}='{value} '")).1;
                assert_ne!(keywords, Keywords::default(), "{keyword}={value}");
            }
            for value in [i64::from(least) - 1, i64::from(most) + 1] {
                let error = Keywords::take_from(&format!("{keyword}={value}")).unwrap_err();
                assert!(error.to_string().contains(keyword), "{error}");
            }
            for value in ["14min", "30s", "1.5", "none", "0x10"] {
                let error = Keywords::take_from(&format!("{keyword}={value}")).unwrap_err();
                assert!(error.to_string().contains("must be a whole number"), "{error}");
            }
            assert_eq!(taken(&format!("{keyword}=''")).1, Keywords::default());
        }
        let minute = Duration::from_secs(60);
        let keywords = taken("postgres:///?max_lifetime=60&pool_min_idle=20&pool_max_size=20").1;
        assert_eq!(keywords.max_lifetime, Some(Some(minute)));
        assert_eq!((keywords.pool.min_idle, keywords.pool.max_size), (Some(20), Some(20)));
        Keywords::take_from("pool_min_idle=3 pool_max_size=2").unwrap_err();
        let of_builder = Keywords { max_lifetime: Some(None), ..Keywords::default() };
        assert_eq!(of_builder.or(keywords).max_lifetime, Some(None));
    }

    #[test]
    fn bad_values_are_refused() {
        for text in
            ["rds_iam_auth=yes", "topology=on", "iam_port=0", "iam_port=x", "iam_port=65536"]
        {
            let error = Keywords::take_from(text).unwrap_err().to_string();
            assert!(error.contains(text.split('=').next().unwrap()), "{error}");
        }
        assert_eq!(taken("rds_iam_auth='FALSE '").1.rds_iam_auth, Some(false));
    }
}
