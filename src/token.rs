//! [`AuthToken`] and the pure [`presign`].

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{Endpoint, Error};

/// The service that a token is signed for.
pub(crate) const SERVICE: &str = "rds-db";

/// How long RDS accepts a token after it was signed (AWS, "IAM database authentication").
pub(crate) const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// All but RFC 3986's unreserved characters, as SigV4 wants it.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A token that logs one user in to one endpoint, for 15 minutes at most.
///
/// It is a password: it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthToken {
    text: String,
    expires_at: SystemTime,
}

impl AuthToken {
    /// The token itself, to be sent as the password.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// When the server stops to accept it: 15 minutes after it was signed, or when the credentials that signed it
    /// end, whichever comes first.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthToken").field("text", &"***").field("expires_at", &self.expires_at).finish()
    }
}

/// Signs a token that logs `user` in to `endpoint`, at the time `now`.
///
/// It is a SigV4-presigned `GET https://HOST:PORT/?Action=connect&DBUser=USER` without its scheme (AWS,
/// "Connecting using IAM authentication"). Nothing is sent anywhere. SigV4 counts in whole seconds: two tokens of
/// the same second are equal.
///
/// ```
/// use std::time::SystemTime;
/// use diesel_rds_iam::{Credentials, Endpoint, presign};
///
/// let endpoint = Endpoint::new("db.abc123.eu-west-1.rds.amazonaws.com", 5432, "eu-west-1")?;
/// let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "example");
/// let token = presign(&endpoint, "app", &credentials, SystemTime::now())?;
/// assert!(token.as_str().starts_with("db.abc123.eu-west-1.rds.amazonaws.com:5432/?Action=connect&DBUser=app&"));
/// # Ok::<(), diesel_rds_iam::Error>(())
/// ```
///
/// # Errors
/// [`Error::CredentialsExpired`] when the credentials end at `now` or before; [`Error::Token`] when the signer
/// refuses them.
#[doc(alias = "generate_db_auth_token")]
pub fn presign(
    endpoint: &Endpoint,
    user: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<AuthToken, Error> {
    let lifetime_end = now + LIFETIME;
    let expires_at = credentials.expiry().map_or(lifetime_end, |end| end.min(lifetime_end));
    if expires_at <= now {
        return Err(Error::CredentialsExpired { key: masked(credentials), ended: expires_at });
    }
    let unsigned = format!("{endpoint}/?Action=connect&DBUser={}", encode(user));
    let parameters = signature(endpoint, &unsigned, credentials, now).map_err(|source| Error::Token { source })?;
    let mut text = unsigned;
    for (name, value) in parameters {
        text.extend(["&", name, "=", &encode(&value)]);
    }
    Ok(AuthToken { text, expires_at })
}

/// The query parameters that sign `unsigned`, their values not yet percent-encoded.
fn signature(
    endpoint: &Endpoint,
    unsigned: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Vec<(&'static str, String)>, Box<dyn std::error::Error + Send + Sync>> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(LIFETIME);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(endpoint.region())
        .name(SERVICE)
        .time(now)
        .settings(settings)
        .build()?
        .into();
    // The port is always part of the signed host; left to itself the signer drops 443.
    let host = endpoint.to_string();
    let url = format!("https://{unsigned}");
    let request = SignableRequest::new("GET", &url, [("host", host.as_str())].into_iter(), SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(request, &params)?.into_parts();
    let (_, parameters) = instructions.into_parts();
    Ok(parameters.into_iter().map(|(name, value)| (name, value.into_owned())).collect())
}

/// Percent-encodes by RFC 3986.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The access key id for people: its first four characters tell the kind (AKIA, ASIA), the rest is hidden.
pub(crate) fn masked(credentials: &Credentials) -> String {
    let kind: String = credentials.access_key_id().chars().take(4).collect();
    format!("{kind}****")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::UNIX_EPOCH;

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
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../tests/data/token_vectors.json")).unwrap();
        let times = [("20161107T173933Z", 1_478_540_373), ("20240826T220000Z", 1_724_709_600)];
        for vector in vectors.as_array().unwrap() {
            let text = |name: &str| vector[name].as_str().map(str::to_owned);
            let time = times.iter().find(|(shown, _)| Some(*shown) == vector["time"].as_str()).unwrap().1;
            let port = vector["port"].as_u64().unwrap().try_into().unwrap();
            let endpoint = Endpoint::new(&text("host").unwrap(), port, &text("region").unwrap()).unwrap();
            let (key, secret) = (text("access_key").unwrap(), text("secret_key").unwrap());
            let credentials = Credentials::new(key, secret, text("session_token"), None, "test");
            let now = UNIX_EPOCH + Duration::from_secs(time);
            let token = presign(&endpoint, &text("user").unwrap(), &credentials, now).unwrap();
            assert_eq!(as_set(token.as_str()), as_set(&text("token_canonical_order").unwrap()));
        }
        assert_eq!(vectors.as_array().unwrap().len(), 4);
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
            let token = presign(&endpoint(), user, &key_pair(None, None), published_time()).unwrap();
            assert!(token.as_str().contains(&format!("&DBUser={encoded}&")), "{user}");
        }
    }

    #[test]
    fn case_and_a_trailing_dot_do_not_change_the_token() {
        let plain = presign(&endpoint(), "u", &key_pair(None, None), published_time()).unwrap();
        let odd = Endpoint::new("PROD-instance.us-east-1.rds.AMAZONAWS.com.", 5432, "us-east-1").unwrap();
        assert_eq!(presign(&odd, "u", &key_pair(None, None), published_time()).unwrap(), plain);
    }

    #[test]
    fn ends_after_15_minutes_or_with_its_credentials() {
        let now = published_time();
        let minutes = |n: u64| now + Duration::from_secs(60 * n);
        let cases = [(None, 15), (Some(minutes(5)), 5), (Some(minutes(15)), 15), (Some(minutes(60)), 15)];
        for (expiry, expected) in cases {
            let token = presign(&endpoint(), "u", &key_pair(None, expiry), now).unwrap();
            assert_eq!(token.expires_at(), minutes(expected));
        }
    }

    #[test]
    fn never_signs_with_credentials_that_have_ended() {
        let now = published_time();
        for ended in [now, now - Duration::from_secs(1)] {
            let error = presign(&endpoint(), "u", &key_pair(None, Some(ended)), now).unwrap_err();
            assert!(matches!(error, Error::CredentialsExpired { .. }), "{error}");
        }
        let last = now + Duration::from_secs(1);
        assert!(presign(&endpoint(), "u", &key_pair(None, Some(last)), now).is_ok());
    }

    #[test]
    fn debug_shows_nothing_of_the_token() {
        let token = presign(&endpoint(), "u", &key_pair(Some("SESSION"), None), published_time()).unwrap();
        let shown = format!("{token:?}");
        assert!(!shown.contains("Amz") && !shown.contains("SESSION") && !shown.contains("akid"), "{shown}");
    }

    #[test]
    fn the_port_443_is_signed_too() {
        // Found in aws-sigv4: it leaves the default port of https out of the host header.
        let endpoint = Endpoint::new("db.example.com", 443, "us-east-1").unwrap();
        let with_port = signature(&endpoint, "db.example.com:443/", &key_pair(None, None), published_time()).unwrap();
        let other = Endpoint::new("db.example.com", 5432, "us-east-1").unwrap();
        let as_5432 = signature(&other, "db.example.com:443/", &key_pair(None, None), published_time()).unwrap();
        assert_ne!(with_port.last(), as_5432.last());
    }
}
