//! [`Report`], [`Step`] and [`Diagnosis`]: what an examination found.

use std::fmt;
use std::time::Duration;

use super::evidence::Untrusted;
use crate::error::{Error, one_line};

/// What [`examine`](super::examine) found, step by step.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// The database user, if there is a usable connection string.
    pub user: Option<String>,
    /// The steps in their order. The steps of a host end with the first that failed.
    pub steps: Vec<Step>,
}

impl Report {
    /// Returns the report for an `error` of [`Builder::build`](crate::Builder::build), when there
    /// is no manager to examine.
    pub fn without_manager(error: &Error) -> Report {
        let is_region = matches!(error, Error::Region { .. });
        let name = if is_region { "region" } else { "connection string" };
        let outcome = Err(Diagnosis::of(error));
        let step = Step { name, host: None, facts: Vec::new(), outcome, took: Duration::ZERO };
        Report { user: None, steps: vec![step] }
    }

    /// Returns whether libpq logged in, as [`connect`](r2d2::ManageConnection::connect) does. With
    /// several hosts one is enough, so other hosts can have failed.
    pub fn can_log_in(&self) -> bool {
        self.steps.iter().any(|step| step.name == super::LIBPQ && step.outcome.is_ok())
    }

    /// Returns the steps that failed.
    pub fn failures(&self) -> impl Iterator<Item = (&Step, &Diagnosis)> {
        self.steps.iter().filter_map(|step| Some((step, step.outcome.as_ref().err()?)))
    }

    /// Returns the first step that failed.
    pub fn first_failure(&self) -> Option<(&Step, &Diagnosis)> {
        self.failures().next()
    }
}

/// One step of a login.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Step {
    /// `connection string`, `region`, `credentials`, `DNS`, `TCP`, `TLS`, `token`, `login`, `libpq`
    /// or `session`.
    pub name: &'static str,
    /// The host, as `HOST:PORT`, if the step is about one host.
    pub host: Option<String>,
    /// What the step found, also if it failed.
    pub facts: Vec<Fact>,
    /// What is wrong, if anything.
    pub outcome: Result<(), Diagnosis>,
    /// How long the step took.
    pub took: Duration,
}

/// Something that a step found. It contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fact {
    /// What the fact is about, such as `addresses`.
    pub name: &'static str,
    /// The fact, for people.
    pub value: String,
}

impl Fact {
    pub(super) fn new(name: &'static str, value: impl Into<String>) -> Fact {
        Fact { name, value: Untrusted::new(value).to_string() }
    }
}

/// What is wrong, and what can cause it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// How the step failed. Where the server, libpq or the system said something, its own words.
    pub symptom: String,
    /// One cause if the facts decide. Otherwise all causes with the same symptom, the likeliest
    /// first.
    pub causes: Vec<Cause>,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cause {
    /// The cause. Equal to the symptom if the symptom explains itself.
    pub cause: String,
    /// How to check whether it is this cause. `None` if the facts decide.
    pub check: Option<String>,
    /// What to do, with the names of this login filled in. It can have several lines.
    pub help: String,
}

impl Diagnosis {
    /// A first cause without a check is certain, and the others are left out.
    pub(super) fn new(symptom: &impl fmt::Display, mut causes: Vec<Cause>) -> Diagnosis {
        if causes.first().is_some_and(|cause| cause.check.is_none()) {
            causes.truncate(1);
        }
        Diagnosis { symptom: one_line(symptom), causes }
    }

    /// Splits the error's own text, which ends in what to do.
    pub(super) fn of(error: &Error) -> Diagnosis {
        let text = error.to_string();
        match text.rsplit_once("; ").or_else(|| text.rsplit_once(": ")) {
            Some((symptom, help)) => Diagnosis::plain(&symptom, help),
            None => Diagnosis::plain(&text, &text),
        }
    }

    /// For a symptom that explains itself.
    pub(super) fn plain(symptom: &impl fmt::Display, help: impl Into<String>) -> Diagnosis {
        Diagnosis::new(symptom, vec![Cause::new(one_line(symptom), help)])
    }
}

impl Cause {
    pub(super) fn new(cause: impl Into<String>, help: impl Into<String>) -> Cause {
        Cause { cause: cause.into(), check: None, help: help.into() }
    }

    pub(super) fn check(self, check: impl Into<String>) -> Cause {
        Cause { check: Some(check.into()), ..self }
    }
}

/// One line for a log: the symptom, then each cause and its help.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.symptom)?;
        self.causes.iter().try_for_each(|cause| match one_line(&cause.help) {
            help if cause.cause == self.symptom => write!(f, "; {help}"),
            help => write!(f, "; {}: {help}", cause.cause),
        })
    }
}

/// What a check found, and its result for the following steps.
pub(super) struct Finding<T> {
    pub(super) facts: Vec<Fact>,
    pub(super) outcome: Result<T, Diagnosis>,
}

impl<T> Finding<T> {
    pub(super) fn new(outcome: Result<T, Diagnosis>) -> Finding<T> {
        Finding { facts: Vec::new(), outcome }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Finding<T> {
        self.facts.push(Fact::new(name, value));
        self
    }

    /// Adds nothing if the list is empty.
    pub(super) fn with_list<I: fmt::Display>(
        self,
        name: &'static str,
        items: &[I],
        separator: &str,
    ) -> Finding<T> {
        let shown: Vec<String> = items.iter().map(I::to_string).collect();
        if shown.is_empty() { self } else { self.with(name, shown.join(separator)) }
    }
}
