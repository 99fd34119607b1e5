//! One login: at one host, with retries while its server starts, or at several hosts.

pub(crate) mod backoff;
#[cfg_attr(not(target_os = "linux"), path = "ca_bundle_elsewhere.rs")]
pub(crate) mod ca_bundle;
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
use crate::error::{Error, LoginKind, Outlook};
use crate::stats::Counters;
use backoff::Backoff;
pub(crate) use failover::{Events, Failover, SUBSTITUTE_LIFETIME, check_role};
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

/// Between two attempts at a server that starts.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts at a server that accepts logins in another role. Each attempt is a login.
const PAUSE_OF_LOGINS: Duration = Duration::from_secs(1);

impl Login {
    /// Logs in at the only host, and retries while the server starts or has another role, for
    /// `connect_timeout` and at most 10 seconds. r2d2 itself would wait for up to half its
    /// `connection_timeout`. A refused login is not retried, because it counts against the server's
    /// limits.
    pub(crate) fn connect(
        &self,
        backoff: &Backoff,
        counters: &Counters,
    ) -> Result<Connected, Error> {
        let deadline = Instant::now() + self.longest_retry();
        loop {
            let started = Instant::now();
            let outcome = self.log_in();
            counters.login(outcome.as_ref().err(), started.elapsed());
            let error = match outcome {
                Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => error,
                outcome => return outcome,
            };
            backoff.host_failed(&error);
            log::debug!("{error}");
            let pause = match error.outlook() {
                Outlook::Starting => PAUSE,
                Outlook::OtherRole => PAUSE_OF_LOGINS,
                _ => return Err(error),
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            thread::sleep(pause);
        }
    }

    /// Tries each host once.
    #[cfg(feature = "doctor")]
    pub(crate) fn connect_once(&self) -> Result<PgConnection, Error> {
        let Login::Iam(iam) = self else { return self.log_in().map(|it| it.connection) };
        let mut failures = Vec::new();
        for target in iam.targets_in_order() {
            match iam.log_in(target, iam.conninfo.target_session_attrs()) {
                Ok(connected) => return Ok(connected.connection),
                Err(error) => failures.push(error),
            }
        }
        Err(Error::of_hosts(failures))
    }

    pub(crate) fn longest_retry(&self) -> Duration {
        let connect_timeout = match self {
            Login::Iam(iam) => iam.conninfo.connect_timeout(),
            Login::Password(password) => password.connect_timeout,
        };
        connect_timeout.map_or(LONGEST_RETRY, |timeout| timeout.min(LONGEST_RETRY))
    }

    fn log_in(&self) -> Result<Connected, Error> {
        match self {
            Login::Iam(iam) => iam.log_in(&iam.targets[0], iam.conninfo.target_session_attrs()),
            Login::Password(conninfo) => log_in_by_password(conninfo),
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
