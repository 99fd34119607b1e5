//! Whether a token opens this endpoint, decided as AWS would.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_async::time::TimeSource;
use aws_smithy_types::date_time::{DateTime, Format};
use parking_lot::{Mutex, MutexGuard};
use percent_encoding::percent_decode_str;

use super::Clock;
use crate::token::{Endpoint, LIFETIME, Service, dsql_action, encode, hex};

/// A clock may be this much behind the one that signed.
const LEEWAY: Duration = Duration::from_secs(5 * 60);

/// One login by token.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When, by the server's [`Clock`].
    pub at: SystemTime,
    /// The database user.
    pub user: String,
    /// When the token says that it was signed.
    pub signed_at: Option<SystemTime>,
    /// The SHA-256 of the token, in hexadecimal: tells tokens apart without holding one.
    pub token_sha256: String,
    /// Whether it was let in, and if not, why.
    pub verdict: Result<(), Refusal>,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Attempt by {}, token {}: {:?}",
            self.user,
            self.token_sha256.get(..8).unwrap_or_default(),
            self.verdict
        )
    }
}

/// Why a token was refused. A client is told nothing of this, as on RDS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not of the form `HOST:PORT/?NAME=VALUE&...`.
    #[error("not a token")]
    NotAToken,
    /// A parameter is not percent-encoded as SigV4 wants it.
    #[error("{0} is wrongly percent-encoded")]
    Encoding(String),
    /// A parameter is there twice.
    #[error("{0} is there twice")]
    Duplicate(String),
    /// A parameter is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter has a value that no token has.
    #[error("{0} has a wrong value")]
    Wrong(&'static str),
    /// Signed for another host or port.
    #[error("signed for another endpoint")]
    Endpoint,
    /// Signed for another user.
    #[error("signed for another user")]
    User,
    /// Signed for another service.
    #[error("signed for another service")]
    Service,
    /// Signed for another region.
    #[error("signed for another region")]
    Region,
    /// Signed with a key pair that is not trusted (any more).
    #[error("signed with an unknown key pair")]
    UnknownKeyPair,
    /// The session token is not the key pair's own.
    #[error("not the session token of the key pair")]
    SessionToken,
    /// The signature is not that of this request.
    #[error("wrong signature")]
    Signature,
    /// Older than it may be.
    #[error("expired")]
    Expired,
    /// The key pair that signed it has ended.
    #[error("the key pair has ended")]
    KeyPairExpired,
    /// Signed more than five minutes in the future.
    #[error("signed in the future")]
    Future,
    /// A test asked for it ([`LocalRds::refuse_next`](super::LocalRds::refuse_next)).
    #[error("refused because a test asked for it")]
    Asked,
}

/// Judges and remembers.
pub(super) struct Judge {
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    endpoint: Endpoint,
    key_pairs: Vec<Credentials>,
    refuse_next: usize,
    attempts: Vec<Attempt>,
}

impl Judge {
    pub(super) fn new(endpoint: Endpoint, key_pair: Credentials) -> Judge {
        let state =
            State { endpoint, key_pairs: vec![key_pair], refuse_next: 0, attempts: Vec::new() };
        Judge { clock: Clock::default(), state: Mutex::new(state) }
    }

    /// Whether `user` may log in with `password`.
    pub(super) fn admits(&self, user: &str, password: &str) -> bool {
        let at = self.clock.now();
        let mut state = self.state();
        let verdict = if state.refuse_next > 0 {
            state.refuse_next -= 1;
            Err(Refusal::Asked)
        } else {
            judge(password, user, &state.endpoint, &state.key_pairs, at)
        };
        match &verdict {
            Ok(()) => log::debug!("LocalRds admits {user}"),
            Err(refusal) => log::debug!("LocalRds refuses {user}: {refusal}"),
        }
        let admitted = verdict.is_ok();
        let signed_at = Request::parse(password).ok().and_then(|request| request.signed_at().ok());
        let token_sha256 = sha256(password);
        state.attempts.push(Attempt {
            at,
            user: user.to_owned(),
            signed_at,
            token_sha256,
            verdict,
        });
        admitted
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.state().attempts.clone()
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.state().endpoint.clone()
    }

    pub(super) fn set_endpoint(&self, endpoint: Endpoint) {
        self.state().endpoint = endpoint;
    }

    pub(super) fn add_key_pair(&self, key_pair: Credentials) {
        let mut state = self.state();
        state.key_pairs.retain(|known| known.access_key_id() != key_pair.access_key_id());
        state.key_pairs.push(key_pair);
    }

    pub(super) fn revoke_key_pair(&self, access_key_id: &str) {
        self.state().key_pairs.retain(|key_pair| key_pair.access_key_id() != access_key_id);
    }

    pub(super) fn refuse_next(&self, logins: usize) {
        self.state().refuse_next = logins;
    }

    /// No state is left half changed by a panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The presigned request that a token is, percent-encoded as it came.
struct Request<'a> {
    authority: &'a str,
    parameters: BTreeMap<&'a str, &'a str>,
}

/// Who signed, and for what: the value of X-Amz-Credential.
struct Scope {
    key_id: String,
    date: String,
    region: String,
    service: String,
    terminator: String,
}

/// The whole judgement: nothing but its arguments counts.
pub(crate) fn judge(
    token: &str,
    user: &str,
    endpoint: &Endpoint,
    key_pairs: &[Credentials],
    now: SystemTime,
) -> Result<(), Refusal> {
    let request = Request::parse(token)?;
    let service = endpoint.service();
    let action = if service == Service::Dsql { dsql_action(user) } else { "connect" };
    request.expect("Action", action)?;
    request.expect("X-Amz-Algorithm", "AWS4-HMAC-SHA256")?;
    request.expect("X-Amz-SignedHeaders", "host")?;
    let expires = request.lifetime()?;
    let signed_at = request.signed_at()?;
    ensure(request.authority == endpoint.authority(), Refusal::Endpoint)?;
    // A DSQL token names no user: its action is all there is.
    ensure(service == Service::Dsql || request.value("DBUser")? == user, Refusal::User)?;
    let scope = request.scope()?;
    ensure(scope.service == service.name(), Refusal::Service)?;
    ensure(scope.region == endpoint.region(), Refusal::Region)?;
    let key_pair = key_pairs.iter().find(|pair| pair.access_key_id() == scope.key_id);
    let key_pair = key_pair.ok_or(Refusal::UnknownKeyPair)?;
    let session_token = request.parameters.get("X-Amz-Security-Token").map(|raw| decode(raw));
    ensure(session_token.as_deref() == key_pair.session_token(), Refusal::SessionToken)?;
    let signature = request.signature_by(key_pair.secret_access_key(), signed_at, &scope)?;
    ensure(request.value("X-Amz-Signature")? == signature, Refusal::Signature)?;
    ensure(key_pair.expiry().is_none_or(|end| now < end), Refusal::KeyPairExpired)?;
    ensure(now < signed_at + expires, Refusal::Expired)?;
    ensure(signed_at <= now + LEEWAY, Refusal::Future)
}

impl<'a> Request<'a> {
    fn parse(token: &'a str) -> Result<Request<'a>, Refusal> {
        let (authority, query) = token.split_once("/?").ok_or(Refusal::NotAToken)?;
        let mut parameters = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').ok_or(Refusal::NotAToken)?;
            ensure(encode(&decode(value)) == value, Refusal::Encoding(name.to_owned()))?;
            ensure(parameters.insert(name, value).is_none(), Refusal::Duplicate(name.to_owned()))?;
        }
        Ok(Request { authority, parameters })
    }

    fn value(&self, name: &'static str) -> Result<String, Refusal> {
        self.parameters.get(name).map(|raw| decode(raw)).ok_or(Refusal::Missing(name))
    }

    fn expect(&self, name: &'static str, value: &str) -> Result<(), Refusal> {
        ensure(self.value(name)? == value, Refusal::Wrong(name))
    }

    fn lifetime(&self) -> Result<Duration, Refusal> {
        let seconds = self.value("X-Amz-Expires")?.parse().map(Duration::from_secs);
        let within = seconds.ok().filter(|lifetime| !lifetime.is_zero() && *lifetime <= LIFETIME);
        within.ok_or(Refusal::Wrong("X-Amz-Expires"))
    }

    fn signed_at(&self) -> Result<SystemTime, Refusal> {
        let basic = self.value("X-Amz-Date")?;
        parse_basic(&basic).ok_or(Refusal::Wrong("X-Amz-Date"))
    }

    fn scope(&self) -> Result<Scope, Refusal> {
        const NAME: &str = "X-Amz-Credential";
        let value = self.value(NAME)?;
        let parts: Vec<&str> = value.split('/').collect();
        let [key_id, date, region, service, terminator] = parts.as_slice() else {
            return Err(Refusal::Wrong(NAME));
        };
        ensure(*terminator == "aws4_request", Refusal::Wrong(NAME))?;
        ensure(
            self.value("X-Amz-Date")?.starts_with(date) && date.len() == 8,
            Refusal::Wrong(NAME),
        )?;
        let [key_id, date, region, service, terminator] =
            [key_id, date, region, service, terminator].map(|part| part.to_string());
        Ok(Scope { key_id, date, region, service, terminator })
    }

    /// The signature that this request would have (AWS, "Create a signed AWS API request").
    fn signature_by(
        &self,
        secret: &str,
        signed_at: SystemTime,
        scope: &Scope,
    ) -> Result<String, Refusal> {
        let signed = self.parameters.iter().filter(|(name, _)| **name != "X-Amz-Signature");
        let query: Vec<String> = signed.map(|(name, value)| format!("{name}={value}")).collect();
        let (query, host, empty) = (query.join("&"), self.authority, sha256(""));
        let canonical = format!("GET\n/\n{query}\nhost:{host}\n\nhost\n{empty}");
        let Scope { date, region, service, terminator, .. } = scope;
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{date}/{region}/{service}/{terminator}\n{}",
            self.value("X-Amz-Date")?,
            sha256(&canonical)
        );
        let key = generate_signing_key(secret, signed_at, region, service);
        Ok(calculate_signature(key, to_sign.as_bytes()))
    }
}

/// Reads `20161107T173933Z`.
fn parse_basic(text: &str) -> Option<SystemTime> {
    let digits: Vec<&str> =
        [0..4, 4..6, 6..8, 9..11, 11..13, 13..15].into_iter().map_while(|r| text.get(r)).collect();
    let [year, month, day, hour, minute, second] = digits.as_slice() else {
        return None;
    };
    let extended = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let time = DateTime::from_str(&extended, Format::DateTime).ok()?;
    let same = text == format!("{year}{month}{day}T{hour}{minute}{second}Z");
    SystemTime::try_from(time).ok().filter(|_| same)
}

fn ensure(holds: bool, refusal: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal) }
}

fn decode(raw: &str) -> String {
    percent_decode_str(raw).decode_utf8_lossy().into_owned()
}

fn sha256(text: &str) -> String {
    hex(&openssl::sha::sha256(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::token::presign;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_478_540_373)
    }

    fn endpoint() -> Endpoint {
        Endpoint::new("db.abc.us-east-1.rds.amazonaws.com", 5432, "us-east-1").unwrap()
    }

    fn key_pair() -> Credentials {
        Credentials::new("AKIA1", "secret", Some("SES/SION+TOK=EN==".into()), None, "test")
    }

    fn token() -> String {
        presign(&endpoint(), "app", &key_pair(), now()).unwrap().as_str().to_owned()
    }

    fn verdict(token: &str) -> Result<(), Refusal> {
        judge(token, "app", &endpoint(), &[key_pair()], now())
    }

    #[test]
    fn admits_the_published_tokens() {
        assert_eq!(admits_all_of(include_str!("../../tests/data/token_vectors.json")), 4);
        assert_eq!(admits_all_of(include_str!("../../tests/data/dsql_vectors.json")), 3);
    }

    fn admits_all_of(vectors: &str) -> usize {
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for vector in vectors.as_array().unwrap() {
            let text = |name: &str| vector[name].as_str().map(str::to_owned);
            let port = vector["port"].as_u64().unwrap().try_into().unwrap();
            let endpoint =
                Endpoint::new(&text("host").unwrap(), port, &text("region").unwrap()).unwrap();
            let (key, secret) = (text("access_key").unwrap(), text("secret_key").unwrap());
            let key_pair = Credentials::new(key, secret, text("session_token"), None, "test");
            let signed_at = parse_basic(&text("time").unwrap()).unwrap();
            let token = text("token_canonical_order").unwrap();
            assert_eq!(
                judge(&token, &text("user").unwrap(), &endpoint, &[key_pair], signed_at),
                Ok(())
            );
        }
        vectors.as_array().unwrap().len()
    }

    #[test]
    fn tampering_with_each_part_has_its_own_reason() {
        use Refusal::*;
        let cases: &[(&str, &str, Refusal)] = &[
            ("db.abc", "db.abd", Endpoint),
            (":5432/", ":5433/", Endpoint),
            (":5432/", "/", Endpoint),
            ("/?", "?", NotAToken),
            ("Action=connect", "Action=delete", Wrong("Action")),
            ("Action=connect&", "", Missing("Action")),
            ("Action=connect&", "Action=connect&Action=connect&", Duplicate("Action".into())),
            ("DBUser=app", "DBUser=root", User),
            ("DBUser=app", "DBUser=ap%70", Encoding("DBUser".into())),
            ("&DBUser=app", "", Missing("DBUser")),
            ("HMAC-SHA256", "HMAC-SHA1", Wrong("X-Amz-Algorithm")),
            ("AKIA1", "AKIA2", UnknownKeyPair),
            ("us-east-1%2Frds-db", "us-west-1%2Frds-db", Region),
            ("rds-db", "dsql", Service),
            ("aws4_request", "aws5_request", Wrong("X-Amz-Credential")),
            ("20161107%2F", "20161108%2F", Wrong("X-Amz-Credential")),
            ("T173933Z", "T173934Z", Signature),
            ("T173933Z", "T173933", Wrong("X-Amz-Date")),
            ("T173933Z", "T993933Z", Wrong("X-Amz-Date")),
            ("Expires=900", "Expires=899", Signature),
            ("Expires=900", "Expires=901", Wrong("X-Amz-Expires")),
            ("Expires=900", "Expires=0", Wrong("X-Amz-Expires")),
            ("SignedHeaders=host", "SignedHeaders=host%3Bx", Wrong("X-Amz-SignedHeaders")),
            ("SES%2FSION", "SES%2FSIOM", SessionToken),
            ("SION%2BTOK", "SION+TOK", Encoding("X-Amz-Security-Token".into())),
            ("&X-Amz-Security-Token=SES%2FSION%2BTOK%3DEN%3D%3D", "", SessionToken),
            ("X-Amz-Signature=", "X-Amz-Signature=0", Signature),
            ("X-Amz-Signature=", "X-Amz-Extra=1&X-Amz-Signature=", Signature),
            ("X-Amz-Signature=", "Signature=", Missing("X-Amz-Signature")),
        ];
        assert_eq!(verdict(&token()), Ok(()));
        for (part, other, refusal) in cases {
            let tampered = token().replacen(part, other, 1);
            assert_ne!(tampered, token(), "{part} is not there");
            // The judge sorts, so a token whose parameters stand in another order is the same
            // token.
            assert_eq!(verdict(&tampered), Err(refusal.clone()), "{part} -> {other}");
        }
        assert_eq!(verdict(""), Err(NotAToken));
        assert_eq!(verdict("hunter2"), Err(NotAToken));
        assert!(verdict(&token()[..200]).is_err());
    }

    #[test]
    fn both_sides_of_each_limit_in_time() {
        let judge_at = |time| judge(&token(), "app", &endpoint(), &[key_pair()], time);
        assert_eq!(judge_at(now() + Duration::from_millis(899_999)), Ok(()));
        assert_eq!(judge_at(now() + Duration::from_secs(900)), Err(Refusal::Expired));
        assert_eq!(judge_at(now() - Duration::from_secs(300)), Ok(()));
        assert_eq!(judge_at(now() - Duration::from_millis(300_001)), Err(Refusal::Future));
    }

    #[test]
    fn a_key_pair_that_ended_opens_nothing() {
        let ends_at = |end| {
            Credentials::new("AKIA1", "secret", Some("SES/SION+TOK=EN==".into()), Some(end), "test")
        };
        let judge_with = |pair| judge(&token(), "app", &endpoint(), &[pair], now());
        assert_eq!(judge_with(ends_at(now())), Err(Refusal::KeyPairExpired));
        assert_eq!(judge_with(ends_at(now() + Duration::from_secs(1))), Ok(()));
    }
}
