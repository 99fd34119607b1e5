//! [`Iam`]: the login to one host with a new token.

use std::sync::Arc;
use std::time::Instant;

use aws_credential_types::Credentials;
use aws_smithy_async::time::SharedTimeSource;
use diesel::{Connection, PgConnection};

use super::Connected;
use super::ca_bundle::CaBundle;
use super::target::{Resolver, Target};
use crate::connection::Mark;
use crate::conninfo::IamConninfo;
use crate::credentials::CredentialsCache;
use crate::error::{Error, Refusal};
use crate::token::{AuthToken, Endpoint, presign};

/// How to log in with a token.
pub(crate) struct Iam {
    pub(crate) conninfo: IamConninfo,
    /// In the order of the connection string.
    pub(crate) targets: Vec<Target>,
    pub(crate) credentials: Arc<CredentialsCache>,
    pub(crate) time_source: SharedTimeSource,
    pub(crate) ca_bundle: Option<CaBundle>,
    pub(crate) resolver: Option<Resolver>,
}

impl Iam {
    pub(crate) fn token_for(&self, endpoint: &Endpoint) -> Result<AuthToken, Error> {
        Ok(self.sign_with_cached(endpoint)?.0)
    }

    /// Signs with the cached credentials, and returns them too. Credentials that expire between the
    /// cache and the signature are replaced once.
    fn sign_with_cached(&self, endpoint: &Endpoint) -> Result<(AuthToken, Credentials), Error> {
        let credentials = self.credentials.get()?;
        match self.sign(endpoint, &credentials) {
            Err(Error::CredentialsExpired { .. }) => {
                let credentials = self.credentials.get()?;
                Ok((self.sign(endpoint, &credentials)?, credentials))
            }
            signed => Ok((signed?, credentials)),
        }
    }

    pub(crate) fn sign(
        &self,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<AuthToken, Error> {
        presign(endpoint, self.conninfo.user(), credentials, self.time_source.now())
    }

    /// Returns the targets in the order to try them (libpq's `load_balance_hosts`).
    pub(crate) fn targets_in_order(&self) -> Vec<&Target> {
        let mut targets: Vec<&Target> = self.targets.iter().collect();
        if self.conninfo.is_balanced {
            fastrand::shuffle(&mut targets);
        }
        targets
    }

    /// Logs in to one host as `target_session_attrs=role`.
    pub(super) fn log_in(&self, target: &Target, role: &str) -> Result<Connected, Error> {
        let (token, credentials) = self.sign_with_cached(&target.endpoint)?;
        let refused = match self.log_in_with(&token, target, role) {
            Err(error) if error.refusal().is_some_and(Refusal::is_of_token) => error,
            outcome => return outcome,
        };
        // The key pair may have been rotated since it was cached. One retry is enough: a policy
        // that denies the login will deny it again.
        match self.credentials.rotated(&credentials) {
            Some(other) => {
                let token = self.sign(&target.endpoint, &other)?;
                let connected = self.log_in_with(&token, target, role);
                connected.inspect(|_| self.credentials.login_succeeded(&other))
            }
            None => Err(refused),
        }
    }

    fn log_in_with(
        &self,
        token: &AuthToken,
        target: &Target,
        role: &str,
    ) -> Result<Connected, Error> {
        let trimmed = self.ca_bundle.as_ref().and_then(CaBundle::trimmed);
        let file = trimmed.as_ref().map(|in_memory| in_memory.1.as_str());
        match self.establish(token, target, role, file) {
            // The server may be in another region than we assume. The user trusts the whole bundle.
            Err(error)
                if trimmed.is_some() && error.refusal() == Some(Refusal::UnknownAuthority) =>
            {
                self.establish(token, target, role, None)
            }
            outcome => outcome,
        }
    }

    fn establish(
        &self,
        token: &AuthToken,
        target: &Target,
        role: &str,
        sslrootcert: Option<&str>,
    ) -> Result<Connected, Error> {
        let started = Instant::now();
        let addresses = target.addresses(self.conninfo.is_balanced, self.resolver.as_ref())?;
        let host = vec![target.endpoint.host(); addresses.len()].join(",");
        let (hostaddr, port) = (addresses.join(","), target.host.port.to_string());
        let mut settings = vec![
            ("host", host.as_str()),
            // Set also if it is empty: libpq would read PGHOSTADDR, which is for all hosts.
            ("hostaddr", hostaddr.as_str()),
            ("port", port.as_str()),
            ("target_session_attrs", role),
        ];
        let mark = self.conninfo.tcp_user_timeout().map(Mark::new);
        let timeout = mark.as_ref().map(|mark| mark.value().to_string());
        settings.extend(timeout.as_ref().map(|it| ("tcp_user_timeout", it.as_str())));
        settings.extend(sslrootcert.map(|file| ("sslrootcert", file)));
        let connected =
            PgConnection::establish(&self.conninfo.with_password(token.as_str(), &settings));
        let connection = connected.map_err(|error| target.failed(error))?;
        log::debug!("connected to {target} (took {:.1?})", started.elapsed());
        Ok(Connected::new(connection, mark))
    }
}
