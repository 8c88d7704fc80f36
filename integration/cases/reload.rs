//! Settings change while everything runs: nothing is told twice, nothing is missing, and what is wrong changes nothing.

use std::collections::BTreeSet;
use std::process::Stdio;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, count};
use namespan_integration::settings::Run;
use namespan_integration::sink::Sink;
use namespan_integration::span::assert_consistent;

#[test]
fn in_a_storm_every_exec_and_exit_is_told_once_by_whichever_programs() {
    const EACH: usize = 4000;
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    // A filter that exits can't be asked for: the programs of later settings have not seen the execs.
    let settings = |limit: usize| {
        format!(
            "export: {{endpoint: '{}'}}\nprobes: {{args_limit: {limit}, filters: {{comms: [{}]}}}}\n",
            sink.endpoint(),
            program.name
        )
    };
    let mut run = Run::start(&settings(1000));
    std::thread::scope(|scope| {
        let storms = [0; 2].map(|_| scope.spawn(|| program.run_times(EACH)));
        let mut limit = 1000;
        while !storms.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            limit += 1;
            run.change(&settings(limit));
        }
    });
    assert!(run.taken_up >= 3, "{}", run.taken_up);
    let finished = run.namespan.stop().shipped_all();
    let (records, spans) = (sink.records(), sink.spans());
    assert_eq!(count(program.of(&records)), (2 * EACH, 2 * EACH), "{} reloads, {:?}", run.taken_up, finished.summary);
    assert_eq!((records.len(), spans.len()), (4 * EACH, 2 * EACH));
    let distinct: BTreeSet<_> =
        records.iter().map(|record| (record.is_exec(), record.get("process.pid").int(), record.time_ns)).collect();
    assert_eq!(distinct.len(), records.len());
    assert_consistent(&records, &spans);
}

#[test]
fn other_filters_hold_from_one_moment_on_and_what_runs_then_still_ends() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let [before, after] = [Program::new(), Program::new()];
    let sink = Sink::start();
    let settings = |program: &Program| {
        format!("export: {{endpoint: '{}'}}\nprobes: {{filters: {{comms: [{}]}}}}\n", sink.endpoint(), program.name)
    };
    let mut run = Run::start(&settings(&before));
    before.run_times(3);
    after.run_times(3);
    let mut lives_on = before.command("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut is_not_told_of = after.command("cat").stdin(Stdio::piped()).spawn().unwrap();
    run.change(&settings(&after));
    before.run_times(5);
    after.run_times(5);
    for process in [&mut lives_on, &mut is_not_told_of] {
        drop(process.stdin.take());
        assert!(process.wait().unwrap().success());
    }
    assert!(run.namespan.stop().shipped_all().status.success());
    let records = sink.records();
    assert_eq!(count(before.of(&records)), (4, 4));
    assert_eq!(count(after.of(&records)), (5, 5));
    assert_eq!(records.len(), 18);
}

#[test]
fn what_is_wrong_or_cannot_change_is_named_and_changes_nothing() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    let settings = |more: &str| {
        let filters = format!("probes: {{filters: {{comms: [{}]}}}}", program.name);
        format!("export: {{endpoint: '{}'}}\n{filters}\n{more}\n", sink.endpoint())
    };
    let mut run = Run::start(&settings(""));
    program.run_times(2);
    for (wrong, named) in [
        (settings("batch: {delay: soon}"), "batch.delay"),
        (settings("batch: {delay: 7s}"), "batch"),
        (settings("log_format: json"), "log_format"),
        (
            settings("destinations: [{name: new, endpoint: 'https://localhost:1', ca_file: /nonexistent}]"),
            "No such file",
        ),
        ("export: {endpoint: '".to_owned(), "line"),
    ] {
        run.be_refused(&wrong);
        run.namespan.wait_for_log(named);
    }
    // All of it is as before, and the next valid settings are taken up.
    program.run_times(2);
    run.change(&settings("arguments: off"));
    program.run_times(2);
    let finished = run.namespan.stop().shipped_all();
    assert_eq!((finished.summary.seen, count(&sink.records())), (12, (6, 6)));
    let records = sink.records();
    let execs = records.iter().filter(|record| record.is_exec());
    let without_arguments = execs.filter(|record| *record.get("process.command_args") == Value::Empty);
    assert_eq!(without_arguments.count(), 2);
}

#[test]
fn another_endpoint_gets_what_comes_and_what_the_old_one_did_not_take() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let [old, new] = [Sink::start(), Sink::start()];
    let settings = |endpoint: &str, protocol: &str| {
        format!(
            "export: {{endpoint: '{endpoint}', protocol: {protocol}}}\nbatch: {{delay: 100ms}}\nprobes: {{filters: \
             {{comms: [{}]}}}}\n",
            program.name
        )
    };
    let mut run = Run::start(&settings(&old.endpoint(), "http/protobuf"));
    program.run_times(4);
    assert_eq!(old.wait_for_count(8, PATIENCE).len(), 8);
    assert_eq!(old.wait_for_span_count(4, PATIENCE).len(), 4);
    old.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
    program.run_times(4);
    run.namespan.wait_for_log("cannot be delivered for now");
    run.change(&settings(&new.endpoint(), "http/json"));
    program.run_times(4);
    let summary = run.namespan.stop().shipped_all().summary;
    assert_eq!((summary.seen, summary.exported), (24, 24));
    assert_eq!((old.records().len(), old.spans().len()), (8, 4));
    assert_eq!((new.records().len(), new.spans().len()), (16, 8));
}

#[test]
fn destinations_come_and_go() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let [main, other] = [Sink::start(), Sink::start()];
    let settings = |destinations: &str| {
        format!(
            "export: {{endpoint: '{}'}}\nprobes: {{filters: {{comms: [{}]}}}}\ndestinations: {destinations}\n",
            main.endpoint(),
            program.name
        )
    };
    let both = format!("[{{name: other, endpoint: '{}', traces: {{exporter: none}}}}]", other.endpoint());
    let mut run = Run::start(&settings("[]"));
    program.run_times(1);
    run.change(&settings(&both));
    program.run_times(2);
    run.change(&settings("[]"));
    program.run_times(4);
    let finished = run.namespan.stop();
    assert_eq!((main.records().len(), main.spans().len()), (14, 7), "{}", finished.stderr);
    assert_eq!((count(program.of(&other.records())), other.spans().len()), ((2, 2), 0), "{}", finished.stderr);
    assert!(finished.stderr.contains("to other, exported 4, rejected 0, dropped 0"), "{}", finished.stderr);
}
