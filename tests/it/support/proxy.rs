//! A proxy between the clients and their server, which spoils what goes through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

use crate::support::network::SERVER;

/// Its threads end with the process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    way: Arc<Mutex<Way>>,
}

/// What becomes of what is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weather {
    Fair,
    /// Each piece comes so much later.
    Slow(Duration),
    /// What comes is acknowledged, and gone.
    Swallowed,
    /// What the clients send arrives. The answers are gone.
    Mute,
    /// Connections end after so many bytes of either side; the next one so much later, up to
    /// `most`.
    Truncated {
        after: usize,
        step: usize,
        most: usize,
    },
}

struct Way {
    weather: Weather,
    connections: Vec<[TcpStream; 2]>,
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Client,
    Server,
}

impl Proxy {
    /// At the server's address, to a port on 127.0.0.1, where `LocalRds` listens.
    pub(crate) fn to(port: u16) -> Proxy {
        Proxy::with_keepalive(port, Duration::from_secs(5))
    }

    /// With the time after which the server's side sends its first keepalive. It closes the
    /// connection 3 seconds later if there is no answer.
    pub(crate) fn with_keepalive(port: u16, keepalive: Duration) -> Proxy {
        Proxy::at(SERVER, port, keepalive)
    }

    /// At another address of this machine.
    pub(crate) fn at(address: &str, port: u16, keepalive: Duration) -> Proxy {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let way = Arc::new(Mutex::new(Way { weather: Weather::Fair, connections: Vec::new() }));
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), way: way.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                // While the server is away, its clients are hung up on.
                let _ = connect(client.unwrap(), port, keepalive, &way);
            }
        });
        proxy
    }

    /// For what is on its way, and for what will be.
    pub(crate) fn set(&self, weather: Weather) {
        self.way.lock().unwrap().weather = weather;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        for connection in self.way.lock().unwrap().connections.drain(..) {
            hang_up(&connection);
        }
    }
}

fn hang_up(connection: &[TcpStream; 2]) {
    for side in connection {
        // The other side may have hung up before.
        let _ = side.shutdown(Shutdown::Both);
    }
}

fn connect(
    client: TcpStream,
    port: u16,
    keepalive: Duration,
    way: &Arc<Mutex<Way>>,
) -> io::Result<()> {
    // As a server of RDS does, but sooner: a client that vanished is not to hold its session.
    sockopt::set_socket_keepalive(&client, true)?;
    sockopt::set_tcp_keepidle(&client, keepalive)?;
    sockopt::set_tcp_keepintvl(&client, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(&client, 3)?;
    let server = TcpStream::connect(("127.0.0.1", port))?;
    let limit = way.lock().unwrap().next_limit();
    for (from, to, whose) in [(&client, &server, From::Client), (&server, &client, From::Server)] {
        to.set_nodelay(true)?;
        let (from, to, way) = (from.try_clone()?, to.try_clone()?, way.clone());
        thread::spawn(move || {
            // Whoever hangs up: both connections end.
            let _ = forward(&from, &to, whose, limit, &way);
            hang_up(&[from, to]);
        });
    }
    let mut way = way.lock().unwrap();
    way.connections.retain(|[client, _]| client.peer_addr().is_ok());
    way.connections.push([client, server]);
    Ok(())
}

impl Way {
    /// After how many bytes of one side the next connection ends.
    fn next_limit(&mut self) -> usize {
        let Weather::Truncated { after, step, most } = &mut self.weather else { return usize::MAX };
        let limit = *after;
        *after = (*after + *step) % *most;
        limit
    }
}

fn forward(
    mut from: &TcpStream,
    mut to: &TcpStream,
    whose: From,
    limit: usize,
    way: &Mutex<Way>,
) -> io::Result<()> {
    let (mut buffer, mut left) = (vec![0; 1 << 14], limit);
    while left > 0 {
        let length = from.read(&mut buffer)?.min(left);
        if length == 0 {
            break;
        }
        left -= length;
        let weather = way.lock().unwrap().weather;
        match weather {
            Weather::Swallowed => continue,
            Weather::Mute if whose == From::Server => continue,
            Weather::Slow(delay) => thread::sleep(delay),
            _ => {}
        }
        to.write_all(&buffer[..length])?;
    }
    Ok(())
}
