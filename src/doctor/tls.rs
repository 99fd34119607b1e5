//! TLS as PostgreSQL begins it, judged by the root file as libpq judges it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use native_tls::{Certificate, TlsConnector};

use super::certificates::{self, Presented};
use super::symptom::Symptom;
use crate::conninfo::IamConninfo;
use crate::error::chain;

/// How long one read or one write may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a client sends to ask for TLS (PostgreSQL, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// By which roots, and how strictly, `sslmode` wants a server to be judged.
#[derive(Clone)]
pub(super) struct Rules {
    /// None: the system's.
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

    /// What the certificate is judged by, for people.
    pub(super) fn authority(&self) -> String {
        match &self.roots {
            _ if !self.checks_authority => "nothing (sslmode=require)".into(),
            Some(file) => file.display().to_string(),
            None => "the system's root certificates".into(),
        }
    }

    /// A connector that judges by these rules.
    pub(super) fn connector(&self) -> Result<TlsConnector, Symptom> {
        let mut builder = TlsConnector::builder();
        builder
            .danger_accept_invalid_certs(!self.checks_authority)
            .danger_accept_invalid_hostnames(!self.checks_name);
        if let Some(file) = self.roots.as_ref().filter(|_| self.checks_authority) {
            let unusable = |text| {
                Symptom::NoRoots(format!("root certificate file \"{}\": {text}", file.display()))
            };
            let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
            let roots =
                Certificate::stack_from_pem(&pem).map_err(|error| unusable(chain(&error)))?;
            if roots.is_empty() {
                return Err(unusable("it holds no certificate".into()));
            }
            builder.disable_built_in_roots(true);
            roots.into_iter().for_each(|root| {
                builder.add_root_certificate(root);
            });
        }
        builder.build().map_err(|error| Symptom::said(chain(&error)))
    }
}

/// What the server shows, where this system can tell, and what the rules say of it.
pub(super) fn look(
    address: SocketAddr,
    name: &str,
    rules: &Rules,
) -> (Vec<Presented>, Result<(), Symptom>) {
    match ask_for_tls(address) {
        Ok(stream) => {
            let presented = certificates::presented(stream, name);
            let verdict = verdict(address, name, rules, &presented);
            (presented, verdict)
        }
        Err(symptom) => (Vec::new(), Err(symptom)),
    }
}

fn verdict(
    address: SocketAddr,
    name: &str,
    rules: &Rules,
    presented: &[Presented],
) -> Result<(), Symptom> {
    let Some(text) = complaint(address, name, rules)? else { return Ok(()) };
    if let Some(outdated) =
        presented.iter().find(|certificate| certificate.is_early || certificate.is_late)
    {
        return Err(Symptom::Outdated { text, is_early: outdated.is_early });
    }
    if complaint(address, name, &Rules { checks_name: false, ..rules.clone() })?.is_none() {
        return Err(Symptom::WrongName { text });
    }
    if complaint(
        address,
        name,
        &Rules { checks_authority: false, checks_name: false, ..rules.clone() },
    )?
    .is_some()
    {
        return Err(Symptom::said(text));
    }
    let issuer = presented.last().map(|certificate| certificate.issuer.clone());
    Err(Symptom::Untrusted { text, roots: rules.authority(), issuer })
}

/// What these rules have against the server; none: nothing.
fn complaint(address: SocketAddr, name: &str, rules: &Rules) -> Result<Option<String>, Symptom> {
    match rules.connector()?.connect(name, ask_for_tls(address)?) {
        Ok(_) => Ok(None),
        Err(native_tls::HandshakeError::Failure(error)) => Ok(Some(chain(&error))),
        Err(native_tls::HandshakeError::WouldBlock(_)) => Err(Symptom::Silence),
    }
}

/// Connects, and gets as far as the server's readiness for TLS.
fn ask_for_tls(address: SocketAddr) -> Result<TcpStream, Symptom> {
    let mut answer = [0];
    let mut ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&SSL_REQUEST)?;
        stream.read_exact(&mut answer)?;
        Ok(stream)
    };
    let stream = ask().map_err(|error| no_answer(&error))?;
    match answer {
        // PostgreSQL waits for us now. Another protocol's greeting can begin with this letter, as
        // SSH's.
        [b'S'] if says_more(&stream) => Err(said_instead(b'S', stream)),
        [b'S'] => Ok(stream),
        [b'N'] => Err(Symptom::NoTls),
        [first] => Err(said_instead(first, stream)),
    }
}

fn says_more(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    stream.set_nonblocking(false).is_ok() && peeked.is_ok_and(|length| length > 0)
}

fn no_answer(error: &io::Error) -> Symptom {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Symptom::Silence,
        io::ErrorKind::UnexpectedEof => Symptom::HangsUp("the connection is closed at once".into()),
        _ => Symptom::HangsUp(error.to_string()),
    }
}

/// An error of PostgreSQL's (a server that has no process left for us), or another protocol.
fn said_instead(first: u8, stream: TcpStream) -> Symptom {
    let mut bytes = vec![first];
    // Whatever comes within the patience.
    let _ = stream.take(LONGEST_ANSWER).read_to_end(&mut bytes);
    error_response(&bytes).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&bytes);
        let line: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect();
        Symptom::NotPostgres(format!("it says \"{line}\""))
    })
}

/// In bytes.
const LONGEST_ANSWER: u64 = 1_000;

/// PostgreSQL's ErrorResponse: an E, a length, and fields that each begin with a letter and end in
/// a NUL.
fn error_response(bytes: &[u8]) -> Option<Symptom> {
    let [b'E', 0, 0, _, _, fields @ ..] = bytes else { return None };
    let field = |code: u8| {
        let found =
            fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[code]))?;
        Some(String::from_utf8_lossy(found).into_owned())
    };
    Some(Symptom::Said { text: field(b'M')?, sqlstate: field(b'C') })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_postgresql_is_told_from_another_protocol() {
        let said = error_response(b"E\0\0\0\x2aSFATAL\0C53300\0Mtoo many clients already\0\0");
        let expected = Symptom::Said {
            text: "too many clients already".into(),
            sqlstate: Some("53300".into()),
        };
        assert_eq!(said, Some(expected));
        assert_eq!(error_response(b"EHLO there"), None);
        assert_eq!(error_response(b"HTTP/1.1 400 Bad Request\r\n"), None);
    }
}
