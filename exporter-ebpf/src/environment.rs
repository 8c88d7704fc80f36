//! A W3C trace context in a new image's environment.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_probe_read_user_str;
use namespan_ebpf::wire::{Counter, flag, section};

use crate::identity::number;
use crate::kernel::{Ptr, Typed, copy, copy_user, element, off, setting};
use crate::path::Window;
use crate::record::Record;

/// Bytes of the environment that are looked at, from its start.
const TEXT_MAX: u32 = 0x3fff;
/// Where in the scratch buffer they are copied to: behind every section that is written before the arguments, which overwrite
/// them.
const TEXT: usize = 0x8000 + BLOCK as usize;
/// Bytes compared in one round. The verifier follows each of them.
const BLOCK: u32 = 64;
const BLOCKS: u32 = TEXT_MAX.div_ceil(BLOCK);
const WORD: u32 = 8;
/// Blocks that may be looked at closely: where there are more, none is.
const HITS_MAX: u32 = 16;

const PARENT_NAME: Name = Name::new(b"\0TRACEPARENT=");
const STATE_NAME: Name = Name::new(b"\0TRACESTATE=");

/// Whoever looks at four bytes of every eight meets one of these where either name stands, whatever its alignment. Each is
/// found at the place that [`place`] gives for it, so that one comparison tells of them all; the unused places hold what
/// belongs elsewhere.
static PARTS: [u64; 16] = parts([
    b"EPAR", b"ESTA", b"AREN", b"AREN", b"TATE", b"ATE=", b"CEPA", b"RENT", b"ACEP", b"ACES", b"STAT", b"RACE",
    b"RACE", b"TRAC", b"PARE", b"CEST",
]);
/// How far each of them is from where it can be at most, which is [`LAST`] bytes behind the start of the name. So that the
/// verifier sees numbers that only grow.
static SPARE: [u32; 16] = [3, 3, 1, 1, 1, 0, 4, 0, 5, 5, 2, 6, 6, 7, 2, 4];
const LAST: u32 = 7;

const fn parts(texts: [&[u8; 4]; 16]) -> [u64; 16] {
    let mut parts = [0; 16];
    let mut index = 0;
    while index < 16 {
        parts[index] = u32::from_le_bytes(*texts[index]) as u64;
        index += 1;
    }
    parts
}

#[inline(always)]
fn place(part: u64) -> usize {
    (part.wrapping_mul(0x759e_465a_97e8_3307) >> 60) as usize
}

#[inline(always)]
fn part(text: *const u8, at: u32) -> u64 {
    element::<u32>(text.wrapping_add(at as usize).cast(), 0).into()
}

/// Writes the values of the first `TRACEPARENT` and, if there is one, the first `TRACESTATE` as sections. Overwrites what is
/// in the window, and what is in the record's buffer behind the record.
#[inline(always)]
pub fn trace_context(record: &Record, window: &Window, mm: Ptr) -> Result<(), Counter> {
    let found = Found { numbers: window.beyond().cast() };
    found.set(PARENT, 0);
    found.set(STATE, 0);
    if setting!(env_context) != 0 {
        let from = number::<Typed, u64>(mm, off!(mm_env_start))?;
        let to = number::<Typed, u64>(mm, off!(mm_env_end))?;
        if !search(record.buffer(), &found, from, to.saturating_sub(from)) {
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
fn search(buffer: *mut u8, found: &Found, from: u64, len: u64) -> bool {
    let text = buffer.wrapping_add(TEXT);
    // What stands before the first variable ends there.
    // SAFETY: within the scratch buffer, which is aligned.
    unsafe { write_volatile(text.wrapping_sub(8).cast::<u64>(), 0) };
    // What was copied and what there is stand in memory, so that the verifier follows the search once and not twice.
    let copied = if len <= u64::from(TEXT_MAX) { len as u32 } else { TEXT_MAX } & TEXT_MAX;
    found.set(COPIED, copied.into());
    found.set(LEN, len);
    if !copy_user(text, copied, from) {
        return false;
    }
    find_parts(text, found);
    if found.get(HITS) > u64::from(HITS_MAX) {
        return false;
    }
    find_names(text, found, from);
    found.get(LEN) <= u64::from(TEXT_MAX) || (found.get(PARENT) != 0 && found.get(STATE) != 0)
}

/// Notes the blocks in which a part of a name stands.
#[inline(always)]
fn find_parts(text: *const u8, found: &Found) {
    found.set(HITS, 0);
    let len = found.get(COPIED) as u32;
    let mut block = 0;
    while block < BLOCKS {
        if block * BLOCK >= len {
            return;
        }
        // No branch but the loop's: each way through it would be one more for the verifier to follow. The highest bit tells
        // whether any difference is 0, as less than 33 bits are in use.
        let mut none_is_zero = 0;
        let mut at = block * BLOCK;
        while at < (block + 1) * BLOCK {
            let part = part(text, at);
            let difference = part ^ element(&raw const PARTS[0], place(part));
            none_is_zero |= difference.wrapping_sub(1);
            at += WORD;
        }
        let hits = found.get(HITS);
        found.set(BLOCK_OF_HIT + (hits & u64::from(HITS_MAX - 1)) as usize, u64::from(block));
        found.set(HITS, hits + (none_is_zero >> 63));
        block += 1;
    }
}

/// Looks closely at those blocks.
#[inline(always)]
fn find_names(text: *mut u8, found: &Found, from: u64) {
    let mut hit = 0;
    while hit < HITS_MAX {
        if u64::from(hit) >= found.get(HITS) {
            return;
        }
        let block = found.get(BLOCK_OF_HIT + hit as usize) as u32 & (BLOCKS - 1);
        let mut word = 0;
        while word < BLOCK {
            let at = block * BLOCK + word;
            let part = part(text, at);
            let place = place(part);
            if part == element(&raw const PARTS[0], place) {
                let ahead = at + (element(&raw const SPARE[0], place) & LAST);
                let name = text.wrapping_sub(LAST as usize).wrapping_add(ahead as usize);
                found.look(name, u64::from(ahead).wrapping_sub(u64::from(LAST)), from);
            }
            word += WORD;
        }
        hit += 1;
    }
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
/// Bytes that are looked at.
const COPIED: usize = 2;
/// Bytes that there are.
const LEN: usize = 3;
/// Blocks in which a part of a name stands.
const HITS: usize = 4;
/// The first of them, and the others behind it.
const BLOCK_OF_HIT: usize = 5;
/// A [`Name`], perhaps.
const LOOKED_AT: usize = BLOCK_OF_HIT + HITS_MAX as usize;

/// What the search has come to. Numbers in memory, for the reason given at [`Record`].
struct Found {
    numbers: *mut u64,
}

impl Found {
    /// Takes note of a variable that is looked for, if one starts at `text`, which is the byte `at` of the environment.
    #[inline(always)]
    fn look(&self, text: *mut u8, at: u64, from: u64) {
        // Aligned, so that two comparisons do; with the end of what stands before it.
        let _always = copy(self.numbers.wrapping_add(LOOKED_AT).cast(), Name::SIZE, text.wrapping_sub(1));
        self.note(&PARENT_NAME, PARENT, at, from);
        self.note(&STATE_NAME, STATE, at, from);
    }

    #[inline(always)]
    fn note(&self, name: &Name, index: usize, at: u64, from: u64) {
        let [first, rest] = name.words;
        let end = at + name.len;
        if self.get(LOOKED_AT) == first
            && self.get(LOOKED_AT + 1) & name.mask == rest
            && end <= self.get(COPIED)
            && self.get(index) == 0
        {
            self.set(index, from + end);
        }
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

/// A NUL, a variable's name and `=`, as they stand in memory.
struct Name {
    words: [u64; 2],
    /// Of the second word, what belongs to it.
    mask: u64,
    /// Bytes, without the NUL.
    len: u64,
}

impl Name {
    const SIZE: u32 = 16;

    const fn new(text: &[u8]) -> Self {
        let mut words = [0; 2];
        let mut mask = 0;
        let mut index = 0;
        while index < text.len() {
            let shift = index % 8 * 8;
            words[index / 8] |= (text[index] as u64) << shift;
            if index >= 8 {
                mask |= 0xff << shift;
            }
            index += 1;
        }
        Self { words, mask, len: text.len() as u64 - 1 }
    }
}
