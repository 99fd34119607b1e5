//! [`Hope`]: whether it makes sense to wait for a host.

use crate::error::{Error, LoginFailure, Outlook, Refusal};

/// Whether a host can get the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hope {
    /// Not before a person changes something.
    Never,
    /// If it can be reached again.
    Later,
    /// At any moment: its server starts, or has another role.
    Soon,
}

impl Hope {
    pub(super) fn after(error: &Error) -> Hope {
        match error.outlook() {
            Outlook::Starting | Outlook::OtherRole => Hope::Soon,
            _ if matches!(error, Error::Resolve { .. }) => Hope::Never,
            _ if error.refusal() == Some(Refusal::UnknownHost) => Hope::Never,
            _ if error.login_failure() == Some(LoginFailure::Unreachable) => Hope::Later,
            _ => Hope::Never,
        }
    }
}
