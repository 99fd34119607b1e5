//! The IAM policy statement that lets an identity log in.

use super::evidence::Evidence;
use crate::token::{HostKind, dsql_action};

/// The statement to paste, and how to find what is not known of it.
pub(super) fn to_paste(known: &Evidence) -> String {
    format!(
        "give the AWS identity this policy statement:\n{}\n{}",
        statement(known),
        placeholders(known)
    )
}

fn statement(known: &Evidence) -> String {
    let (action, resource) = match known.kind() {
        HostKind::Dsql => {
            (format!("dsql:{}", dsql_action(&known.user)), format!("cluster/{}", known.name()))
        }
        _ => ("rds-db:connect".to_owned(), format!("dbuser:RESOURCE-ID/{}", literal(&known.user))),
    };
    let service = action.split(':').next().unwrap_or_default();
    let (region, account) =
        (known.endpoint.region(), known.account.as_deref().unwrap_or("ACCOUNT"));
    format!(
        r#"{{
  "Effect": "Allow",
  "Action": "{action}",
  "Resource": "arn:{}:{service}:{region}:{account}:{resource}"
}}"#,
        partition(region)
    )
}

/// A name in a policy, which is JSON, and has wildcards and variables of its own (AWS, "IAM policy
/// elements: Variables and tags").
fn literal(name: &str) -> String {
    let escape = |c: char| match c {
        '*' | '?' | '$' => format!("${{{c}}}"),
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    name.chars().map(escape).collect()
}

fn placeholders(known: &Evidence) -> String {
    let (region, name) = (known.endpoint.region(), known.name());
    let of = |what: &str, query: &str| {
        format!("RESOURCE-ID: aws rds {what} {name} --region {region} --query '{query}'")
    };
    let resource_id = match known.kind() {
        HostKind::Instance => {
            of("describe-db-instances --db-instance-identifier", "DBInstances[].[DbiResourceId,DBClusterIdentifier]")
                + " (of a cluster's instance: the DbClusterResourceId of that cluster)"
        }
        HostKind::Writer | HostKind::Reader => {
            of("describe-db-clusters --db-cluster-identifier", "DBClusters[].DbClusterResourceId")
        }
        HostKind::Proxy => of("describe-db-proxies --db-proxy-name", "DBProxies[].DBProxyArn") + " (its prx-...)",
        HostKind::Dsql => String::new(),
        _ => "RESOURCE-ID: DbiResourceId of an instance, DbClusterResourceId of a cluster, prx-... of a proxy".into(),
    };
    let account = if known.account.is_none() {
        "ACCOUNT: the number of the account that owns the database"
    } else {
        ""
    };
    [account, &resource_id]
        .into_iter()
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
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
    PARTITIONS
        .iter()
        .find(|(start, _)| region.starts_with(start))
        .map_or("aws", |(_, partition)| partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_filled_in() {
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
            let text = to_paste(&Evidence::of_host(host));
            assert!(text.contains(expected), "{host}: {text}");
        }
    }

    #[test]
    fn the_account_is_filled_in_where_the_credentials_tell_it() {
        let known = Evidence {
            account: Some("111122223333".into()),
            ..Evidence::of_host("db.abc.eu-west-1.rds.amazonaws.com")
        };
        let text = to_paste(&known);
        assert!(text.contains(":111122223333:dbuser:") && !text.contains("ACCOUNT"), "{text}");
    }

    #[test]
    fn odd_names_are_neither_wildcards_nor_the_end_of_the_json() {
        let known = Evidence {
            user: "a*\"\\$(id)\n".into(),
            ..Evidence::of_host("db.abc.eu-west-1.rds.amazonaws.com")
        };
        let statement = statement(&known);
        assert!(statement.contains(r#"/a${*}\"\\${$}(id)\u000a""#), "{statement}");
    }
}
