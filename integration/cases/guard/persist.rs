//! The agent is killed: what was at work ends with it, or, if that is wished, goes on without it.

use std::fs;
use std::path::Path;

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::settings::Run;
use namespan_integration::sink::Sink;

use super::bypass::image;
use super::storm::{Ends, Tool, narrow};
use super::{KILLED, STATUS, decisions, exec, ready, ready_made, settings};

const PINS: &str = "/sys/fs/bpf/namespan";

/// Whatever becomes of a case, no guard stays at work on this host.
struct NoPins;

impl Drop for NoPins {
    fn drop(&mut self) {
        let removed = !Path::new(PINS).exists() || fs::remove_dir_all(PINS).is_ok();
        assert!(removed || std::thread::panicking(), "{PINS} stays behind");
    }
}

fn guard(persist: bool) -> String {
    let files = ready_made("no-shells-in-containers");
    format!("  persist: {persist}\n  budget: {{kills: none}}\n  files: ['{files}']\n")
}

#[test]
fn a_guard_that_persists_goes_on_and_is_taken_over_without_a_gap() {
    if !ready() {
        return;
    }
    let _no_pins = NoPins;
    let image = image();
    let sink = Sink::start();
    let name = narrow(&image, "persists");
    let shell = || exec(&name, &["/bin/bash", "-c", "exit 7"]);
    let run = Run::start(&settings(&sink, "enforce", &guard(true)));
    assert_eq!(shell(), KILLED);
    // Through the end of one and the start of the next.
    let storm = Tool::start(&name, &["until-told", "/bin/bash", "bash", "-c", "exit 7"]);
    run.namespan.kill();
    assert_eq!(shell(), KILLED);
    let second = Sink::start();
    // The storm is told to the last.
    let patient = settings(&second, "enforce", &guard(true)) + "queue: {drain: 50s}\n";
    let run = Run::start(&patient);
    // With the second for a while, too.
    second.wait_for("decisions of the next", PATIENCE, |records| {
        (records.iter().filter(|record| record.event == super::ACTION).count() > 100).then_some(())
    });
    let ends = storm.end();
    assert_eq!(ends, Ends { killed: ends.tried(), ..Ends::default() });
    assert_eq!(shell(), KILLED);
    let finished = run.namespan.stop();
    let told = finished.summary.guard.clone().unwrap();
    assert_eq!((told.decided, told.told + told.dropped), (told.killed, told.killed), "{}", finished.stderr);
    assert_eq!(decisions(&second, &name).len() as u64, told.told, "{}", finished.stderr);
    let statuses: Vec<_> = second.records().iter().filter(|record| record.event == STATUS).cloned().collect();
    let statuses: Vec<_> = statuses.iter().map(|record| record.get(STATUS).text()).collect();
    assert_eq!(statuses, ["taken_over", "enforcing"]);
    assert!(finished.status.success(), "{}", finished.stderr);
    // Nor does it end with one that ends in order.
    assert_eq!(shell(), KILLED);
    // But with the next that is not to persist.
    let run = Run::start(&settings(&second, "enforce", &guard(false)));
    assert!(!Path::new(PINS).exists());
    assert_eq!(shell(), KILLED);
    run.namespan.kill();
    assert_eq!(shell(), 7);
}

#[test]
fn a_guard_that_persists_ends_with_a_start_that_has_no_policies() {
    if !ready() {
        return;
    }
    let _no_pins = NoPins;
    let image = image();
    let sink = Sink::start();
    let name = narrow(&image, "ends");
    let shell = || exec(&name, &["/bin/bash", "-c", "exit 7"]);
    Run::start(&settings(&sink, "enforce", &guard(true))).namespan.kill();
    assert_eq!(shell(), KILLED);
    let run = Run::start(&settings(&sink, "enforce", "  files: []\n"));
    assert!(!Path::new(PINS).exists());
    assert_eq!(shell(), 7);
    assert_eq!(run.namespan.stop().shipped_all().summary.guard, None);
}

#[test]
fn a_guard_that_does_not_persist_ends_at_the_moment_of_the_kill() {
    if !ready() {
        return;
    }
    let image = image();
    let sink = Sink::start();
    let name = narrow(&image, "killed");
    let shell = || exec(&name, &["/bin/bash", "-c", "exit 7"]);
    let run = Run::start(&settings(&sink, "enforce", &guard(false)));
    assert_eq!(shell(), KILLED);
    // Returns when it has ended.
    run.namespan.kill();
    assert_eq!(shell(), 7);
    let killed: Vec<_> = sink.records().into_iter().filter(|record| record.event == super::ACTION).collect();
    assert!(killed.iter().all(|record| *record.get("namespan.enforcement.result") == Value::from("killed")));
}
