//! Whatever is lost between the kernel and a collector is told to the collector, to the last record.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use namespan::config::{Batch, Compression, Config, Console, Export, Probes, Queue};
use namespan::pipeline::{Pipeline, Reload, Summary};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::watch::{ready, slowness};
use crate::workload::{BUSYBOX, run, run_true, token};

const PATIENCE: Duration = Duration::from_secs(60);
const LOST: &str = "namespan.telemetry.lost";

/// A collector that is away, until it is there.
#[derive(Clone, Default)]
struct Collector {
    is_there: Arc<AtomicBool>,
    records: Arc<Mutex<Vec<LogRecord>>>,
}

impl Collector {
    async fn serve(self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let collector = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| collector.answer(request));
                http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.ok();
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(Full::default());
        if self.is_there.load(Ordering::SeqCst) {
            let sent = ExportLogsServiceRequest::decode(body).unwrap();
            let scopes = sent.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
            self.records.lock().unwrap().extend(scopes.flat_map(|scope| scope.log_records));
        } else {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }

    /// What it was told of losses: how many records, by stage and reason.
    fn losses(&self) -> BTreeMap<(String, String), u64> {
        let mut losses = BTreeMap::new();
        for record in self.records.lock().unwrap().iter().filter(|record| record.event_name == LOST) {
            let [stage, reason] = ["namespan.lost.stage", "namespan.reason"].map(|key| text(record, key));
            let Some(Value::IntValue(count)) = value(record, "namespan.lost.count") else { panic!("{record:?}") };
            assert!(text(record, "namespan.lost.start") <= text(record, "namespan.lost.end"), "{record:?}");
            assert_eq!(record.severity_number, 17);
            if stage == "queue" {
                let of = ["namespan.destination", "namespan.signal"].map(|key| text(record, key));
                assert_eq!(of, ["main", "logs"]);
            }
            *losses.entry((stage, reason)).or_default() += u64::try_from(count).unwrap();
        }
        losses
    }
}

fn value(record: &LogRecord, key: &str) -> Option<Value> {
    record.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.clone()
}

fn text(record: &LogRecord, key: &str) -> String {
    let Some(Value::StringValue(text)) = value(record, key) else { panic!("no {key} in {record:?}") };
    text
}

/// Status line and body.
pub fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: namespan\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE * slowness();
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        // Something that happens, and takes its time.
        run(Command::new(BUSYBOX).args(["usleep", "20000"]));
    }
}

#[test]
fn every_loss_between_the_kernel_and_the_collector_is_told_to_the_last_record() {
    if !ready() {
        return;
    }
    let [listener, free] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let (collector, listen) = (Collector::default(), free.local_addr().unwrap());
    drop(free);
    let endpoint = format!("http://{}/v1/logs", listener.local_addr().unwrap());
    let config = Config {
        console: Console::None,
        probes: Probes { ring_bytes: 64 << 10, ..Probes::default() },
        logs: Some(Export { compression: Compression::None, ..Export::to(endpoint.parse().unwrap()) }),
        listen: Some(listen),
        batch: Batch { max_records: 5, delay: Duration::from_millis(20), ..Batch::default() },
        queue: Queue { max_bytes: 24 << 10, drain: PATIENCE * slowness(), ..Queue::default() },
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let summary = runtime.block_on(async {
        tokio::spawn(collector.clone().serve(listener));
        let mut pipeline = Box::pin(Pipeline::start(&config)).await.unwrap();
        let token = token();
        let overflowing = token.clone();
        // The collector is away: the queue overflows.
        let workload = tokio::task::spawn_blocking(move || {
            for _ in 0..100 {
                run_true(BUSYBOX, &overflowing);
            }
            wait_until("not ready", || {
                let answer = ask(listen, "/readyz");
                answer.starts_with("HTTP/1.1 503") && answer.contains("not delivering logs to main")
            });
            assert!(ask(listen, "/healthz").starts_with("HTTP/1.1 200"));
        });
        pipeline.run(async { workload.await.unwrap() }, no_reloads()).await;
        // Nobody reads the ring: it overflows too.
        for _ in 0..300 {
            run_true(BUSYBOX, &token);
        }
        collector.is_there.store(true, Ordering::SeqCst);
        let seen_from_outside = collector.clone();
        let workload = tokio::task::spawn_blocking(move || {
            let stages = || seen_from_outside.losses().into_keys().map(|(stage, _)| stage).collect::<Vec<_>>();
            wait_until("the losses are told", || stages() == ["kernel", "queue"]);
            wait_until("delivering", || !ask(listen, "/readyz").contains("not delivering"));
            let metrics = ask(listen, "/metrics");
            assert!(metrics.contains("\nnamespan_kernel_events_total{namespan_outcome=\"ring_full\""), "{metrics}");
        });
        pipeline.run(async { workload.await.unwrap() }, no_reloads()).await;
        Box::pin(pipeline.finish()).await
    });
    adds_up(&summary, &collector);
}

fn no_reloads() -> mpsc::Receiver<Reload> {
    mpsc::channel(1).1
}

fn adds_up(summary: &Summary, collector: &Collector) {
    let Summary { events, .. } = summary;
    let [(_, shipped)] = &events.shipped[..] else { panic!("{summary}") };
    assert_eq!(shipped.accepted, shipped.exported + shipped.dropped_total(), "{summary}");
    assert_eq!(events.seen, shipped.accepted + events.dropped.values().sum::<u64>(), "{summary}");
    assert_eq!(shipped.exported, collector.records.lock().unwrap().len() as u64, "{summary}");
    let early = events.dropped.iter().map(|(reason, lost)| (("kernel".to_owned(), reason.clone()), *lost));
    let late = shipped.dropped.iter().map(|(reason, lost)| (("queue".to_owned(), reason.to_string()), *lost));
    let lost: BTreeMap<_, _> = early.chain(late).collect();
    assert_eq!(collector.losses(), lost, "{summary}");
    let reasons: Vec<_> = lost.keys().map(|(_, reason)| reason.as_str()).collect();
    assert!(reasons.contains(&"ring_full") && reasons.contains(&"queue_full"), "{summary}");
}
