//! [`Socket`]: the TCP socket of a connection, which diesel does not give access to.
#![expect(unsafe_code, reason = "a descriptor is found by its number, which libpq owns")]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, connect_unspec, getpeername, recv, shutdown, sockopt};

use crate::error::Retirement;

/// A duplicate of libpq's descriptor. While it is open, the socket cannot become another one.
pub(crate) struct Socket {
    descriptor: OwnedFd,
    shut_down: OnceLock<Retirement>,
    /// When the query that is in flight was sent.
    busy_since: Mutex<Option<Instant>>,
}

impl Socket {
    /// Checks without waiting whether the server has closed the connection. Returns whether there
    /// is something to read. Consumes nothing.
    pub(super) fn peek(&self) -> io::Result<bool> {
        match recv(&self.descriptor, &mut [0_u8], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(io::Error::other("the server closed the connection")),
            Ok(_) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the TCP connection. What waits for it in libpq fails at once.
    pub(super) fn shut_down(&self, reason: Retirement) {
        let _ = self.shut_down.set(reason);
        // It fails if the connection has ended already.
        let _ = shutdown(&self.descriptor, Shutdown::Both);
    }

    /// Ends the TCP connection as [`shut_down`](Self::shut_down) does, and discards what was not
    /// sent yet: a server that was cut off must not get it later.
    pub(super) fn abort(&self, reason: Retirement) {
        self.shut_down(reason);
        // It fails if the connection has ended already.
        let _ = connect_unspec(&self.descriptor);
    }

    pub(super) fn query_started(&self) {
        *self.busy_since.lock() = Some(Instant::now());
    }

    pub(super) fn query_finished(&self) {
        *self.busy_since.lock() = None;
    }

    pub(super) fn busy_since(&self) -> Option<Instant> {
        *self.busy_since.lock()
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        getpeername(&self.descriptor).ok()??.try_into().ok()
    }

    /// Returns why [`shut_down`](Self::shut_down) was called.
    pub(super) fn shut_down_for(&self) -> Option<Retirement> {
        self.shut_down.get().copied()
    }
}

/// A value of `tcp_user_timeout` by which the socket of a login is found: libpq sets it on the
/// socket. No other login in progress has it.
pub(crate) struct Mark {
    /// What the user wants, in milliseconds. 0 is the system's own timeout.
    wanted: u32,
    value: u32,
}

/// About the system's own timeout of 15 minutes, for a socket that is not found.
const LIKE_THE_SYSTEM: u32 = 1_000_000;

/// The marks of so many logins differ. Each is at most so many milliseconds longer than `wanted`.
const MARKS: u32 = 1_000;

impl Mark {
    pub(crate) fn new(wanted: u32) -> Mark {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let base = if wanted == 0 { LIKE_THE_SYSTEM } else { wanted };
        let value = base + 1 + LAST.fetch_add(1, Ordering::Relaxed) % MARKS;
        // libpq reads it as a C int.
        Mark { wanted, value: value.min(i32::MAX.unsigned_abs()) }
    }

    /// Returns the value for libpq.
    pub(crate) fn value(&self) -> u32 {
        self.value
    }

    /// Returns the socket of the login that succeeded with this mark, and sets its timeout to what
    /// the user wants. The login must have been over TCP. Returns `None` if two sockets have the
    /// mark. Takes 0.01 ms with 20 open descriptors, and 0.4 ms with 1,000.
    pub(crate) fn find(self) -> Option<Socket> {
        let marked: Vec<RawFd> = descriptors().ok()?.filter(|fd| self.is_on(*fd)).collect();
        let [fd] = marked[..] else {
            log::debug!("the socket of a connection is not known ({} have its mark)", marked.len());
            return None;
        };
        // SAFETY: our connection keeps its descriptor open. If this is not ours, it may have been
        // closed: then there is an error, or the copy is of something without the mark.
        let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
        let is_ours = sockopt::tcp_user_timeout(&copy) == Ok(self.value)
            && getpeername(&copy).is_ok_and(|peer| peer.is_some());
        if !is_ours {
            return None;
        }
        let _ = sockopt::set_tcp_user_timeout(&copy, self.wanted);
        Some(Socket { descriptor: copy, shut_down: OnceLock::new(), busy_since: Mutex::new(None) })
    }

    fn is_on(&self, fd: RawFd) -> bool {
        // SAFETY: the option is only read. Another thread may close the descriptor: then there is
        // an error, or the option of another socket.
        let descriptor = unsafe { BorrowedFd::borrow_raw(fd) };
        sockopt::tcp_user_timeout(descriptor) == Ok(self.value)
    }
}

/// Returns the open descriptors of this process.
fn descriptors() -> io::Result<impl Iterator<Item = RawFd>> {
    let names = fs::read_dir("/proc/thread-self/fd")?.map_while(Result::ok);
    Ok(names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Returns both ends of a connection.
    fn connection() -> [TcpStream; 2] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [client, listener.accept().unwrap().0]
    }

    fn with_mark(socket: impl AsFd, mark: &Mark) {
        sockopt::set_tcp_user_timeout(socket, mark.value).unwrap();
    }

    #[test]
    fn a_socket_is_found_by_its_mark_and_gets_the_timeout_that_the_user_wants() {
        for wanted in [0, 1, 30_000, i32::MAX.unsigned_abs()] {
            let [mut client, mut server] = connection();
            let mark = Mark::new(wanted);
            assert!(mark.value >= wanted && mark.value <= i32::MAX.unsigned_abs(), "{wanted}");
            with_mark(&client, &mark);
            let found = mark.find().unwrap();
            assert_eq!(sockopt::tcp_user_timeout(&client).unwrap(), wanted);
            assert!(!found.peek().unwrap());
            server.write_all(b"x").unwrap();
            client.peek(&mut [0]).unwrap();
            assert!(found.peek().unwrap() && found.peek().unwrap(), "it consumes nothing");
            client.read_exact(&mut [0]).unwrap();
            assert!(!found.peek().unwrap());
            found.shut_down(Retirement::Age);
            found.shut_down(Retirement::Panic);
            assert_eq!(found.shut_down_for(), Some(Retirement::Age));
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn an_abort_wakes_a_reader_and_discards_what_was_not_sent() {
        let [mut client, mut server] = connection();
        let mark = Mark::new(30_000);
        with_mark(&client, &mark);
        let found = mark.find().unwrap();
        // The server reads nothing yet, so a part stays in the client's queue.
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(length) = client.write(&[0; 1 << 16]) {
            written += length;
        }
        client.set_nonblocking(false).unwrap();
        let reader = std::thread::spawn(move || client.read(&mut [0]));
        found.abort(Retirement::Demoted);
        let read = reader.join().unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        let mut received = Vec::new();
        let ended = server.read_to_end(&mut received);
        assert!(received.len() < written, "{ended:?}: all {written} bytes arrived");
        assert_eq!(found.shut_down_for(), Some(Retirement::Demoted));
    }

    #[test]
    fn a_peek_finds_a_closed_connection() {
        let [client, server] = connection();
        let mark = Mark::new(30_000);
        with_mark(&client, &mark);
        let found = mark.find().unwrap();
        drop(server);
        client.peek(&mut [0]).unwrap();
        let error = found.peek().unwrap_err().to_string();
        assert_eq!(error, "the server closed the connection");
    }

    #[test]
    fn two_sockets_with_one_mark_are_left_alone() {
        let ([one, _], [other, _]) = (connection(), connection());
        let mark = Mark::new(30_000);
        for socket in [&one, &other] {
            with_mark(socket, &mark);
        }
        let value = mark.value;
        assert!(mark.find().is_none());
        assert_eq!(sockopt::tcp_user_timeout(&one).unwrap(), value);
    }

    #[test]
    fn what_is_not_a_connected_tcp_socket_is_not_found() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let _others = (UdpSocket::bind(("127.0.0.1", 0)).unwrap(), UnixStream::pair().unwrap());
        let mark = Mark::new(30_000);
        with_mark(&listener, &mark);
        assert!(mark.find().is_none());
        assert!(Mark::new(30_000).find().is_none());
    }

    #[test]
    fn marks_in_a_row_differ() {
        let values = [(); 3].map(|()| Mark::new(30_000).value);
        assert!(values[0] != values[1] && values[1] != values[2], "{values:?}");
    }
}
