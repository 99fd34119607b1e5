//! The certificates that a server presents, read by openssl: native-tls shows none of their names.

use std::net::TcpStream;

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::nid::Nid;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::{X509NameRef, X509Ref};

/// One certificate of a server's chain.
#[derive(Debug, Clone)]
pub(super) struct Presented {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// The host names that it is for.
    pub(super) names: Vec<String>,
    /// As the certificate has it.
    pub(super) ends: String,
    /// It begins later than now, by this machine's clock.
    pub(super) is_early: bool,
    /// It has ended.
    pub(super) is_late: bool,
}

/// The chain, the server's own certificate first. Nothing is checked, and nothing sent after the
/// handshake.
pub(super) fn presented(stream: TcpStream, name: &str) -> Vec<Presented> {
    let shake_hands = || {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).ok()?;
        connector.set_verify(SslVerifyMode::NONE);
        let configuration = connector.build().configure().ok()?.verify_hostname(false);
        configuration.connect(name, stream).ok()
    };
    let Some(stream) = shake_hands() else { return Vec::new() };
    let chain = stream.ssl().peer_cert_chain();
    chain.into_iter().flatten().map(Presented::read).collect()
}

impl Presented {
    fn read(certificate: &X509Ref) -> Presented {
        let alternatives = certificate.subject_alt_names().into_iter().flatten();
        let mut names: Vec<String> =
            alternatives.filter_map(|name| name.dnsname().map(str::to_owned)).collect();
        names.dedup();
        let (starts, ends) = (certificate.not_before(), certificate.not_after());
        Presented {
            subject: common_name(certificate.subject_name()),
            issuer: common_name(certificate.issuer_name()),
            names,
            ends: ends.to_string(),
            is_early: now().is_some_and(|now| is_before(&now, starts)),
            is_late: now().is_some_and(|now| is_before(ends, &now)),
        }
    }
}

fn now() -> Option<Asn1Time> {
    Asn1Time::days_from_now(0).ok()
}

fn is_before(one: &Asn1TimeRef, other: &Asn1TimeRef) -> bool {
    one.compare(other).is_ok_and(|order| order.is_lt())
}

fn common_name(name: &X509NameRef) -> String {
    let entry = name.entries_by_nid(Nid::COMMONNAME).next();
    entry
        .and_then(|entry| Some(entry.data().to_string().ok()?.to_owned()))
        .unwrap_or_else(|| "without a name".into())
}
