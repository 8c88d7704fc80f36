//! An OTLP/HTTP receiver that keeps every record it is sent.

use std::convert::Infallible;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::attribute::{Attributes, Value, attributes};
use crate::watched::Watched;

/// One log record, with what stood around it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Shared by the records of one `ResourceLogs`.
    pub resource: Arc<Resource>,
    pub scope: Scope,
    pub event: String,
    pub time_ns: u64,
    pub observed_ns: u64,
    pub severity: i32,
    pub body: Value,
    pub attributes: Attributes,
    pub dropped_attributes: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub attributes: Attributes,
    pub schema_url: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub name: String,
    pub version: String,
    pub schema_url: String,
}

impl Record {
    /// `Value::Empty` where there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> &Value {
        self.attributes.get(key).unwrap_or(&Value::Empty)
    }

    #[must_use]
    pub fn of_resource(&self, key: &str) -> &Value {
        self.resource.attributes.get(key).unwrap_or(&Value::Empty)
    }

    #[must_use]
    pub fn is_exec(&self) -> bool {
        self.event == "namespan.process.exec"
    }

    #[must_use]
    pub fn is_exit(&self) -> bool {
        self.event == "namespan.process.exit"
    }

    /// Of the thread that ran, as the kernel names it.
    #[must_use]
    pub fn comm(&self) -> &str {
        self.get("namespan.process.comm").text()
    }
}

/// All records of a request, in order; of each `ResourceLogs` one resource.
#[must_use]
pub fn records(request: ExportLogsServiceRequest) -> Vec<Record> {
    let mut records = Vec::new();
    for logs in request.resource_logs {
        let resource = logs.resource.unwrap_or_default();
        let resource = Resource { attributes: attributes(resource.attributes), schema_url: logs.schema_url };
        let resource = Arc::new(resource);
        for logs in logs.scope_logs {
            let scope = logs.scope.unwrap_or_default();
            let scope = Scope { name: scope.name, version: scope.version, schema_url: logs.schema_url };
            records.extend(logs.log_records.into_iter().map(|record| Record {
                resource: resource.clone(),
                scope: scope.clone(),
                event: record.event_name,
                time_ns: record.time_unix_nano,
                observed_ns: record.observed_time_unix_nano,
                severity: record.severity_number,
                body: record.body.map_or(Value::Empty, Value::from),
                attributes: attributes(record.attributes),
                dropped_attributes: record.dropped_attributes_count,
            }));
        }
    }
    records
}

/// Listens until dropped.
#[derive(Debug)]
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    /// One entry for each request.
    received: Watched<Vec<Vec<Record>>>,
    refusal: AtomicU16,
}

impl Sink {
    #[must_use]
    pub fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    #[must_use]
    pub fn start_at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        runtime.spawn(listen(listener, shared.clone()));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Answers all that follows with this status, and keeps nothing of it.
    pub fn refuse(&self, status: StatusCode) {
        self.shared.refusal.store(status.as_u16(), Relaxed);
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All records so far, request by request.
    #[must_use]
    pub fn requests(&self) -> Vec<Vec<Record>> {
        self.shared.received.lock().clone()
    }

    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.requests().into_iter().flatten().collect()
    }

    /// Waits for the first answer that is not `None`; panics when there is none in time.
    pub fn wait_for<R>(&self, what: &str, time: Duration, answer: impl Fn(&[&Record]) -> Option<R>) -> R {
        let found = self.shared.received.wait(time, |requests| {
            let records: Vec<_> = requests.iter().flatten().collect();
            answer(&records)
        });
        found.unwrap_or_else(|| panic!("not in time: {what}; {} records came", self.records().len()))
    }

    /// Waits for so many records of any kind; more are a failure too.
    #[must_use]
    pub fn wait_for_count(&self, count: usize, time: Duration) -> Vec<Record> {
        self.wait_for(&format!("{count} records"), time, |records| (records.len() >= count).then_some(()));
        let records = self.records();
        assert_eq!(records.len(), count);
        records
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, shared.clone()));
            // A sender may hang up at any time.
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let refusal = shared.refusal.load(Relaxed);
    let status = match body.collect().await {
        Err(_) => StatusCode::BAD_REQUEST,
        Ok(_) if refusal != 0 => StatusCode::from_u16(refusal).unwrap(),
        Ok(body) if head.method == Method::POST && head.uri.path() == "/v1/logs" => {
            let encoding = head.headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap());
            let plain = plain(encoding, &body.to_bytes());
            let json = head.headers.get(CONTENT_TYPE).is_some_and(|value| value == "application/json");
            let request = if json {
                serde_json::from_slice(&plain).expect("OTLP/JSON")
            } else {
                ExportLogsServiceRequest::decode(&*plain).expect("OTLP")
            };
            shared.received.change(|requests| requests.push(records(request)));
            StatusCode::OK
        }
        Ok(_) => StatusCode::NOT_FOUND,
    };
    // An empty message is a response without partial success.
    let response = Response::builder().status(status).header(CONTENT_TYPE, "application/x-protobuf");
    Ok(response.body(Full::default()).unwrap())
}

fn plain(encoding: Option<&str>, body: &[u8]) -> Vec<u8> {
    match encoding {
        None => body.to_vec(),
        Some("gzip") => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
            plain
        }
        Some("zstd") => zstd::decode_all(body).expect("zstd"),
        Some(other) => panic!("encoding {other}"),
    }
}
