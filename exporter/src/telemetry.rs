//! Our own counters come in about once a second; out go OTLP metrics now and then, through the OpenTelemetry SDK, which
//! carries nothing else, and answers to whoever asks how we do. Events never wait for it, and are not lost with it.

mod exporter;
mod health;
mod instruments;
mod process;
mod prometheus;
mod server;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry::metrics::{Histogram, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prost::Message as _;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::attach::Counted;
use crate::config::{Config, Export, Protocol, Signal};
use crate::enrich::Stats;
use crate::lock::lock;
use crate::model::resource::{Host, Subject, encode_resource};
use crate::model::semconv;
use crate::processes;
use crate::queue::{Depth, Queue, Snapshot};
use crate::ship::ShipError;
use crate::uprobe::follow::Totals;
use exporter::{Exporter, Way};
pub use health::{Condition, Delivery, State};
use prometheus::Scrape;
use server::Server;

#[derive(Debug, Error)]
pub enum TelemetryError {
    #[error("metrics")]
    Ship(#[from] ShipError),
    #[error("metrics")]
    Exporter(#[from] ExporterBuildError),
    #[error(
        "metrics and health can't be served on {address}, as `listen` says: {source}; set another address, or none"
    )]
    Bind { address: std::net::SocketAddr, source: std::io::Error },
}

/// What the pipeline knows of itself; the queue is asked when it is time.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub counted: Counted,
    pub cache: Stats,
    pub processes: processes::Stats,
    /// Records from the kernel that could not be read.
    pub undecodable: u64,
    /// Records of containers that are not wanted.
    pub filtered: u64,
    /// Records that the console was too slow for.
    pub unprinted: u64,
    /// Records that wait for their container's name.
    pub waiting: usize,
    /// Log records and spans that were made, by [`Signal`].
    pub created: [u64; 2],
    /// Log records among them that no event is behind.
    pub notes: u64,
    pub reloads: Reloads,
    /// Of uprobes, as last heard.
    pub hits: Totals,
    /// Of the guard, as last read.
    pub guard: crate::pipeline::GuardTotals,
}

/// What became of settings that were read anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    pub succeeded: u64,
    /// The old ones went on.
    pub failed: u64,
}

/// The exporter of our own metrics, and who answers for our health. Dropping it ends both without a wait.
#[derive(Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
    durations: Histogram<f64>,
    provider: Option<SdkMeterProvider>,
    /// Where metrics are exported to, and what does so.
    exporter: Option<(Export, Exporter)>,
    server: Option<Server>,
}

/// Another way for metrics to go, and what is to be read for it.
pub struct Plan {
    export: Export,
    interval: Duration,
}

/// Another way for metrics to go, ready to be taken.
pub struct Prepared {
    export: Export,
    way: Way,
}

impl Plan {
    /// Reads files: may take a while. Within a tokio runtime only.
    pub fn open(self) -> Result<Prepared, TelemetryError> {
        let way = Way::new(&self.export, self.interval)?;
        Ok(Prepared { export: self.export, way })
    }
}

#[derive(Debug)]
struct Shared {
    status: Mutex<Option<Status>>,
    condition: Mutex<Condition>,
    /// When the pipeline was last heard of.
    alive: Mutex<Instant>,
    shipped: Mutex<Vec<Shipped>>,
    began: Instant,
}

/// What ships the signal of its queue.
#[derive(Debug)]
pub struct Shipped {
    pub destination: String,
    pub queue: Arc<Queue>,
    /// Of the same name, closed and not settled, the last first: the destination had left, and came back.
    pub earlier: Vec<Arc<Queue>>,
    /// What became of all in those of the same name that are settled.
    pub gone: Snapshot,
    pub protocol: Protocol,
    /// Host and port of the endpoint, or the path of its socket.
    pub server: (String, Option<u16>),
    /// Most bytes of what waits.
    pub max_bytes: usize,
}

impl Shipped {
    #[must_use]
    pub fn new(destination: &str, queue: &Arc<Queue>, export: &Export, max_bytes: usize) -> Self {
        let endpoint = &export.endpoint;
        let address = endpoint.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        Self {
            destination: destination.to_owned(),
            queue: Arc::clone(queue),
            earlier: Vec::new(),
            gone: Snapshot::default(),
            protocol: export.protocol,
            server: (address.unwrap_or(endpoint.path()).to_owned(), endpoint.port_or_known_default()),
            max_bytes,
        }
    }

    /// Of all queues that there were of this name.
    fn counters(&self) -> Snapshot {
        let earlier = self.earlier.iter().map(|queue| queue.counters().snapshot());
        let sum = self.queue.counters().snapshot();
        earlier.fold(sum, |sum, earlier| sum.and(&earlier)).and(&self.gone)
    }

    /// What waits in memory.
    fn depth(&self) -> Depth {
        let waiting = self.earlier.iter().map(|queue| queue.depth());
        waiting.fold(self.queue.depth(), |sum, depth| Depth {
            bytes: sum.bytes + depth.bytes,
            records: sum.records + depth.records,
            ..sum
        })
    }
}

impl Telemetry {
    /// `None`: nobody is to be told. Within a tokio runtime only. `shipped`: no signal of a destination twice.
    pub fn start(config: &Config, shipped: Vec<Shipped>) -> Result<Option<Self>, TelemetryError> {
        if config.metrics.is_none() && config.listen.is_none() {
            return Ok(None);
        }
        let shared = Arc::new(Shared::new());
        let mut provider = SdkMeterProvider::builder().with_resource(resource(&Host::detect(), config));
        let mut exports_to = None;
        if let Some(metrics) = &config.metrics {
            let exporter = Exporter::new(Way::new(&metrics.export, metrics.interval)?);
            exports_to = Some((metrics.export.clone(), exporter.clone()));
            provider = provider.with_reader(PeriodicReader::builder(exporter).with_interval(metrics.interval).build());
        }
        let mut server = None;
        if let Some(address) = config.listen {
            let scrape = Scrape::default();
            provider = provider.with_reader(scrape.clone());
            let bound = Server::start(address, Arc::clone(&shared), scrape);
            let bound = bound.map_err(|source| TelemetryError::Bind { address, source })?;
            tracing::info!(address = %bound.address(), "serving /metrics, /healthz and /readyz");
            server = Some(bound);
        }
        let provider = provider.build();
        let durations = instruments::register(&provider.meter_with_scope(scope()), &shared);
        let telemetry = Self { shared, durations, provider: Some(provider), exporter: exports_to, server };
        telemetry.ship(shipped);
        Ok(Some(telemetry))
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// What is shipped has changed.
    pub fn ship(&self, shipped: Vec<Shipped>) {
        instruments::time(&self.durations, &shipped);
        *lock(&self.shared.shipped) = shipped;
    }

    /// `None`: metrics go where they went.
    #[must_use]
    pub fn plan(&self, config: &Config) -> Option<Plan> {
        let ((known, _), metrics) = (self.exporter.as_ref()?, config.metrics.as_ref()?);
        (*known != metrics.export).then(|| Plan { export: metrics.export.clone(), interval: metrics.interval })
    }

    /// Metrics go this way from now on.
    pub fn export(&mut self, Prepared { export, way }: Prepared) {
        if let Some((known, exporter)) = &mut self.exporter {
            *known = export;
            exporter.replace(way);
        }
    }

    /// The pipeline goes on, whatever else can be said of it.
    pub fn alive(&self, now: Instant) {
        *lock(&self.shared.alive) = now;
    }

    pub fn publish(&self, status: Status) {
        *lock(&self.shared.status) = Some(status);
    }

    /// What stands in the way of being ready.
    pub fn tell(&self, condition: Condition) {
        *lock(&self.shared.condition) = condition;
    }

    /// Exports one last time, and waits for that no longer than told.
    pub async fn finish(mut self, at_most: Duration) {
        if let Some(ended) = self.end()
            && !matches!(tokio::time::timeout(at_most, ended).await, Ok(Ok(true)))
        {
            tracing::warn!("the last metrics are not exported");
        }
    }

    /// On a thread of its own: the SDK blocks, by a time limit of its own, and the runtime would wait for its threads.
    fn end(&mut self) -> Option<oneshot::Receiver<bool>> {
        let provider = self.provider.take()?;
        let (done, ended) = oneshot::channel();
        let end = move || {
            // Nobody may be waiting any more.
            done.send(provider.shutdown().is_ok()).ok();
        };
        std::thread::Builder::new().name("metrics-end".to_owned()).spawn(end).ok()?;
        Some(ended)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Shared {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            status: Mutex::default(),
            condition: Mutex::default(),
            alive: Mutex::new(now),
            shipped: Mutex::default(),
            began: now,
        }
    }

    fn status(&self) -> Option<Status> {
        lock(&self.status).clone()
    }
}

/// As attributes have it.
#[must_use]
pub fn name_of(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "logs",
        Signal::Traces => "traces",
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(semconv::SCOPE_TELEMETRY)
        .with_version(semconv::VERSION)
        .with_schema_url(semconv::SCHEMA_URL)
        .build()
}

/// The host's resource, as one service on it: ourselves.
fn resource(host: &Host, config: &Config) -> Resource {
    let bytes = encode_resource(host, Subject::Agent, &config.resource);
    let decoded = opentelemetry_proto::tonic::resource::v1::Resource::decode(&*bytes).unwrap_or_default();
    let attributes = decoded.attributes.into_iter().filter_map(|pair| {
        // A host's attributes are texts.
        let Value::StringValue(text) = pair.value?.value? else { return None };
        Some(KeyValue::new(pair.key, text))
    });
    Resource::builder_empty().with_schema_url(attributes, semconv::SCHEMA_URL).build()
}

#[cfg(test)]
mod tests;
