//! The check for a server that acknowledges and does not answer. Threads that wait in a query there
//! do not notice a failover.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::{Failover, TICK};

/// Between two looks at the queries in flight.
const INTERVAL: Duration = Duration::from_millis(250);
/// A query that waits longer is a reason to check its server.
const STALLED: Duration = Duration::from_millis(500);
/// A server that takes longer for the first byte is searched for another writer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Until the next check of a server that answered.
const NEXT_PROBE: Duration = Duration::from_secs(1);
/// Until the next search, if the last one found the same server.
const NEXT_SEARCH: Duration = Duration::from_secs(5);

/// libpq, "GSSENCRequest": a server answers with one byte, and logs nothing if the connection ends.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

impl Failover {
    /// Starts the thread that checks, once. It ends with the manager.
    pub(super) fn start_stall_check(self: &Arc<Self>) {
        let process = std::process::id();
        if self.is_checking.swap(process, SeqCst) == process {
            return;
        }
        let failover = Arc::downgrade(self);
        let thread = thread::Builder::new().name("rds-iam-stall".into());
        if let Err(error) = thread.spawn(move || check(&failover)) {
            log::warn!("a server that hangs is not noticed, because no thread can start: {error}");
        }
    }

    /// Searches for the writer as long as a query waits.
    fn search_while_stalled(self: &Arc<Self>) {
        let mut state = self.lock();
        let ended = state.ended();
        while state.ended() == ended && self.stalled().is_some() {
            let now = Instant::now();
            if !state.is_searching() {
                // Without a first host: the one that hangs would be it.
                state.start_search(None, now);
            }
            state.want(now);
            self.search(&mut state, now);
            self.changed.wait_until(&mut state, now + TICK);
        }
    }

    fn stalled(&self) -> Option<SocketAddr> {
        self.events.sockets.waiting_for(STALLED, Instant::now())
    }
}

fn check(failover: &Weak<Failover>) {
    loop {
        thread::sleep(INTERVAL);
        let Some(failover) = failover.upgrade() else { return };
        let Some(server) = failover.stalled() else { continue };
        let pause = if answers(server) {
            NEXT_PROBE
        } else {
            log::warn!("the server at {server} does not answer: looking for another writer");
            failover.search_while_stalled();
            NEXT_SEARCH
        };
        drop(failover);
        thread::sleep(pause);
    }
}

/// Whether a PostgreSQL server answers at this address. This is not a login.
fn answers(server: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&server, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(&REQUEST)?;
        stream.read(&mut [0])
    };
    // A server that closes the connection is there, too.
    ask().is_ok()
}
