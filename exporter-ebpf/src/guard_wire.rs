//! What both sides agree on for the guard: policies as bit sets over maps, the record of a decision, and the counters.
//!
//! A policy has rules: alternatives of which one must hold, and exceptions of which none may. A rule is a conjunction of
//! conditions on different dimensions of an exec (path, name, uid, ...), and has a bit in a [`Mask`]. Each dimension yields the
//! mask of the rules that it satisfies, those included that do not ask for it; the intersection of all are the rules that hold.
//!
//! ```text
//! | wire::Process (kind of decision, identity) | Decision | sections in their order |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::Process;

/// Most rules of all policies together, exceptions included.
pub const RULES_MAX: usize = 64;
/// Most policies.
pub const POLICIES_MAX: usize = 32;
/// Longest text of a condition: one byte less than a [`TextKey`] holds, as an exact text is ended by NUL.
pub const TEXT_MAX: usize = TEXT_SIZE - 1;
const TEXT_SIZE: usize = 247;
/// Checks that may be under way on one CPU, one interrupted by the next, each in a room of its own. Of those that find none,
/// what is in the scope of a policy that denies is refused.
pub const CHECK_ROOMS: u32 = 16;
/// Of these, how many may write a record at the same time. What finds no room for it is counted as lost.
pub const CHECK_RECORDS: u32 = 4;
/// Most argument bytes of a decision, head and tail: the ring is to hold many.
pub const ARGS_MAX: u32 = 4096;
/// Hexadecimal digits of a container's id, by which the kernel finds containers in cgroup paths.
pub const CONTAINER_ID_SIZE: usize = 64;

/// Marks the id of a cgroup in a v1 hierarchy, which has numbers of its own. The kernel's do not reach it.
pub const V1: u64 = 1 << 63;

/// How much earlier the check of programs that relieve others begins, and how much longer the check of those goes on. An exec
/// is checked some time before it has happened: what the old check has let pass is then the old exec program's still, and
/// what the new one has seen is the new one's. The kernel runs the newest program of an LSM hook first, which may be early when
/// the oldest is late already; of a tracepoint the oldest runs first.
pub const OVERLAP_NS: u64 = 50_000_000;

/// A set of rules.
pub type Mask = u64;

/// As [`Process::kind`] holds it.
pub mod kind {
    /// A policy has fired: [`super::Decision`] follows.
    pub const DECISION: u16 = 32;
}

/// Sections of a decision beyond those of [`crate::wire::section`].
pub mod section {
    /// Path of the parent's executable, in the place of an exec's `TRACEPARENT`.
    pub const PARENT_PATH: usize = crate::wire::section::TRACEPARENT;
}

/// Texts that rules ask for, as [`TextKey::dimension`] and the index of [`GuardSettings::any_text`].
pub mod dimension {
    /// Executable's absolute path within its mount namespace, as the kernel resolved it.
    pub const PATH: usize = 0;
    /// Last component of that path.
    pub const NAME: usize = 1;
    /// As [`PATH`], of the parent process's executable.
    pub const PARENT: usize = 2;
    /// `argv[0]`'s last component, without a leading `-`. Not at [`super::hook::CHECK`].
    pub const ARGV0: usize = 3;
    /// `argv[1]`'s last component. Not at [`super::hook::CHECK`].
    pub const ARGV1: usize = 4;
    pub const COUNT: usize = 5;
}

/// Where an executable comes from, as [`Decision::origin`] and the index of [`GuardSettings::origins`].
pub mod origin {
    /// The root file system of the outermost container, or of the host; of an overlay one of its lower layers: the image.
    pub const IMAGE: usize = 0;
    /// The upper layer of that overlay: written or changed since the container was made.
    pub const UPPER: usize = 1;
    /// Another file system: a volume, a tmpfs, a bind mount, the image of a container in a container.
    pub const MOUNT: usize = 2;
    /// A memfd.
    pub const MEMFD: usize = 3;
    /// A file that has no name any more.
    pub const DELETED: usize = 4;
    /// It could not be told.
    pub const UNKNOWN: usize = 5;
    pub const COUNT: usize = 6;
}

/// What is done, as [`Policy::action`] and [`Decision::intended`] hold it. A higher one goes before a lower one.
pub mod action {
    pub const OBSERVE: u8 = 0;
    pub const KILL: u8 = 1;
    pub const DENY: u8 = 2;
}

/// What became of it, as [`Decision::result`] holds it.
pub mod result {
    /// Only told of: the policy says no more, or the guard does not enforce.
    pub const OBSERVED: u8 = 0;
    /// `SIGKILL` was sent before the program's first instruction.
    pub const KILLED: u8 = 1;
    /// The exec was refused with `EPERM`.
    pub const DENIED: u8 = 2;
    /// The signal could not be sent; [`super::Decision::error`] says why.
    pub const FAILED: u8 = 3;
    /// The policy's kill budget for this container is used up.
    pub const DISARMED: u8 = 4;
    /// User space has not renewed its lease.
    pub const LEASE_EXPIRED: u8 = 5;
    pub const COUNT: usize = 6;
}

/// Where it was decided, as [`Decision::hook`] holds it.
pub mod hook {
    /// `sched_process_exec`: the new image is in place, none of it has run.
    pub const EXEC: u8 = 0;
    /// LSM `bprm_check_security`: for the file that was asked for, and again for the interpreter of a script.
    pub const CHECK: u8 = 1;
}

/// Key of the trie of texts. Looked up whole, zeros after the text; an exact text is stored with its NUL, a prefix without.
/// A longer text than fits meets prefixes only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TextKey {
    /// One of [`dimension`].
    pub dimension: u8,
    pub text: [u8; TEXT_SIZE],
}

/// Which rules' scopes a container meets, those of policies for all containers included; 0: an exempt one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Scope {
    pub rules: Mask,
}

/// A policy as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Policy {
    /// It fires if one of these rules holds,
    pub matches: Mask,
    /// and none of these.
    pub exceptions: Mask,
    /// Kills of one container within [`Self::budget_window_ns`] before the policy is disarmed there; 0: no limit.
    pub budget: u32,
    /// One of [`action`].
    pub action: u8,
    pub reserved: [u8; 3],
    pub budget_window_ns: u64,
}

/// Read-only for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuardSettings {
    /// For each dimension of texts: the rules that do not ask for it.
    pub any_text: [Mask; dimension::COUNT],
    /// As above: those that ask for a prefix of it, among others.
    pub prefix_text: [Mask; dimension::COUNT],
    /// Rules that do not ask for an effective uid.
    pub any_uid: Mask,
    /// Rules that hold without a controlling terminal, and with one.
    pub interactive: [Mask; 2],
    /// Rules that hold for a program that was asked for itself, and for the interpreter of a script.
    pub script: [Mask; 2],
    /// Rules that hold for each [`origin`].
    pub origins: [Mask; origin::COUNT],
    /// Rules for the host's processes.
    pub host: Mask,
    /// Rules for all containers: those of a container that user space has not told of (yet).
    pub containers: Mask,
    pub policies: [Policy; POLICIES_MAX],
    pub policy_count: u32,
    /// Not 0: actions are taken; else all that fires is observed.
    pub enforces: u32,
    /// Most argument bytes told of, at most [`ARGS_MAX`].
    pub args_limit: u32,
    /// Inode numbers of the first PID namespace and of the host's mount namespace (ours, if we run on the host).
    pub host_pid_ns: u32,
    pub host_mnt_ns: u32,
    /// Our own pid in our own PID namespace, and that namespace's inode.
    pub self_vpid: u32,
    pub self_pid_ns: u32,
    /// Dimensions that some rule asks for, by bit; what none asks for is not read.
    pub asks: u32,
    /// Our own cgroup (v2 id), whose processes are never touched; 0: it is the root, or everybody's.
    pub self_cgroup: u64,
}

/// Kills of one policy in one container.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BudgetKey {
    /// The container's own cgroup: the component of its path that names it.
    pub cgroup_id: u64,
    pub policy: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Budget {
    pub since_boot_ns: u64,
    pub kills: u32,
    /// Not 0: used up; stays so until the policies are loaded anew.
    pub disarmed: u32,
}

/// A child of ours whose next exec is to be stopped: proves the action. Cleared by user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SelfTest {
    /// Our tgid as the host numbers it: its children are tested; 0: none.
    pub parent_tgid: u32,
    /// One of [`action`].
    pub action: u32,
    /// Children stopped so far.
    pub stopped: u64,
}

/// What was decided about an exec.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Decision {
    /// As [`crate::wire::Exec::args_len`]; at [`hook::CHECK`] bytes that were read of the caller's `argv`.
    pub args_len: u64,
    /// As [`crate::wire::Exec::ancestor_start_boot_ns`].
    pub ancestor_start_boot_ns: u64,
    /// Rules that hold.
    pub rules: Mask,
    /// The container's own cgroup; 0: the host.
    pub container_cgroup_id: u64,
    pub ancestor_tgid: u32,
    pub argc: u32,
    /// Policies that fired, by bit.
    pub fired: u32,
    /// Positive errno of [`result::FAILED`].
    pub error: u32,
    /// The policy that decided, by its place among [`GuardSettings::policies`].
    pub policy: u16,
    /// One of [`action`].
    pub intended: u8,
    /// One of [`result`].
    pub result: u8,
    /// One of [`origin`].
    pub origin: u8,
    /// One of [`hook`].
    pub hook: u8,
    pub reserved: [u8; 2],
}

/// What is counted, beside how often each policy had each result. For each hook: triggered = untouched + exempt + decided; of
/// the decided: told + lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Execs that the guard looked at.
    Triggered = 0,
    /// No policy fired.
    Untouched = 1,
    /// Never to be touched: the host's first process, what the kernel starts, ourselves, a runtime's set-up.
    Exempt = 2,
    /// A policy fired.
    Decided = 3,
    /// Its record is in the ring.
    Told = 4,
    /// No room for its record, in the ring or before it: the action was taken all the same.
    LostRingFull = 5,
    /// A kernel object that every decision needs could not be read, or a check found no room where nothing is enforced: nothing
    /// was done.
    Unreadable = 6,
}

/// Which program counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Program {
    Exec = 0,
    Check = 1,
}

impl Counter {
    pub const ALL: [Self; 7] = [
        Self::Triggered,
        Self::Untouched,
        Self::Exempt,
        Self::Decided,
        Self::Told,
        Self::LostRingFull,
        Self::Unreadable,
    ];
}

impl Program {
    pub const ALL: [Self; 2] = [Self::Exec, Self::Check];

    /// Slot of a counter of this program in the counters' map.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
    pub const fn slot(self, counter: Counter) -> u32 {
        self as u32 * Counter::ALL.len() as u32 + counter as u32
    }
}

/// Slot of a policy's result behind those of the programs. One program counts one policy's actions, so that none interrupts
/// another's update: denials and their observation the check, all else the exec.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
pub const fn result_slot(policy: u32, result: u32) -> u32 {
    PROGRAM_SLOTS + policy * result::COUNT as u32 + result
}

#[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
const PROGRAM_SLOTS: u32 = (Program::ALL.len() * Counter::ALL.len()) as u32;
/// Entries of the counters' map.
#[expect(clippy::cast_possible_truncation, reason = "a count of enumerators")]
pub const COUNTER_SLOTS: u32 = PROGRAM_SLOTS + (POLICIES_MAX * result::COUNT) as u32;

const _: () = assert!(size_of::<Process>().is_multiple_of(8) && size_of::<Decision>() == 56);
const _: () = assert!(size_of::<TextKey>() == 248);
