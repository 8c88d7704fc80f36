//! The guard on real containers: what should not run does not, everything else does, and nets hold.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bypass;
mod persist;
mod race;
mod storm;

use std::fs;
use std::path::Path;
use std::process::Command;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::docker::{Docker, docker};
use namespan_integration::needs::{Need, met};
use namespan_integration::settings::Run;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::watched::poll;
use rustix::process::Signal;

const KILLED: i32 = 137;
/// How busybox ends under a name that is none of its own.
const RAN: i32 = 127;
const ACTION: &str = "namespan.enforcement.action";
/// An event, and its attribute.
const STATUS: &str = "namespan.guard.status";

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker])
}

/// A ready-made policy.
fn ready_made(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../otel-config/policies/{name}.yaml"));
    path.canonicalize().unwrap().display().to_string()
}

fn settings(sink: &Sink, mode: &str, guard: &str) -> String {
    format!("export: {{endpoint: '{}'}}\nguard:\n  mode: {mode}\n{guard}", sink.endpoint())
}

/// No shells, by the ready-made rules, in one container alone.
fn no_shells_in(name: &str) -> String {
    let policy = fs::read_to_string(ready_made("no-shells-in-containers")).unwrap();
    let policy = policy.replace("containers: all", &format!("containers: ['name:{name}']"));
    let indented = policy.lines().fold(String::new(), |text, line| text + "  " + line + "\n");
    assert!(indented.contains(name));
    indented
}

/// How a command ends in a container that runs.
fn exec(container: &str, command: &[&str]) -> i32 {
    Command::new("docker").args(["exec", container]).args(command).output().unwrap().status.code().unwrap()
}

/// A container that does nothing, for as long as the case takes.
fn idle(image: &Docker, suffix: &str) -> String {
    let name = image.name(suffix);
    docker(&["run", "--detach", "--name", &name, &image.tagged(), "/bin/sleep", "1000000"]);
    name
}

fn is_told(record: &Record, container: &str, result: &str) -> bool {
    record.event == ACTION
        && *record.of_resource("container.name") == Value::from(container)
        && *record.get("namespan.enforcement.result") == Value::from(result)
}

/// A policy's decision about an exec in a container, as it was told.
#[derive(Debug, PartialEq, Eq)]
struct Decision {
    result: String,
    rule: String,
    path: String,
    origin: String,
    arguments: Vec<String>,
}

impl Decision {
    fn of(record: &Record) -> Self {
        let text = |key| record.get(key).text().to_owned();
        let arguments = record.get("process.command_args").list();
        Self {
            result: text("namespan.enforcement.result"),
            rule: text("namespan.enforcement.rule"),
            path: text("process.executable.path"),
            origin: text("namespan.process.executable.origin"),
            arguments: arguments.iter().map(|argument| argument.text().to_owned()).collect(),
        }
    }
}

/// All that is told of a container, in the order in which it was decided. Of a run that has ended.
fn decisions(sink: &Sink, container: &str) -> Vec<Decision> {
    let mut records = sink.records();
    records.retain(|record| record.event == ACTION && *record.of_resource("container.name") == container.into());
    records.sort_by_key(|record| record.time_ns);
    records.iter().map(Decision::of).collect()
}

#[test]
fn a_shell_in_the_chosen_container_dies_and_all_others_live() {
    if !ready() {
        return;
    }
    let image = Docker::new();
    let sink = Sink::start();
    let [chosen, other] = ["chosen", "other"].map(|suffix| idle(&image, suffix));
    let run = Run::start(&settings(&sink, "enforce", &no_shells_in(&chosen)));
    // Docker has told of it by now, or does within moments.
    let died = poll(PATIENCE, || (exec(&chosen, &["/bin/sh", "-c", "exit 7"]) == KILLED).then_some(()));
    assert!(died.is_some());
    assert_eq!(exec(&other, &["/bin/sh", "-c", "exit 7"]), 7);
    assert_eq!(Command::new("/bin/sh").args(["-c", "exit 7"]).status().unwrap().code(), Some(7));
    assert_eq!(exec(&chosen, &["/bin/ls", "/"]), 0);
    // By other ways.
    for command in [&["/bin/busybox", "sh", "-c", "exit 7"][..], &["/bin/busybox", "ash", "-c", "exit 7"]] {
        assert_eq!(exec(&chosen, command), KILLED, "{command:?}");
    }
    sink.wait_for("the decision", PATIENCE, |records| {
        let record = records.iter().find(|record| is_told(record, &chosen, "killed"))?;
        assert_eq!(*record.get("security_rule.name"), Value::from("no-shells-in-containers"));
        assert_eq!(*record.get("namespan.enforcement.action"), Value::from("kill"));
        assert_eq!(*record.get("process.executable.path"), Value::from("/bin/busybox"));
        Some(())
    });
    let finished = run.namespan.stop().shipped_all();
    let guard = finished.summary.guard.unwrap();
    assert_eq!((guard.decided, guard.killed, guard.dropped), (guard.told, guard.told, 0), "{}", finished.stderr);
    assert!(sink.records().iter().all(|record| record.event != ACTION || is_told(record, &chosen, "killed")));
}

#[test]
fn a_policy_for_all_containers_holds_from_the_first_exec() {
    if !ready() {
        return;
    }
    let image = Docker::new();
    let sink = Sink::start();
    let files = format!("  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let run = Run::start(&settings(&sink, "enforce", &files));
    for number in 0..5 {
        let name = image.name(&format!("first-{number}"));
        let mut shell = Command::new("docker");
        shell.args(["run", "--name", &name, &image.tagged(), "/bin/sh", "-c", "exit 7"]);
        assert_eq!(shell.output().unwrap().status.code(), Some(KILLED));
        assert_eq!(
            docker(&["run", "--name", &image.name(&format!("ls-{number}")), &image.tagged(), "/bin/ls", "-d", "/"]),
            "/\n"
        );
    }
    assert!(run.namespan.stop().shipped_all().summary.guard.is_some());
}

#[test]
fn to_observe_stops_nothing_and_a_reload_does_from_then_on() {
    if !ready() {
        return;
    }
    let image = Docker::new();
    let sink = Sink::start();
    let name = idle(&image, "observed");
    let files = format!("  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let mut run = Run::start(&settings(&sink, "observe", &files));
    assert_eq!(exec(&name, &["/bin/sh", "-c", "exit 7"]), 7);
    sink.wait_for("what would be killed", PATIENCE, |records| {
        records.iter().any(|record| is_told(record, &name, "observed")).then_some(())
    });
    run.change(&settings(&sink, "enforce", &files));
    assert_eq!(exec(&name, &["/bin/sh", "-c", "exit 7"]), KILLED);
    // What is invalid changes nothing.
    run.be_refused(&settings(&sink, "enforce", "  files: [/nowhere.yaml]\n"));
    assert_eq!(exec(&name, &["/bin/sh", "-c", "exit 7"]), KILLED);
    run.change(&settings(&sink, "enforce", "  files: []\n"));
    assert_eq!(exec(&name, &["/bin/sh", "-c", "exit 7"]), 7);
    assert!(run.namespan.stop().shipped_all().summary.guard.is_some());
}

#[test]
fn ready_made_policies_stop_what_they_name() {
    if !ready() {
        return;
    }
    let image = Docker::new();
    let sink = Sink::start();
    let name = idle(&image, "ready");
    docker(&["exec", &name, "/bin/busybox", "cp", "/bin/busybox", "/tmp/apk"]);
    let files = |policy: &str| format!("  files: ['{}']\n", ready_made(policy));
    let mut run = Run::start(&settings(&sink, "enforce", &files("no-memfd")));
    assert_eq!(exec(&name, &["/tmp/apk", "true"]), RAN);
    run.change(&settings(&sink, "enforce", &files("no-package-managers")));
    assert_eq!(exec(&name, &["/tmp/apk", "true"]), KILLED);
    run.change(&settings(&sink, "enforce", &files("only-from-the-image")));
    assert_eq!(exec(&name, &["/tmp/apk", "true"]), KILLED);
    assert_eq!(exec(&name, &["/bin/ls", "/"]), 0);
    run.change(&settings(&sink, "enforce", &files("no-interactive-exec")));
    assert_eq!(exec(&name, &["/bin/ls", "/"]), 0);
    let mut typed = Command::new("script");
    typed.args(["-qec", &format!("docker exec -it {name} /bin/ls /"), "/dev/null"]);
    assert_eq!(typed.output().unwrap().status.code(), Some(KILLED));
    assert!(run.namespan.stop().shipped_all().summary.guard.is_some());
}

#[test]
fn who_kills_the_agent_ends_the_guard_and_who_stops_it_ends_the_lease() {
    if !ready() {
        return;
    }
    let image = Docker::new();
    let sink = Sink::start();
    let name = idle(&image, "lease");
    // Each look at it is a kill.
    let guard =
        format!("  lease: 2s\n  budget: {{kills: 10000}}\n  files: ['{}']\n", ready_made("no-shells-in-containers"));
    let shell = || exec(&name, &["/bin/sh", "-c", "exit 7"]);
    let run = Run::start(&settings(&sink, "enforce", &guard));
    assert_eq!(shell(), KILLED);
    run.namespan.signal(Signal::STOP);
    assert!(poll(PATIENCE, || (shell() == 7).then_some(())).is_some());
    run.namespan.signal(Signal::CONT);
    assert!(poll(PATIENCE, || (shell() == KILLED).then_some(())).is_some());
    sink.wait_for("the lease's end", PATIENCE, |records| {
        records.iter().any(|record| is_told(record, &name, "lease_expired")).then_some(())
    });
    run.namespan.kill();
    assert!(poll(PATIENCE, || (shell() == 7).then_some(())).is_some());
}
