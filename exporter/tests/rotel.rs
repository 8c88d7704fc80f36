//! Against a collector that is not ours: set `NAMESPAN_ROTEL` to the path of a `rotel-agent`; skipped without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use namespan::config::{self, Compression, Export, Protocol, Signal};
use namespan::queue::{Batch, Class, Queue};
use namespan::ship::Idle;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn rotel_reads_what_we_ship() {
    let Some(binary) = std::env::var_os("NAMESPAN_ROTEL") else {
        println!("skipped: NAMESPAN_ROTEL is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("rotel.log");
    let rotel = Rotel::start(binary, &log);
    for (protocol, compression) in [
        (Protocol::Grpc, Compression::None),
        (Protocol::Grpc, Compression::Gzip),
        (Protocol::Grpc, Compression::Zstd),
        (Protocol::HttpProtobuf, Compression::None),
        (Protocol::HttpProtobuf, Compression::Gzip),
        (Protocol::HttpProtobuf, Compression::Zstd),
        (Protocol::HttpJson, Compression::None),
        (Protocol::HttpJson, Compression::Gzip),
    ] {
        let mark = format!("{protocol:?}-{compression:?}");
        let export = rotel.export(protocol, compression);
        let drain = Duration::from_secs(30);
        let queue = Arc::new(Queue::new(Signal::Logs, config::Queue { max_bytes: 1 << 20, max_records: None, drain }));
        let mut shipper = Idle::new(&export, queue.clone()).unwrap().start();
        queue.push(Batch::seal(Class::Exec, 2, &request(&mark).encode_to_vec(), protocol, compression).unwrap());
        eventually("settled", || {
            let counts = queue.counters().snapshot();
            counts.exported + counts.rejected + counts.dropped_total() == 2
        })
        .await;
        queue.close();
        shipper.ended().await;
        println!("{mark}: {:?}", queue.counters().snapshot());
        assert_eq!(queue.counters().snapshot().exported, 2, "{mark}");
        let seen = || std::fs::read_to_string(&log).unwrap().matches(&mark).count();
        eventually(&mark, || seen() >= 2).await;
    }
    println!("{}", std::fs::read_to_string(&log).unwrap());
}

struct Rotel {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Rotel {
    fn start(binary: OsString, log: &Path) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (grpc, http) = (free(), free());
        let output = File::create(log).unwrap();
        let child = Command::new(binary)
            .args(["start", "--exporter", "blackhole", "--debug-log", "logs", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, grpc, http }
    }

    fn export(&self, protocol: Protocol, compression: Compression) -> Export {
        let endpoint = match protocol {
            Protocol::Grpc => format!("http://{}", self.grpc),
            Protocol::HttpProtobuf | Protocol::HttpJson => format!("http://{}/v1/logs", self.http),
        };
        Export {
            protocol,
            endpoint: endpoint.parse().unwrap(),
            headers: Vec::new(),
            compression,
            timeout: Some(Duration::from_secs(10)),
            retry_max_elapsed: Duration::from_secs(60),
            ca_file: None,
            client: None,
        }
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn request(mark: &str) -> ExportLogsServiceRequest {
    let any = |value| Some(AnyValue { value: Some(value) });
    let text = |text: &str| Value::StringValue(text.into());
    let pair = |key: &str, value| KeyValue { key: key.into(), value: any(value), ..KeyValue::default() };
    let args =
        ArrayValue { values: vec![AnyValue { value: Some(text("-c")) }, AnyValue { value: Some(text("exit")) }] };
    let record = LogRecord {
        time_unix_nano: 1_700_000_000_000_000_000,
        observed_time_unix_nano: 1_700_000_000_000_000_001,
        severity_number: 9,
        event_name: "process.exec".into(),
        body: any(text(mark)),
        attributes: vec![
            pair("process.pid", Value::IntValue(42)),
            pair("process.command_args", Value::ArrayValue(args)),
            pair("raw", Value::BytesValue(vec![0, 255])),
        ],
        ..LogRecord::default()
    };
    let scope_logs = vec![ScopeLogs { log_records: vec![record.clone(), record], ..ScopeLogs::default() }];
    let resource = Some(Resource { attributes: vec![pair("service.name", text("bash"))], ..Resource::default() });
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }] }
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
