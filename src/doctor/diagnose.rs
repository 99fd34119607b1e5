//! From a symptom to its causes and their cures. Nothing but its arguments counts.

use super::evidence::Evidence;
use super::policy;
use super::symptom::Symptom;
use super::{Cause, Diagnosis};
use crate::error::{EndpointKind, LoginContext, Method, Refusal};
use crate::login::RegionFrom;
use crate::token::{HostKind, HostName};

/// What a login by token fails by.
pub(super) fn judge(symptom: &Symptom, known: &Evidence) -> Diagnosis {
    let causes = match symptom {
        Symptom::NoAddress(_) => no_address(known),
        Symptom::NobodyListens(_) => nobody_listens(known),
        Symptom::NoWay(_) => no_way(known),
        Symptom::Silence => silence(known),
        Symptom::HangsUp(_) => [silence(known), not_postgres(known)].concat(),
        Symptom::NotPostgres(_) => not_postgres(known),
        Symptom::NoTls => {
            vec![Cause::new("not an RDS endpoint, or something between it and here", DIAL_RDS)]
        }
        Symptom::NoRoots(_) => {
            vec![Cause::new("the root certificates are not where sslrootcert says", GET_BUNDLE)]
        }
        Symptom::Untrusted { roots, issuer, .. } => untrusted(roots, issuer.as_deref()),
        Symptom::Outdated { is_early, .. } => outdated(*is_early),
        Symptom::WrongName { .. } => wrong_name(known),
        Symptom::Said { text, sqlstate } => {
            said(symptom.to_string(), text, sqlstate.as_deref(), known)
        }
    };
    Diagnosis::new(symptom.to_string(), causes)
}

/// What a login by password fails by (`rds_iam_auth=false`).
pub(super) fn judge_password(text: &str, user: &str) -> Diagnosis {
    // PAM on RDS, LDAP on the stand-in: pg_hba.conf sends members of rds_iam there.
    let asks_for_token = text.contains("authentication failed for user")
        && !text.contains("password authentication failed");
    let role = identifier(user);
    if text.contains("password authentication failed") {
        let causes = vec![
            Cause::new(
                "the password is another one",
                "check it in the connection string; percent-encode it in a URL",
            )
            .decided_by("whether psql gets in with it"),
            Cause::new(
                "the user does not exist, or has no password",
                format!("run, as the master user:\n\\password {role}"),
            )
            .decided_by(format!("whether pg_roles has {role}")),
        ];
        return Diagnosis::new(text, causes);
    }
    if !asks_for_token {
        return Diagnosis::plain(text, cure(text));
    }
    let has_role = Cause::new(
        "the user has the role rds_iam, itself or through another role, and that takes its password away",
        format!(
            "log in by token: leave rds_iam_auth=false and the password out; or, for a password again, run\n\
             REVOKE rds_iam FROM {role};\n\
             and REVOKE each role with rds_iam that {role} is a member of, inherited or not"
        ),
    );
    Diagnosis::new(text, vec![has_role])
}

/// No source has credentials; in an ECS task for a reason of its own.
pub(super) fn judge_credentials(text: &str, cure: &str, in_ecs_task: bool) -> Diagnosis {
    if !in_ecs_task {
        return Diagnosis::plain(text, cure);
    }
    let role = "give the task definition a taskRoleArn, and that role the policy";
    let no_task_role =
        Cause::new("this ECS task has no task role; the execution role is for ECS itself", role);
    Diagnosis::new(text, vec![no_task_role])
}

const DIAL_RDS: &str = "dial the RDS endpoint itself, for a token is sent over TLS only";
const GET_BUNDLE: &str = "get Amazon's root certificates, and name them:\n\
    curl -o global-bundle.pem https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem\n\
    export PGSSLROOTCERT=$PWD/global-bundle.pem    # sslrootcert= in the connection string, if it is there, goes first: change that";

fn no_address(known: &Evidence) -> Vec<Cause> {
    let host = &known.host;
    vec![
        Cause::new(
            "the name is misspelt, or the database is gone",
            "copy the endpoint from the RDS console",
        )
        .decided_by(format!("whether the console shows {host}")),
        Cause::new(
            "it is in a private DNS zone that is not asked from here",
            "run this inside of the VPC, or through its VPN",
        )
        .decided_by(format!("what `dig {host}` says inside of the VPC")),
    ]
}

fn nobody_listens(known: &Evidence) -> Vec<Cause> {
    let port = known.port;
    if known.is_on_this_machine() {
        return vec![Cause::new(
            format!("no tunnel or server listens at port {port} of this machine"),
            format!(
                "open it: ssh -N -L {port}:{}:{} BASTION",
                far_end(known),
                tunnelled_port(known)
            ),
        )];
    }
    vec![
        Cause::new("the port is another", format!("set port= to the endpoint's; it is {port} now"))
            .decided_by("the port that the RDS console shows"),
        Cause::new("the database is stopped or starts", "start it, or wait")
            .decided_by("its state in the RDS console"),
    ]
}

fn no_way(known: &Evidence) -> Vec<Cause> {
    let port = known.port;
    let security_group = Cause::new(
        "a security group does not let this machine in",
        format!("add an inbound rule for TCP {port} from this machine's address or security group"),
    )
    .decided_by("the inbound rules of the database's security groups");
    let private = Cause::new(
        "the database has no address that can be reached from outside of its VPC",
        "run this inside of the VPC, or go through a VPN or a tunnel with iam_host= and iam_port=",
    )
    .decided_by("whether this machine is in that VPC, or joined to it");
    let firewall = Cause::new(
        "a firewall or a route on the way drops it",
        format!("let TCP {port} out of this network, and mend the routes and network ACLs of both subnets"),
    )
    .decided_by(format!("whether another network reaches port {port}"));
    if known.is_private() {
        vec![private, security_group, firewall]
    } else {
        vec![security_group, firewall, private]
    }
}

fn silence(known: &Evidence) -> Vec<Cause> {
    let mut causes = vec![
        Cause::new(
            "a tunnel, a proxy or a load balancer accepts for a server that it does not reach",
            "mend what is behind it; its log names the failure",
        )
        .decided_by("whether something else than the database listens there"),
        Cause::new(
            "the server hangs, out of memory or disk",
            "see its metrics and its log, and restart it",
        )
        .decided_by("whether others can log in"),
    ];
    if !known.is_on_this_machine() && known.kind() != HostKind::Other {
        causes.reverse();
    }
    causes
}

fn not_postgres(known: &Evidence) -> Vec<Cause> {
    vec![Cause::new(
        format!("something else than PostgreSQL listens at {}:{}", known.host, known.port),
        "check host and port; RDS for PostgreSQL listens on 5432 by default",
    )]
}

fn untrusted(roots: &str, issuer: Option<&str>) -> Vec<Cause> {
    let missing = Cause::new(format!("Amazon's root certificates are not in {roots}"), GET_BUNDLE)
        .decided_by("whether an authority of Amazon issued the certificate");
    let Some(issuer) = issuer else { return vec![missing] };
    if issuer.contains("Amazon") {
        return vec![Cause { decided_by: None, ..missing }];
    }
    vec![
        Cause::new(
            format!("not an RDS certificate: \"{issuer}\" issued it, and {roots} does not hold that authority"),
            format!("if you trust it, set sslrootcert= to a file with the root certificate of \"{issuer}\""),
        )
        .decided_by("whether that authority is yours"),
        Cause::new("something in between ends the TLS", "go past it, for it would see the token")
            .decided_by("what the same shows from inside of the VPC"),
    ]
}

fn outdated(is_early: bool) -> Vec<Cause> {
    let clock = Cause::new("this machine's clock is off", SET_CLOCK).decided_by(READ_CLOCK);
    let rotate = Cause::new(
        "the server's certificate has ended",
        "rotate it: aws rds modify-db-instance --db-instance-identifier NAME --ca-certificate-identifier rds-ca-rsa2048-g1",
    )
    .decided_by("the certificate's dates, above");
    if is_early { vec![clock] } else { vec![rotate, clock] }
}

const SET_CLOCK: &str = "let NTP set the clock: on AWS, chrony with server 169.254.169.123";
const READ_CLOCK: &str =
    "`date -u` beside the Date of `curl -sI https://aws.amazon.com`: five minutes are the most";

fn wrong_name(known: &Evidence) -> Vec<Cause> {
    let (dialled, signed) = (&known.host, known.endpoint.host());
    match known.endpoints_behind().as_slice() {
        [] if is_endpoint(known) => vec![another_server()],
        [] => vec![
            Cause::new(
                format!(
                    "{dialled} is a CNAME or a tunnel, and {signed} not the endpoint behind it"
                ),
                "set iam_host= to the endpoint's own name, as the RDS console shows it",
            )
            .decided_by("the names in the certificate, above"),
            another_server(),
        ],
        names => one_of(names, known),
    }
}

fn another_server() -> Cause {
    Cause::new("another server answers", "check host, hostaddr and port")
        .decided_by("the names in the certificate, above")
}

/// The endpoints that may be meant.
fn one_of(names: &[&str], known: &Evidence) -> Vec<Cause> {
    let (dialled, signed) = (&known.host, known.endpoint.host());
    let causes = names.iter().map(|name| {
        Cause::new(
            format!("{name} is the RDS endpoint behind {dialled}, and the token is for {signed}"),
            format!("add iam_host={name}{}", iam_port(known)),
        )
    });
    match names {
        [_] => causes.collect(),
        _ => causes.map(|cause| cause.decided_by("which of these endpoints you mean")).collect(),
    }
}

/// The port to sign for, where a tunnel has one of its own.
fn iam_port(known: &Evidence) -> &'static str {
    if known.is_on_this_machine() && known.port != 5432 && known.port == known.endpoint.port() {
        ", and iam_port=5432 (or the endpoint's own port)"
    } else {
        ""
    }
}

/// Where a tunnel is to lead.
fn far_end(known: &Evidence) -> &str {
    if known.kind() == HostKind::Other { "ENDPOINT" } else { known.endpoint.host() }
}

fn tunnelled_port(known: &Evidence) -> u16 {
    if known.endpoint.port() == known.port { 5432 } else { known.endpoint.port() }
}

fn said(symptom: String, text: &str, sqlstate: Option<&str>, known: &Evidence) -> Vec<Cause> {
    let says = |what: &str| text.contains(what);
    match () {
        () if says("IAM authentication failed for the role") => refused_token(known),
        () if says("password authentication failed")
            || says("authentication method requirement") =>
        {
            no_grant(known)
        }
        () if sqlstate == Some("28P01") => no_grant(known),
        () if says("authentication failed for user") => refused_token(known),
        () if says("string truncated") || says("closed") => cut_off(known),
        () => vec![Cause::new(symptom, cure(text))],
    }
}

fn no_grant(known: &Evidence) -> Vec<Cause> {
    let role = identifier(&known.user);
    vec![
        Cause::new(
            "the user lacks the role rds_iam",
            format!("run, as the master user:\nGRANT rds_iam TO {role};"),
        )
        .decided_by(format!("whether pg_roles has {role}")),
        Cause::new(
            "the user does not exist",
            format!("run, as the master user:\nCREATE USER {role}; GRANT rds_iam TO {role};"),
        )
        .decided_by("the same"),
        Cause::new(
            "IAM authentication is not turned on for the database",
            "turn it on for the instance or cluster: --enable-iam-database-authentication",
        )
        .decided_by(
            "\"IAM DB authentication\" in the RDS console, and whether there is a role rds_iam",
        ),
    ]
}

fn cut_off(known: &Evidence) -> Vec<Cause> {
    let length = known.token_length;
    vec![
        Cause::new(
            format!("a pooler in between takes no password of {length} bytes"),
            "raise its longest password, or go past it to the endpoint",
        )
        .decided_by("whether a pooler is between here and the endpoint"),
        Cause::new("the server broke off", "see its log").decided_by("that log, at this time"),
    ]
}

/// RDS tells no more than that: the likeliest first, by what is known here.
fn refused_token(known: &Evidence) -> Vec<Cause> {
    let mut causes = wrong_signing(known);
    causes.push(
        Cause::new("the AWS identity may not log in as this user", policy::to_paste(known))
            .decided_by("the policies of the identity that `aws sts get-caller-identity` names"),
    );
    causes.push(
        Cause::new(
            "the identity is of another account than the database",
            "assume a role of that account: --assume-role, or Builder::assume_role",
        )
        .decided_by("the account that `aws sts get-caller-identity` names"),
    );
    causes.push(Cause::new("this machine's clock is off", SET_CLOCK).decided_by(READ_CLOCK));
    causes.push(
        Cause::new(
            "the credentials were revoked, rotated, end earlier than they say, or are not a pair",
            "get new ones",
        )
        .decided_by("whether `aws sts get-caller-identity` works with them"),
    );
    causes.push(
        Cause::new(
            "more than 200 new logins in a second, or an instance short of memory",
            "keep connections in a pool, take a bigger instance or RDS Proxy",
        )
        .decided_by("whether it is now and then only, and others fail at the same time"),
    );
    if !is_endpoint(known) {
        let length = known.token_length;
        causes.push(
            Cause::new(
                format!("a pooler in between cuts the token of {length} bytes, at 128 or 256"),
                "raise its longest password",
            )
            .decided_by("whether a pooler is between here and the endpoint"),
        );
    }
    causes
}

fn is_endpoint(known: &Evidence) -> bool {
    known.kind() != HostKind::Other
}

/// Reasons that show in what was signed.
fn wrong_signing(known: &Evidence) -> Vec<Cause> {
    let mut causes: Vec<Cause> = wrong_region(known).into_iter().collect();
    if !is_endpoint(known) {
        causes.extend(wrong_host(known));
        causes.extend(guessed_region(known));
    } else if !iam_port(known).is_empty() {
        causes.push(
            Cause::new(
                format!("the token is for port {} of a tunnel", known.port),
                "add iam_port=5432 (or the endpoint's own port)",
            )
            .decided_by("the port that the RDS console shows"),
        );
    }
    causes
}

fn wrong_region(known: &Evidence) -> Option<Cause> {
    let (host, region) = (known.endpoint.host(), known.endpoint.region());
    let told = known.other_region()?;
    let cause = format!("the token is for the region {region}, and {host} is in {told}");
    Some(Cause::new(cause, format!("set region_name={told}, or leave it out")))
}

fn guessed_region(known: &Evidence) -> Option<Cause> {
    (known.region_from != RegionFrom::HostName).then(|| {
        let (region, from) = (known.endpoint.region(), known.region_from);
        Cause::new(
            format!("the database is not in {region}, which {from} says"),
            "set region_name= to the region of the database",
        )
        .decided_by("the region that the RDS console shows")
    })
}

/// The name signed for is none of RDS'.
fn wrong_host(known: &Evidence) -> Vec<Cause> {
    let signed = known.endpoint.host();
    let behind = known.endpoints_behind();
    if !behind.is_empty() {
        return one_of(&behind, known);
    }
    let is_machine = HostName::parse(signed).is_ok_and(|name| name.region().is_some())
        && signed.starts_with("ec2-");
    let (cause, fact) = if known.is_on_this_machine() {
        ("the token is for the near end of a tunnel", "where the tunnel leads to")
    } else if is_machine {
        (
            "the token is for the machine behind the endpoint: a CNAME was followed too far",
            "the RDS console",
        )
    } else {
        ("the token is for a CNAME", "whether RDS gave that name")
    };
    let cure = format!(
        "add iam_host= with the endpoint's own name, which the RDS console shows{}",
        iam_port(known)
    );
    vec![Cause::new(format!("{cause}: {signed}"), cure).decided_by(fact)]
}

/// The cure of the library's own error text.
fn cure(text: &str) -> &'static str {
    let context = LoginContext { method: Method::Token, endpoint: EndpointKind::Other };
    context.cure(Refusal::of(text))
}

/// A name in SQL.
fn identifier(name: &str) -> String {
    if name.chars().any(char::is_control) {
        let escape = |c: char| {
            if c.is_control() || c == '\\' {
                format!("\\{:04X}", u32::from(c))
            } else {
                c.to_string()
            }
        };
        return format!(
            "U&\"{}\"",
            name.replace('"', "\"\"").chars().map(escape).collect::<String>()
        );
    }
    format!("\"{}\"", name.replace('"', "\"\""))
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
        let text = "FATAL: PAM authentication failed for user \"app\"".into();
        Symptom::Said { text, sqlstate: Some("28000".into()) }
    }

    fn with_names(known: Evidence, names: &[&str]) -> Evidence {
        Evidence { names: names.iter().map(|name| (*name).to_owned()).collect(), ..known }
    }

    fn at(known: Evidence, address: &str) -> Evidence {
        Evidence { addresses: vec![address.parse().unwrap()], ..known }
    }

    fn first(symptom: &Symptom, known: &Evidence) -> Cause {
        judge(symptom, known).causes.remove(0)
    }

    /// What the likeliest cause says, and its cure.
    fn assert_first(symptom: &Symptom, known: &Evidence, cause: &str, cure: &str) {
        let first = first(symptom, known);
        assert!(
            first.cause.contains(cause) && first.cure.contains(cure),
            "{symptom:?} {known:?}: {first:?}"
        );
    }

    #[test]
    fn a_refused_token_is_judged_by_what_was_signed() {
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
        let told = Evidence { region_from: RegionFrom::Configuration, ..cname() };
        let cases = [
            (rds(), "may not log in", "arn:aws:rds-db:eu-west-1:ACCOUNT:dbuser:RESOURCE-ID/app"),
            (elsewhere, "is in eu-west-1", "region_name=eu-west-1"),
            (
                with_names(cname(), &chain),
                "RDS endpoint behind db.example.com",
                "iam_host=db.abc.eu-west-1.rds.amazonaws.com",
            ),
            (cname(), "for a CNAME: db.example.com", "iam_host="),
            (told, "for a CNAME", "iam_host="),
            (Evidence::of_host(machine), "followed too far", "iam_host="),
            (at(Evidence::of_host("localhost"), "127.0.0.1"), "near end of a tunnel", "iam_host="),
            (at(tunnel, "127.0.0.1"), "port 6543 of a tunnel", "iam_port=5432"),
        ];
        for (known, cause, cure) in cases {
            assert_first(&refused(), &known, cause, cure);
        }
    }

    #[test]
    fn causes_of_a_refused_token_that_look_alike_are_all_named_with_what_decides() {
        let causes = judge(&refused(), &rds()).causes;
        let order =
            ["may not log in", "another account", "clock is off", "revoked", "200 new logins"];
        assert_eq!(causes.len(), order.len());
        for (cause, expected) in causes.iter().zip(order) {
            assert!(cause.cause.contains(expected) && cause.decided_by.is_some(), "{cause:?}");
        }
        let told = Evidence { region_from: RegionFrom::Configuration, ..cname() };
        let causes = judge(&refused(), &told).causes;
        assert!(
            causes[1].cause.contains("not in eu-west-1, which AWS_REGION or the AWS profile says"),
            "{causes:?}"
        );
        assert!(
            causes
                .last()
                .unwrap()
                .cause
                .contains("a pooler in between cuts the token of 400 bytes"),
            "{causes:?}"
        );
    }

    #[test]
    fn what_a_server_says_has_its_cure() {
        let cases = [
            (
                "password authentication failed for user \"app\"",
                "lacks the role",
                "GRANT rds_iam TO \"app\";",
            ),
            (
                "authentication method requirement \"password\" failed: server requested SCRAM-SHA-256 authentication",
                "lacks the role",
                "GRANT rds_iam TO \"app\";",
            ),
            (
                "IAM authentication failed for the role app",
                "may not log in",
                "dbuser:RESOURCE-ID/app",
            ),
            ("IAM is allowed only with SSL connections", "SSL", "sslmode=verify-full"),
            ("too many competing requests", "competing", "pool"),
            ("string truncated", "no password of 400 bytes", "raise its longest password"),
            ("connection closed", "no password of 400 bytes", "raise its longest password"),
            (
                "no pg_hba.conf entry for host \"10.0.0.1\", no encryption",
                "no encryption",
                "sslmode=verify-full",
            ),
            (
                "pg_hba.conf rejects connection for host \"10.0.0.1\"",
                "rejects",
                "sslmode=verify-full",
            ),
            ("database \"x\" does not exist", "does not exist", "names of database"),
            ("sorry, too many clients already", "too many", "max_size"),
            ("too many connections for role \"app\"", "too many", "CONNECTION LIMIT"),
            ("the database system is starting up", "starting up", "wait"),
            ("something never seen before", "never seen", "server's log"),
        ];
        for (text, cause, cure) in cases {
            assert_first(&Symptom::said(text), &rds(), cause, cure);
        }
        let by_sqlstate =
            Symptom::Said { text: "in another language".into(), sqlstate: Some("28P01".into()) };
        assert_first(&by_sqlstate, &rds(), "lacks the role", "GRANT");
    }

    #[test]
    fn who_cannot_be_reached_is_judged_by_the_address() {
        let no_way = Symptom::NoWay("connection timed out".into());
        let refused = Symptom::NobodyListens("connection refused".into());
        let cases = [
            (&no_way, at(rds(), "10.0.0.1"), "outside of its VPC", "VPN"),
            (&no_way, at(rds(), "fd00::1"), "outside of its VPC", "VPN"),
            (&no_way, at(rds(), "54.1.2.3"), "security group", "TCP 5432"),
            (&refused, at(rds(), "10.0.0.1"), "port is another", "port="),
            (&refused, at(rds(), "127.0.0.1"), "no tunnel", "ssh -N -L 5432:db.abc"),
            (&Symptom::NoAddress("unknown".into()), rds(), "misspelt", "console"),
            (&Symptom::Silence, at(rds(), "10.0.0.1"), "the server hangs", "restart"),
            (&Symptom::Silence, at(rds(), "127.0.0.1"), "a tunnel", "behind it"),
        ];
        for (symptom, known, cause, cure) in cases {
            assert_first(symptom, &known, cause, cure);
        }
    }

    #[test]
    fn a_certificate_is_judged_by_who_issued_it_and_for_whom() {
        let untrusted = |issuer: Option<&str>| Symptom::Untrusted {
            text: "certificate verify failed".into(),
            roots: "/roots.pem".into(),
            issuer: issuer.map(str::to_owned),
        };
        let amazon = untrusted(Some("Amazon RDS eu-west-1 Root CA RSA2048 G1"));
        assert_first(&amazon, &rds(), "not in /roots.pem", "global-bundle.pem");
        assert_eq!(judge(&amazon, &rds()).causes.len(), 1);
        assert_first(&untrusted(None), &rds(), "not in /roots.pem", "global-bundle.pem");
        assert_first(&untrusted(Some("Some Firewall")), &rds(), "Some Firewall", "sslrootcert=");
        let outdated =
            |is_early| Symptom::Outdated { text: "certificate has expired".into(), is_early };
        assert_first(&outdated(false), &rds(), "has ended", "rotate");
        assert_first(&outdated(true), &rds(), "clock", "NTP");

        let wrong_name = Symptom::WrongName { text: "hostname mismatch".into() };
        assert_first(&wrong_name, &cname(), "CNAME or a tunnel", "iam_host=");
        let one = with_names(cname(), &[RDS]);
        assert_first(&wrong_name, &one, "RDS endpoint behind", "iam_host=db.abc");
        assert_eq!(first(&wrong_name, &one).decided_by, None);
        let several = with_names(cname(), &[RDS, "c.cluster-abc.eu-west-1.rds.amazonaws.com"]);
        assert!(first(&wrong_name, &several).decided_by.is_some());
    }

    #[test]
    fn a_name_in_sql_is_quoted() {
        assert_eq!(identifier("o\"dd"), "\"o\"\"dd\"");
    }
}
