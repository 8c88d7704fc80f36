//! OTLP over HTTP, in protobuf or JSON: one POST a batch.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, Proxy, redirect};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use tower_layer::Layer;
use tower_service::Service;
use url::Url;

use super::outcome::{Body, Outcome};
use super::proxy::Proxies;
use super::tls::{Files, Tls};
use super::{ShipError, chain, encoding_name, tls, unix_path, user_agent};
use crate::config::{Export, Protocol, Signal};
use crate::queue::{Answer, Batch};

/// A connection that does not answer a ping is given up; requests in flight are repeated.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    url: Url,
    headers: HeaderMap,
    timeout: Option<Duration>,
}

impl Http {
    pub(super) fn new(export: &Export, signal: Signal, proxies: &Proxies) -> Result<Self, ShipError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &export.headers {
            headers.append(name, value.clone());
        }
        let content_type = match export.protocol {
            Protocol::HttpJson => "application/json",
            Protocol::HttpProtobuf | Protocol::Grpc => "application/x-protobuf",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let path = match signal {
            Signal::Logs => "/v1/logs",
            Signal::Traces => "/v1/traces",
        };
        Ok(Self { client: client(export, proxies)?, url: url(export, path)?, headers, timeout: export.timeout })
    }

    pub(super) async fn send(&self, batch: &Batch) -> (Outcome, Option<Answer>) {
        let mut request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(batch.body().clone());
        if let Some(encoding) = encoding_name(batch.compression()) {
            request = request.header(header::CONTENT_ENCODING, encoding);
        }
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut response = match within(deadline, request.send()).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return (Outcome::unanswered(chain(&error.without_url())), None),
            None => {
                let reason = format!("no answer within {:?}", self.timeout.unwrap_or_default());
                return (Outcome::unanswered(reason), None);
            }
        };
        let answer = Answer::Http(response.status().as_u16());
        let mut body = Body::default();
        // The status has decided: a body that breaks off or stalls only takes its details with it.
        while let Some(Ok(Some(chunk))) = within(deadline, response.chunk()).await {
            if !body.take(&chunk) {
                return (Outcome::answer_too_large(answer), Some(answer));
            }
        }
        let outcome = Outcome::from_http(response.status(), response.headers(), body.bytes(), batch.compression());
        (outcome, Some(answer))
    }
}

/// Any answer of the collector will do: it came through the same proxy and the same TLS as an export will.
pub(super) async fn probe(export: &Export, proxies: &Proxies) -> Result<(), ShipError> {
    let request = client(export, proxies)?.head(url(export, "/")?);
    let deadline = export.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    match within(deadline, request.send()).await {
        Some(Ok(answer)) if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(ShipError::Unreachable { reason: "the proxy wants other credentials, or some".into() })
        }
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(ShipError::Unreachable { reason: chain(&error.without_url()) }),
        None => {
            Err(ShipError::Unreachable { reason: format!("no answer within {:?}", export.timeout.unwrap_or_default()) })
        }
    }
}

pub(super) fn client(export: &Export, proxies: &Proxies) -> Result<Client, ShipError> {
    let invalid = |error: reqwest::Error| ShipError::Endpoint { reason: chain(&error.without_url()) };
    let mut builder = Client::builder()
        .user_agent(user_agent())
        // A redirect would turn the POST into a GET, or send the headers' secrets elsewhere.
        .redirect(redirect::Policy::none())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        // But for the one that is chosen below.
        .no_proxy();
    let mut is_tls = export.endpoint.scheme() == "https";
    if let Some(found) = proxies.towards(&export.endpoint)? {
        is_tls |= found.uri().scheme_str() == Some("https");
        let mut proxy = Proxy::all(found.uri().to_string()).map_err(invalid)?;
        if let Some(credentials) = found.basic_auth() {
            proxy = proxy.custom_http_auth(credentials.clone());
        }
        builder = builder.proxy(proxy);
    }
    if let Some(path) = unix_path(&export.endpoint)? {
        builder = builder.unix_socket(path);
    }
    builder = if is_tls {
        let Tls { config, files } = tls::config(export, &[tls::HTTP_2, tls::HTTP_1])?;
        builder.tls_backend_preconfigured(ClientConfig::clone(&config)).connector_layer(Following(files))
    } else {
        builder.tls_backend_preconfigured(tls::unused()?)
    };
    builder.build().map_err(invalid)
}

/// Has a look at the certificates before what is below it connects.
#[derive(Clone)]
struct Following(Arc<Files>);

#[derive(Clone)]
struct Followed<S> {
    files: Arc<Files>,
    inner: S,
}

impl<S> Layer<S> for Following {
    type Service = Followed<S>;

    fn layer(&self, inner: S) -> Followed<S> {
        Followed { files: Arc::clone(&self.0), inner }
    }
}

impl<S, R> Service<R> for Followed<S>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The clone may not be ready, as this one is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let files = Arc::clone(&self.files);
        Box::pin(async move {
            files.follow().await;
            inner.call(request).await
        })
    }
}

/// On a Unix socket, what the specification has as the signal's path; else as it was given.
pub(super) fn url(export: &Export, path: &str) -> Result<Url, ShipError> {
    match export.endpoint.scheme() {
        "unix" => format!("http://localhost{path}")
            .parse()
            .map_err(|error: url::ParseError| ShipError::Endpoint { reason: error.to_string() }),
        _ => Ok(export.endpoint.clone()),
    }
}

/// `None`: not within the deadline.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}
