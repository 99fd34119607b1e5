//! What is known of each host in the course of one connect().

use std::time::{Duration, Instant};

use diesel::PgConnection;

use crate::error::{Error, Outlook};

/// Between two rounds.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Between two attempts at a host that answers, and is not what is wanted: each is a login.
const PAUSE_OF_LOGINS: Duration = Duration::from_secs(1);

/// The last failure at each host, in the order of the connection string.
pub(crate) struct Hosts<'a> {
    failures: Vec<Option<(Error, Instant)>>,
    note: &'a Note<'a>,
}

/// Hears of each login, and why it failed.
pub(crate) type Note<'a> = dyn Fn(Option<&Error>) + 'a;

impl<'a> Hosts<'a> {
    pub(crate) fn new(count: usize, note: &'a Note<'a>) -> Hosts<'a> {
        Hosts { failures: (0..count).map(|_| None).collect(), note }
    }

    /// Connects to one host; none: it failed there. An error is one of ours, for which other hosts
    /// have no remedy.
    pub(crate) fn attempt(
        &mut self,
        i: usize,
        connect: impl FnOnce() -> Result<PgConnection, Error>,
    ) -> Result<Option<PgConnection>, Error> {
        let outcome = connect();
        (self.note)(outcome.as_ref().err());
        match outcome {
            Err(error @ (Error::Connect { .. } | Error::Resolve { .. })) => {
                self.log(&error);
                self.failures[i] = Some((error, Instant::now()));
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// A host that is down or a standby is what several hosts are for; one that refuses us wants a
    /// person.
    fn log(&self, error: &Error) {
        let is_refusal = error.is_refused_token() || error.outlook() == Outlook::Stays;
        let level = if is_refusal && self.failures.len() > 1 {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(level, "{error}");
    }

    /// Whether to try this host in this round.
    pub(crate) fn is_due(&self, i: usize) -> bool {
        self.failures[i].as_ref().is_none_or(|(error, at)| match error.outlook() {
            Outlook::ComesBack => true,
            Outlook::ChangesRole => at.elapsed() >= PAUSE_OF_LOGINS,
            Outlook::Unknown | Outlook::Stays => false,
        })
    }

    /// Those that let us in, and are not what is wanted.
    pub(crate) fn in_other_role(&self) -> Vec<usize> {
        let is = |i: &usize| self.outlook(*i) == Some(Outlook::ChangesRole);
        (0..self.failures.len()).filter(is).collect()
    }

    /// Whether another round has a chance.
    pub(crate) fn may_change(&self) -> bool {
        let changes =
            |i| matches!(self.outlook(i), Some(Outlook::ComesBack | Outlook::ChangesRole));
        (0..self.failures.len()).any(changes)
    }

    fn outlook(&self, i: usize) -> Option<Outlook> {
        self.failures[i].as_ref().map(|(error, _)| error.outlook())
    }

    pub(crate) fn into_error(self) -> Error {
        let mut failures: Vec<Error> =
            self.failures.into_iter().flatten().map(|(error, _)| error).collect();
        if failures.len() == 1 { failures.remove(0) } else { Error::Hosts { failures } }
    }
}
