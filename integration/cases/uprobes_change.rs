//! Uprobes while containers come, go and change, and while settings do: nothing is lost, and nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::{Value, has};
use namespan_integration::called::{
    self, Build, CALLED, Caller, NUMBER, each_of, hits, is_hit_of, numbers, probe, settings,
};
use namespan_integration::docker::{Docker, docker};
use namespan_integration::image;
use namespan_integration::namespan::Namespan;
use namespan_integration::needs::{Need, met};
use namespan_integration::settings::Run;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::watched::poll;

const CALLS: usize = 300;
const REFUSED: &str = "namespan.uprobe.refused";

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker, Need::Program("cc")])
}

/// What it holds of the kernel's probes, and of the files that they are in.
fn held(namespan: &Namespan) -> usize {
    let is_held = |file: &str| ["perf_event", "bpf_link", "bpf-link", CALLED].iter().any(|part| file.contains(part));
    namespan.open_files().iter().filter(|file| is_held(&file.to_string_lossy())).count()
}

fn assert_released(namespan: &Namespan, before: usize) {
    let released = poll(PATIENCE, || (held(namespan) == before).then_some(()));
    assert!(released.is_some(), "{} are held, not {before}: {:#?}", held(namespan), namespan.open_files());
}

/// Its own log has no word of anything that failed for good.
fn assert_without_errors(log: &str) {
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn a_container_that_is_restarted_ten_times_is_told_each_time_and_nothing_stays() {
    const STARTS: usize = 10;
    if !ready() {
        return;
    }
    let docker_image = Docker::of(called::root().path());
    let name = docker_image.name("again");
    docker(&["create", "--interactive", "--name", &name, &docker_image.tagged(), CALLED]);
    let sink = Sink::start();
    let run = Run::start(&settings(&sink.endpoint(), &probe("calls", &format!("name:{name}"), CALLED, "called")));
    let before = held(&run.namespan);
    for start in 1..=STARTS {
        let earlier = sink.seen(|records| records.iter().filter(|record| is_hit_of(record, "calls", &name)).count());
        let mut caller = Caller::start(Command::new("docker").args(["start", "--attach", "--interactive", &name]));
        let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &name]).trim().parse::<i64>().unwrap();
        let is_ours = |record: &Record| is_hit_of(record, "calls", &name) && *record.get("process.pid") == pid.into();
        caller.call_until_told("called", &sink, &format!("start {start} after {earlier} hits"), is_ours);
        assert!(held(&run.namespan) > before, "what is attached is held");
        caller.call("called", CALLS);
        caller.end();
        sink.wait_for(&format!("the calls of start {start}"), PATIENCE, |records| {
            let ours = numbers(records.iter().copied().filter(|record| is_ours(record)));
            (ours.len() >= CALLS).then(|| assert_eq!(ours, each_of(CALLS)))
        });
    }
    assert_released(&run.namespan, before);
    let finished = run.namespan.stop().shipped_all();
    assert_without_errors(&finished.stderr);
    assert_eq!(numbers(hits(&sink.records(), "calls", &name)).len(), STARTS * CALLS);
}

#[test]
fn containers_that_go_while_they_are_probed_harm_nobody() {
    const EACH: usize = 10;
    if !ready() {
        return;
    }
    let image = Docker::of(called::root().path());
    let sink = Sink::start();
    let target = format!("name:{}", image.name("*"));
    let run = Run::start(&settings(&sink.endpoint(), &probe("calls", &target, CALLED, "called")));
    let before = held(&run.namespan);
    let image = &image;
    thread::scope(|scope| {
        // One is gone once it runs, the other maybe before.
        scope.spawn(move || {
            for number in 0..EACH {
                let name = image.name(&format!("runs-{number}"));
                docker(&["run", "--detach", "--interactive", "--name", &name, &image.tagged(), CALLED]);
                docker(&["rm", "--force", &name]);
            }
        });
        scope.spawn(move || {
            for number in 0..EACH {
                let name = image.name(&format!("starts-{number}"));
                docker(&["create", "--interactive", "--name", &name, &image.tagged(), CALLED]);
                let mut start = Command::new("docker");
                start.args(["start", &name]).stdout(Stdio::null()).stderr(Stdio::null());
                let mut start = start.spawn().unwrap();
                docker(&["rm", "--force", &name]);
                // Whether it still found a container is a matter of luck.
                let _status = start.wait().unwrap();
            }
        });
    });
    let name = image.name("last");
    let mut caller = Caller::in_container(image, &name, &[]);
    caller.call_until_told("called", &sink, "one that stays", |record| is_hit_of(record, "calls", &name));
    caller.call("called", CALLS);
    caller.end();
    docker(&["rm", "--force", &name]);
    assert_released(&run.namespan, before);
    let finished = run.namespan.stop().shipped_all();
    assert_without_errors(&finished.stderr);
    let records = sink.records();
    assert_eq!(numbers(hits(&records, "calls", &name)), each_of(CALLS));
    // If a file was gone before it could be opened, it is said whose, at most once.
    let refused: Vec<_> = notes(&records).map(|note| container_of(note).text().to_owned()).collect();
    assert_eq!(refused.iter().collect::<BTreeSet<_>>().len(), refused.len(), "{refused:#?}");
    assert!(!refused.contains(&name), "{refused:#?}");
}

fn notes(records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().filter(|record| record.event == REFUSED)
}

fn notes_of<'a>(records: &'a [Record], probe: &str, container: &str) -> Vec<&'a Record> {
    let (probe, container): (Value, Value) = (probe.into(), container.into());
    let is_ours = |note: &&Record| *note.get("namespan.uprobe.name") == probe && container_of(note) == container;
    notes(records).filter(is_ours).collect()
}

/// As an attribute of its own, or of its resource.
fn container_of(note: &Record) -> Value {
    [note.get("container.name"), note.of_resource("container.name")]
        .into_iter()
        .find(|name| **name != Value::Empty)
        .cloned()
        .unwrap_or(Value::Empty)
}

#[test]
fn what_cannot_be_probed_is_told_once_for_each_container_and_attached_when_it_can() {
    const LATER: &str = "/opt/later";
    if !ready() || !met(&[Need::Program("runc")]) {
        return;
    }
    let root = called::root();
    fs::create_dir(root.path().join("opt")).unwrap();
    // Any program in Go.
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| fs::exists(path).unwrap()).unwrap();
    fs::copy(runc, root.path().join("bin/gopher")).unwrap();
    let image = Docker::of(root.path());
    let names = ["one", "two"].map(|suffix| image.name(suffix));
    let mut callers = names.each_ref().map(|name| Caller::in_container(&image, name, &[]));
    let target = format!("name:{}", image.name("*"));
    let go = format!(
        "- {{name: go-return, containers: ['{target}'], binary: /bin/gopher, function: runtime.gogo, kind: return}}\n"
    );
    let probes = [
        probe("no-binary", &target, LATER, "called"),
        probe("no-symbol", &target, CALLED, "no_such_function"),
        go,
        probe("fine", &target, CALLED, "called"),
    ];
    let sink = Sink::start();
    let run = Run::start(&settings(&sink.endpoint(), &probes.concat()));
    let refused = ["no-binary", "no-symbol", "go-return"];
    for (caller, name) in callers.iter_mut().zip(&names) {
        caller.call_until_told("called", &sink, "what can be probed", |record| is_hit_of(record, "fine", name));
    }
    sink.wait_for("six notes", PATIENCE, |records| {
        (records.iter().filter(|record| record.event == REFUSED).count() >= 6).then_some(())
    });
    let log = run.namespan.log();
    let lines =
        |probe: &str, name: &str| log.lines().filter(|line| line.contains(probe) && line.contains(name)).count();
    for (probe, name) in refused.iter().flat_map(|probe| names.iter().map(move |name| (probe, name))) {
        assert_eq!(lines(probe, name), 1, "{probe} in {name}:\n{log}");
    }

    let folder = tempfile::tempdir().unwrap();
    let later = folder.path().join("later");
    called::build(&later, Build::Static);
    let [one, two] = &names;
    docker(&["cp", later.to_str().unwrap(), &format!("{one}:{LATER}")]);
    let mut caller = Caller::in_running(one, LATER);
    caller.call_until_told("called", &sink, "what has come", |record| is_hit_of(record, "no-binary", one));
    caller.call("called", CALLS);
    caller.end();
    // Another process is no reason to say it again.
    let mut caller = Caller::in_running(two, CALLED);
    caller.call("called", CALLS);
    caller.end();
    let finished = run.namespan.stop().shipped_all();
    assert_without_errors(&finished.stderr);

    let records = sink.records();
    assert_eq!(numbers(hits(&records, "no-binary", one)), each_of(CALLS));
    assert_eq!(numbers(hits(&records, "fine", two)), each_of(CALLS));
    assert_eq!(notes(&records).count(), 6);
    let says = |probe: &str| match probe {
        "no-binary" => LATER,
        "no-symbol" => "no_such_function",
        _ => "runtime.gogo",
    };
    for (probe, name) in refused.iter().flat_map(|probe| names.iter().map(move |name| (*probe, name))) {
        let [note] = notes_of(&records, probe, name)[..] else { panic!("not one note of {probe} in {name}") };
        let reason = note.get("namespan.reason").text();
        assert!(reason.contains(says(probe)), "{probe}: {reason}");
        has(&note.attributes, "a note", &[("namespan.uprobe.name", probe.into())]);
    }
}

#[test]
fn probes_come_and_go_by_reloads_while_another_loses_no_hit() {
    const ROUNDS: usize = 5;
    const EVERY_US: usize = 300;
    if !ready() {
        return;
    }
    let image = Docker::of(called::root().path());
    let name = image.name("loaded");
    let sink = Sink::start();
    let target = format!("name:{name}");
    let stays = probe("stays", &target, CALLED, "called");
    // The one or the other, and the one that stays first or last.
    let with = |probe: &str, function: &str| {
        let other = called::probe(probe, &target, CALLED, function);
        let both = if function == "first" { [stays.as_str(), &other] } else { [&other, stays.as_str()] };
        settings(&sink.endpoint(), &both.concat())
    };
    let mut run = Run::start(&with("other-0", "first"));
    let mut loaded = Caller::in_container(&image, &name, &[]);
    let mut other = Caller::in_running(&name, CALLED);
    loaded.call_until_told("called", &sink, "what stays", |record| is_hit_of(record, "stays", &name));
    other.call_until_told("first", &sink, "what goes", |record| is_hit_of(record, "other-0", &name));
    loaded.tell(&format!("pace called {EVERY_US} 0"));
    for round in 1..=ROUNDS {
        let [comes, goes] = if round % 2 == 1 { ["second", "first"] } else { ["first", "second"] };
        let probe = format!("other-{round}");
        run.change(&with(&probe, comes));
        other.call_until_told(comes, &sink, &probe, |record| is_hit_of(record, &probe, &name));
        // Those of the one that is gone are nobody's.
        other.call(goes, CALLS);
        other.call(comes, CALLS);
    }
    loaded.tell("enough");
    let calls: usize = loaded.answer().parse().unwrap();
    let finished = run.namespan.stop().shipped_all();
    assert_without_errors(&finished.stderr);
    let records = sink.records();
    assert!(calls > CALLS, "{calls}");
    assert_eq!(numbers(hits(&records, "stays", &name)), each_of(calls), "{} reloads", run.taken_up);
    assert_eq!(numbers(hits(&records, "other-0", &name)), each_of(0));
    for round in 1..=ROUNDS {
        assert_eq!(numbers(hits(&records, &format!("other-{round}"), &name)), each_of(CALLS), "{round}");
    }
}

#[test]
fn a_probe_that_is_wrong_changes_nothing_of_those_that_are_there() {
    if !ready() {
        return;
    }
    let image = Docker::of(called::root().path());
    let name = image.name("wrong");
    let sink = Sink::start();
    let target = format!("name:{name}");
    let right = probe("right", &target, CALLED, "called");
    let mut run = Run::start(&settings(&sink.endpoint(), &right));
    let mut caller = Caller::in_container(&image, &name, &[]);
    caller.call_until_told("called", &sink, "what is right", |record| is_hit_of(record, "right", &name));
    // No program of the kernel can read the register of a float.
    let wrong = format!("{right}{}", probe("wrong", &target, CALLED, "first").replace("i64", "f64"));
    run.be_refused(&settings(&sink.endpoint(), &wrong));
    caller.call("called", CALLS);
    caller.end();
    assert!(run.namespan.stop().shipped_all().status.success());
    assert_eq!(numbers(hits(&sink.records(), "right", &name)), each_of(CALLS));
}

#[test]
fn a_selector_by_image_and_library_follows_containers_of_any_name() {
    if !ready() {
        return;
    }
    let root = called::dynamic_root();
    let docker = Docker::of(root.path());
    let sink = Sink::start();
    let probes = format!(
        "- {{name: allocated, containers: ['image:{}'], binary: libc, function: malloc, args: ['size:u64'], rate: \
         none}}\n- {{name: calls, containers: ['image:{}'], binary: {CALLED}, function: called, args: ['{NUMBER}'], \
         rate: none}}\n",
        docker.image, docker.image
    );
    let run = Run::start(&settings(&sink.endpoint(), &probes));
    let name = image::unique(&docker.name("named"));
    let mut caller = Caller::in_container(&docker, &name, &[]);
    caller.call_until_told("called", &sink, "the program", |record| is_hit_of(record, "calls", &name));
    let has_come = |size: i64| {
        sink.seen(|records| {
            records
                .iter()
                .any(|r| is_hit_of(r, "allocated", &name) && *r.get("namespan.uprobe.args.size") == size.into())
        })
    };
    let attached = poll(PATIENCE, || {
        assert_eq!(caller.ask("malloc 1 77"), "done");
        poll(std::time::Duration::from_millis(50), || has_come(77).then_some(()))
    });
    assert!(attached.is_some(), "malloc of {name} is not told");
    assert_eq!(caller.ask(&format!("malloc {CALLS} 4321")), "done");
    caller.end();
    assert!(run.namespan.stop().shipped_all().status.success());
    let records = sink.records();
    let sizes = hits(&records, "allocated", &name).filter(|r| *r.get("namespan.uprobe.args.size") == 4321.into());
    assert_eq!(sizes.count(), CALLS);
}
