//! Which processes are told of.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use namespan::config::{Filters, Probes, Scope};
use namespan::event::Event;
use namespan_ebpf::settings::{PATH_PREFIX_MAX, PREFIXES_MAX, UIDS_MAX};
use namespan_ebpf::wire::{CgroupKey, Counter, Place, Program, ns};

use crate::helpers::{helper, output};
use crate::watch::{Ended, Watch, execs, exits, ready};
use crate::workload::{BUSYBOX, Cgroup, cgroup1, cgroup2, run, run_true, token};

fn watch(filters: Filters) -> Option<Watch> {
    Watch::start(&Probes { failed_execs: true, filters, ..Probes::default() })
}

/// Execs and exits of a process that are told.
fn told(ended: &Ended, pid: u32) -> (usize, usize) {
    (ended.count(execs(pid)), ended.count(exits(pid)))
}

#[track_caller]
fn counts_filtered(ended: &Ended, least: u64) {
    for program in [Program::Exec, Program::Exit] {
        assert!(ended.counted.of(program, Counter::Filtered) >= least, "{:?}", ended.counted);
    }
}

#[test]
fn by_uid_only_those_are_told() {
    let uids = (70_000..).take(UIDS_MAX - 1).chain([1234]).collect();
    let Some(mut watch) = watch(Filters { uids, ..Filters::default() }) else { return };
    let token = token();
    let as_user =
        |uid: &str| run(Command::new("setpriv").args(["--reuid", uid, "--clear-groups", BUSYBOX, "true", &token]));
    let (other, root, wanted) = (as_user("1235"), run_true(BUSYBOX, &token), as_user("1234"));
    watch.find(exits(wanted));
    let ended = watch.end_whole();
    // Its first exec was root's, before it became somebody else.
    assert_eq!([other, root, wanted].map(|pid| told(&ended, pid)), [(0, 0), (0, 0), (1, 1)]);
    assert_eq!(ended.count(|event| event.process.euid != 1234), 0);
    counts_filtered(&ended, 2);
}

#[test]
fn who_was_told_of_by_uid_has_its_exit_told_whoever_it_is_by_then() {
    let Some(mut watch) = watch(Filters { uids: vec![0], ..Filters::default() }) else { return };
    let changed = run(Command::new("perl").args(["-e", "$> = 1234; exit($> == 1234 ? 0 : 1)"]));
    let exit = watch.find(exits(changed));
    assert_eq!(exit.event().process.euid, 1234);
    let ended = watch.end_whole();
    assert_eq!(told(&ended, changed), (1, 1));
}

#[test]
fn by_comm_only_those_are_told_and_their_exits_too() {
    let directory = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let path = directory.path().join(name);
        fs::copy(BUSYBOX, &path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // busybox is what its first argument says; comm comes from the file's name.
    let run_as = |path: &str| run(Command::new(path).arg0("true"));
    let mut comms: Vec<_> = (0..PREFIXES_MAX - 2).map(|at| format!("ktest-none-{at}")).collect();
    comms.extend(["ktest-yes".to_owned(), "ktest-15-bytes-".to_owned()]);
    let Some(mut watch) = watch(Filters { comms, ..Filters::default() }) else { return };
    let no = ["ktest-ye", "ktest-15-bytes", "xktest-yes"].map(|name| run_as(&copy(name)));
    let yes = ["ktest-yes", "ktest-yes-and-more", "ktest-15-bytes-x"].map(|name| run_as(&copy(name)));
    watch.find(exits(yes[2]));
    let ended = watch.end_whole();
    assert_eq!(no.map(|pid| told(&ended, pid)), [(0, 0); 3]);
    assert_eq!(yes.map(|pid| told(&ended, pid)), [(1, 1); 3]);
    counts_filtered(&ended, 3);
}

#[test]
fn by_eight_path_prefixes_of_the_longest_length_only_those_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = |folder: &Path| folder.to_str().unwrap()[..PATH_PREFIX_MAX].to_owned();
    // All have the same first bytes: what tells them apart is the last one of the prefix.
    let cut = PATH_PREFIX_MAX - directory.path().to_str().unwrap().len() - 2;
    let folder = |at| directory.path().join(format!("{}{at}{}", "x".repeat(cut), "y".repeat(60)));
    let folders: Vec<_> = (0..PREFIXES_MAX).map(folder).collect();
    let paths: Vec<_> = folders.iter().map(|folder| prefix(folder)).collect();
    let Some(mut watch) = watch(Filters { paths, ..Filters::default() }) else { return };
    let place = |folder: &Path| {
        fs::create_dir(folder).unwrap();
        fs::copy(BUSYBOX, folder.join("busybox")).unwrap();
        run_true(folder.join("busybox"), "x")
    };
    let other = directory.path().join(format!("{}9", "x".repeat(cut)));
    let no = [run_true(BUSYBOX, "x"), place(&other), place(&directory.path().join("x"))];
    let yes: Vec<_> = folders.iter().map(|folder| place(folder)).collect();
    watch.find(exits(*yes.last().unwrap()));
    let ended = watch.end_whole();
    assert_eq!(no.map(|pid| told(&ended, pid)), [(0, 0); 3]);
    assert!(yes.iter().all(|pid| told(&ended, *pid) == (1, 1)));
    counts_filtered(&ended, 3);
}

#[test]
fn every_filter_at_once_is_accepted_and_all_must_agree() {
    let filters = Filters {
        scope: Scope::Host,
        uids: vec![1234],
        comms: vec!["busybox".into()],
        paths: vec!["/usr/bin/busybox".into(), "/bin/busybox".into()],
        ..Filters::default()
    };
    let Some(mut watch) = watch(filters) else { return };
    let other = run_true(BUSYBOX, "x");
    let wanted = run(Command::new("setpriv").args(["--reuid=1234", "--clear-groups", BUSYBOX, "true"]));
    watch.find(exits(wanted));
    let ended = watch.end_whole();
    assert_eq!([other, wanted].map(|pid| told(&ended, pid)), [(0, 0), (1, 1)]);
}

#[test]
fn a_cgroup_that_is_not_wanted_is_filtered_in_either_version_until_it_is_wanted_again() {
    if !ready() {
        return;
    }
    for mount in [cgroup2(), cgroup1().map(|(_, mount)| mount)].into_iter().flatten() {
        let Some(mut watch) = watch(Filters { scope: Scope::Host, ..Filters::default() }) else { return };
        let cgroup = Cgroup::new(&mount, &token());
        let first = cgroup.run_true("x");
        let process = watch.find(exits(first)).event().process;
        let cgroup_key = CgroupKey { v2: process.cgroup_id, v1: process.cgroup_v1_id };
        let place = Place { cgroup: cgroup_key, mount_ns: process.namespaces[ns::MNT].into() };
        watch.unwanted.as_mut().unwrap().add(place).unwrap();
        let unwanted = cgroup.run_true("x");
        watch.unwanted.as_mut().unwrap().remove(place);
        let last = cgroup.run_true("x");
        watch.find(exits(last));
        let ended = watch.end_whole();
        // The shell was not in there yet when it was executed.
        assert_eq!([first, unwanted, last].map(|pid| told(&ended, pid)), [(2, 1), (1, 0), (2, 1)]);
        counts_filtered(&ended, 1);
    }
}

#[test]
fn we_ourselves_are_never_told_of() {
    if !ready() {
        return;
    }
    assert_eq!(output(&mut helper("not_itself", &[&token()])), "0 of us, more of others\n");
}

#[test]
fn without_exits_there_are_none() {
    let probes = Probes { exits: false, ..Probes::default() };
    let Some(mut watch) = Watch::start(&probes) else { return };
    let pid = run_true(BUSYBOX, "x");
    watch.find(execs(pid));
    let ended = watch.end_whole();
    assert_eq!(told(&ended, pid), (1, 0));
    assert_eq!(ended.count(|event: &Event<'_>| exits(event.process.tgid)(event)), 0);
}
