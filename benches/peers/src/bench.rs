//! The server, the route to it, and the processes of the sides.

use std::env;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use diesel_rds_iam::Endpoint;
use diesel_rds_iam::local::LocalRds;

use crate::relay::relay_to;

/// A row of the table.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// The packages whose versions the table shows.
    pub(crate) packages: &'static [&'static str],
    pub(crate) side: &'static str,
    pub(crate) language: Language,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Language {
    Rust,
    Python,
}

#[derive(Clone, Copy)]
pub(crate) enum Route {
    Near,
    /// With a round trip of 1 ms added.
    Far,
}

pub(crate) struct Bench {
    pub(crate) rds: LocalRds,
    far: u16,
}

impl Bench {
    pub(crate) fn start() -> Bench {
        let rds = LocalRds::start().unwrap();
        let far = relay_to(rds.port(), Duration::from_micros(500)).unwrap();
        Bench { rds, far }
    }

    /// Starts the process that measures this side.
    pub(crate) fn measure(&self, peer: &Peer, measure: &str, route: Route) -> Running {
        let port = match route {
            Route::Near => self.rds.port(),
            Route::Far => self.far,
        };
        // Each side signs for the port that it connects to.
        self.rds
            .set_endpoint(Endpoint::new("localhost", port, self.rds.endpoint().region()).unwrap());
        let mut command = program(peer.language);
        command.args([peer.side, measure]).envs(self.rds.environment()).envs([
            ("PGHOST", "localhost"),
            ("PGPORT", &port.to_string()),
            ("PGUSER", LocalRds::USER),
            ("PGDATABASE", LocalRds::DATABASE),
            ("PGSSLMODE", "verify-full"),
        ]);
        command.env("AWS_DEFAULT_REGION", self.rds.endpoint().region());
        command.env_remove("DATABASE_URL").env_remove("AWS_SESSION_TOKEN");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Running { lines: BufReader::new(process.stdout.take().unwrap()).lines(), process }
    }
}

fn program(language: Language) -> Command {
    if language == Language::Rust {
        return Command::new(env::current_exe().unwrap());
    }
    let mut command = Command::new(
        env::var_os("PEERS_PYTHON").expect("PEERS_PYTHON, which benches/peers/run sets"),
    );
    // -B: writes no bytecode beside the sources.
    command.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/peers.py"));
    command
}

/// The process of a side that is being measured.
pub(crate) struct Running {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn wait_until_ready(&mut self) {
        assert_eq!(self.line(), "ready");
    }

    pub(crate) fn resume(&mut self) {
        writeln!(self.process.stdin.as_mut().unwrap()).unwrap();
    }

    pub(crate) fn result(mut self) -> String {
        let result = without_token(&self.line());
        self.process.wait().unwrap();
        result
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("no line from the side").unwrap()
    }
}

/// Removes a token from an error text. An error that contains its token is a finding.
fn without_token(text: &str) -> String {
    match text.find("X-Amz-") {
        Some(start) => format!("{} (cut here: the token follows)", &text[..start]),
        None => text.to_owned(),
    }
}
