//! Logins that succeed, logins that fail, and their errors.

use std::time::{Duration, SystemTime};

use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, Endpoint, RdsConnectionManager, presign};

use crate::support::{
    current_user, key_pair, last_verdict, log_in, manager, minutes, refused, start, token_of,
};

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";

#[test]
fn a_user_with_rds_iam_logs_in_with_a_token() {
    let rds = start(LocalRds::builder());
    assert_eq!(current_user(&mut manager(&rds).connect().unwrap()), LocalRds::USER);
    assert_eq!(last_verdict(&rds), Ok(()));
}

#[test]
fn a_refused_token_and_a_wrong_password_have_different_errors() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(1);
    let text = refused(&manager(&rds));
    assert!(text.contains("LDAP authentication failed for user \"app\""), "{text}");
    assert!(text.contains("rds-db:connect"), "{text}");

    let without_grant =
        rds.manager_builder().build(rds.database_url_for(LocalRds::USER_WITHOUT_GRANT)).unwrap();
    let text = refused(&without_grant);
    let reasons = [
        "password authentication failed for user \"without_grant\"",
        // libpq 16 and newer refuse to send the token.
        "authentication method requirement \"password\" failed: server requested SASL",
    ];
    assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    assert!(text.contains("GRANT rds_iam"), "{text}");

    let unknown = rds.manager_builder().build(rds.database_url_for("unknown_user")).unwrap();
    assert!(refused(&unknown).contains("GRANT rds_iam"));

    let wrong = rds.password_url().replace(rds.password(), "wrong");
    let text = refused(&RdsConnectionManager::new(wrong).unwrap());
    assert!(text.contains("password authentication failed for user \"with_password\""), "{text}");
    assert_eq!(rds.attempts().len(), 1, "{:?}", rds.attempts());
}

#[test]
fn rds_iam_auth_false_logs_in_by_password() {
    let rds = start(LocalRds::builder());
    let manager = RdsConnectionManager::new(rds.password_url()).unwrap();
    assert_eq!(current_user(&mut manager.connect().unwrap()), LocalRds::USER_WITH_PASSWORD);
    assert!(manager.token().is_err());
    assert_eq!(manager.endpoints().count(), 0);
    assert!(!format!("{manager:?}").contains(rds.password()));
    assert!(rds.attempts().is_empty());
}

#[test]
fn a_token_changed_in_any_part_is_refused_with_the_right_reason() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let cases: &[(&str, &str, &str)] = &[
        ("db.abc123", "db.abc124", "signed for another endpoint"),
        (":5432/", ":5433/", "signed for another endpoint"),
        ("Action=connect", "Action=Connect", "Action has a wrong value"),
        ("&DBUser=app", "&DBUser=apq", "signed for another user"),
        ("&DBUser=app", "&DBUser=app&DBUser=app", "DBUser occurs twice"),
        ("&DBUser=app", "", "DBUser is missing"),
        ("HMAC-SHA256", "HMAC-SHA512", "X-Amz-Algorithm has a wrong value"),
        ("Credential=AKIA", "Credential=ASIA", "signed with an unknown key pair"),
        ("eu-west-1%2F", "eu-west-2%2F", "signed for another region"),
        ("rds-db", "rds", "signed for another service"),
        ("aws4_request", "aws4", "X-Amz-Credential has a wrong value"),
        ("Expires=900", "Expires=800", "wrong signature"),
        ("Expires=900", "Expires=9000", "X-Amz-Expires has a wrong value"),
        ("SignedHeaders=host", "SignedHeaders=", "X-Amz-SignedHeaders has a wrong value"),
        (
            "X-Amz-Signature=",
            "X-Amz-Security-Token=x&X-Amz-Signature=",
            "the session token does not belong to the key pair",
        ),
        ("X-Amz-Signature=", "X-Amz-Signature=f", "wrong signature"),
    ];
    for (part, other, refusal) in cases {
        let tampered = token_of(&rds, SystemTime::now()).replacen(part, other, 1);
        assert!(log_in(&rds, LocalRds::USER, &tampered).is_err(), "{part} -> {other}");
        assert_eq!(last_verdict(&rds).unwrap_err().to_string(), *refusal, "{part} -> {other}");
    }
    assert!(log_in(&rds, LocalRds::USER, &token_of(&rds, SystemTime::now())).is_ok());
}

#[test]
fn expired_and_future_tokens_are_refused() {
    let rds = start(LocalRds::builder());
    let now = SystemTime::now();
    for (signed_at, verdict) in [
        (now - minutes(16), Err(Refusal::Expired)),
        (now - minutes(14), Ok(())),
        (now + minutes(4), Ok(())),
        (now + minutes(6), Err(Refusal::Future)),
    ] {
        let login = log_in(&rds, LocalRds::USER, &token_of(&rds, signed_at));
        assert_eq!(login.is_ok(), verdict.is_ok());
        assert_eq!(last_verdict(&rds), verdict);
    }
}

#[test]
fn a_token_of_another_user_is_refused() {
    let rds = start(LocalRds::builder().iam_user("other"));
    assert!(log_in(&rds, "other", &token_of(&rds, SystemTime::now())).is_err());
    assert_eq!(last_verdict(&rds), Err(Refusal::User));
}

#[test]
fn odd_user_names_log_in() {
    let names = [
        "a&b",
        "a+b",
        "a b",
        "a#b",
        "a%b",
        "é",
        "user@example.com",
        "o'neil",
        r"back\slash",
        "\"quoted\"",
    ];
    let rds =
        start(names.iter().fold(LocalRds::builder(), |builder, name| builder.iam_user(*name)));
    for name in names {
        let manager = rds.manager_builder().build(rds.database_url_for(name)).unwrap();
        assert_eq!(current_user(&mut manager.connect().unwrap()), name);
    }
}

#[test]
fn each_of_20_connections_logs_in_with_a_new_token() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let connections: Vec<_> = (0..20)
        .map(|_| {
            rds.clock().advance(Duration::from_secs(1));
            manager.connect().unwrap()
        })
        .collect();
    let attempts = rds.attempts();
    assert_eq!(connections.len(), attempts.len());
    for (earlier, later) in attempts.iter().zip(&attempts[1..]) {
        assert!(earlier.signed_at < later.signed_at, "{earlier:?} {later:?}");
        assert_ne!(earlier.token_sha256, later.token_sha256);
    }
    for attempt in &attempts {
        assert_eq!(attempt.verdict, Ok(()));
        let age = attempt.at.duration_since(attempt.signed_at.unwrap()).unwrap();
        assert!(age < minutes(1), "signed {age:?} before its login");
    }
}

#[test]
fn open_connections_outlive_their_tokens() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let old_token = manager.token().unwrap();
    let mut connection = manager.connect().unwrap();
    rds.clock().advance(minutes(16));
    assert!(log_in(&rds, LocalRds::USER, old_token.as_str()).is_err());
    assert_eq!(last_verdict(&rds), Err(Refusal::Expired));
    assert_eq!(current_user(&mut connection), LocalRds::USER);
    assert!(manager.connect().is_ok());
}

#[test]
fn key_pairs_can_be_added_and_revoked() {
    let rds = start(LocalRds::builder());
    let other = key_pair(None);
    let manager = rds
        .manager_builder()
        .credentials_provider(other.clone())
        .build(rds.database_url())
        .unwrap();
    refused(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::UnknownKeyPair));
    rds.add_key_pair(other.clone());
    assert!(manager.connect().is_ok());
    rds.revoke_key_pair(other.access_key_id());
    refused(&manager);
    assert_eq!(last_verdict(&rds), Err(Refusal::UnknownKeyPair));
}

#[test]
fn a_session_token_of_role_credentials_is_part_of_the_token() {
    let rds = start(LocalRds::builder());
    let session_token = "SES/SION+TOK=EN==".repeat(70);
    let role = |token: &str| {
        Credentials::new("ASIAROLE", "local-rds-secret-role", Some(token.into()), None, "test")
    };
    rds.add_key_pair(role(&session_token));
    let manager = |credentials| {
        rds.manager_builder().credentials_provider(credentials).build(rds.database_url()).unwrap()
    };
    let with_it = manager(role(&session_token));
    assert!(with_it.token().unwrap().as_str().len() > 1_500);
    assert!(with_it.connect().is_ok());
    refused(&manager(role("another")));
    assert_eq!(last_verdict(&rds), Err(Refusal::SessionToken));
}

#[test]
fn a_cname_works_with_iam_host_under_verify_full() {
    // localhost is the CNAME: we connect to it, but neither sign for it nor expect its certificate.
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let cname = format!(
        "host=localhost port={} user=app dbname=app sslrootcert='{}' region_name=us-east-1",
        rds.port(),
        rds.ca_file().display()
    );
    refused(&rds.manager_builder().build(&cname).unwrap());
    assert_eq!(last_verdict(&rds), Err(Refusal::Endpoint));
    let fixed = rds.manager_builder().iam_host(NAME).iam_port(5432).build(&cname).unwrap();
    assert_eq!(fixed.endpoints().next().unwrap().to_string(), format!("{NAME}:5432"));
    assert!(fixed.connect().is_ok());
    // The same in the connection string.
    assert!(rds.manager_builder().build(rds.database_url()).unwrap().connect().is_ok());
}

#[test]
fn a_tunnel_to_an_address_works_with_iam_host_and_iam_port() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432));
    let tunnel = rds.database_url().replace("@localhost:", "@127.0.0.1:");
    assert!(tunnel.contains("@127.0.0.1:"));
    assert!(rds.manager_builder().build(tunnel).unwrap().connect().is_ok());
    // The same with hostaddr.
    let hostaddr = format!(
        "host={NAME} hostaddr=127.0.0.1 port={} user=app dbname=app sslrootcert='{}' \
         region_name=us-east-1 iam_port=5432",
        rds.port(),
        rds.ca_file().display()
    );
    assert!(rds.manager_builder().build(hostaddr).unwrap().connect().is_ok());
}

#[test]
fn a_dsql_cluster_gets_dsql_tokens() {
    let rds = start(
        LocalRds::builder()
            .endpoint("abc123.dsql.us-west-2.on.aws", 5432)
            .region("us-west-2")
            .iam_user("admin"),
    );
    for user in [LocalRds::USER, "admin"] {
        let manager = rds.manager_builder().build(rds.database_url_for(user)).unwrap();
        let token = manager.token().unwrap();
        assert!(token.as_str().starts_with("abc123.dsql.us-west-2.on.aws/?Action=DbConnect"));
        assert_eq!(current_user(&mut manager.connect().unwrap()), user);
    }
    // A token for other users is not valid for admin.
    assert!(log_in(&rds, "admin", &token_of(&rds, SystemTime::now())).is_err());
    assert!(matches!(last_verdict(&rds), Err(Refusal::Wrong { parameter: "Action", .. })));
}

#[test]
fn upper_case_and_a_trailing_dot_in_a_host_are_ignored() {
    let rds = start(LocalRds::builder());
    let odd = rds.database_url().replace("@localhost:", "@LocalHost.:");
    assert!(rds.manager_builder().build(odd).unwrap().connect().is_ok());
}

#[test]
fn verify_full_refuses_another_ca() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    let (ours, theirs) =
        (rds.ca_file().display().to_string(), other.ca_file().display().to_string());
    let url = rds.database_url().replace(&ours, &theirs);
    let text = refused(&rds.manager_builder().build(&url).unwrap());
    assert!(text.contains("certificate verify failed"), "{text}");
    assert!(text.contains("sslrootcert="), "{text}");
    assert!(rds.attempts().is_empty(), "a token was sent to an unverified server");
}

#[test]
fn verify_full_refuses_another_name() {
    let rds = start(LocalRds::builder());
    rds.set_endpoint(Endpoint::new(NAME, 5432, "us-east-1").unwrap());
    let text = refused(&rds.manager_builder().build(rds.database_url()).unwrap());
    assert!(text.contains("does not match host name"), "{text}");
    assert!(text.contains("iam_host="), "{text}");
    assert!(rds.attempts().is_empty(), "a token was sent to a server of another name");
}

#[test]
fn a_missing_ca_bundle_is_reported_with_its_url() {
    let rds = start(LocalRds::builder());
    let url = rds.database_url().replace("ca.pem", "nowhere.pem");
    let text = refused(&rds.manager_builder().build(&url).unwrap());
    assert!(text.contains("global-bundle.pem"), "{text}");
}

#[test]
fn the_longest_token_that_postgresql_accepts_logs_in() {
    let rds = start(LocalRds::builder());
    let key_pair = |length| {
        Credentials::new(
            "ASIALONG",
            "local-rds-secret-long",
            Some("s".repeat(length)),
            None,
            "test",
        )
    };
    let sign =
        |length| presign(&rds.endpoint(), LocalRds::USER, &key_pair(length), SystemTime::now());
    let longest = 65_530 - sign(1).unwrap().as_str().len() + 1;
    assert!(sign(longest).is_ok() && sign(longest + 1).is_err());
    rds.add_key_pair(key_pair(longest));
    log_in(&rds, LocalRds::USER, sign(longest).unwrap().as_str()).unwrap();
}

#[test]
fn sslmode_require_is_allowed() {
    let rds = start(LocalRds::builder());
    let url = format!("{}&sslmode=require", rds.database_url());
    assert!(rds.manager_builder().build(&url).unwrap().connect().is_ok());
}

#[test]
fn region_name_takes_precedence_over_the_host_name() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("us-east-1"));
    assert!(rds.database_url().contains("region_name=us-east-1"));
    assert!(manager(&rds).connect().is_ok());
    let by_host_name = rds.database_url().replace("region_name=us-east-1", "region_name=");
    refused(&rds.manager_builder().build(by_host_name).unwrap());
    assert_eq!(last_verdict(&rds), Err(Refusal::Region));
}

#[test]
fn an_unknown_database_and_a_closed_port_have_their_own_instructions() {
    let rds = start(LocalRds::builder());
    let url = rds.database_url().replace("/app?", "/nowhere?");
    let text = refused(&rds.manager_builder().build(&url).unwrap());
    assert!(text.contains("database \"nowhere\" does not exist; check the names"), "{text}");
    let url = rds.database_url();
    let manager = rds.manager_builder().build(url).unwrap();
    drop(rds);
    let text = refused(&manager);
    assert!(text.contains("Connection refused") && text.contains("check host and port"), "{text}");
}
