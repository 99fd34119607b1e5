//! A server that speaks PostgreSQL's protocol over TLS up to the password, and then sends a fixed
//! answer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::SystemTime;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};
use tempfile::NamedTempFile;

/// Its threads end with the process.
pub(crate) struct FakePostgres {
    pub(crate) port: u16,
    /// Its own certificate, as PEM.
    pub(crate) roots: NamedTempFile,
}

const DAY: i64 = 24 * 60 * 60;

impl FakePostgres {
    /// Starts it with a certificate for localhost that is valid on these days, counted from today.
    /// After the password it sends `answer` and closes the connection.
    pub(crate) fn start(days: Range<i64>, answer: Vec<u8>) -> FakePostgres {
        let (acceptor, roots) = acceptor(days);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that refuses the certificate closes the connection.
                let _ = serve(stream, &acceptor, &answer);
            }
        });
        FakePostgres { port, roots }
    }
}

/// PostgreSQL's ErrorResponse.
pub(crate) fn error_response(sqlstate: &str, text: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap();
    [b"E".as_slice(), &length.to_be_bytes(), fields.as_bytes()].concat()
}

const PASSWORD_REQUEST: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

fn serve(mut stream: TcpStream, acceptor: &SslAcceptor, answer: &[u8]) -> std::io::Result<()> {
    read_message(&mut stream)?;
    stream.write_all(b"S")?;
    let mut stream = acceptor.accept(stream).map_err(std::io::Error::other)?;
    read_message(&mut stream)?;
    stream.write_all(PASSWORD_REQUEST)?;
    stream.read_exact(&mut [0])?;
    read_message(&mut stream)?;
    stream.write_all(answer)
}

/// Reads a length, which includes itself, and that many bytes.
fn read_message(stream: &mut impl Read) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - length.len()];
    stream.read_exact(&mut rest)
}

fn acceptor(days: Range<i64>) -> (SslAcceptor, NamedTempFile) {
    let key = PKey::from_ec_key(
        EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap(),
    );
    let (key, mut name) = (key.unwrap(), X509NameBuilder::new().unwrap());
    name.append_entry_by_nid(Nid::COMMONNAME, &format!("FakePostgres {}", std::process::id()))
        .unwrap();
    let name = name.build();
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = |day: i64| Asn1Time::from_unix(today.cast_signed() + day * DAY).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate
        .set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap())
        .unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&at(days.start)).unwrap();
    certificate.set_not_after(&at(days.end)).unwrap();
    let names = SubjectAlternativeName::new()
        .dns("localhost")
        .build(&certificate.x509v3_context(None, None));
    certificate.append_extension(names.unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let certificate = certificate.build();
    let roots = NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), certificate.to_pem().unwrap()).unwrap();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    (acceptor.build(), roots)
}
