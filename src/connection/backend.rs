//! [`Backend`]: the server process of a connection, and what it supports.

use diesel::dsl::sql;
use diesel::sql_types::{Bool, Integer, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};

use super::failure::Failure;

/// The server process of a connection, and by what means the outcome of its transactions can be
/// found later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    /// Where the last recovery of this server ended. `None` if it started without one.
    pub(crate) recovery_end: Option<Lsn>,
    pub(crate) means: Means,
    pub(crate) is_standby: bool,
}

/// How the outcome of a transaction can be found after its connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// By its number, and by its place in the write-ahead log.
    XidAndLsn,
    /// By its number. Aurora does not support the functions for the write-ahead log.
    Xid,
    /// Not at all: Aurora DSQL, and PostgreSQL before version 13.
    Nothing,
}

/// A place in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// Reads `16/B374D848`.
    pub(crate) fn parse(text: &str) -> Option<Lsn> {
        let (high, low) = text.split_once('/')?;
        let half = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(Lsn(half(high)? << 32 | half(low)?))
    }
}

const XID_AND_LSN: &str = "SELECT pg_backend_pid(), pg_is_in_recovery(), \
    pg_last_wal_replay_lsn()::text, pg_current_xact_id_if_assigned()::text, \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END::text";

const XID: &str = "SELECT pg_backend_pid(), pg_is_in_recovery(), NULL::text, \
    pg_current_xact_id_if_assigned()::text, NULL::text";

type Columns = (Integer, Bool, Nullable<Text>, Nullable<Text>, Nullable<Text>);
type Row = (i32, bool, Option<String>, Option<String>, Option<String>);

impl Backend {
    /// Asks the server. Outside of a transaction: what it does not support is an error there.
    pub(crate) fn of(connection: &mut PgConnection) -> QueryResult<Backend> {
        for (query, means) in [(XID_AND_LSN, Means::XidAndLsn), (XID, Means::Xid)] {
            match sql::<Columns>(query).get_result::<Row>(connection) {
                Ok((pid, is_standby, recovery_end, _, _)) => {
                    let recovery_end = recovery_end.as_deref().and_then(Lsn::parse);
                    // A standby has no place where it inserts into the log.
                    let means = if is_standby { Means::Xid } else { means };
                    return Ok(Backend { pid, recovery_end, means, is_standby });
                }
                Err(error) if Failure::of(&error) == Failure::ConnectionLost => return Err(error),
                Err(error) => log::debug!("the server does not support {means:?}: {error}"),
            }
        }
        Ok(Backend { pid: 0, recovery_end: None, means: Means::Nothing, is_standby: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_log_is_read_and_ordered() {
        assert_eq!(Lsn::parse("16/B374D848"), Some(Lsn(0x16_B374_D848)));
        assert!(Lsn::parse("1/0") > Lsn::parse("0/FFFFFFFF"));
        for text in ["", "/", "16", "G/0", "1/100000000"] {
            assert_eq!(Lsn::parse(text), None, "{text}");
        }
    }
}
