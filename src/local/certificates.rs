//! Creates a certificate authority, and the certificates of its servers.

use std::net::Ipv4Addr;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509, X509Builder, X509Name, X509NameRef};

use super::failed;
use crate::error::Error;

/// A certificate authority with its key.
pub(super) struct Authority {
    root: X509,
    key: PKey<Private>,
}

/// Certificates and key as PEM, without the key of the authority.
pub(super) struct Certificates {
    pub(super) authority: Vec<u8>,
    pub(super) server: Vec<u8>,
    pub(super) server_key: Vec<u8>,
}

impl Certificates {
    pub(super) fn new(
        names: &[String],
        address: Ipv4Addr,
        authority: &str,
    ) -> Result<Certificates, Error> {
        Authority::new(authority)?.issue(names, address)
    }
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Authority, Error> {
        new_authority(name).map_err(failed("cannot create certificates"))
    }

    /// Returns the certificate of the authority as PEM.
    pub(super) fn certificate(&self) -> Result<Vec<u8>, Error> {
        self.root.to_pem().map_err(failed("cannot create certificates"))
    }

    /// Creates the certificate of a server with these names and this address.
    pub(super) fn issue(&self, names: &[String], address: Ipv4Addr) -> Result<Certificates, Error> {
        issue(self, names, address).map_err(failed("cannot create certificates"))
    }
}

fn new_authority(name: &str) -> Result<Authority, ErrorStack> {
    let key = new_key()?;
    // Each authority has a different name. With equal names OpenSSL checks a signature against the
    // authority of another LocalRds and reports "EVP lib".
    let mut serial = BigNum::new()?;
    serial.rand(64, MsbOption::MAYBE_ZERO, false)?;
    let name = common_name(&format!("{name} {}", serial.to_hex_str()?))?;
    let mut root = certificate(&key, &name, &name)?;
    root.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    root.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    let root = signed(root, &key)?;
    Ok(Authority { root, key })
}

fn issue(
    authority: &Authority,
    names: &[String],
    address: Ipv4Addr,
) -> Result<Certificates, ErrorStack> {
    let root = &authority.root;
    let server_key = new_key()?;
    let subject = common_name("LocalRds")?;
    let mut server = certificate(&server_key, &subject, root.subject_name())?;
    let mut alternatives = SubjectAlternativeName::new();
    names.iter().for_each(|name| {
        alternatives.dns(name);
    });
    alternatives.ip(&address.to_string());
    server.append_extension(alternatives.build(&server.x509v3_context(Some(root), None))?)?;
    server.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
    let server = signed(server, &authority.key)?;

    Ok(Certificates {
        authority: root.to_pem()?,
        server: server.to_pem()?,
        server_key: server_key.private_key_to_pem_pkcs8()?,
    })
}

fn new_key() -> Result<PKey<Private>, ErrorStack> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&curve)?)
}

fn common_name(name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(builder.build())
}

fn certificate(
    key: &PKey<Private>,
    subject: &X509NameRef,
    issuer: &X509NameRef,
) -> Result<X509Builder, ErrorStack> {
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509::builder()?;
    // X.509 version 3, counted from 0.
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(30)?)?;
    Ok(builder)
}

fn signed(mut builder: X509Builder, key: &PKey<Private>) -> Result<X509, ErrorStack> {
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}
