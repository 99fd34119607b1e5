//! DNS and TCP: the addresses of a host, the CNAMEs behind its name, and why no connection opens.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE};

use super::diagnose;
use super::diagnosis::{Cause, Diagnosis, Finding};
use super::evidence::{Evidence, Symptom, Untrusted};
use super::examination::{TIMEOUT, within};
use crate::conninfo::Host;
use crate::error::Refusal;
use crate::token::{HostKind, HostName};

/// For all DNS servers together. Shorter than the step's timeout, because CNAMEs are only a hint.
const CNAMES_TIMEOUT: Duration = Duration::from_secs(3);

/// In bytes, of an answer by UDP without extensions. The CNAMEs come before the addresses.
const LONGEST_ANSWER: usize = 512;

pub(super) fn addresses(host: &Host, evidence: &mut Evidence) -> Finding<Vec<IpAddr>> {
    let found = match &host.hostaddr {
        Some(address) => match address.parse() {
            Ok(address) => Ok(vec![address]),
            Err(_) => {
                let symptom = format!("hostaddr={address} is not an IP address");
                return Finding::new(Err(Diagnosis::plain(
                    &symptom,
                    "set hostaddr= to an IP address, or remove it",
                )));
            }
        },
        None => resolve(host),
    };
    if host.hostaddr.is_none() && can_be_cname(&host.name, &found) {
        evidence.names = cnames(&host.name);
    }
    evidence.addresses = found.clone().unwrap_or_default();
    let symptom = |text| diagnose::by_token(&Symptom::NoAddress(Untrusted::new(text)), evidence);
    Finding::new(found.map_err(symptom))
        .with_list("addresses", &evidence.addresses, ", ")
        .with_list("CNAME of", &evidence.names, ", then ")
}

/// Leaves time for the CNAMEs.
fn resolve(host: &Host) -> Result<Vec<IpAddr>, String> {
    let dialled = host.clone();
    let reason = match within(TIMEOUT - CNAMES_TIMEOUT, move || dialled.resolve()) {
        Some(Ok(addresses)) => return Ok(addresses),
        Some(Err(error)) => error.to_string(),
        None => "no answer".into(),
    };
    Err(format!("cannot resolve host name \"{}\": {reason}", host.name))
}

/// A name that AWS assigned is the endpoint itself. Names of this machine are not in the DNS.
fn can_be_cname(name: &str, found: &Result<Vec<IpAddr>, String>) -> bool {
    let is_aws_name = HostName::parse(name).is_ok_and(|name| name.kind() != HostKind::Other);
    let is_remote = found.as_ref().is_ok_and(|found| !found.iter().all(IpAddr::is_loopback));
    !is_aws_name && is_remote && name.contains('.')
}

/// Returns the names that the DNS follows from `host` to its addresses, in their order. Empty if no
/// server answers.
fn cnames(host: &str) -> Vec<Untrusted> {
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    cnames_from(&servers(&resolv_conf), host)
}

/// Returns the answer of the first server that gives one.
fn cnames_from(servers: &[SocketAddr], host: &str) -> Vec<Untrusted> {
    let share = CNAMES_TIMEOUT / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
    servers.iter().find_map(|server| query(*server, host, share)).unwrap_or_default()
}

/// Returns the servers of a resolv.conf. The C library uses 3 of them.
fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    let addresses = resolv_conf.lines().filter_map(address).take(3);
    addresses.map(|address| SocketAddr::new(address, 53)).collect()
}

/// The answer of a recursive resolver contains all CNAMEs.
fn query(server: SocketAddr, host: &str, timeout: Duration) -> Option<Vec<Untrusted>> {
    let mut query = Packet::new_query(fastrand::u16(..));
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(host).ok()?;
    query.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).ok()?;
    socket.connect(server).ok()?;
    socket.set_read_timeout(Some(timeout)).ok()?;
    socket.send(&query.build_bytes_vec().ok()?).ok()?;
    let mut bytes = [0; LONGEST_ANSWER];
    let length = socket.recv(&mut bytes).ok()?;
    let answer = Packet::parse(&bytes[..length]).ok().filter(|answer| answer.id() == query.id())?;
    let cname = |data: &RData| match data {
        RData::CNAME(name) => Some(Untrusted::new(name.0.to_string())),
        _ => None,
    };
    Some(answer.answers.iter().filter_map(|record| cname(&record.rdata)).collect())
}

/// Finds the first address that accepts TCP. Each gets its share of the time.
pub(super) fn tcp(addresses: &[IpAddr], evidence: &Evidence) -> Finding<SocketAddr> {
    let share = TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = Symptom::NoAddress(Untrusted::new("the name has no address"));
    for address in addresses.iter().map(|address| SocketAddr::new(*address, evidence.port)) {
        let error = match TcpStream::connect_timeout(&address, share) {
            Ok(_) => return Finding::new(Ok(address)).with("address", address.to_string()),
            Err(error) => error,
        };
        let text = Untrusted::new(format!("{address}: {error}"));
        last = match error.kind() {
            io::ErrorKind::ConnectionRefused => Symptom::TcpRefused(text),
            io::ErrorKind::ConnectionReset => Symptom::ClosedBeforeTls(text),
            _ => Symptom::NoRoute(text),
        };
    }
    Finding::new(Err(diagnose::by_token(&last, evidence)))
}

pub(super) fn no_address(text: &Untrusted, evidence: &Evidence) -> Vec<Cause> {
    let host = &evidence.host;
    if text.refusal() == Refusal::NoResolver {
        let help = evidence.login.cure(Refusal::NoResolver);
        return vec![Cause::new("the DNS servers of this machine gave no answer", help)];
    }
    vec![
        Cause::new(
            "the name is misspelt, or the database was deleted",
            "copy the endpoint from the RDS console",
        )
        .check(format!("search {host} in the RDS console")),
        Cause::new(
            "the name is in a private DNS zone that this machine cannot use",
            "run this inside the VPC or through its VPN",
        )
        .check(format!("run `dig {host}` inside the VPC")),
    ]
}

pub(super) fn tcp_refused(evidence: &Evidence) -> Vec<Cause> {
    let port = evidence.port;
    if evidence.is_on_this_machine() {
        let (endpoint, remote_port) = far_end(evidence);
        return vec![Cause::new(
            format!("no tunnel or server listens at port {port} of this machine"),
            format!("open a tunnel: ssh -N -L {port}:{endpoint}:{remote_port} BASTION"),
        )];
    }
    vec![
        Cause::new("the port is wrong", format!("set port= to the endpoint's port, not {port}"))
            .check("compare with the port in the RDS console"),
        Cause::new("the database is stopped or starting", "start it, or wait")
            .check("see the status in the RDS console"),
    ]
}

pub(super) fn no_route(evidence: &Evidence) -> Vec<Cause> {
    let port = evidence.port;
    let security_group = Cause::new(
        "a security group does not admit this machine",
        format!("add an inbound rule for TCP {port} from this machine's address or security group"),
    )
    .check("see the inbound rules of the database's security groups");
    let private = Cause::new(
        "the database can be reached only from its VPC",
        "run this inside the VPC, or use a VPN, or a tunnel with iam_host= and iam_port=",
    )
    .check("see whether this machine is in that VPC or connected to it");
    let firewall = Cause::new(
        "a firewall or a route in between drops the packets",
        format!("allow TCP {port} out of this network; correct routes and network ACLs"),
    )
    .check(format!("try port {port} from another network"));
    if evidence.is_on_this_machine() {
        let tunnel = Cause::new(
            "the tunnel or container behind this port does not answer",
            "restart the tunnel; its log names the failure",
        );
        vec![tunnel]
    } else if evidence.is_private() {
        vec![private, security_group, firewall]
    } else {
        vec![security_group, firewall, private]
    }
}

pub(super) fn silence(evidence: &Evidence) -> Vec<Cause> {
    let mut causes = vec![
        Cause::new(
            "a tunnel, proxy or load balancer accepts connections but does not reach the server",
            "correct what is behind it; its log names the failure",
        )
        .check("see whether something else than the database listens there"),
        Cause::new(
            "the server hangs, for example without memory or disk space",
            "check its metrics and its log, and restart it",
        )
        .check("see whether others can log in"),
    ];
    if !evidence.is_on_this_machine() && evidence.is_aws_name() {
        causes.reverse();
    }
    causes
}

pub(super) fn cut_off(evidence: &Evidence) -> Vec<Cause> {
    vec![
        Cause::new(
            format!("a pooler does not accept a password of {} bytes", evidence.token_length),
            "raise its limit for passwords to 64 KiB, or connect without the pooler",
        )
        .check("see whether there is a pooler before the endpoint"),
        Cause::new("the server ended the connection", "check the server's log")
            .check("see the log at this time"),
    ]
}

pub(super) fn not_postgres(evidence: &Evidence) -> Vec<Cause> {
    let (host, port) = (&evidence.host, evidence.port);
    vec![Cause::new(
        format!("another service than PostgreSQL listens at {host}:{port}"),
        "check host and port; the default port of RDS for PostgreSQL is 5432",
    )]
}

/// Returns where a tunnel must lead.
fn far_end(evidence: &Evidence) -> (&str, u16) {
    let host = if evidence.is_aws_name() { evidence.endpoint.host() } else { "ENDPOINT" };
    let port = evidence.endpoint.port();
    (host, if port == evidence.port { 5432 } else { port })
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    use super::*;

    /// A DNS server that answers one question with these CNAMEs and an address.
    fn server(cnames: &'static [&'static str]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; LONGEST_ANSWER];
            let (length, from) = socket.recv_from(&mut bytes).unwrap();
            let question = Packet::parse(&bytes[..length]).unwrap();
            socket.send_to(&answer(question, cnames), from).unwrap();
        });
        address
    }

    fn answer(question: Packet<'_>, cnames: &'static [&'static str]) -> Vec<u8> {
        let mut owner = question.questions[0].qname.clone();
        let mut answer = question.into_reply();
        let record = |owner, data| ResourceRecord::new(owner, CLASS::IN, 60, data);
        for cname in cnames {
            let name = Name::new(cname).unwrap();
            answer.answers.push(record(
                std::mem::replace(&mut owner, name.clone()),
                RData::CNAME(CNAME(name)),
            ));
        }
        answer.answers.push(record(owner, RData::A(A { address: 1 })));
        answer.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn all_cnames_are_returned_in_their_order() {
        let chain =
            &["db.abc.eu-west-1.rds.amazonaws.com", "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com"];
        let found = cnames_from(&[server(chain)], "db.example.com");
        let shown: Vec<String> = found.iter().map(Untrusted::to_string).collect();
        assert_eq!(shown, chain);
        assert!(cnames_from(&[server(&[])], "db.example.com").is_empty());
    }

    #[test]
    fn a_server_that_does_not_answer_is_skipped() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            cnames_from(&[gone, server(&["db.abc.eu-west-1.rds.amazonaws.com"])], "db.example.com")
                .len(),
            1
        );
        assert!(cnames_from(&[], "db.example.com").is_empty());
        assert!(cnames_from(&[gone], "not..a name").is_empty());
    }

    #[test]
    fn servers_are_read_from_resolv_conf() {
        let conf = "# nameserver 10.0.0.1\nsearch example.com\nnameserver 10.0.0.2\n\
            nameserver\tfd00::53 \nnameserver x\n";
        let expected: [SocketAddr; 2] =
            ["10.0.0.2:53".parse().unwrap(), "[fd00::53]:53".parse().unwrap()];
        assert_eq!(servers(conf), expected);
    }
}
