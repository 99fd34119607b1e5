//! What each step checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use diesel::connection::SimpleConnection;
use diesel::sql_types::{Bool, Double, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};
use postgres_native_tls::MakeTlsConnector;
use tokio_postgres::config::{Config, SslMode};

use super::diagnose;
use super::diagnosis::{Diagnosis, Fact, Finding};
use super::evidence::{Evidence, Symptom, Untrusted};
use super::examination::{TIMEOUT, within, within_async};
use super::tls::{self, Rules};
use crate::error::{Error, causes, chain, credentials_cure, utc};
use crate::login::{Iam, Login, Target};
use crate::token::{AuthToken, masked};

fn timed_out() -> Diagnosis {
    Diagnosis::plain(&format!("no answer within {TIMEOUT:?}"), "check the server's log")
}

pub(super) fn region(target: &Target) -> Finding<()> {
    let endpoint = &target.endpoint;
    let mut finding = Finding::new(Ok(()))
        .with("region", endpoint.region())
        .with("set by", target.region_from.to_string())
        .with("signed for", endpoint.to_string());
    if let Some(region) = Evidence::new(target).other_region() {
        finding = finding.with("region in the host name", region);
    }
    finding
}

pub(super) fn credentials(login: &Arc<Login>) -> Finding<Credentials> {
    let login = login.clone();
    // The cache has the same timeout, and its error names the source.
    let outcome = within(TIMEOUT + Duration::from_millis(500), move || match &*login {
        Login::Iam(iam) => Some((iam.credentials.get(), iam.credentials.place())),
        Login::Password(_) => None,
    });
    match outcome.flatten() {
        None => Finding::new(Err(timed_out())),
        Some((Err(error), _)) => Finding::new(Err(no_credentials(&error))),
        Some((Ok(credentials), place)) => {
            let key = masked(&credentials);
            let expires = remaining(credentials.expiry());
            let account = Vec::from_iter(account_of(&credentials));
            Finding::new(Ok(credentials))
                .with("source", place.unwrap_or_default())
                .with("access key id", key)
                .with("expires", expires)
                .with_list("account", &account, "")
        }
    }
}

pub(super) fn account_of(credentials: &Credentials) -> Option<String> {
    credentials.account_id().map(|account| account.as_str().to_owned())
}

fn no_credentials(error: &Error) -> Diagnosis {
    let Error::Credentials { cause, .. } = error else { return Diagnosis::of(error) };
    let in_ecs_task = std::env::var_os("ECS_CONTAINER_METADATA_URI_V4").is_some()
        && std::env::var_os("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_none();
    let text = Untrusted::new(format!("no AWS credentials: {}", causes(cause)));
    diagnose::credentials(&text, credentials_cure(cause), in_ecs_task)
}

fn remaining(end: Option<SystemTime>) -> String {
    end.map_or("never".into(), |end| {
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        format!("{} (in {} min)", utc(end), left.as_secs() / 60)
    })
}

pub(super) fn tls(address: SocketAddr, rules: &Rules, evidence: &mut Evidence) -> Finding<()> {
    let name = evidence.endpoint.host().to_owned();
    let for_thread = rules.clone();
    let inspected = within(TIMEOUT, move || tls::inspect(address, &name, &for_thread));
    let (chain, outcome) = inspected.unwrap_or_else(|| (Vec::new(), Err(Symptom::Silence)));
    evidence.names.extend(chain.first().into_iter().flat_map(|server| server.names.clone()));
    let outcome = outcome.map_err(|symptom| diagnose::by_token(&symptom, evidence));
    let mut finding = Finding::new(outcome).with("checked by", rules.authority());
    for certificate in &chain {
        let text = format!(
            "{}, issued by {}, until {}",
            certificate.subject, certificate.issuer, certificate.expires
        );
        finding = finding.with("certificate", text);
    }
    let names = chain.first().map_or(&[][..], |server| &server.names);
    finding.with_list("for", names, ", ")
}

pub(super) fn token(
    iam: &Iam,
    target: &Target,
    credentials: &Credentials,
    evidence: &mut Evidence,
) -> Finding<AuthToken> {
    let endpoint = &target.endpoint;
    match iam.sign(endpoint, credentials) {
        Err(error) => Finding::new(Err(Diagnosis::of(&error))),
        Ok(token) => {
            evidence.token_length = token.as_str().len();
            let expires = remaining(Some(token.expires_at()));
            Finding::new(Ok(token))
                .with("length", format!("{} bytes", evidence.token_length))
                .with("expires", expires)
                .with("signed for", format!("{} at {endpoint}", target.user))
                .with("region", endpoint.region())
        }
    }
}

/// A login without libpq: it has the SQLSTATE, and shows whether libpq is the cause.
pub(super) struct Attempt {
    pub(super) address: SocketAddr,
    /// The name that the certificate must contain.
    pub(super) host: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) token: AuthToken,
}

pub(super) fn login(attempt: Attempt, rules: &Rules, evidence: &Evidence) -> Finding<()> {
    let outcome = rules.connector().and_then(|connector| {
        let tls = MakeTlsConnector::new(connector);
        within_async(TIMEOUT, move || attempt.run(tls)).unwrap_or(Err(Symptom::Silence))
    });
    Finding::new(
        outcome.map_err(|symptom| diagnose::by_token(&symptom, &evidence.with_local_verdict())),
    )
}

impl Attempt {
    async fn run(self, tls: MakeTlsConnector) -> Result<(), Symptom> {
        let mut config = Config::new();
        config.host(&self.host).hostaddr(self.address.ip()).port(self.address.port());
        config.user(&self.user).dbname(&self.database).password(self.token.as_str());
        config.ssl_mode(SslMode::Require).application_name("rds-iam doctor");
        let (client, connection) = config.connect(tls).await.map_err(|error| symptom(&error))?;
        drop(client);
        // Sends Terminate.
        let _ = connection.await;
        Ok(())
    }
}

fn symptom(error: &tokio_postgres::Error) -> Symptom {
    match error.as_db_error() {
        Some(response) => Symptom::Refused {
            text: Untrusted::new(format!("{}: {}", response.severity(), response.message())),
            sqlstate: Some(Untrusted::new(response.code().code())),
        },
        None if error.is_closed() => Symptom::ClosedAtLogin(Untrusted::new(chain(error))),
        None => Symptom::refused(chain(error)),
    }
}

/// As [`connect`](r2d2::ManageConnection::connect), once.
pub(super) fn libpq(
    login: &Arc<Login>,
    diagnose: impl FnOnce(&Error) -> Diagnosis,
) -> Finding<PgConnection> {
    let login = login.clone();
    Finding::new(match within(TIMEOUT, move || login.connect_once()) {
        Some(outcome) => outcome.map_err(|error| diagnose(&error)),
        None => Err(timed_out()),
    })
}

pub(super) fn session(mut connection: PgConnection) -> Finding<()> {
    match within(TIMEOUT, move || session_facts(&mut connection)) {
        Some(Ok(facts)) => Finding { facts, outcome: Ok(()) },
        Some(Err(error)) => Finding::new(Err(Diagnosis::plain(
            &error,
            "check the server's log, and the privileges of this user",
        ))),
        None => Finding::new(Err(timed_out())),
    }
}

/// One row.
type Row = (String, f64, Option<String>, bool, bool);

const QUERY: &str = "SELECT current_setting('server_version'), \
    extract(epoch FROM clock_timestamp())::float8, \
    (SELECT version || ', ' || cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), \
    EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam' \
            AND pg_has_role(current_user, oid, 'member')), \
    NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean";

fn session_facts(connection: &mut PgConnection) -> QueryResult<Vec<Fact>> {
    let latency = latency(connection)?;
    let before = SystemTime::now();
    let row = diesel::dsl::sql::<(Text, Double, Nullable<Text>, Bool, Bool)>(QUERY);
    let (version, clock, tls, has_role, is_read_write): Row = row.get_result(connection)?;
    let after = SystemTime::now();
    let yes_no = |is: bool| if is { "yes" } else { "no" };
    Ok(vec![
        Fact::new("server", format!("PostgreSQL {version}")),
        Fact::new("latency", format!("{:.2} ms", latency.as_secs_f64() * 1000.0)),
        Fact::new("clock", clock_difference(clock, before, after)),
        Fact::new("TLS", tls.unwrap_or_else(|| "none".into())),
        Fact::new("member of rds_iam", yes_no(has_role)),
        Fact::new("accepts writes", yes_no(is_read_write)),
    ])
}

/// Returns the shortest of three round trips.
fn latency(connection: &mut PgConnection) -> QueryResult<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        connection.batch_execute("SELECT 1")?;
        shortest = shortest.min(started.elapsed());
    }
    Ok(shortest)
}

/// Compares this machine's clock with the server's. A difference within the time of the query does
/// not count.
fn clock_difference(server: f64, before: SystemTime, after: SystemTime) -> String {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    };
    let ahead = seconds(before) - server;
    let behind = server - seconds(after);
    match () {
        () if ahead > 0.5 => format!("this machine is {ahead:.1} s ahead of the server"),
        () if behind > 0.5 => format!("this machine is {behind:.1} s behind the server"),
        () => "equal to the server's".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_ahead_or_behind() {
        let before = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let after = before + Duration::from_secs(2);
        let cases = [
            (990.0, "10.0 s ahead"),
            (1012.0, "10.0 s behind"),
            (1001.0, "equal"),
            (1002.4, "equal"),
        ];
        for (server, expected) in cases {
            let shown = clock_difference(server, before, after);
            assert!(shown.contains(expected), "{server}: {shown}");
        }
    }
}
