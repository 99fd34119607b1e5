//! TLS as PostgreSQL starts it, with the certificate checks that libpq makes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use native_tls::{Certificate, Protocol, TlsConnector};

use super::evidence::{Symptom, Untrusted};
use crate::conninfo::IamConninfo;
use crate::error::chain;

/// For one read or one write.
const TIMEOUT: Duration = Duration::from_secs(4);

/// How a client asks for TLS (PostgreSQL, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How strictly the connection string checks a server, and by which root certificates.
#[derive(Clone)]
pub(super) struct Rules {
    /// `None` for those of the system.
    roots: Option<PathBuf>,
    checks_authority: bool,
    checks_name: bool,
}

impl Rules {
    pub(super) fn new(conninfo: &IamConninfo) -> Rules {
        let roots = conninfo.sslrootcert();
        // As libpq: with a root file, require is verify-ca.
        let checks_authority =
            conninfo.sslmode() != "require" || roots.as_ref().is_some_and(|file| file.exists());
        Rules {
            checks_authority,
            checks_name: conninfo.sslmode() == "verify-full" || roots.is_none(),
            roots,
        }
    }

    /// Returns by what the certificate is checked, for people.
    pub(super) fn authority(&self) -> String {
        match &self.roots {
            _ if !self.checks_authority => "nothing (sslmode=require)".into(),
            Some(file) => file.display().to_string(),
            None => "the system's root certificates".into(),
        }
    }

    pub(super) fn connector(&self) -> Result<TlsConnector, Symptom> {
        let mut builder = TlsConnector::builder();
        builder
            // libpq's default.
            .min_protocol_version(Some(Protocol::Tlsv12))
            .danger_accept_invalid_certs(!self.checks_authority)
            .danger_accept_invalid_hostnames(!self.checks_name);
        if let Some(file) = self.roots.as_ref().filter(|_| self.checks_authority) {
            let unusable = |text: String, is_missing| {
                let text = format!("root certificate file \"{}\": {text}", file.display());
                Symptom::RootFile { text: Untrusted::new(text), is_missing }
            };
            let pem = std::fs::read(file).map_err(|error| {
                unusable(error.to_string(), error.kind() == io::ErrorKind::NotFound)
            })?;
            let roots = Certificate::stack_from_pem(&pem)
                .map_err(|error| unusable(chain(&error), false))?;
            if roots.is_empty() {
                return Err(unusable("the file contains no certificate".into(), false));
            }
            builder.disable_built_in_roots(true);
            roots.into_iter().for_each(|root| {
                builder.add_root_certificate(root);
            });
        }
        builder.build().map_err(|error| Symptom::refused(chain(&error)))
    }
}

/// Returns the server's certificates, and whether they pass the rules.
pub(super) fn inspect(
    address: SocketAddr,
    name: &str,
    rules: &Rules,
) -> (Vec<Presented>, Result<(), Symptom>) {
    match request_tls(address) {
        Ok(stream) => {
            let presented = certificates::presented(stream, name);
            let outcome = check(address, name, rules, &presented);
            (presented, outcome)
        }
        Err(symptom) => (Vec::new(), Err(symptom)),
    }
}

/// Finds out which rule the certificate fails: native-tls has only OpenSSL's text.
fn check(
    address: SocketAddr,
    name: &str,
    rules: &Rules,
    presented: &[Presented],
) -> Result<(), Symptom> {
    let Some(text) = failure(address, name, rules)? else { return Ok(()) };
    let tls = Untrusted::new(text);
    let is_outdated = |it: &&Presented| it.is_early || it.is_late;
    if let Some(Presented { is_early, .. }) = presented.iter().find(is_outdated) {
        return Err(Symptom::Expired { tls, is_early: *is_early });
    }
    let without_name = Rules { checks_name: false, ..rules.clone() };
    if failure(address, name, &without_name)?.is_none() {
        return Err(Symptom::WrongName { tls, name: name.to_owned() });
    }
    let without_authority = Rules { checks_authority: false, ..without_name };
    if failure(address, name, &without_authority)?.is_some() {
        return Err(Symptom::Refused { text: tls, sqlstate: None });
    }
    let issuer = presented.last().map(|certificate| certificate.issuer.clone());
    Err(Symptom::UnknownAuthority { tls, roots: rules.authority(), issuer })
}

/// Returns what OpenSSL says if the handshake fails by these rules.
fn failure(address: SocketAddr, name: &str, rules: &Rules) -> Result<Option<String>, Symptom> {
    match rules.connector()?.connect(name, request_tls(address)?) {
        Ok(_) => Ok(None),
        Err(native_tls::HandshakeError::Failure(error)) => Ok(Some(reason(&chain(&error)))),
        Err(native_tls::HandshakeError::WouldBlock(_)) => Err(Symptom::Silence),
    }
}

/// Returns what people need of an OpenSSL error: the reason, and the detail in brackets at its end.
fn reason(text: &str) -> String {
    let fields: Vec<&str> = text.split(':').collect();
    match fields.as_slice() {
        ["error", _, _, _, reason, .., detail] => format!("{reason}{detail}"),
        _ => text.to_owned(),
    }
}

/// Connects, and returns when the server is ready for the TLS handshake.
fn request_tls(address: SocketAddr) -> Result<TcpStream, Symptom> {
    let mut answer = [0];
    let mut request = || {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(&SSL_REQUEST)?;
        stream.read_exact(&mut answer)?;
        Ok(stream)
    };
    let stream = request().map_err(|error| no_answer(&error))?;
    match answer {
        // PostgreSQL sends nothing more. SSH's greeting begins with an S, too.
        [b'S'] if has_more(&stream) => Err(other_answer(b'S', stream)),
        [b'S'] => Ok(stream),
        [b'N'] => Err(Symptom::NoTls),
        [first] => Err(other_answer(first, stream)),
    }
}

fn has_more(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    stream.set_nonblocking(false).is_ok() && peeked.is_ok_and(|length| length > 0)
}

fn no_answer(error: &io::Error) -> Symptom {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Symptom::Silence,
        io::ErrorKind::UnexpectedEof => {
            Symptom::ClosedBeforeTls(Untrusted::new("the server closes the connection at once"))
        }
        _ => Symptom::ClosedBeforeTls(Untrusted::new(error.to_string())),
    }
}

/// An error of PostgreSQL, which has no process left for this connection, or another protocol.
fn other_answer(first: u8, stream: TcpStream) -> Symptom {
    let mut bytes = vec![first];
    // What arrives before the timeout is enough.
    let _ = stream.take(LONGEST_ANSWER).read_to_end(&mut bytes);
    error_response(&bytes).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&bytes);
        let line: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
        Symptom::NotPostgres(Untrusted::new(format!("it says \"{line}\"")))
    })
}

/// In bytes.
const LONGEST_ANSWER: u64 = 1_000;

/// PostgreSQL's ErrorResponse: an E, a length, and fields. Each field begins with a letter and ends
/// with a NUL.
fn error_response(bytes: &[u8]) -> Option<Symptom> {
    let [b'E', 0, 0, _, _, fields @ ..] = bytes else { return None };
    let field = |code: u8| {
        let found =
            fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[code]))?;
        Some(Untrusted::new(String::from_utf8_lossy(found)))
    };
    Some(Symptom::Refused { text: field(b'M')?, sqlstate: field(b'C') })
}

/// One certificate of a server's chain.
#[derive(Debug, Clone)]
pub(super) struct Presented {
    pub(super) subject: Untrusted,
    pub(super) issuer: Untrusted,
    /// The host names that it is for.
    pub(super) names: Vec<Untrusted>,
    pub(super) expires: String,
    /// Not valid yet, by this machine's clock.
    is_early: bool,
    /// Expired.
    is_late: bool,
}

/// native-tls does not show the names in a certificate. openssl does.
#[cfg(target_os = "linux")]
mod certificates {
    use std::net::TcpStream;

    use openssl::asn1::{Asn1Time, Asn1TimeRef};
    use openssl::nid::Nid;
    use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
    use openssl::x509::{X509NameRef, X509Ref};

    use super::{Presented, Untrusted};

    /// Returns the chain, the server's own certificate first. It checks nothing, and sends nothing
    /// after the handshake.
    pub(super) fn presented(stream: TcpStream, name: &str) -> Vec<Presented> {
        let shake_hands = || {
            let mut connector = SslConnector::builder(SslMethod::tls_client()).ok()?;
            connector.set_verify(SslVerifyMode::NONE);
            let configuration = connector.build().configure().ok()?.verify_hostname(false);
            configuration.connect(name, stream).ok()
        };
        let Some(stream) = shake_hands() else { return Vec::new() };
        stream.ssl().peer_cert_chain().into_iter().flatten().map(read).collect()
    }

    fn read(certificate: &X509Ref) -> Presented {
        let alternatives = certificate.subject_alt_names().into_iter().flatten();
        let mut names: Vec<Untrusted> =
            alternatives.filter_map(|name| name.dnsname().map(Untrusted::new)).collect();
        names.dedup();
        let now = Asn1Time::days_from_now(0).ok();
        let (starts, expires) = (certificate.not_before(), certificate.not_after());
        Presented {
            subject: common_name(certificate.subject_name()),
            issuer: common_name(certificate.issuer_name()),
            names,
            expires: expires.to_string(),
            is_early: now.as_ref().is_some_and(|now| is_before(now, starts)),
            is_late: now.as_ref().is_some_and(|now| is_before(expires, now)),
        }
    }

    fn is_before(one: &Asn1TimeRef, other: &Asn1TimeRef) -> bool {
        one.compare(other).is_ok_and(|order| order.is_lt())
    }

    fn common_name(name: &X509NameRef) -> Untrusted {
        let entry = name.entries_by_nid(Nid::COMMONNAME).next();
        let text = entry.and_then(|entry| Some(entry.data().to_string().ok()?.to_owned()));
        Untrusted::new(text.unwrap_or_else(|| "without a name".into()))
    }
}

#[cfg(not(target_os = "linux"))]
mod certificates {
    /// native-tls uses another library than openssl here.
    pub(super) fn presented(_: std::net::TcpStream, _: &str) -> Vec<super::Presented> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_of_postgresql_is_distinguished_from_another_protocol() {
        let said = error_response(b"E\0\0\0\x2aSFATAL\0C53300\0Mtoo many clients already\0\0");
        let expected = Symptom::Refused {
            text: Untrusted::new("too many clients already"),
            sqlstate: Some(Untrusted::new("53300")),
        };
        assert_eq!(said, Some(expected));
        assert_eq!(error_response(b"EHLO there"), None);
        assert_eq!(error_response(b"HTTP/1.1 400 Bad Request\r\n"), None);
    }
}
