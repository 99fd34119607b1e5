//! A source of AWS credentials that can fail and return other key pairs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_smithy_async::time::TimeSource;
use diesel_rds_iam::Credentials;
use diesel_rds_iam::local::{Clock, LocalRds};

use crate::support::minutes;

/// The lifetime of a key pair, as for a role.
pub(crate) const LIFE: Duration = minutes(60);

#[derive(Debug, Clone)]
pub(crate) struct Source {
    clock: Clock,
    /// `None` while the source fails.
    key_pair: Arc<Mutex<Option<Credentials>>>,
}

impl Source {
    /// Creates a source with a key pair that the server accepts.
    pub(crate) fn of(rds: &LocalRds) -> Source {
        let source = Source { clock: rds.clock(), key_pair: Arc::default() };
        source.give(rds, 0);
        source
    }

    /// Returns this key pair from now on, and registers it with the server.
    pub(crate) fn give(&self, rds: &LocalRds, number: usize) {
        let end = self.clock.now() + LIFE;
        let key_pair = Credentials::new(
            id(number),
            format!("local-rds-secret-{number}"),
            None,
            Some(end),
            "test",
        );
        rds.add_key_pair(key_pair.clone());
        *self.key_pair.lock().unwrap() = Some(key_pair);
    }

    /// Fails until the next `give`.
    pub(crate) fn go_down(&self) {
        *self.key_pair.lock().unwrap() = None;
    }
}

pub(crate) fn id(number: usize) -> String {
    format!("AKIAFAULT{number}")
}

impl ProvideCredentials for Source {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let down = || CredentialsError::provider_error("the source is down");
        future::ProvideCredentials::ready(self.key_pair.lock().unwrap().clone().ok_or_else(down))
    }
}
