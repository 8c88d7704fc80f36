//! How processes end: once each, with the status that their parent sees.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use namespan::event::ProcessId;

use crate::helpers::helper;
use crate::watch::{Told, Watch, exec, execs, exit, exits, slowness};
use crate::workload::{BUSYBOX, token};

/// Runs it to its end, whatever that is.
fn ended(command: &mut Command) -> (u32, ExitStatus) {
    let mut child = command.spawn().unwrap();
    (child.id(), child.wait().unwrap())
}

fn busybox(script: &str) -> Command {
    let mut command = Command::new(BUSYBOX);
    command.args(["sh", "-c", script, &token()]);
    command
}

/// The exit's status is what its parent saw.
#[track_caller]
fn is_told(watch: &mut Watch, pid: u32, status: ExitStatus) -> Told {
    let told = watch.find(exits(pid));
    assert_eq!(told.exit().status.0, status.into_raw().cast_unsigned());
    assert_eq!(told.exit().image, Some(told.id()));
    told
}

#[test]
fn codes_signals_and_core_dumps_are_told_as_the_parent_sees_them() {
    let Some(mut watch) = Watch::default() else { return };
    let directory = tempfile::tempdir().unwrap();
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        ("exit 255", 255, None),
        ("kill -KILL $$", 137, Some(9)),
        ("kill -TERM $$", 143, Some(15)),
        ("ulimit -c 0; kill -SEGV $$", 139, Some(11)),
        ("ulimit -c unlimited; kill -SEGV $$", 139, Some(11)),
    ] {
        let (pid, status) = ended(busybox(script).current_dir(directory.path()));
        let told = is_told(&mut watch, pid, status);
        let shown = told.exit().status;
        assert_eq!(
            (shown.code(), shown.signal(), shown.core_dumped()),
            (code, signal, status.core_dumped()),
            "{script}"
        );
        let exec = watch.find(execs(pid));
        assert_eq!(exec.id(), told.id());
        assert!(exec.event().process.time_boot_ns < told.event().process.time_boot_ns);
    }
    watch.end_whole();
}

#[test]
fn an_exit_has_the_same_identity_as_its_exec() {
    let Some(mut watch) = Watch::default() else { return };
    let mut command = Command::new("unshare");
    command.args(["-m", "-u", "-i", "-n", "-C", BUSYBOX, "sh", "-c", "hostname ktest-exit; busybox true; exit 3"]);
    let (pid, status) = ended(&mut command);
    let told = is_told(&mut watch, pid, status);
    let exec = watch.find(|event| execs(pid)(event) && event.execs() == 2);
    let (exec, exit) = (exec.event(), told.event());
    assert_eq!(exec.process.namespaces, exit.process.namespaces);
    assert_eq!((exec.cgroup.0, exec.process.cgroup_id), (exit.cgroup.0, exit.process.cgroup_id));
    assert_eq!((exec.cgroup_v1.0, exec.process.cgroup_v1_id), (exit.cgroup_v1.0, exit.process.cgroup_v1_id));
    assert_eq!(exit.nodename, b"ktest-exit");
    assert_eq!((exit.execs(), exit.process.parent_tgid), (2, std::process::id()));
    watch.end_whole();
}

#[test]
fn a_process_of_many_threads_that_exit_at_once_is_told_once() {
    let rounds = 200 / slowness();
    let Some(mut watch) = Watch::default() else { return };
    let mut processes = HashMap::new();
    // Two find the gaps between each other more often than many do.
    let cases = [("all_threads_exit", "2"), ("all_threads_exit", "16"), ("one_thread_ends_all", "16")];
    for (name, threads) in cases {
        for _ in 0..rounds {
            let token = token();
            let (_, status) = ended(&mut helper(name, &[threads, &token]));
            assert!(status.code().is_some_and(|code| code >= 110), "{status}");
            processes.insert(token, status.into_raw().cast_unsigned());
            watch.pump();
        }
    }
    let watched = watch.end_whole();
    // Statuses of the exits of a process, by its exec.
    let mut exits: HashMap<ProcessId, Vec<u32>> = HashMap::new();
    for told in watched.all(|event| exit(event).is_some()) {
        exits.entry(told.id()).or_default().push(told.exit().status.0);
    }
    let mut found = 0;
    for told in watched.all(|event| exec(event).is_some()) {
        let token = told.exec().args.iter().nth(2).map(String::from_utf8_lossy);
        let Some(status) = token.and_then(|token| processes.get(&*token)) else { continue };
        assert_eq!(exits.get(&told.id()), Some(&vec![*status]), "{:?}", told.id());
        found += 1;
    }
    assert_eq!(found, processes.len());
}

#[test]
fn a_first_thread_that_exits_before_the_others_is_told_of_as_if_it_were_still_there() {
    let Some(mut watch) = Watch::default() else { return };
    for code in ["0", "9"] {
        let (pid, status) = ended(&mut helper("first_thread_exits_first", &[code]));
        // Since Linux 5.18 it is the last thread's.
        assert!([code.parse().ok(), Some(7)].contains(&status.code()), "{status}");
        let told = is_told(&mut watch, pid, status);
        let exec = watch.find(execs(pid));
        let (exit, exec) = (told.event(), exec.event());
        assert_eq!((exit.id(), exit.process.namespaces), (exec.id(), exec.process.namespaces));
        assert_eq!((exit.nodename, exit.process.cgroup_id), (exec.nodename, exec.process.cgroup_id));
        assert_eq!((exit.process.comm, exit.process.vpid), (exec.process.comm, exec.process.vpid));
    }
    watch.end_whole();
}

#[test]
fn a_child_that_never_execs_names_the_process_whose_program_it_runs() {
    let Some(mut watch) = Watch::default() else { return };
    let (pid, status) = ended(&mut busybox("( (exit 3); exit 4 ); exit 5"));
    let parent = is_told(&mut watch, pid, status).id();
    let watched = watch.end_whole();
    let forked = |event: &namespan::event::Event<'_>| {
        event.id() != parent && exit(event).is_some_and(|exit| exit.image == Some(parent))
    };
    let mut children: Vec<_> = watched.all(forked).collect();
    children.sort_by_key(|told| told.exit().status.code());
    let codes: Vec<_> = children.iter().map(|told| (told.exit().status.code(), told.event().execs())).collect();
    assert_eq!(codes, [(3, 0), (4, 0)]);
    let ProcessId { tgid, .. } = children[1].id();
    assert_eq!(children[0].event().process.parent_tgid, tgid);
}

#[test]
fn a_child_whose_parent_has_execd_since_names_no_program() {
    let Some(mut watch) = Watch::default() else { return };
    // `$$` is the parent in a subshell too; its comm says when it has exec'd.
    let wait = "while read -r comm < /proc/$$/comm && [ \"$comm\" = bash ]; do :; done";
    let script = format!("( {wait}; exit 41 ) & exec {BUSYBOX} sleep 1");
    let (pid, _) = ended(Command::new("bash").args(["-c", &script]));
    let of_child = |event: &namespan::event::Event<'_>| {
        event.process.parent_tgid == pid && exit(event).is_some_and(|exit| exit.status.code() == 41)
    };
    let told = watch.find(of_child);
    assert_eq!((told.exit().image, told.event().execs()), (None, 0));
    watch.end_whole();
}
