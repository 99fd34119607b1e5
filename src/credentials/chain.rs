//! [`Source`]: where credentials come from, and what each place said.

use std::error::Error;

use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{
    ProvideCredentials, Result as ProviderResult, SharedCredentialsProvider,
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use parking_lot::Mutex;

use super::https;
use super::profile::{profile_name, profile_value, unreadable_files, variable};
use crate::error::{causes, chain};
use crate::token::is_region;

/// Where credentials come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The AWS configuration, which every AWS SDK reads.
    Configured(Configured, SharedHttpClient),
    /// The provider that the builder got.
    Provider(SharedCredentialsProvider),
}

/// Managers with equal settings share one cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configured {
    /// Only this profile, instead of the default chain.
    pub(crate) profile: Option<String>,
    /// A role to assume with the credentials.
    pub(crate) role: Option<Role>,
    /// The region of STS, if neither AWS_REGION nor the profile names one.
    pub(crate) region: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Role {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) session_name: Option<String>,
}

/// Credentials, and the name of the place that they came from.
pub(super) type Found = (Credentials, String);

impl Source {
    pub(crate) fn configured(configured: Configured) -> Source {
        let client = https::client(configured.profile.clone());
        Source::Configured(configured, client)
    }

    /// Loads credentials. `place` always names the place that is called, for an answer that does
    /// not come in time.
    pub(super) async fn load(&self, place: &Mutex<String>) -> Result<Found, CredentialsError> {
        match self {
            Source::Provider(provider) => {
                const PLACE: &str = "the given provider";
                set_place(place, PLACE);
                Ok((provider.provide_credentials().await?, PLACE.into()))
            }
            Source::Configured(configured, client) => configured.load(client, place).await,
        }
    }
}

impl Configured {
    /// Makes new providers each time: those of aws-config read profile files only once, and would
    /// miss a changed file.
    async fn load(
        &self,
        client: &SharedHttpClient,
        place: &Mutex<String>,
    ) -> Result<Found, CredentialsError> {
        set_place(place, "AWS configuration");
        // A value that is not a region's code would become part of a host name.
        let region =
            region_of_configuration(self.profile.as_deref()).await.filter(|it| is_region(it));
        let region = Some(Region::new(region.unwrap_or_else(|| self.region.clone())));
        let config = ProviderConfig::without_region()
            .with_http_client(client.clone())
            .with_region(region.clone());
        let (credentials, name) = self.load_from_places(&config, place).await?;
        let credentials = trimmed(credentials);
        let Some(role) = &self.role else { return Ok((credentials, name)) };
        let name = format!("role {}", role.arn);
        set_place(place, &name);
        match role.assume(credentials, region, client).await {
            Ok(assumed) => Ok((assumed, name)),
            Err(error) => {
                Err(CredentialsError::provider_error(format!("{name}: {}", causes(&error))))
            }
        }
    }

    /// Calls the places of the default chain in turn, or only the profile that the builder set.
    /// aws-config's own chain does not report what each place said.
    async fn load_from_places(
        &self,
        config: &ProviderConfig,
        place: &Mutex<String>,
    ) -> Result<Found, CredentialsError> {
        let profile_name = profile_name(self.profile.as_deref());
        let profile_label = format!("profile \"{profile_name}\"");
        let environment = EnvironmentVariableCredentialsProvider::new();
        let profile = ProfileFileCredentialsProvider::builder().configure(config);
        let profile = profile.profile_name(&profile_name).build();
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(config).build();
        let container = EcsCredentialsProvider::builder().configure(config).build();
        let instance = ImdsCredentialsProvider::builder().configure(config).build();
        let mut places: Vec<(&str, &dyn ProvideCredentials)> = vec![
            ("environment", &environment),
            (&profile_label, &profile),
            ("web identity", &web_identity),
            ("container", &container),
            ("instance metadata", &instance),
        ];
        places.retain(|(name, _)| self.profile.is_none() || *name == profile_label);
        let mut said = Vec::new();
        for (name, provider) in places {
            set_place(place, name);
            match provider.provide_credentials().await {
                Ok(credentials) => return Ok((credentials, name.to_owned())),
                Err(error @ CredentialsError::CredentialsNotLoaded(_)) => {
                    let reason = error.source().map_or("not set up".into(), chain);
                    said.push(format!("{name}: {reason}"));
                }
                Err(error) => {
                    said.push(format!("{name}: {}", causes(&error)));
                    let has_mfa = || profile_value(&profile_name, "mfa_serial").is_some();
                    if name == profile_label && has_mfa() {
                        said.push("the AWS SDK ignores its mfa_serial".to_owned());
                    }
                    return Err(CredentialsError::provider_error(said.join("; ")));
                }
            }
            if name == profile_label {
                said.extend(unreadable_files());
            }
        }
        Err(CredentialsError::not_loaded(said.join("; ")))
    }
}

fn set_place(place: &Mutex<String>, name: &str) {
    name.clone_into(&mut place.lock());
}

/// Removes white space around a key pair, as a newline at the end of a Kubernetes secret. AWS' keys
/// contain none.
fn trimmed(credentials: Credentials) -> Credentials {
    let parts = [credentials.access_key_id(), credentials.secret_access_key()];
    let token = credentials.session_token();
    if parts.into_iter().chain(token).all(|part| part == part.trim()) {
        return credentials;
    }
    let [key, secret] = parts.map(|part| part.trim().to_owned());
    let token = token.map(|token| token.trim().to_owned());
    Credentials::new(key, secret, token, credentials.expiry(), "diesel-rds-iam")
}

impl Role {
    async fn assume(
        &self,
        base: Credentials,
        region: Option<Region>,
        client: &SharedHttpClient,
    ) -> ProviderResult {
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(client.clone())
            .region(region)
            .credentials_provider(base)
            .load()
            .await;
        let mut role = AssumeRoleProvider::builder(self.arn.trim()).configure(&config);
        role = role.session_name(self.session_name.as_deref().unwrap_or("diesel-rds-iam"));
        if let Some(external_id) = &self.external_id {
            role = role.external_id(external_id);
        }
        role.build().await.provide_credentials().await
    }
}

/// Returns the region of AWS_REGION, AWS_DEFAULT_REGION or the profile. An empty value is not set.
async fn region_of_configuration(profile: Option<&str>) -> Option<String> {
    if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        return Some(region);
    }
    let file = ProfileFileRegionProvider::builder().profile_name(profile_name(profile));
    Some(file.build().region().await?.to_string())
}

/// Returns the region of the AWS configuration, if it names one.
///
/// Runs on another thread: the caller may be inside of async code, which must not block on a
/// runtime.
pub(crate) fn configured_region(profile: Option<&str>) -> Option<String> {
    let read = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
        runtime.block_on(region_of_configuration(profile))
    };
    std::thread::scope(|scope| scope.spawn(read).join().ok().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newline_after_a_key_is_removed() {
        let pair = Credentials::new("AKIA1\n", "secret\r\n", Some("token\n".into()), None, "test");
        let pair = trimmed(pair);
        let parts = (pair.access_key_id(), pair.secret_access_key(), pair.session_token());
        assert_eq!(parts, ("AKIA1", "secret", Some("token")));
    }
}
