//! A second network namespace, connected to the one of this process by a link that can be cut.
//!
//! A proxy cannot simulate a cut link, because its kernel acknowledges all that it receives.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::await_line;

/// The address of this process's end. `in_a_network_of_its_own` assigns it.
pub(crate) const SERVER: &str = "192.0.2.1";
const CLIENT: &str = "192.0.2.2";

const TO_SERVER: &str = "02:00:00:00:00:01";
const TO_CLIENT: &str = "02:00:00:00:00:02";
const NOBODY: &str = "02:00:00:00:00:03";

/// The neighbour entries are permanent, because without them a silent host becomes "No route to
/// host". $PPID is this process.
const JOIN: &str = "
    at_server() { nsenter --net=/proc/$PPID/ns/net \"$@\"; }
    ip link set lo up &&
    ip link add to-server address TO_SERVER type veth \
        peer name to-client address TO_CLIENT netns $PPID &&
    ip address add CLIENT/32 dev to-server && ip link set to-server up &&
    at_server ip link set to-client up &&
    ip route add SERVER dev to-server && at_server ip route add CLIENT dev to-client &&
    ip neighbour add SERVER dev to-server lladdr TO_CLIENT nud permanent &&
    at_server ip neighbour add CLIENT dev to-client lladdr TO_SERVER nud permanent &&
    echo joined && exec cat";

/// The other network. It ends when this is dropped and no thread uses it.
pub(crate) struct Cable {
    /// Keeps the network until its standard input is closed.
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
        await_line("the networks are joined", keeper.stdout.take().unwrap(), |line| {
            (line == "joined").then_some(())
        });
        Cable { keeper }
    }

    /// Moves this thread, and the threads that it starts later, to the other end.
    pub(crate) fn cross(&self) {
        let network = File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Runs a function, and the threads that it starts, at the other end.
    pub(crate) fn across<T: Send>(&self, it: impl FnOnce() -> T + Send) -> T {
        let there = || {
            self.cross();
            it()
        };
        thread::scope(|scope| scope.spawn(there).join()).unwrap()
    }

    /// Drops all packets from now on, without an error message.
    pub(crate) fn cut(&self) {
        self.send_to(NOBODY, NOBODY);
    }

    pub(crate) fn mend(&self) {
        self.send_to(TO_CLIENT, TO_SERVER);
    }

    /// Sets the link addresses to which the two ends send.
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
