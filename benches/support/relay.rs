//! A TCP relay that adds a delay.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Starts a relay that delays each direction of the connections to `port`. Returns the port of the
/// relay, which runs until the program ends.
pub(crate) fn relay_to(port: u16, delay: Duration) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let own_port = listener.local_addr()?.port();
    thread::spawn(move || -> io::Result<()> {
        for client in listener.incoming() {
            let (client, server) = (client?, TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
            forward(client.try_clone()?, server.try_clone()?, delay)?;
            forward(server, client, delay)?;
        }
        Ok(())
    });
    Ok(own_port)
}

/// Copies in one direction. Continues to read during the delay, so that it does not limit the
/// throughput.
fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration) -> io::Result<()> {
    to.set_nodelay(true)?;
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || -> io::Result<()> {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            to.write_all(&bytes)?;
        }
        to.shutdown(Shutdown::Write)
    });
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = from.read(&mut buffer)?;
            // Ends with the stream, or when the writing thread has ended.
            if length == 0
                || sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err()
            {
                return Ok(());
            }
        }
    });
    Ok(())
}
