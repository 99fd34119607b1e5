//! The SDK's `HttpClient` on hyper and hyper-tls, for AWS over https by native-tls.
//!
//! The SDK's own https client depends on a second TLS stack and its C library.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper_tls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use native_tls::{Certificate, TlsConnector};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tower_service::Service;

use super::profile::{profile_name, profile_value, variable};

/// Returns a client that sets up TLS at the first request: loading the system's roots costs 90 ms
/// of CPU, and a program with keys in its environment makes no request.
///
/// `profile` can have a `ca_bundle`.
pub(super) fn client(profile: Option<String>) -> SharedHttpClient {
    http_client_fn(move |settings, _| {
        SharedHttpConnector::new(Connector {
            settings: settings.clone(),
            profile: profile.clone(),
            client: OnceLock::new(),
        })
    })
}

#[derive(Debug)]
struct Connector {
    settings: HttpConnectorSettings,
    profile: Option<String>,
    client: OnceLock<HyperClient>,
}

type HyperClient = Client<HttpsConnector<Dialler>, SdkBody>;

impl Connector {
    fn client(&self) -> Result<HyperClient, BoxError> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let mut tcp = TcpConnector::new();
        tcp.set_connect_timeout(self.settings.connect_timeout());
        // Otherwise it refuses https://, which hyper-tls handles.
        tcp.enforce_http(false);
        let dialler = Dialler { tcp, proxies: Arc::new(Matcher::from_env()) };
        let https =
            HttpsConnector::from((dialler, tls(ca_bundle(self.profile.as_deref()))?.into()));
        let client = Client::builder(TokioExecutor::new()).build(https);
        Ok(self.client.get_or_init(|| client).clone())
    }
}

/// Connects through the proxy of HTTPS_PROXY or ALL_PROXY, except for NO_PROXY. Plain http is for
/// the metadata services of this machine, which no proxy can reach.
#[derive(Debug, Clone)]
struct Dialler {
    tcp: TcpConnector,
    proxies: Arc<Matcher>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Dialler {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Dialler { mut tcp, proxies } = self.clone();
        Box::pin(async move {
            let proxy = proxies.intercept(&to).filter(|_| to.scheme_str() == Some("https"));
            let Some(proxy) = proxy else { return Ok(tcp.call(to).await?) };
            // Another kind of proxy would get the password in clear text.
            if proxy.uri().scheme_str() != Some("http") {
                return Err("HTTPS_PROXY or ALL_PROXY names a proxy that is not http://".into());
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(tunnel.call(to).await?)
        })
    }
}

/// Returns the file of additional root certificates, as the AWS CLI finds it: for a proxy that
/// inspects TLS.
fn ca_bundle(profile: Option<&str>) -> Option<PathBuf> {
    let set = variable("AWS_CA_BUNDLE");
    set.or_else(|| profile_value(&profile_name(profile), "ca_bundle")).map(Into::into)
}

/// Returns the process' connector for this CA bundle. It is shared because it is slow to make.
fn tls(ca_bundle: Option<PathBuf>) -> Result<TlsConnector, BoxError> {
    static MADE: Mutex<Vec<(Option<PathBuf>, TlsConnector)>> = parking_lot::const_mutex(Vec::new());
    let mut made = MADE.lock();
    if let Some((_, tls)) = made.iter().find(|(bundle, _)| *bundle == ca_bundle) {
        return Ok(tls.clone());
    }
    let mut builder = TlsConnector::builder();
    if let Some(file) = &ca_bundle {
        for certificate in certificates(file)? {
            builder.add_root_certificate(certificate);
        }
    }
    let tls = builder.build()?;
    made.push((ca_bundle, tls.clone()));
    Ok(tls)
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, String> {
    let name = file.display();
    let pem = std::fs::read(file)
        .map_err(|error| format!("cannot read AWS_CA_BUNDLE or ca_bundle, {name}: {error}"))?;
    let found = Certificate::stack_from_pem(&pem);
    found
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| format!("AWS_CA_BUNDLE or ca_bundle, {name}, has no PEM certificate"))
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.client();
        let limit = self.settings.read_timeout().unwrap_or(Duration::MAX);
        HttpConnectorFuture::new(async move {
            let client = client.map_err(ConnectorError::user)?;
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let response = tokio::time::timeout(limit, client.request(request))
                .await
                .map_err(|elapsed| ConnectorError::timeout(elapsed.into()))?
                .map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_never_answers_ends_in_a_timeout() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let limit = Duration::from_millis(50);
        let settings = HttpConnectorSettings::builder().read_timeout(limit).build();
        let connector = Connector { settings, profile: None, client: OnceLock::new() };
        let request =
            HttpRequest::get(format!("http://{}/", silent.local_addr().unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async { connector.call(request).await }).unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}
