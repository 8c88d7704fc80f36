//! A status and a queue in, export requests out at a real socket.

mod reference;
mod served;
mod spool;

use std::collections::BTreeMap;

use namespan_ebpf::wire::{Counter, Program};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue as Pair;
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};

use super::*;
use crate::config::{self, Export, Metrics};
use crate::model::guard::RESULTS;
use crate::pipeline::GuardTotals;
use crate::queue::{Answer, Batch, Class, Fault, Reason};
use crate::ship::tests::collector::{self, Collector, Received, poll};

/// Long enough for only the last export to happen.
const INTERVAL: Duration = Duration::from_secs(3600);

fn config(address: std::net::SocketAddr, protocol: Protocol) -> Config {
    let path = if protocol == Protocol::Grpc { "" } else { "v1/metrics" };
    let export = Export {
        protocol,
        headers: vec![("x-tenant".parse().unwrap(), "t".parse().unwrap())],
        timeout: Some(Duration::from_secs(10)),
        ..Export::to(format!("http://{address}/{path}").parse().unwrap())
    };
    let metrics = Some(Metrics { export: export.clone(), interval: INTERVAL });
    let attributes = vec![("team".to_owned(), "a".to_owned())];
    Config {
        logs: Some(export),
        metrics,
        resource: config::Resource { service_name: None, attributes },
        ..Config::default()
    }
}

fn start(config: &Config, queues: &[Arc<Queue>]) -> Telemetry {
    let metrics = config.metrics.as_ref().unwrap();
    let shipped = |queue| Shipped::new("main", queue, &metrics.export, 1 << 20);
    Telemetry::start(config, queues.iter().map(shipped).collect()).unwrap().unwrap()
}

/// Triggered is filtered, delivered and lost, in every program.
fn status() -> Status {
    let mut counts = [[0; Counter::ALL.len()]; Program::ALL.len()];
    for (factor, counts) in (1..).zip(&mut counts) {
        counts[Counter::Triggered as usize] = 100 * factor;
        counts[Counter::Filtered as usize] = 60 * factor;
        counts[Counter::Delivered as usize] = 30 * factor;
        counts[Counter::LostRingFull as usize] = 9 * factor;
        counts[Counter::LostUntracked as usize] = factor;
    }
    Status {
        counted: Counted::from_parts(counts, [0, 5, 0]),
        cache: Stats { hits: 7, misses: 3, unresolved: 1, refused: 4, containers: 5, degraded: 1, ..Stats::default() },
        processes: processes::Stats { spans: 9, evictions: 1, lost: 1 },
        undecodable: 2,
        filtered: 6,
        unprinted: 0,
        waiting: 3,
        created: [36, 37],
        notes: 4,
        reloads: Reloads { succeeded: 2, failed: 1 },
        hits: Totals { outcomes: vec![("delivered", 30), ("rate_limited", 9)], triggered: 39, places: 2, skipped: 0 },
        guard: GuardTotals {
            decisions: RESULTS.map(|(_, result)| (("no-shells".to_owned(), result), 1)).into(),
            triggered: 9,
            ring_full: 1,
            ..GuardTotals::default()
        },
    }
}

/// Records with every fate there is: 36 in all.
async fn queue(signal: Signal) -> Arc<Queue> {
    let limits = config::Queue { max_records: Some(20), ..config::Queue::default() };
    let queue = Arc::new(Queue::new(signal, limits));
    let class = if signal == Signal::Logs { Class::Exec } else { Class::Span };
    let push = |records| {
        let batch = Batch::seal(class, records, b"x", Protocol::HttpProtobuf, config::Compression::None);
        queue.push(batch.unwrap());
    };
    for records in [1, 2, 4, 8] {
        push(records);
    }
    std::mem::forget(queue.pop().await.unwrap());
    queue.pop().await.unwrap().deliver(2, 1);
    queue.pop().await.unwrap().lose(Reason::Permanent(Answer::Http(400)), 4);
    queue.discard(1, Reason::Encoding);
    // Pushes the eight out.
    push(20);
    queue
}

/// Values by name and attributes.
fn values(request: &ExportMetricsServiceRequest) -> BTreeMap<String, i64> {
    let metrics = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    let mut values = BTreeMap::new();
    for metric in metrics.flat_map(|scope| &scope.metrics) {
        assert!(!metric.unit.is_empty() && !metric.description.is_empty(), "{metric:?}");
        let points = match &metric.data {
            Some(metric::Data::Sum(sum)) => &sum.data_points,
            Some(metric::Data::Gauge(gauge)) => &gauge.data_points,
            Some(metric::Data::Histogram(_)) => continue,
            other => panic!("{other:?}"),
        };
        for point in points {
            let value = match point.value {
                Some(number_data_point::Value::AsInt(value)) => value,
                // Whole numbers all, but for times.
                #[expect(clippy::cast_possible_truncation, reason = "no test looks at those closely")]
                Some(number_data_point::Value::AsDouble(value)) => value as i64,
                None => panic!("{point:?}"),
            };
            let known = values.insert(format!("{}{:?}", metric.name, texts(&point.attributes)), value);
            assert_eq!(known, None);
        }
    }
    values
}

fn texts(pairs: &[Pair]) -> BTreeMap<&str, String> {
    let mut texts = BTreeMap::new();
    for pair in pairs {
        let text = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(value)) => value.to_string(),
            other => panic!("{other:?}"),
        };
        texts.insert(pair.key.as_str(), text);
    }
    texts
}

fn decoded(received: &Received) -> ExportMetricsServiceRequest {
    match received.header("content-type").unwrap() {
        "application/grpc" => ExportMetricsServiceRequest::decode(&received.body[5..]).unwrap(),
        "application/json" => serde_json::from_slice(&received.body).unwrap(),
        _ => ExportMetricsServiceRequest::decode(&received.body[..]).unwrap(),
    }
}

#[tokio::test]
async fn after_the_last_export_everything_adds_up() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson] {
        let collector = Collector::start([]).await;
        let queues = [queue(Signal::Logs).await, queue(Signal::Traces).await];
        // Tells the two apart.
        queues[1].discard(64, Reason::Encoding);
        let telemetry = start(&config(collector.address, protocol), &queues);
        telemetry.publish(status());
        telemetry.finish(Duration::from_secs(20)).await;

        let received = collector.received();
        let [received] = &received[..] else { panic!("one export expected, not {received:?}") };
        assert_eq!(received.header("x-tenant"), Some("t"));
        let values = values(&decoded(received));
        let sum = |of: &str, with: &str| -> i64 {
            let found = values.iter().filter(|(key, _)| key.starts_with(&format!("{of}{{")) && key.contains(with));
            found.map(|(_, value)| *value).sum()
        };
        for program in ["\"exec\"", "\"exit\"", "\"exec_failed\""] {
            let triggered = sum("namespan.kernel.triggered", program);
            assert!(triggered >= 100);
            assert_eq!(triggered, sum("namespan.kernel.events", program), "{values:#?}");
        }
        assert_eq!(sum("namespan.kernel.events", "kernel_recursion"), 5);
        assert_eq!(sum("namespan.kernel.events", "ring_full"), 9 + 18 + 27);

        for (signal, name, unencoded) in [("log", "\"logs\"", 1), ("span", "\"traces\"", 65)] {
            let exported = format!("otel.sdk.exporter.{signal}.exported");
            let waiting = sum(&format!("otel.sdk.processor.{signal}.queue.size"), "");
            let in_flight = sum(&format!("otel.sdk.exporter.{signal}.inflight"), "");
            let settled = sum(&exported, "");
            assert_eq!((settled, waiting, in_flight), (14 + unencoded, 20, 1), "{values:#?}");
            assert_eq!(sum("namespan.export.accepted", name), settled + waiting + in_flight);
            assert_eq!(sum("namespan.queue.limit", name), 1 << 20);
            assert_eq!(sum("namespan.queue.usage", name), 1);
            for (reason, records) in [("queue_full", 8), ("permanent:400", 4), ("rejected", 1), ("encoding", unencoded)]
            {
                assert_eq!(sum(&exported, reason), records, "{reason}");
            }
            let transport = match protocol {
                Protocol::Grpc => "grpc",
                Protocol::HttpProtobuf => "http",
                Protocol::HttpJson => "http_json",
            };
            let component = format!("\"otlp_{transport}_{signal}_exporter\"");
            assert_eq!((sum(&exported, &component), sum(&exported, "otlp_")), (settled, settled));
            let processor = format!("\"batching_{signal}_processor\"");
            assert_eq!(sum(&format!("otel.sdk.processor.{signal}.queue.size"), &processor), waiting);
        }
        assert_eq!(sum("namespan.container.cache", "\"hit\""), 7);
        assert_eq!(sum("namespan.container.cache", "\"refused\""), 4);
        assert_eq!(sum("namespan.container.count", ""), 5);
        assert_eq!(sum("namespan.runtime.degraded", ""), 1);
        assert_eq!(sum("namespan.events.filtered", ""), 6);
        assert_eq!(sum("namespan.span.begun", ""), 9);
        assert_eq!((sum("otel.sdk.log.created", ""), sum("namespan.span.created", "")), (36, 37));
        assert_eq!((sum("namespan.note.created", ""), sum("namespan.events.waiting", "")), (4, 3));
        assert_eq!(sum("namespan.span.dropped", "\"evicted\""), 1);
        assert_eq!(sum("namespan.config.reloads", "\"succeeded\""), 2);
        assert!(sum("process.memory.usage", "") > 1 << 20);
        assert_eq!(sum("namespan.process.evictions", ""), 1);
        assert_eq!(sum("namespan.events.dropped", "undecodable"), 2);
    }
}

#[tokio::test]
async fn metrics_go_another_way_from_one_moment_on_with_how_long_each_batch_took() {
    for (from, to) in [(Protocol::Grpc, Protocol::HttpProtobuf), (Protocol::HttpJson, Protocol::Grpc)] {
        let [old, new] = [Collector::start([]).await, Collector::start([]).await];
        let queue = queue(Signal::Logs).await;
        let mut telemetry = start(&config(old.address, from), std::slice::from_ref(&queue));
        assert!(telemetry.plan(&config(old.address, from)).is_none());
        let plan = telemetry.plan(&config(new.address, to)).unwrap();
        telemetry.export(tokio::task::spawn_blocking(|| plan.open().unwrap()).await.unwrap());
        assert!(telemetry.plan(&config(new.address, to)).is_none());
        let fault = Fault::Dropped(Reason::Permanent(Answer::Http(400)));
        queue.counters().timed(Duration::from_secs(2), Some(fault), Some(Answer::Http(400)));
        queue.counters().timed(Duration::from_millis(1), None, Some(Answer::Grpc(0)));
        queue.counters().timed(Duration::from_millis(7), None, Some(Answer::Grpc(0)));
        telemetry.finish(Duration::from_secs(20)).await;
        assert_eq!((old.received().len(), new.received().len()), (0, 1), "{from:?} {to:?}");
        let request = decoded(&new.received()[0]);
        let metrics = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        let data = metrics.flat_map(|scope| &scope.metrics).filter_map(|metric| match &metric.data {
            Some(metric::Data::Histogram(data)) => Some((&*metric.name, &*metric.unit, data)),
            _ => None,
        });
        let [("otel.sdk.exporter.operation.duration", "s", histogram)] = data.collect::<Vec<_>>()[..] else { panic!() };
        let mut points = Vec::new();
        for point in &histogram.data_points {
            let texts = texts(&point.attributes);
            let of = |key: &str| texts.get(key).cloned().unwrap_or_default();
            let codes = (of("http.response.status_code"), of("rpc.response.status_code"));
            assert_eq!((of("namespan.destination"), of("server.address")), ("main".into(), "127.0.0.1".into()));
            points.push((of("error.type"), codes, point.count, point.bucket_counts[..2].to_vec()));
        }
        points.sort();
        let none = String::new;
        assert_eq!(
            points,
            [
                (none(), (none(), "OK".into()), 2, vec![1, 1]),
                ("permanent:400".into(), ("400".into(), none()), 1, vec![0, 0])
            ]
        );
    }
}

#[tokio::test]
async fn the_resource_is_the_agent_on_its_host() {
    let collector = Collector::start([]).await;
    let config = config(collector.address, Protocol::HttpProtobuf);
    start(&config, &[queue(Signal::Logs).await]).finish(Duration::from_secs(20)).await;
    let request = decoded(&collector.received()[0]);
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    let found = texts(&resource.attributes);
    let host = Host::detect();
    let instance = host.id.or(host.name.clone());
    assert_eq!((&*found["service.name"], &*found["service.version"]), ("namespan", semconv::VERSION));
    assert_eq!(found.get("service.instance.id"), instance.as_ref());
    assert_eq!((&*found["team"], found.get("host.name")), ("a", host.name.as_ref()));
    assert_eq!(found["telemetry.distro.name"], "namespan");
    assert_eq!(request.resource_metrics[0].schema_url, semconv::SCHEMA_URL);
}

#[tokio::test]
async fn a_collector_that_is_away_or_stalls_holds_up_nothing() {
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stalling = Collector::start([collector::Answer::Stall]).await;
    for (address, protocol) in [away, stalling.address].into_iter().zip([Protocol::HttpProtobuf, Protocol::Grpc]) {
        let queue = queue(Signal::Logs).await;
        let telemetry = start(&config(address, protocol), std::slice::from_ref(&queue));
        telemetry.publish(status());
        let began = Instant::now();
        telemetry.finish(Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert_eq!(queue.counters().snapshot().accepted, 36);
    }
    let telemetry = start(&config(stalling.address, Protocol::HttpProtobuf), &[queue(Signal::Logs).await]);
    let began = Instant::now();
    drop(telemetry);
    assert!(began.elapsed() < Duration::from_secs(4));
    poll("the last export", || stalling.received().len() == 2).await;
}

#[tokio::test]
async fn every_destination_has_metrics_of_its_own() {
    let collector = Collector::start([]).await;
    let config = config(collector.address, Protocol::HttpProtobuf);
    let to = |protocol, url: &str| Export { protocol, ..Export::to(url.parse().unwrap()) };
    let exports = [
        ("main", to(Protocol::HttpProtobuf, "http://a:4318/v1/logs")),
        ("second", to(Protocol::HttpProtobuf, "https://b/v1/logs")),
        ("third", to(Protocol::Grpc, "http://[::1]:4317")),
    ];
    let mut shipped = Vec::new();
    for (index, (name, export)) in exports.iter().enumerate() {
        let queue = queue(Signal::Logs).await;
        queue.discard(1 << index, Reason::Encoding);
        shipped.push(Shipped::new(name, &queue, export, 1000 + index));
    }
    let telemetry = Telemetry::start(&config, Vec::new()).unwrap().unwrap();
    telemetry.ship(shipped);
    let state = State::Failing { reason: "refused".into() };
    let deliveries = vec![Delivery { destination: "second".into(), signal: Signal::Logs, state }];
    telemetry.tell(Condition { deliveries, ..Condition::default() });
    telemetry.finish(Duration::from_secs(20)).await;
    let values = values(&decoded(&collector.received()[0]));
    let of = |name: &str, with: &[&str]| {
        let meant = |key: &str| key.starts_with(&format!("{name}{{")) && with.iter().all(|word| key.contains(word));
        let found: Vec<_> = values.iter().filter(|(key, _)| meant(key)).map(|(_, value)| *value).collect();
        let [value] = found[..] else { panic!("{name} {with:?}: {found:?} of {values:#?}") };
        value
    };
    let exporters = [
        ("otlp_http_log_exporter/0", "main", "\"a\"", "\"4318\""),
        ("otlp_http_log_exporter/1", "second", "\"b\"", "\"443\""),
        ("otlp_grpc_log_exporter/2", "third", "\"::1\"", "\"4317\""),
    ];
    for (index, (component, destination, address, port)) in exporters.into_iter().enumerate() {
        let all = [component, destination, address, port, "\"encoding\""];
        assert_eq!(of("otel.sdk.exporter.log.exported", &all), 1 + (1 << index));
        let processor = format!("batching_log_processor/{index}");
        assert_eq!(of("otel.sdk.processor.log.queue.size", &[&processor, destination]), 20);
        let limit = of("namespan.queue.limit", &[destination, "\"logs\""]);
        assert_eq!(limit, 1000 + i64::try_from(index).unwrap());
    }
    assert_eq!(of("namespan.export.status", &["second", "\"failing\""]), 1);
    assert_eq!(of("namespan.export.status", &["second", "\"losing\""]), 0);
}
