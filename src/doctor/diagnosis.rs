//! [`Diagnosis`]: what is wrong, why, and what to do.

use std::fmt;

use crate::error::one_line;

/// What is wrong, and what it can come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What was seen: the server's, libpq's or the system's own words.
    pub symptom: String,
    /// One where the facts leave no doubt; else those that look alike from outside, the likeliest
    /// first.
    pub causes: Vec<Cause>,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cause {
    /// What it is; the symptom itself where that says it all.
    pub cause: String,
    /// The fact that decides whether it is this one; none where that is known.
    pub decided_by: Option<String>,
    /// What to do, with the user's own names filled in. It can have several lines.
    pub cure: String,
}

impl Diagnosis {
    pub(super) fn new(symptom: impl Into<String>, causes: Vec<Cause>) -> Diagnosis {
        // Maybe a server's words.
        Diagnosis { symptom: one_line(&symptom.into()), causes }
    }

    /// The error's own words, which end in what to do.
    pub(super) fn of(error: &crate::Error) -> Diagnosis {
        let text = error.to_string();
        match text.rsplit_once("; ").or_else(|| text.rsplit_once(": ")) {
            Some((symptom, cure)) => Diagnosis::plain(symptom, cure),
            None => Diagnosis::plain(&text, &text),
        }
    }

    /// Where the symptom says it all.
    pub(super) fn plain(symptom: impl Into<String>, cure: impl Into<String>) -> Diagnosis {
        let symptom = one_line(&symptom.into());
        let causes = vec![Cause::new(&symptom, cure)];
        Diagnosis { symptom, causes }
    }
}

impl Cause {
    pub(super) fn new(cause: impl Into<String>, cure: impl Into<String>) -> Cause {
        Cause { cause: cause.into(), decided_by: None, cure: cure.into() }
    }

    pub(super) fn decided_by(self, fact: impl Into<String>) -> Cause {
        Cause { decided_by: Some(fact.into()), ..self }
    }
}

/// In one line for a log, as all errors of this crate: the symptom, then the cures.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.symptom)?;
        self.causes.iter().try_for_each(|cause| match one_line(&cause.cure) {
            cure if cause.cause == self.symptom => write!(f, "; {cure}"),
            cure => write!(f, "; {}: {cure}", cause.cause),
        })
    }
}
