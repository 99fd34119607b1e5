//! [`Progress`]: what happened so far in a transaction of
//! [`Pool::transaction`](crate::Pool::transaction).

use diesel::result::Error as QueryError;

use super::failure::Failure;
use super::statement::QueryEffects;
use crate::error::one_line;

/// What happened so far in a transaction.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    failure: Option<(Failure, String)>,
    /// A COPY was started. It may still be open.
    pub(crate) has_copied: bool,
    /// A raw query contained BEGIN, COMMIT or ROLLBACK.
    pub(crate) has_raw_control: bool,
}

impl Progress {
    pub(super) fn query_started(&mut self, effects: &QueryEffects) {
        self.has_copied |= effects.copies;
        self.has_raw_control |= effects.open.is_some();
    }

    /// A failed transaction accepts only a rollback. So the first error counts, until a query
    /// succeeds after the rollback of a savepoint.
    pub(super) fn query_finished(&mut self, error: Option<&QueryError>) {
        match error {
            Some(error) if self.failure.is_none() => {
                self.failure = Some((Failure::of(error), one_line(error)));
            }
            Some(_) => {}
            None => self.failure = None,
        }
    }

    /// Returns why the transaction can only be rolled back, and the text of that error.
    pub(crate) fn failure(&self) -> Option<(Failure, &str)> {
        self.failure.as_ref().map(|(failure, text)| (*failure, text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use diesel::result::DatabaseErrorKind as Kind;

    use super::*;

    fn failed(kind: Kind) -> QueryError {
        QueryError::DatabaseError(kind, Box::new(String::from("text")))
    }

    #[test]
    fn the_first_failure_counts_until_a_query_succeeds() {
        let mut progress = Progress::default();
        progress.query_finished(Some(&failed(Kind::SerializationFailure)));
        progress.query_finished(Some(&failed(Kind::Unknown)));
        assert_eq!(progress.failure(), Some((Failure::Conflict, "text")));
        progress.query_finished(None);
        assert_eq!(progress.failure(), None);
    }

    #[test]
    fn raw_control_and_copies_are_noted() {
        let cases = [
            ("COMMIT", false, true),
            ("SELECT 1; COMMIT; BEGIN", false, true),
            ("ROLLBACK TO SAVEPOINT a", false, false),
            ("COPY t FROM STDIN", true, false),
            ("INSERT INTO t VALUES ('COMMIT')", false, false),
        ];
        for (query, copies, controls) in cases {
            let mut progress = Progress::default();
            progress.query_started(&QueryEffects::of(query));
            assert_eq!(progress.has_copied, copies, "{query}");
            assert_eq!(progress.has_raw_control, controls, "{query}");
        }
    }
}
