//! [`Role`]: what `target_session_attrs` asks for.

use crate::conninfo::invalid;
use crate::error::Error;
use crate::login::session::Server;

/// What `target_session_attrs` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// libpq checks the value, except if this crate chooses among servers.
pub(crate) fn check_role(target_session_attrs: &str) -> Result<(), Error> {
    if Role::parse(target_session_attrs).is_some() {
        return Ok(());
    }
    let known = Role::ALL.map(|(name, _)| name).join(", ");
    invalid(format!("target_session_attrs must be one of: {known}"))
}

impl Role {
    /// The values of `target_session_attrs`.
    const ALL: [(&str, Role); 6] = [
        ("any", Role::Any),
        ("read-write", Role::ReadWrite),
        ("read-only", Role::ReadOnly),
        ("primary", Role::Primary),
        ("standby", Role::Standby),
        ("prefer-standby", Role::PreferStandby),
    ];

    pub(super) fn parse(target_session_attrs: &str) -> Option<Role> {
        Self::ALL.into_iter().find(|(name, _)| *name == target_session_attrs).map(|(_, role)| role)
    }

    pub(super) fn is_of_writer(self) -> bool {
        matches!(self, Role::ReadWrite | Role::Primary)
    }

    pub(super) fn is_of_reader(self) -> bool {
        matches!(self, Role::Standby | Role::PreferStandby | Role::ReadOnly)
    }

    /// Whether a server fits. Without one, each role does.
    pub(super) fn fits(self, server: Option<&Server>) -> bool {
        let Some(server) = server else { return true };
        let Server { in_recovery, is_read_only, .. } = *server;
        match self {
            Role::Any => true,
            Role::ReadWrite => !in_recovery && !is_read_only,
            Role::ReadOnly => in_recovery || is_read_only,
            Role::Primary => !in_recovery,
            Role::Standby | Role::PreferStandby => in_recovery,
        }
    }

    /// Says in libpq's words that a server does not fit.
    pub(super) fn complaint(self) -> &'static str {
        match self {
            Role::ReadWrite => "session is read-only",
            Role::ReadOnly => "session is not read-only",
            Role::Primary => "server is in hot standby mode",
            _ => "server is not in hot standby mode",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::ServerId;

    #[test]
    fn fits_as_in_libpq() {
        let server = |in_recovery, is_read_only| Server {
            in_recovery,
            is_read_only,
            timeline: None,
            id: ServerId(String::new()),
        };
        // On a writer, on a writer with default_transaction_read_only, on a reader.
        let cases = [
            ("any", [true, true, true]),
            ("read-write", [true, false, false]),
            ("read-only", [false, true, true]),
            ("primary", [true, true, false]),
            ("standby", [false, false, true]),
            ("prefer-standby", [false, false, true]),
        ];
        for (text, expected) in cases {
            let role = Role::parse(text).unwrap();
            let servers = [server(false, false), server(false, true), server(true, false)];
            assert_eq!(servers.map(|server| role.fits(Some(&server))), expected, "{text}");
        }
    }
}
