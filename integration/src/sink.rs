//! An OTLP/HTTP receiver that keeps every log record and every span it is sent.

use std::convert::Infallible;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{NumberDataPoint, number_data_point};
use opentelemetry_proto::tonic::resource::v1;
use prost::Message;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::attribute::{Attributes, Value, attributes};
use crate::span::{Span, hex, spans};
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
    /// 32 hexadecimal digits; empty: it belongs to no trace.
    pub trace_id: String,
    /// 16 hexadecimal digits, or empty.
    pub span_id: String,
    pub flags: u32,
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

impl Resource {
    pub(crate) fn new(resource: Option<v1::Resource>, schema_url: String) -> Arc<Self> {
        Arc::new(Self { attributes: attributes(resource.unwrap_or_default().attributes), schema_url })
    }
}

impl Scope {
    pub(crate) fn new(scope: Option<InstrumentationScope>, schema_url: String) -> Self {
        let scope = scope.unwrap_or_default();
        Self { name: scope.name, version: scope.version, schema_url }
    }
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

    /// Namespan's own, of records that are missing.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.event == "namespan.telemetry.lost"
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
        let resource = Resource::new(logs.resource, logs.schema_url);
        for logs in logs.scope_logs {
            let scope = Scope::new(logs.scope, logs.schema_url);
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
                trace_id: hex(&record.trace_id),
                span_id: hex(&record.span_id),
                flags: record.flags,
            }));
        }
    }
    records
}

/// What `--console jsonl` prints: a request a line, of either service.
#[must_use]
pub fn lines(stdout: &[u8]) -> (Vec<Record>, Vec<Span>) {
    let (mut all_records, mut all_spans) = (Vec::new(), Vec::new());
    for line in stdout.split_inclusive(|byte| *byte == b'\n') {
        let request: serde_json::Value = serde_json::from_slice(line).expect("a JSON object a line");
        if request.get("resourceSpans").is_some() {
            all_spans.extend(spans(serde_json::from_value(request).expect("OTLP/JSON")));
        } else {
            assert!(request.get("resourceLogs").is_some(), "{request} is a request of neither service");
            all_records.extend(records(serde_json::from_value(request).expect("OTLP/JSON")));
        }
    }
    (all_records, all_spans)
}

/// What a collector takes, each at a path of its own.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    Logs,
    Traces,
}

impl Service {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/v1/logs" => Some(Self::Logs),
            "/v1/traces" => Some(Self::Traces),
            _ => None,
        }
    }
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
    received: Watched<Received>,
    /// By service; 0: what comes is kept.
    answers: [AtomicU16; 2],
}

/// One entry for each request.
#[derive(Debug, Default)]
struct Received {
    logs: Vec<Vec<Record>>,
    spans: Vec<Vec<Span>>,
    /// The newest request.
    metrics: ExportMetricsServiceRequest,
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
        self.answer(Service::Logs, status);
        self.answer(Service::Traces, status);
    }

    /// Answers all of this service that follows with this status, be it a success, and keeps nothing of it.
    pub fn answer(&self, service: Service, status: StatusCode) {
        self.shared.answers[service as usize].store(status.as_u16(), Relaxed);
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All records so far, request by request.
    #[must_use]
    pub fn requests(&self) -> Vec<Vec<Record>> {
        self.shared.received.lock().logs.clone()
    }

    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.shared.received.lock().logs.iter().flatten().cloned().collect()
    }

    /// All records and spans so far, which are forgotten here.
    #[must_use]
    pub fn take(&self) -> (Vec<Record>, Vec<Span>) {
        let mut received = self.shared.received.lock();
        let (logs, spans) = (std::mem::take(&mut received.logs), std::mem::take(&mut received.spans));
        (logs.into_iter().flatten().collect(), spans.into_iter().flatten().collect())
    }

    /// Stops listening. All that was acknowledged and not taken.
    #[must_use]
    pub fn end(mut self) -> (Vec<Record>, Vec<Span>) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        self.take()
    }

    /// What is to be known of the records so far, which are not copied.
    pub fn seen<R>(&self, answer: impl FnOnce(&[&Record]) -> R) -> R {
        answer(&self.shared.received.lock().logs.iter().flatten().collect::<Vec<_>>())
    }

    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.shared.received.lock().spans.iter().flatten().cloned().collect()
    }

    /// Waits for the first answer that is not `None`; panics when there is none in time.
    pub fn wait_for<R>(&self, what: &str, time: Duration, answer: impl Fn(&[&Record]) -> Option<R>) -> R {
        self.wait(what, time, |received| answer(&received.logs.iter().flatten().collect::<Vec<_>>()))
    }

    /// The same, of spans.
    pub fn wait_for_spans<R>(&self, what: &str, time: Duration, answer: impl Fn(&[&Span]) -> Option<R>) -> R {
        self.wait(what, time, |received| answer(&received.spans.iter().flatten().collect::<Vec<_>>()))
    }

    /// Waits for so many records of any kind; more are a failure too.
    #[must_use]
    pub fn wait_for_count(&self, count: usize, time: Duration) -> Vec<Record> {
        self.wait_for(&format!("{count} records"), time, |records| (records.len() >= count).then_some(()));
        let records = self.records();
        assert_eq!(records.len(), count);
        records
    }

    /// Waits for so many spans; more are a failure too.
    #[must_use]
    pub fn wait_for_span_count(&self, count: usize, time: Duration) -> Vec<Span> {
        self.wait_for_spans(&format!("{count} spans"), time, |spans| (spans.len() >= count).then_some(()));
        let spans = self.spans();
        assert_eq!(spans.len(), count);
        spans
    }

    /// The newest value of a sum of integers, over all its points with this attribute; 0: there is none.
    #[must_use]
    pub fn metric(&self, name: &str, attribute: (&str, &str)) -> i64 {
        let received = self.shared.received.lock();
        let scopes = received.metrics.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| &scope.metrics).filter(|metric| metric.name == name);
        let points = metrics.filter_map(|metric| {
            let Data::Sum(sum) = metric.data.as_ref()? else { return None };
            Some(&sum.data_points)
        });
        let has = |point: &&NumberDataPoint| {
            attributes(point.attributes.clone()).get(attribute.0) == Some(&attribute.1.into())
        };
        let value = |point: &NumberDataPoint| match point.value {
            Some(number_data_point::Value::AsInt(value)) => value,
            _ => 0,
        };
        points.flatten().filter(has).map(value).sum()
    }

    fn wait<R>(&self, what: &str, time: Duration, answer: impl Fn(&Received) -> Option<R>) -> R {
        self.shared.received.wait(time, answer).unwrap_or_else(|| {
            let (records, spans) = (self.records().len(), self.spans().len());
            panic!("not in time: {what}; {records} records and {spans} spans came")
        })
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
    let service = Service::at(head.uri.path()).filter(|_| head.method == Method::POST);
    let given = service.map_or(0, |service| shared.answers[service as usize].load(Relaxed));
    let status = match (service, body.collect().await) {
        (_, Err(_)) => StatusCode::BAD_REQUEST,
        (None, Ok(body)) if head.uri.path() == "/v1/metrics" => {
            let metrics = decoded::<ExportMetricsServiceRequest>(&head, &body.to_bytes());
            shared.received.change(|received| received.metrics = metrics);
            StatusCode::OK
        }
        (None, Ok(_)) => StatusCode::NOT_FOUND,
        (Some(_), Ok(_)) if given != 0 => StatusCode::from_u16(given).unwrap(),
        (Some(Service::Logs), Ok(body)) => {
            let records = records(decoded::<ExportLogsServiceRequest>(&head, &body.to_bytes()));
            shared.received.change(|received| received.logs.push(records));
            StatusCode::OK
        }
        (Some(Service::Traces), Ok(body)) => {
            let spans = spans(decoded::<ExportTraceServiceRequest>(&head, &body.to_bytes()));
            shared.received.change(|received| received.spans.push(spans));
            StatusCode::OK
        }
    };
    // An empty message is a response without partial success.
    let response = Response::builder().status(status).header(CONTENT_TYPE, "application/x-protobuf");
    Ok(response.body(Full::default()).unwrap())
}

fn decoded<M: Message + Default + DeserializeOwned>(head: &Parts, body: &[u8]) -> M {
    let encoding = head.headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap());
    let plain = plain(encoding, body);
    if head.headers.get(CONTENT_TYPE).is_some_and(|value| value == "application/json") {
        serde_json::from_slice(&plain).expect("OTLP/JSON")
    } else {
        M::decode(&*plain).expect("OTLP")
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Code, Link};

    #[test]
    fn json_lines_of_either_service_are_told_apart() {
        let printed = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"eventName":"namespan.process.exec","flags":3,"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331"},{}]}]}]}
{"resourceSpans":[{"resource":{"attributes":[{"key":"host.name","value":{"stringValue":"here"}}]},"scopeSpans":[{"scope":{"name":"namespan.exec"},"spans":[{"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331","parentSpanId":"","flags":259,"name":"ls","kind":1,"startTimeUnixNano":"1795558811807894446","endTimeUnixNano":"1795558811807894447","attributes":[{"key":"process.pid","value":{"intValue":"7"}}],"links":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7"}],"status":{"code":2,"message":"killed by SIGKILL"}}]}]}]}
"#;
        let (records, spans) = lines(printed.as_bytes());
        assert_eq!(records.len(), 2);
        assert!(records[0].is_exec());
        assert_eq!((records[0].trace_id.as_str(), records[0].flags), ("0af7651916cd43dd8448eb211c80319c", 3));
        assert_eq!((records[1].trace_id.as_str(), records[1].span_id.as_str(), records[1].flags), ("", "", 0));
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((&span.trace_id, &span.span_id), (&records[0].trace_id, &records[0].span_id));
        assert_eq!((span.name.as_str(), span.pid(), span.parent_span_id.as_str()), ("ls", 7, ""));
        assert_eq!((span.trace_flags(), span.is_remote()), (3, false));
        assert_eq!((span.start_ns, span.end_ns), (1_795_558_811_807_894_446, 1_795_558_811_807_894_447));
        assert_eq!((span.status.code, span.status.message.as_str()), (Code::Error, "killed by SIGKILL"));
        assert_eq!(*span.of_resource("host.name"), "here".into());
        let link = Link {
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            span_id: "00f067aa0ba902b7".to_owned(),
            attributes: Attributes::new(),
        };
        assert_eq!(span.links, [link]);
    }
}
