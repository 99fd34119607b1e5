//! Measures a token with a warm cache, beside aws-sigv4 called directly and aws-sdk-rds'
//! AuthTokenGenerator. Also measures 200 threads with a cold cache.
//!
//!     cargo run --release --manifest-path benches/token/Cargo.toml

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_rds::auth_token::{AuthTokenGenerator, Config};
use aws_sdk_rds::config::Region;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use diesel_rds_iam::RdsConnectionManager;

const HOST: &str = "db.abc123.eu-west-1.rds.amazonaws.com";
const ROUNDS: usize = 301;
const TOKENS: u32 = 200;

fn main() {
    println!(
        "{:<24} {:>10} {:>14} {:>14}",
        "us for one token", "us", "/ aws-sigv4", "/ aws-sdk-rds"
    );
    for (name, session_token) in
        [("without session token", None), ("with 1,100 characters", Some("A/b+".repeat(275)))]
    {
        warm_cache(name, &Credentials::new("AKIDEXAMPLE", "secret", session_token, None, "bench"));
    }
    cold_cache();
}

fn warm_cache(name: &str, credentials: &Credentials) {
    let manager = RdsConnectionManager::builder()
        .credentials_provider(credentials.clone())
        .build(format!("postgres://app@{HOST}/app"))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let config = aws_types::SdkConfig::builder()
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
        .time_source(aws_types::sdk_config::SharedTimeSource::default())
        .build();
    let generator = Config::builder().hostname(HOST).port(5432).username("app").build().unwrap();
    let generator = AuthTokenGenerator::new(generator);

    let mut ours = || manager.token().unwrap().as_str().len();
    let mut sigv4 = || sign_directly(credentials).len();
    let mut sdk = || runtime.block_on(generator.auth_token(&config)).unwrap().as_str().len();
    let sides: [&mut dyn FnMut() -> usize; 3] = [&mut ours, &mut sigv4, &mut sdk];
    let [ours, sigv4, sdk] = in_alternation(sides);
    println!("{name:<24} {:>10.2} {:>14.2} {:>14.2}", ours * 1e6, ours / sigv4, ours / sdk);
}

/// Returns the median seconds of one call of each side.
fn in_alternation(mut sides: [&mut dyn FnMut() -> usize; 3]) -> [f64; 3] {
    let mut seconds = [(); 3].map(|()| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (side, seconds) in sides.iter_mut().zip(&mut seconds) {
            let started = Instant::now();
            let length: usize = (0..TOKENS).map(|_| side()).sum();
            assert!(length > 0);
            seconds.push(started.elapsed().as_secs_f64() / f64::from(TOKENS));
        }
    }
    seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[ROUNDS / 2]
    })
}

/// Signs a token with aws-sigv4 alone.
fn sign_directly(credentials: &Credentials) -> String {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(Duration::from_secs(900));
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.clone().into();
    let params =
        v4::SigningParams::builder().identity(&identity).region("eu-west-1").name("rds-db");
    let params = params.time(SystemTime::now()).settings(settings).build().unwrap().into();
    let url = format!("https://{HOST}:5432/?Action=connect&DBUser=app");
    let request =
        SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[])).unwrap();
    let (instructions, _) = sign(request, &params).unwrap().into_parts();
    let mut request = http::Request::builder().uri(&url).body(()).unwrap();
    instructions.apply_to_request_http1x(&mut request);
    request.uri().to_string()["https://".len()..].to_owned()
}

/// Measures a credentials source that takes 300 ms, with 200 threads that need a token at once.
fn cold_cache() {
    const SOURCE_TIME: Duration = Duration::from_millis(300);
    #[derive(Clone)]
    struct Slow(Arc<AtomicUsize>);
    impl fmt::Debug for Slow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Slow")
        }
    }
    impl ProvideCredentials for Slow {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                self.0.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(SOURCE_TIME).await;
                Ok(Credentials::new("AKIDEXAMPLE", "secret", None, None, "bench"))
            })
        }
    }
    let source = Slow(Arc::default());
    let builder = RdsConnectionManager::builder().credentials_provider(source.clone());
    let manager = builder.build(format!("postgres://app@{HOST}/app")).unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        (0..200).for_each(|_| drop(scope.spawn(|| manager.token().unwrap())))
    });
    let ratio = started.elapsed().as_secs_f64() / SOURCE_TIME.as_secs_f64();
    println!(
        "200 threads on a cold cache: {} source call, {ratio:.2} times its time",
        source.0.load(Ordering::SeqCst)
    );
}
