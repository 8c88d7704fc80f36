//! Batches in at the queue, requests out at a real socket, and every record accounted for.

mod answers;
pub(crate) mod collector;
mod failures;
mod proxies;
mod replaced;
mod spool;
mod tls;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tracing::subscriber::NoSubscriber;

use super::proxy::Proxies;
use super::{Delivery, Idle, Pace, Shipper};
use crate::config::{self, Compression, Export, Protocol, Signal};
use crate::queue::{Batch, Class, Queue, Reason, Snapshot};
use collector::{Answer, Collector, Received, Sent, framed, partial_success, poll};

const SIGNALS: [Signal; 2] = [Signal::Logs, Signal::Traces];
const PROTOCOLS: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];

fn class_of(signal: Signal) -> Class {
    match signal {
        Signal::Logs => Class::Exec,
        Signal::Traces => Class::Span,
    }
}

/// Each signal by each protocol.
fn ways() -> impl Iterator<Item = (Signal, Protocol)> {
    SIGNALS.into_iter().flat_map(|signal| PROTOCOLS.map(|protocol| (signal, protocol)))
}

/// Retries at once: what is tested is whether, not when.
const PACE: Pace = Pace {
    first: Duration::from_millis(1),
    factor: 1.5,
    max: Duration::from_millis(10),
    refusal: Duration::from_secs(60),
};

/// A shipper under test, with everything a test may want to set.
struct Ship {
    signal: Signal,
    export: Export,
    queue: config::Queue,
    pace: Pace,
    proxies: Proxies,
}

fn direct() -> Proxies {
    Proxies::of(Matcher::builder().build())
}

struct Shipping {
    export: Export,
    queue: Arc<Queue>,
    shipper: Shipper,
}

impl Ship {
    /// Of logs, where it is all one.
    fn to(address: std::net::SocketAddr, protocol: Protocol) -> Self {
        Self::of(Signal::Logs, address, protocol)
    }

    fn of(signal: Signal, address: std::net::SocketAddr, protocol: Protocol) -> Self {
        let path = match (protocol, signal) {
            (Protocol::Grpc, _) => "",
            (Protocol::HttpProtobuf | Protocol::HttpJson, Signal::Logs) => "v1/logs",
            (Protocol::HttpProtobuf | Protocol::HttpJson, Signal::Traces) => "v1/traces",
        };
        let export = Export {
            protocol,
            endpoint: format!("http://{address}/{path}").parse().unwrap(),
            headers: vec![("x-tenant".parse().unwrap(), "t".parse().unwrap())],
            compression: Compression::None,
            timeout: Some(Duration::from_secs(10)),
            retry_max_elapsed: Duration::from_secs(300),
            ca_file: None,
            client: None,
        };
        let queue = config::Queue { max_bytes: 1 << 20, max_records: None, drain: Duration::from_secs(20) };
        Self { signal, export, queue, pace: PACE, proxies: direct() }
    }

    fn start(self) -> Shipping {
        let queue = Arc::new(Queue::new(self.signal, self.queue));
        let shipper = Idle::at(&self.export, queue.clone(), self.pace, self.proxies).unwrap().start();
        Shipping { export: self.export, queue, shipper }
    }
}

impl Shipping {
    fn push(&self, records: u32) {
        let (signal, Export { protocol, compression, .. }) = (self.queue.signal(), &self.export);
        let protobuf = request(signal, records).encode();
        self.queue.push(Batch::seal(class_of(signal), records, &protobuf, *protocol, *compression).unwrap());
    }

    fn replace(&self, export: &Export) {
        self.shipper.replace(self.shipper.prepare(export)().unwrap());
    }

    /// Closes the queue; the counters once all is settled, which must add up.
    async fn finish(mut self) -> Snapshot {
        self.queue.close();
        self.shipper.ended().await;
        let counts = self.queue.counters().snapshot();
        assert_eq!(self.queue.depth().records, 0);
        assert_eq!(counts.in_flight, 0);
        assert_eq!(counts.accepted, counts.exported + counts.rejected + counts.dropped_total());
        counts
    }
}

fn request(signal: Signal, records: u32) -> Sent {
    let numbers = (1..=records).map(u64::from);
    match signal {
        Signal::Logs => {
            let record = |number| LogRecord {
                time_unix_nano: number,
                event_name: "process.exec".into(),
                ..LogRecord::default()
            };
            let scope_logs = vec![ScopeLogs { log_records: numbers.map(record).collect(), ..ScopeLogs::default() }];
            let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
            Sent::Logs(ExportLogsServiceRequest { resource_logs })
        }
        Signal::Traces => {
            let span = |number| Span { start_time_unix_nano: number, name: "ls".into(), ..Span::default() };
            let scope_spans = vec![ScopeSpans { spans: numbers.map(span).collect(), ..ScopeSpans::default() }];
            let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
            Sent::Traces(ExportTraceServiceRequest { resource_spans })
        }
    }
}

/// Ships one batch of four log records to a collector with this script.
async fn ship_one(protocol: Protocol, script: impl IntoIterator<Item = Answer>) -> (Snapshot, Vec<Received>) {
    ship_one_of(Signal::Logs, protocol, script).await
}

/// Ships one batch of four records to a collector with this script.
async fn ship_one_of(
    signal: Signal,
    protocol: Protocol,
    script: impl IntoIterator<Item = Answer>,
) -> (Snapshot, Vec<Received>) {
    let collector = Collector::start(script).await;
    let shipping = Ship::of(signal, collector.address, protocol).start();
    shipping.push(4);
    // Before the end of input, which would cut the waits short.
    poll("settled", || {
        let counts = shipping.queue.counters().snapshot();
        counts.exported + counts.rejected + counts.dropped_total() == 4
    })
    .await;
    (shipping.finish().await, collector.received())
}

/// What is written to our log on this thread until dropped.
struct Logged {
    lines: Lines,
    _guard: tracing::subscriber::DefaultGuard,
}

/// With a single subscriber, tracing decides for all threads by the one that reaches a line first, which may have none.
static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(NoSubscriber::new()));

impl Logged {
    fn start() -> Self {
        LazyLock::force(&SECOND);
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Namespan's own lines.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("namespan")).map(str::to_owned).collect()
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn dropped(counts: &Snapshot) -> Vec<(Reason, u64)> {
    counts.dropped.iter().map(|(&reason, &records)| (reason, records)).collect()
}
