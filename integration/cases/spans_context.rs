//! `TRACEPARENT` in the environment: who joins whose trace, and what is none.

use std::process::{Command, Stdio};

use namespan_integration::attribute::Value;
use namespan_integration::namespan::{Namespan, traced};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, Shell, exec_of, exit_of, ran};
use namespan_integration::rotel::Rotel;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::span::{assert_complete, assert_consistent, name_of, only_child, span_of};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const OTHER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "b7ad6b7169203331";
const OTHER_SPAN: &str = "00f067aa0ba902b7";

fn sampled(trace: &str, span: &str) -> String {
    format!("00-{trace}-{span}-01")
}

/// Runs it with this context; its pid.
fn run_in(program: &Program, context: &str) -> i64 {
    ran(program.command("true").env("TRACEPARENT", context)).pid
}

/// A shell with this context and this to do; its pid.
fn sh_in(context: &str, script: &str) -> i64 {
    ran(Command::new("/bin/sh").args(["-c", script]).env("TRACEPARENT", context).stdin(Stdio::null())).pid
}

#[test]
fn an_application_with_an_sdk_and_what_it_runs_are_one_trace_in_a_collector() {
    if !met(&[Need::Namespan, Need::Rotel]) {
        return;
    }
    for protocol in ["http/protobuf", "grpc"] {
        let sink = Sink::start();
        let rotel = Rotel::start(&sink);
        let endpoint = rotel.endpoint(protocol);
        let namespan = Namespan::run(&["--console", "none", "--protocol", protocol, "--endpoint", &endpoint]);
        let application = Command::new(env!("CARGO_BIN_EXE_nstest-traced"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint("http/protobuf"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let application_pid = i64::from(application.id());
        let output = application.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        let summary = namespan.stop().shipped_all().summary;
        let records = rotel.delivered(&sink, summary.exported);
        let spans = rotel.delivered_spans(&sink, summary.spans().exported + 1);

        let (ours, others): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| span.scope.name == "namespan.exec");
        assert_consistent(&records, &ours);
        assert_complete(&records, &ours);
        let [request] = &others[..] else { panic!("{others:#?}") };
        assert_eq!(request.name, "GET /report");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed, format!("{} {}\n", request.trace_id, request.span_id));

        let process = span_of(&ours, application_pid);
        process.assert_root("unknown_parent");
        let shell = only_child(&ours, application_pid);
        shell.assert_remote(&request.trace_id, &request.span_id, request.trace_flags());
        shell.assert_exited(1, Some("1"));
        let grep = only_child(&ours, shell.pid());
        grep.assert_child_of(shell);
        grep.assert_exited(1, None);
        assert_eq!((shell.name.as_str(), grep.name.as_str()), (&*name_of("/bin/sh"), &*name_of("/bin/grep")));
        assert!(request.start_ns <= shell.start_ns && shell.end_ns <= request.end_ns, "{request:#?}, {shell:#?}");
        assert_eq!(ours.iter().filter(|span| span.trace_id == request.trace_id).count(), 2);
    }
}

#[test]
fn a_valid_context_is_the_parent_with_its_flags_and_state() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let (mut plain, mut random, mut stateful) = (0, 0, 0);
    let (records, spans) = traced(&[], || {
        plain = run_in(&program, &sampled(TRACE, SPAN));
        random = run_in(&program, &format!("00-{TRACE}-{SPAN}-03"));
        let mut command = program.command("true");
        command
            .env("TRACEPARENT", sampled(OTHER_TRACE, OTHER_SPAN))
            .env("TRACESTATE", "rojo=00f067aa0ba902b7,congo=t61");
        stateful = ran(&mut command).pid;
    });
    for (pid, trace, parent, flags, state) in [
        (plain, TRACE, SPAN, 1, ""),
        (random, TRACE, SPAN, 3, ""),
        (stateful, OTHER_TRACE, OTHER_SPAN, 1, "rojo=00f067aa0ba902b7,congo=t61"),
    ] {
        let span = span_of(&spans, pid);
        span.assert_remote(trace, parent, flags);
        assert_eq!(span.trace_state, state);
    }
    let ours = program.of(&records);
    for record in [exec_of(&ours, plain), exit_of(&ours, plain)] {
        let ids = (record.trace_id.as_str(), &record.span_id, record.flags);
        assert_eq!(ids, (TRACE, &span_of(&spans, plain).span_id, 1));
    }
}

#[test]
fn what_is_no_context_is_as_good_as_none() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let upper = TRACE.to_uppercase();
    let invalid = [
        String::new(),
        "garbage".to_owned(),
        sampled("00000000000000000000000000000000", SPAN),
        sampled(TRACE, "0000000000000000"),
        sampled(&upper, SPAN),
        sampled(TRACE, &SPAN.to_uppercase()),
        sampled(&TRACE[1..], SPAN),
        sampled(TRACE, &format!("{SPAN}0")),
        sampled(&TRACE.replace('a', "g"), SPAN),
        sampled(TRACE, SPAN).replace('-', "_"),
        format!("00-{TRACE}-{SPAN}"),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{TRACE}-{SPAN}-0x"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("ff-{TRACE}-{SPAN}-01"),
    ];
    let mut pids = Vec::new();
    let mut misnamed = 0;
    let (_, spans) = traced(&[], || {
        pids.extend(invalid.iter().map(|context| run_in(&program, context)));
        misnamed = ran(program.command("true").env("traceparent", sampled(TRACE, SPAN))).pid;
    });
    for (pid, context) in pids.into_iter().zip(&invalid).chain([(misnamed, &"in lower case".to_owned())]) {
        let span = span_of(&spans, pid);
        assert_ne!(span.trace_id, TRACE, "{context:?}");
        span.assert_root("unknown_parent");
    }
}

#[test]
fn what_is_not_sampled_has_records_with_its_ids_and_no_spans() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let (mut alone, mut shell) = (0, 0);
    let context = format!("00-{TRACE}-{SPAN}-00");
    let (records, spans) = traced(&[], || {
        alone = run_in(&program, &context);
        shell = sh_in(&context, "/bin/true; exit 0");
    });
    assert!(spans.iter().all(|span| span.trace_id != TRACE));
    let ours = program.of(&records);
    let of_shell =
        |record: &&Record| [record.get("process.pid"), record.get("process.parent_pid")].contains(&&Value::from(shell));
    let below: Vec<_> = records.iter().filter(of_shell).collect();
    assert_eq!((ours.len(), below.len()), (2, 4));
    for record in ours.iter().chain(&below) {
        assert_eq!((record.trace_id.as_str(), record.span_id.len(), record.flags), (TRACE, 16, 0), "{record:#?}");
    }
    assert_eq!(exec_of(&ours, alone).span_id, exit_of(&ours, alone).span_id);
}

#[test]
fn a_context_that_is_only_inherited_does_not_part_parent_and_child() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (mut same, mut other) = (0, 0);
    let (_, spans) = traced(&[], || {
        same = sh_in(&sampled(TRACE, SPAN), "/bin/sh -c '/bin/true; exit 0'; exit 0");
        let set = sampled(OTHER_TRACE, OTHER_SPAN);
        other = sh_in(&sampled(TRACE, SPAN), &format!("TRACEPARENT={set} /bin/sh -c '/bin/true; exit 0'; exit 0"));
    });
    let shell = span_of(&spans, same);
    shell.assert_remote(TRACE, SPAN, 1);
    let inner = only_child(&spans, same);
    inner.assert_child_of(shell);
    only_child(&spans, inner.pid()).assert_child_of(inner);

    span_of(&spans, other).assert_remote(TRACE, SPAN, 1);
    let inner = only_child(&spans, other);
    inner.assert_remote(OTHER_TRACE, OTHER_SPAN, 1);
    only_child(&spans, inner.pid()).assert_child_of(inner);
}

#[test]
fn a_context_that_is_inherited_from_an_unknown_parent_is_the_parent() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut shell = Shell::start(Command::new("/bin/sh").env("TRACEPARENT", sampled(TRACE, SPAN)));
    let pid = shell.pid;
    let (_, spans) = traced(&[], || {
        shell.run("/bin/true");
        assert!(shell.end().success());
    });
    only_child(&spans, pid).assert_remote(TRACE, SPAN, 1);
}

#[test]
fn the_environment_is_left_alone_if_it_is_not_wanted() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, mut pid, mut shell) = (Program::new(), 0, 0);
    let (records, spans) = traced(&["--no-env-context"], || {
        pid = run_in(&program, &sampled(TRACE, SPAN));
        shell = sh_in(&sampled(TRACE, SPAN), "/bin/true; exit 0");
    });
    span_of(&spans, pid).assert_root("unknown_parent");
    span_of(&spans, shell).assert_root("unknown_parent");
    only_child(&spans, shell).assert_child_of(span_of(&spans, shell));
    assert!(records.iter().all(|record| record.trace_id != TRACE));
}
