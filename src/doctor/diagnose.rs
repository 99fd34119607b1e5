//! From a symptom to its causes. Only the arguments count.

use super::diagnosis::{Cause, Diagnosis};
use super::evidence::{Evidence, Symptom, Untrusted};
use super::network;
use super::prescription::{self, CHECK_CLOCK, SET_CLOCK, identifier};
use crate::error::{LoginKind, Refusal};
use crate::login::RegionFrom;
use crate::token::HostName;

/// Diagnoses a failed login with a token.
pub(super) fn by_token(symptom: &Symptom, evidence: &Evidence) -> Diagnosis {
    let causes = match symptom {
        Symptom::NoAddress(text) => network::no_address(text, evidence),
        Symptom::TcpRefused(_) => network::tcp_refused(evidence),
        Symptom::NoRoute(_) => network::no_route(evidence),
        Symptom::Silence => network::silence(evidence),
        Symptom::ClosedBeforeTls(_) => {
            [network::silence(evidence), network::not_postgres(evidence)].concat()
        }
        Symptom::ClosedAtLogin(_) => network::cut_off(evidence),
        Symptom::NotPostgres(_) => network::not_postgres(evidence),
        Symptom::NoTls => vec![Cause::new(
            "the server is not an RDS endpoint, or something in between ends TLS",
            "connect to the RDS endpoint itself: a token is sent only over TLS",
        )],
        Symptom::RootFile { is_missing, .. } => {
            return Diagnosis::plain(symptom, prescription::root_file(*is_missing, evidence));
        }
        Symptom::UnknownAuthority { roots, issuer, .. } => {
            unknown_authority(roots, issuer.as_ref(), evidence)
        }
        Symptom::Expired { is_early, .. } => expired(*is_early),
        Symptom::WrongName { .. } => wrong_name(evidence),
        Symptom::Refused { text, sqlstate } => match refusal(text, sqlstate.as_ref()) {
            Refusal::Token | Refusal::ProxyToken => refused_token(evidence),
            Refusal::NoGrant => no_grant(evidence),
            Refusal::Truncated | Refusal::Closed => network::cut_off(evidence),
            other => return Diagnosis::plain(symptom, evidence.login.cure(other)),
        },
    };
    Diagnosis::new(symptom, causes)
}

/// Server messages can be in another language. An SQLSTATE never is.
fn refusal(text: &Untrusted, sqlstate: Option<&Untrusted>) -> Refusal {
    match (text.refusal(), sqlstate.map(Untrusted::to_string).as_deref()) {
        (Refusal::Other, Some("28P01")) => Refusal::NoGrant,
        (Refusal::Other, Some("3D000")) => Refusal::NoSuchName,
        (Refusal::Other, Some("53300")) => Refusal::ConnectionLimit,
        (Refusal::Other, Some("57P03")) => Refusal::Starting,
        (refusal, _) => refusal,
    }
}

/// Diagnoses a failed login with a password (`rds_iam_auth=false`).
pub(super) fn by_password(symptom: &Symptom, user: &str) -> Diagnosis {
    let role = identifier(user);
    let refusal = match symptom {
        Symptom::Refused { text, sqlstate } => refusal(text, sqlstate.as_ref()),
        _ => Refusal::Other,
    };
    let causes = match refusal {
        Refusal::NoGrant => vec![
            Cause::new(
                "the password is wrong",
                "check it in the connection string; in a URL it must be percent-encoded",
            )
            .check("try psql with the same password"),
            Cause::new(
                "the user does not exist, or has no password",
                format!("run as the master user: \\password {role}"),
            )
            .check(format!("search {role} in pg_roles")),
        ],
        Refusal::Token => vec![Cause::new(
            "the user has the role rds_iam, directly or through another role, so RDS accepts no \
             password",
            format!(
                "remove rds_iam_auth=false and the password, to log in with a token; or run\n\
                 REVOKE rds_iam FROM {role};\n\
                 and REVOKE each role with rds_iam that {role} is a member of, inherited or not"
            ),
        )],
        other => return Diagnosis::plain(symptom, LoginKind::Password.cure(other)),
    };
    Diagnosis::new(symptom, causes)
}

/// Diagnoses that no source has credentials.
pub(super) fn credentials(text: &Untrusted, help: String, in_ecs_task: bool) -> Diagnosis {
    if !in_ecs_task {
        return Diagnosis::plain(text, help);
    }
    let no_task_role = Cause::new(
        "this ECS task has no task role (the execution role is only for ECS itself)",
        "add a taskRoleArn to the task definition, and the policy to that role",
    );
    Diagnosis::new(text, vec![no_task_role])
}

fn unknown_authority(roots: &str, issuer: Option<&Untrusted>, evidence: &Evidence) -> Vec<Cause> {
    let missing = Cause::new(
        format!("{roots} does not contain Amazon's root certificates"),
        prescription::root_certificates(evidence),
    );
    match issuer {
        Some(issuer) if issuer.is_of_amazon() => vec![missing],
        None => vec![missing.check("see whether Amazon issued the certificate")],
        Some(issuer) => vec![
            Cause::new(
                format!("\"{issuer}\" issued the certificate, and {roots} does not contain it"),
                format!("if you trust \"{issuer}\", set sslrootcert= to its root certificate"),
            )
            .check("see whether that authority is yours"),
            Cause::new(
                "something in between ends TLS, and would see the token",
                "connect without it",
            )
            .check("compare with `rds-iam doctor` inside the VPC"),
        ],
    }
}

fn expired(is_early: bool) -> Vec<Cause> {
    let clock = Cause::new("this machine's clock is wrong", SET_CLOCK).check(CHECK_CLOCK);
    let rotate = Cause::new(
        "the server's certificate has expired",
        "rotate it: aws rds modify-db-instance --db-instance-identifier NAME \
         --ca-certificate-identifier rds-ca-rsa2048-g1",
    )
    .check("see the certificate's dates with --verbose");
    if is_early { vec![clock] } else { vec![rotate, clock] }
}

fn wrong_name(evidence: &Evidence) -> Vec<Cause> {
    let (dialled, signed) = (&evidence.host, evidence.endpoint.host());
    let another_server = Cause::new("another server answers", "check host, hostaddr and port");
    let is_set = dialled != signed;
    match evidence.endpoints_behind().as_slice() {
        [] if evidence.is_aws_name() && !is_set => vec![another_server],
        [] => {
            let wrong_iam_host = if is_set {
                format!("iam_host={signed} is not the name of the server at {dialled}")
            } else {
                format!("{dialled} is a CNAME or a tunnel, not the endpoint's own name")
            };
            let help = "set iam_host= to the endpoint's name in the RDS console";
            vec![
                Cause::new(wrong_iam_host, help).check(compare_names(evidence)),
                another_server.check("see which server listens there"),
            ]
        }
        names => endpoints_behind(names, evidence),
    }
}

fn compare_names(evidence: &Evidence) -> String {
    let names: Vec<String> = evidence.names.iter().take(3).map(Untrusted::to_string).collect();
    format!("compare with the names in the certificate: {}", names.join(", "))
}

/// The endpoints that can be meant.
fn endpoints_behind(names: &[String], evidence: &Evidence) -> Vec<Cause> {
    let (dialled, signed) = (&evidence.host, evidence.endpoint.host());
    let causes = names.iter().map(|name| {
        Cause::new(
            format!("{name} is the RDS endpoint behind {dialled}; the token is for {signed}"),
            format!("add iam_host={name}{}", iam_port(evidence)),
        )
    });
    match names {
        [_] => causes.collect(),
        _ => causes.map(|cause| cause.check("choose the endpoint that you mean")).collect(),
    }
}

/// The port to sign for, if a tunnel has another one.
fn iam_port(evidence: &Evidence) -> &'static str {
    let is_signed = evidence.port == evidence.endpoint.port();
    if evidence.is_on_this_machine() && evidence.port != 5432 && is_signed {
        " and iam_port=5432 (or the endpoint's own port)"
    } else {
        ""
    }
}

fn no_grant(evidence: &Evidence) -> Vec<Cause> {
    let role = identifier(&evidence.user);
    vec![
        Cause::new(
            "the user does not have the role rds_iam",
            format!("run as the master user: GRANT rds_iam TO {role};"),
        )
        .check(format!("run \\du {role} in psql as the master user")),
        Cause::new(
            "the user does not exist",
            format!("run as the master user: CREATE USER {role}; GRANT rds_iam TO {role};"),
        )
        .check(format!("search {role} in pg_roles")),
        Cause::new(
            "IAM authentication is not turned on",
            "turn it on for the instance or cluster: --enable-iam-database-authentication",
        )
        .check("see \"IAM DB authentication\" in the RDS console"),
    ]
}

/// RDS has one text for all of these. The order depends on what was signed.
fn refused_token(evidence: &Evidence) -> Vec<Cause> {
    if let Some(verdict) = &evidence.local_verdict {
        let help = prescription::of_local_verdict(&verdict.to_string());
        return vec![Cause::new(format!("the LocalRds says: {verdict}"), help)];
    }
    let mut causes = wrong_signature(evidence);
    causes.extend([
        Cause::new(
            "the AWS identity is not allowed to log in as this user",
            prescription::policy(evidence),
        )
        .check("see the policies of the identity that `aws sts get-caller-identity` names"),
        Cause::new(
            "the credentials are revoked, rotated, expired, or of another account",
            "get new credentials; for another account use --assume-role (Builder::assume_role)",
        )
        .check("run `aws sts get-caller-identity`: it must work, and name the database's account"),
        Cause::new("this machine's clock is wrong", SET_CLOCK).check(CHECK_CLOCK),
        Cause::new(
            "RDS throttles: more than 200 new logins per second, or too little memory",
            "keep connections in a pool; take a larger instance, or RDS Proxy",
        )
        .check("see whether logins fail only now and then"),
    ]);
    if !evidence.is_aws_name() {
        causes.push(
            Cause::new(
                format!("a pooler cuts the token of {} bytes", evidence.token_length),
                "raise its limit for passwords to 64 KiB, or connect without the pooler",
            )
            .check("see whether there is a pooler before the endpoint"),
        );
    }
    causes
}

/// Causes that show in what was signed.
fn wrong_signature(evidence: &Evidence) -> Vec<Cause> {
    let (host, region) = (evidence.endpoint.host(), evidence.endpoint.region());
    if let Some(right) = evidence.other_region() {
        let cause = format!("the token is signed for {region}, and {host} is in {right}");
        return vec![Cause::new(cause, format!("set region_name={right}, or remove region_name"))];
    }
    if !evidence.is_aws_name() {
        let mut causes = wrong_host(evidence);
        if evidence.region_from != RegionFrom::HostName {
            let from = evidence.region_from;
            causes.push(
                Cause::new(
                    format!("the database is not in {region}, the region of {from}"),
                    "set region_name= to the region of the database",
                )
                .check("compare with the region in the RDS console"),
            );
        }
        return causes;
    }
    if iam_port(evidence).is_empty() {
        return Vec::new();
    }
    let cause = format!("the token is signed for port {}, the tunnel's", evidence.port);
    let wrong_port = Cause::new(cause, "add iam_port=5432 (or the endpoint's own port)");
    vec![wrong_port.check("compare with the port in the RDS console")]
}

/// The token is signed for a name that AWS did not assign.
fn wrong_host(evidence: &Evidence) -> Vec<Cause> {
    let signed = evidence.endpoint.host();
    let behind = evidence.endpoints_behind();
    if !behind.is_empty() {
        return endpoints_behind(&behind, evidence);
    }
    let is_machine = signed.starts_with("ec2-")
        && HostName::parse(signed).is_ok_and(|name| name.region().is_some());
    let (cause, check) = if evidence.is_on_this_machine() {
        ("the local end of a tunnel", "see where the tunnel leads to")
    } else if is_machine {
        ("the machine behind the endpoint's CNAME", "compare with the RDS console")
    } else {
        ("a CNAME", "see whether the RDS console shows that name")
    };
    let help =
        format!("add iam_host= with the endpoint's name in the RDS console{}", iam_port(evidence));
    vec![Cause::new(format!("the token is signed for {signed}, {cause}"), help).check(check)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Endpoint;

    const RDS: &str = "db.abc.eu-west-1.rds.amazonaws.com";

    fn rds() -> Evidence {
        Evidence::of_host(RDS)
    }

    fn cname() -> Evidence {
        Evidence::of_host("db.example.com")
    }

    fn refused() -> Symptom {
        let text = Untrusted::new("FATAL: PAM authentication failed for user \"app\"");
        Symptom::Refused { text, sqlstate: Some(Untrusted::new("28000")) }
    }

    fn with_names(evidence: Evidence, names: &[&str]) -> Evidence {
        Evidence { names: names.iter().map(|name| Untrusted::new(*name)).collect(), ..evidence }
    }

    fn at(evidence: Evidence, address: &str) -> Evidence {
        Evidence { addresses: vec![address.parse().unwrap()], ..evidence }
    }

    fn first(symptom: &Symptom, evidence: &Evidence) -> Cause {
        by_token(symptom, evidence).causes.remove(0)
    }

    /// The likeliest cause, and its help.
    fn assert_first(symptom: &Symptom, evidence: &Evidence, cause: &str, help: &str) {
        let first = first(symptom, evidence);
        assert!(
            first.cause.contains(cause) && first.help.contains(help),
            "{symptom:?} {evidence:?}: {first:?}"
        );
    }

    #[test]
    fn the_first_cause_of_a_refused_token_depends_on_what_was_signed() {
        let chain =
            ["db.abc.eu-west-1.rds.amazonaws.com.", "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com."];
        let machine = "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com";
        let elsewhere =
            Evidence { endpoint: Endpoint::new(RDS, 5432, "eu-west-2").unwrap(), ..rds() };
        let tunnel = Evidence {
            endpoint: Endpoint::new(RDS, 6543, "eu-west-1").unwrap(),
            port: 6543,
            ..rds()
        };
        let from_configuration = Evidence { region_from: RegionFrom::Configuration, ..cname() };
        let cases = [
            (
                rds(),
                "not allowed to log in",
                "arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app",
            ),
            (elsewhere, "is in eu-west-1", "region_name=eu-west-1"),
            (
                with_names(cname(), &chain),
                "RDS endpoint behind db.example.com",
                "iam_host=db.abc.eu-west-1.rds.amazonaws.com",
            ),
            (cname(), "for db.example.com, a CNAME", "iam_host="),
            (from_configuration, "a CNAME", "iam_host="),
            (Evidence::of_host(machine), "the machine behind", "iam_host="),
            (at(Evidence::of_host("localhost"), "127.0.0.1"), "local end of a tunnel", "iam_host="),
            (at(tunnel, "127.0.0.1"), "port 6543, the tunnel's", "iam_port=5432"),
        ];
        for (evidence, cause, help) in cases {
            assert_first(&refused(), &evidence, cause, help);
        }
    }

    #[test]
    fn candidates_for_a_refused_token_have_a_check() {
        let causes = by_token(&refused(), &rds()).causes;
        let order =
            ["not allowed to log in", "another account", "clock is wrong", "200 new logins"];
        assert_eq!(causes.len(), order.len());
        for (cause, expected) in causes.iter().zip(order) {
            assert!(cause.cause.contains(expected) && cause.check.is_some(), "{cause:?}");
        }
        let from_configuration = Evidence { region_from: RegionFrom::Configuration, ..cname() };
        let causes = by_token(&refused(), &from_configuration).causes;
        assert!(
            causes[1]
                .cause
                .contains("not in eu-west-1, the region of AWS_REGION or the AWS profile"),
            "{causes:?}"
        );
        assert!(
            causes.last().unwrap().cause.contains("a pooler cuts the token of 400 bytes"),
            "{causes:?}"
        );
    }

    #[test]
    fn texts_of_servers_have_their_help() {
        let cases = [
            (
                "password authentication failed for user \"app\"",
                "does not have the role",
                "GRANT rds_iam TO \"app\";",
            ),
            (
                "authentication method requirement \"password\" failed: \
                 server requested SCRAM-SHA-256 authentication",
                "does not have the role",
                "GRANT rds_iam TO \"app\";",
            ),
            (
                "IAM authentication failed for the role app",
                "not allowed to log in",
                "dbuser:RESOURCE-ID/app",
            ),
            ("IAM is allowed only with SSL connections", "SSL", "in between"),
            ("too many competing requests", "competing", "pool"),
            ("string truncated", "a password of 400 bytes", "raise its limit"),
            ("server closed the connection unexpectedly", "400 bytes", "raise its limit"),
            (
                "no pg_hba.conf entry for host \"10.0.0.1\", no encryption",
                "no encryption",
                "in between",
            ),
            ("pg_hba.conf rejects connection for host \"10.0.0.1\"", "rejects", "in between"),
            ("database \"x\" does not exist", "does not exist", "names of database"),
            ("sorry, too many clients already", "too many", "max_size"),
            ("too many connections for role \"app\"", "too many", "CONNECTION LIMIT"),
            ("the database system is starting up", "starting up", "wait"),
            ("something never seen before", "never seen", "server's log"),
        ];
        for (text, cause, help) in cases {
            assert_first(&Symptom::refused(text), &rds(), cause, help);
        }
        let by_sqlstate = Symptom::Refused {
            text: Untrusted::new("in another language"),
            sqlstate: Some(Untrusted::new("28P01")),
        };
        assert_first(&by_sqlstate, &rds(), "does not have the role", "GRANT");
    }

    #[test]
    fn causes_of_a_failed_connection_depend_on_the_address() {
        let no_way = Symptom::NoRoute(Untrusted::new("connection timed out"));
        let refused = Symptom::TcpRefused(Untrusted::new("connection refused"));
        let cases = [
            (&no_way, at(rds(), "10.0.0.1"), "only from its VPC", "VPN"),
            (&no_way, at(rds(), "fd00::1"), "only from its VPC", "VPN"),
            (&no_way, at(rds(), "54.1.2.3"), "security group", "TCP 5432"),
            (&refused, at(rds(), "10.0.0.1"), "port is wrong", "port="),
            (&refused, at(rds(), "127.0.0.1"), "no tunnel", "ssh -N -L 5432:db.abc"),
            (&Symptom::NoAddress(Untrusted::new("unknown")), rds(), "misspelt", "console"),
            (&Symptom::Silence, at(rds(), "10.0.0.1"), "the server hangs", "restart"),
            (&Symptom::Silence, at(rds(), "127.0.0.1"), "a tunnel", "behind it"),
        ];
        for (symptom, evidence, cause, help) in cases {
            assert_first(symptom, &evidence, cause, help);
        }
    }

    #[test]
    fn causes_of_a_refused_certificate_depend_on_issuer_and_names() {
        let untrusted = |issuer: Option<&str>| Symptom::UnknownAuthority {
            tls: Untrusted::new("certificate verify failed"),
            roots: "/roots.pem".into(),
            issuer: issuer.map(Untrusted::new),
        };
        let amazon = untrusted(Some("Amazon RDS eu-west-1 Root CA RSA2048 G1"));
        assert_first(&amazon, &rds(), "/roots.pem does not contain", "global-bundle.pem");
        assert_eq!(by_token(&amazon, &rds()).causes.len(), 1);
        assert_first(&untrusted(None), &rds(), "/roots.pem does not contain", "global-bundle.pem");
        assert_first(&untrusted(Some("Some Firewall")), &rds(), "Some Firewall", "sslrootcert=");
        let outdated = |is_early| Symptom::Expired { tls: Untrusted::new("expired"), is_early };
        assert_first(&outdated(false), &rds(), "has expired", "rotate");
        assert_first(&outdated(true), &rds(), "clock", "NTP");

        let wrong_name = Symptom::WrongName {
            tls: Untrusted::new("hostname mismatch"),
            name: "db.example.com".into(),
        };
        assert_first(&wrong_name, &cname(), "CNAME or a tunnel", "iam_host=");
        let one = with_names(cname(), &[RDS]);
        assert_first(&wrong_name, &one, "RDS endpoint behind", "iam_host=db.abc");
        assert_eq!(first(&wrong_name, &one).check, None);
        let several = with_names(cname(), &[RDS, "c.cluster-abc.eu-west-1.rds.amazonaws.com"]);
        assert!(first(&wrong_name, &several).check.is_some());
    }
}
