//! The server of moto, an independent simulation of AWS. script/bootstrap installs it. The tests
//! fail if it is missing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use diesel_rds_iam::Credentials;
use diesel_rds_iam::local::LocalRds;

use super::cloud::{Cloud, Reply, Request, reply};
use super::{await_line, minutes};

/// The folder in which script/bootstrap installs Python programs.
pub(crate) fn python_bin() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/python/bin")
}

pub(crate) struct Moto {
    process: Child,
    port: u16,
}

impl Moto {
    pub(crate) fn start() -> Moto {
        let mut command = Command::new(python_bin().join("moto_server"));
        let mut process = command
            .args(["--port", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let port = await_line("moto prints its port", process.stderr.take().unwrap(), |line| {
            line.split_once("Running on http://127.0.0.1:")?.1.trim().parse().ok()
        });
        Moto { process, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns moto's STS behind a relay, which adds moto's key pairs to `rds`.
    pub(crate) fn sts_for(&self, rds: Arc<LocalRds>) -> Cloud {
        let port = self.port;
        Cloud::start(move |request: &Request| {
            let answer = ask(port, request);
            if let Some(keys) = keys_in(&answer.body) {
                rds.add_key_pair(keys);
            }
            answer
        })
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(port: u16, request: &Request) -> Reply {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(minutes(1))).unwrap();
    let forwarded = ["authorization", "content-type", "host", "x-amz-date"];
    let headers: String = forwarded
        .iter()
        .filter_map(|name| Some(format!("{name}: {}\r\n", request.header(name)?)))
        .collect();
    let (line, body) = (&request.line, &request.body);
    write!(stream, "{line} HTTP/1.0\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    reply(head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// Returns `None` if the response contains no credentials.
fn keys_in(xml: &str) -> Option<Credentials> {
    let text =
        |name: &str| Some(xml.split_once(&format!("<{name}>"))?.1.split_once('<')?.0.to_owned());
    Some(Credentials::new(
        text("AccessKeyId")?,
        text("SecretAccessKey")?,
        Some(text("SessionToken")?),
        None,
        "moto",
    ))
}
