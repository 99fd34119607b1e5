//! One login: the hosts in turn, each with its own token, and retries while a server starts.

pub(crate) mod backoff;
#[cfg_attr(not(target_os = "linux"), path = "ca_bundle_elsewhere.rs")]
pub(crate) mod ca_bundle;
mod candidate;
mod failover;
mod iam;
mod inherited;
mod region;
mod session;
mod target;
mod topology;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::{Connection, PgConnection};

use crate::connection::{Mark, ServerId, Socket};
use crate::conninfo::PasswordConninfo;
use crate::error::{Error, LoginKind};
use crate::stats::Counters;
use backoff::Backoff;
use candidate::{Candidate, into_error, log_failure};
pub(crate) use failover::{Events, Failover, SUBSTITUTE_LIFETIME};
pub(crate) use iam::Iam;
pub(crate) use inherited::{ENDPOINTS, to_hand_on};
pub(crate) use region::targets;
#[cfg(feature = "doctor")]
pub(crate) use target::RegionFrom;
pub(crate) use target::{Resolver, Target};

/// A connection that has logged in.
pub(crate) struct Connected {
    pub(crate) connection: PgConnection,
    /// `None` if it is not known.
    pub(crate) socket: Option<Arc<Socket>>,
    /// Known with [`Failover`].
    pub(crate) server: Option<ServerId>,
    /// It leads to the writer because there was no reader.
    pub(crate) is_substitute: bool,
}

impl Connected {
    fn new(connection: PgConnection, mark: Option<Mark>) -> Connected {
        let socket = mark.and_then(Mark::find).map(Arc::new);
        Connected { connection, socket, server: None, is_substitute: false }
    }
}

pub(crate) enum Login {
    /// With a new token for each connection.
    Iam(Arc<Iam>),
    /// `rds_iam_auth=false`.
    Password(Box<PasswordConninfo>),
}

/// r2d2 has three threads for all work of a pool, and a waiting thread should get the cause within
/// its `connection_timeout`.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Between two rounds of the hosts.
const PAUSE: Duration = Duration::from_millis(100);

impl Login {
    /// Logs in, and retries while the server starts or has another role, for `connect_timeout` and
    /// at most 10 seconds. r2d2 itself would wait for up to half its `connection_timeout`. A
    /// refused login is not retried, because it counts against the server's limits.
    pub(crate) fn connect(
        &self,
        backoff: &Backoff,
        counters: &Counters,
    ) -> Result<Connected, Error> {
        self.connect_until(Instant::now() + self.longest_retry(), backoff, counters)
    }

    /// Tries each host once.
    #[cfg(feature = "doctor")]
    pub(crate) fn connect_once(&self) -> Result<PgConnection, Error> {
        let connected =
            self.connect_until(Instant::now(), &Backoff::default(), &Counters::default())?;
        Ok(connected.connection)
    }

    fn connect_until(
        &self,
        deadline: Instant,
        backoff: &Backoff,
        counters: &Counters,
    ) -> Result<Connected, Error> {
        let roles = match self {
            // libpq documents two rounds: first for a standby, then for any server.
            Login::Iam(iam) if iam.conninfo.target_session_attrs() == "prefer-standby" => {
                vec!["standby", "any"]
            }
            Login::Iam(iam) => vec![iam.conninfo.target_session_attrs()],
            // libpq itself knows what the string asks for.
            Login::Password(_) => vec!["any"],
        };
        let mut attempts = Attempts { candidates: self.candidates(), roles, backoff, counters };
        loop {
            if let Some(connected) = attempts.go_round()? {
                return Ok(connected);
            }
            let may_change = attempts.candidates.iter().any(Candidate::may_change);
            if !may_change || Instant::now() + PAUSE >= deadline {
                return Err(into_error(attempts.candidates));
            }
            thread::sleep(PAUSE);
        }
    }

    pub(crate) fn longest_retry(&self) -> Duration {
        let connect_timeout = match self {
            Login::Iam(iam) => iam.conninfo.connect_timeout(),
            Login::Password(password) => password.connect_timeout,
        };
        connect_timeout.map_or(LONGEST_RETRY, |timeout| timeout.min(LONGEST_RETRY))
    }

    fn candidates(&self) -> Vec<Candidate<Destination<'_>>> {
        match self {
            Login::Iam(iam) => {
                let destinations = iam.targets_in_order().into_iter();
                destinations.map(|it| Candidate::new(Destination::Iam(iam, it))).collect()
            }
            Login::Password(conninfo) => vec![Candidate::new(Destination::Password(conninfo))],
        }
    }
}

/// One host, and how to log in there.
#[derive(Clone, Copy)]
enum Destination<'a> {
    Iam(&'a Iam, &'a Target),
    Password(&'a PasswordConninfo),
}

impl Destination<'_> {
    fn log_in(self, role: &str) -> Result<Connected, Error> {
        match self {
            Destination::Iam(iam, target) => iam.log_in(target, role),
            Destination::Password(conninfo) => log_in_by_password(conninfo),
        }
    }
}

fn log_in_by_password(conninfo: &PasswordConninfo) -> Result<Connected, Error> {
    let mark = conninfo.tcp_user_timeout.map(Mark::new);
    let connected = PgConnection::establish(&conninfo.for_login(mark.as_ref().map(Mark::value)));
    let target = "the database (without IAM)".to_owned();
    let connection =
        connected.map_err(|error| Error::connect(target, LoginKind::Password, error))?;
    Ok(Connected::new(connection, mark))
}

/// The attempts of one login.
struct Attempts<'a> {
    candidates: Vec<Candidate<Destination<'a>>>,
    /// The values of `target_session_attrs` to try, in this order.
    roles: Vec<&'a str>,
    backoff: &'a Backoff,
    counters: &'a Counters,
}

impl Attempts<'_> {
    /// Tries the hosts in turn, until one accepts the login and has the right role. libpq could do
    /// so itself, but has one password for all hosts.
    fn go_round(&mut self) -> Result<Option<Connected>, Error> {
        for (pass, role) in self.roles.clone().into_iter().enumerate() {
            for i in 0..self.candidates.len() {
                let candidate = &self.candidates[i];
                let is_tried = match pass {
                    0 => candidate.is_due(Instant::now()),
                    _ => candidate.is_in_other_role(),
                };
                if is_tried && let Some(connected) = self.try_host(i, role)? {
                    return Ok(Some(connected));
                }
            }
        }
        Ok(None)
    }

    /// Tries one host. Returns `Ok(None)` if it failed and another host may still succeed.
    fn try_host(&mut self, i: usize, role: &str) -> Result<Option<Connected>, Error> {
        let started = Instant::now();
        let outcome = self.candidates[i].host.log_in(role);
        self.counters.login(outcome.as_ref().err(), started.elapsed());
        match outcome {
            Ok(connected) => Ok(Some(connected)),
            Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => {
                self.backoff.host_failed(&error);
                log_failure(&error, self.candidates.len() > 1);
                self.candidates[i].failure = Some((error, Instant::now()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
