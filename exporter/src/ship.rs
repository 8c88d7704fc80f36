//! From one signal's queue to its collector: sends, tries again as OTLP says, and settles every record exactly once.

mod ca;
mod destination;
mod grpc;
mod http;
pub mod json;
mod outcome;
mod retry;
#[cfg(test)]
pub(crate) mod tests;

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::config::{Compression, Export, Protocol};
use crate::queue::{Batch, Queue};
use destination::Destination;
use grpc::Grpc;
use http::Http;
use outcome::Outcome;
pub(crate) use retry::Pace;

/// Two, so that one round trip or one slow answer does not hold up the next batch; more would only hit an ailing
/// collector harder.
const IN_FLIGHT: usize = 2;

/// Why nothing can be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error("cannot read the CA file {}", path.display())]
    CaUnreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot use the CA file {}: {reason}", path.display())]
    CaInvalid { path: PathBuf, reason: String },
    #[error("cannot set up the connection: {reason}")]
    Endpoint { reason: String },
    #[error("the endpoint cannot be reached: {reason}")]
    Unreachable { reason: String },
}

/// Ships what is in the queue, of whatever signal it is, until it is closed and either empty or past its drain. Within a tokio runtime only.
pub fn spawn(export: &Export, queue: Arc<Queue>) -> Result<JoinHandle<()>, ShipError> {
    spawn_at(export, queue, Pace::default())
}

fn spawn_at(export: &Export, queue: Arc<Queue>, pace: Pace) -> Result<JoinHandle<()>, ShipError> {
    let destination = Destination::new(export, queue, pace)?;
    Ok(tokio::spawn(async move {
        let workers: [_; IN_FLIGHT] = std::array::from_fn(|_| destination.work());
        futures_util::future::join_all(workers).await;
    }))
}

/// Whether the endpoint can be reached, TLS included. No telemetry is sent, not even an empty request.
pub async fn probe(export: &Export) -> Result<(), ShipError> {
    install_crypto();
    match export.protocol {
        Protocol::Grpc => grpc::probe(export).await,
        Protocol::HttpProtobuf | Protocol::HttpJson => http::probe(export).await,
    }
}

/// A client for what is not a batch of ours: same TLS, no redirects.
pub(crate) fn http_client(export: &Export) -> Result<reqwest::Client, ShipError> {
    install_crypto();
    http::client(export)
}

/// A channel for what is not a batch of ours: same TLS. Within a tokio runtime only.
pub(crate) fn grpc_channel(export: &Export, timeout: Duration) -> Result<Channel, ShipError> {
    install_crypto();
    Ok(grpc::endpoint(export)?.timeout(timeout).connect_lazy())
}

#[derive(Debug)]
enum Transport {
    Grpc(Box<Grpc>),
    Http(Http),
}

impl Transport {
    fn new(export: &Export) -> Result<Self, ShipError> {
        install_crypto();
        Ok(match export.protocol {
            Protocol::Grpc => Self::Grpc(Box::new(Grpc::new(export)?)),
            Protocol::HttpProtobuf | Protocol::HttpJson => Self::Http(Http::new(export)?),
        })
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        match self {
            Self::Grpc(grpc) => grpc.send(batch).await,
            Self::Http(http) => http.send(batch).await,
        }
    }
}

/// Rustls knows no default where several providers are compiled in. An error means that one is there already.
fn install_crypto() {
    rustls::crypto::ring::default_provider().install_default().ok();
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
