//! [`HostName`]: what an AWS host name says about the endpoint.

/// A host name, and what AWS's naming scheme says about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostName {
    name: String,
    kind: HostKind,
    region: Option<String>,
}

/// The kinds of endpoint that differ in AWS's host names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum HostKind {
    /// One DB instance.
    Instance,
    /// The writer of a cluster (`cluster-`).
    Writer,
    /// The readers of a cluster (`cluster-ro-`).
    Reader,
    /// A custom endpoint of a cluster (`cluster-custom-`).
    Custom,
    /// The writer of an Aurora global database (`global-`); its region changes with a switchover.
    GlobalWriter,
    /// An Aurora Limitless DB shard group (`shardgrp-`).
    Limitless,
    /// An RDS Proxy (`proxy-`).
    Proxy,
    /// A further endpoint of an RDS Proxy (`NAME.endpoint.proxy-`).
    ProxyEndpoint,
    /// An Aurora DSQL cluster (`CLUSTER.dsql.REGION.on.aws`, or with PrivateLink
    /// `CLUSTER.dsql-ENDPOINT.REGION.on.aws`).
    Dsql,
    /// Not a name that RDS gives: a CNAME, a load balancer.
    Other,
}

/// The DNS suffixes of AWS's partitions.
const SUFFIXES: &[&str] = &[
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".amazonaws.au",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".csp.hci.ic.gov",
    ".cloud.adc-e.uk",
];

impl HostName {
    /// Reads a host name, without regard to case and with or without one trailing dot.
    ///
    /// # Errors
    /// The reason, if `host` cannot be a host name: it is empty, longer than 253 bytes, or has
    /// other characters than ASCII letters, digits, `-`, `_` and `.`.
    pub(crate) fn parse(host: &str) -> Result<HostName, &'static str> {
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let fits = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        if name.len() > 253 || !name.split('.').all(fits) {
            return Err("the host is not a valid host name; write the RDS endpoint as the AWS \
                        console shows it");
        }
        let (kind, region) = classify(&name);
        Ok(HostName { kind, region: region.map(str::to_owned), name })
    }

    /// The name, in lower case and without a trailing dot.
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }

    /// The kind of endpoint.
    pub(crate) fn kind(&self) -> HostKind {
        self.kind
    }

    /// The region, if it is in the name.
    pub(crate) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Returns what follows the first label in the names of the cluster's nodes: `abc123`, region
    /// and suffix. Returns `None` if the name is not that of a cluster or an instance.
    pub(crate) fn node_domain(&self) -> Option<&str> {
        let domain = self.name.split_once('.')?.1;
        match self.kind {
            HostKind::Instance => Some(domain),
            HostKind::Writer => domain.strip_prefix("cluster-"),
            HostKind::Reader => domain.strip_prefix("cluster-ro-"),
            HostKind::Custom => domain.strip_prefix("cluster-custom-"),
            _ => None,
        }
    }
}

/// Reads the labels before a partition's suffix: `NAME.ID.REGION.rds`, or `NAME.ID.rds.REGION` in
/// China and the isolated partitions.
fn classify(name: &str) -> (HostKind, Option<&str>) {
    if let Some(labels) = name.strip_suffix(".on.aws") {
        let labels: Vec<&str> = labels.split('.').collect();
        return match labels.as_slice() {
            // dsql-fips, and with PrivateLink the id of the endpoint's service, as dsql-fnh4.
            [_, service, region]
                if (*service == "dsql" || service.starts_with("dsql-")) && is_region(region) =>
            {
                (HostKind::Dsql, Some(region))
            }
            _ => (HostKind::Other, None),
        };
    }
    let Some(labels) = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)) else {
        return (HostKind::Other, None);
    };
    let labels: Vec<&str> = labels.split('.').collect();
    match labels.as_slice() {
        [_, id, "global", "rds"] if id.starts_with("global-") => (HostKind::GlobalWriter, None),
        [rest @ .., region, "rds"] | [rest @ .., "rds", region] if is_region(region) => {
            (kind(rest), Some(region))
        }
        [.., region, _] | [.., _, region] if is_region(region) => (HostKind::Other, Some(region)),
        _ => (HostKind::Other, None),
    }
}

/// Returns the kind by the labels before region and service.
fn kind(labels: &[&str]) -> HostKind {
    match *labels {
        [_, "endpoint", id] if id.starts_with("proxy-") => HostKind::ProxyEndpoint,
        [_, id] if id.starts_with("cluster-custom-") => HostKind::Custom,
        [_, id] if id.starts_with("cluster-ro-") => HostKind::Reader,
        [_, id] if id.starts_with("cluster-") => HostKind::Writer,
        [_, id] if id.starts_with("shardgrp-") => HostKind::Limitless,
        [_, id] if id.starts_with("proxy-") => HostKind::Proxy,
        [_, _] => HostKind::Instance,
        _ => HostKind::Other,
    }
}

/// Whether `text` has the form of a region's code: `eu-west-1`, `us-gov-east-1`, `eusc-de-east-1`.
pub(crate) fn is_region(text: &str) -> bool {
    let labels: Vec<&str> = text.split('-').collect();
    let [area, middle @ .., number] = labels.as_slice() else {
        return false;
    };
    let letters = |label: &&str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase());
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (2..=4).contains(&area.len())
        && letters(area)
        && !middle.is_empty()
        && middle.iter().all(letters)
        && digits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the column `kind` in the table of AWS's own drivers.
    fn kind_of(name: &str) -> HostKind {
        match name {
            "instance" => HostKind::Instance,
            "writer" => HostKind::Writer,
            "reader" => HostKind::Reader,
            "custom" => HostKind::Custom,
            "global_writer" => HostKind::GlobalWriter,
            "limitless" => HostKind::Limitless,
            "proxy" => HostKind::Proxy,
            "proxy_endpoint" => HostKind::ProxyEndpoint,
            "other" | "elb(other)" => HostKind::Other,
            unknown => panic!("no such kind: {unknown}"),
        }
    }

    #[test]
    fn classifies_as_awss_own_drivers_do() {
        let table = include_str!("../../tests/data/rds_hosts.tsv");
        let mut rows = 0;
        for row in table.lines().skip(1) {
            let columns: Vec<&str> = row.split('\t').collect();
            let [host, kind, region] = columns.as_slice() else {
                panic!("not three columns: {row}");
            };
            for host in
                [host.to_string(), host.to_uppercase(), format!("{}.", host.trim_end_matches('.'))]
            {
                let name = HostName::parse(&host).unwrap();
                assert_eq!(name.kind(), kind_of(kind), "{host}");
                assert_eq!(name.region().unwrap_or_default(), *region, "{host}");
            }
            rows += 1;
        }
        assert!(rows > 50, "only {rows} rows");
    }

    #[test]
    fn nodes_have_the_domain_of_their_cluster() {
        let domain = Some("abc123.eu-west-1.rds.amazonaws.com");
        let cases = [
            ("c.cluster-abc123.eu-west-1.rds.amazonaws.com", domain),
            ("c.cluster-ro-abc123.eu-west-1.rds.amazonaws.com", domain),
            ("c.cluster-custom-abc123.eu-west-1.rds.amazonaws.com.", domain),
            ("NODE.abc123.eu-west-1.rds.amazonaws.com", domain),
            ("c.cluster-abc123.rds.cn-north-1.amazonaws.com.cn", {
                Some("abc123.rds.cn-north-1.amazonaws.com.cn")
            }),
            ("c.proxy-abc123.eu-west-1.rds.amazonaws.com", None),
            ("c.global-abc123.global.rds.amazonaws.com", None),
            ("abc123.dsql.us-east-1.on.aws", None),
            ("localhost", None),
        ];
        for (host, expected) in cases {
            assert_eq!(HostName::parse(host).unwrap().node_domain(), expected, "{host}");
        }
    }

    #[test]
    fn regions_of_newer_partitions() {
        let cases = [
            ("db.abc.us-isof-south-1.rds.csp.hci.ic.gov", Some("us-isof-south-1")),
            ("db.abc.eu-isoe-west-1.rds.cloud.adc-e.uk", Some("eu-isoe-west-1")),
            ("db.abc.mx-central-1.rds.amazonaws.com", Some("mx-central-1")),
            ("db.abc.us-gov-west-1.rds.amazonaws.com", Some("us-gov-west-1")),
            ("abc123.dsql.us-east-1.on.aws", Some("us-east-1")),
            ("abc123.dsql-fips.us-west-2.on.aws", Some("us-west-2")),
            ("abc123.dsql-fnh4.us-east-2.on.aws", Some("us-east-2")),
            ("abc123.dsqlx.us-east-2.on.aws", None),
            ("abc123.lambda.us-west-2.on.aws", None),
            ("ec2-1-2-3-4.us-west-2.compute.amazonaws.com", Some("us-west-2")),
            ("db.abc.nowhere.rds.amazonaws.com", None),
            ("rds.amazonaws.com", None),
            ("localhost", None),
            ("eu-west-1.example.com", None),
        ];
        for (host, region) in cases {
            assert_eq!(HostName::parse(host).unwrap().region(), region, "{host}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_host_name() {
        for host in ["", ".", "a..b", "a b", "a/b", "a:5432", "a?b", "é.example", &"a".repeat(254)]
        {
            assert!(HostName::parse(host).is_err(), "{host}");
        }
        assert!(HostName::parse(&"a".repeat(253)).is_ok());
    }
}
