//! Metrics of the SDK come in, requests over our own connections go out.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, Request, Response};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{MetricExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;

use super::TelemetryError;
use crate::config::{Export, Protocol};
use crate::lock::lock;
use crate::ship::{self, chain};

/// Of an answer to an export; the rest is not read.
const ANSWER_MAX: usize = 64 << 10;

/// Where to may change.
#[derive(Clone)]
pub(super) struct Exporter(Arc<Mutex<Arc<Way>>>);

/// One way to export. Says once that exports fail, and once that they work again.
pub(super) struct Way {
    inner: MetricExporter,
    endpoint: String,
    reason: Reason,
    failing: AtomicBool,
}

impl Way {
    /// Reads files. Within a tokio runtime only.
    pub(super) fn new(export: &Export, interval: Duration) -> Result<Self, TelemetryError> {
        let reason = Reason::default();
        Ok(Self {
            inner: exporter(export, interval, &reason)?,
            endpoint: export.endpoint.origin().ascii_serialization(),
            reason,
            failing: AtomicBool::new(false),
        })
    }

    fn tell(&self, result: &OTelSdkResult) {
        let failed = self.failing.swap(result.is_err(), Relaxed);
        match result {
            Err(error) if !failed => {
                let reason = lock(&self.reason).take();
                let reason = reason.unwrap_or_else(|| error.to_string());
                tracing::warn!(
                    endpoint = self.endpoint,
                    reason,
                    "metrics can't be exported; this is tried again, and events go on"
                );
            }
            Ok(()) if failed => tracing::info!(endpoint = self.endpoint, "metrics are exported again"),
            Ok(()) | Err(_) => {}
        }
    }
}

impl Exporter {
    pub(super) fn new(way: Way) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(way))))
    }

    /// What is under way ends where it began.
    pub(super) fn replace(&self, way: Way) {
        *lock(&self.0) = Arc::new(way);
    }

    fn way(&self) -> Arc<Way> {
        Arc::clone(&lock(&self.0))
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("endpoint", &self.way().endpoint).finish_non_exhaustive()
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let way = self.way();
        let result = way.inner.export(metrics).await;
        way.tell(&result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.way().inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.way().inner.shutdown_with_timeout(timeout)
    }

    /// Ours are all alike in this.
    fn temporality(&self) -> Temporality {
        self.way().inner.temporality()
    }
}

fn exporter(export: &Export, interval: Duration, reason: &Reason) -> Result<MetricExporter, TelemetryError> {
    // The SDK has no limit of its own, and one export at a time.
    let timeout = export.timeout.unwrap_or(interval);
    let headers: HeaderMap = export.headers.iter().cloned().collect();
    let protocol = match export.protocol {
        Protocol::Grpc => {
            let metadata = MetadataMap::from_headers(headers);
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_channel(ship::grpc_channel(export, timeout)?)
                // The builder reads the environment again, and would add headers that a higher layer has replaced.
                .with_interceptor(move |mut request: tonic::Request<()>| {
                    request.metadata_mut().clone_from(&metadata);
                    Ok(request)
                })
                .with_timeout(timeout);
            return Ok(exporter.build()?);
        }
        Protocol::HttpProtobuf => opentelemetry_otlp::Protocol::HttpBinary,
        Protocol::HttpJson => opentelemetry_otlp::Protocol::HttpJson,
    };
    let client = Client {
        inner: ship::http_client(export)?,
        reason: Arc::clone(reason),
        headers,
        timeout,
        runtime: Handle::current(),
    };
    let exporter = MetricExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(protocol)
        .with_endpoint(ship::http_url(export, "/v1/metrics")?)
        .with_timeout(timeout);
    Ok(exporter.build()?)
}

/// Why the last request had no answer, where the SDK says no more than "network error".
type Reason = Arc<Mutex<Option<String>>>;

/// Our client for the SDK, whose thread has no runtime.
struct Client {
    inner: reqwest::Client,
    reason: Reason,
    headers: HeaderMap,
    timeout: Duration,
    runtime: Handle,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        // As with gRPC: no headers but those of the message and ours.
        let mut headers = self.headers.clone();
        for name in [http::header::CONTENT_TYPE, http::header::CONTENT_ENCODING] {
            if let Some(value) = head.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let request = self.inner.post(head.uri.to_string()).headers(headers).body(body).timeout(self.timeout);
        let answer = self.runtime.spawn(async move {
            let mut response = request.send().await?;
            let mut body = Vec::new();
            while body.len() < ANSWER_MAX
                && let Some(chunk) = response.chunk().await?
            {
                body.extend_from_slice(&chunk);
            }
            let mut answer = Response::new(Bytes::from(body));
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            Ok::<_, reqwest::Error>(answer)
        });
        answer.await?.map_err(|error| {
            let error = error.without_url();
            *lock(&self.reason) = Some(chain(&error));
            error.into()
        })
    }
}
