//! From one signal's queue to its collector: sends, tries again as OTLP says, and settles every record exactly once.

mod connect;
mod destination;
mod grpc;
mod http;
pub mod json;
mod link;
pub(crate) mod outcome;
mod proxy;
mod retry;
mod tls;
#[cfg(test)]
pub(crate) mod tests;

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use url::Url;

use crate::config::{Compression, Export, Protocol, Signal};
use crate::queue::{Answer, Batch, Queue};
use destination::Destination;
use grpc::{Grpc, Route};
use http::Http;
pub use link::Delivery;
use link::Link;
use outcome::Outcome;
use proxy::Proxies;
pub(crate) use retry::Pace;

/// Requests under way at once. Two, so that one round trip or one slow answer does not hold up the next batch; more would
/// only hit an ailing collector harder. Of a spool one: what it holds arrives in order, also after an outage or a restart.
fn in_flight(queue: &Queue) -> usize {
    if queue.keeps().is_some() { 1 } else { 2 }
}

/// Why nothing can be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// `what`: what the file is for.
    #[error("cannot read the {what} {}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot use the {what} {}: {reason}", path.display())]
    Invalid { what: &'static str, path: PathBuf, reason: String },
    #[error("cannot use the proxy of the environment: {reason}")]
    Proxy { reason: String },
    #[error("cannot set up the connection: {reason}")]
    Endpoint { reason: String },
    #[error("the endpoint cannot be reached: {reason}")]
    Unreachable { reason: String },
}

/// What ships from one queue. Dropping it leaves it running.
#[derive(Debug)]
pub struct Shipper {
    destination: Arc<Destination>,
    task: JoinHandle<()>,
}

impl Shipper {
    /// Waits until the queue is closed and either empty or past its drain.
    pub async fn ended(&mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the sender failed");
        }
    }

    /// What makes another way to ship, ready to be taken. It reads files: call it where that may take a while, within a tokio
    /// runtime only.
    pub fn prepare(&self, export: &Export) -> impl FnOnce() -> Result<Replacement, ShipError> + Send + 'static {
        let (destination, export) = (Arc::clone(&self.destination), export.clone());
        move || destination.prepare(&export).map(Replacement)
    }

    /// Ships that way from now on. Requests under way end as they began; all that waits, be it for a retry, is tried at once
    /// in the new way, in its protocol and compression. What was learnt of the old one is forgotten.
    pub fn replace(&self, Replacement(link): Replacement) {
        self.destination.replace(link);
    }

    /// How delivery fares, as of the last answers.
    #[must_use]
    pub fn state(&self) -> Delivery {
        self.destination.state()
    }

    /// The form in which the collector takes batches, as far as is known. What is in another is brought into it, at a cost.
    #[must_use]
    pub fn form(&self) -> (Protocol, Compression) {
        self.destination.form()
    }
}

/// Another way to ship, not taken yet.
#[derive(Debug)]
pub struct Replacement(Arc<Link>);

/// What could ship from a queue, and does not yet.
#[derive(Debug)]
pub struct Idle {
    destination: Destination,
    workers: usize,
}

impl Idle {
    /// For what is in the queue, of whatever signal it is. Reads files. Within a tokio runtime only.
    pub fn new(export: &Export, queue: Arc<Queue>) -> Result<Self, ShipError> {
        Self::at(export, queue, Pace::default(), Proxies::from_env())
    }

    fn at(export: &Export, queue: Arc<Queue>, pace: Pace, proxies: Proxies) -> Result<Self, ShipError> {
        let workers = in_flight(&queue);
        Ok(Self { destination: Destination::new(export, queue, pace, proxies)?, workers })
    }

    /// Ships from now on. Within a tokio runtime only.
    #[must_use]
    pub fn start(self) -> Shipper {
        let destination = Arc::new(self.destination);
        let working = Arc::clone(&destination);
        let task = tokio::spawn(async move {
            let workers = std::iter::repeat_with(|| working.work()).take(self.workers);
            futures_util::future::join_all(workers).await;
        });
        Shipper { destination, task }
    }
}

/// Whether the endpoint can be reached, proxy and TLS included. No telemetry is sent, not even an empty request.
pub async fn probe(export: &Export) -> Result<(), ShipError> {
    probe_by(export, &Proxies::from_env()).await
}

async fn probe_by(export: &Export, proxies: &Proxies) -> Result<(), ShipError> {
    match export.protocol {
        Protocol::Grpc => grpc::probe(export, proxies).await,
        Protocol::HttpProtobuf | Protocol::HttpJson => http::probe(export, proxies).await,
    }
}

/// A client for what is not a batch of ours: same TLS, proxy and socket, no redirects.
pub(crate) fn http_client(export: &Export) -> Result<reqwest::Client, ShipError> {
    http::client(export, &Proxies::from_env())
}

/// What that client is asked for: the endpoint, or this path on its Unix socket.
pub(crate) fn http_url(export: &Export, path: &str) -> Result<Url, ShipError> {
    http::url(export, path)
}

/// A channel for what is not a batch of ours: same TLS, proxy and socket. Within a tokio runtime only.
pub(crate) fn grpc_channel(export: &Export, timeout: Duration) -> Result<Channel, ShipError> {
    let Route { endpoint, connector } = Route::new(export, &Proxies::from_env())?;
    Ok(endpoint.timeout(timeout).connect_with_connector_lazy(connector))
}

/// The endpoint for people: without credentials, path and query.
pub(crate) fn place(endpoint: &Url) -> String {
    match (endpoint.host_str(), endpoint.port_or_known_default()) {
        (Some(host), Some(port)) => format!("{}://{host}:{port}", endpoint.scheme()),
        (Some(host), None) => host.into(),
        (None, _) => format!("{}:{}", endpoint.scheme(), endpoint.path()),
    }
}

/// The socket of a `unix:` endpoint.
fn unix_path(endpoint: &Url) -> Result<Option<PathBuf>, ShipError> {
    if endpoint.scheme() != "unix" {
        return Ok(None);
    }
    let path = PathBuf::from(OsString::from_vec(percent_decode_str(endpoint.path()).collect()));
    if endpoint.has_host() || !path.is_absolute() {
        return Err(ShipError::Endpoint {
            reason: "a Unix socket needs an absolute path, as in unix:///run/otel.sock".into(),
        });
    }
    Ok(Some(path))
}

#[derive(Debug)]
enum Transport {
    Grpc(Box<Grpc>),
    Http(Http),
}

impl Transport {
    fn new(export: &Export, signal: Signal, proxies: &Proxies) -> Result<Self, ShipError> {
        Ok(match export.protocol {
            Protocol::Grpc => Self::Grpc(Box::new(Grpc::new(export, proxies)?)),
            Protocol::HttpProtobuf | Protocol::HttpJson => Self::Http(Http::new(export, signal, proxies)?),
        })
    }

    /// What came of it, and what was answered, if anything was.
    async fn send(&self, batch: &Batch) -> (Outcome, Option<Answer>) {
        match self {
            Self::Grpc(grpc) => grpc.send(batch).await,
            Self::Http(http) => http.send(batch).await,
        }
    }
}

fn user_agent() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("Namespan/{version} OTel-OTLP-Exporter-Rust/{version}")
}

/// As in `grpc-encoding` and `Content-Encoding`.
fn encoding_name(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

/// An error with its sources; the outer ones alone say no more than "transport error".
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            // Into a String: cannot fail.
            write!(text, ": {next}").ok();
        }
        source = error.source();
    }
    text
}
