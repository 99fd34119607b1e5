//! AWS over https through native-tls: the SDK's `HttpClient` on hyper and hyper-tls.
//!
//! The SDK's own https client would bring a second TLS stack and its C library along.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper_tls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use native_tls::TlsConnector;
use tokio::net::TcpStream;
use tower_service::Service;

/// A client whose TLS is not set up before the first request: loading the system's roots costs 90
/// ms of CPU, and a program with keys in its environment makes no request at all.
pub(crate) fn client() -> SharedHttpClient {
    SharedHttpClient::new(NativeTls)
}

#[derive(Debug)]
struct NativeTls;

impl HttpClient for NativeTls {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let (connect, read) = (settings.connect_timeout(), settings.read_timeout());
        SharedHttpConnector::new(Connector { connect, read, client: OnceLock::new() })
    }
}

#[derive(Debug)]
struct Connector {
    connect: Option<Duration>,
    read: Option<Duration>,
    client: OnceLock<HyperClient>,
}

type HyperClient = Client<HttpsConnector<Dialler>, SdkBody>;

impl Connector {
    fn client(&self) -> Result<HyperClient, native_tls::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let mut tcp = TcpConnector::new();
        tcp.set_connect_timeout(self.connect);
        // Else it refuses https://, which is hyper-tls's part.
        tcp.enforce_http(false);
        let dialler = Dialler { tcp, proxies: Arc::new(Matcher::from_env()) };
        let https = HttpsConnector::from((dialler, tls()?.into()));
        let client = Client::builder(TokioExecutor::new()).build(https);
        Ok(self.client.get_or_init(|| client).clone())
    }
}

/// Connects through the proxy of HTTPS_PROXY, or ALL_PROXY, less NO_PROXY. Plain http is for this
/// machine's metadata services, which no proxy can reach.
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
        let proxy = self.proxies.intercept(&to).filter(|_| to.scheme_str() == Some("https"));
        let Some(proxy) = proxy else {
            let connecting = self.tcp.call(to);
            return Box::pin(async { Ok(connecting.await?) });
        };
        // Its password would go to another kind of proxy in clear text.
        if proxy.uri().scheme_str() != Some("http") {
            return Box::pin(async {
                Err("HTTPS_PROXY or ALL_PROXY names a proxy that is not http://".into())
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async { Ok(connecting.await?) })
    }
}

/// One for the process, since building it is what costs.
fn tls() -> Result<TlsConnector, native_tls::Error> {
    static TLS: OnceLock<TlsConnector> = OnceLock::new();
    if let Some(tls) = TLS.get() {
        return Ok(tls.clone());
    }
    let tls = TlsConnector::new()?;
    Ok(TLS.get_or_init(|| tls).clone())
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, read) = (self.client(), self.read);
        HttpConnectorFuture::new(async move {
            let client = client.map_err(|error| ConnectorError::other(error.into(), None))?;
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let sent = client.request(request);
            let response = match read {
                Some(limit) => tokio::time::timeout(limit, sent)
                    .await
                    .map_err(|elapsed| ConnectorError::timeout(elapsed.into()))?,
                None => sent.await,
            };
            let response = response
                .map_err(|error| ConnectorError::io(error.into()))?
                .map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response)
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
        let read = Some(Duration::from_millis(50));
        let connector = Connector { connect: None, read, client: OnceLock::new() };
        let request =
            HttpRequest::get(format!("http://{}/", silent.local_addr().unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async { connector.call(request).await }).unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}
