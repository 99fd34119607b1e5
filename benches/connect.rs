//! Measures the CPU time of a login in this process, beside diesel's login with a token that is
//! already signed: with the one root certificate that is needed, and with a bundle for all regions
//! like Amazon's.
//!
//!     cargo bench --features full --bench connect
#![expect(clippy::unwrap_used, reason = "a bench that fails may panic")]

mod support;

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use diesel::{Connection, PgConnection};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, RdsConnectionManager};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Name};
use rustix::time::{ClockId, clock_gettime};
use tempfile::NamedTempFile;

use support::{conninfo, in_alternation};

const ROUNDS: usize = 501;
const REGION: &str = "us-east-1";
/// The argument that makes this program the server.
const SERVE: &str = "serve";

fn main() {
    if std::env::args().any(|argument| argument == SERVE) {
        return serve();
    }
    let server = Server::start();
    let bundle = bundle(&server.root);
    println!("Medians in milliseconds of CPU of {ROUNDS} logins each.\n");
    println!(
        "| root certificates | ours | diesel's | ratio | diesel's, gssencmode=disable | ratio |"
    );
    println!("|---|---|---|---|---|---|");
    for (roots, file) in [(1, server.root.as_path()), (1 + OTHER_ROOTS, bundle.path())] {
        let [ours, diesels, without_gss] = measure(&server, file);
        let ratio = ours / diesels;
        let other_ratio = ours / without_gss;
        println!(
            "| {roots} | {ours:.2} | {diesels:.2} | {ratio:.3} | {without_gss:.2} | \
             {other_ratio:.3} |"
        );
    }
}

fn measure(server: &Server, root: &Path) -> [f64; 3] {
    let conninfo = conninfo(server.port, root);
    let ours = RdsConnectionManager::builder()
        .credentials_provider(server.key_pair.clone())
        .region_name(REGION);
    let ours = ours.build(&conninfo).unwrap();
    let diesels = format!("{conninfo} password='{}'", ours.token().unwrap().as_str());
    // The default of our manager. By default, libpq looks for Kerberos tickets first.
    let without_gss = format!("{diesels} gssencmode=disable");
    let mut ours = || milliseconds_of_cpu(|| ours.connect().unwrap());
    let mut diesels = || milliseconds_of_cpu(|| PgConnection::establish(&diesels).unwrap());
    let mut without_gss = || milliseconds_of_cpu(|| PgConnection::establish(&without_gss).unwrap());
    in_alternation(ROUNDS, [&mut ours, &mut diesels, &mut without_gss])
}

/// Returns the CPU time of all threads of this process during a login, without the disconnect.
fn milliseconds_of_cpu(login: impl FnOnce() -> PgConnection) -> f64 {
    let cpu = || clock_gettime(ClockId::ProcessCPUTime);
    let started = cpu();
    let _connection = login();
    let spent = cpu() - started;
    spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
}

/// A LocalRds in a separate process, because it checks tokens in the process that started it.
struct Server {
    process: Child,
    port: u16,
    root: PathBuf,
    key_pair: Credentials,
}

impl Server {
    fn start() -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process =
            command.arg(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        let (port, root) = (next().parse().unwrap(), next().into());
        let key_pair = Credentials::new(next(), next(), None, None, "bench");
        Server { process, port, root, key_pair }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Runs the server until standard input ends.
fn serve() {
    let rds = LocalRds::start().unwrap();
    let key_pair = rds.credentials();
    println!("{}\n{}", rds.port(), rds.ca_file().display());
    println!("{}\n{}", key_pair.access_key_id(), key_pair.secret_access_key());
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

const OTHER_ROOTS: usize = 109;

#[rustfmt::skip]
const REGIONS: [&str; 37] = [
    "af-south-1", "ap-east-1", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3",
    "ap-south-1", "ap-south-2", "ap-southeast-1", "ap-southeast-2", "ap-southeast-3",
    "ap-southeast-4", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7", "ca-central-1",
    "ca-west-1", "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2",
    "eu-west-1", "eu-west-2", "eu-west-3", "il-central-1", "me-central-1", "me-south-1",
    "mx-central-1", "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2",
    "us-gov-east-1", "us-gov-west-1", "eusc-de-east-1",
];

/// Writes a file with the server's root and as many others, with the same names, as Amazon's global
/// bundle has.
fn bundle(root: &Path) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&other_roots().unwrap()).unwrap();
    file.write_all(&std::fs::read(root).unwrap()).unwrap();
    file
}

fn other_roots() -> Result<Vec<u8>, ErrorStack> {
    let p384 = EcGroup::from_curve_name(Nid::SECP384R1)?;
    // All roots of a kind share a key: making a key takes long, and a login does not use it.
    let kinds = [
        ("RSA2048", PKey::from_rsa(Rsa::generate(2048)?)?),
        ("RSA4096", PKey::from_rsa(Rsa::generate(4096)?)?),
        ("ECC384", PKey::from_ec_key(EcKey::generate(&p384)?)?),
    ];
    let all =
        REGIONS.iter().flat_map(|region| kinds.iter().map(move |(kind, key)| (region, kind, key)));
    let mut pem = Vec::new();
    for (region, kind, key) in all.take(OTHER_ROOTS) {
        pem.extend(certificate(&format!("Amazon RDS {region} Root CA {kind} G1"), key)?.to_pem()?);
    }
    Ok(pem)
}

fn certificate(name: &str, key: &PKey<Private>) -> Result<X509, ErrorStack> {
    let name = amazons_name(name)?;
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509::builder()?;
    // X.509 counts from 0: this is version 3.
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(&name)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(30)?)?;
    builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(identifier)?;
    builder.append_extension(
        KeyUsage::new().critical().digital_signature().key_cert_sign().crl_sign().build()?,
    )?;
    builder.sign(key, MessageDigest::sha384())?;
    Ok(builder.build())
}

fn amazons_name(common_name: &str) -> Result<X509Name, ErrorStack> {
    let mut name = X509Name::builder()?;
    name.append_entry_by_nid(Nid::COUNTRYNAME, "US")?;
    name.append_entry_by_nid(Nid::ORGANIZATIONNAME, "Amazon Web Services, Inc.")?;
    name.append_entry_by_nid(Nid::ORGANIZATIONALUNITNAME, "Amazon RDS")?;
    name.append_entry_by_nid(Nid::STATEORPROVINCENAME, "WA")?;
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    name.append_entry_by_nid(Nid::LOCALITYNAME, "Seattle")?;
    Ok(name.build())
}
