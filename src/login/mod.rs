//! One login: the hosts in turn, each with its own token, and retries while a server starts.

pub(crate) mod backoff;
#[cfg_attr(not(target_os = "linux"), path = "ca_bundle_elsewhere.rs")]
pub(crate) mod ca_bundle;
mod iam;
mod inherited;
mod region;
mod round;
mod target;

use std::thread;
use std::time::{Duration, Instant};

use diesel::{Connection, PgConnection};

use crate::conninfo::PasswordConninfo;
use crate::error::{EndpointKind, Error, LoginContext, Method};
use crate::stats::Counters;
use backoff::Backoff;
pub(crate) use iam::Iam;
pub(crate) use inherited::{ENDPOINTS, to_hand_on};
pub(crate) use region::targets;
use round::{Round, log_failure};
#[cfg(feature = "doctor")]
pub(crate) use target::RegionFrom;
pub(crate) use target::{Hostaddr, Target};

pub(crate) enum Login {
    /// With a new token for each connection.
    Iam(Box<Iam>),
    /// `rds_iam_auth=false`.
    Password(PasswordConninfo),
}

/// r2d2 has three threads for all work of a pool, and a waiting thread should get the cause within
/// its `connection_timeout`.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

const PREFER_STANDBY: &str = "prefer-standby";

impl Login {
    /// Logs in, and retries while the server starts or has another role, for `connect_timeout` and
    /// at most 10 seconds. r2d2 itself would wait for up to half its `connection_timeout`. A
    /// refused login is not retried, because it counts against the server's limits.
    pub(crate) fn connect(
        &self,
        backoff: &Backoff,
        counters: &Counters,
    ) -> Result<PgConnection, Error> {
        self.connect_until(Instant::now() + self.longest_retry(), backoff, counters)
    }

    /// Tries each host once.
    #[cfg(feature = "doctor")]
    pub(crate) fn connect_once(&self) -> Result<PgConnection, Error> {
        self.connect_until(Instant::now(), &Backoff::default(), &Counters::default())
    }

    fn connect_until(
        &self,
        deadline: Instant,
        backoff: &Backoff,
        counters: &Counters,
    ) -> Result<PgConnection, Error> {
        let mut attempts = Attempts { login: self, round: self.round(), backoff, counters };
        loop {
            if let Some(connection) = attempts.go_round()? {
                return Ok(connection);
            }
            if !attempts.round.may_change() || Instant::now() + round::PAUSE >= deadline {
                return Err(attempts.round.into_error());
            }
            thread::sleep(round::PAUSE);
        }
    }

    fn longest_retry(&self) -> Duration {
        let connect_timeout = match self {
            Login::Iam(iam) => iam.conninfo.connect_timeout(),
            Login::Password(password) => password.connect_timeout,
        };
        connect_timeout.map_or(LONGEST_RETRY, |timeout| timeout.min(LONGEST_RETRY))
    }

    fn round(&self) -> Round<Destination<'_>> {
        match self {
            Login::Iam(iam) => {
                Round::new(iam.targets_in_order().into_iter().map(|it| Destination::Iam(iam, it)))
            }
            Login::Password(password) => Round::new([Destination::Password(password)]),
        }
    }

    fn target_session_attrs(&self) -> &str {
        match self {
            Login::Iam(iam) => iam.conninfo.target_session_attrs(),
            // libpq itself knows what the string asks for.
            Login::Password(_) => "any",
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
    fn log_in(self, role: &str) -> Result<PgConnection, Error> {
        match self {
            Destination::Iam(iam, target) => iam.log_in(target, role),
            Destination::Password(conninfo) => log_in_by_password(conninfo),
        }
    }
}

fn log_in_by_password(conninfo: &PasswordConninfo) -> Result<PgConnection, Error> {
    let context = LoginContext { method: Method::Password, endpoint: EndpointKind::Other };
    let connected = PgConnection::establish(&conninfo.for_login);
    connected.map_err(|error| Error::connect("the database (without IAM)", context, error))
}

/// The attempts of one login.
struct Attempts<'a> {
    login: &'a Login,
    round: Round<Destination<'a>>,
    backoff: &'a Backoff,
    counters: &'a Counters,
}

impl Attempts<'_> {
    /// Tries the hosts in turn, until one accepts the login and has the right role. libpq could do
    /// so itself, but has one password for all hosts.
    fn go_round(&mut self) -> Result<Option<PgConnection>, Error> {
        let wanted = self.login.target_session_attrs();
        // libpq documents prefer-standby as two rounds: first for a standby, then for any server.
        let first = if wanted == PREFER_STANDBY { "standby" } else { wanted };
        for i in 0..self.round.len() {
            if self.round.is_due(i, Instant::now())
                && let Some(connection) = self.try_host(i, first)?
            {
                return Ok(Some(connection));
            }
        }
        for i in 0..self.round.len() {
            if wanted == PREFER_STANDBY
                && self.round.is_in_other_role(i)
                && let Some(connection) = self.try_host(i, "any")?
            {
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }

    /// Tries one host. Returns `Ok(None)` if it failed and another host may still succeed.
    fn try_host(&mut self, i: usize, role: &str) -> Result<Option<PgConnection>, Error> {
        let started = Instant::now();
        let outcome = self.round.host(i).log_in(role);
        self.counters.login(outcome.as_ref().err(), started.elapsed());
        match outcome {
            Ok(connection) => Ok(Some(connection)),
            Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => {
                self.backoff.host_failed(&error);
                log_failure(&error, self.round.len());
                self.round.failed(i, error, Instant::now());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
