//! What each step looks at.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use diesel::PgConnection;

use super::evidence::Evidence;
use super::login::Attempt;
use super::step::Finding;
use super::symptom::Symptom;
use super::timeout::{LIMIT, within};
use super::tls::Rules;
use super::{Diagnosis, diagnose, dns, session, tls};
use crate::conninfo::Host;
use crate::error::{Error, causes, credentials_cure, one_line, utc};
use crate::login::{Iam, Login, Target};
use crate::token::{AuthToken, HostKind, HostName, masked};

fn judge<T>(outcome: Result<T, Symptom>, known: &Evidence) -> Result<T, Diagnosis> {
    outcome.map_err(|symptom| diagnose::judge(&symptom, known))
}

fn too_late() -> Diagnosis {
    Diagnosis::plain(
        format!("no end within {LIMIT:?}"),
        "see the steps before, and the server's log",
    )
}

pub(super) fn region(target: &Target) -> Finding<()> {
    let endpoint = &target.endpoint;
    let mut finding = Finding::new(Ok(()))
        .with("region", endpoint.region())
        .with("told by", target.region_from.to_string())
        .with("signed for", endpoint.to_string());
    if let Some(told) = Evidence::new(target).other_region() {
        finding = finding.with("told by the host name", told);
    }
    finding
}

pub(super) fn credentials(login: &Arc<Login>) -> Finding<Credentials> {
    let asked = login.clone();
    // The cache has the same limit, and names the source that did not answer.
    let outcome = within(LIMIT + Duration::from_millis(500), move || match &*asked {
        Login::Iam(iam) => Some((iam.credentials.get(), iam.credentials.place())),
        Login::Password(_) => None,
    });
    match outcome.flatten() {
        None => Finding::new(Err(too_late())),
        Some((Err(error), _)) => Finding::new(Err(no_credentials(&error))),
        Some((Ok(credentials), place)) => {
            let (key, ends) = (masked(&credentials), end(credentials.expiry()));
            let account = Vec::from_iter(account_of(&credentials));
            Finding::new(Ok(credentials))
                .with("source", place.unwrap_or_default())
                .with("access key id", key)
                .with("end", ends)
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
    let text = format!("no AWS credentials: {}", causes(cause));
    diagnose::judge_credentials(&text, &credentials_cure(cause), in_ecs_task)
}

fn end(time: Option<SystemTime>) -> String {
    time.map_or("none".into(), |time| {
        let left = time.duration_since(SystemTime::now()).unwrap_or_default();
        format!("{} (in {} min)", utc(time), left.as_secs() / 60)
    })
}

pub(super) fn addresses(host: &Host, known: &mut Evidence) -> Finding<Vec<IpAddr>> {
    let found = match &host.hostaddr {
        Some(address) => address
            .parse()
            .map(|address| vec![address])
            .map_err(|_| format!("{address} is no address")),
        None => resolve(host),
    };
    if host.hostaddr.is_none() && is_worth_asking(&host.name, &found) {
        known.names = dns::cnames(&host.name);
    }
    if let (Some(address), Err(_)) = (&host.hostaddr, &found) {
        let text = format!("hostaddr={address} is no address");
        return Finding::new(Err(Diagnosis::plain(
            text,
            "give hostaddr= an IP address, or leave it out",
        )));
    }
    known.addresses = found.clone().unwrap_or_default();
    let finding = Finding::new(judge(found.map_err(Symptom::NoAddress), known));
    finding.with_list("addresses", &known.addresses, ", ").with_list(
        "CNAME of",
        &known.names,
        ", then ",
    )
}

/// Leaves time to ask for the CNAMEs.
fn resolve(host: &Host) -> Result<Vec<IpAddr>, String> {
    let asked = host.clone();
    let why = match within(LIMIT - dns::LIMIT, move || asked.resolve()) {
        Some(Ok(addresses)) => return Ok(addresses),
        Some(Err(error)) => error.to_string(),
        None => "no answer".into(),
    };
    Err(format!("cannot resolve host name \"{}\": {why}", host.name))
}

/// An RDS name is its own, and this machine's are in no DNS.
fn is_worth_asking(name: &str, found: &Result<Vec<IpAddr>, String>) -> bool {
    let is_endpoint = HostName::parse(name).is_ok_and(|name| name.kind() != HostKind::Other);
    let is_elsewhere = found.as_ref().is_ok_and(|found| !found.iter().all(IpAddr::is_loopback));
    !is_endpoint && is_elsewhere && name.contains('.')
}

/// The first address that accepts TCP. Each gets its share of the time.
pub(super) fn reach(addresses: &[IpAddr], known: &Evidence) -> Finding<SocketAddr> {
    let share = LIMIT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = Symptom::NoAddress("the name has no address".into());
    for address in addresses.iter().map(|address| SocketAddr::new(*address, known.port)) {
        match TcpStream::connect_timeout(&address, share) {
            Ok(_) => return Finding::new(Ok(address)).with("address", address.to_string()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = Symptom::NobodyListens(format!("{address}: {error}"));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                last = Symptom::HangsUp(format!("{address}: {error}"));
            }
            Err(error) => last = Symptom::NoWay(format!("{address}: {error}")),
        }
    }
    Finding::new(judge(Err(last), known))
}

pub(super) fn certificate(address: SocketAddr, rules: &Rules, known: &mut Evidence) -> Finding<()> {
    let (asked, name) = (rules.clone(), known.endpoint.host().to_owned());
    let looked = within(LIMIT, move || tls::look(address, &name, &asked));
    let (chain, verdict) = looked.unwrap_or_else(|| (Vec::new(), Err(Symptom::Silence)));
    known.names.extend(chain.first().into_iter().flat_map(|server| server.names.clone()));
    let mut finding = Finding::new(judge(verdict, known)).with("judged by", rules.authority());
    for certificate in &chain {
        let text = format!(
            "{}, by {}, until {}",
            certificate.subject, certificate.issuer, certificate.ends
        );
        finding = finding.with("certificate", text);
    }
    finding.with_list("for", chain.first().map_or(&[], |server| &server.names), ", ")
}

pub(super) fn token(
    iam: &Iam,
    target: &Target,
    credentials: &Credentials,
    known: &mut Evidence,
) -> Finding<AuthToken> {
    let endpoint = &target.endpoint;
    let signed_for = format!("{} at {endpoint} in {}", target.user, endpoint.region());
    match iam.sign(endpoint, credentials) {
        Err(error) => Finding::new(Err(Diagnosis::of(&error))),
        Ok(token) => {
            known.token_length = token.as_str().len();
            let ends = end(Some(token.expires_at()));
            let length = format!("{} bytes", known.token_length);
            Finding::new(Ok(token))
                .with("length", length)
                .with("end", ends)
                .with("signed for", signed_for)
        }
    }
}

pub(super) fn login(attempt: Attempt, rules: &Rules, known: &Evidence) -> Finding<()> {
    Finding::new(judge(attempt.run(rules), known))
}

/// As [`connect`](r2d2::ManageConnection::connect), once.
pub(super) fn libpq(
    login: &Arc<Login>,
    diagnose: impl FnOnce(&Error) -> Diagnosis,
) -> Finding<PgConnection> {
    let login = login.clone();
    Finding::new(match within(LIMIT, move || login.connect_once()) {
        Some(outcome) => outcome.map_err(|error| diagnose(&error)),
        None => Err(too_late()),
    })
}

pub(super) fn session(mut connection: PgConnection) -> Finding<()> {
    match within(LIMIT, move || session::facts(&mut connection)) {
        Some(Ok(facts)) => Finding { facts, outcome: Ok(()) },
        Some(Err(error)) => Finding::new(Err(Diagnosis::plain(
            one_line(&error),
            "see the server's log, and the rights of this user",
        ))),
        None => Finding::new(Err(too_late())),
    }
}
