//! Spans: where they are shipped beside logs, and what is told of them.

use super::*;
use crate::config::{RootSampler, Sampler, Trust};

const ENDPOINT: &str = "--endpoint http://c";

/// The endpoints of logs and spans.
fn endpoints(given: Given<'_>) -> [Option<String>; 2] {
    let Config { logs, traces, .. } = given.load().unwrap();
    [logs, traces].map(|export| export.map(|export| export.endpoint.to_string()))
}

#[test]
fn each_signal_has_its_endpoint_from_the_highest_layer() {
    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT=http://g";
    const LOGS: &str = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://l/x";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://t/y";
    const FILE: &str = "export: {endpoint: 'http://f'}";
    const OWN_FILE: &str = "export: {endpoint: 'http://f'}\nlogs: {endpoint: 'http://m/u'}\n\
                            traces: {endpoint: 'http://n/w'}";
    let each = format!("{LOGS}\n{TRACES}");
    let mixed = format!("{GENERAL}\n{TRACES}");
    let cases = [
        ("", "", "", ["", ""]),
        ("", GENERAL, "", ["http://g/v1/logs", "http://g/v1/traces"]),
        ("", LOGS, "", ["http://l/x", ""]),
        ("", TRACES, "", ["", "http://t/y"]),
        ("", &each, FILE, ["http://l/x", "http://t/y"]),
        ("", &mixed, FILE, ["http://g/v1/logs", "http://t/y"]),
        ("", TRACES, FILE, ["http://f/v1/logs", "http://t/y"]),
        ("", "", FILE, ["http://f/v1/logs", "http://f/v1/traces"]),
        ("", "", OWN_FILE, ["http://m/u", "http://n/w"]),
        ("", "", "traces: {endpoint: 'http://n/w'}", ["", "http://n/w"]),
        ("", TRACES, OWN_FILE, ["http://m/u", "http://t/y"]),
        ("", GENERAL, OWN_FILE, ["http://g/v1/logs", "http://g/v1/traces"]),
        (ENDPOINT, &each, OWN_FILE, ["http://c/v1/logs", "http://c/v1/traces"]),
        ("--endpoint http://c/a/v1/logs", "", "", ["http://c/a/v1/logs", "http://c/a/v1/traces"]),
        ("--endpoint http://c/a/v1/traces", "", "", ["http://c/a/v1/logs", "http://c/a/v1/traces"]),
    ];
    for (flags, env, file, wanted) in cases {
        let wanted = wanted.map(|url| Some(url.to_owned()).filter(|url| !url.is_empty()));
        assert_eq!(endpoints(Given { flags, env, file }), wanted, "{flags} {env} {file}");
    }
    assert_eq!(env(LOGS).load().unwrap().notes, [""; 0]);
}

#[test]
fn each_signal_is_switched_off_by_itself_and_a_note_says_which() {
    /// Flags, environment, file; whether logs and spans are shipped, and the notes.
    type Case<'a> = (&'a str, &'a str, &'a str, [bool; 2], &'a [&'a str]);
    const LOGS: &str = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://c";
    let none = "OTEL_LOGS_EXPORTER=none\nOTEL_TRACES_EXPORTER=none";
    let only_logs = format!("{LOGS}\nOTEL_TRACES_EXPORTER=otlp");
    let no_logs = "environment variable OTEL_LOGS_EXPORTER has no otlp: no logs are shipped";
    let no_spans = "environment variable OTEL_TRACES_EXPORTER has no otlp: no spans are shipped";
    let nowhere = "environment variable OTEL_TRACES_EXPORTER has otlp, but no endpoint is set for spans: none are \
                   shipped; give --endpoint, OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let no_exits = "flag --no-exit: without exits there are no spans, so none are shipped";
    let no_exit = "--endpoint http://c --no-exit";
    let cases: [Case<'_>; 16] = [
        (ENDPOINT, "", "", [true, true], &[]),
        (ENDPOINT, "OTEL_LOGS_EXPORTER=none", "", [false, true], &[no_logs]),
        (ENDPOINT, "OTEL_TRACES_EXPORTER=none", "", [true, false], &[no_spans]),
        (ENDPOINT, "OTEL_TRACES_EXPORTER=console,otlp", "", [true, true], &[]),
        (ENDPOINT, none, "", [false, false], &[no_logs, no_spans]),
        ("", none, "", [false, false], &[]),
        ("", "OTEL_TRACES_EXPORTER=otlp", "", [false, false], &[nowhere]),
        ("", &only_logs, "", [true, false], &[nowhere]),
        (ENDPOINT, "", "traces: {exporter: none}", [true, false], &[]),
        (ENDPOINT, "", "logs: {exporter: none}", [false, true], &[]),
        (ENDPOINT, "OTEL_TRACES_EXPORTER=otlp", "traces: {exporter: none}", [true, true], &[]),
        ("--endpoint http://c --no-spans", "OTEL_TRACES_EXPORTER=otlp", "", [true, false], &[]),
        ("--endpoint http://c --no-spans --no-exit", "", "", [true, false], &[]),
        (no_exit, "", "", [true, false], &[no_exits]),
        (no_exit, "OTEL_TRACES_EXPORTER=none", "", [true, false], &[no_spans]),
        ("--no-exit", LOGS, "", [true, false], &[]),
    ];
    for (flags, env, file, shipped, notes) in cases {
        let config = Given { flags, env, file }.load().unwrap();
        assert_eq!([config.logs.is_some(), config.traces.is_some()], shipped, "{flags} {env} {file}");
        assert_eq!(config.notes, notes, "{flags} {env} {file}");
    }
    let notes = file("probes: {exits: false}\nexport: {endpoint: 'http://c'}").load().unwrap().notes;
    assert!(notes[0].contains(" line 1: probes.exits: without exits there are no spans"), "{notes:?}");
    let disabled = Given { flags: no_exit, env: "OTEL_SDK_DISABLED=true", ..Given::default() }.load().unwrap();
    assert_eq!((disabled.logs, disabled.traces), (None, None));
    assert_eq!(disabled.notes, ["environment variable OTEL_SDK_DISABLED is true: nothing is shipped"]);
}

#[test]
fn the_console_follows_both_signals() {
    let cases = [
        ("", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c", Console::None),
        ("", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://c", Console::None),
        ("", "OTEL_TRACES_EXPORTER=none", Console::Table),
        ("", "OTEL_TRACES_EXPORTER=console", Console::Jsonl),
        ("--console tree", "OTEL_TRACES_EXPORTER=console", Console::Tree),
    ];
    for (flags, env, console) in cases {
        assert_eq!(Given { flags, env, ..Given::default() }.load().unwrap().console, console, "{flags} {env}");
    }
    assert_eq!(file("console: tree").load().unwrap().console, Console::Tree);
}

#[test]
fn what_is_switched_off_is_not_wanted_on_the_console_either() {
    for (flags, env, file, off) in [
        ("--console jsonl", "", "", &[][..]),
        ("--console jsonl", "OTEL_TRACES_EXPORTER=none", "", &[Signal::Traces]),
        ("--console jsonl", "OTEL_LOGS_EXPORTER=none", "", &[Signal::Logs]),
        ("", "OTEL_LOGS_EXPORTER=console\nOTEL_TRACES_EXPORTER=none", "", &[Signal::Traces]),
        ("--no-spans", "OTEL_TRACES_EXPORTER=console", "", &[Signal::Traces]),
        ("", "", "logs: {exporter: none}", &[Signal::Logs]),
        ("", "OTEL_LOGS_EXPORTER=otlp", "logs: {exporter: none}", &[]),
    ] {
        let config = Given { flags, env, file }.load().unwrap();
        assert_eq!(config.switched_off, off, "{flags} {env} {file}");
    }
}

#[test]
fn a_tree_without_exits_is_noted() {
    let notes = flags("--console tree --no-exit").load().unwrap().notes;
    assert_eq!(notes, ["flag --no-exit: without exits no process ends, so a tree shows only what runs"]);
    assert_eq!(flags("--console tree").load().unwrap().notes, [""; 0]);
}

#[test]
fn every_setting_of_spans_can_be_given_in_the_file() {
    let spans = file(
        "spans:
  sampler: traceidratio
  sampler_arg: 0.25
  max_duration: 1h
  max_per_trace: 9
  boundaries: [tmux*, screen]
  env_context: [host, 'name:web-*', 'image:r.example:5000/ci']
  ok_exit_codes: {'rsync*': [23, 24], grep: []}
",
    )
    .load()
    .unwrap()
    .spans;
    let wanted = Spans {
        sampler: Sampler { parent_based: false, root: RootSampler::Below(1 << 61) },
        max_duration: Duration::from_secs(3600),
        max_per_trace: 9,
        boundaries: vec!["tmux*".to_owned(), "screen".to_owned()],
        env_context: vec![Trust::Host, Trust::Name("web-*".to_owned()), Trust::Image("r.example:5000/ci".to_owned())],
        ok_exit_codes: vec![("grep".to_owned(), vec![]), ("rsync*".to_owned(), vec![23, 24])],
    };
    assert_eq!(spans, wanted);
}

#[test]
fn the_sampler_and_its_ratio_come_from_the_highest_layer_each() {
    const FILE: &str = "spans: {sampler: always_off, sampler_arg: 0.5}";
    let on = |parent_based| Sampler { parent_based, root: RootSampler::On };
    let below = |parent_based, below| Sampler { parent_based, root: RootSampler::Below(below) };
    let cases = [
        ("", "", on(true)),
        ("", FILE, Sampler { parent_based: false, root: RootSampler::Off }),
        ("OTEL_TRACES_SAMPLER=always_on", FILE, on(false)),
        ("OTEL_TRACES_SAMPLER=traceidratio", "", below(false, 1 << 63)),
        ("OTEL_TRACES_SAMPLER=traceidratio", FILE, below(false, 1 << 62)),
        ("OTEL_TRACES_SAMPLER=parentbased_traceidratio\nOTEL_TRACES_SAMPLER_ARG=0.25", FILE, below(true, 1 << 61)),
        ("OTEL_TRACES_SAMPLER_ARG=0", "spans: {sampler: traceidratio}", below(false, 0)),
        ("OTEL_TRACES_SAMPLER_ARG=endpoint=http://c:14250", "", on(true)),
    ];
    for (env, file, sampler) in cases {
        assert_eq!(Given { env, file, ..Given::default() }.load().unwrap().spans.sampler, sampler, "{env} {file}");
    }
    let message = env("OTEL_TRACES_SAMPLER=traceidratio\nOTEL_TRACES_SAMPLER_ARG=10%").refusal();
    assert_eq!(message, "environment variable OTEL_TRACES_SAMPLER_ARG: `10%` is not a ratio from 0 to 1, such as 0.1");
}

#[test]
fn the_environment_of_processes_is_read_unless_nobody_is_trusted() {
    let trusted = |given: Given<'_>| given.load().unwrap().spans.env_context;
    assert_eq!(trusted(Given::default()), [Trust::All]);
    assert_eq!(trusted(file("spans: {env_context: [containers]}")), [Trust::Containers]);
    for text in ["spans: {env_context: []}", "spans: {env_context: [none]}"] {
        assert_eq!(trusted(file(text)), []);
    }
    let flag = Given { flags: "--no-env-context", file: "spans: {env_context: [host]}", ..Given::default() };
    assert_eq!(trusted(flag), []);
}

#[test]
fn a_list_in_the_file_replaces_the_default_list() {
    let spans = file("spans:\n  boundaries: []\n  ok_exit_codes: {}\n").load().unwrap().spans;
    assert_eq!(spans, Spans { boundaries: vec![], ok_exit_codes: vec![], ..Spans::default() });
}

#[test]
fn a_smaller_queue_of_one_signal_is_of_that_signal_alone() {
    let config = env("OTEL_BSP_MAX_QUEUE_SIZE=100").load().unwrap();
    assert_eq!((config.span_batch.max_records, config.span_queue.max_records), (100, Some(100)));
    assert_eq!((config.batch, config.queue), (Batch::default(), Queue::default()));
}
