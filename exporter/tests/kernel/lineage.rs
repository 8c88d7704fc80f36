//! What is above a process, and the trace that its environment names.

use std::process::Command;

use namespan::config::Probes;
use namespan_ebpf::wire::flag;

use crate::watch::{Told, Watch, execs, execs_as};
use crate::workload::{BUSYBOX, run, token};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The exec of `busybox true TOKEN`, run by a shell as the script says.
#[track_caller]
fn below(watch: &mut Watch, script: &str) -> (Told, Told) {
    let token = token();
    let script = script.replace("CHILD", &format!("{BUSYBOX} true {token}"));
    let pid = run(Command::new(BUSYBOX).args(["sh", "-c", &script]));
    (watch.find(execs(pid)), watch.find(execs_as(BUSYBOX, &token)))
}

#[test]
fn the_nearest_process_above_that_has_execd_is_found_through_forks() {
    let Some(mut watch) = Watch::default() else { return };
    let deep = format!("{}CHILD{}", "(".repeat(25), "; true)".repeat(25));
    for (script, direct) in [
        (deep.as_str(), true),
        ("CHILD; true", true),
        ("(CHILD; true); true", true),
        ("( ( ( (CHILD; true); true); true); true); true", true),
        ("(exec CHILD); true", true),
        ("CHILD | cat", true),
        ("exec CHILD", false),
        ("/bin/busybox sh -c 'CHILD; true'; true", false),
    ] {
        let (shell, child) = below(&mut watch, script);
        assert_eq!(child.exec().ancestor == Some(shell.id()), direct, "{script}");
        let ourselves = shell.exec().ancestor.unwrap();
        assert_eq!(ourselves.tgid, std::process::id(), "{script}");
    }
    watch.end_whole();
}

#[test]
fn who_has_been_adopted_is_below_the_adopter() {
    let Some(mut watch) = Watch::default() else { return };
    // The shell in between is gone when the child execs: its pid is that of nobody.
    let waits = "(while kill -0 $$ 2>/dev/null; do :; done; exec CHILD) & exit 0";
    let (shell, child) = below(&mut watch, waits);
    assert_ne!(child.exec().ancestor, Some(shell.id()));
    assert_eq!(child.exec().ancestor.map(|process| process.tgid), Some(child.event().process.parent_tgid));
    watch.end_whole();
}

/// The exec of `busybox true` with this environment, as `KEY=value` in this order.
#[track_caller]
fn with(watch: &mut Watch, environment: &[String]) -> Told {
    let mut command = Command::new("/usr/bin/env");
    let token = token();
    command.arg("-i").args(environment).args([BUSYBOX, "true", &token]);
    run(&mut command);
    watch.find(execs_as(BUSYBOX, &token))
}

fn context(told: &Told) -> (String, String) {
    let env = told.exec().env;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(env.traceparent), text(env.tracestate))
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("N{number}={}", "x".repeat(number % 90))).collect()
}

#[test]
fn a_trace_context_is_found_wherever_it_stands_in_the_environment() {
    let Some(mut watch) = Watch::default() else { return };
    let parent = format!("TRACEPARENT={PARENT}");
    let state = "TRACESTATE=a=1,b=2".to_owned();
    let both = (PARENT.to_owned(), "a=1,b=2".to_owned());
    let long = |len: usize| format!("L={}", "x".repeat(len));
    // Every alignment, and what looks like a part of a name.
    let alike = || {
        ["XTRACEPARENT=1", "TRACEPARENTS=1", "PARENT=1", "CURRENT_TRACE=RACEP", "ESTATE=1"].map(str::to_owned).into()
    };
    let shifted = (0..16).map(|len| vec![long(len)]);
    for before in shifted.chain([vec![], alike(), many(1), many(250), vec![long(15_000)]]) {
        for pair in [[parent.clone(), state.clone()], [state.clone(), parent.clone()]] {
            let told = with(&mut watch, &[before.clone(), pair.to_vec(), many(10)].concat());
            assert_eq!(context(&told), both);
            assert_eq!(told.event().process.flags, 0);
        }
    }
    watch.end_whole();
}

#[test]
fn only_whole_names_count_and_a_state_only_with_a_parent() {
    let Some(mut watch) = Watch::default() else { return };
    let none = (String::new(), String::new());
    for environment in [
        vec![],
        vec!["TRACESTATE=a=1".to_owned()],
        vec![format!("XTRACEPARENT={PARENT}"), format!("traceparent={PARENT}"), format!("TRACEPARENTS={PARENT}")],
        vec![format!("L={}TRACEPARENT={PARENT}", "x".repeat(4093))],
        vec!["TRACEPARENT=".to_owned()],
    ] {
        let told = with(&mut watch, &environment);
        assert_eq!(context(&told), none, "{environment:?}");
    }
    let long = "v".repeat(5_000);
    let told = with(&mut watch, &[format!("TRACEPARENT={long}"), format!("TRACESTATE={long}")]);
    assert_eq!(context(&told), ("v".repeat(127), "v".repeat(1023)));
    watch.end_whole();
}

#[test]
fn what_could_not_be_looked_at_is_said_and_what_is_not_wanted_is_not_looked_at() {
    let Some(mut watch) = Watch::default() else { return };
    let parent = format!("TRACEPARENT={PARENT}");
    // What is longer than what is copied, and more that is alike than is looked at.
    let alike = (0..400).map(|number| format!("N{number}=TRACTRACTRACTRAC")).collect();
    for before in [vec![format!("L={}", "x".repeat(100_000))], many(1_500), alike] {
        let told = with(&mut watch, &[before, vec![parent.clone()]].concat());
        assert_eq!(context(&told), (String::new(), String::new()));
        assert_eq!(told.event().process.flags, flag::ENV_UNREAD);
    }
    watch.end();
    let probes = Probes { env_context: false, ..Probes::default() };
    let Some(mut watch) = Watch::start(&probes) else { return };
    let told = with(&mut watch, &[parent]);
    assert_eq!((context(&told), told.event().process.flags), ((String::new(), String::new()), 0));
    watch.end_whole();
}
