//! The example `web` as a child process of a test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use diesel_rds_iam::local::LocalRds;

use super::{eventually, example, send};

/// Kills the program when it is dropped.
pub(crate) struct Web {
    child: Child,
    readers: Vec<JoinHandle<String>>,
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
}

/// The result of a program that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

impl Web {
    pub(crate) fn on(rds: &LocalRds) -> Web {
        Web::start(web().envs(rds.environment()))
    }

    /// Returns as soon as the program listens.
    pub(crate) fn start(command: &mut Command) -> Web {
        let (mut web, lines) = Web::spawn(command);
        let is_address = |line: String| line.strip_prefix("listening on ").map(str::to_owned);
        web.url = std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(60)).ok())
            .find_map(is_address)
            .unwrap();
        web
    }

    /// Runs the program until it ends without a signal.
    pub(crate) fn run(command: &mut Command) -> Ended {
        let (web, lines) = Web::spawn(command);
        drop(lines);
        web.wait()
    }

    fn spawn(command: &mut Command) -> (Web, Receiver<String>) {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = channel();
        (
            Web {
                child,
                readers: vec![show(stdout, Some(sender)), show(stderr, None)],
                url: String::new(),
            },
            lines,
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: &str) {
        send(signal, self.id());
    }

    /// Waits until the program has ended.
    pub(crate) fn wait(mut self) -> Ended {
        eventually("the program web ends", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        Ended {
            status,
            output: self.readers.drain(..).map(|reader| reader.join().unwrap()).collect(),
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Prints the rest of the output before the test ends.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

/// Returns the program, set to listen on a free port.
pub(crate) fn web() -> Command {
    let mut command = example("web");
    command.env("LISTEN", "127.0.0.1:0");
    command
}

/// Returns a number of the page /status, for example `in use`.
pub(crate) fn number(page: &str, name: &str) -> Option<u64> {
    let after = |mark: &str| page.split_once(mark).map(|(_, rest)| rest);
    let rest =
        after(&format!("<dt>{name}</dt><dd>")).or_else(|| after(&format!(">{name}</th><td>")))?;
    rest.split_once('<')?.0.parse().ok()
}

/// Prints the output of the child, so that it is searched for secrets.
fn show(from: impl Read + Send + 'static, lines: Option<Sender<String>>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut all = String::new();
        for line in BufReader::new(from).lines() {
            let line = line.unwrap();
            eprintln!("{line}");
            all.push_str(&line);
            all.push('\n');
            // The receiver is dropped after the address.
            lines.as_ref().map(|lines| lines.send(line));
        }
        all
    })
}
