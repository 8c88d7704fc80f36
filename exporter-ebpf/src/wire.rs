//! The records in the ring buffer: a fixed [`Process`] and one fixed struct per kind, then byte sections of any length.
//!
//! ```text
//! | Process (header, identity, section lengths) | Exec, Exit or ExecFailed | section 0 | section 1 | ... |
//! ```
//! Numbers are in the host's byte order; a record never leaves the host. All pids are those of the host's PID namespace
//! unless the name says `vpid`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The kinds of record, as [`Process::kind`] holds them.
pub mod kind {
    /// A process has replaced its image: [`super::Exec`] follows.
    pub const EXEC: u16 = 1;
    /// The last thread of a process has exited: [`super::Exit`] follows.
    pub const EXIT: u16 = 2;
    /// `execve` or `execveat` returned an error: [`super::ExecFailed`] follows.
    pub const EXEC_FAILED: u16 = 3;
}

/// Bits of [`Process::flags`]: what is missing from a record, and why.
pub mod flag {
    /// The argument bytes could not be read from the new image.
    pub const ARGS_FAULT: u16 = 1 << 0;
    /// The executable's path has more components or bytes than are read: its first components are missing.
    pub const PATH_TRUNCATED: u16 = 1 << 1;
    /// The executable's path could not be read.
    pub const PATH_FAULT: u16 = 1 << 2;
    /// The cgroup lies deeper than is read: the components nearest to the process are missing.
    pub const CGROUP_TRUNCATED: u16 = 1 << 3;
    /// The cgroup's path could not be read whole.
    pub const CGROUP_FAULT: u16 = 1 << 4;
    /// The executable has no name any more in any directory (unlinked or a memfd).
    pub const UNLINKED: u16 = 1 << 5;
    /// Exit only: the kernel chose the process to free memory (`signal_struct.oom_mm` is set).
    pub const OOM_VICTIM: u16 = 1 << 6;
    /// Exec only: not all of the environment could be searched for a trace context.
    pub const ENV_UNREAD: u16 = 1 << 7;
    /// Exit only: a filter is on that can't be asked again at an exit, and these programs did not see the exec.
    pub const UNTRACKED: u16 = 1 << 8;
}

/// Order of [`Process::namespaces`].
pub mod ns {
    pub const PID: usize = 0;
    pub const NET: usize = 1;
    pub const MNT: usize = 2;
    pub const UTS: usize = 3;
    pub const IPC: usize = 4;
    pub const USER: usize = 5;
    pub const CGROUP: usize = 6;
    pub const TIME: usize = 7;
    pub const COUNT: usize = 8;
}

/// Order of [`Process::sections`], and of the sections in the record.
pub mod section {
    /// cgroup v2 path, leaf first, each component ended by NUL, the root left out.
    pub const CGROUP: usize = 0;
    /// cgroup v1 path of one controller, as [`CGROUP`]; empty on hosts where that controller is in v2.
    pub const CGROUP_V1: usize = 1;
    /// Executable's absolute path within its mount namespace; of a file bound alone to a mount that is gone, its path on its
    /// own file system. Of a failed exec: the path as it was asked for.
    pub const PATH: usize = 2;
    /// UTS nodename of the process, no NUL.
    pub const NODENAME: usize = 3;
    /// Name of the controlling terminal (`pts/0`), no NUL.
    pub const TTY: usize = 4;
    /// Exec only: the path given to `execve` when an interpreter runs it (a script), no NUL.
    pub const SCRIPT: usize = 5;
    /// Exec only: value of the first `TRACEPARENT` in the environment, no NUL, cut at [`TRACEPARENT_MAX`].
    pub const TRACEPARENT: usize = 6;
    /// Exec only: value of the first `TRACESTATE`, where there is a `TRACEPARENT`, no NUL, cut at [`TRACESTATE_MAX`].
    pub const TRACESTATE: usize = 7;
    /// Exec only: argument bytes from `arg_start`, each argument ended by NUL.
    pub const ARGS_HEAD: usize = 8;
    /// Exec only: the last argument bytes before `arg_end`, when there are more than the limit.
    pub const ARGS_TAIL: usize = 9;
    pub const COUNT: usize = 10;

    /// Bytes of a value that are told: version 00 has 55, later ones may be longer.
    pub const TRACEPARENT_MAX: u32 = 127;
    /// Bytes of a value that are told: W3C asks for at least 512 to be carried on.
    pub const TRACESTATE_MAX: u32 = 1023;
}

/// First part of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Process {
    /// Bytes of the whole record, this struct included.
    pub len: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// When it happened, in nanoseconds of `CLOCK_BOOTTIME`.
    pub time_boot_ns: u64,
    /// When the process was forked, in nanoseconds of `CLOCK_BOOTTIME` (`task_struct.start_boottime` of its first thread).
    pub start_boot_ns: u64,
    pub parent_start_boot_ns: u64,
    /// Grows by one with each exec; equal to `parent_exec_id` in a process that never exec'd.
    pub self_exec_id: u64,
    pub parent_exec_id: u64,
    /// cgroup v2 id (kernfs node id); 1 is the root.
    pub cgroup_id: u64,
    /// kernfs node id within the v1 hierarchy, 0 where there is none.
    pub cgroup_v1_id: u64,
    pub tgid: u32,
    pub tid: u32,
    /// The process's pid inside its own PID namespace.
    pub vpid: u32,
    pub parent_tgid: u32,
    pub uid: u32,
    pub gid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub session_leader: u32,
    pub group_leader: u32,
    /// Inode numbers in the order of [`ns`]; 0 where the kernel has no such namespace.
    pub namespaces: [u32; ns::COUNT],
    pub comm: [u8; 16],
    /// Bytes of each section in the order of [`section`].
    pub sections: [u16; section::COUNT],
    /// Inode number of the parent's mount namespace; 0: not known.
    pub parent_mnt_ns: u32,
}

/// Where processes are that are not told of: a cgroup alone is a place that a privileged container could hide in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Place {
    pub cgroup: CgroupKey,
    /// Inode number of the mount namespace; 0: the process has none any more.
    pub mount_ns: u64,
}

/// Names a process's cgroups: both ids, as on a hybrid host either hierarchy may know what the other does not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CgroupKey {
    /// As [`Process::cgroup_id`].
    pub v2: u64,
    /// As [`Process::cgroup_v1_id`].
    pub v1: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exec {
    /// True number of argument bytes, NULs included; more than the sections hold if truncated.
    pub args_len: u64,
    /// Start of the nearest process above this one that has exec'd since its fork; 0 if none was found within the bounded
    /// walk.
    pub ancestor_start_boot_ns: u64,
    pub ancestor_tgid: u32,
    pub argc: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exit {
    /// Start of the process whose image this one runs: itself once it has exec'd, else its nearest ancestor that has and
    /// still runs it; 0 if none was found within the bounded walk.
    pub image_start_boot_ns: u64,
    pub image_tgid: u32,
    /// As `wait(2)` reports it: signal in bits 0..7, core dump in bit 7, exit code in bits 8..16.
    pub status: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecFailed {
    /// Start of the nearest process that has exec'd since its fork, this one included; 0 if none was found within the
    /// bounded walk.
    pub image_start_boot_ns: u64,
    pub image_tgid: u32,
    /// Positive errno.
    pub errno: u32,
}

const _: () = assert!(size_of::<Process>() == 184);
const _: () = assert!(size_of::<Exec>() == 24 && size_of::<Exit>() == 16 && size_of::<ExecFailed>() == 16);

/// Most argument bytes one record can hold.
pub const ARGS_MAX: u32 = 0xffff;

/// Per-CPU counters, one array slot each. Every program counts into its own, so that none interrupts another's update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Program {
    Exec = 0,
    Exit = 1,
    ExecFailed = 2,
}

/// What a program counts. For each program: triggered = filtered + delivered + the `Lost*` ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Events that happened.
    Triggered = 0,
    /// Not wanted by the filters, or our own.
    Filtered = 1,
    /// Written to the ring.
    Delivered = 2,
    /// No room in the ring.
    LostRingFull = 3,
    /// A kernel object that every record needs could not be read.
    LostUnreadable = 4,
    /// No scratch buffer for this CPU (a CPU came up after the start).
    LostNoScratch = 5,
    /// No room to remember a process or system call until its second half.
    LostUntracked = 6,
    /// Delivered, but a part is missing and flagged.
    Incomplete = 7,
}

impl Counter {
    pub const ALL: [Self; 8] = [
        Self::Triggered,
        Self::Filtered,
        Self::Delivered,
        Self::LostRingFull,
        Self::LostUnreadable,
        Self::LostNoScratch,
        Self::LostUntracked,
        Self::Incomplete,
    ];
}

impl Program {
    pub const ALL: [Self; 3] = [Self::Exec, Self::Exit, Self::ExecFailed];

    /// Slot of a counter of this program in the `COUNTERS` map.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
    pub const fn slot(self, counter: Counter) -> u32 {
        self as u32 * Counter::ALL.len() as u32 + counter as u32
    }
}

/// Entries of the `COUNTERS` map.
#[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
pub const COUNTER_SLOTS: u32 = (Program::ALL.len() * Counter::ALL.len()) as u32;
