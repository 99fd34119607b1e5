//! Systems without TCP_USER_TIMEOUT: the socket of a connection is not known.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crate::error::Retirement;

/// Has no values.
pub(crate) enum Socket {}

impl Socket {
    pub(super) fn peek(&self) -> io::Result<bool> {
        match *self {}
    }

    pub(super) fn shut_down(&self, _reason: Retirement) {
        match *self {}
    }

    pub(super) fn abort(&self, _reason: Retirement) {
        match *self {}
    }

    pub(super) fn query_started(&self) {
        match *self {}
    }

    pub(super) fn query_finished(&self) {
        match *self {}
    }

    pub(super) fn busy_since(&self) -> Option<Instant> {
        match *self {}
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        match *self {}
    }

    pub(super) fn shut_down_for(&self) -> Option<Retirement> {
        match *self {}
    }
}

/// Marks nothing.
pub(crate) struct Mark(u32);

impl Mark {
    pub(crate) fn new(wanted: u32) -> Mark {
        Mark(wanted)
    }

    pub(crate) fn value(&self) -> u32 {
        self.0
    }

    pub(crate) fn find(self) -> Option<Socket> {
        None
    }
}
