//! The AWS credential chain behind a synchronous, cached, expiry-aware front.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result as ProviderResult, SharedCredentialsProvider};
use aws_smithy_async::time::SharedTimeSource;
use tokio::runtime::{Builder, Runtime};

use crate::token::masked;
use crate::{Error, https};

/// Credentials that end sooner than this are refreshed in the background while they still serve.
const REFRESH_AHEAD: Duration = Duration::from_secs(5 * 60);

/// Where credentials come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// aws-config's default chain.
    DefaultChain,
    /// What the user gave to the builder.
    Given(SharedCredentialsProvider),
}

/// Credentials for callers on any thread, inside and outside of async code.
///
/// Asking a provider can mean a network call, so one thread of ours does it, on a runtime of its own; callers get
/// the cached pair, or wait for that thread.
pub(crate) struct CredentialsCache {
    shared: Arc<Shared>,
    source: Source,
    /// Started with the first request; dropping it ends the thread.
    requests: OnceLock<Sender<()>>,
    timeout: Duration,
    time_source: SharedTimeSource,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    current: Option<Credentials>,
    /// One refresh in flight, whoever asks.
    refreshing: bool,
    /// Counts the answers, so that a waiter knows its own.
    answers: u64,
    /// Why the last answer was none.
    failure: Option<Arc<CredentialsError>>,
}

impl CredentialsCache {
    pub(crate) fn new(source: Source, timeout: Duration, time_source: SharedTimeSource) -> CredentialsCache {
        CredentialsCache { shared: Arc::default(), source, requests: OnceLock::new(), timeout, time_source }
    }

    /// The cached credentials while they last, else new ones.
    pub(crate) fn get(&self) -> Result<Credentials, Error> {
        let now = self.time_source.now();
        let mut state = self.shared.lock();
        let usable = state.current.clone().filter(|credentials| outlives(credentials, now));
        if let Some(credentials) = usable {
            if !outlives(&credentials, now + REFRESH_AHEAD) {
                self.request(&mut state);
            }
            return Ok(credentials);
        }
        self.request(&mut state);
        let before = state.answers;
        let (state, _) = self
            .shared
            .answered
            .wait_timeout_while(state, self.timeout, |state| state.answers == before)
            .unwrap_or_else(PoisonError::into_inner);
        if state.answers == before {
            return Err(credentials_error(CredentialsError::provider_timed_out(self.timeout)));
        }
        match (&state.failure, &state.current) {
            (None, Some(credentials)) => Ok(credentials.clone()),
            (Some(failure), _) => Err(Error::Credentials { source: failure.clone() }),
            (None, None) => Err(credentials_error(CredentialsError::unhandled("the provider gave no answer"))),
        }
    }

    /// Asks the thread for a refresh, unless one is on its way.
    fn request(&self, state: &mut State) {
        if state.refreshing {
            return;
        }
        let requests = self.requests.get_or_init(|| self.start());
        // The thread has gone only if it could not be started: the waiter then times out.
        state.refreshing = requests.send(()).is_ok();
    }

    fn start(&self) -> Sender<()> {
        let (sender, requests) = channel();
        let (shared, source, timeout) = (self.shared.clone(), self.source.clone(), self.timeout);
        let thread = std::thread::Builder::new().name("rds-iam-credentials".into());
        if let Err(error) = thread.spawn(move || serve(&requests, &shared, &source, timeout)) {
            log::error!("cannot start the credentials thread: {error}");
        }
        sender
    }
}

impl Shared {
    /// A panic while the lock is held leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, result: ProviderResult) {
        let mut state = self.lock();
        state.refreshing = false;
        state.answers += 1;
        match result {
            Ok(credentials) => {
                state.current = Some(credentials);
                state.failure = None;
            }
            Err(error) => state.failure = Some(Arc::new(error)),
        }
        self.answered.notify_all();
    }
}

/// The thread: answers requests until the cache is dropped.
fn serve(requests: &Receiver<()>, shared: &Shared, source: &Source, timeout: Duration) {
    let mut provider = None;
    let runtime = runtime();
    for () in requests {
        let started = Instant::now();
        let result = match &runtime {
            Ok(runtime) => {
                // A provider is somebody else's code: its panic must not leave the callers waiting.
                let ask = AssertUnwindSafe(|| runtime.block_on(ask(source, &mut provider, timeout)));
                std::panic::catch_unwind(ask)
                    .unwrap_or_else(|_| Err(CredentialsError::unhandled("the credentials provider panicked")))
            }
            Err(error) => Err(CredentialsError::unhandled(error.to_string())),
        };
        report(&result, started.elapsed());
        shared.answer(result);
    }
}

async fn ask(source: &Source, provider: &mut Option<SharedCredentialsProvider>, timeout: Duration) -> ProviderResult {
    let answer = async {
        let provider = match (&*provider, source) {
            (Some(provider), _) | (None, Source::Given(provider)) => provider.clone(),
            (None, Source::DefaultChain) => provider.insert(default_chain().await).clone(),
        };
        provider.provide_credentials().await
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(timeout)))
}

async fn default_chain() -> SharedCredentialsProvider {
    let config = ProviderConfig::without_region().with_http_client(https::client());
    // Without a region of its own the chain asks the instance metadata service for one, which takes seconds elsewhere.
    let region = region_chain().or_else(Region::new("us-east-1"));
    SharedCredentialsProvider::new(DefaultCredentialsChain::builder().configure(config).region(region).build().await)
}

fn report(result: &ProviderResult, took: Duration) {
    match result {
        Ok(credentials) => {
            log::debug!("AWS credentials {} after {took:?}, end: {:?}", masked(credentials), credentials.expiry())
        }
        Err(error) => log::warn!("no AWS credentials after {took:?}: {}", crate::error::chain(error)),
    }
}

/// The region of AWS_REGION, AWS_DEFAULT_REGION or the profile; none when neither tells.
///
/// It runs on a thread of its own, because the caller may be inside of async code, where nobody may block on a runtime.
pub(crate) fn configured_region() -> Option<String> {
    let ask = || Some(runtime().ok()?.block_on(region_chain().region())?.to_string());
    std::thread::scope(|scope| scope.spawn(ask).join().ok().flatten())
}

fn region_chain() -> RegionProviderChain {
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(ProfileFileRegionProvider::new())
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn outlives(credentials: &Credentials, time: SystemTime) -> bool {
    credentials.expiry().is_none_or(|end| end > time)
}

fn credentials_error(error: CredentialsError) -> Error {
    Error::Credentials { source: Arc::new(error) }
}
