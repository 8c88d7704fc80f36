//! A file that is renamed while it is executed.

use namespan_integration::settings::Run;
use namespan_integration::sink::Sink;

use super::bypass::image;
use super::storm::{Ends, Tool, narrow};
use super::{decisions, exec, ready, ready_made, settings};

const EXECS: u64 = 2000;
/// One file, which has either name at any time; only the second is a shell's.
const NAMES: [&str; 2] = ["/opt/tool", "/opt/bash"];

/// What became of it under a policy, and what was told. What ran ran by one of both names.
fn race(policy: &str) -> (Ends, Vec<super::Decision>) {
    let image = image();
    let sink = Sink::start();
    let name = narrow(&image, "race");
    assert_eq!(exec(&name, &["/bin/busybox", "cp", "/bin/busybox", NAMES[0]]), 0);
    let guard = format!("  budget: {{kills: none}}\n  files: ['{}']\n", ready_made(policy));
    let run = Run::start(&settings(&sink, "enforce", &guard));
    let ends = Tool::start(&name, &["race", &EXECS.to_string(), NAMES[0], NAMES[1], "true"]).end();
    let finished = run.namespan.stop();
    let guard = finished.summary.guard.clone().unwrap();
    // A record may find no room where the machine is slow; what it tells of was done, and it is counted.
    let counts = (guard.decided, guard.killed, guard.told + guard.dropped);
    assert_eq!(counts, (ends.killed, ends.killed, ends.killed), "{}", finished.stderr);
    let told = decisions(&sink, &name);
    assert_eq!(told.len() as u64, guard.told, "{}", finished.stderr);
    assert_eq!((ends.tried(), ends.denied, ends.crowded), (EXECS, 0, 0), "{ends:?}");
    for record in sink.records() {
        if record.is_exec() && *record.of_resource("container.name") == name.as_str().into() {
            let path = record.get("process.executable.path").text();
            assert!(NAMES.contains(&path) || path == super::bypass::TOOL, "{path}");
        }
    }
    assert!(finished.status.success(), "{}", finished.stderr);
    (ends, told)
}

#[test]
fn who_renames_while_executing_runs_by_an_allowed_name_or_not_at_all() {
    if !ready() {
        return;
    }
    let (ends, told) = race("no-shells-in-containers");
    assert!(ends.ran > 0 && ends.killed > 0, "{ends:?}");
    assert!(told.iter().all(|told| told.path == NAMES[1] && told.rule == "match[0]"), "{told:#?}");
}

#[test]
fn who_renames_while_executing_does_not_get_into_the_image() {
    if !ready() {
        return;
    }
    let (ends, told) = race("only-from-the-image");
    assert!(ends.ran == 0 && ends.killed > 0, "{ends:?}");
    assert!(told.iter().all(|told| NAMES.contains(&told.path.as_str()) && told.origin == "changed"), "{told:#?}");
}
