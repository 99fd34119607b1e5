//! What is asked of the nodes' PostgreSQL: who follows whom, and how far.

use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::sql_types::Text;
use diesel::{QueryResult, RunQueryDsl};

use super::names::identifier;
use super::node::Node;
use crate::error::Error;
use crate::local::failed;

/// How long a promotion, or a standby that connects, may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// After this time a standby that does not follow gets a new copy of the data.
pub(super) const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Where the WAL of a writer ends.
pub(super) struct Position {
    lsn: String,
    timeline: u32,
}

/// Returns where the WAL of the writer ends.
pub(super) fn position(writer: &Node) -> Result<Position, Error> {
    let query = "SELECT pg_current_wal_flush_lsn()::text || ' ' \
         || left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    let answer: QueryResult<String> =
        sql::<Text>(query).get_result(&mut writer.server.superuser("postgres")?);
    let answer = answer.map_err(failed("cannot read the position of the writer"))?;
    let (lsn, timeline) = answer.split_once(' ').unwrap_or_default();
    let timeline = u32::from_str_radix(timeline, 16)
        .map_err(failed("cannot read the timeline of the writer"))?;
    Ok(Position { lsn: lsn.to_owned(), timeline })
}

/// Returns whether a standby has all WAL of the writer up to `position`, on the same timeline. It
/// has also replayed it, unless it has a lag.
pub(super) fn follows(writer: &Node, standby: &Node, position: &Position) -> Result<bool, Error> {
    let Position { lsn, timeline } = position;
    let name = identifier(standby.index);
    let progress = if standby.status().lag.is_zero() { "replay_lsn" } else { "flush_lsn" };
    Ok(writer.asks(&format!(
        "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = '{name}' \
         AND state = 'streaming' AND {progress} >= '{lsn}')"
    ))? && standby.asks(&format!(
        "EXISTS (SELECT FROM pg_stat_wal_receiver WHERE received_tli = {timeline})"
    ))?)
}

/// Returns whether each COMMIT of the writer waits for all of these standbys, and they have all WAL
/// up to `position`.
pub(super) fn are_in_sync(
    writer: &Node,
    standbys: &[usize],
    position: &Position,
) -> Result<bool, Error> {
    let names: Vec<_> = standbys.iter().map(|it| format!("'{}'", identifier(*it))).collect();
    let (count, names, lsn) = (names.len(), names.join(", "), &position.lsn);
    writer.asks(&format!(
        "count(*) = {count} FROM pg_stat_replication WHERE application_name IN ({names}) \
         AND sync_state = 'sync' AND flush_lsn >= '{lsn}'"
    ))
}

/// Promotes a standby, and waits until it accepts writes.
pub(super) fn promote(standby: &Node) -> Result<(), Error> {
    standby.asks("pg_promote(wait => false)")?;
    let what = format!("the promotion of {}", identifier(standby.index));
    wait_for(TIMEOUT, &what, || standby.asks("NOT pg_is_in_recovery()"))
}

/// Ends the connection by which a frozen standby replicates. The writer would wait for it in its
/// shutdown.
pub(super) fn disconnect(writer: &Node, standby: &Node) -> Result<(), Error> {
    let name = identifier(standby.index);
    writer.asks(&format!(
        "count(pg_terminate_backend(pid)) >= 0 FROM pg_stat_replication \
         WHERE application_name = '{name}'"
    ))?;
    Ok(())
}

/// Polls, because PostgreSQL has no event for these conditions.
pub(super) fn wait_for(
    limit: Duration,
    what: &str,
    mut happened: impl FnMut() -> Result<bool, Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    while !happened()? {
        if Instant::now() >= deadline {
            let seconds = limit.as_secs();
            return Err(failed("the cluster is not ready")(format!(
                "{what} did not end within {seconds} s"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
