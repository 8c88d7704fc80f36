//! Batches in at the queue, requests out at a real socket, and every record accounted for.

mod answers;
pub(crate) mod collector;
mod failures;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use prost::Message as _;
use tokio::task::JoinHandle;

use super::{Pace, spawn_at};
use crate::config::{self, Compression, Export, Protocol};
use crate::queue::{Batch, Queue, Reason, Snapshot};
use collector::{Answer, Collector, Received, framed, partial_success, poll};

const PROTOCOLS: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];

/// Retries at once: what is tested is whether, not when.
const PACE: Pace = Pace {
    first: Duration::from_millis(1),
    factor: 1.5,
    max: Duration::from_millis(10),
    refusal: Duration::from_secs(60),
};

/// A shipper under test, with everything a test may want to set.
struct Ship {
    export: Export,
    queue: config::Queue,
    pace: Pace,
}

struct Shipping {
    export: Export,
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Ship {
    fn to(address: std::net::SocketAddr, protocol: Protocol) -> Self {
        let path = if protocol == Protocol::Grpc { "" } else { "v1/logs" };
        let export = Export {
            protocol,
            endpoint: format!("http://{address}/{path}").parse().unwrap(),
            headers: vec![("x-tenant".parse().unwrap(), "t".parse().unwrap())],
            compression: Compression::None,
            timeout: Some(Duration::from_secs(10)),
            retry_max_elapsed: Duration::from_secs(300),
            ca_file: None,
        };
        let queue = config::Queue { max_bytes: 1 << 20, max_records: None, drain: Duration::from_secs(20) };
        Self { export, queue, pace: PACE }
    }

    fn start(self) -> Shipping {
        let queue = Arc::new(Queue::new(self.queue));
        let task = spawn_at(&self.export, queue.clone(), self.pace).unwrap();
        Shipping { export: self.export, queue, task }
    }
}

impl Shipping {
    fn push(&self, records: u32) {
        let protobuf = request(records).encode_to_vec();
        let batch = Batch::seal(records, &protobuf, self.export.protocol, self.export.compression).unwrap();
        self.queue.push(batch);
    }

    /// Closes the queue; the counters once all is settled, which must add up.
    async fn finish(self) -> Snapshot {
        self.queue.close();
        self.task.await.unwrap();
        let counts = self.queue.counters().snapshot();
        assert_eq!(self.queue.depth().records, 0);
        assert_eq!(counts.in_flight, 0);
        assert_eq!(counts.accepted, counts.exported + counts.rejected + counts.dropped_total());
        counts
    }
}

fn request(records: u32) -> ExportLogsServiceRequest {
    let record = |number: u32| LogRecord {
        time_unix_nano: number.into(),
        event_name: "process.exec".into(),
        ..LogRecord::default()
    };
    let scope_logs = vec![ScopeLogs { log_records: (1..=records).map(record).collect(), ..ScopeLogs::default() }];
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }
}

/// Ships one batch of four records to a collector with this script.
async fn ship_one(protocol: Protocol, script: impl IntoIterator<Item = Answer>) -> (Snapshot, Vec<Received>) {
    let collector = Collector::start(script).await;
    let shipping = Ship::to(collector.address, protocol).start();
    shipping.push(4);
    // Before the end of input, which would cut the waits short.
    poll("settled", || {
        let counts = shipping.queue.counters().snapshot();
        counts.exported + counts.rejected + counts.dropped_total() == 4
    })
    .await;
    (shipping.finish().await, collector.received())
}

fn dropped(counts: &Snapshot) -> Vec<(Reason, u64)> {
    counts.dropped.iter().map(|(&reason, &records)| (reason, records)).collect()
}
