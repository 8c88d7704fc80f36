//! What both sides agree on for uprobes: the settings of a place, the record of a hit, and the counters.
//!
//! ```text
//! | wire::Process (kind of hit, identity; no sections) | Hit | bytes of the values in their order |
//! ```
//! A place is one probe at one offset of one file. Its id is the attach cookie of its programs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::{CgroupKey, Process};

/// Most captured arguments of a place.
pub const ARGS_MAX: usize = 8;
/// The arguments and the return value.
pub const VALUES_MAX: usize = ARGS_MAX + 1;
/// Index of the return value among the values.
pub const RETURNED: usize = ARGS_MAX;
/// Most bytes kept of one string or of one value of bytes.
pub const BYTES_MAX: u32 = 4096;
/// Most bytes of all strings and bytes of one record: what comes later is cut and flagged.
pub const DATA_MAX: u32 = 16 * 1024;

/// What the kernel does at a place, as [`PlaceSettings::kind`] holds it, and as [`Process::kind`] of its records.
pub mod kind {
    /// The function was called, or the instruction reached.
    pub const ENTRY: u16 = 16;
    /// The function returned.
    pub const RETURN: u16 = 17;
    /// A call and its return as one record: arguments of the call, return value and duration.
    pub const CALL: u16 = 18;
}

/// Whose hits are told, as [`PlaceSettings::scope`] holds it.
pub mod scope {
    /// Those of the cgroups that are listed for the place.
    pub const CGROUPS: u8 = 0;
    /// Those of one process.
    pub const TGID: u8 = 1;
    /// Those of every process in the first PID namespace: containers usually have one of their own.
    pub const HOST: u8 = 2;
}

/// Where a number comes from, as [`Operand::source`] holds it.
pub mod source {
    /// [`Operand::displacement`] itself.
    pub const CONSTANT: u8 = 0;
    /// The register at [`Operand::base`].
    pub const REGISTER: u8 = 1;
    /// The process's memory at `base + (index << shift) + displacement`.
    pub const MEMORY: u8 = 2;
}

/// What a value is, as [`ValueSettings::kind`] and [`ValueHead::kind`] hold it.
pub mod value {
    /// Nothing is captured.
    pub const NONE: u8 = 0;
    pub const INT: u8 = 1;
    pub const UINT: u8 = 2;
    pub const BOOL: u8 = 3;
    pub const POINTER: u8 = 4;
    /// The number is the address of bytes up to a NUL.
    pub const STRING: u8 = 5;
    /// The number is the address of bytes, [`super::ValueSettings::length`] is how many.
    pub const BYTES: u8 = 6;
    /// The number has the bits of an IEEE 754 number of 4 bytes.
    pub const F32: u8 = 7;
    /// As [`F32`], of 8 bytes.
    pub const F64: u8 = 8;
    /// The number is the address of an [`F32`].
    pub const F32_AT: u8 = 9;
    /// The number is the address of an [`F64`].
    pub const F64_AT: u8 = 10;
}

/// Bits of [`ValueHead::flags`].
pub mod flag {
    /// The value's memory could not be read: not mapped, or not present and no program may wait for it. [`super::ValueHead::bits`]
    /// has the address.
    pub const FAULT: u8 = 1 << 0;
    /// There are more bytes than are kept.
    pub const TRUNCATED: u8 = 1 << 1;
}

/// [`Operand::base`] or [`Operand::index`] where there is none.
pub const NO_REGISTER: u16 = u16::MAX;

/// Where a number comes from: a function's argument, a return value, an operand of a USDT note.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Operand {
    /// A constant's value, or what is added to an address.
    pub displacement: i64,
    /// Byte offset of the register in `struct pt_regs`.
    pub base: u16,
    /// As `base`, of a register that is shifted and added to an address.
    pub index: u16,
    /// One of [`source`].
    pub source: u8,
    /// Bytes of the number: 1, 2, 4 or 8.
    pub width: u8,
    /// Not 0: the number is extended with its sign.
    pub signed: u8,
    /// Bits that the index is shifted by: 0 to 3.
    pub shift: u8,
}

impl Operand {
    /// A number that needs no register.
    #[must_use]
    pub const fn constant(value: i64) -> Self {
        Self {
            displacement: value,
            base: NO_REGISTER,
            index: NO_REGISTER,
            source: source::CONSTANT,
            width: 8,
            signed: 1,
            shift: 0,
        }
    }
}

/// What becomes of an operand's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ValueSettings {
    pub operand: Operand,
    /// Of bytes: how many; the lower 32 bits as an `int`, a negative number is none.
    pub length: Operand,
    /// One of [`value`].
    pub kind: u8,
    /// Bytes that the number is cut to: 1, 2, 4 or 8.
    pub width: u8,
    /// Not 0: the number is extended with its sign from `width` on.
    pub signed: u8,
    pub reserved: [u8; 5],
}

impl ValueSettings {
    pub const NONE: Self = Self {
        operand: Operand::constant(0),
        length: Operand::constant(0),
        kind: value::NONE,
        width: 8,
        signed: 0,
        reserved: [0; 5],
    };
}

/// One place, as user space writes it before it attaches, and never changes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlaceSettings {
    /// The attach cookie; its lower 32 bits are the slot in the maps. 0: the slot is free.
    pub id: u64,
    /// Nanoseconds between two hits at the highest rate; 0: no limit.
    pub interval_ns: u64,
    /// How far ahead of the rate hits may be: `interval_ns * (burst - 1)`.
    pub ahead_ns: u64,
    /// One of so many wanted hits is told; at least 1.
    pub sample: u32,
    /// Most bytes of a string or of bytes: 1 to [`BYTES_MAX`].
    pub max_bytes: u32,
    /// Of [`scope::TGID`]: the process in the first PID namespace.
    pub tgid: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// One of [`scope`].
    pub scope: u8,
    /// Of [`kind::CALL`], not 0: the captured arguments need more room than [`SMALL_CALL`] has.
    pub large: u8,
    /// The arguments, and the return value at [`RETURNED`].
    pub values: [ValueSettings; VALUES_MAX],
}

/// What changes at a place with each hit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlaceState {
    /// Wanted hits so far.
    pub wanted: u64,
    /// When the hits so far would have ended at the highest rate, by the boot clock in nanoseconds.
    pub ends_boot_ns: u64,
}

/// A cgroup whose hits at a place are told.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Allowed {
    pub place: u64,
    pub cgroup: CgroupKey,
}

/// One captured value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ValueHead {
    /// The number; of bytes how many there are, of a string 0, of both the address where `len` is 0 and [`flag::FAULT`] set.
    pub bits: u64,
    /// Bytes of this value behind the fixed part.
    pub len: u32,
    /// One of [`value`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    pub reserved: u16,
}

/// Second part of a hit's record, behind a [`Process`] whose time is that of the hit, or of a call's beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hit {
    /// [`PlaceSettings::id`].
    pub place: u64,
    /// From a call to its return, time that the machine was asleep included; 0 for other kinds.
    pub duration_ns: u64,
    /// Instruction pointer: the place's address in the process; where a function returned to for returns.
    pub ip: u64,
    /// The thread's name.
    pub comm: [u8; 16],
    pub values: [ValueHead; VALUES_MAX],
}

/// Bytes of a record before those of its values.
pub const FIXED: usize = size_of::<Process>() + size_of::<Hit>();
/// Bytes of a record that is kept from a call to its return where its values are small.
pub const SMALL_CALL: usize = 2048;
/// As [`SMALL_CALL`], of any record.
pub const LARGE_CALL: usize = FIXED + DATA_MAX as usize;

const _: () = assert!(size_of::<Operand>() == 16 && size_of::<ValueSettings>() == 40);
const _: () = assert!(size_of::<PlaceSettings>() == 40 + 40 * VALUES_MAX);
const _: () = assert!(size_of::<ValueHead>() == 16 && size_of::<Hit>() == 40 + 16 * VALUES_MAX);
const _: () = assert!(FIXED.is_multiple_of(8) && FIXED < SMALL_CALL);

/// What is counted at each place, per CPU: one array value of all of them.
///
/// `Triggered` = `Filtered` + `SampledOut` + `RateLimited` + `Delivered` + the `Lost*` ones + unfinished calls, which only a
/// place of [`kind::CALL`] has: `Kept` - `Delivered` - `LostRingFull` - `LostReturn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Hits; of calls their entries.
    Triggered = 0,
    /// Of processes that are not in the scope, or our own.
    Filtered = 1,
    SampledOut = 2,
    RateLimited = 3,
    /// Written to the ring.
    Delivered = 4,
    /// No room in the ring.
    LostRingFull = 5,
    /// A kernel object that every record needs could not be read.
    LostUnreadable = 6,
    /// Every scratch buffer of this CPU is in use: programs were interrupted in the middle too often.
    LostNoScratch = 7,
    /// The call could not be kept until its return.
    LostUnkept = 8,
    /// The call was kept, and its return could not be told: no scratch buffer.
    LostReturn = 9,
    /// Calls that were kept until their return.
    Kept = 10,
    /// Returns whose call is not kept: it was filtered, sampled out, limited or lost, it began before the probe or in another
    /// process (a fork), or it was pushed out by others.
    Unpaired = 11,
    /// Delivered, but a value could not be read or was cut.
    Incomplete = 12,
    /// Calls that were kept, and gave way to a later one of their thread at their depth: they were jumped out of, or ended with
    /// their thread.
    Replaced = 13,
}

impl Counter {
    pub const ALL: [Self; 14] = [
        Self::Triggered,
        Self::Filtered,
        Self::SampledOut,
        Self::RateLimited,
        Self::Delivered,
        Self::LostRingFull,
        Self::LostUnreadable,
        Self::LostNoScratch,
        Self::LostUnkept,
        Self::LostReturn,
        Self::Kept,
        Self::Unpaired,
        Self::Incomplete,
        Self::Replaced,
    ];
}

/// Read-only for the programs, and constant to the verifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
pub struct UprobeSettings {
    /// Wake the reader when this many bytes wait in the ring.
    pub wakeup_bytes: u64,
    /// Byte offsets of the instruction pointer and of the stack pointer in `struct pt_regs`.
    pub ip: u32,
    pub sp: u32,
    /// Bytes that a return pops from the stack beyond what its call found there.
    pub return_pops: u32,
    /// Our own pid in our own PID namespace, and that namespace's inode: never told of.
    pub self_vpid: u32,
    pub self_pid_ns: u32,
    pub reserved: u32,
}

impl UprobeSettings {
    /// Nothing known yet.
    pub const DEFAULT: Self =
        Self { wakeup_bytes: 64 * 1024, ip: 0, sp: 0, return_pops: 0, self_vpid: 0, self_pid_ns: 0, reserved: 0 };
}

/// Byte offsets that finding a mapping's inode takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
pub struct MappedOffsets {
    pub vma_file: u32,
    pub file_inode: u32,
    pub inode_ino: u32,
    pub inode_generation: u32,
    pub inode_sb: u32,
    pub sb_dev: u32,
}

impl MappedOffsets {
    /// Nothing known yet.
    pub const ZERO: Self =
        Self { vma_file: 0, file_inode: 0, inode_ino: 0, inode_generation: 0, inode_sb: 0, sb_dev: 0 };
}

/// What a file's mapping says of the inode behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mapped {
    /// Address of the `struct inode`: names it among all that are in memory.
    pub inode: u64,
    pub ino: u64,
    /// `s_dev` as the kernel has it: major number from bit 20 on.
    pub dev: u32,
    pub generation: u32,
}
