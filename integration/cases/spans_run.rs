//! Spans under settings: what leaves the host and in which form, what is counted, and what it costs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use http::StatusCode;
use namespan_integration::PATIENCE;
use namespan_integration::attribute::{Value, has};
use namespan_integration::host;
use namespan_integration::namespan::{Namespan, SpanSummary, ship};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, Ran, count, exec_of, ran};
use namespan_integration::rotel::Rotel;
use namespan_integration::sink::{Record, Service, Sink, lines};
use namespan_integration::span::{SAMPLED, Span, assert_complete, assert_consistent, span_of};
use namespan_integration::workload::Account;
use opentelemetry::trace::{SpanKind, TraceId};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample as _};

const INVALID_UTF8: &[u8] = b"\xff\xfe\x80caf\xc3";

#[test]
fn every_field_of_a_span_is_in_the_collector_over_grpc() {
    every_field_is_in_the_collector("grpc");
}

#[test]
fn every_field_of_a_span_is_in_the_collector_over_http_protobuf() {
    every_field_is_in_the_collector("http/protobuf");
}

#[test]
fn every_field_of_a_span_is_in_the_collector_over_http_json() {
    every_field_is_in_the_collector("http/json");
}

fn every_field_is_in_the_collector(protocol: &str) {
    if !met(&[Need::Namespan, Need::Rotel]) {
        return;
    }
    let sink = Sink::start();
    let rotel = Rotel::start(&sink);
    let endpoint = rotel.endpoint(protocol);
    let namespan = Namespan::run(&["--console", "none", "--protocol", protocol, "--endpoint", &endpoint]);
    let program = Program::new();
    let arguments = ["-c", "exit 7", "name"].map(OsStr::new).into_iter().chain([OsStr::from_bytes(INVALID_UTF8)]);
    let shell = program.run("sh", arguments);
    let mut sleeper = program.start("sleep", &["600"]);
    let killed = i64::from(sleeper.id());
    sleeper.kill().unwrap();
    assert!(!sleeper.wait().unwrap().success());

    let summary = namespan.stop().shipped_all().summary;
    let records = rotel.delivered(&sink, summary.exported);
    let spans = rotel.delivered_spans(&sink, summary.spans().exported);
    assert_consistent(&records, &spans);
    assert_complete(&records, &spans);
    let span = span_of(&spans, shell.pid);
    span.assert_root("unknown_parent");
    span.assert_exited(7, Some("7"));
    around(span, exec_of(&program.of(&records), shell.pid), &program, &shell);
    let killed = span_of(&spans, killed);
    killed.assert_killed(9, "SIGKILL");
    assert_eq!(*killed.get("process.command_args"), ["sleep", "600"].into());
}

fn around(span: &Span, exec: &Record, program: &Program, ran: &Ran) {
    assert_eq!((&span.name, span.trace_state.as_str()), (&program.name, ""));
    assert_eq!((&span.scope, &span.resource.schema_url), (&exec.scope, &exec.resource.schema_url));
    assert!(ran.before_ns <= span.start_ns && span.end_ns <= ran.after_ns, "{span:#?}\n{ran:?}");
    let expected = [
        ("host.name", host::nodename().as_str().into()),
        ("os.type", "linux".into()),
        ("service.name", "unknown_service".into()),
        ("telemetry.distro.name", "namespan".into()),
    ];
    has(&span.resource.attributes, "resource", &expected);
    let expected = [
        ("process.pid", ran.pid.into()),
        ("process.vpid", ran.pid.into()),
        ("process.parent_pid", i64::from(std::process::id()).into()),
        ("process.creation.time", exec.get("process.creation.time").clone()),
        ("process.executable.name", program.name.as_str().into()),
        ("process.executable.path", program.path.to_str().unwrap().into()),
        ("process.command", "sh".into()),
        ("process.command_args", exec.get("process.command_args").clone()),
        ("process.args_count", 5.into()),
        ("process.user.id", 0.into()),
        ("namespan.process.comm", program.name.as_str().into()),
        ("namespan.container.attribution", "none".into()),
    ];
    has(&span.attributes, "span", &expected);
    assert_eq!(span.get("process.command_args").list()[4], Value::Bytes(INVALID_UTF8.to_vec()));
}

/// Five runs of a program, alone: what came of them.
fn five(arguments: &[&str], environment: &[(&str, &str)]) -> (Vec<Record>, Vec<Span>, SpanSummary) {
    let program = Program::new();
    let arguments = [&["--comm", &program.name], arguments].concat();
    let (finished, records, spans) = ship(&arguments, environment, || program.run_times(5));
    assert_eq!(finished.summary.seen, 10);
    (records, spans, finished.summary.spans())
}

#[test]
fn nothing_is_traced_if_nothing_is_to_be() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let none = |arguments: &[&str], environment: &[(&str, &str)]| {
        let (records, spans, summary) = five(arguments, environment);
        assert_eq!(count(&records), (5, 5), "{arguments:?} {environment:?}");
        assert!(spans.is_empty(), "{arguments:?} {environment:?}: {spans:#?}");
        assert_eq!(summary, SpanSummary::default(), "{arguments:?} {environment:?}");
        assert!(records.iter().all(|record| record.flags & SAMPLED == 0), "{environment:?}: {records:#?}");
    };
    for sampler in ["always_off", "parentbased_always_off"] {
        none(&[], &[("OTEL_TRACES_SAMPLER", sampler)]);
    }
    for sampler in ["traceidratio", "parentbased_traceidratio"] {
        none(&[], &[("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", "0")]);
    }
    none(&[], &[("OTEL_TRACES_EXPORTER", "none")]);
    none(&["--no-spans"], &[]);
}

#[test]
fn a_share_of_the_traces_is_told_of_if_a_share_is_to_be_and_records_say_which() {
    const RUNS: usize = 64;
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let environment = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")];
    let (finished, records, spans) = ship(&["--comm", &program.name], &environment, || program.run_times(RUNS));
    assert!(finished.shipped_all().status.success());
    assert_consistent(&records, &spans);
    assert_eq!(count(&records), (RUNS, RUNS));
    assert!((1..RUNS).contains(&spans.len()), "{} spans", spans.len());
    let traced: HashSet<_> = spans.iter().map(|span| span.trace_id.as_str()).collect();
    // Whoever else is in the trace decides alike.
    let sdk = Sampler::TraceIdRatioBased(0.5);
    for record in &records {
        let trace_id = TraceId::from_hex(&record.trace_id).unwrap();
        let decided = sdk.should_sample(None, trace_id, "", &SpanKind::Internal, &[], &[]).decision;
        let sampled = record.flags & SAMPLED != 0;
        assert_eq!(sampled, decided == SamplingDecision::RecordAndSample, "{record:#?}");
        assert_eq!(sampled, traced.contains(record.trace_id.as_str()), "{record:#?}");
    }
}

#[test]
fn a_parent_decides_for_its_children_if_the_sampler_asks_it() {
    const PARENT: (&str, &str) = ("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    if !met(&[Need::Namespan]) {
        return;
    }
    for (sampler, expected) in [("parentbased_always_off", 1), ("always_off", 0)] {
        let program = Program::new();
        let environment = [("OTEL_TRACES_SAMPLER", sampler)];
        let (finished, records, spans) = ship(&["--comm", &program.name], &environment, || {
            assert!(ran(program.command("true").env(PARENT.0, PARENT.1)).status.success());
            program.run_times(1);
        });
        assert!(finished.shipped_all().status.success());
        assert_eq!((count(&records), spans.len()), ((2, 2), expected), "{sampler}");
        assert!(spans.iter().all(|span| PARENT.1.contains(&span.trace_id)));
    }
}

#[test]
fn spans_are_shipped_alone_if_logs_are_not_to_be() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (records, spans, summary) = five(&[], &[("OTEL_LOGS_EXPORTER", "none")]);
    assert!(records.is_empty());
    assert_eq!((spans.len(), summary.made, summary.exported), (5, 5, 5));
}

#[test]
fn a_back_end_without_one_of_the_services_gets_all_of_the_other() {
    if !met(&[Need::Namespan]) {
        return;
    }
    for lacking in [Service::Logs, Service::Traces] {
        let program = Program::new();
        let sink = Sink::start();
        sink.answer(lacking, StatusCode::NOT_FOUND);
        let arguments = ["--console", "none", "--comm", &program.name, "--endpoint", &sink.endpoint()];
        let namespan = Namespan::run_with(&arguments, &[("OTEL_BLRP_SCHEDULE_DELAY", "100")]);
        // More than one request is refused.
        for round in 1..=2 {
            program.run_times(5);
            match lacking {
                Service::Logs => assert_eq!(sink.wait_for_span_count(5 * round, PATIENCE).len(), 5 * round),
                Service::Traces => {
                    assert_eq!(count(&sink.wait_for_count(10 * round, PATIENCE)), (5 * round, 5 * round));
                }
            }
        }
        let finished = namespan.stop();
        let (summary, spans) = (&finished.summary, finished.summary.spans());
        // The record of what was lost is a log record too, if the loss was noticed before the drain.
        let notes = summary.seen - 20;
        assert!(notes <= 1, "{summary:?}");
        let (logs_lost, spans_lost) = match lacking {
            Service::Logs => (20 + notes, 0),
            Service::Traces => (0, 10),
        };
        let reasons = |lost: u64| (lost > 0).then(|| ("unimplemented".to_owned(), lost)).into_iter().collect();
        assert!(finished.status.success());
        assert_eq!((summary.exported, summary.dropped), (20 + notes - logs_lost, logs_lost), "{summary:?}");
        assert_eq!((spans.made, spans.exported, spans.dropped), (10, 10 - spans_lost, spans_lost), "{summary:?}");
        assert_eq!((&summary.reasons, &spans.reasons), (&reasons(logs_lost), &reasons(spans_lost)));
        let complaints: Vec<_> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(complaints.len(), 1, "{}", finished.stderr);
        assert!(complaints[0].contains("takes no"), "{complaints:?}");
        let records = sink.records();
        assert_eq!((records.len() as u64, sink.spans().len() as u64), (summary.exported, spans.exported));
        let losses: Vec<_> = records.iter().filter(|record| record.is_loss()).collect();
        assert_eq!(losses.len() as u64, if summary.exported == 0 { 0 } else { notes });
        for loss in losses {
            assert_eq!(*loss.get("namespan.signal"), "traces".into());
            assert_eq!(*loss.get("namespan.reason"), "unimplemented".into());
            assert!((1..=10).contains(&loss.get("namespan.lost.count").int()), "{loss:?}");
        }
    }
}

#[test]
fn json_lines_are_requests_of_both_services_and_hold_every_record_and_span() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let namespan = Namespan::run(&["--console", "jsonl"]);
    let shell = program.run("sh", ["-c", "/bin/true; exit 0"]);
    let finished = namespan.stop().without_loss();
    let (records, spans) = lines(&finished.stdout);
    let summary = &finished.summary;
    assert_eq!((records.len() as u64, summary.printed), (summary.seen, summary.seen));
    assert_eq!((spans.len() as u64, summary.spans().printed), (summary.spans().made, summary.spans().made));
    assert_consistent(&records, &spans);
    assert_complete(&records, &spans);
    let span = span_of(&spans, shell.pid);
    assert_eq!(spans.iter().filter(|child| child.parent_span_id == span.span_id).count(), 1);
}

#[test]
fn a_tree_is_printed_with_the_children_further_right_than_their_parents() {
    if !met(&[Need::Namespan]) {
        return;
    }
    // Copies of the shell, which goes by any name; only they are watched.
    let program = Program::new();
    let shell = |suffix: &str| {
        let path = program.directory().join(format!("{}{suffix}", program.name));
        fs::copy("/bin/sh", &path).unwrap();
        path
    };
    let (outer, inner) = (shell("o"), shell("i"));
    let namespan = Namespan::run(&["--console", "tree", "--comm", &program.name]);
    let script = format!("{inner} -c 'sleep 0.1; exit 37'; {inner} -c 'exit 38'; exit 3", inner = inner.display());
    assert_eq!(ran(Command::new(&outer).args(["-c", &script])).status.code(), Some(3));
    let finished = namespan.stop().without_loss();
    let printed = String::from_utf8_lossy(&finished.stdout);
    let with = |name: &str| -> Vec<_> { printed.lines().enumerate().filter(|(_, line)| line.contains(name)).collect() };
    let (outer, inner) = (format!("{}o", program.name), format!("{}i", program.name));
    let [(parent_at, parent)] = with(&outer)[..] else { panic!("{printed}") };
    // The parent's line may have its script in it.
    let children: Vec<_> = with(&inner).into_iter().filter(|(at, _)| *at != parent_at).collect();
    let [(first_at, first), (second_at, second)] = children[..] else { panic!("{printed}") };
    assert!(parent_at < first_at && first_at < second_at, "{printed}");
    let column = |line: &str, name: &str| line.split(name).next().map(|before| before.chars().count());
    for (line, code) in [(parent, "3"), (first, "37"), (second, "38")] {
        assert!(line == parent || column(line, &inner) > column(parent, &outer), "{printed}");
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(words.contains(&code), "{code} in {line:?}");
        let number = |text: &str| text.parse::<f64>().is_ok();
        let joined = words.iter().any(|word| number(word.trim_end_matches(['m', 's'])) && word.ends_with('s'));
        let apart = words.windows(2).any(|pair| number(pair[0]) && ["s", "ms"].contains(&pair[1]));
        assert!(joined || apart, "a duration in {line:?}");
    }
    assert!(!printed.contains('\x1b'), "no colour but on a terminal");
    let (summary, spans) = (&finished.summary, finished.summary.spans());
    assert_eq!((summary.seen, summary.printed, spans.made, spans.printed), (6, 0, 3, 3), "{}", finished.stderr);
}

#[test]
fn a_storm_of_50_000_processes_is_traced_without_loss_in_little_memory() {
    const COUNT: usize = 50_000;
    /// Of `spans.max_per_trace`.
    const PER_TRACE: usize = 2000;
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let driver = program.directory().join("driver");
    fs::copy(env!("CARGO_BIN_EXE_nstest-processes"), &driver).unwrap();
    let sink = Sink::start();
    // Taken, and not looked at: what the sink does takes the processors from the storm.
    sink.answer(Service::Logs, StatusCode::OK);
    let directory = program.directory().to_str().unwrap();
    let namespan = Namespan::run(&["--console", "none", "--path", directory, "--endpoint", &sink.endpoint()]);
    let account = Account::of(Command::new(&driver).args(["storm", &COUNT.to_string()]).arg(&program.path));
    assert!(account.status.success());
    let spans = sink.wait_for_span_count(COUNT + 1, 3 * PATIENCE);
    let peak_kib = namespan.peak_memory_kib();
    let summary = namespan.stop().shipped_all().summary;

    assert_eq!(summary.seen, 2 * (COUNT as u64 + 1));
    assert_eq!(summary.spans().made, COUNT as u64 + 1);
    assert!(peak_kib < 300 << 10, "{peak_kib} KiB");
    let ids: HashSet<_> = spans.iter().map(|span| span.span_id.as_str()).collect();
    assert_eq!(ids.len(), COUNT + 1);
    // Pids come again in so many.
    let driver = spans.iter().find(|span| span.name == "driver").unwrap();
    assert_eq!(driver.pid(), account.pid);
    driver.assert_root("unknown_parent");
    let (within, beyond): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.trace_id == driver.trace_id);
    assert_eq!((within.len(), beyond.len()), (PER_TRACE, COUNT + 1 - PER_TRACE));
    for span in within.into_iter().filter(|span| span.name != "driver") {
        assert_eq!(span.name, program.name);
        span.assert_child_of(driver);
    }
    for span in beyond {
        assert_eq!(span.name, program.name);
        span.assert_spawned_by(driver, "trace_full");
    }
}
