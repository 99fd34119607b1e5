//! The CNAMEs behind a host name.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE};

/// For all servers together: they are a hint only, so they are not waited for as long as a step may
/// take.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// The names that the DNS goes through from `host` to its addresses, in their order; empty where it
/// tells none.
pub(super) fn cnames(host: &str) -> Vec<String> {
    asked_of(&servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()), host)
}

/// The first that answers.
fn asked_of(servers: &[SocketAddr], host: &str) -> Vec<String> {
    let share = LIMIT / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
    servers.iter().find_map(|server| ask(*server, host, share)).unwrap_or_default()
}

/// Those of a resolv.conf, of which the C library takes three.
fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    resolv_conf
        .lines()
        .filter_map(address)
        .take(3)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// A resolving server puts the whole way into its answer.
fn ask(server: SocketAddr, host: &str, limit: Duration) -> Option<Vec<String>> {
    let mut query = Packet::new_query(fastrand::u16(..));
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(
        Name::new(host).ok()?,
        TYPE::A.into(),
        CLASS::IN.into(),
        false,
    ));
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).ok()?;
    socket.connect(server).ok()?;
    socket.set_read_timeout(Some(limit)).ok()?;
    socket.send(&query.build_bytes_vec().ok()?).ok()?;
    let mut bytes = [0; LONGEST_ANSWER];
    let length = socket.recv(&mut bytes).ok()?;
    let answer = Packet::parse(&bytes[..length]).ok().filter(|answer| answer.id() == query.id())?;
    let cname =
        |data: &RData| if let RData::CNAME(name) = data { Some(name.0.to_string()) } else { None };
    Some(answer.answers.iter().filter_map(|record| cname(&record.rdata)).collect())
}

/// In bytes, of an answer by UDP without extensions; the CNAMEs stand before the addresses.
const LONGEST_ANSWER: usize = 512;

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    use super::*;

    /// A DNS server for one question, to which it gives these CNAMEs and an address.
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
    fn the_whole_way_is_told_in_its_order() {
        let way =
            &["db.abc.eu-west-1.rds.amazonaws.com", "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com"];
        assert_eq!(asked_of(&[server(way)], "db.example.com"), way);
        assert!(asked_of(&[server(&[])], "db.example.com").is_empty());
    }

    #[test]
    fn a_server_that_is_not_there_is_passed_over() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            asked_of(&[gone, server(&["db.abc.eu-west-1.rds.amazonaws.com"])], "db.example.com")
                .len(),
            1
        );
        assert!(asked_of(&[], "db.example.com").is_empty());
        assert!(asked_of(&[gone], "not..a name").is_empty());
    }

    #[test]
    fn servers_are_those_of_resolv_conf() {
        let conf = "# nameserver 10.0.0.1\nsearch example.com\nnameserver 10.0.0.2\nnameserver\tfd00::53 \nnameserver x\n";
        let expected: [SocketAddr; 2] =
            ["10.0.0.2:53".parse().unwrap(), "[fd00::53]:53".parse().unwrap()];
        assert_eq!(servers(conf), expected);
    }
}
