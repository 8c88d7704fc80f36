//! Collectors that are late, die or refuse, and runs that end in every way: all is delivered, or counted with a reason.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use http::StatusCode;
use namespan_integration::PATIENCE;
use namespan_integration::namespan::{Namespan, refused};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, count};
use namespan_integration::rotel::free_addresses;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::span::assert_consistent;
use namespan_integration::watched::poll;
use rustix::process::Signal;

/// So that batches are sent soon.
const SOON: (&str, &str) = ("OTEL_BLRP_SCHEDULE_DELAY", "100");

/// Ships nothing but what the program does.
fn run(program: &Program, endpoint: &str, environment: &[(&str, &str)]) -> Namespan {
    Namespan::run_with(&["--console", "none", "--comm", &program.name, "--endpoint", endpoint], environment)
}

/// Each exec and each exit of a pid once.
fn assert_distinct(records: &[Record]) {
    let distinct: BTreeSet<_> =
        records.iter().map(|record| (record.is_exec(), record.get("process.pid").int(), record.time_ns)).collect();
    assert_eq!(distinct.len(), records.len(), "delivered twice");
}

/// Returns when someone has knocked in vain: so it is known that the collector was missed.
fn turn_one_away(address: SocketAddr) {
    let closed = TcpListener::bind(address).unwrap();
    closed.set_nonblocking(true).unwrap();
    assert!(poll(PATIENCE, || closed.accept().ok()).is_some(), "no one tries again");
}

#[test]
fn what_happens_before_the_collector_comes_is_delivered_when_it_has_come() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let [address] = free_addresses();
    let namespan = run(&program, &format!("http://{address}"), &[SOON]);
    program.run_times(10);
    turn_one_away(address);
    program.run_times(10);
    let sink = Sink::start_at(address);
    let records = sink.wait_for_count(40, PATIENCE);
    assert_eq!(count(&records), (20, 20));
    program.run_times(5);
    let summary = namespan.stop().shipped_all().summary;
    assert_eq!((summary.seen, summary.exported, summary.spans().exported), (50, 50, 25));
    let (records, spans) = (sink.records(), sink.spans());
    assert_eq!((count(program.of(&records)), spans.len()), ((25, 25), 25));
    assert_distinct(&records);
    assert_consistent(&records, &spans);
}

#[test]
fn a_collector_may_die_and_come_back_without_loss() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    let address = sink.address;
    let namespan = run(&program, &sink.endpoint(), &[SOON]);
    program.run_times(10);
    let (mut records, mut spans) = (sink.wait_for_count(20, PATIENCE), sink.wait_for_span_count(10, PATIENCE));
    drop(sink);
    program.run_times(10);
    turn_one_away(address);
    let sink = Sink::start_at(address);
    program.run_times(10);
    let summary = namespan.stop().shipped_all().summary;
    assert_eq!((summary.seen, summary.exported, summary.spans().exported), (60, 60, 30));
    records.extend(sink.records());
    spans.extend(sink.spans());
    assert_eq!((count(program.of(&records)), spans.len()), ((30, 30), 30));
    assert_distinct(&records);
    assert_consistent(&records, &spans);
}

#[test]
fn what_a_collector_refuses_is_counted_with_its_answer() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    let namespan = run(&program, &sink.endpoint(), &[SOON]);
    program.run_times(5);
    assert_eq!(count(&sink.wait_for_count(10, PATIENCE)), (5, 5));
    assert_eq!(sink.wait_for_span_count(5, PATIENCE).len(), 5);
    sink.refuse(StatusCode::BAD_REQUEST);
    program.run_times(10);
    let finished = namespan.stop();
    let summary = finished.summary;
    // The record of what was lost is refused too, if the loss was noticed before the drain.
    let notes = summary.seen - 30;
    assert!(notes <= 1, "{summary:?}");
    assert_eq!((summary.exported, summary.dropped), (10, 20 + notes), "{summary:?}");
    assert_eq!(summary.reasons, [("permanent:400".to_owned(), 20 + notes)].into());
    let spans = summary.spans();
    assert_eq!((spans.made, spans.exported, spans.dropped), (15, 5, 10), "{spans:?}");
    assert_eq!(spans.reasons, [("permanent:400".to_owned(), 10)].into());
    assert_eq!((sink.records().len(), sink.spans().len()), (10, 5));
}

#[test]
fn what_cannot_be_delivered_before_the_end_is_counted() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let [address] = free_addresses();
    let namespan = run(&program, &format!("http://{address}"), &[]);
    program.run_times(10);
    let began = Instant::now();
    let summary = namespan.stop().summary;
    assert!(began.elapsed() < Duration::from_secs(8), "the drain has a deadline: {:?}", began.elapsed());
    assert_eq!((summary.seen, summary.exported, summary.dropped), (20, 0, 20), "{summary:?}");
    assert_eq!(summary.reasons, [("shutdown".to_owned(), 20)].into());
    let spans = summary.spans();
    assert_eq!((spans.made, spans.exported, spans.dropped), (10, 0, 10), "{spans:?}");
    assert_eq!(spans.reasons, [("shutdown".to_owned(), 10)].into());
}

#[test]
fn being_asked_to_end_it_drains_what_was_collected() {
    if !met(&[Need::Namespan]) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let program = Program::new();
        let sink = Sink::start();
        // Nothing is sent before the end.
        let namespan = run(&program, &sink.endpoint(), &[("OTEL_BLRP_SCHEDULE_DELAY", "600000")]);
        program.run_times(20);
        let finished = namespan.stop_by(signal).shipped_all();
        assert_eq!(finished.summary.exported, 40);
        assert_eq!((count(&sink.records()), sink.spans().len()), ((20, 20), 20));
    }
}

#[test]
fn a_run_of_two_seconds_ends_by_itself() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    let began = Instant::now();
    let arguments = ["--console", "none", "--for", "2s", "--comm", &program.name, "--endpoint", &sink.endpoint()];
    let namespan = Namespan::run(&arguments);
    program.run_times(5);
    let finished = namespan.finish().shipped_all();
    let took = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(finished.status.code(), Some(0));
    assert_eq!((finished.summary.seen, count(&sink.records())), (10, (5, 5)));
}

#[test]
fn requests_may_be_compressed() {
    if !met(&[Need::Namespan]) {
        return;
    }
    for compression in ["gzip", "zstd"] {
        for protocol in ["http/protobuf", "http/json"] {
            let program = Program::new();
            let sink = Sink::start();
            let endpoint = sink.endpoint();
            let arguments = [
                "--console",
                "none",
                "--comm",
                &program.name,
                "--endpoint",
                &endpoint, //
                "--protocol",
                protocol,
                "--compression",
                compression,
            ];
            let namespan = Namespan::run(&arguments);
            program.run_times(5);
            assert_eq!(namespan.stop().shipped_all().summary.exported, 10);
            let came = (count(program.of(&sink.records())), sink.spans().len());
            assert_eq!(came, ((5, 5), 5), "{protocol} {compression}");
        }
    }
}

#[test]
fn an_invalid_setting_is_refused_by_its_name() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let flags: [(&[&str], &str); 9] = [
        (&["--for", "soon"], "--for"),
        (&["--uid", "root"], "--uid"),
        (&["--args", "some"], "--args"),
        (&["--args-limit", "1GiB"], "--args-limit"),
        (&["--ring-size", "5000"], "--ring-size"),
        (&["--endpoint", "not a url"], "--endpoint"),
        (&["--protocol", "udp"], "--protocol"),
        (&["--host", "--containers"], "--containers"),
        (&["--config", "/nonexistent/namespan.yaml"], "/nonexistent/namespan.yaml"),
    ];
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "udp"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "rar"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "-1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem"),
    ];
    let check = |what: &str, name: &str, (status, stderr): (std::process::ExitStatus, String)| {
        assert!(!status.success(), "{what} is taken");
        assert!(status.code().is_some_and(|code| code < 100), "{what}: {status}");
        assert!(stderr.contains(name), "{what}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{what}: {stderr}");
        assert!(!stderr.contains("watching"), "{what}: {stderr}");
    };
    for (arguments, name) in flags {
        check(&format!("{arguments:?}"), name, refused(arguments, &[]));
    }
    for (variable, value) in variables {
        // A CA file is read when there is somewhere to ship to.
        let arguments: &[&str] =
            if variable.ends_with("CERTIFICATE") { &["--endpoint", "https://localhost:1"] } else { &[] };
        let name = if variable.ends_with("CERTIFICATE") { value } else { variable };
        check(&format!("{variable}={value}"), name, refused(arguments, &[(variable, value)]));
    }
}
