//! Our own counters come in about once a second, OTLP metrics go out now and then: through the OpenTelemetry SDK, which
//! carries nothing else. Events never wait for it, and are not lost with it.

mod exporter;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use namespan_ebpf::wire::Program;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prost::Message as _;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::attach::Counted;
use crate::config::{Config, Metrics, Protocol, Signal};
use crate::enrich::Stats;
use crate::model::resource::{Host, Subject, encode_resource};
use crate::model::semconv;
use crate::processes;
use crate::queue::Queue;
use crate::ship::ShipError;
use exporter::Exporter;

/// How old what is exported may be.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub enum TelemetryError {
    #[error("metrics")]
    Ship(#[from] ShipError),
    #[error("metrics")]
    Exporter(#[from] ExporterBuildError),
}

/// What the pipeline knows of itself; the queue is asked when it is time.
#[derive(Clone, Copy, Debug)]
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
    pub at: Instant,
}

/// The exporter of our own metrics. Dropping it ends it without a wait.
#[derive(Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
    provider: Option<SdkMeterProvider>,
}

#[derive(Debug)]
struct Shared {
    status: Mutex<Option<Status>>,
    shipped: Vec<Shipped>,
}

/// What ships the signal of its queue.
#[derive(Debug)]
pub struct Shipped {
    pub queue: Arc<Queue>,
    pub protocol: Protocol,
}

impl Telemetry {
    /// Within a tokio runtime only. `shipped`: no signal twice.
    pub fn start(metrics: &Metrics, config: &Config, shipped: Vec<Shipped>) -> Result<Self, TelemetryError> {
        let exporter = Exporter::new(&metrics.export, metrics.interval)?;
        let provider = SdkMeterProvider::builder()
            .with_resource(resource(&Host::detect(), config))
            .with_reader(PeriodicReader::builder(exporter).with_interval(metrics.interval).build())
            .build();
        let shared = Arc::new(Shared { status: Mutex::default(), shipped });
        instruments(&provider, &shared);
        Ok(Self { shared, provider: Some(provider) })
    }

    /// Whether what was published last is too old.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.shared.status().is_none_or(|status| now.saturating_duration_since(status.at) >= FRESH)
    }

    pub fn publish(&mut self, status: Status) {
        *self.shared.status() = Some(status);
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
    fn status(&self) -> MutexGuard<'_, Option<Status>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every metric, once: name, unit, meaning. At rest these add up:
/// `namespan.kernel.triggered` is the sum of `namespan.kernel.events` over its outcomes, and `otel.sdk.log.created` that of
/// `otel.sdk.exporter.log.exported` (with and without `error.type`), `.inflight` and the queue's size; so for spans.
fn instruments(provider: &SdkMeterProvider, shared: &Arc<Shared>) {
    let scope = InstrumentationScope::builder(semconv::SCOPE_TELEMETRY)
        .with_version(semconv::VERSION)
        .with_schema_url(semconv::SCHEMA_URL)
        .build();
    let meter = provider.meter_with_scope(scope);
    let counter = |name, unit, description, observe: fn(&Shared, &Observer<'_, u64>)| {
        let shared = Arc::clone(shared);
        let callback = move |observer: &Observer<'_, u64>| observe(&shared, observer);
        let builder = meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        builder.with_callback(callback).build();
    };
    let gauge = |name, unit, description, value: fn(&Status) -> f64| {
        let shared = Arc::clone(shared);
        let callback = move |observer: &Observer<'_, f64>| {
            if let Some(status) = shared.status().as_ref() {
                observer.observe(value(status), &[]);
            }
        };
        let builder = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        builder.with_callback(callback).build();
    };
    counter("namespan.kernel.triggered", "{event}", "Events that happened, before any filter", |shared, observer| {
        let Some(status) = *shared.status() else { return };
        for program in Program::ALL {
            observer.observe(status.counted.triggered(program), &[name_of(program)]);
        }
    });
    let meaning = "What became of events in the kernel: delivered, filtered, or lost for the reason given";
    counter("namespan.kernel.events", "{event}", meaning, |shared, observer| {
        let Some(status) = *shared.status() else { return };
        for program in Program::ALL {
            for (outcome, events) in status.counted.outcomes(program) {
                observer.observe(events, &[name_of(program), KeyValue::new(semconv::OUTCOME, outcome)]);
            }
        }
    });
    let meaning = "Delivered events that were lost on their way to the queue or to the console";
    counter("namespan.events.dropped", "{event}", meaning, |shared, observer| {
        let Some(status) = *shared.status() else { return };
        for (reason, events) in [("undecodable", status.undecodable), ("console_slow", status.unprinted)] {
            observer.observe(events, &[KeyValue::new(semconv::ERROR_TYPE, reason)]);
        }
    });
    let meaning = "Delivered events of containers that are not wanted, before the kernel side was told so";
    counter("namespan.events.filtered", "{event}", meaning, |shared, observer| {
        let Some(status) = *shared.status() else { return };
        observer.observe(status.filtered, &[]);
    });
    let meaning = "What happened in the cache of containers; one record may count under several outcomes";
    counter("namespan.container.cache", "{occurrence}", meaning, |shared, observer| {
        let Some(Status { cache, .. }) = *shared.status() else { return };
        let counts = [
            ("hit", cache.hits),
            ("miss", cache.misses),
            ("eviction", cache.evictions),
            ("cgroup_eviction", cache.cgroup_evictions),
            ("unresolved", cache.unresolved),
            ("refused", cache.refused),
            ("lookup_refused", cache.lookups_refused),
        ];
        for (outcome, count) in counts {
            observer.observe(count, &[KeyValue::new(semconv::OUTCOME, outcome)]);
        }
    });
    let meaning = "Containers that are remembered";
    gauge("namespan.container.count", "{container}", meaning, |status| f64::from(status.cache.containers));
    let meaning = "Runtimes that should tell of their containers, and do not";
    gauge("namespan.runtime.degraded", "{runtime}", meaning, |status| f64::from(status.cache.degraded));
    let meaning = "How long the container that was last forgotten for want of room had been remembered";
    gauge("namespan.container.eviction.age", "s", meaning, |status| status.cache.evicted_age.as_secs_f64());
    let meaning = "Spans that have begun, sampled or not";
    counter("namespan.span.begun", "{span}", meaning, |shared, observer| {
        let Some(status) = *shared.status() else { return };
        observer.observe(status.processes.spans, &[]);
    });
    let meaning = "Live processes forgotten for want of room: their exits lack the program's name, and their span";
    counter("namespan.process.evictions", "{process}", meaning, |shared, observer| {
        let Some(status) = *shared.status() else { return };
        observer.observe(status.processes.evictions, &[]);
    });
    for shipped in &shared.shipped {
        signal_instruments(&meter, shipped);
    }
}

/// What the metrics of one signal are called.
struct Names {
    items: &'static str,
    unit: &'static str,
    created: &'static str,
    queue_size: &'static str,
    in_flight: &'static str,
    exported: &'static str,
    processor: &'static str,
    /// By protocol: gRPC, protobuf over HTTP, JSON over HTTP.
    exporters: [&'static str; 3],
}

const LOGS: Names = Names {
    items: "Log records",
    unit: "{log_record}",
    created: "otel.sdk.log.created",
    queue_size: "otel.sdk.processor.log.queue.size",
    in_flight: "otel.sdk.exporter.log.inflight",
    exported: "otel.sdk.exporter.log.exported",
    processor: "batching_log_processor",
    exporters: ["otlp_grpc_log_exporter", "otlp_http_log_exporter", "otlp_http_json_log_exporter"],
};

const SPANS: Names = Names {
    items: "Spans",
    unit: "{span}",
    // Not `otel.sdk.span.started`, which counts spans at their start and those that are not sampled too.
    created: "namespan.span.created",
    queue_size: "otel.sdk.processor.span.queue.size",
    in_flight: "otel.sdk.exporter.span.inflight",
    exported: "otel.sdk.exporter.span.exported",
    processor: "batching_span_processor",
    exporters: ["otlp_grpc_span_exporter", "otlp_http_span_exporter", "otlp_http_json_span_exporter"],
};

/// Those of one signal that is shipped.
fn signal_instruments(meter: &Meter, shipped: &Shipped) {
    let names = match shipped.queue.signal() {
        Signal::Logs => LOGS,
        Signal::Traces => SPANS,
    };
    let [grpc, http, http_json] = names.exporters;
    let exporter = component(match shipped.protocol {
        Protocol::Grpc => grpc,
        Protocol::HttpProtobuf => http,
        Protocol::HttpJson => http_json,
    });
    let describe = |meaning| format!("{} {meaning}", names.items);
    let queue = Arc::clone(&shipped.queue);
    meter
        .u64_observable_counter(names.created)
        .with_unit(names.unit)
        .with_description(describe("given to the export queue"))
        .with_callback(move |observer| observer.observe(queue.counters().snapshot().accepted, &[]))
        .build();
    let (queue, attributes) = (Arc::clone(&shipped.queue), component(names.processor));
    meter
        .i64_observable_up_down_counter(names.queue_size)
        .with_unit(names.unit)
        .with_description(describe("that wait in the export queue"))
        .with_callback(move |observer| observer.observe(signed(queue.depth().records), &attributes))
        .build();
    let (queue, attributes) = (Arc::clone(&shipped.queue), exporter.clone());
    meter
        .i64_observable_up_down_counter(names.in_flight)
        .with_unit(names.unit)
        .with_description(describe("that were sent or are to be sent again, and are not settled"))
        .with_callback(move |observer| observer.observe(signed(queue.counters().snapshot().in_flight), &attributes))
        .build();
    let queue = Arc::clone(&shipped.queue);
    meter
        .u64_observable_counter(names.exported)
        .with_unit(names.unit)
        .with_description(describe("that are settled; with error.type: rejected, or dropped, be it in the queue"))
        .with_callback(move |observer| {
            let counters = queue.counters().snapshot();
            observer.observe(counters.exported, &exporter);
            let dropped = counters.dropped.iter().map(|(reason, records)| (reason.to_string(), *records));
            for (reason, records) in dropped.chain([("rejected".to_owned(), counters.rejected)]) {
                let [kind, name] = exporter.clone();
                observer.observe(records, &[kind, name, KeyValue::new(semconv::ERROR_TYPE, reason)]);
            }
        })
        .build();
}

/// What a callback of an instrument observes with.
type Observer<'a, T> = dyn AsyncInstrument<T> + 'a;

fn signed(records: u64) -> i64 {
    records.try_into().unwrap_or(i64::MAX)
}

fn component(kind: &'static str) -> [KeyValue; 2] {
    let name = format!("{kind}/0");
    [KeyValue::new(semconv::OTEL_COMPONENT_TYPE, kind), KeyValue::new(semconv::OTEL_COMPONENT_NAME, name)]
}

fn name_of(program: Program) -> KeyValue {
    let name = match program {
        Program::Exec => "exec",
        Program::Exit => "exit",
        Program::ExecFailed => "exec_failed",
    };
    KeyValue::new(semconv::PROGRAM, name)
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
