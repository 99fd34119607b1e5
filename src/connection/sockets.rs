//! [`Sockets`]: the open connections of a manager, each with its server.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::socket::Socket;
use crate::error::Retirement;

/// Names a running server. It has another one after each restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerId(pub(crate) String);

/// The sockets of the open connections of a manager, as far as they are known.
#[derive(Default)]
pub(crate) struct Sockets(Mutex<Vec<(Weak<Socket>, ServerId)>>);

impl Sockets {
    pub(super) fn add(&self, socket: &Arc<Socket>, server: ServerId) {
        let mut all = self.0.lock();
        all.retain(|(socket, _)| socket.strong_count() > 0);
        all.push((Arc::downgrade(socket), server));
    }

    /// Ends the connections to all other servers, also those in use. Returns how many there were.
    pub(crate) fn abort_all_but(&self, server: &ServerId) -> usize {
        let mut all = self.0.lock();
        let others = all.extract_if(.., |(_, other)| other != server);
        let others: Vec<_> = others.filter_map(|(socket, _)| socket.upgrade()).collect();
        others.iter().for_each(|socket| socket.abort(Retirement::Demoted));
        others.len()
    }

    /// Returns the address of the server that a query waits for the longest, if it waits for at
    /// least this time.
    pub(crate) fn waiting_for(&self, least: Duration, now: Instant) -> Option<SocketAddr> {
        let all = self.0.lock();
        let waiting = all.iter().filter_map(|(socket, _)| {
            let socket = socket.upgrade()?;
            Some((socket.busy_since()?, socket))
        });
        let (since, socket) = waiting.min_by_key(|(since, _)| *since)?;
        if now.duration_since(since) < least { None } else { socket.peer() }
    }
}
