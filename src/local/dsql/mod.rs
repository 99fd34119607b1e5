//! [`Proxy`]: speaks the dialect of Aurora DSQL before a PostgreSQL.
//!
//! The proxy ends TLS, and PostgreSQL checks the login. After the login the proxy refuses what DSQL
//! refuses, and passes on everything else. PostgreSQL listens on a unix socket in a private folder
//! only, so no client can bypass the proxy.

mod proxy;
mod session;
mod statement;
mod table;
mod tokens;
mod wire;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use parking_lot::RwLock;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio_native_tls::native_tls::{self, Identity};

use super::certificates::Certificates;
use super::clock::Clock;
use super::failed;
use crate::error::Error;

/// What the dialect needs in the database.
pub(super) const SYS: &str = include_str!("sys.sql");

/// The id in the host name of a stand-in.
pub(super) const CLUSTER: &str = "localrds000000000000000000";

/// Accepts connections until it is dropped.
pub(super) struct Proxy {
    shared: Arc<Shared>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections use.
struct Shared {
    /// The unix socket of PostgreSQL.
    socket: PathBuf,
    acceptor: RwLock<tokio_native_tls::TlsAcceptor>,
    clock: Clock,
    /// How often DDL was committed.
    catalog: Arc<AtomicU64>,
}

impl Proxy {
    pub(super) fn start(
        listener: TcpListener,
        socket: PathBuf,
        certificates: &Certificates,
        clock: Clock,
    ) -> Result<Proxy, Error> {
        let acceptor = RwLock::new(acceptor(certificates)?);
        let shared = Arc::new(Shared { socket, acceptor, clock, catalog: Arc::default() });
        let step = "cannot start the proxy";
        listener.set_nonblocking(true).map_err(failed(step))?;
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(failed(step))?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(failed(step))?
        };
        let (end, ended) = oneshot::channel();
        runtime.spawn(proxy::serve(listener, shared.clone()));
        // The end of the thread drops the runtime, and with it all connections.
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(ended);
        });
        Ok(Proxy { shared, end: Some(end), thread: Some(thread) })
    }

    /// Replaces the certificate for new connections.
    pub(super) fn set_certificate(&self, certificates: &Certificates) -> Result<(), Error> {
        *self.shared.acceptor.write() = acceptor(certificates)?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor(certificates: &Certificates) -> Result<tokio_native_tls::TlsAcceptor, Error> {
    let make = || {
        let identity = Identity::from_pkcs8(&certificates.server, &certificates.server_key)?;
        native_tls::TlsAcceptor::new(identity)
    };
    make().map(Into::into).map_err(failed("cannot use the server's certificate"))
}
