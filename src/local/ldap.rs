//! The LDAP listener to which PostgreSQL's `ldap` method sends each bind (PostgreSQL, "LDAP
//! Authentication").

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindRequest, LdapBindResponse, LdapMsg, LdapOp, LdapResult,
};
use tokio_util::codec::{Decoder, Encoder};

use super::failed;
use super::judge::{Entrance, Judge};
use crate::error::Error;

/// PostgreSQL sends `uid=USER,dc=rds` and does not escape the user's name.
pub(super) const PREFIX: &str = "uid=";
pub(super) const SUFFIX: &str = ",dc=rds";

/// The longest password that PostgreSQL accepts plus the user's name, in bytes.
const LONGEST_BIND: usize = 66 * 1024;

/// Answers binds until the value is dropped.
pub(super) struct Listener {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(judge: Arc<Judge>, entrance: Entrance) -> Result<Listener, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(failed("cannot listen on 127.0.0.1"))?;
        let address = listener.local_addr().map_err(failed("cannot listen on 127.0.0.1"))?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = std::thread::spawn(move || serve(&listener, &judge, &entrance, &seen));
        Ok(Listener { address, ended, thread: Some(thread) })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // This connection wakes the thread, which then reads `ended`.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, judge: &Arc<Judge>, entrance: &Entrance, ended: &AtomicBool) {
    for stream in listener.incoming() {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let (judge, entrance) = (judge.clone(), entrance.clone());
        // Each backend of PostgreSQL opens its own connection, and backends run in parallel.
        std::thread::spawn(move || {
            if let Err(error) = stream.and_then(|stream| attend(&stream, &judge, &entrance)) {
                log::debug!("LocalRds could not answer PostgreSQL's LDAP bind: {error}");
            }
        });
    }
}

fn attend(stream: &TcpStream, judge: &Judge, entrance: &Entrance) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    converse(stream, stream, |user, password| judge.admits(entrance, user, password))
}

/// Serves one connection: answers binds until an unbind or the end of input.
pub(crate) fn converse(
    mut from: impl Read,
    mut to: impl Write,
    admits: impl Fn(&str, &str) -> bool,
) -> io::Result<()> {
    let mut codec = LdapCodec::new(Some(LONGEST_BIND), None);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut chunk = [0; 4096];
    loop {
        while let Some(message) = codec.decode(&mut input)? {
            let LdapOp::BindRequest(bind) = message.op else {
                return Ok(());
            };
            let answer = LdapOp::BindResponse(LdapBindResponse {
                res: answer(&bind, &admits),
                saslcreds: None,
            });
            codec.encode(LdapMsg::new(message.msgid, answer), &mut output)?;
            to.write_all(&output.split())?;
        }
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            length => input.extend_from_slice(&chunk[..length]),
        }
    }
}

fn answer(bind: &LdapBindRequest, admits: impl Fn(&str, &str) -> bool) -> LdapResult {
    let user = bind.dn.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    match (user, &bind.cred) {
        (Some(user), LdapBindCred::Simple(password)) if admits(user, password) => {
            LdapBindResponse::new_success("").res
        }
        _ => LdapBindResponse::new_invalidcredentials(&bind.dn, "refused").res,
    }
}
