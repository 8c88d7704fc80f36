//! Uprobes in containers of a real Docker daemon: whose calls are told, and that none is missing and none too many.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::{Value, has};
use namespan_integration::called::{
    self, Build, CALLED, Caller, NUMBER, each_of, hits, is_hit, is_hit_of, numbers, probe, settings,
};
use namespan_integration::docker::{Docker, TAG, docker};
use namespan_integration::image::{self, succeed};
use namespan_integration::namespan::{Namespan, command};
use namespan_integration::needs::{Need, met};
use namespan_integration::rotel::Rotel;
use namespan_integration::settings::Run;
use namespan_integration::sink::{Record, Sink, lines};
use namespan_integration::span::Span;
use namespan_integration::terminal::Terminal;
use namespan_integration::watched::poll;

const BASH: &str = "/bin/bash";
const PROMPT: &str = "ready> ";
const SECRET: &str = "hunter2-nstest";
/// Of each container of a case.
const CALLS: usize = 300;

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker, Need::Program("cc")])
}

fn ready_to_type() -> bool {
    met(&[Need::Namespan, Need::Docker, Need::Program("bash")])
}

/// An image with bash, whose `readline` is its own.
fn with_bash() -> Docker {
    let root = image::root();
    fs::copy(BASH, root.path().join(&BASH[1..])).unwrap();
    image::add_libraries(root.path(), BASH.as_ref());
    Docker::of(root.path())
}

/// A container that sleeps.
fn sleeping(docker: &Docker, suffix: &str) -> String {
    docker.run(suffix, &["--detach"], &["sleep", "600"]).name
}

/// Somebody at a terminal of a container.
fn bash(container: &str) -> Terminal {
    let mut command = Command::new("docker");
    command.args([
        "exec",
        "--interactive",
        "--tty",
        "--env",
        "TERM=dumb",
        "--env",
        &format!("PS1={PROMPT}"),
        container,
    ]);
    command.args([BASH, "--norc", "--noprofile", "-i"]);
    let terminal = Terminal::start(command);
    terminal.wait_for(PROMPT, 1);
    terminal
}

/// Types lines that are not counted, until one is told.
fn type_until(terminal: &mut Terminal, is_told: impl Fn(&str) -> bool) {
    const TIMES: usize = 100;
    let told = (0..TIMES).any(|number| {
        let line = format!(": before {number}");
        terminal.line(&line, PROMPT);
        poll(Duration::from_millis(300), || is_told(&line).then_some(())).is_some()
    });
    assert!(told, "none of {TIMES} lines is told");
}

fn has_come(sink: &Sink, line: &str) -> bool {
    sink.seen(|records| records.iter().any(|record| is_hit(record) && returned(record) == line))
}

fn is_before(line: &str) -> bool {
    line.starts_with(": before ")
}

fn returned(record: &Record) -> &str {
    record.get("namespan.uprobe.return_value").text()
}

/// What readline has returned, in order, from the first line on that is counted.
fn typed<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<&'a str> {
    let mut records: Vec<_> = records.into_iter().filter(|record| !is_before(returned(record))).collect();
    records.sort_by_key(|record| record.time_ns);
    records.into_iter().map(returned).collect()
}

/// The only exec of bash in a container.
fn exec_of_bash<'a>(records: &'a [Record], container: &str) -> &'a Record {
    let is_bash = |record: &&Record| {
        record.is_exec()
            && *record.get("process.executable.path") == BASH.into()
            && *record.of_resource("container.name") == container.into()
    };
    let [exec] = records.iter().filter(is_bash).collect::<Vec<_>>()[..] else { panic!("not one exec of bash") };
    exec
}

#[test]
fn each_line_typed_into_bash_in_a_container_arrives_once_at_the_collector() {
    if !ready_to_type() || !met(&[Need::Rotel]) {
        return;
    }
    let docker = with_bash();
    let [web, other] = ["web", "other"].map(|suffix| sleeping(&docker, suffix));
    let sink = Sink::start();
    let rotel = Rotel::start(&sink);
    let probes = format!(
        "- {{name: bash-readline, containers: ['name:{web}'], binary: {BASH}, function: readline, returns: string}}\n"
    );
    let run = Run::start(&settings(&rotel.endpoint("http/protobuf"), &probes));
    let [mut terminal, mut unwatched] = [&web, &other].map(|container| bash(container));
    type_until(&mut terminal, |line| has_come(&sink, line));
    for line in ["echo one", r#"x="two  words"; echo '$x' \;"#, "", "echo one"] {
        terminal.line(line, PROMPT);
        unwatched.line(line, PROMPT);
    }
    terminal.last_line("exit 0");
    unwatched.last_line("exit 0");
    let summary = run.namespan.stop().shipped_all().summary;
    let records = rotel.delivered(&sink, summary.exported);

    let ours: Vec<_> = hits(&records, "bash-readline", &web).collect();
    assert_eq!(typed(ours.iter().copied()), ["echo one", r#"x="two  words"; echo '$x' \;"#, "", "echo one", "exit 0"]);
    assert_eq!(records.iter().filter(|record| is_hit(record)).count(), ours.len(), "of the other container");
    let exec = exec_of_bash(&records, &web);
    let id = docker_id(&web);
    for record in ours {
        assert_eq!((record.event.as_str(), record.severity), ("namespan.uprobe.return", 9));
        assert!(record.time_ns >= exec.time_ns, "{record:#?}");
        let same = ["process.pid", "process.vpid", "process.creation.time", "process.executable.path"];
        for key in same.into_iter().chain(["namespan.namespace.pid.inode", "namespan.namespace.mnt.inode"]) {
            assert_eq!(record.get(key), exec.get(key), "{key}");
        }
        assert_eq!(record.resource.attributes, exec.resource.attributes);
        assert!(!exec.span_id.is_empty() && !exec.trace_id.is_empty(), "{exec:#?}");
        assert_eq!((&record.trace_id, &record.span_id), (&exec.trace_id, &exec.span_id));
        let expected = [
            ("code.function.name", "readline".into()),
            ("namespan.uprobe.binary.path", BASH.into()),
            ("thread.name", "bash".into()),
            ("namespan.thread.tid", exec.get("process.pid").clone()),
        ];
        has(&record.attributes, "a line", &expected);
        assert!(record.get("namespan.uprobe.offset").int() > 0, "{record:#?}");
        let expected = [
            ("container.name", web.as_str().into()),
            ("container.id", id.as_str().into()),
            ("container.image.name", docker.image.as_str().into()),
        ];
        has(&record.resource.attributes, "a line", &expected);
    }
}

fn docker_id(container: &str) -> String {
    docker(&["inspect", "--format", "{{.Id}}", container]).trim().to_owned()
}

#[test]
fn the_one_line_form_prints_what_is_typed_and_nothing_else() {
    if !ready_to_type() {
        return;
    }
    let docker = with_bash();
    let web = sleeping(&docker, "web");
    let namespan = Namespan::probe(&["--console", "jsonl", &format!("{web}:{BASH}:readline -> line:string")]);
    let mut terminal = bash(&web);
    type_until(&mut terminal, |line| namespan.printed().contains(line));
    terminal.line("echo 'typed'", PROMPT);
    terminal.last_line("exit 0");
    let finished = namespan.stop().without_loss();
    let (records, spans) = lines(&finished.stdout);
    assert_eq!(typed(&records), ["echo 'typed'", "exit 0"]);
    assert!(spans.is_empty());
    for record in &records {
        assert_eq!(record.event, "namespan.uprobe.return");
        assert_eq!(*record.get("namespan.uprobe.name"), "readline".into());
        assert_eq!(*record.of_resource("container.name"), web.as_str().into());
    }
    assert_eq!(finished.summary.printed, records.len() as u64);
}

#[test]
fn a_password_that_is_redacted_is_in_nothing_that_leaves() {
    if !ready_to_type() {
        return;
    }
    let docker = with_bash();
    let web = sleeping(&docker, "web");
    let sink = Sink::start();
    let probes = format!(
        "- {{name: lines, containers: ['name:{web}'], binary: {BASH}, function: readline, returns: string, redact: \
         ['(?i)password=\\S+', '{}']}}\n",
        &SECRET[..7]
    );
    let (_folder, file) = written(&settings(&sink.endpoint(), &probes));
    let namespan = Namespan::run(&["--console", "table", "--log-level", "debug", "--config", &file]);
    let mut terminal = bash(&web);
    type_until(&mut terminal, |line| has_come(&sink, line));
    terminal.line(&format!("export PASSWORD={SECRET} OTHER=kept"), PROMPT);
    terminal.line(&format!(": {SECRET}"), PROMPT);
    terminal.last_line("exit 0");
    let finished = namespan.stop().without_loss();
    let records = sink.records();
    assert_eq!(
        typed(records.iter().filter(|record| is_hit(record))),
        ["export *** OTHER=kept", ": ***-nstest", "exit 0"]
    );
    let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert!(printed.contains("OTHER=kept"), "{printed}");
    for left in [printed, finished.stderr, format!("{records:?}"), format!("{:?}", sink.spans())] {
        assert!(!left.contains(&SECRET[..7]), "{left}");
    }
}

/// A file of settings, for as long as the folder is there.
fn written(settings: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("namespan.yaml");
    fs::write(&file, settings).unwrap();
    (folder, file.to_str().unwrap().to_owned())
}

#[test]
fn of_containers_with_the_same_binary_only_the_selected_ones_are_told() {
    if !ready() {
        return;
    }
    // Another file in it, so that they share no layer.
    let [same, another] = ["same", "another"].map(|mark| {
        let root = called::root();
        fs::write(root.path().join("etc/mark"), mark).unwrap();
        Docker::of(root.path())
    });
    let label = image::unique("nstest-label");
    let labelled = format!("{label}=yes");
    let names = [same.name("one"), same.name("two"), another.name("three")];
    let [one, two, three] = &names;
    let mut callers = [
        Caller::in_container(&same, one, &[]),
        Caller::in_container(&same, two, &["--label", &labelled]),
        Caller::in_container(&another, three, &["--label", &labelled]),
    ];
    let cases = [
        (format!("name:{one}"), vec![0]),
        (format!("image:{}", same.image), vec![0, 1]),
        (format!("image:{}:{}", another.image, TAG), vec![2]),
        (format!("label:{labelled}"), vec![1, 2]),
        (format!("label:{label},image:{}", same.image), vec![1]),
    ];
    for (selector, selected) in cases {
        let sink = Sink::start();
        let run = Run::start(&settings(&sink.endpoint(), &probe("calls", &selector, CALLED, "called")));
        for at in &selected {
            let name = &names[*at];
            callers[*at].call_until_told("called", &sink, &selector, |record| is_hit_of(record, "calls", name));
        }
        for caller in &mut callers {
            caller.call("called", CALLS);
        }
        assert!(run.namespan.stop().shipped_all().status.success());
        let records = sink.records();
        for (at, name) in names.iter().enumerate() {
            let expected = if selected.contains(&at) { each_of(CALLS) } else { Vec::new() };
            assert_eq!(numbers(hits(&records, "calls", name)), expected, "{selector}: {name}");
        }
        let told = records.iter().filter(|record| is_hit(record));
        assert_eq!(numbers(told).len(), CALLS * selected.len(), "{selector}");
    }
}

#[test]
fn whole_calls_have_their_arguments_value_and_duration_and_a_span_each() {
    if !ready() {
        return;
    }
    let docker = Docker::of(called::root().path());
    let name = docker.name("spans");
    let sink = Sink::start();
    let probes = format!(
        "- {{name: calls, containers: ['name:{name}'], binary: {CALLED}, function: called, args: ['{NUMBER}'], returns: \
         i64, span: true, severity: debug, rate: none}}\n"
    );
    let run = Run::start(&settings(&sink.endpoint(), &probes));
    let mut caller = Caller::in_container(&docker, &name, &[]);
    caller.call_until_told("called", &sink, "calls", |record| is_hit_of(record, "calls", &name));
    caller.call("called", CALLS);
    caller.end();
    assert!(run.namespan.stop().shipped_all().status.success());
    let (records, spans) = (sink.records(), sink.spans());
    let ours: Vec<_> = hits(&records, "calls", &name).filter(|record| called::number(record) >= 0).collect();
    assert_eq!(numbers(ours.iter().copied()), each_of(CALLS));
    let process = |record: &&Record| record.is_exec() && *record.get("process.pid") == *ours[0].get("process.pid");
    let process = records.iter().filter(process).max_by_key(|record| record.time_ns).unwrap();
    for record in ours {
        assert_eq!((record.event.as_str(), record.severity), ("namespan.uprobe.return", 5));
        assert_eq!(record.get("namespan.uprobe.return_value").int(), called::number(record) + 1);
        let Value::Double(duration) = *record.get("namespan.uprobe.duration") else { panic!("{record:#?}") };
        assert!((0.0..10.0).contains(&duration), "{duration}");
        let number = record.get("namespan.uprobe.args.number");
        let is_ours = |span: &&Span| span.name == "called" && span.get("namespan.uprobe.args.number") == number;
        let [span] = spans.iter().filter(is_ours).collect::<Vec<_>>()[..] else {
            panic!("not one span of {record:#?}")
        };
        assert_eq!((&span.trace_id, &span.parent_span_id), (&process.trace_id, &process.span_id));
        assert_eq!(*span.of_resource("container.name"), name.as_str().into());
        assert!(span.start_ns <= span.end_ns);
    }
}

#[test]
fn of_a_container_that_starts_later_the_first_calls_are_missed_and_no_other() {
    const EVERY_US: usize = 200;
    if !ready() {
        return;
    }
    let docker = Docker::of(called::root().path());
    let sink = Sink::start();
    let target = format!("name:{}", docker.name("later-*"));
    let run = Run::start(&settings(&sink.endpoint(), &probe("calls", &target, CALLED, "called")));
    // The second finds the file probed.
    for suffix in ["later-1", "later-2"] {
        let name = docker.name(suffix);
        // From its first moment on.
        let mut caller =
            Caller::begin(called::run(&docker, &name, &[]).args([CALLED, &format!("pace called {EVERY_US} 0")]));
        sink.wait_for(&name, PATIENCE, |records| {
            records.iter().any(|record| is_hit_of(record, "calls", &name)).then_some(())
        });
        caller.tell("enough");
        let calls: usize = caller.answer().parse().unwrap();
        caller.end();
        let last = i64::try_from(calls).unwrap() - 1;
        sink.wait_for("its last call", PATIENCE, |records| {
            records
                .iter()
                .any(|record| is_hit_of(record, "calls", &name) && called::number(record) == last)
                .then_some(())
        });
        let records = sink.records();
        let told = numbers(hits(&records, "calls", &name));
        let first = told[0];
        assert_eq!(told, (first..=last).collect::<Vec<_>>(), "each from the first on that was told");
        eprintln!(
            "{suffix}: {first} of {calls} calls were missed, one about every {EVERY_US} us from its first moment on"
        );
    }
    assert!(run.namespan.stop().shipped_all().status.success());
}

#[test]
fn a_library_that_is_opened_later_is_probed_then() {
    if !ready() {
        return;
    }
    let root = called::dynamic_root();
    called::build(&root.path().join("tmp/libnstest.so.1"), Build::Library);
    let docker = Docker::of(root.path());
    let name = docker.name("opens");
    let sink = Sink::start();
    let target = format!("name:{name}");
    let run = Run::start(&settings(&sink.endpoint(), &probe("opened", &target, "libnstest", "from_library")));
    let mut caller = Caller::in_container(&docker, &name, &[]);
    assert_eq!(caller.ask("open /tmp/libnstest.so.1"), "done");
    let attached =
        caller.call_until_told("from_library", &sink, "the library", |record| is_hit_of(record, "opened", &name));
    eprintln!("a library is probed {:?} after it was opened", attached.after);
    caller.call("from_library", CALLS);
    caller.end();
    assert!(run.namespan.stop().shipped_all().status.success());
    let records = sink.records();
    assert_eq!(numbers(hits(&records, "opened", &name)), each_of(CALLS));
    for record in hits(&records, "opened", &name) {
        assert_eq!(*record.get("namespan.uprobe.binary.path"), "/tmp/libnstest.so.1".into());
    }
}

#[test]
fn symbols_of_a_program_and_of_a_library_in_a_container_are_listed() {
    if !ready() {
        return;
    }
    let docker = Docker::of(called::dynamic_root().path());
    let name = docker.name("listed");
    let _caller = Caller::in_container(&docker, &name, &[]);
    let listed = |binary: &str, pattern: &str| {
        succeed(command().args(["symbols", "--container", &name, "--binary", binary, pattern]))
    };
    let told = listed(CALLED, "^told_[0-9]{2}$");
    assert_eq!(told.lines().filter(|line| line.contains("told_")).count(), 100, "{told}");
    assert!(listed("libc", "^malloc$").lines().any(|line| line.contains("malloc")));
}
