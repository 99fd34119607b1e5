//! [`Failure`]: what the error of a query means for its transaction.

use diesel::result::DatabaseErrorInformation;
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;

/// What the error of a query means for its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another transaction was in the way. The same transaction can succeed now.
    Conflict,
    /// The connection is lost.
    ConnectionLost,
    /// The server or the transaction accepts no writes.
    ReadOnly,
    /// The data or the query caused it. The same transaction fails again.
    Other,
}

impl Failure {
    pub(crate) fn of(error: &QueryError) -> Failure {
        match error {
            QueryError::DatabaseError(kind, information) => match kind {
                Kind::SerializationFailure => Failure::Conflict,
                Kind::ClosedConnection | Kind::UnableToSendCommand => Failure::ConnectionLost,
                Kind::ReadOnlyTransaction => Failure::ReadOnly,
                Kind::Unknown if is_deadlock(&**information) || is_of_dsql(&**information) => {
                    Failure::Conflict
                }
                _ => Failure::Other,
            },
            QueryError::RollbackErrorOnCommit { commit_error, .. } => Failure::of(commit_error),
            QueryError::BrokenTransactionManager => Failure::ConnectionLost,
            _ => Failure::Other,
        }
    }
}

/// Whether this is SQLSTATE 40P01, which diesel does not report. The server can translate the
/// message, but in each language its detail has one line for each process, and they form a circle.
fn is_deadlock(information: &dyn DatabaseErrorInformation) -> bool {
    information.message() == "deadlock detected"
        || information.details().is_some_and(is_circle_of_processes)
}

/// Each line is "Process A waits for ...; blocked by process B.", and B is the A of the next line.
fn is_circle_of_processes(detail: &str) -> bool {
    let edges: Option<Vec<_>> = detail.lines().map(first_and_last_number).collect();
    let Some(edges) = edges.filter(|edges| edges.len() >= 2) else { return false };
    let mut nexts = edges.iter().cycle().skip(1);
    edges.iter().all(|(_, blocker)| nexts.next().is_some_and(|(waiter, _)| waiter == blocker))
}

fn first_and_last_number(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let (first, last) = (numbers.next()?, numbers.next_back()?);
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Aurora DSQL reports a conflict as SQLSTATE 40001 and names its kind in the text: OC000 for data,
/// OC001 for the schema. A proxy can lose the SQLSTATE.
fn is_of_dsql(information: &dyn DatabaseErrorInformation) -> bool {
    ["(OC000)", "(OC001)"].iter().any(|code| information.message().contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Said(&'static str, Option<String>);

    impl DatabaseErrorInformation for Said {
        fn message(&self) -> &str {
            self.0
        }

        fn details(&self) -> Option<&str> {
            self.1.as_deref()
        }

        fn hint(&self) -> Option<&str> {
            None
        }

        fn table_name(&self) -> Option<&str> {
            None
        }

        fn column_name(&self) -> Option<&str> {
            None
        }

        fn constraint_name(&self) -> Option<&str> {
            None
        }

        fn statement_position(&self) -> Option<i32> {
            None
        }
    }

    fn failure(kind: Kind, message: &'static str, detail: Option<&str>) -> Failure {
        let information = Box::new(Said(message, detail.map(str::to_owned)));
        Failure::of(&QueryError::DatabaseError(kind, information))
    }

    /// From PostgreSQL 15's message catalogues.
    const WAITS: &[&str] = &[
        "Process A waits for L on O; blocked by process B.",
        "Prozess A wartet auf L-Sperre auf O; blockiert von Prozess B.",
        "El proceso A espera L en O; bloqueado por proceso B.",
        "Le processus A attend L sur O ; bloqué par le processus B.",
        "Il processo A è in attesa di L su O; bloccato dal processo B.",
        "プロセス A は L を O で待機していましたが、プロセス B でブロックされました",
        "A 프로세스가 L 상태로 지연되고 있음(해당 작업: O); B 프로세스에 의해 블록킹되었음",
        "Процесс A ожидает в режиме L блокировку \"O\"; заблокирован процессом B.",
        "Process A väntar på L för O; blockerad av process B.",
        "Процес A очікує в режимі L блокування \"O\"; заблокований процесом B.",
        "进程A等待在O上的L; 由进程B阻塞.",
    ];

    fn wait(text: &str, waiter: &str, blocker: &str) -> String {
        let text = text.replace('L', "ShareLock").replace('O', "tuple (0,1) of relation 16384");
        text.replacen('A', waiter, 1).replace('B', blocker)
    }

    #[test]
    fn a_deadlock_is_recognized_in_each_language() {
        for text in WAITS {
            let of_two = [wait(text, "4711", "815"), wait(text, "815", "4711")].join("\n");
            let of_three =
                [wait(text, "1", "2"), wait(text, "2", "30"), wait(text, "30", "1")].join("\n");
            for detail in [of_two, of_three] {
                let found = failure(Kind::Unknown, "in its language", Some(&detail));
                assert_eq!(found, Failure::Conflict, "{detail}");
            }
        }
        assert_eq!(failure(Kind::Unknown, "deadlock detected", None), Failure::Conflict);
    }

    #[test]
    fn other_details_are_no_deadlock() {
        let details = [
            "Process 1 waits for ShareLock on transaction 3; blocked by process 2.",
            "Key (id)=(1) already exists.\nKey (id)=(2) already exists.",
            "Failing row contains (1, 2).\nFailing row contains (3, 1).",
            "Process 1 waits; blocked by process 2.\nProcess 3 waits; blocked by process 1.",
            "",
            "no numbers\nat all",
        ];
        for detail in details {
            assert_eq!(failure(Kind::Unknown, "text", Some(detail)), Failure::Other, "{detail}");
        }
        let violation = failure(Kind::UniqueViolation, "deadlock detected", None);
        assert_eq!(violation, Failure::Other);
    }

    #[test]
    fn each_kind_of_error_has_its_meaning() {
        let cases = [
            (Kind::SerializationFailure, Failure::Conflict),
            (Kind::ClosedConnection, Failure::ConnectionLost),
            (Kind::UnableToSendCommand, Failure::ConnectionLost),
            (Kind::ReadOnlyTransaction, Failure::ReadOnly),
            (Kind::UniqueViolation, Failure::Other),
            (Kind::Unknown, Failure::Other),
        ];
        for (kind, expected) in cases {
            let said = format!("{kind:?}");
            assert_eq!(failure(kind, "text", None), expected, "{said}");
        }
        let of_dsql = "schema has been updated by another transaction, please retry: (OC001)";
        assert_eq!(failure(Kind::Unknown, of_dsql, None), Failure::Conflict);
        assert_eq!(Failure::of(&QueryError::NotFound), Failure::Other);
        assert_eq!(Failure::of(&QueryError::BrokenTransactionManager), Failure::ConnectionLost);
    }

    #[test]
    fn a_commit_whose_rollback_failed_too_counts_as_the_commit() {
        let lost = || {
            QueryError::DatabaseError(
                Kind::ClosedConnection,
                Box::new(String::from("server closed the connection unexpectedly")),
            )
        };
        let both = QueryError::RollbackErrorOnCommit {
            rollback_error: Box::new(QueryError::NotInTransaction),
            commit_error: Box::new(lost()),
        };
        assert_eq!(Failure::of(&both), Failure::ConnectionLost);
    }
}
