//! [`AuthToken`] and the pure [`presign`].

mod endpoint;
mod host_name;

pub use endpoint::Endpoint;
pub(crate) use endpoint::NOT_A_REGION;
pub(crate) use host_name::{HostKind, HostName, is_region};

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::error::{Error, utc};

/// How long a server accepts a token after its signature (AWS, "IAM database authentication"; for
/// DSQL the default of the SDKs).
pub(crate) const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// A token that logs one user in to one endpoint, for at most 15 minutes.
///
/// It is a password, so it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthToken {
    text: String,
    expires_at: SystemTime,
}

impl AuthToken {
    /// Returns the token itself, which is sent as the password.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns when the server stops accepting it: 15 minutes after the signature, or when the
    /// credentials that signed it expire, whichever is first.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthToken")
            .field("text", &"***")
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

/// Signs a token that logs `user` in to `endpoint`, at the time `now`.
///
/// The token is a SigV4-presigned `GET https://HOST:PORT/?Action=connect&DBUser=USER` without its
/// scheme (AWS, "Connecting using IAM authentication"). Nothing is sent. SigV4 counts in whole
/// seconds: two tokens of the same second are equal.
///
/// An endpoint of Aurora DSQL gets a DSQL token: `GET https://HOST/?Action=DbConnect`, or
/// `DbConnectAdmin` for the user `admin` (AWS, "Generating an authentication token in Amazon Aurora
/// DSQL").
///
/// ```
/// use std::time::SystemTime;
/// use diesel_rds_iam::{Credentials, Endpoint, presign};
///
/// let endpoint = Endpoint::new("db.abc123.eu-west-1.rds.amazonaws.com", 5432, "eu-west-1")?;
/// let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "example");
/// let token = presign(&endpoint, "app", &credentials, SystemTime::now())?;
/// let start = "db.abc123.eu-west-1.rds.amazonaws.com:5432/?Action=connect&DBUser=app&";
/// assert!(token.as_str().starts_with(start));
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
///
/// # Errors
/// - [`Error::CredentialsExpired`] if the credentials expire at `now` or before.
/// - [`Error::Token`] if the token is longer than PostgreSQL's longest password, or SigV4 cannot
///   write the time.
#[doc(alias = "generate_db_auth_token")]
pub fn presign(
    endpoint: &Endpoint,
    user: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<AuthToken, Error> {
    let refused = |text: &str| Error::Token { reason: text.into() };
    check_clock(now).map_err(refused)?;
    let lifetime_end = now + LIFETIME;
    let expires_at = credentials.expiry().map_or(lifetime_end, |end| end.min(lifetime_end));
    if expires_at <= now {
        return Err(Error::CredentialsExpired { key: masked(credentials), ended: expires_at });
    }
    let text = signed(endpoint, user, credentials, now);
    if text.len() > LONGEST_PASSWORD {
        return Err(refused(
            "with this user and session token it is longer than PostgreSQL's maximum of 65,530 \
             bytes",
        ));
    }
    Ok(AuthToken { text, expires_at })
}

/// In bytes (PostgreSQL, PG_MAX_AUTH_TOKEN_LENGTH, without the message's header).
const LONGEST_PASSWORD: usize = 65_530;

/// SigV4 writes years with four digits.
fn check_clock(now: SystemTime) -> Result<(), &'static str> {
    let since_1970 =
        now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| "the clock is before 1970")?;
    if since_1970 >= YEAR_9999 { Err("the clock is after the year 9998") } else { Ok(()) }
}

/// The first second of that year, counted from 1970.
const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Makes the token by SigV4's steps (AWS, "Create a signed AWS API request").
///
/// Not by aws-sigv4's signer of requests, which writes the session token to `tracing` at trace
/// level, leaves the port 443 out of the host, panics on long session tokens, and is ten times as
/// slow.
fn signed(endpoint: &Endpoint, user: &str, credentials: &Credentials, now: SystemTime) -> String {
    let date = utc(now).replace(['-', ':'], "");
    let (region, service) = (endpoint.region(), endpoint.service());
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    let authority = endpoint.authority();
    let query = query(endpoint, user, credentials, &date, &scope);
    let request = format!("GET\n/\n{query}\nhost:{authority}\n\nhost\n{SHA256_OF_NOTHING}");
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&Sha256::digest(request)));
    let key = generate_signing_key(credentials.secret_access_key(), now, region, service);
    let signature = calculate_signature(key, to_sign.as_bytes());
    format!("{authority}/?{query}&X-Amz-Signature={signature}")
}

/// Of an empty body.
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Returns the parameters, sorted by name as SigV4 requires.
fn query(
    endpoint: &Endpoint,
    user: &str,
    credentials: &Credentials,
    date: &str,
    scope: &str,
) -> String {
    let lifetime = LIFETIME.as_secs().to_string();
    let credential = format!("{}/{scope}", credentials.access_key_id());
    let mut parameters = match endpoint.is_dsql() {
        true => vec![("Action", dsql_action(user))],
        false => vec![("Action", "connect"), ("DBUser", user)],
    };
    parameters.extend([
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", date),
        ("X-Amz-Expires", &lifetime),
    ]);
    if let Some(session_token) = credentials.session_token().filter(|token| !token.is_empty()) {
        parameters.push(("X-Amz-Security-Token", session_token));
    }
    parameters.push(("X-Amz-SignedHeaders", "host"));
    let encoded = parameters.iter().map(|(name, value)| format!("{name}={}", encode(value)));
    encoded.collect::<Vec<_>>().join("&")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the action that a DSQL token allows. Such a token contains no user.
pub(crate) fn dsql_action(user: &str) -> &'static str {
    if user == "admin" { "DbConnectAdmin" } else { "DbConnect" }
}

/// RFC 3986's reserved characters, and all others that are not unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes all but RFC 3986's unreserved characters, as SigV4 requires.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns the first four characters of the access key id, which are its kind (AKIA, ASIA). The
/// rest is hidden.
pub(crate) fn masked(credentials: &Credentials) -> String {
    let kind: String = credentials.access_key_id().chars().take(4).collect();
    format!("{kind}****")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::UNIX_EPOCH;

    use aws_sigv4::http_request::{
        SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
    };
    use aws_sigv4::sign::v4::SigningParams;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn key_pair(session_token: Option<&str>, expiry: Option<SystemTime>) -> Credentials {
        Credentials::new("akid", "skid", session_token.map(str::to_owned), expiry, "test")
    }

    /// 2016-11-07T17:39:33Z, the time of the published vectors.
    fn published_time() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_478_540_373)
    }

    fn endpoint() -> Endpoint {
        Endpoint::new("prod-instance.us-east-1.rds.amazonaws.com", 5432, "us-east-1").unwrap()
    }

    fn as_set(token: &str) -> BTreeSet<&str> {
        token.split(['?', '&']).collect()
    }

    #[test]
    fn published_vectors() {
        assert_eq!(tokens_as_in(include_str!("../../tests/data/token_vectors.json")), 4);
        assert_eq!(tokens_as_in(include_str!("../../tests/data/dsql_vectors.json")), 3);
    }

    fn tokens_as_in(vectors: &str) -> usize {
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let times = [("20161107T173933Z", 1_478_540_373), ("20240826T220000Z", 1_724_709_600)];
        for vector in vectors.as_array().unwrap() {
            let text = |name: &str| vector[name].as_str().map(str::to_owned);
            let time =
                times.iter().find(|(shown, _)| Some(*shown) == vector["time"].as_str()).unwrap().1;
            let port = vector["port"].as_u64().unwrap().try_into().unwrap();
            let endpoint =
                Endpoint::new(&text("host").unwrap(), port, &text("region").unwrap()).unwrap();
            let (key, secret) = (text("access_key").unwrap(), text("secret_key").unwrap());
            let credentials = Credentials::new(key, secret, text("session_token"), None, "test");
            let now = UNIX_EPOCH + Duration::from_secs(time);
            let token = presign(&endpoint, &text("user").unwrap(), &credentials, now).unwrap();
            assert_eq!(as_set(token.as_str()), as_set(&text("token_canonical_order").unwrap()));
        }
        vectors.as_array().unwrap().len()
    }

    #[test]
    fn odd_user_names_are_percent_encoded() {
        let cases = [
            ("a&b", "a%26b"),
            ("a+b", "a%2Bb"),
            ("a b", "a%20b"),
            ("a#b", "a%23b"),
            ("a%b", "a%25b"),
            ("é", "%C3%A9"),
            ("user@example.com", "user%40example.com"),
            ("a.b-c_d~e", "a.b-c_d~e"),
        ];
        for (user, encoded) in cases {
            let token =
                presign(&endpoint(), user, &key_pair(None, None), published_time()).unwrap();
            assert!(token.as_str().contains(&format!("&DBUser={encoded}&")), "{user}");
        }
    }

    #[test]
    fn case_and_a_trailing_dot_do_not_change_the_token() {
        let plain = presign(&endpoint(), "u", &key_pair(None, None), published_time()).unwrap();
        let odd =
            Endpoint::new("PROD-instance.us-east-1.rds.AMAZONAWS.com.", 5432, "us-east-1").unwrap();
        assert_eq!(presign(&odd, "u", &key_pair(None, None), published_time()).unwrap(), plain);
    }

    #[test]
    fn expires_after_15_minutes_or_with_its_credentials() {
        let now = published_time();
        let minutes = |n: u64| now + Duration::from_secs(60 * n);
        let cases =
            [(None, 15), (Some(minutes(5)), 5), (Some(minutes(15)), 15), (Some(minutes(60)), 15)];
        for (expiry, expected) in cases {
            let token = presign(&endpoint(), "u", &key_pair(None, expiry), now).unwrap();
            assert_eq!(token.expires_at(), minutes(expected));
        }
    }

    #[test]
    fn never_signs_with_expired_credentials() {
        let now = published_time();
        for ended in [now, now - Duration::from_secs(1)] {
            let error = presign(&endpoint(), "u", &key_pair(None, Some(ended)), now).unwrap_err();
            assert!(matches!(error, Error::CredentialsExpired { .. }), "{error}");
        }
        let last = now + Duration::from_secs(1);
        assert!(presign(&endpoint(), "u", &key_pair(None, Some(last)), now).is_ok());
    }

    #[test]
    fn a_token_that_no_server_accepts_is_an_error() {
        let sign = |session_token: &str, now| {
            presign(&endpoint(), "u", &key_pair(Some(session_token), None), now)
        };
        let length = |session_token: &str| {
            sign(session_token, published_time()).map(|token| token.as_str().len())
        };
        let room = LONGEST_PASSWORD - length("s").unwrap() + 1;
        assert_eq!(length(&"s".repeat(room)).unwrap(), LONGEST_PASSWORD);
        assert!(matches!(length(&"s".repeat(room + 1)), Err(Error::Token { .. })));
        assert!(sign("", UNIX_EPOCH).is_ok());
        assert!(sign("", UNIX_EPOCH - Duration::from_secs(1)).is_err());
        assert!(sign("", UNIX_EPOCH + YEAR_9999 - Duration::from_secs(1)).is_ok());
        assert!(sign("", UNIX_EPOCH + YEAR_9999).is_err());
    }

    #[test]
    fn debug_shows_nothing_of_the_token() {
        let token =
            presign(&endpoint(), "u", &key_pair(Some("SESSION"), None), published_time()).unwrap();
        let shown = format!("{token:?}");
        assert!(
            !shown.contains("Amz") && !shown.contains("SESSION") && !shown.contains("akid"),
            "{shown}"
        );
    }

    /// Signs by AWS's own signer. It gets the port in the host, because it leaves out 443.
    fn by_aws_sigv4(
        endpoint: &Endpoint,
        user: &str,
        credentials: &Credentials,
        now: SystemTime,
    ) -> String {
        let mut settings = SigningSettings::default();
        settings.expires_in = Some(LIFETIME);
        settings.signature_location = SignatureLocation::QueryParams;
        let identity = credentials.clone().into();
        let params =
            SigningParams::builder().identity(&identity).region(endpoint.region()).name("rds-db");
        let params = params.time(now).settings(settings).build().unwrap().into();
        let (host, path) =
            (endpoint.to_string(), format!("/?Action=connect&DBUser={}", encode(user)));
        let (url, headers) = (format!("https://{host}{path}"), [("host", host.as_str())]);
        let request =
            SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::Bytes(&[]))
                .unwrap();
        let (_, parameters) = sign(request, &params).unwrap().into_parts().0.into_parts();
        let parameters =
            parameters.iter().map(|(name, value)| format!("&{name}={}", encode(value)));
        format!("{host}{path}{}", parameters.collect::<String>())
    }

    proptest! {
        #[test]
        fn signs_as_awss_own_signer(
            user in any::<String>(),
            key in "[A-Z0-9]{16,20}",
            secret in "[!-~]{1,40}",
            session_token in proptest::option::of("[!-~]{1,200}"),
            port in 1..=u16::MAX,
            seconds in 0..4_000_000_000_u64,
        ) {
            let endpoint = Endpoint::new("db.example.com", port, "eu-west-1").unwrap();
            let credentials = Credentials::new(key, secret, session_token, None, "test");
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            let ours = presign(&endpoint, &user, &credentials, now).unwrap();
            let theirs = by_aws_sigv4(&endpoint, &user, &credentials, now);
            prop_assert_eq!(as_set(ours.as_str()), as_set(&theirs));
        }
    }
}
