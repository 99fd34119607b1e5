//! Accepts connections, and passes messages between a client and PostgreSQL.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_async::time::TimeSource;
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::session::Session;
use super::wire::{
    CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, push_error, startup_code, take_message,
    take_startup,
};
use super::{Clock, Shared};

/// After this time DSQL ends a connection. An open transaction can continue for
/// `LONGEST_TRANSACTION`.
const LONGEST_CONNECTION: Duration = Duration::from_secs(60 * 60);
const LONGEST_TRANSACTION: Duration = Duration::from_secs(5 * 60);
/// How often the age of a connection is checked. A test can advance the clock at any time.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
const READ_SIZE: usize = 16 * 1024;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = attend(client, &shared).await {
                        log::debug!("LocalRds lost a connection to its proxy: {error}");
                    }
                });
            }
            // Too many open files, for example.
            Err(_) => tokio::time::sleep(CHECK_INTERVAL).await,
        }
    }
}

async fn attend(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    // A stopped PostgreSQL refuses this, and the client is disconnected.
    let mut server = UnixStream::connect(&shared.socket).await?;
    let login = async {
        if !asks_for_tls(&mut client, &mut server).await? {
            return Ok(None);
        }
        let acceptor = shared.acceptor.read().clone();
        let mut client = acceptor.accept(client).await.map_err(io::Error::other)?;
        let startup = read_startup(&mut client).await?;
        server.write_all(&startup).await?;
        Ok::<_, io::Error>(Some(client))
    };
    let client = timeout(LOGIN_TIMEOUT, login).await??;
    match client {
        Some(client) => relay(client, server, shared).await,
        None => Ok(()),
    }
}

/// Returns whether the client begins TLS. If not, it needs no further answer.
async fn asks_for_tls(client: &mut TcpStream, server: &mut UnixStream) -> io::Result<bool> {
    loop {
        let packet = read_startup(client).await?;
        match startup_code(&packet) {
            SSL_REQUEST => {
                client.write_all(b"S").await?;
                return Ok(true);
            }
            GSSENC_REQUEST => client.write_all(b"N").await?,
            CANCEL_REQUEST => {
                server.write_all(&packet).await?;
                return Ok(false);
            }
            _ => {
                let mut answer = Vec::new();
                let text = "no pg_hba.conf entry for this host, no encryption";
                push_error(&mut answer, "FATAL", "28000", text);
                client.write_all(&answer).await?;
                return Ok(false);
            }
        }
    }
}

/// Reads one packet and not a byte more: the next one can belong to TLS.
async fn read_startup(client: &mut (impl AsyncRead + Unpin)) -> io::Result<BytesMut> {
    let mut buffer = BytesMut::new();
    loop {
        match take_startup(&mut buffer) {
            Ok(Some(packet)) => return Ok(packet),
            Ok(None) => buffer.extend_from_slice(&[client.read_u8().await?]),
            Err(()) => return Err(io::Error::other("not a packet of PostgreSQL's protocol")),
        }
    }
}

async fn relay(
    client: impl AsyncRead + AsyncWrite + Send + 'static,
    server: UnixStream,
    shared: &Shared,
) -> io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (from_server, to_server) = server.into_split();
    let session = Arc::new(Mutex::new(Session::new(shared.catalog.clone())));
    let requests = tokio::spawn(pass_requests(from_client, to_server, session.clone()));
    let ended = pass_answers(from_server, &mut to_client, &session, &shared.clock).await;
    requests.abort();
    let _ = to_client.shutdown().await;
    ended
}

/// When the client has left, the end of `to` ends the session of PostgreSQL.
async fn pass_requests(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    session: Arc<Mutex<Session>>,
) -> io::Result<()> {
    let mut input = BytesMut::new();
    loop {
        input.reserve(READ_SIZE);
        if from.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut output = Vec::new();
        while let Some(message) = take_message(&mut input) {
            session.lock().on_request(&message, &mut output);
        }
        to.write_all(&output).await?;
    }
}

async fn pass_answers(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    session: &Mutex<Session>,
    clock: &Clock,
) -> io::Result<()> {
    let opened = clock.now();
    let mut input = BytesMut::new();
    loop {
        input.reserve(READ_SIZE);
        if let Ok(read) = timeout(CHECK_INTERVAL, from.read_buf(&mut input)).await
            && read? == 0
        {
            return Ok(());
        }
        let mut output = Vec::new();
        while let Some(message) = take_message(&mut input) {
            session.lock().on_answer(&message, &mut output);
        }
        to.write_all(&output).await?;
        // TLS may have a buffer.
        to.flush().await?;
        let age = clock.now().duration_since(opened).unwrap_or_default();
        let is_old = age >= LONGEST_CONNECTION && session.lock().is_idle();
        if is_old || age >= LONGEST_CONNECTION + LONGEST_TRANSACTION {
            return Ok(());
        }
    }
}
