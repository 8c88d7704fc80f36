//! The arguments of an exec.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user_str};
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::TracePointContext;
use namespan_ebpf::guard_wire::Decision;
use namespan_ebpf::wire::{flag, section};

use crate::identity::put;
use crate::kernel::{Access, Probed, Ptr, copy_user, off};
use crate::record::Record;
use crate::room::{Number, Room};
use crate::subject::{keep_long, keep_text, keep_unread};
use crate::tables::guard_setting;

/// `argv` of the calls under way, by thread. A call that pushed it out is told of without its arguments.
#[map]
static GUARD_CALLS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// `syscalls:sys_enter_execve(filename, argv, envp)`.
#[tracepoint]
pub fn guard_execve(ctx: TracePointContext) -> u32 {
    remember(&ctx, 1)
}

/// `syscalls:sys_enter_execveat(fd, filename, argv, envp, flags)`, Linux 3.19.
#[tracepoint]
pub fn guard_execveat(ctx: TracePointContext) -> u32 {
    remember(&ctx, 2)
}

#[inline(always)]
fn remember(ctx: &TracePointContext, argument: u32) -> u32 {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    if let Some(argv) = Probed::load::<u64>(ctx.as_ptr().cast(), off!(sys_enter_args) + argument * 8) {
        let _full = GUARD_CALLS.insert(&thread, &argv, u64::from(BPF_ANY));
    }
    0
}

/// Bytes at an argument's end that are looked at for its last component, and how many at a time.
const LOOKED_AT: u32 = 4096;
const WORD: u32 = 8;
/// Bytes of an argument that are stepped over at once to find its end, and how often: the kernel takes none longer than
/// `MAX_ARG_STRLEN`, 128 KiB.
const STEP: u32 = 0x8000;
const STEPS: u32 = 5;

/// Where the argument that begins at `start` in the new image ends, its NUL included; through all of it, as its length is the
/// workload's to choose. `None`: unreadable.
#[inline(always)]
pub fn end_of(room: &Room, start: u64) -> Option<u64> {
    room.set(Number::Argument, start);
    let mut step = 0;
    while step < STEPS {
        let at = room.get(Number::Argument);
        // SAFETY: the verifier checks the buffer, which is not in use yet; the helper checks the address.
        let copied = unsafe { bpf_probe_read_user_str(room.record().cast(), STEP, at as *const _) };
        if copied < 0 {
            return None;
        }
        if (copied as u32) < STEP {
            return Some(at + u64::from(with_nul(copied) & (STEP - 1)));
        }
        room.set(Number::Argument, at + u64::from(STEP - 1));
        step += 1;
    }
    None
}

/// Bytes of a text that was read, with its NUL: of an empty one kernels up to 6.12 say 0.
#[inline(always)]
fn with_nul(copied: i64) -> u32 {
    if copied == 0 { 1 } else { copied as u32 }
}

/// Keeps the rules that ask for such a last component of the argument from `start` to `end`, or for none. Of one that does not
/// begin within the bytes that are looked at it is known that it is longer than any rule's text.
#[inline(always)]
pub fn keep_component(room: &Room, dimension: usize, start: u64, end: u64, skips_dash: bool) {
    // Not in use yet.
    let text = room.record();
    let len = end.wrapping_sub(start).wrapping_sub(1);
    let is_cut = len >= u64::from(LOOKED_AT);
    let bytes = if is_cut { LOOKED_AT - 1 } else { len as u32 } & (LOOKED_AT - 1);
    if !copy_user(text, bytes, end.wrapping_sub(1).wrapping_sub(u64::from(bytes))) {
        return keep_unread(room, dimension);
    }
    let mut index = 0;
    while index < WORD {
        // What stands behind it in its last word is another argument's.
        // SAFETY: within the room, which has more behind the text.
        unsafe { write_volatile(text.wrapping_add((bytes + index) as usize), 0) };
        index += 1;
    }
    room.set(Number::Bytes, bytes.into());
    room.set(Number::Cut, is_cut.into());
    room.set(Number::Slash, 0);
    find_slash(room, text);
    if room.get(Number::Cut) != 0 && room.get(Number::Slash) == 0 {
        return keep_long(room, dimension);
    }
    let bytes = room.get(Number::Bytes) as u32 & (LOOKED_AT - 1);
    let mut start = room.get(Number::Slash) as u32 & (LOOKED_AT - 1);
    // SAFETY: within the text.
    if skips_dash && start < bytes && unsafe { read_volatile(text.wrapping_add(start as usize)) } == b'-' {
        start += 1;
    }
    let bytes = bytes.wrapping_sub(start) & (LOOKED_AT - 1);
    keep_text(room, dimension, text.wrapping_add((start & (LOOKED_AT - 1)) as usize), bytes);
}

/// Finds the place behind the last slash of the text: first the word that has it, as the verifier follows each step.
#[inline(always)]
fn find_slash(room: &Room, text: *const u8) {
    let mut at = 0;
    while at < LOOKED_AT {
        // Asked for each time: else the verifier would know the length at each way out of the loop, and follow them all.
        if u64::from(at) >= room.get(Number::Bytes) {
            break;
        }
        // SAFETY: within the text, which is aligned.
        if has_slash(unsafe { read_volatile(text.wrapping_add(at as usize).cast()) }) {
            room.set(Number::Slash, u64::from(at) + 1);
        }
        at += WORD;
    }
    let found = room.get(Number::Slash);
    if found == 0 {
        return;
    }
    let word = (found as u32).wrapping_sub(1) & (LOOKED_AT - WORD);
    let mut index = 0;
    while index < WORD {
        // SAFETY: within the text.
        if unsafe { read_volatile(text.wrapping_add((word + index) as usize)) } == b'/' {
            room.set(Number::Slash, u64::from(word + index) + 1);
        }
        index += 1;
    }
}

/// Whether one of the bytes is a slash: whether one is zero once slashes are. The lowest that is borrows into its highest bit;
/// if none is, a byte does so only that had this bit.
#[inline(always)]
fn has_slash(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let zeroed = word ^ (ONES * b'/' as u64);
    zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7) != 0
}

/// The arguments of the new image.
#[inline(always)]
pub fn of_image(record: &Record, mm: Ptr) -> Option<()> {
    let detail = record.detail::<Decision>();
    put!(detail.args_len = record.arguments(mm, guard_setting!(args_limit)).ok()?);
    Some(())
}

/// Arguments of a caller that are told of, bytes of each with its NUL, and of all of them before the last one.
const CALLER_ARGS: u32 = 32;
const CALLER_ARG_SIZE: u32 = 1024;
const CALLER_BYTES: u32 = 7168;

/// As [`of_image`], from the caller's memory, where they are the caller's to change.
#[inline(always)]
pub fn of_caller(record: &Record) {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    // Null for a call that was not remembered: reading it fails, and the record says so.
    // SAFETY: the value is copied at once.
    let argv = unsafe { GUARD_CALLS.get(&thread) }.map_or(0, |argv| *argv);
    let limit = guard_setting!(args_limit);
    let start = record.len();
    let mut index = 0;
    while index < CALLER_ARGS {
        let read = record.len().wrapping_sub(start);
        if read >= CALLER_BYTES || read >= limit {
            break;
        }
        let mut argument = 0_u64;
        if !copy_user((&raw mut argument).cast(), 8, argv.wrapping_add(u64::from(index) * 8)) {
            record.flag(flag::ARGS_FAULT);
            break;
        }
        if argument == 0 {
            break;
        }
        let to = record.tail::<0x7fff>();
        // SAFETY: the verifier checks the buffer, the helper checks the address, which the workload chose.
        let copied = unsafe { bpf_probe_read_user_str(to.cast(), CALLER_ARG_SIZE, argument as *const _) };
        if copied < 0 {
            record.flag(flag::ARGS_FAULT);
            break;
        }
        record.grow(with_nul(copied) & (2 * CALLER_ARG_SIZE - 1));
        index += 1;
    }
    let bytes = record.len().wrapping_sub(start);
    record.set_section(section::ARGS_HEAD, bytes);
    record.set_section(section::ARGS_TAIL, 0);
    let detail = record.detail::<Decision>();
    put!(detail.args_len = u64::from(bytes));
}
