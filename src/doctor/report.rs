//! [`Report`]: what the doctor found.

use std::time::Duration;

use super::{Diagnosis, Step};

/// What [`examine`](super::examine) found, step by step.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// In the order in which they were taken. Of each host, all up to the first that failed.
    pub steps: Vec<Step>,
}

impl Report {
    /// The report where there is not even a manager, as [`Builder::build`](crate::Builder::build)
    /// failed with `error`.
    pub fn without_manager(error: &crate::Error) -> Report {
        let name = if matches!(error, crate::Error::Region { .. }) {
            "region"
        } else {
            "connection string"
        };
        let outcome = Err(Diagnosis::of(error));
        Report {
            steps: vec![Step {
                name,
                host: None,
                facts: Vec::new(),
                outcome,
                took: Duration::ZERO,
            }],
        }
    }

    /// Whether a login through libpq worked, as [`connect`](r2d2::ManageConnection::connect) makes
    /// it. Of several hosts one is enough for that, so others can have failed.
    pub fn lets_in(&self) -> bool {
        self.steps.iter().any(|step| step.name == super::LIBPQ && step.outcome.is_ok())
    }

    /// The first step that failed.
    pub fn first_failure(&self) -> Option<(&Step, &Diagnosis)> {
        self.steps.iter().find_map(|step| Some((step, step.outcome.as_ref().err()?)))
    }
}
