//! OTLP over HTTP, in protobuf or JSON: one POST a batch.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use reqwest::{Certificate, Client, redirect};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::outcome::{ANSWER_MAX, Outcome};
use super::{ShipError, ca, chain, encoding_name, user_agent};
use crate::config::{Export, Protocol};
use crate::queue::Batch;

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
    pub(super) fn new(export: &Export) -> Result<Self, ShipError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &export.headers {
            headers.append(name, value.clone());
        }
        let content_type = match export.protocol {
            Protocol::HttpJson => "application/json",
            Protocol::HttpProtobuf | Protocol::Grpc => "application/x-protobuf",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(Self { client: client(export)?, url: export.endpoint.clone(), headers, timeout: export.timeout })
    }

    pub(super) async fn send(&self, batch: &Batch) -> Outcome {
        let mut request = self.client.post(self.url.clone()).headers(self.headers.clone()).body(batch.body().clone());
        if let Some(encoding) = encoding_name(batch.compression()) {
            request = request.header(header::CONTENT_ENCODING, encoding);
        }
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut response = match within(deadline, request.send()).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return Outcome::unanswered(chain(&error.without_url())),
            None => return Outcome::unanswered(format!("no answer within {:?}", self.timeout.unwrap_or_default())),
        };
        let mut body = Vec::new();
        // The status has decided: a body that breaks off or stalls only takes its details with it.
        while body.len() < ANSWER_MAX
            && let Some(Ok(Some(chunk))) = within(deadline, response.chunk()).await
        {
            body.extend_from_slice(&chunk);
        }
        Outcome::from_http(response.status(), response.headers(), &body, batch.compression())
    }
}

/// Any answer will do: it came through the same proxy and the same TLS as an export will.
pub(super) async fn probe(export: &Export) -> Result<(), ShipError> {
    let request = client(export)?.head(export.endpoint.clone());
    let deadline = export.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    match within(deadline, request.send()).await {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(ShipError::Unreachable { reason: chain(&error.without_url()) }),
        None => {
            Err(ShipError::Unreachable { reason: format!("no answer within {:?}", export.timeout.unwrap_or_default()) })
        }
    }
}

pub(super) fn client(export: &Export) -> Result<Client, ShipError> {
    let mut builder = Client::builder()
        .user_agent(user_agent())
        // A redirect would turn the POST into a GET, or send the headers' secrets elsewhere.
        .redirect(redirect::Policy::none())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT);
    if let Some(path) = &export.ca_file {
        let certificates = Certificate::from_pem_bundle(&ca::read(path)?)
            .map_err(|source| ShipError::CaInvalid { path: path.clone(), reason: chain(&source) })?;
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| ShipError::Endpoint { reason: chain(&error) })
}

/// `None`: not within the deadline.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}
