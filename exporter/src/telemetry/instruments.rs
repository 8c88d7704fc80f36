//! Every metric, once: name, unit, meaning. What is observed comes from what the pipeline has told last, and from the
//! queues.
//!
//! What adds up stands in docs/metrics.md, which a test writes from here.

use std::sync::Arc;

use namespan_ebpf::wire::Program;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter};

use super::health::State;
use super::{Shared, Shipped, Status, lock, name_of, process};
use crate::config::{Protocol, Signal};
use crate::model::semconv;
use crate::queue::{Answer, GRPC_CODES, Spooled};

/// What is not observed, but recorded as it happens, goes to what this returns.
pub(super) fn register(meter: &Meter, shared: &Arc<Shared>) -> Histogram<f64> {
    let instruments = Instruments { meter, shared };
    of_events(&instruments);
    of_containers(&instruments);
    of_spans(&instruments);
    for names in [&LOGS, &SPANS] {
        of_signal(&instruments, names);
    }
    of_destinations(&instruments);
    of_spools(&instruments);
    of_ourselves(&instruments);
    meter
        .f64_histogram("otel.sdk.exporter.operation.duration")
        .with_unit("s")
        .with_description(
            "How long it took from the first request with a batch until it was settled, requests that were sent again and the \
             waits between them included",
        )
        .with_boundaries(DURATIONS.to_vec())
        .build()
}

/// From an answer at once to the end of what is sent again.
const DURATIONS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// From now on each batch of these is recorded. What came before them of the same name is as it was.
pub(super) fn time(durations: &Histogram<f64>, shipped: &[Shipped]) {
    for names in [&LOGS, &SPANS] {
        let of_signal = shipped.iter().filter(|shipped| shipped.queue.signal() == names.signal);
        for (number, shipped) in of_signal.enumerate() {
            let (durations, common) = (durations.clone(), exporter(names, number, shipped));
            shipped.queue.counters().time_with(Arc::new(move |took, fault, answer| {
                let mut attributes = common.clone();
                attributes.extend(fault.map(|fault| KeyValue::new(semconv::ERROR_TYPE, fault.to_string())));
                attributes.extend(answer.map(status_code));
                durations.record(took.as_secs_f64(), &attributes);
            }));
        }
    }
}

fn status_code(answer: Answer) -> KeyValue {
    match answer {
        Answer::Grpc(code) => {
            let name = usize::try_from(code).ok().and_then(|code| GRPC_CODES.get(code)).unwrap_or(&"UNKNOWN");
            KeyValue::new(semconv::RPC_RESPONSE_STATUS_CODE, *name)
        }
        Answer::Http(code) => KeyValue::new(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(code)),
    }
}

fn of_events(of: &Instruments<'_>) {
    let meaning = "Events that happened, before any filter";
    of.counter("namespan.kernel.triggered", "{event}", meaning, |status, observer| {
        for program in Program::ALL {
            observer.observe(status.counted.triggered(program), &[program_of(program)]);
        }
    });
    let meaning = "What became of events in the kernel: delivered, filtered, or lost for the reason given";
    of.counter("namespan.kernel.events", "{event}", meaning, |status, observer| {
        for program in Program::ALL {
            for (outcome, events) in status.counted.outcomes(program) {
                observer.observe(events, &[program_of(program), KeyValue::new(semconv::OUTCOME, outcome)]);
            }
        }
    });
    let meaning = "Delivered events that were lost on their way to the queue or to the console";
    of.counter("namespan.events.dropped", "{event}", meaning, |status, observer| {
        for (reason, events) in [("undecodable", status.undecodable), ("console_slow", status.unprinted)] {
            observer.observe(events, &[KeyValue::new(semconv::ERROR_TYPE, reason)]);
        }
    });
    let meaning = "Delivered events of containers that are not wanted, before the kernel side was told so";
    of.counter("namespan.events.filtered", "{event}", meaning, |status, observer| {
        observer.observe(status.filtered, &[]);
    });
    let meaning = "Delivered events that wait for the name of their container";
    of.up_down("namespan.events.waiting", "{event}", meaning, |status, observer| {
        observer.observe(signed(status.waiting as u64), &[]);
    });
    let meaning = "What became of hits of uprobes in the kernel: delivered, filtered, sampled out, limited, or lost for the reason given";
    of.counter("namespan.uprobe.hits", "{hit}", meaning, |status, observer| {
        for (outcome, hits) in &status.hits.outcomes {
            observer.observe(*hits, &[KeyValue::new(semconv::OUTCOME, *outcome)]);
        }
    });
    let meaning = "Functions in files that uprobes are attached to";
    of.up_down("namespan.uprobe.places", "{place}", meaning, |status, observer| {
        observer.observe(signed(status.hits.places as u64), &[]);
    });
    of_guard(of);
    let meaning = "Log records that were made, for however many destinations";
    of.counter("otel.sdk.log.created", "{log_record}", meaning, |status, observer| {
        observer.observe(status.created[Signal::Logs as usize], &[]);
    });
    let meaning = "Log records that were made, and that no event is behind: what Namespan has to say of itself";
    of.counter("namespan.note.created", "{log_record}", meaning, |status, observer| {
        observer.observe(status.notes, &[]);
    });
}

fn of_guard(of: &Instruments<'_>) {
    let meaning = "Execs that a policy fired for, by the policy that decided and what was done; of a script that is checked twice";
    of.counter("namespan.guard.decisions", "{exec}", meaning, |status, observer| {
        for ((policy, result), count) in &status.guard.decisions {
            let of =
                [(semconv::SECURITY_RULE_NAME, policy.clone()), (semconv::ENFORCEMENT_RESULT, (*result).to_owned())];
            observer.observe(*count, &of.map(|(key, value)| KeyValue::new(key, value)));
        }
    });
    let meaning = "Execs that the guard has looked at";
    of.counter("namespan.guard.triggered", "{exec}", meaning, |status, observer| {
        observer.observe(status.guard.triggered, &[]);
    });
    let meaning = "Decisions without a record, and execs without a decision, for the reason given";
    of.counter("namespan.guard.dropped", "{exec}", meaning, |status, observer| {
        for (reason, lost) in status.guard.losses() {
            observer.observe(lost, &[KeyValue::new(semconv::ERROR_TYPE, reason)]);
        }
    });
    let meaning = "What found no room: a container that selectors should have held for, a policy that was disarmed in a container";
    of.counter("namespan.guard.untold", "{occurrence}", meaning, |status, observer| {
        for (what, count) in status.guard.untold() {
            observer.observe(count, &[KeyValue::new(semconv::OUTCOME, what)]);
        }
    });
}

fn of_containers(of: &Instruments<'_>) {
    let meaning = "What happened in the cache of containers; one record may count under several outcomes";
    of.counter("namespan.container.cache", "{occurrence}", meaning, |Status { cache, .. }, observer| {
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
    of.gauge("namespan.container.count", "{container}", meaning, |status| f64::from(status.cache.containers));
    let meaning = "Runtimes that should tell of their containers, and do not";
    of.gauge("namespan.runtime.degraded", "{runtime}", meaning, |status| f64::from(status.cache.degraded));
    let meaning = "How long the container that was last forgotten for want of room had been remembered";
    of.gauge("namespan.container.eviction.age", "s", meaning, |status| status.cache.evicted_age.as_secs_f64());
}

fn of_spans(of: &Instruments<'_>) {
    let meaning = "Spans that have begun, sampled or not";
    of.counter("namespan.span.begun", "{span}", meaning, |status, observer| {
        observer.observe(status.processes.spans, &[]);
    });
    let meaning = "Spans that were made, for however many destinations";
    // Not `otel.sdk.span.started`, which counts spans at their start and those that are not sampled too.
    of.counter("namespan.span.created", "{span}", meaning, |status, observer| {
        observer.observe(status.created[Signal::Traces as usize], &[]);
    });
    let meaning = "Sampled spans that were never made";
    of.counter("namespan.span.dropped", "{span}", meaning, |status, observer| {
        observer.observe(status.processes.lost, &[KeyValue::new(semconv::ERROR_TYPE, "evicted")]);
    });
    let meaning = "Live processes forgotten for want of room: their exits lack the program's name, and their span";
    of.counter("namespan.process.evictions", "{process}", meaning, |status, observer| {
        observer.observe(status.processes.evictions, &[]);
    });
}

/// What the metrics of one signal are called.
struct Names {
    signal: Signal,
    items: &'static str,
    unit: &'static str,
    queue_size: &'static str,
    in_flight: &'static str,
    exported: &'static str,
    processor: &'static str,
    /// By protocol: gRPC, protobuf over HTTP, JSON over HTTP.
    exporters: [&'static str; 3],
}

const LOGS: Names = Names {
    signal: Signal::Logs,
    items: "Log records",
    unit: "{log_record}",
    queue_size: "otel.sdk.processor.log.queue.size",
    in_flight: "otel.sdk.exporter.log.inflight",
    exported: "otel.sdk.exporter.log.exported",
    processor: "batching_log_processor",
    exporters: ["otlp_grpc_log_exporter", "otlp_http_log_exporter", "otlp_http_json_log_exporter"],
};

const SPANS: Names = Names {
    signal: Signal::Traces,
    items: "Spans",
    unit: "{span}",
    queue_size: "otel.sdk.processor.span.queue.size",
    in_flight: "otel.sdk.exporter.span.inflight",
    exported: "otel.sdk.exporter.span.exported",
    processor: "batching_span_processor",
    exporters: ["otlp_grpc_span_exporter", "otlp_http_span_exporter", "otlp_http_json_span_exporter"],
};

fn of_signal(of: &Instruments<'_>, names: &'static Names) {
    let Names { items, unit, .. } = names;
    let shared = Arc::clone(of.shared);
    of.meter
        .i64_observable_up_down_counter(names.queue_size)
        .with_unit(*unit)
        .with_description(format!("{items} that wait in the queue of a destination"))
        .with_callback(move |observer| {
            each(&shared, names, |shipped, number| {
                let attributes = component(names.processor, number, shipped);
                observer.observe(signed(shipped.depth().records), &attributes);
            });
        })
        .build();
    let shared = Arc::clone(of.shared);
    of.meter
        .i64_observable_up_down_counter(names.in_flight)
        .with_unit(*unit)
        .with_description(format!("{items} that were sent or are to be sent again, and are not settled"))
        .with_callback(move |observer| {
            each(&shared, names, |shipped, number| {
                let in_flight = shipped.counters().in_flight;
                observer.observe(signed(in_flight), &exporter(names, number, shipped));
            });
        })
        .build();
    let shared = Arc::clone(of.shared);
    of.meter
        .u64_observable_counter(names.exported)
        .with_unit(*unit)
        .with_description(format!(
            "{items} that are settled; with error.type: rejected, or dropped, be it in the queue"
        ))
        .with_callback(move |observer| {
            each(&shared, names, |shipped, number| {
                let counters = shipped.counters();
                let mut attributes = exporter(names, number, shipped);
                observer.observe(counters.exported, &attributes);
                let dropped = counters.dropped.iter().map(|(reason, records)| (reason.to_string(), *records));
                for (reason, records) in dropped.chain([("rejected".to_owned(), counters.rejected)]) {
                    attributes.push(KeyValue::new(semconv::ERROR_TYPE, reason));
                    observer.observe(records, &attributes);
                    attributes.pop();
                }
            });
        })
        .build();
}

/// What is the same for both signals, and has none of its names in the semantic conventions.
fn of_destinations(of: &Instruments<'_>) {
    let meaning = "Log records or spans given to the queue of a destination";
    of.shipped_counter("namespan.export.accepted", "{record}", meaning, |shipped| Some(shipped.counters().accepted));
    let meaning = "Requests that had to be sent again";
    of.shipped_counter("namespan.export.retries", "{request}", meaning, |shipped| Some(shipped.counters().retries));
    // The conventions' `queue.capacity` counts records.
    let meaning = "Bytes that wait in the queue of a destination, as they will be sent";
    of.shipped_level("namespan.queue.usage", "By", meaning, |shipped| Some(shipped.depth().bytes as u64));
    let meaning = "Most bytes that may wait in the queue of a destination";
    of.shipped_level("namespan.queue.limit", "By", meaning, |shipped| Some(shipped.max_bytes as u64));
    let shared = Arc::clone(of.shared);
    of.meter
        .i64_observable_up_down_counter("namespan.export.status")
        .with_unit("{destination}")
        .with_description("How a destination does: 1 for the state it is in, 0 for the others")
        .with_callback(move |observer| {
            for delivery in &lock(&shared.condition).deliveries {
                for name in State::NAMES {
                    let mut attributes = destination(&delivery.destination, delivery.signal).to_vec();
                    attributes.push(KeyValue::new(semconv::STATE, name));
                    observer.observe(i64::from(delivery.state.name() == name), &attributes);
                }
            }
        })
        .build();
}

/// Of queues that have one. At rest `namespan.spool.recovered`, and what was given to a queue, is what has left it, is in it or
/// in flight, and `namespan.spool.size`.
fn of_spools(of: &Instruments<'_>) {
    let meaning = "Log records or spans that are on disk and in no memory";
    of.shipped_level("namespan.spool.size", "{record}", meaning, |shipped| Some(spooled(shipped)?.records));
    let meaning = "Bytes of all that is on disk for a destination";
    of.shipped_level("namespan.spool.usage", "By", meaning, |shipped| Some(spooled(shipped)?.bytes));
    let meaning = "Files of what is on disk for a destination";
    of.shipped_level("namespan.spool.segments", "{segment}", meaning, |shipped| Some(spooled(shipped)?.segments));
    let meaning = "Log records or spans that an earlier run had left on disk";
    of.shipped_counter("namespan.spool.recovered", "{record}", meaning, |shipped| Some(spooled(shipped)?.recovered));
    let meaning = "Reads and writes of the spool that failed";
    of.shipped_counter("namespan.spool.errors", "{error}", meaning, |shipped| Some(spooled(shipped)?.errors));
    let meaning = "Files that did not end with a whole batch at the start, as after a crash";
    of.shipped_counter("namespan.spool.cuts", "{segment}", meaning, |shipped| Some(spooled(shipped)?.cuts));
}

fn spooled(shipped: &Shipped) -> Option<Spooled> {
    shipped.counters().spool
}

fn of_ourselves(of: &Instruments<'_>) {
    let meaning = "Settings that were read anew: in force, or refused while the old ones went on";
    of.counter("namespan.config.reloads", "{reload}", meaning, |Status { reloads, .. }, observer| {
        for (outcome, count) in [("succeeded", reloads.succeeded), ("failed", reloads.failed)] {
            observer.observe(count, &[KeyValue::new(semconv::OUTCOME, outcome)]);
        }
    });
    let seconds = of.meter.f64_observable_counter("process.cpu.time").with_unit("s");
    let callback = |observer: &Observer<'_, f64>| {
        let Some(times) = process::cpu_times() else { return };
        for (mode, seconds) in [("user", times.user), ("system", times.system)] {
            observer.observe(seconds, &[KeyValue::new(semconv::CPU_MODE, mode)]);
        }
    };
    seconds.with_description("CPU time of Namespan itself").with_callback(callback).build();
    of.level("process.memory.usage", "By", "Physical memory of Namespan itself", process::resident_bytes);
    of.level("process.thread.count", "{thread}", "Threads of Namespan itself", process::threads);
    let meaning = "Open file descriptors of Namespan itself";
    of.level("process.unix.file_descriptor.count", "{file_descriptor}", meaning, process::descriptors);
    let began = of.shared.began;
    of.meter
        .f64_observable_gauge("process.uptime")
        .with_unit("s")
        .with_description("How long Namespan has been watching")
        .with_callback(move |observer| observer.observe(began.elapsed().as_secs_f64(), &[]))
        .build();
}

struct Instruments<'a> {
    meter: &'a Meter,
    shared: &'a Arc<Shared>,
}

/// What a callback of an instrument observes with.
type Observer<'a, T> = dyn AsyncInstrument<T> + 'a;

impl Instruments<'_> {
    fn counter(&self, name: &'static str, unit: &'static str, meaning: &'static str, observe: Observe<u64>) {
        let callback = self.of_status(observe);
        let builder = self.meter.u64_observable_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    fn up_down(&self, name: &'static str, unit: &'static str, meaning: &'static str, observe: Observe<i64>) {
        let callback = self.of_status(observe);
        let builder = self.meter.i64_observable_up_down_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    fn gauge(&self, name: &'static str, unit: &'static str, meaning: &'static str, value: fn(&Status) -> f64) {
        let shared = Arc::clone(self.shared);
        let callback = move |observer: &Observer<'_, f64>| {
            if let Some(status) = shared.status() {
                observer.observe(value(&status), &[]);
            }
        };
        let builder = self.meter.f64_observable_gauge(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    /// Of this process, read when it is asked for.
    fn level(&self, name: &'static str, unit: &'static str, meaning: &'static str, value: fn() -> Option<u64>) {
        let callback = move |observer: &Observer<'_, i64>| {
            if let Some(value) = value() {
                observer.observe(signed(value), &[]);
            }
        };
        let builder = self.meter.i64_observable_up_down_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    fn shipped_counter(&self, name: &'static str, unit: &'static str, meaning: &'static str, value: OfShipped) {
        let callback = self.of_shipped(value, |value| value);
        let builder = self.meter.u64_observable_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    fn shipped_level(&self, name: &'static str, unit: &'static str, meaning: &'static str, value: OfShipped) {
        let callback = self.of_shipped(value, signed);
        let builder = self.meter.i64_observable_up_down_counter(name).with_unit(unit).with_description(meaning);
        builder.with_callback(callback).build();
    }

    /// Of each destination and signal that there is a value of.
    fn of_shipped<T: 'static>(
        &self,
        value: OfShipped,
        number: fn(u64) -> T,
    ) -> impl Fn(&Observer<'_, T>) + Send + Sync + 'static {
        let shared = Arc::clone(self.shared);
        move |observer| {
            for shipped in lock(&shared.shipped).iter() {
                if let Some(value) = value(shipped) {
                    observer.observe(number(value), &destination(&shipped.destination, shipped.queue.signal()));
                }
            }
        }
    }

    /// Nothing is observed until the pipeline has told something.
    fn of_status<T: 'static>(&self, observe: Observe<T>) -> impl Fn(&Observer<'_, T>) + Send + Sync + 'static {
        let shared = Arc::clone(self.shared);
        move |observer| {
            if let Some(status) = shared.status() {
                observe(&status, observer);
            }
        }
    }
}

type Observe<T> = fn(&Status, &Observer<'_, T>);
type OfShipped = fn(&Shipped) -> Option<u64>;

/// Calls it for each destination of the signal, with its number among them.
fn each(shared: &Shared, names: &Names, mut observe: impl FnMut(&Shipped, usize)) {
    let shipped = lock(&shared.shipped);
    let of_signal = shipped.iter().filter(|shipped| shipped.queue.signal() == names.signal);
    for (number, shipped) in of_signal.enumerate() {
        observe(shipped, number);
    }
}

fn exporter(names: &Names, number: usize, shipped: &Shipped) -> Vec<KeyValue> {
    let mut attributes = component(exporter_type(names, shipped.protocol), number, shipped).to_vec();
    let (address, port) = &shipped.server;
    attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address.clone()));
    attributes.extend(port.map(|port| KeyValue::new(semconv::SERVER_PORT, i64::from(port))));
    attributes
}

fn exporter_type(names: &Names, protocol: Protocol) -> &'static str {
    let [grpc, http, http_json] = names.exporters;
    match protocol {
        Protocol::Grpc => grpc,
        Protocol::HttpProtobuf => http,
        Protocol::HttpJson => http_json,
    }
}

fn component(kind: &'static str, number: usize, shipped: &Shipped) -> [KeyValue; 3] {
    [
        KeyValue::new(semconv::OTEL_COMPONENT_TYPE, kind),
        KeyValue::new(semconv::OTEL_COMPONENT_NAME, format!("{kind}/{number}")),
        KeyValue::new(semconv::DESTINATION, shipped.destination.clone()),
    ]
}

fn destination(name: &str, signal: Signal) -> [KeyValue; 2] {
    [KeyValue::new(semconv::DESTINATION, name.to_owned()), KeyValue::new(semconv::SIGNAL, name_of(signal))]
}

fn program_of(program: Program) -> KeyValue {
    let name = match program {
        Program::Exec => "exec",
        Program::Exit => "exit",
        Program::ExecFailed => "exec_failed",
    };
    KeyValue::new(semconv::PROGRAM, name)
}

fn signed(value: u64) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
