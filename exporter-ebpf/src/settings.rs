//! What user space tells the programs before they are loaded: filters, limits, and who we are.

use zerocopy::{Immutable, IntoBytes, KnownLayout};

/// Most entries of the uid filter.
pub const UIDS_MAX: usize = 16;
/// Most entries of the comm filter and of the path filter.
pub const PREFIXES_MAX: usize = 8;
/// Longest path prefix, in bytes.
pub const PATH_PREFIX_MAX: usize = 128;
/// Longest comm prefix, in bytes: a comm is at most 15 bytes long.
pub const COMM_PREFIX_MAX: usize = 16;

/// When events have to happen for the programs to take them, by the boot clock in nanoseconds: from `from` on, until before
/// `until`. In a map, as it changes: programs with other settings take over where these end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    pub from_boot_ns: u64,
    pub until_boot_ns: u64,
}

/// Read-only for the programs, and constant to the verifier: code of a filter that is off is never run nor checked.
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    /// Wake the reader when this many bytes wait in the ring.
    pub wakeup_bytes: u64,
    /// Most argument bytes per record, at most [`crate::wire::ARGS_MAX`].
    pub args_limit: u32,
    /// Not 0: there may be cgroups whose processes are not told of.
    pub selects: u32,
    /// Our own pid in our own PID namespace, and that namespace's inode: never told of.
    pub self_vpid: u32,
    pub self_pid_ns: u32,
    /// Effective uids to tell of; none set: all.
    pub uid_count: u32,
    pub uids: [u32; UIDS_MAX],
    /// Prefixes of comm to tell of; none set: all.
    pub comm_count: u32,
    pub comm_lens: [u32; PREFIXES_MAX],
    pub comms: [[u8; COMM_PREFIX_MAX]; PREFIXES_MAX],
    /// Prefixes of the executable's path to tell of; none set: all.
    pub path_count: u32,
    pub path_lens: [u32; PREFIXES_MAX],
    pub paths: [[u8; PATH_PREFIX_MAX]; PREFIXES_MAX],
    /// Not 0: exits are told of, and a filter is on that can't be asked again then.
    pub tracks: u32,
    /// Not 0: a trace context is searched for in the environment.
    pub env_context: u32,
    pub reserved: u32,
}

impl Settings {
    /// No filter, 32 KiB of arguments, a wake-up per 64 KiB.
    pub const DEFAULT: Self = Self {
        wakeup_bytes: 64 * 1024,
        args_limit: 32 * 1024,
        selects: 0,
        self_vpid: 0,
        self_pid_ns: 0,
        uid_count: 0,
        uids: [0; UIDS_MAX],
        comm_count: 0,
        comm_lens: [0; PREFIXES_MAX],
        comms: [[0; COMM_PREFIX_MAX]; PREFIXES_MAX],
        path_count: 0,
        path_lens: [0; PREFIXES_MAX],
        paths: [[0; PATH_PREFIX_MAX]; PREFIXES_MAX],
        tracks: 0,
        env_context: 0,
        reserved: 0,
    };
}
