//! Values of a hit: from registers and the process's memory into its record.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str};
use namespan_ebpf::uprobe_wire::{
    BYTES_MAX, DATA_MAX, FIXED, Hit, Operand, PlaceSettings, ValueHead, ValueSettings, flag, source, value,
};
use namespan_ebpf::wire::Process;

use crate::identity::put;
use crate::kernel::{Access, Probed, Ptr, copy_user};
use crate::place::Room;

/// A field behind a pointer into a map's value.
macro_rules! field {
    ($from:expr, $field:ident) => {
        // SAFETY: the caller's pointer is to a whole struct in a map's value.
        unsafe { read_volatile(&raw const (*$from).$field) }
    };
}

/// Captures value `index` of the place. What could not be had whole is flagged, in its head and in [`Process::flags`]: what
/// stands there the verifier knows nothing of, so that the ways through here meet again in one state.
#[inline(always)]
pub fn capture(regs: Ptr, place: *const PlaceSettings, index: usize, room: &Room) {
    // SAFETY: an element of the array in a map's value; the caller's index lies within.
    let settings = unsafe { (&raw const (*place).values).cast::<ValueSettings>().add(index) };
    let kind = field!(settings, kind);
    if kind == value::NONE {
        return;
    }
    // SAFETY: as above, in the scratch buffer.
    let head = unsafe { (&raw mut (*hit(room)).values).cast::<ValueHead>().add(index) };
    // SAFETY: as above.
    let number = match number(regs, unsafe { &raw const (*settings).operand }) {
        Ok(number) => cut(number, field!(settings, width), field!(settings, signed)),
        Err(address) => return write(room, head, address, 0, kind, flag::FAULT),
    };
    match kind {
        value::STRING => string(room, head, number, field!(place, max_bytes)),
        value::BYTES => {
            // SAFETY: as above.
            match self::number(regs, unsafe { &raw const (*settings).length }) {
                Ok(length) => bytes(room, head, number, length as u32 as i32, field!(place, max_bytes)),
                Err(address) => write(room, head, address, 0, kind, flag::FAULT),
            }
        }
        value::F32_AT | value::F64_AT => {
            let mut bits = 0_u64;
            let width = if kind == value::F32_AT { 4 } else { 8 };
            if number == 0 || copy_user((&raw mut bits).cast(), width, number) {
                let flags = if number == 0 { flag::FAULT } else { 0 };
                write(room, head, bits, 0, kind, flags)
            } else {
                write(room, head, number, 0, kind, flag::FAULT)
            }
        }
        _ => write(room, head, number, 0, kind, 0),
    }
}

#[inline(always)]
pub fn hit(room: &Room) -> *mut Hit {
    room.base().wrapping_add(size_of::<Process>()).cast()
}

#[inline(always)]
fn write(room: &Room, head: *mut ValueHead, bits: u64, len: u32, kind: u8, flags: u8) {
    // SAFETY: the caller's pointer is into the scratch buffer.
    unsafe { write_volatile(head, ValueHead { bits, len, kind, flags, reserved: 0 }) };
    if flags != 0 {
        let to = room.process();
        put!(to.flags = 1);
    }
}

/// The operand's number, extended to 64 bits; the address that could not be read.
#[inline(always)]
fn number(regs: Ptr, operand: *const Operand) -> Result<u64, u64> {
    let displacement = field!(operand, displacement) as u64;
    let from = field!(operand, source);
    if from == source::CONSTANT {
        return Ok(displacement);
    }
    let base = register(regs, field!(operand, base));
    let width = field!(operand, width);
    let number = if from == source::REGISTER {
        base
    } else {
        let index = register(regs, field!(operand, index)) << (field!(operand, shift) & 3);
        let address = base.wrapping_add(index).wrapping_add(displacement);
        let mut number = 0_u64;
        if !copy_user((&raw mut number).cast(), u32::from(width & 15).min(8), address) {
            return Err(address);
        }
        number
    };
    Ok(cut(number, width, field!(operand, signed)))
}

/// A register of `struct pt_regs`, 0 where there is none.
#[inline(always)]
fn register(regs: Ptr, offset: u16) -> u64 {
    if offset >= 1024 {
        return 0;
    }
    Probed::load::<u64>(regs, u32::from(offset)).unwrap_or(0)
}

/// Cuts a number to its lower `width` bytes and extends it again.
#[inline(always)]
fn cut(number: u64, width: u8, signed: u8) -> u64 {
    let shift = (64 - 8 * u32::from(width & 15)) & 63;
    let up = number << shift;
    if signed == 0 { up >> shift } else { ((up as i64) >> shift) as u64 }
}

/// Where the next value's bytes go, and how many there may be.
#[inline(always)]
fn tail(room: &Room, max: u32) -> (*mut u8, u32) {
    // SAFETY: within the fixed part.
    let len = unsafe { read_volatile(&raw const (*room.process()).len) };
    let at = len.wrapping_sub(FIXED as u32) & 0x7fff;
    let at = if at > DATA_MAX { DATA_MAX } else { at };
    let left = DATA_MAX - at;
    (room.base().wrapping_add(FIXED).wrapping_add(at as usize), max.min(left).min(BYTES_MAX))
}

#[inline(always)]
fn grow(room: &Room, bytes: u32) {
    // SAFETY: within the fixed part.
    unsafe {
        let len = &raw mut (*room.process()).len;
        write_volatile(len, read_volatile(len) + bytes);
    }
}

#[inline(always)]
fn string(room: &Room, head: *mut ValueHead, address: u64, max: u32) {
    let (to, max) = tail(room, max);
    // SAFETY: there is room for the NUL behind the data, the helper checks the source.
    let copied = unsafe { bpf_probe_read_user_str(to.cast(), (max + 1) & 0x1fff, address as *const _) };
    if address == 0 || copied <= 0 {
        return write(room, head, address, 0, value::STRING, flag::FAULT);
    }
    let bytes = (copied as u32 - 1) & 0x1fff;
    // As many as there may be are there, or more.
    let mut next = 0_u8;
    let whole = bytes < max || (copy_user(&raw mut next, 1, address.wrapping_add(u64::from(bytes))) && next == 0);
    grow(room, bytes);
    write(room, head, 0, bytes, value::STRING, if whole { 0 } else { flag::TRUNCATED })
}

#[inline(always)]
fn bytes(room: &Room, head: *mut ValueHead, address: u64, length: i32, max: u32) {
    let length = if length < 0 { 0 } else { length as u32 };
    let (to, max) = tail(room, max);
    let kept = length.min(max) & 0x1fff;
    // SAFETY: as in `string`.
    if kept > 0 && unsafe { bpf_probe_read_user(to.cast(), kept, address as *const _) } != 0 {
        return write(room, head, address, 0, value::BYTES, flag::FAULT);
    }
    grow(room, kept);
    write(room, head, u64::from(length), kept, value::BYTES, if kept < length { flag::TRUNCATED } else { 0 })
}
