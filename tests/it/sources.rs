//! Each source of the default chain, by HTTP or files, up to a login.

use std::path::PathBuf;
use std::sync::Arc;

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, RdsConnectionManager};
use tempfile::TempDir;

use crate::support::cloud::{self, Cloud, Request, https_proxy, reply, role_credentials};
use crate::support::moto::Moto;
use crate::support::{
    current_user, in_a_child, in_a_network_of_its_own, log, start, write_private,
};

/// A server that trusts the credentials of one role only, and a home folder.
pub(crate) struct Stage {
    pub(crate) rds: Arc<LocalRds>,
    pub(crate) role: Credentials,
    home: TempDir,
    environment: Vec<(String, String)>,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let rds =
            Arc::new(start(LocalRds::builder().certificate_name("sts.us-east-1.amazonaws.com")));
        let role = role_credentials("ROLE");
        rds.add_key_pair(role.clone());
        rds.revoke_key_pair(rds.credentials().access_key_id());
        let home = tempfile::tempdir().unwrap();
        let mut stage = Stage { rds, role, home, environment: Vec::new() };
        stage.set("DATABASE_URL", stage.rds.database_url());
        stage.set("HOME", stage.home.path().display().to_string());
        stage
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Sets the base credentials of a role. STS accepts them, the server does not.
    pub(crate) fn set_keys(&mut self) {
        self.set("AWS_ACCESS_KEY_ID", "AKIABASE");
        self.set("AWS_SECRET_ACCESS_KEY", "local-rds-secret-base");
    }

    /// Sets a web identity, as on EKS, that this STS accepts.
    fn set_web_identity(&mut self, sts: &Cloud) {
        self.set("AWS_ENDPOINT_URL_STS", sts.url());
        self.set("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/r");
        let token = self.write("token", "identity-token");
        self.set("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string());
    }

    pub(crate) fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_private(&path, contents);
        path
    }

    pub(crate) fn run(&self, test: &str) {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        in_a_child(test, &environment);
    }

    pub(crate) fn logs_in(&self) {
        self.run("environment::logs_in");
        assert_eq!(self.rds.attempts().len(), 1);
    }
}

#[test]
fn environment_with_a_session_token() {
    let mut stage = Stage::new();
    let role = stage.role.clone();
    stage.set("AWS_ACCESS_KEY_ID", role.access_key_id());
    stage.set("AWS_SECRET_ACCESS_KEY", role.secret_access_key());
    stage.set("AWS_SESSION_TOKEN", role.session_token().unwrap());
    stage.logs_in();
}

fn keys(credentials: &Credentials) -> String {
    format!(
        "aws_access_key_id={}\naws_secret_access_key={}\naws_session_token={}\n",
        credentials.access_key_id(),
        credentials.secret_access_key(),
        credentials.session_token().unwrap()
    )
}

#[test]
fn the_shared_credentials_file_by_profile() {
    let mut stage = Stage::new();
    stage.write(".aws/credentials", &format!("[other]\n{}", keys(&stage.role)));
    stage.set("AWS_PROFILE", "other");
    stage.logs_in();
}

#[test]
#[ignore = "runs in a separate process"]
fn a_profile_of_the_builder() {
    log();
    let manager = RdsConnectionManager::builder().profile("mine").build_from_env().unwrap();
    assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
}

#[test]
fn the_builders_profile_is_the_only_source() {
    let mut stage = Stage::new();
    stage.set_keys();
    stage.write(".aws/config", &format!("[profile mine]\n{}", keys(&stage.role)));
    stage.run("sources::a_profile_of_the_builder");
}

#[test]
fn credential_process() {
    let stage = Stage::new();
    let json = cloud::json(&stage.role).replace("\"Code\"", "\"Version\":1,\"Code\"");
    let json = json.replace("\"Token\"", "\"SessionToken\"");
    let answer = stage.write("answer.json", &json);
    stage
        .write(".aws/config", &format!("[default]\ncredential_process=cat {}\n", answer.display()));
    stage.logs_in();
}

#[test]
fn role_arn_with_a_source_profile() {
    let mut stage = Stage::new();
    let sts = Cloud::start(cloud::sts(stage.role.clone()));
    stage.set("AWS_ENDPOINT_URL_STS", sts.url());
    stage.write(
        ".aws/config",
        "[default]\nrole_arn=arn:aws:iam::111122223333:role/r\nsource_profile=base\n[profile \
         base]\naws_access_key_id=AKIABASE\naws_secret_access_key=local-rds-secret-base\n",
    );
    stage.logs_in();
    assert_eq!(sts.calls(), 1);
}

#[test]
fn role_arn_with_a_credential_source() {
    let mut stage = Stage::new();
    let sts = Cloud::start(cloud::sts(stage.role.clone()));
    stage.set("AWS_ENDPOINT_URL_STS", sts.url());
    stage.set("BASE", "set");
    stage.set("AWS_EC2_METADATA_DISABLED", "false");
    let imds = Cloud::start(cloud::imds(role_credentials("INSTANCE")));
    stage.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
    stage.write(
        ".aws/config",
        "[default]\nrole_arn=arn:aws:iam::111122223333:role/r\n\
         credential_source=Ec2InstanceMetadata\n",
    );
    stage.logs_in();
    assert_eq!(sts.calls(), 1);
    assert!(imds.calls() >= 3);
}

#[test]
fn sso_with_a_cached_token() {
    let mut stage = Stage::new();
    let portal = Cloud::start(cloud::sso(stage.role.clone()));
    stage.set("AWS_ENDPOINT_URL_SSO", portal.url());
    let start_url = "https://example.awsapps.com/start";
    stage.write(
        ".aws/config",
        &format!(
            "[default]\nsso_start_url={start_url}\nsso_region=us-east-1\n\
             sso_account_id=111122223333\nsso_role_name=r\n"
        ),
    );
    let name: String =
        openssl::sha::sha1(start_url.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    stage.write(
        &format!(".aws/sso/cache/{name}.json"),
        r#"{
            "accessToken": "sso-token",
            "expiresAt": "2100-01-01T00:00:00Z",
            "region": "us-east-1",
            "startUrl": "https://example.awsapps.com/start"
        }"#,
    );
    stage.logs_in();
    assert_eq!(portal.calls(), 1);
}

#[test]
fn web_identity_as_on_eks() {
    let mut stage = Stage::new();
    let role = stage.role.clone();
    let sts = Cloud::start(move |request: &Request| {
        assert!(request.body.contains("WebIdentityToken=identity-token"), "{}", request.body);
        cloud::sts_reply("AssumeRoleWithWebIdentity", &role)
    });
    stage.set_web_identity(&sts);
    stage.logs_in();
    assert_eq!(sts.calls(), 1);
}

#[test]
fn a_container_by_full_uri_as_eks_pod_identity() {
    let mut stage = Stage::new();
    let role = stage.role.clone();
    let container = Cloud::start(move |request: &Request| match request.header("authorization") {
        Some("pod-token") => reply(200, cloud::json(&role)),
        _ => reply(403, "{}"),
    });
    stage.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", container.url()));
    let token = stage.write("pod-token", "pod-token");
    stage.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.display().to_string());
    stage.logs_in();
    assert_eq!(container.calls(), 1);
}

#[test]
fn a_container_by_relative_uri_as_on_ecs() {
    in_a_network_of_its_own(
        "sources::on_ecs",
        "169.254.170.2",
        &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1")],
    );
}

#[test]
#[ignore = "runs in a separate network, with the address of the metadata service of ECS"]
fn on_ecs() {
    let stage = Stage::new();
    let role = stage.role.clone();
    let container =
        Cloud::start_at("169.254.170.2:80", move |request: &Request| match request.line.as_str() {
            "GET /v2/credentials/1" => reply(200, cloud::json(&role)),
            line => reply(404, line),
        });
    let manager = RdsConnectionManager::new(stage.rds.database_url()).unwrap();
    assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
    assert_eq!(container.calls(), 1);
}

#[test]
fn instance_metadata_version_2() {
    let mut stage = Stage::new();
    let imds = Cloud::start(cloud::imds(stage.role.clone()));
    stage.set("AWS_EC2_METADATA_DISABLED", "false");
    stage.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
    stage.logs_in();
}

#[test]
#[ignore = "runs in a separate process"]
fn a_role_of_the_builder() {
    log();
    let manager = RdsConnectionManager::builder()
        .assume_role("arn:aws:iam::444455556666:role/theirs")
        .external_id("shared secret")
        .session_name("me")
        .build_from_env()
        .unwrap();
    assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
}

#[test]
fn the_builder_assumes_a_role_in_another_account() {
    let mut stage = Stage::new();
    stage.set_keys();
    let role = stage.role.clone();
    let sts = Cloud::start(move |request: &Request| {
        for part in ["role%2Ftheirs", "ExternalId=shared%20secret", "RoleSessionName=me"] {
            assert!(request.body.contains(part), "{}", request.body);
        }
        assert!(request.header("authorization").unwrap().contains("Credential=AKIABASE/"));
        cloud::sts_reply("AssumeRole", &role)
    });
    stage.set("AWS_ENDPOINT_URL_STS", sts.url());
    stage.run("sources::a_role_of_the_builder");
    assert_eq!(sts.calls(), 1);
}

#[test]
fn https_goes_through_the_proxy_and_is_verified() {
    let mut stage = Stage::new();
    stage.set_keys();
    let folder = stage.rds.ca_file().parent().unwrap().display().to_string();
    let proxy = https_proxy(
        &format!("{folder}/server.pem"),
        &format!("{folder}/server.key"),
        cloud::sts(stage.role.clone()),
    );
    stage.set("HTTPS_PROXY", proxy.url());
    stage.set("SSL_CERT_FILE", stage.rds.ca_file().display().to_string());
    stage.run("sources::a_role_of_the_builder");
    assert_eq!(proxy.calls(), 1);
}

#[test]
#[ignore = "runs in a separate process, with the environment of the other tests"]
fn the_error_names_the_cause() {
    log();
    let text = RdsConnectionManager::from_env().unwrap().token().unwrap_err().to_string();
    let expected = std::env::var("EXPECTED").unwrap();
    assert!(text.starts_with("no AWS credentials: "), "{text}");
    assert!(text.contains(&expected), "{text}\n{expected}");
    assert!(text.contains(&std::env::var("CURE").unwrap_or_default()), "{text}");
    assert!(!text.contains("local-rds-secret"), "{text}");
}

/// Name and contents of a file in the home folder, and what the error must contain.
const BAD_FILES: &[(&str, &str, &str)] = &[
    (".aws/config", "[default\nregion", "profile \"default\": "),
    (".aws/config", "[default]\naws_access_key_id=AKIA1\n", "profile \"default\": "),
    (
        ".aws/config",
        "[default]\nsource_profile=nowhere\nrole_arn=arn:aws:iam::111122223333:role/r\n",
        "nowhere",
    ),
    (".aws/config", "[default]\ncredential_process=exit 1\n", "profile \"default\": "),
    (".aws/config", "[default]\ncredential_process=echo nonsense\n", "profile \"default\": "),
    (
        ".aws/config",
        "[default]\ncredential_process=echo \
         '{\"Version\":1,\"AccessKeyId\":\"AKIA1\",\
         \"SecretAccessKey\":\"local-rds-secret-x\",\"SessionToken\":\"t\",\
         \"Expiration\":\"2020-01-01T00:00:00Z\"}'\n",
        "gave credentials that ended at 2020-01-01T00:00:00Z",
    ),
    (".aws/credentials", "\u{0}\u{1}\u{2}", "profile \"default\": "),
];

#[test]
fn bad_files_name_the_profile() {
    for (name, contents, expected) in BAD_FILES {
        let mut stage = Stage::new();
        stage.write(name, contents);
        stage.set("EXPECTED", *expected);
        stage.run("sources::the_error_names_the_cause");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_not_one_that_is_absent() {
    let mut stage = Stage::new();
    stage.write(".aws/credentials/not-a-file", "");
    stage.set("EXPECTED", "/.aws/credentials: Is a directory");
    stage.run("sources::the_error_names_the_cause");
}

#[test]
fn the_error_of_a_later_place_contains_those_of_earlier_ones() {
    let mut stage = Stage::new();
    stage.set("AWS_PROFILE", "typo");
    stage.set("AWS_EC2_METADATA_DISABLED", "false");
    let imds = Cloud::start(|_: &Request| reply(403, ""));
    stage.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
    stage.set("EXPECTED", "profile \"typo\": ");
    stage.set("CURE", "instance metadata: ");
    stage.run("sources::the_error_names_the_cause");
}

#[test]
fn a_proxy_of_another_kind_gets_no_password() {
    let mut stage = Stage::new();
    stage.set_keys();
    stage.set("HTTPS_PROXY", "https://user:hunter2@127.0.0.1:9");
    stage.run("sources::has_no_proxy");
}

#[test]
#[ignore = "runs in a separate process, with the environment of the other tests"]
fn has_no_proxy() {
    log();
    let manager = RdsConnectionManager::builder()
        .assume_role("arn:aws:iam::111122223333:role/r")
        .build_from_env();
    let text = manager.unwrap().token().unwrap_err().to_string();
    assert!(text.contains("names a proxy that is not http://"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_profile_that_does_not_exist_is_named() {
    let mut stage = Stage::new();
    stage.write(".aws/config", "[default]\n");
    stage.set("AWS_PROFILE", "nowhere");
    stage.set("EXPECTED", "profile \"nowhere\": ");
    stage.run("sources::the_error_names_the_cause");
}

#[test]
fn a_broken_sts_is_named() {
    let denied = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not \
                  authorized to assume r</Message></Error></ErrorResponse>";
    for (status, body, expected) in [
        (403, denied, "not authorized to assume r"),
        (500, "", "web identity: "),
        (200, "garbage", "web identity: "),
        (200, "", "web identity: "),
    ] {
        let mut stage = Stage::new();
        let sts = Cloud::start(move |_: &Request| reply(status, body));
        stage.set_web_identity(&sts);
        stage.set("EXPECTED", expected);
        stage.run("sources::the_error_names_the_cause");
        assert!(sts.calls() > 0);
    }
}

#[test]
fn an_sts_that_closes_the_connection_or_hangs_is_an_error_in_time() {
    let quiet = |_: &Request| cloud::hang_up();
    let hangs = |_: &Request| {
        std::thread::park();
        cloud::hang_up()
    };
    for (sts, expected) in [
        (Cloud::start(quiet), "io error"),
        (Cloud::start(hangs), "web identity: no answer within 10s; check why"),
    ] {
        let mut stage = Stage::new();
        stage.set_web_identity(&sts);
        stage.set("EXPECTED", expected);
        stage.run("sources::the_error_names_the_cause");
        assert!(sts.calls() > 0);
    }
}

#[test]
#[ignore = "runs in a separate process, with the environment of the other tests"]
fn recovers() {
    let rds = start(LocalRds::builder());
    let role = role_credentials("ROLE");
    rds.add_key_pair(role.clone());
    let address = std::env::var("AWS_ENDPOINT_URL_STS").unwrap().replace("http://", "");
    let sts = Cloud::start_at(&address, |_: &Request| reply(403, "no"));
    let manager = RdsConnectionManager::builder()
        .assume_role("arn:aws:iam::111122223333:role/r")
        .build(rds.database_url())
        .unwrap();
    let text = manager.token().unwrap_err().to_string();
    assert!(text.contains("role arn:aws:iam::111122223333:role/r: "), "{text}");
    sts.now_answers(cloud::sts(role));
    manager.connect().unwrap();
}

#[test]
fn a_source_that_works_again_is_used_at_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let keys =
        [("AWS_ACCESS_KEY_ID", "AKIABASE"), ("AWS_SECRET_ACCESS_KEY", "local-rds-secret-base")];
    in_a_child("sources::recovers", &[keys[0], keys[1], ("AWS_ENDPOINT_URL_STS", &url)]);
}

#[test]
fn odd_characters_in_a_key_id_are_signed_unchanged() {
    let mut stage = Stage::new();
    let odd = Credentials::new("AK/IA+ é", "local-rds-secret-odd", None, None, "test");
    stage.rds.add_key_pair(odd.clone());
    stage.set("AWS_ACCESS_KEY_ID", odd.access_key_id());
    stage.set("AWS_SECRET_ACCESS_KEY", odd.secret_access_key());
    stage.run("sources::signs");
}

#[test]
#[ignore = "runs in a separate process, with the environment of the other tests"]
fn signs() {
    log();
    let token = RdsConnectionManager::from_env().unwrap().token().unwrap();
    assert!(token.as_str().contains("X-Amz-Credential=AK%2FIA%2B%20%C3%A9%2F"));
}

#[test]
fn moto_plays_sts() {
    let mut stage = Stage::new();
    stage.set_keys();
    let moto = Moto::start();
    let sts = moto.sts_for(stage.rds.clone());
    stage.set("AWS_ENDPOINT_URL_STS", sts.url());
    stage.run("sources::a_role_of_the_builder");
    assert_eq!(sts.calls(), 1);
}
