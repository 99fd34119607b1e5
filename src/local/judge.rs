//! Decides whether a token is valid for this endpoint, as AWS does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_async::time::TimeSource;
use aws_smithy_types::date_time::{DateTime, Format};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::clock::Clock;
use super::refusal::Refusal;
use crate::token::{Endpoint, LIFETIME, dsql_action, encode, hex};

/// How far the server's clock can be behind the clock of the signer.
const LEEWAY: Duration = Duration::from_secs(5 * 60);

/// One login with a token.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The time of the login, on the server's [`Clock`].
    pub at: SystemTime,
    /// The database user.
    pub user: String,
    /// The time at which the token was signed, as stated in the token.
    pub signed_at: Option<SystemTime>,
    /// The SHA-256 of the token, in hexadecimal. It identifies a token without storing it.
    pub token_sha256: String,
    /// The node at which the login arrived. It is 0 without
    /// [`replicas`](super::Builder::replicas).
    pub node: usize,
    /// `Ok` if the login was admitted, otherwise the reason why it was refused.
    pub verdict: Result<(), Refusal>,
}

/// Where a login arrives.
#[derive(Debug, Clone, Default)]
pub(super) struct Entrance {
    pub(super) node: usize,
    /// The endpoints for which tokens are accepted besides the judge's endpoint.
    pub(super) endpoints: Vec<Endpoint>,
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

/// Decides about logins, and records them.
pub(super) struct Judge {
    clock: Clock,
    /// The file with the last verdict. A client sees only "authentication failed", as on RDS.
    verdict_file: OnceLock<PathBuf>,
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
        Judge { clock: Clock::default(), verdict_file: OnceLock::new(), state: Mutex::new(state) }
    }

    /// From now on the last verdict is in this file.
    pub(super) fn set_verdict_file(&self, file: PathBuf) {
        let _ = self.verdict_file.set(file);
    }

    pub(super) fn verdict_file(&self) -> Option<&Path> {
        self.verdict_file.get().map(PathBuf::as_path)
    }

    /// Returns whether `user` may log in with `password`.
    pub(super) fn admits(&self, entrance: &Entrance, user: &str, password: &str) -> bool {
        let at = self.clock.now();
        let verdict = self.verdict(entrance, user, password, at);
        let admitted = verdict.is_ok();
        // A logger may call methods of the LocalRds, so no lock is held here.
        match &verdict {
            Ok(()) => log::debug!("LocalRds admitted {user}"),
            Err(refusal) => log::debug!("LocalRds refused {user}: {refusal}"),
        }
        if let Some(file) = self.verdict_file.get() {
            let text = verdict.as_ref().map_or_else(Refusal::to_string, |()| String::new());
            // Only a doctor reads it.
            let _ = std::fs::write(file, text);
        }
        let signed_at = Request::parse(password).ok().and_then(|request| request.signed_at().ok());
        let (user, token_sha256) = (user.to_owned(), sha256(password));
        let node = entrance.node;
        let attempt = Attempt { at, user, signed_at, token_sha256, node, verdict };
        self.state.lock().attempts.push(attempt);
        admitted
    }

    fn verdict(
        &self,
        entrance: &Entrance,
        user: &str,
        password: &str,
        at: SystemTime,
    ) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.refuse_next > 0 {
            state.refuse_next -= 1;
            return Err(Refusal::Asked);
        }
        let State { endpoint, key_pairs, .. } = &*state;
        let (endpoint, key_pairs) = (endpoint.clone(), key_pairs.clone());
        drop(state);
        let verdict_for = |endpoint| judge(password, user, endpoint, &key_pairs, at);
        let others = entrance.endpoints.iter();
        others.fold(verdict_for(&endpoint), |verdict, other| match verdict {
            Err(Refusal::Endpoint) => verdict_for(other),
            verdict => verdict,
        })
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.state.lock().attempts.clone()
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.state.lock().endpoint.clone()
    }

    pub(super) fn set_endpoint(&self, endpoint: Endpoint) {
        self.state.lock().endpoint = endpoint;
    }

    pub(super) fn add_key_pair(&self, key_pair: Credentials) {
        let mut state = self.state.lock();
        state.key_pairs.retain(|known| known.access_key_id() != key_pair.access_key_id());
        state.key_pairs.push(key_pair);
    }

    pub(super) fn revoke_key_pair(&self, access_key_id: &str) {
        self.state.lock().key_pairs.retain(|key_pair| key_pair.access_key_id() != access_key_id);
    }

    pub(super) fn refuse_next(&self, logins: usize) {
        self.state.lock().refuse_next = logins;
    }
}

/// A token as the presigned request that it is. Values are still percent-encoded.
struct Request<'a> {
    authority: &'a str,
    parameters: BTreeMap<&'a str, &'a str>,
}

/// The parts of X-Amz-Credential: the key pair that signed, and the scope of the signature.
struct Scope {
    key_id: String,
    date: String,
    region: String,
    service: String,
    terminator: String,
}

/// Decides about one token. The result depends on the arguments only.
pub(crate) fn judge(
    token: &str,
    user: &str,
    endpoint: &Endpoint,
    key_pairs: &[Credentials],
    now: SystemTime,
) -> Result<(), Refusal> {
    let request = Request::parse(token)?;
    let action = if endpoint.is_dsql() { dsql_action(user) } else { "connect" };
    request.expect("Action", action)?;
    request.expect("X-Amz-Algorithm", "AWS4-HMAC-SHA256")?;
    request.expect("X-Amz-SignedHeaders", "host")?;
    let expires = request.lifetime()?;
    let signed_at = request.signed_at()?;
    ensure(request.authority == endpoint.authority(), Refusal::Endpoint)?;
    // A DSQL token contains no user. Its action depends on the user instead.
    ensure(endpoint.is_dsql() || request.value("DBUser")? == user, Refusal::User)?;
    let scope = request.scope()?;
    ensure(scope.service == endpoint.service(), Refusal::Service)?;
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
            ensure(
                encode(&decode(value)) == value,
                Refusal::Encoding { parameter: name.to_owned() },
            )?;
            ensure(
                parameters.insert(name, value).is_none(),
                Refusal::Duplicate { parameter: name.to_owned() },
            )?;
        }
        Ok(Request { authority, parameters })
    }

    fn value(&self, name: &'static str) -> Result<String, Refusal> {
        self.parameters.get(name).map(|raw| decode(raw)).ok_or(Refusal::Missing { parameter: name })
    }

    fn expect(&self, name: &'static str, value: &str) -> Result<(), Refusal> {
        ensure(self.value(name)? == value, Refusal::Wrong { parameter: name })
    }

    fn lifetime(&self) -> Result<Duration, Refusal> {
        let seconds = self.value("X-Amz-Expires")?.parse().map(Duration::from_secs);
        let within = seconds.ok().filter(|lifetime| !lifetime.is_zero() && *lifetime <= LIFETIME);
        within.ok_or(Refusal::Wrong { parameter: "X-Amz-Expires" })
    }

    fn signed_at(&self) -> Result<SystemTime, Refusal> {
        let basic = self.value("X-Amz-Date")?;
        parse_basic(&basic).ok_or(Refusal::Wrong { parameter: "X-Amz-Date" })
    }

    fn scope(&self) -> Result<Scope, Refusal> {
        const NAME: &str = "X-Amz-Credential";
        let value = self.value(NAME)?;
        let parts: Vec<&str> = value.split('/').collect();
        let [key_id, date, region, service, terminator] = parts.as_slice() else {
            return Err(Refusal::Wrong { parameter: NAME });
        };
        ensure(*terminator == "aws4_request", Refusal::Wrong { parameter: NAME })?;
        ensure(
            self.value("X-Amz-Date")?.starts_with(date) && date.len() == 8,
            Refusal::Wrong { parameter: NAME },
        )?;
        let [key_id, date, region, service, terminator] =
            [key_id, date, region, service, terminator].map(|part| part.to_string());
        Ok(Scope { key_id, date, region, service, terminator })
    }

    /// Returns the signature that this request must have (AWS, "Create a signed AWS API request").
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
    fn each_changed_part_has_its_own_reason() {
        use Refusal::*;
        let cases: &[(&str, &str, Refusal)] = &[
            ("db.abc", "db.abd", Endpoint),
            (":5432/", ":5433/", Endpoint),
            (":5432/", "/", Endpoint),
            ("/?", "?", NotAToken),
            ("Action=connect", "Action=delete", Wrong { parameter: "Action" }),
            ("Action=connect&", "", Missing { parameter: "Action" }),
            (
                "Action=connect&",
                "Action=connect&Action=connect&",
                Duplicate { parameter: "Action".into() },
            ),
            ("DBUser=app", "DBUser=root", User),
            ("DBUser=app", "DBUser=ap%70", Encoding { parameter: "DBUser".into() }),
            ("&DBUser=app", "", Missing { parameter: "DBUser" }),
            ("HMAC-SHA256", "HMAC-SHA1", Wrong { parameter: "X-Amz-Algorithm" }),
            ("AKIA1", "AKIA2", UnknownKeyPair),
            ("us-east-1%2Frds-db", "us-west-1%2Frds-db", Region),
            ("rds-db", "dsql", Service),
            ("aws4_request", "aws5_request", Wrong { parameter: "X-Amz-Credential" }),
            ("20161107%2F", "20161108%2F", Wrong { parameter: "X-Amz-Credential" }),
            ("T173933Z", "T173934Z", Signature),
            ("T173933Z", "T173933", Wrong { parameter: "X-Amz-Date" }),
            ("T173933Z", "T993933Z", Wrong { parameter: "X-Amz-Date" }),
            ("Expires=900", "Expires=899", Signature),
            ("Expires=900", "Expires=901", Wrong { parameter: "X-Amz-Expires" }),
            ("Expires=900", "Expires=0", Wrong { parameter: "X-Amz-Expires" }),
            (
                "SignedHeaders=host",
                "SignedHeaders=host%3Bx",
                Wrong { parameter: "X-Amz-SignedHeaders" },
            ),
            ("SES%2FSION", "SES%2FSIOM", SessionToken),
            ("SION%2BTOK", "SION+TOK", Encoding { parameter: "X-Amz-Security-Token".into() }),
            ("&X-Amz-Security-Token=SES%2FSION%2BTOK%3DEN%3D%3D", "", SessionToken),
            ("X-Amz-Signature=", "X-Amz-Signature=0", Signature),
            ("X-Amz-Signature=", "X-Amz-Extra=1&X-Amz-Signature=", Signature),
            ("X-Amz-Signature=", "Signature=", Missing { parameter: "X-Amz-Signature" }),
        ];
        assert_eq!(verdict(&token()), Ok(()));
        for (part, other, refusal) in cases {
            let tampered = token().replacen(part, other, 1);
            assert_ne!(tampered, token(), "the token does not contain {part}");
            assert_eq!(verdict(&tampered), Err(refusal.clone()), "{part} -> {other}");
        }
        assert_eq!(verdict(""), Err(NotAToken));
        assert_eq!(verdict("hunter2"), Err(NotAToken));
        assert!(verdict(&token()[..200]).is_err());
    }

    #[test]
    fn both_sides_of_each_time_limit() {
        let judge_at = |time| judge(&token(), "app", &endpoint(), &[key_pair()], time);
        assert_eq!(judge_at(now() + Duration::from_millis(899_999)), Ok(()));
        assert_eq!(judge_at(now() + Duration::from_secs(900)), Err(Refusal::Expired));
        assert_eq!(judge_at(now() - Duration::from_secs(300)), Ok(()));
        assert_eq!(judge_at(now() - Duration::from_millis(300_001)), Err(Refusal::Future));
    }

    #[test]
    fn an_expired_key_pair_is_refused() {
        let expires_at = |end| {
            Credentials::new("AKIA1", "secret", Some("SES/SION+TOK=EN==".into()), Some(end), "test")
        };
        let judge_with = |pair| judge(&token(), "app", &endpoint(), &[pair], now());
        assert_eq!(judge_with(expires_at(now())), Err(Refusal::KeyPairExpired));
        assert_eq!(judge_with(expires_at(now() + Duration::from_secs(1))), Ok(()));
    }
}
