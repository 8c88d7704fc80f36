//! Whose a process is: the host's, or which container's, by its cgroups alone, as user space may not know of it yet.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_map_update_elem};
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use core::ptr::addr_of;
use namespan_ebpf::guard_wire::{CONTAINER_ID_SIZE, Mask, Scope, V1};
use namespan_ebpf::wire::CgroupKey;

use crate::identity::{Cgroups, Identity, mount_namespace, number, put};
use crate::kernel::{Access, Ptr, copy, copy_str, element, off, pointer};
use crate::room::{Number, Room};
use crate::tables::{GUARD_CGROUPS, GUARD_SCOPES, epoch, guard_setting};

/// Components of a cgroup path that are looked at: those nearest to the root. What is deeper is the workload's to choose.
const DEPTH: u32 = 16;
/// Components nearer to the leaf that are stepped over on deeper paths.
const SKIP: u32 = 256;
const NAME_SIZE: u32 = 256;
const ID: u32 = CONTAINER_ID_SIZE as u32;
const SCOPE: &[u8; 6] = b".scope";

/// How a cgroup's container is known.
mod by {
    /// There is none.
    pub const NOTHING: u64 = 0;
    /// Its id stands in the path.
    pub const ID: u64 = 1;
    /// User space has said so of a cgroup.
    pub const CGROUP: u64 = 2;
    /// It lies too deep to be looked for.
    pub const NOBODY: u64 = 3;
}

/// What the path of a cgroup says.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Known {
    epoch: u64,
    /// The container's own cgroup, as [`GUARD_CGROUPS`] has it.
    own: u64,
    /// One of [`by`].
    by: u64,
    /// Not 0: it lies below a user's own manager. Whoever is that user makes and names the cgroups there.
    user: u64,
    id: [u8; CONTAINER_ID_SIZE],
    /// The key. The kernel may give the value to another one while it is copied, which changes this last.
    of: CgroupKey,
}

/// By cgroup. The oldest give way.
#[map]
static GUARD_KNOWN: LruHashMap<CgroupKey, Known> = LruHashMap::with_max_entries(16_384, 0);

/// Finds out whose a process is, and keeps the rules for it in the room; whether any may ever touch it.
#[inline(always)]
pub fn whose<A: Access>(room: &Room, who: &Identity) -> Option<bool> {
    let cgroups = Cgroups::of::<A>(who.task).ok()?;
    if !known(room, &cgroups) {
        find_out::<A>(room, &cgroups)?;
    }
    let known = room.known::<Known>();
    // SAFETY: within the room.
    let (own, by, user) = unsafe {
        (
            read_volatile(&raw const (*known).own),
            read_volatile(&raw const (*known).by),
            read_volatile(&raw const (*known).user) != 0,
        )
    };
    let host: Mask = guard_setting!(host);
    room.set(Number::Container, 0);
    room.set(Number::Matching, host);
    room.set(Number::Excepting, host);
    if by == by::NOTHING {
        return Some(true);
    }
    if mount_namespace::<A>(who.task) == guard_setting!(host_mnt_ns) {
        // A runtime's set-up: root in a container's cgroup, but with all that the host has. Others may make themselves a
        // cgroup that looks like a container's, and stay the host's.
        return Some(who.euid != 0 || user);
    }
    if by == by::NOBODY {
        // Nobody needs such a cgroup but who wants to get out of some policy's scope: it is in all of them.
        room.set(Number::Container, own);
        room.set(Number::Matching, Mask::MAX);
        room.set(Number::Excepting, Mask::MAX);
        return Some(true);
    }
    let (rules, is_told) = rules_of(known, by, user);
    room.set(Number::Container, own);
    room.set(Number::Matching, rules);
    room.set(Number::Excepting, rules);
    Some(!(is_told && rules == 0))
}

/// The rules for a container that is known by its id or its cgroup, and whether user space has told of it.
#[inline(always)]
fn rules_of(known: *const Known, by: u64, user: bool) -> (Mask, bool) {
    let scope = if by == by::ID {
        // SAFETY: a map of ours and a key of its size.
        unsafe { bpf_map_lookup_elem(addr_of!(GUARD_SCOPES).cast_mut().cast(), (&raw const (*known).id).cast()) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_map_lookup_elem(addr_of!(GUARD_CGROUPS).cast_mut().cast(), (&raw const (*known).own).cast()) }
    };
    // What a user calls a container is under what holds for the host as well.
    let users = if user { guard_setting!(host) } else { 0 };
    if scope.is_null() {
        return (guard_setting!(containers) | users, false);
    }
    // SAFETY: a value of either map.
    (unsafe { read_volatile(&raw const (*scope.cast::<Scope>()).rules) } | users, true)
}

/// As [`whose`], without a room: the rules for a process as far as it is remembered whose it is, else all of them. `None`:
/// unreadable.
#[inline(always)]
pub fn remembered<A: Access>(who: &Identity) -> Option<Mask> {
    let cgroups = Cgroups::of::<A>(who.task).ok()?;
    if mount_namespace::<A>(who.task) == guard_setting!(host_mnt_ns) {
        return Some(guard_setting!(host));
    }
    // SAFETY: a map of ours and a key of its size.
    let found =
        unsafe { bpf_map_lookup_elem(addr_of!(GUARD_KNOWN).cast_mut().cast(), (&raw const cgroups.key).cast()) };
    if found.is_null() {
        return Some(Mask::MAX);
    }
    let known = found.cast_const().cast::<Known>();
    // SAFETY: a value of the map.
    let (by, user) = unsafe { (read_volatile(&raw const (*known).by), read_volatile(&raw const (*known).user) != 0) };
    let rules = match by {
        by::NOTHING => guard_setting!(host),
        by::NOBODY => Mask::MAX,
        _ => rules_of(known, by, user).0,
    };
    // The last look: the kernel may have given the value to another one.
    // SAFETY: as above.
    let (then, of) = unsafe { (read_volatile(&raw const (*known).epoch), read_volatile(&raw const (*known).of)) };
    let is_it = then == epoch() && of.v2 == cgroups.key.v2 && of.v1 == cgroups.key.v1;
    Some(if is_it { rules } else { Mask::MAX })
}

/// Whether what the path says is known, and in the room now.
#[inline(always)]
fn known(room: &Room, cgroups: &Cgroups) -> bool {
    let to = room.known::<Known>();
    let now = epoch();
    // SAFETY: a map of ours and a key of its size.
    let found =
        unsafe { bpf_map_lookup_elem(addr_of!(GUARD_KNOWN).cast_mut().cast(), (&raw const cgroups.key).cast()) };
    if !found.is_null() && copy(to.cast(), size_of::<Known>() as u32, found.cast_const().cast()) {
        // SAFETY: within the room.
        let (then, of) = unsafe { (read_volatile(&raw const (*to).epoch), read_volatile(&raw const (*to).of)) };
        if then == now && of.v2 == cgroups.key.v2 && of.v1 == cgroups.key.v1 {
            return true;
        }
    }
    put!(to.epoch = now);
    put!(to.own = 0);
    put!(to.by = by::NOTHING);
    put!(to.user = 0);
    // SAFETY: as above.
    unsafe { write_volatile(&raw mut (*to).id, [0; CONTAINER_ID_SIZE]) };
    put!(to.of = cgroups.key);
    false
}

/// Reads it from the path.
#[inline(always)]
fn find_out<A: Access>(room: &Room, cgroups: &Cgroups) -> Option<()> {
    let to = room.known::<Known>();
    find::<A>(room, to, cgroups.v2, 0)?;
    // SAFETY: as above.
    if unsafe { read_volatile(&raw const (*to).by) } == by::NOTHING
        && let Some(v1) = cgroups.v1
    {
        find::<A>(room, to, v1, V1)?;
    }
    // SAFETY: as above, and a value of the map's size.
    let _full = unsafe {
        bpf_map_update_elem(
            addr_of!(GUARD_KNOWN).cast_mut().cast(),
            (&raw const (*to).of).cast(),
            to.cast_const().cast(),
            u64::from(BPF_ANY),
        )
    };
    Some(())
}

/// Goes from a cgroup to the root: the container nearest to the root is the last one found, or [`by::NOBODY`] knows. `None`:
/// unreadable.
#[inline(always)]
fn find<A: Access>(room: &Room, to: *mut Known, cgroup: Ptr, mark: u64) -> Option<()> {
    let mut deeper = A::load::<u32>(cgroup, off!(cgroup_level))?.saturating_sub(DEPTH);
    let mut node = pointer::<A>(cgroup, off!(cgroup_kn))?;
    let mut step = 0;
    while step < SKIP && deeper > 0 {
        node = pointer::<A>(node, off!(kernfs_parent))?;
        deeper -= 1;
        step += 1;
    }
    if deeper > 0 {
        put!(to.own = number::<A, u64>(pointer::<A>(cgroup, off!(cgroup_kn))?, off!(kernfs_id)).ok()? | mark);
        put!(to.user = 1);
        put!(to.by = by::NOBODY);
        return Some(());
    }
    let mut step = 0;
    while step < DEPTH {
        // The root has no name.
        let Some(parent) = pointer::<A>(node, off!(kernfs_parent)) else { break };
        let own = number::<A, u64>(node, off!(kernfs_id)).ok()? | mark;
        let bytes = copy_str(room.text(), NAME_SIZE, pointer::<A>(node, off!(kernfs_name))?)?;
        look(room, to, own, bytes & (NAME_SIZE - 1));
        node = parent;
        step += 1;
    }
    Some(())
}

/// Takes note of a component's name.
#[inline(always)]
fn look(room: &Room, to: *mut Known, own: u64, bytes: u32) {
    let id = id(room, bytes);
    // SAFETY: nothing is read.
    let is_told = unsafe { GUARD_CGROUPS.get(&own) }.is_some();
    if id == NO_ID && !is_told {
        if starts(room, b"user@") {
            put!(to.user = 1);
        }
        return;
    }
    put!(to.own = own);
    put!(to.user = 0);
    if is_told {
        put!(to.by = by::CGROUP);
    } else {
        put!(to.by = by::ID);
        // SAFETY: within the room.
        copy(unsafe { (&raw mut (*to).id).cast() }, ID, room.text().wrapping_add((id & 0xff) as usize));
    }
}

const NO_ID: u32 = u32::MAX;

/// Where an id begins in the text: 64 digits at its end, or before `.scope`, alone or behind a `-` or `:`. Who made the name
/// does not matter: only root can, outside of what a user manages.
#[inline(always)]
fn id(room: &Room, bytes: u32) -> u32 {
    let ends = byte_at(room, bytes.wrapping_sub(1));
    // Most names are no container's, and are not looked at closely. Those of scopes end in a digit as well.
    if bytes < ID || no_digit(ends) != 0 {
        return NO_ID;
    }
    let is_scope = bytes > ID + SCOPE.len() as u32 && has_scope(room, bytes);
    let behind = if is_scope { SCOPE.len() as u32 } else { 0 };
    room.set(Number::Id, bytes.wrapping_sub(behind).wrapping_sub(ID).into());
    let start = room.get(Number::Id) as u32 & (NAME_SIZE - 1);
    // No branch for each digit: the verifier would follow each of them.
    let mut differs = 0;
    let mut digit = 0;
    while digit < ID {
        differs |= no_digit(byte_at(room, start.wrapping_add(digit)));
        digit += 1;
    }
    let before = byte_at(room, start.wrapping_sub(1));
    if differs != 0 || (start != 0 && before != b'-' && before != b':') {
        return NO_ID;
    }
    start
}

#[inline(always)]
fn has_scope(room: &Room, bytes: u32) -> bool {
    let mut difference = 0;
    let mut index = 0;
    while index < SCOPE.len() {
        let at = bytes.wrapping_sub(SCOPE.len() as u32).wrapping_add(index as u32);
        difference |= byte_at(room, at) ^ element(SCOPE.as_ptr(), index);
        index += 1;
    }
    difference == 0
}

#[inline(always)]
fn starts<const LEN: usize>(room: &Room, name: &[u8; LEN]) -> bool {
    let mut difference = 0;
    let mut index = 0;
    while index < LEN {
        difference |= byte_at(room, index as u32) ^ element(name.as_ptr(), index);
        index += 1;
    }
    difference == 0
}

/// A byte of the text, the index taken modulo the longest name.
#[inline(always)]
fn byte_at(room: &Room, index: u32) -> u8 {
    // SAFETY: the masked index lies within the text.
    unsafe { read_volatile(room.text().wrapping_add((index & (NAME_SIZE - 1)) as usize)) }
}

/// 0 of a digit of an id.
#[inline(always)]
fn no_digit(byte: u8) -> u8 {
    element(&raw const NO_DIGIT[0], byte.into())
}

static NO_DIGIT: [u8; 256] = {
    let mut table = [1; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = 0;
        digit += 1;
    }
    table
};
