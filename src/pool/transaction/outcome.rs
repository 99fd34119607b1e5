//! What became of a transaction whose answer to COMMIT was lost.

use std::thread;
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};

use super::error::TransactionError;
use super::source::Source;
use crate::connection::{Backend, Failure, Lsn, Means, Record};
use crate::error::{Error, Retirement, one_line};

/// How long a session may go on with its COMMIT before it is terminated.
const PATIENCE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a transaction wrote, as far as it was known before COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing, so it can be run again whatever became of it.
    Nothing,
    /// It has this number. `lsn` is a place in the write-ahead log before its COMMIT.
    Xid { xid: u64, lsn: Option<Lsn>, backend: Backend },
    /// The server cannot tell.
    Unknown,
}

/// What a server says about a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    is_standby: bool,
    /// As `pg_xact_status` has it, or `future` if the number was not assigned yet.
    status: Option<String>,
    recovery_end: Option<Lsn>,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Committed,
    NotCommitted,
    InProgress,
    /// A standby may not have received the COMMIT yet.
    Standby,
    /// The server has forgotten the transaction.
    Forgotten,
}

/// Returns whether the transaction committed. Queries on other connections until there is an answer
/// or the deadline, at least once.
///
/// # Errors
/// [`TransactionError::OutcomeUnknown`].
pub(super) fn is_committed<E>(
    source: Source<'_>,
    written: Written,
    deadline: Option<Instant>,
) -> Result<bool, TransactionError<E>> {
    let unknown = |xid, reason| Err(TransactionError::OutcomeUnknown { xid, reason });
    let (xid, lsn, backend) = match written {
        Written::Nothing => return Ok(false),
        Written::Xid { xid, lsn, backend } => (xid, lsn, backend),
        Written::Unknown => {
            return unknown(None, "this server has no numbers of transactions".to_owned());
        }
    };
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let reason = match query(source, left, xid, lsn, backend, started.elapsed() >= PATIENCE) {
            Ok(Verdict::Committed) => return Ok(true),
            Ok(Verdict::NotCommitted) => return Ok(false),
            Ok(Verdict::InProgress) => "the transaction is still in progress".to_owned(),
            Ok(Verdict::Standby) => "the server is a standby".to_owned(),
            Ok(Verdict::Forgotten) => {
                return unknown(Some(xid), "the server has forgotten the transaction".to_owned());
            }
            Err(Error::Query(error)) if Failure::of(&error) == Failure::Other => {
                return unknown(Some(xid), one_line(&error));
            }
            Err(error) => error.to_string(),
        };
        log::debug!("outcome of transaction {xid} is not known yet: {reason}");
        if deadline.is_some_and(|deadline| deadline <= Instant::now() + pause) {
            return unknown(Some(xid), reason);
        }
        // The server reports no event for this.
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn query(
    source: Source<'_>,
    left: Option<Duration>,
    xid: u64,
    lsn: Option<Lsn>,
    backend: Backend,
    is_to_be_ended: bool,
) -> Result<Verdict, Error> {
    // One login fits into a second.
    let timeout = left.map(|left| left.max(Duration::from_secs(1)));
    let mut connection = source.get_for_outcome(timeout)?;
    let verdict = verdict(lsn, backend, &answer(&mut connection, xid, backend.means)?);
    if verdict == Verdict::InProgress && is_to_be_ended {
        terminate(&mut connection, xid, backend.pid);
    }
    if verdict == Verdict::Standby
        && let Some(record) = Record::of(&mut connection)
    {
        record.retire(Retirement::Demoted);
    }
    Ok(verdict)
}

/// A number that this server has not assigned yet is an error of `pg_xact_status`. A new number is
/// assigned first, to know how far the server is.
fn answer(connection: &mut PgConnection, xid: u64, means: Means) -> QueryResult<Answer> {
    let recovery_end = match means {
        Means::XidAndLsn => "pg_last_wal_replay_lsn()::text",
        Means::Xid | Means::Nothing => "NULL::text",
    };
    let query = format!(
        "SELECT pg_is_in_recovery(), \
         CASE WHEN pg_is_in_recovery() THEN NULL \
         WHEN '{xid}'::xid8 < pg_current_xact_id() \
         THEN pg_xact_status('{xid}'::xid8) ELSE 'future' END, \
         {recovery_end}"
    );
    let (is_standby, status, recovery_end) = sql::<(Bool, Nullable<Text>, Nullable<Text>)>(&query)
        .get_result::<(bool, Option<String>, Option<String>)>(connection)?;
    let recovery_end = recovery_end.as_deref().and_then(Lsn::parse);
    Ok(Answer { is_standby, status, recovery_end })
}

fn verdict(lsn: Option<Lsn>, before: Backend, answer: &Answer) -> Verdict {
    if answer.is_standby {
        return Verdict::Standby;
    }
    // The server has recovered since, after a crash or as a new primary. If its log ends before
    // the COMMIT, the number can be that of another transaction by now.
    if let (Some(lsn), Some(end)) = (lsn, answer.recovery_end)
        && answer.recovery_end != before.recovery_end
        && lsn > end
    {
        return Verdict::NotCommitted;
    }
    match answer.status.as_deref() {
        Some("committed") => Verdict::Committed,
        Some("aborted" | "future") => Verdict::NotCommitted,
        Some(_) => Verdict::InProgress,
        None => Verdict::Forgotten,
    }
}

/// Terminates the session that still has the transaction: its client is gone. Not one that waits
/// for a synchronous standby, because that has committed and would not wait any longer.
fn terminate(connection: &mut PgConnection, xid: u64, pid: i32) {
    let query = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE pid = {pid} AND backend_xid = '{xid}'::xid8::xid \
         AND wait_event IS DISTINCT FROM 'SyncRep'"
    );
    match sql::<Bool>(&query).load::<bool>(connection) {
        Ok(ended) if ended.is_empty() => {}
        Ok(_) => log::warn!("session {pid} was terminated: its client lost transaction {xid}"),
        Err(error) => log::debug!("session {pid} cannot be terminated: {}", one_line(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Backend = Backend {
        pid: 7,
        recovery_end: Some(Lsn(100)),
        means: Means::XidAndLsn,
        is_standby: false,
    };

    fn answer(status: Option<&str>, recovery_end: Option<u64>) -> Answer {
        let recovery_end = recovery_end.map(Lsn);
        Answer { is_standby: false, status: status.map(str::to_owned), recovery_end }
    }

    #[test]
    fn each_status_has_its_verdict() {
        let cases = [
            (Some("committed"), Verdict::Committed),
            (Some("aborted"), Verdict::NotCommitted),
            (Some("future"), Verdict::NotCommitted),
            (Some("in progress"), Verdict::InProgress),
            (None, Verdict::Forgotten),
        ];
        for (status, expected) in cases {
            let answer = answer(status, Some(100));
            assert_eq!(verdict(Some(Lsn(500)), BEFORE, &answer), expected, "{status:?}");
        }
    }

    #[test]
    fn a_number_that_was_assigned_again_after_a_recovery_is_not_believed() {
        let (before_commit, after_commit) = (Some(400), Some(600));
        let of_another = answer(Some("committed"), before_commit);
        assert_eq!(verdict(Some(Lsn(500)), BEFORE, &of_another), Verdict::NotCommitted);
        let ours = answer(Some("committed"), after_commit);
        assert_eq!(verdict(Some(Lsn(500)), BEFORE, &ours), Verdict::Committed);
        let exactly = answer(Some("aborted"), Some(500));
        assert_eq!(verdict(Some(Lsn(500)), BEFORE, &exactly), Verdict::NotCommitted);
    }

    #[test]
    fn a_restart_without_a_recovery_and_a_server_without_a_log_are_believed() {
        let restarted = answer(Some("committed"), None);
        assert_eq!(verdict(Some(Lsn(500)), BEFORE, &restarted), Verdict::Committed);
        let shared_storage = Backend { recovery_end: None, means: Means::Xid, ..BEFORE };
        assert_eq!(verdict(None, shared_storage, &restarted), Verdict::Committed);
    }

    #[test]
    fn a_standby_is_not_believed() {
        let mut answer = answer(None, Some(100));
        answer.is_standby = true;
        assert_eq!(verdict(Some(Lsn(500)), BEFORE, &answer), Verdict::Standby);
    }
}
