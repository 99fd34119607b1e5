//! Checks of a connection string before anything is dialled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::libpq::Settings;
use super::{host_of_uri, invalid, is_uri};
use crate::error::Error;
use crate::token::{HostName, NOT_A_REGION, is_region};

pub(super) const NO_HOST: &str =
    "it names no host; set DATABASE_URL to postgres://USER@HOST:5432/DATABASE, or set PGHOST";

/// The longest name that PostgreSQL keeps, in bytes (NAMEDATALEN - 1).
pub(crate) const LONGEST_NAME: usize = 63;

/// Refuses a URI with a literal '@' or '/' in user or password: libpq would take a part of them as
/// the host or the database, dial that, and print it.
pub(super) fn check_at_signs(conninfo: &str) -> Result<(), Error> {
    let host = &conninfo[host_of_uri(conninfo)..];
    let before_query = host.split('?').next().unwrap_or_default();
    if is_uri(conninfo) && before_query.contains('@') {
        return invalid(
            "it has an @ in or after the host; percent-encode user and password (@ is %40, / is \
             %2F, : is %3A)",
        );
    }
    Ok(())
}

/// Refuses numbers that libpq refuses when it dials, because it then quotes them: a part of a
/// password that was not encoded can be among them.
pub(super) fn check_numbers(all: &Settings) -> Result<(), Error> {
    const NUMBERS: [&str; 6] = [
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    ];
    let value = |keyword| all.get(keyword).and_then(|setting| setting.value.as_deref());
    check_ports(value("port").unwrap_or_default())?;
    for keyword in NUMBERS {
        let text = value(keyword).unwrap_or_default().trim();
        if !text.is_empty() && text.parse::<i32>().is_err() {
            return invalid(format!("{keyword} is not a number; correct or remove it"));
        }
    }
    Ok(())
}

fn check_ports(ports: &str) -> Result<(), Error> {
    let is_port = |port: &str| port.is_empty() || port.trim().parse::<NonZeroU16>().is_ok();
    if ports.split(',').all(is_port) {
        return Ok(());
    }
    invalid("the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432")
}

/// Refuses a `region_name` that is not empty and not the code of a region.
pub(super) fn check_region(region: &str) -> Result<(), Error> {
    let region = region.trim();
    if region.is_empty() || is_region(region) { Ok(()) } else { invalid(NOT_A_REGION) }
}

/// Refuses settings with which a login with a token cannot succeed, or is not safe.
pub(super) fn check_iam(settings: &BTreeMap<String, String>) -> Result<(), Error> {
    let get = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
    check_user(get("user"))?;
    if let mode @ ("disable" | "allow" | "prefer") = get("sslmode") {
        return invalid(format!(
            "sslmode={mode} can send the token in clear text; set sslmode=verify-full, and \
             sslrootcert= to the RDS CA bundle"
        ));
    }
    if !allows_password(get("require_auth")) {
        return invalid(
            "require_auth does not allow \"password\", by which libpq sends a token; set \
             require_auth=password, or remove it",
        );
    }
    if get("channel_binding") == "require" {
        return invalid(
            "channel_binding=require needs SCRAM, and a token is not sent by SCRAM; remove it, \
             because sslmode=verify-full checks the server",
        );
    }
    if get("gssencmode") == "require" {
        return invalid(
            "gssencmode=require replaces TLS by Kerberos, and a token is sent over TLS only; \
             remove it",
        );
    }
    if !matches!(get("replication"), "" | "false" | "off" | "no" | "0") {
        return invalid("RDS has no replication connections by IAM; remove replication=");
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), Error> {
    match user.len() {
        0 => invalid("it names no user; set user= to a database user that has the role rds_iam"),
        1..=LONGEST_NAME => Ok(()),
        length => invalid(format!(
            "the user name has {length} bytes, and PostgreSQL keeps {LONGEST_NAME}; write the \
             role's name as pg_roles shows it"
        )),
    }
}

/// Whether a list of `require_auth` includes the method by which a token is sent: all methods, or
/// all but those after a '!'.
fn allows_password(require_auth: &str) -> bool {
    let methods: Vec<&str> =
        require_auth.split(',').map(str::trim).filter(|it| !it.is_empty()).collect();
    let is_negated = methods.iter().any(|method| method.starts_with('!'));
    match methods.as_slice() {
        [] => true,
        _ if is_negated => !methods.contains(&"!password"),
        _ => methods.contains(&"password"),
    }
}

/// Returns the name that a token is signed for. RDS has no endpoints that are addresses.
pub(crate) fn signed_host(host: &str) -> Result<HostName, Error> {
    if host.is_empty() {
        return invalid(NO_HOST);
    }
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return invalid(
            "the host is an IP address, and a token is signed for a name; set iam_host= to the \
             RDS endpoint",
        );
    }
    HostName::parse(host).map_err(|reason| Error::Conninfo(reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_auth_must_allow_what_a_token_is_sent_by() {
        for (list, expected) in [
            ("", true),
            ("password", true),
            ("scram-sha-256,password", true),
            ("!md5", true),
            ("!scram-sha-256,!md5", true),
            ("scram-sha-256", false),
            ("none", false),
            ("md5,scram-sha-256", false),
            ("!password", false),
            ("!md5,!password", false),
        ] {
            assert_eq!(allows_password(list), expected, "{list}");
        }
    }

    #[test]
    fn each_port_of_a_list_is_checked() {
        for (ports, expected) in [("", true), ("1,", true), ("1, 65535", true), ("1,0", false)] {
            assert_eq!(check_ports(ports).is_ok(), expected, "{ports}");
        }
    }

    #[test]
    fn what_never_works_with_a_token_is_refused() {
        let check = |keyword: &str, value: &str| {
            check_iam(&BTreeMap::from([
                ("user".to_owned(), "app".to_owned()),
                (keyword.to_owned(), value.to_owned()),
            ]))
        };
        let refused = [
            ("sslmode", "prefer"),
            ("require_auth", "scram-sha-256"),
            ("require_auth", "!password"),
            ("channel_binding", "require"),
            ("gssencmode", "require"),
            ("replication", "database"),
        ];
        for (keyword, value) in refused {
            let text = check(keyword, value).unwrap_err().to_string();
            assert!(text.contains(keyword), "{keyword}={value}: {text}");
        }
        let accepted = [
            ("sslmode", "require"),
            ("require_auth", "!md5"),
            ("channel_binding", "prefer"),
            ("gssencmode", "prefer"),
            ("replication", "off"),
            // Only for unix sockets: without effect.
            ("requirepeer", "postgres"),
            // A proxy in front of RDS can ask for a client certificate.
            ("sslcertmode", "require"),
        ];
        for (keyword, value) in accepted {
            assert!(check(keyword, value).is_ok(), "{keyword}={value}");
        }
    }
}
