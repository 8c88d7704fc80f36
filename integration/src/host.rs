//! What `/proc` and `/sys` say of a process that still lives, to compare records with.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub const NAMESPACES: [&str; 8] = ["pid", "net", "mnt", "uts", "ipc", "user", "cgroup", "time"];

/// Inode number of a namespace of a process, or of `self`.
#[must_use]
pub fn namespace(process: &str, kind: &str) -> i64 {
    namespace_number(&fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap().to_string_lossy())
}

/// Of `pid:[4026531836]`.
#[must_use]
pub fn namespace_number(link: &str) -> i64 {
    let number = link.split(['[', ']']).nth(1).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("{link:?} is no namespace"))
}

#[must_use]
pub fn nodename() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Milliseconds since boot when a process was forked.
#[must_use]
pub fn start_since_boot_ms(pid: i64) -> i64 {
    // A tick is 10 ms on every architecture we know.
    stat(pid, 22) * 10
}

/// A number of `/proc/<pid>/stat`, by its place in `proc_pid_stat(5)`: 5 is the process group, 6 the session.
#[must_use]
pub fn stat(pid: i64, field: usize) -> i64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_comm) = stat.rsplit_once(')').unwrap();
    // The third field is the first after comm.
    after_comm.split_whitespace().nth(field - 3).unwrap().parse().unwrap()
}

/// Whether a process that is not ours to wait for is gone, or has only its parent to wait for.
#[must_use]
pub fn has_ended(pid: i64) -> bool {
    state(Path::new(&format!("/proc/{pid}"))).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// The letter of its state, of a process or a thread by its folder in `/proc`; `None`: it is gone.
#[must_use]
pub fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The last number of `NSpid`: the pid in the process's own PID namespace.
#[must_use]
pub fn vpid(pid: i64) -> i64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// Lines of `/proc/<pid>/cgroup` as `process.linux.cgroup` may have them: v2 whole, v1 only its path.
#[must_use]
pub fn cgroups(process: &str) -> Vec<String> {
    let lines = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    let shown = |line: &str| {
        if line.starts_with("0::") { line.to_owned() } else { line.splitn(3, ':').nth(2).unwrap().to_owned() }
    };
    lines.lines().map(shown).collect()
}

/// Where the cgroup v2 hierarchy is mounted.
#[must_use]
pub fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup v2 mount");
    mount.split_whitespace().nth(4).unwrap().into()
}

/// The inode number of the cgroup v2 directory of a process: its cgroup id.
#[must_use]
pub fn cgroup_id(process: &str) -> i64 {
    let mount = cgroup2_mount();
    let path = cgroups(process).into_iter().find_map(|line| Some(line.strip_prefix("0::")?.to_owned())).unwrap();
    fs::metadata(format!("{}{path}", mount.display())).unwrap().ino().cast_signed()
}
