//! Where credentials come from, and what each place said.

use std::error::Error;

use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider};
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result as ProviderResult, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use crate::error::{causes, chain};

/// Where credentials come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// AWS configuration, as every AWS SDK reads it, through this client.
    Configured(Configured, SharedHttpClient),
    /// What the user gave to the builder.
    Given(SharedCredentialsProvider),
}

/// Two managers with the same settings share one cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configured {
    /// This profile only; else the default chain.
    pub(crate) profile: Option<String>,
    /// A role to assume with the credentials found.
    pub(crate) role: Option<Role>,
    /// Where STS is asked when neither AWS_REGION nor the profile tells.
    pub(crate) region: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Role {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) session_name: Option<String>,
}

/// Credentials, and the name of the place they came from.
pub(super) type Found = (Credentials, String);

impl Source {
    pub(super) async fn ask(&self) -> Result<Found, CredentialsError> {
        match self {
            Source::Given(provider) => Ok((provider.provide_credentials().await?, "the given provider".into())),
            Source::Configured(configured, client) => configured.ask(client).await,
        }
    }
}

impl Configured {
    /// Asks the configured places anew each time: aws-config's providers read profile files only once, and a changed
    /// file is to be noticed.
    async fn ask(&self, client: &SharedHttpClient) -> Result<Found, CredentialsError> {
        let region = region_chain(self.profile.as_deref()).or_else(Region::new(self.region.clone())).region().await;
        let config = ProviderConfig::without_region().with_http_client(client.clone()).with_region(region.clone());
        let found = self.ask_places(&config).await?;
        let Some(role) = &self.role else { return Ok(found) };
        let assumed = role.assume(found.0, region, client).await;
        let named = |error| CredentialsError::provider_error(format!("role {}: {}", role.arn, causes(&error)));
        Ok((assumed.map_err(named)?, format!("role {}", role.arn)))
    }

    fn profile_name(&self) -> String {
        let variable = || std::env::var("AWS_PROFILE").ok();
        self.profile.clone().or_else(variable).unwrap_or_else(|| "default".into())
    }

    /// The default chain, place by place: aws-config's own keeps what each place said to itself.
    async fn ask_places(&self, config: &ProviderConfig) -> Result<Found, CredentialsError> {
        let mut said = Vec::new();
        if self.profile.is_none() {
            let environment = EnvironmentVariableCredentialsProvider::new();
            if let Some(found) = place("environment", &environment, &mut said).await? {
                return Ok(found);
            }
        }
        let mut profile = ProfileFileCredentialsProvider::builder().configure(config);
        if let Some(name) = &self.profile {
            profile = profile.profile_name(name);
        }
        let label = format!("profile \"{}\"", self.profile_name());
        if let Some(found) = place(&label, &profile.build(), &mut said).await? {
            return Ok(found);
        }
        if self.profile.is_none() {
            let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(config).build();
            if let Some(found) = place("web identity", &web_identity, &mut said).await? {
                return Ok(found);
            }
            let container = EcsCredentialsProvider::builder().configure(config).build();
            if let Some(found) = place("container", &container, &mut said).await? {
                return Ok(found);
            }
            let instance = ImdsCredentialsProvider::builder().configure(config).build();
            if let Some(found) = place("instance metadata", &instance, &mut said).await? {
                return Ok(found);
            }
        }
        Err(CredentialsError::not_loaded(said.join("; ")))
    }
}

/// Asks one place. It can have credentials, be not set up (then the next is asked), or fail.
async fn place(
    label: &str,
    provider: &impl ProvideCredentials,
    said: &mut Vec<String>,
) -> Result<Option<Found>, CredentialsError> {
    match provider.provide_credentials().await {
        Ok(credentials) => Ok(Some((credentials, label.to_owned()))),
        Err(error @ CredentialsError::CredentialsNotLoaded(_)) => {
            let known = error.source().map_or("not set up".into(), chain);
            said.push(format!("{label}: {known}"));
            Ok(None)
        }
        Err(error) => Err(CredentialsError::provider_error(format!("{label}: {}", causes(&error)))),
    }
}

impl Role {
    async fn assume(&self, base: Credentials, region: Option<Region>, client: &SharedHttpClient) -> ProviderResult {
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(client.clone())
            .region(region)
            .credentials_provider(base)
            .load()
            .await;
        let mut role = AssumeRoleProvider::builder(&self.arn).configure(&config);
        role = role.session_name(self.session_name.as_deref().unwrap_or("diesel-rds-iam"));
        if let Some(external_id) = &self.external_id {
            role = role.external_id(external_id);
        }
        role.build().await.provide_credentials().await
    }
}

/// The region of AWS_REGION, AWS_DEFAULT_REGION or the profile.
fn region_chain(profile: Option<&str>) -> RegionProviderChain {
    let mut file = ProfileFileRegionProvider::builder();
    if let Some(name) = profile {
        file = file.profile_name(name);
    }
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(file.build())
}

/// The region that AWS configuration tells; none when it tells none.
///
/// It runs on a thread of its own, because the caller may be inside of async code, where nobody may block on a runtime.
pub(crate) fn configured_region(profile: Option<&str>) -> Option<String> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
        Some(runtime.block_on(region_chain(profile).region())?.to_string())
    };
    std::thread::scope(|scope| scope.spawn(ask).join().ok().flatten())
}
