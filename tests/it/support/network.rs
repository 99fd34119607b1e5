//! A second network, as another host's, joined to this process's by a cable that can go dead.
//!
//! A proxy would not do in its place: its kernel acknowledges whatever comes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// This process's end. Its network is to have this address, as by `in_a_network_of_its_own`.
pub(crate) const SERVER: &str = "192.0.2.1";
const CLIENT: &str = "192.0.2.2";

const TO_SERVER: &str = "02:00:00:00:00:01";
const TO_CLIENT: &str = "02:00:00:00:00:02";
const NOBODY: &str = "02:00:00:00:00:03";

/// Each end knows the other's address for good, as behind a router: without one a silent host is
/// soon a "No route to host". $PPID is this process.
const JOIN: &str = "
    at_server() { nsenter --net=/proc/$PPID/ns/net \"$@\"; }
    ip link set lo up &&
    ip link add to-server address TO_SERVER type veth peer name to-client address TO_CLIENT netns $PPID &&
    ip address add CLIENT/32 dev to-server && ip link set to-server up && at_server ip link set to-client up &&
    ip route add SERVER dev to-server && at_server ip route add CLIENT dev to-client &&
    ip neighbour add SERVER dev to-server lladdr TO_CLIENT nud permanent &&
    at_server ip neighbour add CLIENT dev to-client lladdr TO_SERVER nud permanent &&
    echo joined && exec cat";

/// The other network, which ends when this is dropped and nobody is in it any more.
pub(crate) struct Cable {
    /// Keeps the network, until its standard input is closed.
    keeper: Child,
}

impl Cable {
    pub(crate) fn lay() -> Cable {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--net", "sh", "-c", &named(JOIN)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut keeper = unshare.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "joined\n");
        Cable { keeper }
    }

    /// Moves this thread, and those that it starts from now on, to the other end.
    pub(crate) fn cross(&self) {
        let network = File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Does something there; threads that it starts are there, too.
    pub(crate) fn across<T: Send>(&self, it: impl FnOnce() -> T + Send) -> T {
        let there = || {
            self.cross();
            it()
        };
        thread::scope(|scope| scope.spawn(there).join()).unwrap()
    }

    /// From now on nothing comes through, and nothing tells why.
    pub(crate) fn cut(&self) {
        self.send_to(NOBODY, NOBODY);
    }

    pub(crate) fn mend(&self) {
        self.send_to(TO_CLIENT, TO_SERVER);
    }

    /// What the one end sends to the other is for an interface with this address.
    fn send_to(&self, server: &str, client: &str) {
        let there = format!("--net=/proc/{}/ns/net", self.keeper.id());
        let here = format!("--net=/proc/{}/ns/net", std::process::id());
        let ends = [(there, SERVER, "to-server", server), (here, CLIENT, "to-client", client)];
        for (network, peer, interface, address) in ends {
            let neighbour = [
                "neighbour",
                "replace",
                peer,
                "dev",
                interface,
                "lladdr",
                address,
                "nud",
                "permanent",
            ];
            assert!(
                Command::new("nsenter")
                    .args([&network, "ip"])
                    .args(neighbour)
                    .status()
                    .unwrap()
                    .success()
            );
        }
    }
}

fn named(commands: &str) -> String {
    let names = [
        ("TO_SERVER", TO_SERVER),
        ("TO_CLIENT", TO_CLIENT),
        ("SERVER", SERVER),
        ("CLIENT", CLIENT),
    ];
    names
        .into_iter()
        .fold(commands.to_owned(), |commands, (name, value)| commands.replace(name, value))
}

impl Drop for Cable {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
