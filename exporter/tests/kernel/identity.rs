//! Whose a record is, against what `/proc` says of the same process while it lives.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use namespan::event::{CgroupPath, Event};
use namespan_ebpf::wire::ns;

use crate::watch::{Told, Watch, execs_as};
use crate::workload::{BUSYBOX, Cgroup, Live, cgroup1, cgroup2, shell, token, waits};

const NAMESPACES: [(&str, usize); ns::COUNT] = [
    ("pid", ns::PID),
    ("net", ns::NET),
    ("mnt", ns::MNT),
    ("uts", ns::UTS),
    ("ipc", ns::IPC),
    ("user", ns::USER),
    ("cgroup", ns::CGROUP),
    ("time", ns::TIME),
];
/// Nanoseconds of a tick of `/proc/<pid>/stat`.
const TICK_NS: u64 = 10_000_000;

/// A process as `/proc` has it.
struct Seen {
    pid: u32,
    /// From the state on.
    stat: Vec<i64>,
    status: HashMap<String, Vec<u32>>,
}

impl Seen {
    fn of(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, stat) = stat.rsplit_once(") ").unwrap();
        let stat = stat.split_whitespace().map(|number| number.parse().unwrap_or_default()).collect();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let numbers = |text: &str| text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let status = status.lines().filter_map(|line| line.split_once(':'));
        let status = status.map(|(key, value)| (key.to_owned(), numbers(value))).collect();
        Self { pid, stat, status }
    }

    /// By its number in `proc_pid_stat(5)`.
    fn stat(&self, field: usize) -> u64 {
        u64::try_from(self.stat[field - 3]).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.pid).into()
    }

    fn namespace(&self, name: &str) -> u32 {
        let link = fs::read_link(self.file("ns").join(name)).unwrap();
        let link = link.to_str().unwrap();
        link.split_once('[').unwrap().1.trim_end_matches(']').parse().unwrap()
    }

    fn cgroup(&self, is: impl Fn(&str) -> bool) -> Option<String> {
        let cgroups = fs::read_to_string(self.file("cgroup")).unwrap();
        let line = cgroups.lines().find(|line| is(line))?;
        Some(line.splitn(3, ':').nth(2).unwrap().to_owned())
    }
}

fn path(cgroup: CgroupPath<'_>) -> String {
    let components: Vec<_> = cgroup.root_to_leaf().map(String::from_utf8_lossy).collect();
    format!("/{}", components.join("/"))
}

/// Everything but the namespaces' and the terminal's names.
#[track_caller]
fn agrees(told: &Told) {
    let event = told.event();
    let seen = Seen::of(event.process.tgid);
    numbers_agree(&event, &seen);
    for (name, index) in NAMESPACES {
        assert_eq!(event.process.namespaces[index], seen.namespace(name), "{name}");
    }
    assert_eq!(Some(path(event.cgroup)), seen.cgroup(|line| line.starts_with("0::")));
    match cgroup1() {
        Some((controller, _)) => {
            let v1 = seen.cgroup(|line| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller));
            assert_eq!(Some(path(event.cgroup_v1)), v1);
        }
        None => assert_eq!((event.cgroup_v1.0, event.process.cgroup_v1_id), (&b""[..], 0)),
    }
    let comm = fs::read(seen.file("comm")).unwrap();
    assert_eq!(event.process.comm.split(|byte| *byte == 0).next(), comm.strip_suffix(b"\n"));
    let executable = fs::read_link(seen.file("exe")).unwrap();
    assert_eq!(String::from_utf8_lossy(told.exec().path), executable.to_str().unwrap());
}

#[track_caller]
fn numbers_agree(event: &Event<'_>, seen: &Seen) {
    let process = &event.process;
    let of = |key: &str| seen.status[key].clone();
    assert_eq!((of("Tgid"), of("Pid")), (vec![process.tgid], vec![process.tid]));
    assert_eq!(Some(&process.vpid), of("NSpid").last());
    assert_eq!([process.uid, process.euid, process.suid], of("Uid")[..3]);
    assert_eq!([process.gid, process.egid, process.sgid], of("Gid")[..3]);
    let stat = [process.parent_tgid, process.group_leader, process.session_leader].map(u64::from);
    assert_eq!(stat, [4, 5, 6].map(|field| seen.stat(field)));
    assert_eq!(process.start_boot_ns / TICK_NS, seen.stat(22));
    assert_eq!(process.parent_start_boot_ns / TICK_NS, Seen::of(process.parent_tgid).stat(22));
    assert!((process.start_boot_ns..).contains(&process.time_boot_ns));
    assert_eq!(event.tty.is_empty(), seen.stat(7) == 0);
}

/// Runs what ends in a waiting busybox, which must be just as it is told.
#[track_caller]
fn told_truly(command: &mut Command, token: &str) -> Option<(Told, Live)> {
    let mut watch = Watch::default()?;
    let live = Live::start(command);
    let told = watch.find(execs_as(BUSYBOX, token));
    agrees(&told);
    watch.end_whole();
    Some((told, live))
}

#[test]
fn a_child_of_ours_is_told_as_proc_shows_it() {
    let token = token();
    let Some((told, live)) = told_truly(Command::new(BUSYBOX).args(&waits(BUSYBOX, &token)[1..]), &token) else {
        return;
    };
    let event = told.event();
    assert_eq!((event.process.tgid, event.process.parent_tgid), (live.pid(), std::process::id()));
    assert_eq!(event.nodename, rustix::system::uname().nodename().to_bytes());
    assert_eq!((event.process.flags, event.execs()), (0, 1));
}

#[test]
fn real_effective_and_saved_ids_are_each_told() {
    let token = token();
    // busybox drops what it was not given on purpose, but only after its exec.
    let ids = ["--ruid=1234", "--euid=2345", "--rgid=3456", "--egid=4567", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(ids).args(waits(BUSYBOX, &token));
    let Some((told, _live)) = told_truly_at_exec(&mut command, &token) else { return };
    let process = told.event().process;
    assert_eq!([process.uid, process.euid, process.suid], [1234, 2345, 2345]);
    assert_eq!([process.gid, process.egid, process.sgid], [3456, 4567, 4567]);

    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--regid=4321", "--clear-groups"]).args(waits(BUSYBOX, &token));
    let Some((told, _live)) = told_truly(&mut command, &token) else { return };
    let process = told.event().process;
    assert_eq!([process.uid, process.euid, process.suid], [1234; 3]);
    assert_eq!([process.gid, process.egid, process.sgid], [4321; 3]);
}

/// Of a program that changes its identity at once, so that only the record can tell.
fn told_truly_at_exec(command: &mut Command, token: &str) -> Option<(Told, Live)> {
    let mut watch = Watch::default()?;
    let live = Live::start(command);
    let told = watch.find(execs_as(BUSYBOX, token));
    watch.end_whole();
    Some((told, live))
}

#[test]
fn sessions_and_groups_are_told() {
    let token = token();
    let mut command = Command::new("setsid");
    let Some((told, live)) = told_truly(command.args(waits(BUSYBOX, &token)), &token) else { return };
    let process = told.event().process;
    assert_eq!([process.session_leader, process.group_leader], [live.pid(); 2]);
}

#[test]
fn all_eight_namespaces_and_the_new_hostname_are_told() {
    let token = token();
    let name = "kernel-test-host";
    let mut command = Command::new("unshare");
    // Before Linux 6.3 only a fork enters a new time namespace, and until then a shell that forks by vfork cannot.
    command.args(["-m", "-u", "-i", "-n", "-C", "-U", "-r", "-T", "-f", "/bin/sh", "-e", "-c"]);
    command.args([r#"hostname "$0" 2>/dev/null || busybox hostname "$0"; exec "$@""#, name]);
    command.args(waits(BUSYBOX, &token));
    let Some((told, _live)) = told_truly(&mut command, &token) else { return };
    let event = told.event();
    assert_eq!(String::from_utf8_lossy(event.nodename), name);
    let ours = Seen::of(std::process::id());
    for (name, index) in NAMESPACES {
        let same = event.process.namespaces[index] == ours.namespace(name);
        assert_eq!(same, name == "pid", "{name}");
    }
}

#[test]
fn a_process_in_a_nested_pid_namespace_has_its_pid_there_told() {
    let token = token();
    let mut command = Command::new("unshare");
    command.args(["-p", "-f", "--mount-proc"]).args(waits(BUSYBOX, &token));
    let Some((told, live)) = told_truly(&mut command, &token) else { return };
    let process = told.event().process;
    assert_eq!((process.vpid, process.parent_tgid), (1, live.pid()));
    assert_ne!(process.namespaces[ns::PID], Seen::of(std::process::id()).namespace("pid"));
}

#[test]
fn the_controlling_terminal_is_told_by_its_name_in_dev() {
    let token = token();
    let command = waits(BUSYBOX, &token).map(|word| format!("'{word}'")).join(" ");
    let Some((told, _live)) =
        told_truly(Command::new("script").args(["-qc", &format!("exec {command}"), "/dev/null"]), &token)
    else {
        return;
    };
    let event = told.event();
    let terminal = fs::read_link(format!("/proc/{}/fd/0", event.process.tgid)).unwrap();
    let terminal = terminal.strip_prefix("/dev").unwrap().to_str().unwrap();
    assert_eq!(String::from_utf8_lossy(event.tty), terminal);
}

#[test]
fn cgroups_of_both_versions_are_told() {
    let token = token();
    for (mount, v1) in [(cgroup2(), false), (cgroup1().map(|(_, mount)| mount), true)] {
        let Some(mount) = mount else { continue };
        if !crate::watch::ready() {
            return;
        }
        let cgroup = Cgroup::new(&mount, &format!("{token}/some service@1.scope"));
        let arguments = waits(BUSYBOX, &token);
        let Some((told, live)) = told_truly(&mut cgroup.command(&arguments.each_ref().map(|word| &**word)), &token)
        else {
            return;
        };
        let event = told.event();
        let told = if v1 { event.cgroup_v1 } else { event.cgroup };
        assert_eq!(path(told), format!("/{token}/some service@1.scope"));
        live.finish();
    }
}

#[test]
fn a_deep_cgroup_keeps_the_components_nearest_to_the_root() {
    if !crate::watch::ready() {
        return;
    }
    let Some(mount) = cgroup2() else { return };
    let token = token();
    let components: Vec<_> = (1..=30).map(|depth| format!("{token}-{depth}")).collect();
    let cgroup = Cgroup::new(&mount, &components.join("/"));
    let Some(mut watch) = Watch::default() else { return };
    let pid = cgroup.run_true(&token);
    let told = watch.find(execs_as(BUSYBOX, &token));
    let event = told.event();
    assert_eq!(event.process.tgid, pid);
    assert_eq!(event.process.flags, namespan_ebpf::wire::flag::CGROUP_TRUNCATED);
    assert_eq!(path(event.cgroup), format!("/{}", components[..16].join("/")));
    watch.end_whole();
}

#[test]
fn each_exec_of_a_process_counts_up() {
    let Some(mut watch) = Watch::default() else { return };
    let token = token();
    let live = Live::start(shell(r#"exec "$@""#, &[]).args(waits(BUSYBOX, &token)));
    let second = watch.find(execs_as(BUSYBOX, &token));
    let first = watch.find(execs_as("/bin/sh", &token));
    assert_eq!((first.id(), first.id().tgid), (second.id(), live.pid()));
    assert_eq!([first.event().execs(), second.event().execs()], [1, 2]);
    assert_eq!(second.event().process.self_exec_id, first.event().process.self_exec_id + 1);
    agrees(&second);
    watch.end_whole();
}
