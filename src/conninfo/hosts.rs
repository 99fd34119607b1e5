//! The hosts that a connection string names: one, or libpq's lists of several.

use super::checks::NO_HOST;
use super::invalid;
use crate::error::Error;

/// One host to dial.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    /// Empty if only the address is given.
    pub(crate) name: String,
    /// The address to dial instead of resolving the name.
    pub(crate) hostaddr: Option<String>,
    pub(crate) port: u16,
}

/// libpq's port for an empty item of a list.
const DEFAULT_PORT: u16 = 5432;

/// Combines libpq's lists to one item for each host ("Specifying Multiple Hosts"). The ports are
/// checked before.
pub(super) fn hosts(names: &str, addresses: &str, ports: &str) -> Result<Vec<Host>, Error> {
    let count = if addresses.is_empty() { names } else { addresses }.split(',').count();
    let names = one_for_each("host", names, count)?;
    let addresses = one_for_each("hostaddr", addresses, count)?;
    let ports = one_or_one_for_each("port", ports, count)?;
    let hosts = names.into_iter().zip(addresses).zip(ports).map(|((name, address), port)| Host {
        name: name.to_owned(),
        hostaddr: (!address.is_empty()).then(|| address.to_owned()),
        port: port.trim().parse().unwrap_or(DEFAULT_PORT),
    });
    hosts.map(|host| check_host(host, count > 1)).collect()
}

/// Returns an item for each host, of a list that has one for all hosts or one for each.
pub(crate) fn one_or_one_for_each<'a>(
    keyword: &str,
    list: &'a str,
    count: usize,
) -> Result<Vec<&'a str>, Error> {
    if list.contains(',') { one_for_each(keyword, list, count) } else { Ok(vec![list; count]) }
}

fn one_for_each<'a>(keyword: &str, list: &'a str, count: usize) -> Result<Vec<&'a str>, Error> {
    let items: Vec<&str> =
        if list.is_empty() { vec![""; count] } else { list.split(',').collect() };
    if items.len() == count {
        return Ok(items);
    }
    invalid(format!(
        "{keyword} has {} values for {count} hosts; give one value for each host",
        items.len()
    ))
}

const EMPTY_ITEM: &str = "its list of hosts has an empty item; name a host, or remove the comma";

fn check_host(host: Host, is_list: bool) -> Result<Host, Error> {
    match host.name.as_str() {
        // iam_host can have the name to sign for and to check.
        "" if host.hostaddr.is_some() => Ok(host),
        "" => invalid(if is_list { EMPTY_ITEM } else { NO_HOST }),
        name if name.starts_with(['/', '@']) => invalid(
            "the host is a unix socket, and IAM works over TCP only; name the RDS endpoint, or set \
             rds_iam_auth=false",
        ),
        _ => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &str, addresses: &str, ports: &str) -> String {
        match hosts(names, addresses, ports) {
            Ok(hosts) => {
                let show = |host: &Host| {
                    format!(
                        "{}[{}]:{}",
                        host.name,
                        host.hostaddr.as_deref().unwrap_or_default(),
                        host.port
                    )
                };
                hosts.iter().map(show).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn lists_are_read_as_libpq_reads_them() {
        let cases = [
            ("a", "", "1", "a[]:1"),
            ("a,b", "", "1", "a[]:1 b[]:1"),
            ("a,b", "", "1,2", "a[]:1 b[]:2"),
            ("a,b", "", ",2", "a[]:5432 b[]:2"),
            ("a,b", "", "", "a[]:5432 b[]:5432"),
            ("a,b", "10.0.0.1,", "1", "a[10.0.0.1]:1 b[]:1"),
            ("", "10.0.0.1", "1", "[10.0.0.1]:1"),
            ("a,b", "10.0.0.1", "1", "host has 2 values for 1 hosts"),
            ("a,b", "", "1,2,3", "port has 3 values for 2 hosts"),
            ("a", "", "1,2", "port has 2 values for 1 hosts"),
            ("a,,b", "", "1", "has an empty item"),
            ("", "", "1", "names no host"),
            ("a,/tmp", "", "1", "unix socket"),
        ];
        for (names, addresses, ports, expected) in cases {
            let shown = shown(names, addresses, ports);
            assert!(shown.contains(expected), "{names} {addresses} {ports}: {shown}");
        }
    }
}
