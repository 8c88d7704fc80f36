//! Scratch memory of one decision: what is worked with, and behind it the record; a check's record lies apart.
//!
//! Numbers stand in it too: what the verifier reads back from memory it knows nothing of, so that the many ways through the
//! loops meet again in one state instead of multiplying.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use namespan_ebpf::guard_wire::{CHECK_RECORDS, CHECK_ROOMS};

use crate::path::{WINDOW_SIZE, Window};
use crate::tables::add;

/// Offsets of the parts, each a multiple of 8.
const KEY: usize = 0;
const TEXT: usize = 272;
/// Bytes of [`Room::text`], and as much again behind it.
const TEXT_SIZE: u32 = 512;
const KNOWN: usize = TEXT + 2 * TEXT_SIZE as usize;
const NUMBERS: usize = KNOWN + 128;
const PATH: usize = NUMBERS + 256;
const PARENT: usize = PATH + WINDOW_SIZE;
const RECORD: usize = PARENT + WINDOW_SIZE;
const _: () = assert!(WINDOW_SIZE.is_multiple_of(8) && PATH.is_multiple_of(8));

/// Longest record of [`exec`](crate::exec), and what a masked length can reach beyond it.
pub const EXEC_MASK: u32 = 0x1ffff;
/// As [`EXEC_MASK`], of [`check`](crate::check).
pub const CHECK_MASK: u32 = 0x7fff;
const EXEC_SIZE: usize = RECORD + EXEC_MASK as usize + 1;
const CHECK_RECORD_SIZE: usize = CHECK_MASK as usize + 1 + 4096;

/// User space sets the entries to the number of CPUs, and of the checks' to [`CHECK_ROOMS`] and [`CHECK_RECORDS`] for each.
#[map]
static GUARD_EXEC_ROOM: Array<[u8; EXEC_SIZE]> = Array::with_max_entries(1, 0);
#[map]
static GUARD_CHECK_ROOM: Array<[u8; RECORD]> = Array::with_max_entries(1, 0);
#[map]
static GUARD_CHECK_RECORD: Array<[u8; CHECK_RECORD_SIZE]> = Array::with_max_entries(1, 0);
/// Of the rooms, and behind them of the records.
#[map]
static GUARD_USERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(CHECK_ROOMS + CHECK_RECORDS, 0);

#[derive(Clone, Copy)]
pub struct Room {
    base: *mut u8,
}

/// A number in a [`Room`].
#[derive(Clone, Copy)]
pub enum Number {
    /// Rules that hold so far, as far as policies match by them, and as far as they except by them.
    Matching = 0,
    Excepting = 1,
    /// Policies that fired, by bit.
    Fired = 2,
    /// The strongest action of theirs, plus one; 0: none fired.
    Rank = 3,
    /// The first policy with it.
    Policy = 4,
    /// Where an argument begins.
    Argument = 5,
    /// Where the last slash of a text was.
    Slash = 6,
    /// Bytes of that text, and whether there are more before it.
    Bytes = 16,
    Cut = 17,
    /// The container's own cgroup, as [`crate::container`] has it.
    Container = 7,
    /// Where a container's id may begin in the text.
    Id = 18,
    /// Where the executable comes from.
    Origin = 8,
    /// How the walks to the executable's path and to its parent's ended: one of [`walked`].
    Walked = 9,
    ParentWalked = 10,
    /// Address of the path that was asked for, where an interpreter runs it; 0: there is none.
    Script = 11,
    /// What was done, and the errno of what could not be.
    Result = 12,
    Error = 13,
    /// The nearest process that has exec'd.
    AncestorTgid = 14,
    AncestorStart = 15,
}

/// How a walk ended.
pub mod walked {
    pub const WHOLE: u64 = 0;
    pub const TRUNCATED: u64 = 1;
    pub const UNREADABLE: u64 = 2;

    #[inline(always)]
    pub fn of(walked: Option<bool>) -> u64 {
        match walked {
            Some(true) => WHOLE,
            Some(false) => TRUNCATED,
            None => UNREADABLE,
        }
    }
}

impl Room {
    /// That of execs on this CPU, of which the kernel lets one at a time look.
    #[inline(always)]
    pub fn of_exec() -> Option<Self> {
        // SAFETY: no arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        Some(Self { base: GUARD_EXEC_ROOM.get_ptr_mut(cpu)?.cast() })
    }

    /// One that no other check on this CPU uses until it is given back, with what gives it back.
    #[inline(always)]
    pub fn of_check() -> Option<(Self, *mut u64)> {
        let (slot, users) = take::<0, CHECK_ROOMS>()?;
        let Some(base) = GUARD_CHECK_ROOM.get_ptr_mut(slot) else {
            release(users);
            return None;
        };
        Some((Self { base: base.cast() }, users))
    }

    /// A key of the texts, with room for as much again.
    #[inline(always)]
    pub fn key(&self) -> *mut u8 {
        self.base.wrapping_add(KEY)
    }

    /// Room for a short text.
    #[inline(always)]
    pub fn text(&self) -> *mut u8 {
        self.base.wrapping_add(TEXT)
    }

    /// What is found out of a cgroup.
    #[inline(always)]
    pub fn known<T>(&self) -> *mut T {
        self.base.wrapping_add(KNOWN).cast()
    }

    /// The executable's path.
    #[inline(always)]
    pub fn path(&self) -> Window {
        Window::at_work(self.base.wrapping_add(PATH))
    }

    /// That of the parent's executable.
    #[inline(always)]
    pub fn parent(&self) -> Window {
        Window::at_work(self.base.wrapping_add(PARENT))
    }

    /// Where an exec's record goes.
    #[inline(always)]
    pub fn record(&self) -> *mut u8 {
        self.base.wrapping_add(RECORD)
    }

    #[inline(always)]
    pub fn get(&self, number: Number) -> u64 {
        // SAFETY: within the room, which is aligned.
        unsafe { read_volatile(self.base.wrapping_add(NUMBERS + 8 * number as usize).cast()) }
    }

    #[inline(always)]
    pub fn set(&self, number: Number, value: u64) {
        // SAFETY: as in `get`.
        unsafe { write_volatile(self.base.wrapping_add(NUMBERS + 8 * number as usize).cast(), value) };
    }
}

/// Where a check's record goes, as [`Room::of_check`].
#[inline(always)]
pub fn record_of_check() -> Option<(*mut u8, *mut u64)> {
    let (slot, users) = take::<CHECK_ROOMS, CHECK_RECORDS>()?;
    let Some(record) = GUARD_CHECK_RECORD.get_ptr_mut(slot) else {
        release(users);
        return None;
    };
    Some((record.cast(), users))
}

/// One of this CPU's `COUNT` slots that nobody uses, among all CPUs', and its users, from the `FIRST` on.
///
/// Whoever is interrupted between its addition and its look finds one user more or finds none: never do two of them find
/// that they are alone.
#[inline(always)]
fn take<const FIRST: u32, const COUNT: u32>() -> Option<(u32, *mut u64)> {
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let mut slot = 0;
    while slot < COUNT {
        let users = GUARD_USERS.get_ptr_mut(FIRST + slot)?;
        add(users, 1);
        // SAFETY: a value of the map.
        if unsafe { read_volatile(users) } == 1 {
            return Some((cpu * COUNT + slot, users));
        }
        add(users, u64::MAX);
        slot += 1;
    }
    None
}

/// Gives back what a check took.
#[inline(always)]
pub fn release(users: *mut u64) {
    add(users, u64::MAX);
}
