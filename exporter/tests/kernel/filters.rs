//! Which processes are told of.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use namespan::config::{Filters, Probes, Scope};
use namespan::event::Event;
use namespan_ebpf::settings::{PATH_PREFIX_MAX, PREFIXES_MAX, UIDS_MAX};
use namespan_ebpf::wire::{Counter, Program};

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
    };
    let Some(mut watch) = watch(filters) else { return };
    let other = run_true(BUSYBOX, "x");
    let wanted = run(Command::new("setpriv").args(["--reuid=1234", "--clear-groups", BUSYBOX, "true"]));
    watch.find(exits(wanted));
    let ended = watch.end_whole();
    assert_eq!([other, wanted].map(|pid| told(&ended, pid)), [(0, 0), (1, 1)]);
}

/// Of processes in cgroups of these names: which are told of, with the scope of the host and that of containers.
#[track_caller]
fn scopes(mount: &Path, names: &[&str]) -> Option<[Vec<bool>; 2]> {
    let in_scope = |scope| {
        let mut watch = watch(Filters { scope, ..Filters::default() })?;
        let mut pids = Vec::new();
        for name in names {
            pids.push(Cgroup::new(mount, name).run_true("x"));
        }
        let plain = run_true(BUSYBOX, "x");
        if scope == Scope::Host {
            watch.find(exits(plain));
        } else {
            let told = pids[0];
            watch.find(exits(told));
        }
        let ended = watch.end_whole();
        assert_eq!(told(&ended, plain), if scope == Scope::Host { (1, 1) } else { (0, 0) });
        // The shell was not in there yet when it was executed.
        let is_told = |pid: &u32| match (scope, told(&ended, *pid)) {
            (Scope::Containers, (0, 0)) | (Scope::Host, (1, 0)) => false,
            (Scope::Containers, (1, 1)) | (Scope::Host, (2, 1)) => true,
            other => panic!("{other:?}"),
        };
        Some(pids.iter().map(is_told).collect())
    };
    Some([in_scope(Scope::Host)?, in_scope(Scope::Containers)?])
}

#[test]
fn the_host_and_its_containers_are_told_apart_by_the_cgroup_of_either_version() {
    if !ready() {
        return;
    }
    let id = "0123456789abcdef".repeat(4);
    let containers = [id.clone(), format!("docker-{id}.scope"), format!("{}/{id}/init.scope/below", token())];
    let hosts = [
        id[1..].to_owned(),
        format!("a{id}"),
        format!("docker-{}.scope", &id[1..]),
        format!("docker-f{id}.scope"),
        format!("{}.slice", token()),
        format!("{id}.service"),
        id.to_uppercase(),
    ];
    let names: Vec<_> = containers.iter().chain(&hosts).map(String::as_str).collect();
    let expected: Vec<_> = (0..names.len()).map(|at| at < containers.len()).collect();
    for mount in [cgroup2(), cgroup1().map(|(_, mount)| mount)].into_iter().flatten() {
        let Some([host, container]) = scopes(&mount, &names) else { return };
        assert_eq!(container, expected, "{names:?} in {}", mount.display());
        assert_eq!(host, expected.iter().map(|container| !container).collect::<Vec<_>>());
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
