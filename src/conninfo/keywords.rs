//! The keywords that are ours, cut out of a connection string before libpq sees it.

use std::sync::LazyLock;

use super::redact::safe;
use super::{c_string, host_of_uri, invalid, is_uri};
use crate::conninfo::libpq::{self, Complaint};
use crate::error::Error;

/// The keywords that are ours. libpq does not know them and never gets them.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct OwnKeys {
    pub(crate) rds_iam_auth: Option<bool>,
    pub(crate) region_name: Option<String>,
    pub(crate) iam_host: Option<String>,
    pub(crate) iam_port: Option<u16>,
    /// libpq's own, where this one is too old to know it.
    pub(crate) load_balance_hosts: Option<String>,
}

/// Whether this libpq knows `load_balance_hosts` (16 does).
static BALANCES: LazyLock<bool> =
    LazyLock::new(|| libpq::parse(c"load_balance_hosts=random").is_ok());

/// Cuts our own keywords out of a connection string, which libpq would refuse. Values are unquoted
/// by libpq.
pub(super) fn take_own_keys(text: &str) -> Result<(String, OwnKeys), Error> {
    let (rest, pairs) = if is_uri(text) { cut_uri(text) } else { cut_key_value(text) };
    let mut own = OwnKeys::default();
    for (keyword, raw) in pairs {
        let carrier =
            if is_uri(text) { "postgresql:///?application_name=" } else { "application_name=" };
        let carried = c_string(&format!("{carrier}{raw}"))?;
        let about_ours = |Complaint(message)| {
            safe(&Complaint(message.replace("application_name", keyword)), text)
        };
        let parsed = libpq::parse(&carried).map_err(about_ours)?;
        let value = parsed.get("application_name").map(String::as_str).unwrap_or_default();
        own.set(keyword, value)?;
    }
    Ok((rest, own))
}

impl OwnKeys {
    const ALL: [&'static str; 5] =
        ["rds_iam_auth", "region_name", "iam_host", "iam_port", "load_balance_hosts"];

    fn find(keyword: &str) -> Option<&'static str> {
        Self::ALL
            .into_iter()
            .find(|own| *own == keyword)
            .filter(|own| *own != "load_balance_hosts" || !*BALANCES)
    }

    /// These keys, and the others where these say nothing.
    pub(crate) fn or(self, others: OwnKeys) -> OwnKeys {
        OwnKeys {
            rds_iam_auth: self.rds_iam_auth.or(others.rds_iam_auth),
            region_name: self.region_name.or(others.region_name),
            iam_host: self.iam_host.or(others.iam_host),
            iam_port: self.iam_port.or(others.iam_port),
            load_balance_hosts: self.load_balance_hosts.or(others.load_balance_hosts),
        }
    }

    fn set(&mut self, keyword: &str, value: &str) -> Result<(), Error> {
        let some = (!value.is_empty()).then(|| value.to_owned());
        match keyword {
            "rds_iam_auth" => self.rds_iam_auth = Some(parse_bool(value)?),
            "region_name" => self.region_name = some,
            "iam_host" => self.iam_host = some,
            "load_balance_hosts" => self.load_balance_hosts = some,
            _ => self.iam_port = some.map(|port| parse_port(&port)).transpose()?,
        }
        Ok(())
    }
}

fn parse_bool(value: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => invalid(
            "rds_iam_auth is neither true nor false; say rds_iam_auth=true or rds_iam_auth=false",
        ),
    }
}

fn parse_port(value: &str) -> Result<u16, Error> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => invalid(
            "iam_port is not a number from 1 to 65535; give the port of the real endpoint, as 5432",
        ),
    }
}

/// The URI without our parameters, and those with their raw values.
fn cut_uri(text: &str) -> (String, Vec<(&str, &str)>) {
    let host = host_of_uri(text);
    let Some(query) = text[host..].find('?').map(|i| host + i) else {
        return (text.to_owned(), Vec::new());
    };
    let is_own = |pair: &&str| {
        pair.split_once('=').is_some_and(|(keyword, _)| OwnKeys::find(keyword).is_some())
    };
    let (own, others): (Vec<&str>, Vec<&str>) = text[query + 1..].split('&').partition(is_own);
    let separator = if others.is_empty() { "" } else { "?" };
    let rest = format!("{}{separator}{}", &text[..query], others.join("&"));
    (rest, own.into_iter().filter_map(|pair| pair.split_once('=')).collect())
}

/// The key/value string without our settings, and those with their raw values.
fn cut_key_value(text: &str) -> (String, Vec<(&str, &str)>) {
    let (mut rest, mut own) = (String::new(), Vec::new());
    let mut input = text;
    while let Some((keyword, after)) = input.split_once('=') {
        let value_start = after.len() - after.trim_start_matches(is_space).len();
        let value_end = value_start + value_length(&after[value_start..]);
        let setting_length = input.len() - after.len() + value_end;
        if let Some(keyword) = OwnKeys::find(keyword.trim_matches(is_space)) {
            own.push((keyword, &after[value_start..value_end]));
            // After a closing quote the next keyword needs no space, which its new neighbours may.
            rest.push(' ');
        } else {
            rest.push_str(&input[..setting_length]);
        }
        input = &input[setting_length..];
    }
    rest.push_str(input);
    (rest, own)
}

/// How long the value at the start of `text` is, quotes included, by libpq's rules.
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
