//! What happened to a process, as decoded from one ring record: borrowed from it, nothing copied but numbers.

use namespan_ebpf::wire;

/// Names a process for ever within one boot: a pid is reused, a pid with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// Process id in the host's PID namespace.
    pub tgid: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME` at the fork.
    pub start_boot_ns: u64,
}

impl ProcessId {
    /// Of a record, which has zeros for none.
    #[must_use]
    pub fn found(tgid: u32, start_boot_ns: u64) -> Option<Self> {
        (tgid != 0).then_some(Self { tgid, start_boot_ns })
    }
}

/// One event, with everything the kernel knew of the process at that moment.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Numbers as the kernel gave them; its `kind` and `sections` are already used up.
    pub process: wire::Process,
    /// UTS nodename (hostname) of the process; any bytes.
    pub nodename: &'a [u8],
    /// Controlling terminal such as `pts/0`; empty: none.
    pub tty: &'a [u8],
    pub cgroup: CgroupPath<'a>,
    /// cgroup v1 path of one controller; empty where the host has none.
    pub cgroup_v1: CgroupPath<'a>,
    pub kind: Kind<'a>,
}

impl Event<'_> {
    #[must_use]
    pub fn id(&self) -> ProcessId {
        ProcessId { tgid: self.process.tgid, start_boot_ns: self.process.start_boot_ns }
    }

    /// How many images the process has run since it was forked; 0: it still runs its parent's.
    #[must_use]
    pub fn execs(&self) -> u64 {
        self.process.self_exec_id.wrapping_sub(self.process.parent_exec_id)
    }
}

#[derive(Clone, Debug)]
pub enum Kind<'a> {
    Exec(Exec<'a>),
    Exit(Exit),
    ExecFailed(ExecFailed<'a>),
}

#[derive(Clone, Debug)]
pub struct Exec<'a> {
    /// Absolute path of the executable within its mount namespace; any bytes but NUL.
    pub path: &'a [u8],
    /// Path of the script, where the executable is its interpreter; else empty.
    pub script: &'a [u8],
    pub args: Args<'a>,
    /// The nearest process above that has exec'd since its fork; `None`: not found in the bounded walk.
    pub ancestor: Option<ProcessId>,
    /// Trace context of the environment.
    pub env: EnvContext<'a>,
}

/// What the environment says of the trace a process belongs to, as the workload wrote it: any bytes but NUL.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvContext<'a> {
    /// `TRACEPARENT`; empty: not there, or not wanted.
    pub traceparent: &'a [u8],
    /// `TRACESTATE`; cut off if it has [`TRACESTATE_MAX`](wire::section::TRACESTATE_MAX) bytes.
    pub tracestate: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub status: ExitStatus,
    /// The process whose image ran: this one, or its nearest ancestor that exec'd; `None`: not found in the bounded walk.
    pub image: Option<ProcessId>,
    /// The kernel chose the process to free memory.
    pub oom_victim: bool,
}

impl Exit {
    /// Killed to free memory; a victim that was ending anyway is none.
    #[must_use]
    pub fn oom_killed(self) -> bool {
        const SIGKILL: u32 = 9;
        self.oom_victim && self.status.signal() == Some(SIGKILL)
    }
}

#[derive(Clone, Debug)]
pub struct ExecFailed<'a> {
    /// The path that was asked for, as given; any bytes but NUL.
    pub path: &'a [u8],
    /// Positive errno.
    pub errno: u32,
    /// The process whose image went on: this one, or its nearest ancestor that exec'd.
    pub image: Option<ProcessId>,
}

/// The status word that `wait(2)` would report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u32);

impl ExitStatus {
    /// Exit code, by the shell's convention `128 + signal` for a death by signal.
    #[must_use]
    pub fn code(self) -> u32 {
        self.signal().map_or((self.0 >> 8) & 0xff, |signal| 128 + signal)
    }

    /// The signal that ended the process.
    #[must_use]
    pub fn signal(self) -> Option<u32> {
        match self.0 & 0x7f {
            0 => None,
            signal => Some(signal),
        }
    }

    #[must_use]
    pub fn core_dumped(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// The arguments of an exec: all of them, or the head and the tail of what is longer than the limit.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// Bytes from the start, each argument ended by NUL; cut anywhere if truncated.
    pub head: &'a [u8],
    /// Bytes up to the end, if truncated; starts anywhere within an argument.
    pub tail: &'a [u8],
    /// True number of argument bytes, NULs included.
    pub len: u64,
    /// True number of arguments.
    pub argc: u32,
}

impl<'a> Args<'a> {
    /// Whether bytes are missing between head and tail.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.len > (self.head.len() + self.tail.len()) as u64
    }

    /// Every argument (or the part of it that was kept), in order, without its NUL; empty arguments included.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        split(self.head).chain(split(self.tail))
    }
}

/// Arguments of one run of bytes: the last one may lack its NUL.
fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let none = bytes.is_empty();
    bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|byte| *byte == 0).skip(usize::from(none))
}

/// A cgroup path as the kernel side walks it: the leaf first, each component ended by NUL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupPath<'a>(pub &'a [u8]);

impl<'a> CgroupPath<'a> {
    /// Components from the leaf to the root, the root itself left out.
    #[must_use]
    pub fn leaf_to_root(self) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.0.split(|byte| *byte == 0).filter(|component| !component.is_empty())
    }

    /// Components from the root to the leaf.
    #[must_use]
    pub fn root_to_leaf(self) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.leaf_to_root().rev()
    }

    /// The cgroups from the topmost one to this one.
    pub fn from_root(self) -> impl Iterator<Item = Self> + use<'a> {
        let bytes = self.0;
        let mut end = bytes.len();
        std::iter::from_fn(move || {
            let rest = bytes.get(..end)?;
            let leaf = rest.iter().rposition(|byte| *byte != 0)?;
            end = rest.get(..leaf)?.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul + 1);
            Some(Self(bytes.get(end..)?))
        })
    }

    /// Its own name; empty for the root.
    #[must_use]
    pub fn leaf(self) -> &'a [u8] {
        self.leaf_to_root().next().unwrap_or_default()
    }

    /// The process is in the root cgroup, or the host has no such hierarchy.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(head: &'static [u8], tail: &'static [u8]) -> Vec<&'static [u8]> {
        Args { head, tail, len: 0, argc: 0 }.iter().collect()
    }

    #[test]
    fn empty_arguments_are_kept_and_no_arguments_are_none() {
        assert_eq!(args(b"", b""), Vec::<&[u8]>::new());
        assert_eq!(args(b"\0", b""), [b""]);
        assert_eq!(args(b"a\0\0b\0", b""), [&b"a"[..], b"", b"b"]);
        assert_eq!(args(b"a\0\0", b""), [&b"a"[..], b""]);
    }

    #[test]
    fn head_and_tail_of_a_truncated_argv_stay_apart() {
        assert_eq!(args(b"sh\0-c\0aaa", b"bbb\0end\0"), [&b"sh"[..], b"-c", b"aaa", b"bbb", b"end"]);
    }

    #[test]
    fn exit_statuses_read_as_wait_reports_them() {
        assert_eq!((ExitStatus(3 << 8).code(), ExitStatus(3 << 8).signal()), (3, None));
        assert_eq!((ExitStatus(9).code(), ExitStatus(9).signal(), ExitStatus(9).core_dumped()), (137, Some(9), false));
        assert_eq!((ExitStatus(0x8b).code(), ExitStatus(0x8b).core_dumped()), (139, true));
    }

    #[test]
    fn cgroup_components_come_in_both_directions() {
        let path = CgroupPath(b"leaf\0docker\0");
        assert_eq!(path.leaf_to_root().collect::<Vec<_>>(), [&b"leaf"[..], b"docker"]);
        assert_eq!(path.root_to_leaf().collect::<Vec<_>>(), [&b"docker"[..], b"leaf"]);
    }
}
