//! A W3C trace context in a new image's environment.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_probe_read_user_str;
use namespan_ebpf::wire::{Counter, flag, section};

use crate::kernel::{Ptr, Typed, off, setting};
use crate::path::Window;
use crate::record::{PATH_MAX, Record, number};

/// Variables looked at, and pieces of those that are longer than [`PATH_MAX`]. Each is a round for the verifier to follow,
/// several times, which takes a million steps of a program at most.
const STEPS: u32 = 256;
/// Bytes of `TRACEPARENT=` and of `TRACESTATE=`.
const PARENT_NAME: u64 = 12;
const STATE_NAME: u64 = 11;

/// Writes the values of the first `TRACEPARENT` and, if there is one, the first `TRACESTATE` as sections. Overwrites what is
/// in the window.
///
/// A variable costs one helper call; only its length and its first bytes are looked at.
#[inline(always)]
pub fn trace_context(record: &Record, window: &Window, mm: Ptr) -> Result<(), Counter> {
    let found = Found::new(window);
    if setting!(env_context) != 0 {
        let from = number::<Typed, u64>(mm, off!(mm_env_start))?;
        let to = number::<Typed, u64>(mm, off!(mm_env_end))?;
        if !search(window, &found, from, to) {
            record.flag(flag::ENV_UNREAD);
        }
    }
    value(record, section::TRACEPARENT, found.get(PARENT), section::TRACEPARENT_MAX + 1);
    let state = if found.get(PARENT) == 0 { 0 } else { found.get(STATE) };
    value(record, section::TRACESTATE, state, section::TRACESTATE_MAX + 1);
    Ok(())
}

/// Whether all of the environment was looked at, or enough to have found both.
#[inline(always)]
fn search(window: &Window, found: &Found, from: u64, to: u64) -> bool {
    let text = window.at(0);
    found.set(AT, from);
    found.set(STARTS, 1);
    let mut step = 0;
    while step < STEPS {
        let at = found.get(AT);
        if at >= to {
            return true;
        }
        // SAFETY: the window has room for so many bytes, the helper checks the address.
        let copied = unsafe { bpf_probe_read_user_str(text.cast(), PATH_MAX, at as *const _) };
        if copied <= 0 {
            return false;
        }
        found.set(COPIED, copied as u64);
        found.look(text, at);
        if found.get(PARENT) != 0 && found.get(STATE) != 0 {
            return true;
        }
        step += 1;
    }
    found.get(AT) >= to
}

/// One value, cut at `size` with its NUL, or none if `at` is 0.
#[inline(always)]
fn value(record: &Record, index: usize, at: u64, size: u32) {
    let to = record.tail::<0x7fff>();
    let mut bytes = 0;
    if at != 0 {
        // SAFETY: the verifier checks the buffer, the helper checks the address.
        let copied = unsafe { bpf_probe_read_user_str(to.cast(), size, at as *const _) };
        if copied > 0 {
            bytes = (copied as u32 - 1) & section::TRACESTATE_MAX;
        }
    }
    record.section(index, bytes);
}

/// Address of the first `TRACEPARENT`'s value, 0: not found.
const PARENT: usize = 0;
/// Address of the first `TRACESTATE`'s value, 0: not found.
const STATE: usize = 1;
/// Address of what is looked at next.
const AT: usize = 2;
/// 1: a variable starts there; 0: a long one goes on.
const STARTS: usize = 3;
/// Bytes of what is looked at, with its NUL.
const COPIED: usize = 4;

/// What the search has come to. Numbers in memory and arithmetic instead of branches, for the reason given at [`Record`]:
/// each way through the loop would be one more for the verifier to follow, and there are many rounds.
struct Found {
    numbers: *mut u64,
}

impl Found {
    #[inline(always)]
    fn new(window: &Window) -> Self {
        let found = Self { numbers: window.beyond().cast() };
        found.set(PARENT, 0);
        found.set(STATE, 0);
        found
    }

    /// Takes note of a variable that is looked for, and steps over what was looked at.
    #[inline(always)]
    fn look(&self, text: *mut u8, at: u64) {
        const TRACEPAR: u64 = u64::from_le_bytes(*b"TRACEPAR");
        const ENT: u32 = u32::from_le_bytes(*b"ENT=");
        const TRACESTA: u64 = u64::from_le_bytes(*b"TRACESTA");
        const ATE: u32 = u32::from_le_bytes(*b"ATE=");
        let words = text.cast::<u64>();
        // SAFETY: the window is a map's value, which is aligned. What is older than this copy is masked out by its length.
        let (first, second) = unsafe { (words.read().to_le(), words.add(1).read().to_le()) };
        let seventh = first >> 56 | second << 8;
        let copied = self.get(COPIED);
        let other = self.get(STARTS) ^ 1;
        let parent = (first ^ TRACEPAR) | u64::from(second as u32 ^ ENT) | shorter(copied, PARENT_NAME + 1) | other;
        self.note(PARENT, parent, at + PARENT_NAME);
        let state = (first ^ TRACESTA) | u64::from(seventh as u32 ^ ATE) | shorter(copied, STATE_NAME + 1) | other;
        self.note(STATE, state, at + STATE_NAME);
        // A piece that fills the window may have ended there or not: what follows is taken for its rest. At worst an empty
        // rest, which is a step.
        let starts = shorter(copied, PATH_MAX.into()) & 1;
        self.set(STARTS, starts);
        self.set(AT, at + copied - 1 + starts);
    }

    /// Keeps an address if `difference` is 0 and there is none yet.
    #[inline(always)]
    fn note(&self, index: usize, difference: u64, address: u64) {
        let known = self.get(index);
        let difference = opaque(difference | known);
        // All ones for 0, else 0.
        let mask = ((difference | difference.wrapping_neg()) >> 63).wrapping_sub(1);
        self.set(index, known | (address & mask));
    }

    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        // SAFETY: within the window, behind the text; `index` is one of the constants above.
        unsafe { read_volatile(self.numbers.add(index)) }
    }

    #[inline(always)]
    fn set(&self, index: usize, number: u64) {
        // SAFETY: as in `get`.
        unsafe { write_volatile(self.numbers.add(index), number) };
    }
}

/// All ones if `len` is less than `least`, else 0.
#[inline(always)]
fn shorter(len: u64, least: u64) -> u64 {
    (opaque(len.wrapping_sub(least)) as i64 >> 63) as u64
}

/// The same number, of which the compiler knows nothing any more: it would make branches of what follows.
#[inline(always)]
fn opaque(number: u64) -> u64 {
    // SAFETY: a live local.
    unsafe { read_volatile(&raw const number) }
}
