//! Help that has to be assembled: the IAM policy statement, SQL, root certificates.

use super::evidence::Evidence;
use crate::error::{LoginKind, Refusal};
use crate::token::{HostKind, dsql_action};

pub(super) const SET_CLOCK: &str =
    "synchronize the clock with NTP; on AWS, chrony with server 169.254.169.123";

pub(super) const CHECK_CLOCK: &str =
    "compare `date -u` with the Date of `curl -sI https://aws.amazon.com` (limit: 5 minutes)";

/// Returns what to do about a file of root certificates that cannot be used.
pub(super) fn root_file(is_missing: bool, evidence: &Evidence) -> String {
    if is_missing {
        return root_certificates(evidence);
    }
    evidence.login.cure(Refusal::RootFileUnusable).to_owned()
}

/// Returns how to get the root certificates of this endpoint.
pub(super) fn root_certificates(evidence: &Evidence) -> String {
    let (file, url) = match evidence.login {
        LoginKind::Proxy | LoginKind::Dsql => {
            ("AmazonRootCA1.pem", "https://www.amazontrust.com/repository/AmazonRootCA1.pem")
        }
        _ => (
            "global-bundle.pem",
            "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
        ),
    };
    format!(
        "download Amazon's root certificates, and name them in PGSSLROOTCERT or sslrootcert=:\n\
         curl --fail -o {file} {url}\n\
         export PGSSLROOTCERT=$PWD/{file}"
    )
}

/// Returns what to do about the reason why a `LocalRds` refused a token.
pub(super) fn of_local_verdict(verdict: &str) -> &'static str {
    let found = LOCAL_VERDICTS.iter().find(|(text, _)| verdict.contains(text));
    found.map_or("use the settings that `rds-iam local` prints", |(_, help)| help)
}

const LOCAL_VERDICTS: &[(&str, &str)] = &[
    ("another region", "set region_name= to the region that `rds-iam local` prints"),
    ("another endpoint", "set iam_host= and iam_port= to those that `rds-iam local` prints"),
    ("key pair", "export the AWS key pair that `rds-iam local` prints"),
    ("the token has expired", SET_CLOCK),
    ("in the future", SET_CLOCK),
];

/// Returns the policy statement for this login, and how to find its missing parts.
pub(super) fn policy(evidence: &Evidence) -> String {
    let mut lines = vec!["allow this in the IAM policy of the AWS identity:".to_owned()];
    lines.push(statement(evidence));
    lines.extend(resource_id(evidence));
    if evidence.account.is_none() {
        lines.push("ACCOUNT: the number of the AWS account that owns the database".to_owned());
    }
    lines.join("\n")
}

/// One line, to copy and paste.
fn statement(evidence: &Evidence) -> String {
    let (action, resource) = match evidence.kind() {
        HostKind::Dsql => (
            format!("dsql:{}", dsql_action(&evidence.user)),
            format!("cluster/{}", evidence.identifier()),
        ),
        _ => {
            ("rds-db:connect".to_owned(), format!("dbuser:RESOURCE-ID/{}", literal(&evidence.user)))
        }
    };
    let service = action.split(':').next().unwrap_or_default();
    let region = evidence.endpoint.region();
    let account = evidence.account.as_deref().unwrap_or("ACCOUNT");
    let arn = format!("arn:{}:{service}:{region}:{account}:{resource}", partition(region));
    format!(r#"{{"Effect": "Allow", "Action": "{action}", "Resource": "{arn}"}}"#)
}

/// Escapes a name for JSON, and for wildcards and variables of policies (AWS, "IAM policy elements:
/// Variables and tags").
fn literal(name: &str) -> String {
    let escape = |c: char| match c {
        '*' | '?' | '$' => format!("${{{c}}}"),
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    name.chars().map(escape).collect()
}

fn resource_id(evidence: &Evidence) -> Option<String> {
    let (region, name) = (evidence.endpoint.region(), evidence.identifier());
    let command = |action: &str, query: &str| {
        format!("RESOURCE-ID: aws rds {action} {name} --region {region} --query '{query}'")
    };
    Some(match evidence.kind() {
        // An instance of a cluster has the DbClusterResourceId of that cluster.
        HostKind::Instance => command(
            "describe-db-instances --db-instance-identifier",
            "DBInstances[].[DbiResourceId,DBClusterIdentifier]",
        ),
        HostKind::Writer | HostKind::Reader => command(
            "describe-db-clusters --db-cluster-identifier",
            "DBClusters[].DbClusterResourceId",
        ),
        HostKind::Proxy => command("describe-db-proxies --db-proxy-name", "DBProxies[].DBProxyArn"),
        HostKind::Dsql => return None,
        _ => "RESOURCE-ID: DbiResourceId of the instance, DbClusterResourceId of the cluster, or \
              prx-... of the proxy"
            .to_owned(),
    })
}

fn partition(region: &str) -> &'static str {
    const PARTITIONS: &[(&str, &str)] = &[
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("eusc-", "aws-eusc"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eu-isoe-", "aws-iso-e"),
    ];
    let found = PARTITIONS.iter().find(|(start, _)| region.starts_with(start));
    found.map_or("aws", |(_, partition)| partition)
}

/// Quotes a name for SQL.
pub(super) fn identifier(name: &str) -> String {
    let quoted = name.replace('"', "\"\"");
    if !name.chars().any(char::is_control) {
        return format!("\"{quoted}\"");
    }
    let escape = |c: char| match c {
        c if c.is_control() || c == '\\' => format!("\\{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("U&\"{}\"", quoted.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_parts_of_a_policy_are_filled_in() {
        let cases = [
            (
                "db.abc.eu-west-1.rds.amazonaws.com",
                "arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app",
            ),
            (
                "db.abc.eu-west-1.rds.amazonaws.com",
                "describe-db-instances --db-instance-identifier db --region eu-west-1",
            ),
            (
                "c.cluster-abc.eu-west-1.rds.amazonaws.com",
                "describe-db-clusters --db-cluster-identifier c ",
            ),
            ("p.proxy-abc.eu-west-1.rds.amazonaws.com", "describe-db-proxies --db-proxy-name p "),
            ("db.abc.rds.cn-north-1.amazonaws.com.cn", "arn:aws-cn:rds-db:cn-north-1:"),
            ("db.abc.us-gov-west-1.rds.amazonaws.com", "arn:aws-us-gov:rds-db:us-gov-west-1:"),
            ("abc.dsql.us-west-2.on.aws", "arn:aws:dsql:us-west-2:ACCOUNT:cluster/abc\""),
            ("abc.dsql.us-west-2.on.aws", "\"dsql:DbConnect\""),
        ];
        for (host, expected) in cases {
            let text = policy(&Evidence::of_host(host));
            assert!(text.contains(expected), "{host}: {text}");
        }
    }

    #[test]
    fn the_account_of_the_credentials_is_filled_in() {
        let evidence = Evidence {
            account: Some("111122223333".into()),
            ..Evidence::of_host("db.abc.eu-west-1.rds.amazonaws.com")
        };
        let text = policy(&evidence);
        assert!(text.contains(":111122223333:dbuser:") && !text.contains("ACCOUNT"), "{text}");
    }

    #[test]
    fn names_are_escaped_for_json_and_wildcards() {
        let evidence = Evidence {
            user: "a*\"\\$(id)\n".into(),
            ..Evidence::of_host("db.abc.eu-west-1.rds.amazonaws.com")
        };
        let statement = statement(&evidence);
        assert!(statement.contains(r#"/a${*}\"\\${$}(id)\u000a""#), "{statement}");
    }

    #[test]
    fn names_are_quoted_for_sql() {
        assert_eq!(identifier("o\"dd"), "\"o\"\"dd\"");
        assert_eq!(identifier("a\nb\\"), "U&\"a\\000Ab\\005C\"");
    }
}
