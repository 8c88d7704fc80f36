//! docs/metrics.md is what the instruments say of themselves; `NAMESPAN_BLESS=1 cargo test --lib reference` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use opentelemetry_proto::tonic::metrics::v1::Metric;

use super::*;
use crate::queue::Answer;
use crate::telemetry::prometheus::{self, Kind, Points, Scrape};

const INTRODUCTION: &str = "# What Namespan says of itself: health, losses, metrics

Written by a test (`exporter/src/telemetry/tests/reference.rs`), the metrics from the code that makes them; do not edit.

## Health

Where `listen` is set, these answer to GET and HEAD over plain HTTP, a connection for each request, 16 at a time:

| path | 200 | 503 |
|---|---|---|
| `/healthz` | the pipeline has made progress within 5 s, or drains | it hangs |
| `/readyz` | attached, attributing, delivering | a line for each thing that is not, with the reason |
| `/metrics` | the metrics below, for Prometheus | |

Attached: the programs are, until the drain begins. Attributing: each runtime that was there answers. Delivering: no destination
is failing (its requests are sent again), losing records or refusing the signal; one that nothing was sent to yet is no
obstacle. Where a file that is to be probed has not answered for 5 s, that is a line too. Under systemd, `systemctl status` shows the first obstacle.

## Losses

A gap in the records is a record: `namespan.telemetry.lost`, severity 17 (ERROR), under Namespan's own resource. The counts of
all of them are what the counters have lost.

| attribute | what |
|---|---|
| `namespan.lost.stage` | `kernel`, `guard` (decisions without a record, execs without a decision), `uprobe`, `decode` (read from the ring, or not, and not understood), `processes` (spans whose process was forgotten), `queue`, `spool` or `collector` |
| `namespan.reason` | as in `namespan.kernel.events` and `otel.sdk.exporter.*.exported` |
| `namespan.lost.count` | events before the queue, log records or spans from there on |
| `namespan.lost.start`, `.end` | ISO 8601: it was lost after the one and before the other, within a second; not when it happened |
| `namespan.destination`, `namespan.signal` | whose queue or collector it was |

It is told within a second or two; of what a destination loses, when it takes something again, as one record for the whole time,
or after a minute if only others do. What is not told yet is told at the end, as far as somebody takes it. Such records
can be lost too, and are counted, but are no reason for further ones. Of what a console misses there is no record.

## Metrics

They are exported over OTLP with `OTEL_METRICS_EXPORTER=otlp`, and served on `/metrics` for Prometheus where `listen` is set.
Names without `namespan.` are those of the OpenTelemetry semantic conventions. What `namespan.runtime.degraded` and
`namespan.export.status` say in numbers, `/readyz` says in words.

**What adds up**, at rest:

- in the kernel, for each program: `namespan.kernel.triggered` = `namespan.kernel.events` over all outcomes, which are
  `delivered`, `filtered`, and the reasons why an event was lost;
- behind it: `delivered` = `otel.sdk.log.created` - `namespan.note.created` + `namespan.events.filtered` +
  `namespan.events.waiting` + `namespan.events.dropped` with `undecodable`, where log records are wanted;
- of the guard, where it runs: `namespan.guard.decisions` = its records, which are in `otel.sdk.log.created` too, and
  `namespan.guard.dropped` with `ring_full`;
- of every destination: `namespan.export.accepted` = `otel.sdk.log.created`, of spans `namespan.span.created`;
- for each destination and signal: `namespan.export.accepted` + `namespan.spool.recovered` = `otel.sdk.exporter.*.exported` (without `error.type`: delivered;
  with it: rejected, or dropped for that reason) + `otel.sdk.processor.*.queue.size` + `otel.sdk.exporter.*.inflight` +
  `namespan.spool.size`.

";

/// What has more values than the page can list.
const OPEN: [(&str, &str); 7] = [
    (semconv::SECURITY_RULE_NAME, "name of a policy"),
    (semconv::DESTINATION, "name of a destination"),
    (semconv::OTEL_COMPONENT_NAME, "the type and a number"),
    (semconv::SERVER_ADDRESS, "host of the endpoint, or its socket"),
    (semconv::SERVER_PORT, "its port"),
    (semconv::HTTP_RESPONSE_STATUS_CODE, "of the last answer"),
    (semconv::RPC_RESPONSE_STATUS_CODE, "of the last answer"),
];

#[tokio::test]
async fn the_page_of_metrics_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = page(&everything().await);
    if std::env::var_os("NAMESPAN_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let on_file = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(on_file, page, "docs/metrics.md is not up to date: NAMESPAN_BLESS=1 cargo test --lib reference");
}

/// All metrics with all attributes that there are.
async fn everything() -> Vec<Metric> {
    let mut shipped = Vec::new();
    let url = "http://a:4318/".parse().unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson] {
        for signal in [Signal::Logs, Signal::Traces] {
            let queue = queue(signal).await;
            for reason in reasons() {
                queue.discard(1, reason);
            }
            let export = Export { protocol, ..Export::to(Clone::clone(&url)) };
            shipped.push(Shipped::new(&format!("{protocol:?}"), &queue, &export, 1));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let settings = config::Spool::at(directory.path().join("spool"));
    for signal in [Signal::Logs, Signal::Traces] {
        let queue = Queue::open(signal, "spooled", config::Queue::default(), Some(&settings)).unwrap();
        shipped.push(Shipped::new("spooled", &Arc::new(queue), &Export::to(Clone::clone(&url)), 1));
    }
    let shared = Arc::new(Shared::new());
    *lock(&shared.status) = Some(status());
    let delivery = |signal| Delivery { destination: "main".into(), signal, state: State::Untried };
    lock(&shared.condition).deliveries = [Signal::Logs, Signal::Traces].map(delivery).into();
    let scrape = Scrape::default();
    let provider = SdkMeterProvider::builder().with_reader(scrape.clone()).build();
    let durations = instruments::register(&provider.meter_with_scope(scope()), &shared);
    instruments::time(&durations, &shipped);
    for shipped in &shipped {
        // What goes from the queue or the disk was never sent.
        let is_unsent = |reason| matches!(reason, Reason::QueueFull | Reason::SpoolFull | Reason::SpoolCorrupt);
        let faults = reasons().filter(|reason| !is_unsent(*reason)).map(Fault::Dropped).chain([Fault::Rejected]);
        let answer = if shipped.protocol == Protocol::Grpc { Answer::Grpc(0) } else { Answer::Http(200) };
        for fault in faults.map(Some).chain([None]) {
            shipped.queue.counters().timed(Duration::ZERO, fault, Some(answer));
        }
    }
    *lock(&shared.shipped) = shipped;
    let resource_metrics = scrape.observed().resource_metrics;
    let scopes = resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    let mut metrics: Vec<_> = scopes.flat_map(|scope| scope.metrics).collect();
    metrics.sort_by(|one, other| one.name.cmp(&other.name));
    metrics
}

/// One of each kind.
fn reasons() -> impl Iterator<Item = Reason> {
    // Whoever adds one is led here.
    let next = |reason: &Reason| match reason {
        Reason::QueueFull => Some(Reason::Permanent(Answer::Http(400))),
        Reason::Permanent(_) => Some(Reason::RetryExpired),
        Reason::RetryExpired => Some(Reason::TooLarge),
        Reason::TooLarge => Some(Reason::Unimplemented),
        Reason::Unimplemented => Some(Reason::Shutdown),
        Reason::Shutdown => Some(Reason::Encoding),
        Reason::Encoding => Some(Reason::SpoolFull),
        Reason::SpoolFull => Some(Reason::SpoolExpired),
        Reason::SpoolExpired => Some(Reason::SpoolCorrupt),
        Reason::SpoolCorrupt => None,
    };
    std::iter::successors(Some(Reason::QueueFull), next)
}

fn page(metrics: &[Metric]) -> String {
    let mut page = INTRODUCTION.to_owned();
    page += "| metric | Prometheus | type | unit | attributes |\n|---|---|---|---|---|\n";
    for metric in metrics {
        let (kind, points) = prometheus::points(metric).unwrap();
        let of_sum = match &metric.data {
            Some(metric::Data::Sum(_)) => true,
            Some(metric::Data::Gauge(_) | metric::Data::Histogram(_)) => false,
            other => panic!("{other:?}"),
        };
        let instrument = match (kind, of_sum) {
            (Kind::Counter, _) => "counter",
            (Kind::Gauge, true) => "up-down counter",
            (Kind::Gauge, false) => "gauge",
            (Kind::Histogram, _) => "histogram",
        };
        let attributes: Vec<_> = match points {
            Points::Numbers(points) => points.iter().map(|point| &point.attributes).collect(),
            Points::Histograms(points) => points.iter().map(|point| &point.attributes).collect(),
        };
        assert!(!metric.unit.is_empty() && !metric.description.is_empty() && !attributes.is_empty(), "{metric:?}");
        let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for attributes in attributes {
            for (key, value) in texts(attributes) {
                // Of the codes that a collector may refuse with, one stands for all.
                let value = if value == "permanent:400" { "permanent:CODE".to_owned() } else { value };
                values.entry(key).or_default().insert(format!("`{value}`"));
            }
        }
        let attributes = values.iter().map(|(key, values)| {
            let open = OPEN.iter().find(|(open, _)| open == key).map(|(_, meaning)| (*meaning).to_owned());
            let values = open.unwrap_or_else(|| values.iter().cloned().collect::<Vec<_>>().join(" "));
            format!("`{key}`: {values}")
        });
        let attributes: Vec<_> = attributes.collect();
        let (name, prometheus_name) = (&metric.name, prometheus::name(metric, kind));
        writeln!(
            page,
            "| `{name}`<br>{} | `{prometheus_name}` | {instrument} | `{}` | {} |",
            metric.description,
            metric.unit,
            attributes.join("<br>")
        )
        .unwrap();
    }
    page
}
