//! [`Step`]: one step on the way of a login.

use std::fmt;
use std::time::Duration;

use super::Diagnosis;
use crate::error::one_line;

/// One step on the way of a login.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Step {
    /// What was looked at: `connection string`, `region`, `credentials`, `DNS`, `TCP`, `TLS`,
    /// `token`, `login`, `libpq` or `session`.
    pub name: &'static str,
    /// The host, as `HOST:PORT`, where the step is one host's.
    pub host: Option<String>,
    /// What was found, also where the step failed.
    pub facts: Vec<Fact>,
    /// What is wrong, if anything.
    pub outcome: Result<(), Diagnosis>,
    /// How long it took.
    pub took: Duration,
}

/// Something that was found out. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fact {
    /// What it is about, as `addresses`.
    pub name: &'static str,
    /// The fact itself, for people.
    pub value: String,
}

/// What a step found, and what the next ones need of it.
pub(super) struct Finding<T> {
    pub(super) facts: Vec<Fact>,
    pub(super) outcome: Result<T, Diagnosis>,
}

impl<T> Finding<T> {
    pub(super) fn new(outcome: Result<T, Diagnosis>) -> Finding<T> {
        Finding { facts: Vec::new(), outcome }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Finding<T> {
        // A name in a certificate can be anything.
        self.facts.push(Fact { name, value: one_line(&value.into()) });
        self
    }

    /// Nothing where the list is empty.
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
