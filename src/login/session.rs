//! [`Session`]: a login at one node of a cluster, and what its server says of itself.

use std::time::{Duration, Instant};

use diesel::ConnectionError::CouldntSetupConfiguration;
use diesel::dsl::sql;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};

use super::failover::Role;
use super::topology::Cluster;
use super::{Connected, Iam, Target};
use crate::connection::{Alarm, ServerId};
use crate::error::{Error, Retirement, one_line};

/// A login at one node of a cluster.
pub(super) struct Session {
    pub(super) connected: Connected,
    /// `None` if its role does not matter.
    pub(super) server: Option<Server>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Server {
    pub(super) in_recovery: bool,
    pub(super) is_read_only: bool,
    /// Of its write-ahead log, if it is not in recovery. Each promotion starts a new one.
    pub(super) timeline: Option<i64>,
    pub(super) id: ServerId,
}

/// A server that does not answer within this time is not usable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

type Columns = (Bool, Bool, Text, Nullable<BigInt>);

/// The start time of the server is a name for it that no other server has.
const SERVER: &str = "SELECT pg_is_in_recovery(), \
    current_setting('default_transaction_read_only')::bool, pg_postmaster_start_time()::text, ";
const TIMELINE: &str = "CASE WHEN NOT pg_is_in_recovery() THEN ('x' || \
    left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint END";
const NO_TIMELINE: &str = "NULL::bigint";

impl Session {
    /// Logs in, and asks the server for its role unless each role fits.
    pub(super) fn log_in(
        iam: &Iam,
        target: &Target,
        cluster: &Cluster,
        role: Role,
    ) -> Result<Session, Error> {
        let mut connected = iam.log_in(target, "any")?;
        if role == Role::Any {
            return Ok(Session { connected, server: None });
        }
        let server = ask(&mut connected, cluster)
            .map_err(|error| target.failed(CouldntSetupConfiguration(error)))?;
        connected.server = Some(server.id.clone());
        Ok(Session { connected, server: Some(server) })
    }

    /// Asks a server of Aurora which node it is.
    pub(super) fn node(&mut self) -> Option<String> {
        let query = sql::<Text>("SELECT aurora_db_instance_identifier()::text");
        self.within_limit(|connection| query.get_result(connection)).ok()
    }

    /// Asks the server for its role again.
    pub(super) fn refresh(&mut self, cluster: &Cluster) -> QueryResult<()> {
        self.server = Some(ask(&mut self.connected, cluster)?);
        Ok(())
    }

    /// Calls a function that sends queries, with a limit for their answers.
    pub(super) fn within_limit<T>(&mut self, query: impl FnOnce(&mut PgConnection) -> T) -> T {
        within_limit(&mut self.connected, query)
    }
}

fn ask(connected: &mut Connected, cluster: &Cluster) -> QueryResult<Server> {
    within_limit(connected, |connection| {
        if cluster.has_timeline() {
            match server(connection, TIMELINE) {
                Ok(server) => return Ok(server),
                Err(error) => {
                    let error = one_line(&error);
                    log::debug!("the server does not report its timeline: {error}");
                }
            }
        }
        let server = server(connection, NO_TIMELINE)?;
        cluster.lacks_timeline();
        Ok(server)
    })
}

fn server(connection: &mut PgConnection, timeline: &str) -> QueryResult<Server> {
    let query = sql::<Columns>(&format!("{SERVER}{timeline}"));
    let (in_recovery, is_read_only, started, timeline) =
        query.get_result::<(bool, bool, String, Option<i64>)>(connection)?;
    Ok(Server { in_recovery, is_read_only, timeline, id: ServerId(started) })
}

/// Without the socket there is no limit.
fn within_limit<T>(connected: &mut Connected, query: impl FnOnce(&mut PgConnection) -> T) -> T {
    let at = Instant::now() + ANSWER_TIMEOUT;
    let socket = connected.socket.clone();
    let alarm = socket.map(|socket| Alarm::set(socket, at, Retirement::FailedCheck));
    let answer = query(&mut connected.connection);
    drop(alarm);
    answer
}
