//! What an exec is: each dimension that rules ask for, as the rules that it satisfies.

use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use core::ptr::{addr_of, read_volatile, write_volatile};
use namespan_ebpf::guard_wire::{Mask, TEXT_MAX, TextKey, dimension};

use crate::identity::{Identity, optional};
use crate::kernel::{Access, Ptr, copy, off, pointer};
use crate::lineage::nearest_exec;
use crate::origin;
use crate::path::{Window, walk};
use crate::room::{Number, Room, walked};
use crate::tables::{GUARD_TEXTS, GUARD_UIDS, Text, guard_setting};

/// Keeps the rules that hold. They are two sets, as what could not be read whole must not be a way past the guard: it meets
/// all that a policy asks for, and nothing that an exception asks for.
#[inline(always)]
pub fn keep(room: &Room, rules: Mask) {
    room.set(Number::Matching, room.get(Number::Matching) & rules);
    room.set(Number::Excepting, room.get(Number::Excepting) & rules);
}

/// Keeps those that ask for such a path, or for none.
#[inline(always)]
pub fn keep_path(room: &Room, index: usize, window: &Window, ended: Number) {
    let any: Mask = guard_setting!(any_text[index]);
    match room.get(ended) {
        walked::WHOLE => keep_text(room, index, window.at(window.start()), window.len()),
        // Its first components are missing.
        walked::TRUNCATED => keep_unread(room, index),
        _ => keep(room, any),
    }
}

/// Keeps those that do not ask for a text, as there is none.
#[inline(always)]
pub fn keep_any(room: &Room, index: usize) {
    keep(room, guard_setting!(any_text[index]));
}

/// Keeps those that match by whatever text, and those that except by none, as it could not be read whole.
#[inline(always)]
pub fn keep_unread(room: &Room, index: usize) {
    let any: Mask = guard_setting!(any_text[index]);
    room.set(Number::Excepting, room.get(Number::Excepting) & any);
}

/// Of a text of which only is known that it is longer than any that a rule asks for: keeps those that match by whatever begins
/// with something, and those that except by none.
#[inline(always)]
pub fn keep_long(room: &Room, index: usize) {
    let (any, prefixes): (Mask, Mask) = (guard_setting!(any_text[index]), guard_setting!(prefix_text[index]));
    room.set(Number::Matching, room.get(Number::Matching) & (any | prefixes));
    room.set(Number::Excepting, room.get(Number::Excepting) & any);
}

#[inline(always)]
pub fn keep_uid(room: &Room, uid: u32) {
    let any: Mask = guard_setting!(any_uid);
    // SAFETY: the value is copied at once.
    let told = unsafe { GUARD_UIDS.get(&uid) }.map_or(0, |rules| *rules);
    keep(room, told | any);
}

/// Whether some rule asks for a text.
#[inline(always)]
pub fn asks(index: usize) -> bool {
    guard_setting!(asks) & 1 << index != 0
}

const KEY_SIZE: usize = size_of::<Text>();
const TEXT_AT: usize = KEY_SIZE - TEXT_MAX - 1;
const _: () = assert!(KEY_SIZE == 252 && TEXT_AT == 5 && size_of::<TextKey>() == KEY_SIZE - 4 && dimension::COUNT < 32);

/// Keeps those that ask for such a text, or for none.
#[inline(always)]
pub fn keep_text(room: &Room, index: usize, from: Ptr, bytes: u32) {
    let any: Mask = guard_setting!(any_text[index]);
    let key = room.key();
    let mut word = 0;
    while word <= KEY_SIZE / 8 {
        // SAFETY: within the room, which has more behind the key.
        unsafe { write_volatile(key.cast::<u64>().wrapping_add(word), 0) };
        word += 1;
    }
    let bytes = if bytes > TEXT_MAX as u32 + 1 { TEXT_MAX as u32 + 1 } else { bytes } & 0xff;
    if !copy(key.wrapping_add(TEXT_AT), bytes, from) {
        return keep(room, any);
    }
    // SAFETY: as above.
    unsafe {
        write_volatile(key.cast::<u32>(), (size_of::<TextKey>() * 8) as u32);
        write_volatile(key.wrapping_add(4), index as u8);
    }
    // SAFETY: a map of ours and a key of its size.
    let rules = unsafe { bpf_map_lookup_elem(addr_of!(GUARD_TEXTS).cast_mut().cast(), key.cast_const().cast()) };
    if rules.is_null() {
        return keep(room, any);
    }
    // SAFETY: a value of the map.
    keep(room, any | unsafe { read_volatile(rules.cast::<Mask>()) });
}

/// Keeps the rules that hold with the process's terminal, or without; and for a script's interpreter, or for what was asked
/// for itself.
#[inline(always)]
pub fn keep_terminal_and_script<A: Access>(room: &Room, who: &Identity, bprm: Ptr) -> Option<()> {
    let signal = pointer::<A>(who.leader, off!(task_signal))?;
    let interactive: Mask = match optional::<A>(signal, off!(signal_tty)) {
        Some(_) => guard_setting!(interactive[1]),
        None => guard_setting!(interactive[0]),
    };
    keep(room, interactive);
    let filename = A::load::<u64>(bprm, off!(bprm_filename))?;
    if filename == A::load::<u64>(bprm, off!(bprm_interp))? {
        room.set(Number::Script, 0);
        keep(room, guard_setting!(script[0]));
    } else {
        room.set(Number::Script, filename);
        keep(room, guard_setting!(script[1]));
    }
    Some(())
}

/// Keeps the rules that hold for the executable: its path, its name, and where it comes from.
#[inline(always)]
pub fn keep_executable<A: Access>(room: &Room, who: &Identity, file: Ptr) {
    let window = room.path();
    window.clear();
    room.set(Number::Walked, walked::of(walk::<A, true>(&window, file)));
    keep_path(room, dimension::PATH, &window, Number::Walked);
    if asks(dimension::NAME) {
        if room.get(Number::Walked) == walked::UNREADABLE {
            keep_any(room, dimension::NAME);
        } else {
            let (name, bytes) = window.name();
            keep_text(room, dimension::NAME, name, bytes);
        }
    }
    room.set(Number::Origin, origin::of(who, file, room.get(Number::Container) != 0) as u64);
    let index = room.get(Number::Origin) as usize & 7;
    // Past the last origin there are other masks, and no executable is from there.
    keep(room, guard_setting!(origins[index]));
}

/// Keeps the rules that hold for the parent's executable; it has none if it is exiting.
#[inline(always)]
pub fn keep_parent<A: Access>(room: &Room, parent: Ptr) {
    let window = room.parent();
    window.clear();
    room.set(Number::ParentWalked, walked::UNREADABLE);
    if let Some(mm) = pointer::<A>(parent, off!(task_mm))
        && let Some(file) = pointer::<A>(mm, off!(mm_exe_file))
    {
        room.set(Number::ParentWalked, walked::of(walk::<A, false>(&window, file)));
    }
    keep_path(room, dimension::PARENT, &window, Number::ParentWalked);
}

/// Keeps who the nearest process is that has exec'd.
#[inline(always)]
pub fn keep_ancestor<A: Access>(room: &Room, first: Ptr) {
    room.set(Number::AncestorTgid, 0);
    room.set(Number::AncestorStart, 0);
    if let Ok((tgid, start)) = nearest_exec::<A>(first) {
        room.set(Number::AncestorTgid, tgid.into());
        room.set(Number::AncestorStart, start);
    }
}

/// The process's cgroup in the v2 hierarchy.
#[inline(always)]
pub fn cgroup_id<A: Access>(task: Ptr) -> Option<u64> {
    let set = pointer::<A>(task, off!(task_cgroups))?;
    let node = pointer::<A>(pointer::<A>(set, off!(css_set_dfl_cgrp))?, off!(cgroup_kn))?;
    A::load(node, off!(kernfs_id))
}
