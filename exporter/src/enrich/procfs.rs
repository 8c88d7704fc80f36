//! What `/proc` says of a process that was there before its events were: pids go in, cgroup paths, parents and namespaces
//! come out. Everything is read at the time of the question, and a process may have gone meanwhile.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use super::cgroup::resolve;
use crate::event::{CgroupPath, ProcessId};

/// Hierarchies of v1 whose path counts, the first that there is; as the kernel side chooses.
pub const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuset"];
/// `USER_HZ`, in which `/proc/PID/stat` counts, is 100 on every architecture that Linux runs on but for alpha and ia64.
const TICK_NS: u64 = 10_000_000;

/// The inode of the PID namespace that the kernel starts with (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
pub const INIT_PID_NS: u32 = 0xEFFF_FFFC;

/// Paths in the form of [`CgroupPath`](crate::event::CgroupPath): leaf first, each component ended by NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    pub v2: Vec<u8>,
    pub v1: Vec<u8>,
}

/// The cgroups of a process; `None` if it is gone, or if they lie outside of our own cgroup namespace.
#[must_use]
pub fn cgroups(pid: u32) -> Option<Cgroups> {
    parse_cgroups(&fs::read(format!("/proc/{pid}/cgroup")).ok()?)
}

fn parse_cgroups(text: &[u8]) -> Option<Cgroups> {
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(parts).collect();
    let path_of = |wanted: &dyn Fn(&[u8]) -> bool| {
        let path = lines.iter().find(|(names, _)| wanted(names)).map(|(_, path)| *path);
        // What is above the root of our namespace has no path.
        path.map_or(Some(Vec::new()), |path| (!path.starts_with(b"/..")).then(|| walked(path)))
    };
    let controller = V1_CONTROLLERS.iter().find(|name| lines.iter().any(|(names, _)| lists(names, name)));
    Some(Cgroups {
        v2: path_of(&|names| names.is_empty())?,
        v1: path_of(&|names| controller.is_some_and(|controller| lists(names, controller)))?,
    })
}

/// `4:memory:/docker/...` and `0::/docker/...`: names of the controllers, and the path.
fn parts(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
    Some((parts.next()?, parts.next()?))
}

fn lists(names: &[u8], controller: &str) -> bool {
    names.split(|byte| *byte == b',').any(|name| name == controller.as_bytes())
}

/// An absolute path, leaf first, each component ended by NUL.
#[must_use]
pub fn walked(path: &[u8]) -> Vec<u8> {
    let components = path.split(|byte| *byte == b'/').rev().filter(|component| !component.is_empty());
    let mut walked = Vec::with_capacity(path.len() + 1);
    for component in components {
        walked.extend_from_slice(component);
        walked.push(0);
    }
    walked
}

/// Parent and start of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub parent: u32,
    /// Since the boot, in whole ticks of 10 ms.
    start_ns: u64,
}

impl Stat {
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// `None`: it is gone.
    pub fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // It ends just now.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name of the program, in parentheses, may be anything.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let rest = text.get(text.iter().rposition(|byte| *byte == b')')? + 1..)?;
        let mut fields = str::from_utf8(rest).ok()?.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let ticks: u64 = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, start_ns: ticks.checked_mul(TICK_NS)? })
    }

    /// Whether both are of one process, if both are of one pid.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        self.start_ns == other.start_ns
    }

    /// Whether it is this process, and no later one of the same pid.
    #[must_use]
    pub fn is(self, process: ProcessId) -> bool {
        is_same(self.id(process.tgid), process)
    }

    /// What names the process of this pid, its start in whole ticks.
    #[must_use]
    pub fn id(self, pid: u32) -> ProcessId {
        ProcessId { tgid: pid, start_boot_ns: self.start_ns }
    }
}

/// Whether both name one process, where `/proc` may have told of either.
#[must_use]
pub fn is_same(one: ProcessId, other: ProcessId) -> bool {
    one.tgid == other.tgid && one.start_boot_ns / TICK_NS == other.start_boot_ns / TICK_NS
}

/// Of all processes that `/proc` has.
pub fn pids() -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// The pid of a process in its own PID namespace.
#[must_use]
pub fn innermost_pid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

/// Inode number of a namespace: `mnt`, `pid` or `net`.
#[must_use]
pub fn namespace(pid: u32, kind: &str) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?.ino().try_into().ok()
}

/// The mount namespace of the host's first process; where that can't be read, ours, if we are in no container.
#[must_use]
pub fn host_mount_ns() -> Option<u32> {
    let own = std::process::id();
    let sees_host = namespace(own, "pid") == Some(INIT_PID_NS);
    let in_container = cgroups(own).is_none_or(|own| resolve(CgroupPath(&own.v2), CgroupPath(&own.v1)).is_some());
    let first = sees_host.then(|| namespace(1, "mnt")).flatten();
    first.or_else(|| (!in_container).then(|| namespace(own, "mnt"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_read_in_each_layout() {
        let hybrid = b"12:pids:/docker/b\n9:cpu,cpuacct:/a\n4:memory:/docker/a\n1:name=systemd:/x\n0::/docker/c\n";
        let cgroups = parse_cgroups(hybrid).unwrap();
        assert_eq!((cgroups.v2.as_slice(), cgroups.v1.as_slice()), (&b"c\0docker\0"[..], &b"a\0docker\0"[..]));
        let unified = parse_cgroups(b"0::/system.slice/a:b.service\n").unwrap();
        assert_eq!((unified.v2.as_slice(), unified.v1.as_slice()), (&b"a:b.service\0system.slice\0"[..], &b""[..]));
        let v1 = parse_cgroups(b"3:cpuset,cpu:/docker/a\n").unwrap();
        assert_eq!((v1.v2.as_slice(), v1.v1.as_slice()), (&b""[..], &b"a\0docker\0"[..]));
        assert_eq!(parse_cgroups(b"0::/../../docker/x\n"), None);
        assert_eq!(parse_cgroups(b"\n:\nx\n0::/\n"), Some(Cgroups::default()));
    }

    #[test]
    fn a_program_s_name_does_not_mislead() {
        let stat = b"77 (a) S 1 2 (x)) S 5 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1234 2 3";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!(stat, Stat { parent: 5, start_ns: 12_340_000_000 });
        let id = |start_boot_ns| ProcessId { tgid: 77, start_boot_ns };
        assert!(stat.is(id(12_349_999_999)) && !stat.is(id(12_350_000_000)));
        assert_eq!(Stat::parse(b"77 (a"), None);
    }

    #[test]
    fn we_are_where_proc_says() {
        let own = std::process::id();
        assert!(cgroups(own).is_some() && innermost_pid(own).is_some() && namespace(own, "mnt").is_some());
        assert!(Stat::of(own).is_some());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken(text: Vec<u8>) {
            std::hint::black_box((parse_cgroups(&text), Stat::parse(&text)));
        }
    }
}
