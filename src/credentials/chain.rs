//! Where credentials come from, and what each place said.

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

use crate::error::{causes, chain};
use crate::token::is_region;

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
    /// Asks. `place` always says where, for the case that no answer comes.
    pub(super) async fn ask(&self, place: &Mutex<String>) -> Result<Found, CredentialsError> {
        match self {
            Source::Given(provider) => {
                const PLACE: &str = "the given provider";
                now_at(place, PLACE);
                Ok((provider.provide_credentials().await?, PLACE.into()))
            }
            Source::Configured(configured, client) => configured.ask(client, place).await,
        }
    }
}

impl Configured {
    /// Asks the configured places anew each time: aws-config's providers read profile files only
    /// once, and a changed file is to be noticed.
    async fn ask(
        &self,
        client: &SharedHttpClient,
        place: &Mutex<String>,
    ) -> Result<Found, CredentialsError> {
        now_at(place, "AWS configuration");
        // For STS. A value that is no region's code would become part of a host name.
        let region = told_region(self.profile.as_deref()).await.filter(|region| is_region(region));
        let region = Some(Region::new(region.unwrap_or_else(|| self.region.clone())));
        let config = ProviderConfig::without_region()
            .with_http_client(client.clone())
            .with_region(region.clone());
        let found = self.ask_places(&config, place).await?;
        let Some(role) = &self.role else { return Ok(found) };
        let label = format!("role {}", role.arn);
        now_at(place, &label);
        let assumed = role.assume(found.0, region, client).await;
        let named =
            |error| CredentialsError::provider_error(format!("{label}: {}", causes(&error)));
        Ok((assumed.map_err(named)?, label))
    }

    fn profile_name(&self) -> String {
        let variable = || std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
        self.profile.clone().or_else(variable).unwrap_or_else(|| "default".into())
    }

    /// The default chain, place by place: aws-config's own keeps what each place said to itself.
    async fn ask_places(
        &self,
        config: &ProviderConfig,
        place: &Mutex<String>,
    ) -> Result<Found, CredentialsError> {
        let mut round = Round { place, said: Vec::new() };
        let is_default_chain = self.profile.is_none();
        let environment = EnvironmentVariableCredentialsProvider::new();
        if is_default_chain && let Some(found) = round.ask("environment", &environment).await? {
            return Ok(found);
        }
        let name = self.profile_name();
        let label = format!("profile \"{name}\"");
        let profile =
            ProfileFileCredentialsProvider::builder().configure(config).profile_name(name).build();
        if let Some(found) = round.ask(&label, &profile).await? {
            return Ok(found);
        }
        round.said.extend(unreadable_files());
        if !is_default_chain {
            return Err(round.nothing());
        }
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(config).build();
        if let Some(found) = round.ask("web identity", &web_identity).await? {
            return Ok(found);
        }
        let container = EcsCredentialsProvider::builder().configure(config).build();
        if let Some(found) = round.ask("container", &container).await? {
            return Ok(found);
        }
        let instance = ImdsCredentialsProvider::builder().configure(config).build();
        let found = round.ask("instance metadata", &instance).await?;
        found.ok_or_else(|| round.nothing())
    }
}

/// The places asked so far, and what they said.
struct Round<'a> {
    place: &'a Mutex<String>,
    said: Vec<String>,
}

impl Round<'_> {
    /// Asks one place. It can have credentials, be not set up (then the next is asked), or fail.
    async fn ask(
        &mut self,
        label: &str,
        provider: &impl ProvideCredentials,
    ) -> Result<Option<Found>, CredentialsError> {
        now_at(self.place, label);
        match provider.provide_credentials().await {
            Ok(credentials) => Ok(Some((credentials, label.to_owned()))),
            Err(error @ CredentialsError::CredentialsNotLoaded(_)) => {
                let known = error.source().map_or("not set up".into(), chain);
                self.said.push(format!("{label}: {known}"));
                Ok(None)
            }
            Err(error) => {
                self.said.push(format!("{label}: {}", causes(&error)));
                Err(CredentialsError::provider_error(self.said.join("; ")))
            }
        }
    }

    fn nothing(&self) -> CredentialsError {
        CredentialsError::not_loaded(self.said.join("; "))
    }
}

fn now_at(place: &Mutex<String>, label: &str) {
    label.clone_into(&mut place.lock());
}

/// The shared configuration files that are there and cannot be read: aws-config takes them for
/// absent.
pub(crate) fn unreadable_files() -> Vec<String> {
    let home = std::env::home_dir().unwrap_or_default().join(".aws");
    let files = [("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")];
    let unreadable = files.iter().filter_map(|(variable, name)| {
        let path = std::env::var_os(variable).map_or_else(|| home.join(name), Into::into);
        let error = std::fs::read_to_string(&path).err()?;
        let is_there = error.kind() != std::io::ErrorKind::NotFound;
        is_there.then(|| format!("cannot read {}: {error}", path.display()))
    });
    unreadable.collect()
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
        let mut role = AssumeRoleProvider::builder(&self.arn).configure(&config);
        role = role.session_name(self.session_name.as_deref().unwrap_or("diesel-rds-iam"));
        if let Some(external_id) = &self.external_id {
            role = role.external_id(external_id);
        }
        role.build().await.provide_credentials().await
    }
}

/// The region of AWS_REGION, AWS_DEFAULT_REGION or the profile. One that is set to nothing is not
/// set.
async fn told_region(profile: Option<&str>) -> Option<String> {
    let variable = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
    if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        return Some(region);
    }
    let mut file = ProfileFileRegionProvider::builder();
    if let Some(name) = profile {
        file = file.profile_name(name);
    }
    Some(file.build().region().await?.to_string())
}

/// The region that AWS configuration tells; none when it tells none.
///
/// It runs on a thread of its own, because the caller may be inside of async code, where nobody may
/// block on a runtime.
pub(crate) fn configured_region(profile: Option<&str>) -> Option<String> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
        runtime.block_on(told_region(profile))
    };
    std::thread::scope(|scope| scope.spawn(ask).join().ok().flatten())
}
