//! Calls and returns of places.

use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem,
};
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{LruHashMap, ProgramArray};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use namespan_ebpf::uprobe_wire::{ARGS_MAX, Counter, FIXED, LARGE_CALL, RETURNED, SMALL_CALL, ValueHead, kind};

use crate::capture::{capture, hit};
use crate::identity::{self, Cgroups, Identity, number, put};
use crate::kernel::{Access as _, Probed, Ptr, Typed, copy, off, pointer};
use crate::place::{Place, Room, of_place, uprobe_setting};

/// Names a call until its return: recursion, threads and frames that were jumped over differ in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CallKey {
    place: u64,
    /// Stack pointer at the call's first instruction.
    sp: u64,
    tid: u32,
    reserved: u32,
}

/// Records of calls that have not returned. The oldest give way: a frame that was jumped over never returns.
#[map]
static CALLS: LruHashMap<CallKey, [u8; SMALL_CALL]> = LruHashMap::with_max_entries(1, 0);
#[map]
static LARGE_CALLS: LruHashMap<CallKey, [u8; LARGE_CALL]> = LruHashMap::with_max_entries(1, 0);

/// Of no program.
#[map]
static NOBODY: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// There is no such place. A program that may call another one keeps its stack on that of the thread (`check_max_stack_depth` in
/// kernel/bpf/verifier.c). Since Linux 6.13 it would else be the CPU's, which two threads share when one preempts the other in a
/// uprobe's program: the kernel crashed.
#[inline(always)]
fn nowhere<C: EbpfContext>(ctx: &C) -> u32 {
    // SAFETY: the map has no program, so that nothing is called.
    unsafe { NOBODY.tail_call(ctx, 0) };
    0
}

/// At a function's first instruction or wherever the place is, before the instruction runs. Attach cookies: Linux 5.15.
#[uprobe]
pub fn uprobe_entry(ctx: ProbeContext) -> u32 {
    let Some(place) = Place::of(ctx.as_ptr()) else { return nowhere(&ctx) };
    place.count(Counter::Triggered);
    let kind = of_place!(place, kind);
    let regs = ctx.as_ptr().cast_const().cast::<u8>();
    let key = if kind == kind::CALL { Some(CallKey::of(&place, regs, 0)) } else { None };
    let outcome = told(&place, kind, regs, key.as_ref());
    place.count(outcome.err().unwrap_or(if kind == kind::CALL { Counter::Kept } else { Counter::Delivered }));
    0
}

/// After a function's last instruction, with the stack pointer that its caller finds. Attach cookies: Linux 5.15.
#[uretprobe]
pub fn uprobe_return(ctx: RetProbeContext) -> u32 {
    let Some(place) = Place::of(ctx.as_ptr()) else { return nowhere(&ctx) };
    let regs = ctx.as_ptr().cast_const().cast::<u8>();
    let outcome = if of_place!(place, kind) == kind::CALL {
        returned(&place, regs)
    } else {
        place.count(Counter::Triggered);
        told(&place, kind::RETURN, regs, None)
    };
    place.count(outcome.err().unwrap_or(Counter::Delivered));
    0
}

/// Tells of a wanted hit, or keeps the record of a call under `key`.
#[inline(always)]
fn told(place: &Place, kind: u16, regs: Ptr, key: Option<&CallKey>) -> Result<(), Counter> {
    // SAFETY: no arguments.
    let (task, now) = unsafe { (bpf_get_current_task_btf() as Ptr, bpf_ktime_get_boot_ns()) };
    let cgroups = Cgroups::of::<Typed>(task).map_err(|_| Counter::LostUnreadable)?;
    let tgid = number::<Typed, u32>(task, off!(task_tgid)).map_err(|_| Counter::LostUnreadable)?;
    let who = place.wanted(task, &cgroups, tgid)?;
    let outcome = match place.admits(now) {
        Ok(()) => match Room::take() {
            Some(room) => {
                let outcome = fill(place, kind, regs, &room, &who, &cgroups, now).and_then(|()| match key {
                    Some(key) => key.keep(place, &room),
                    None => send(place, &room),
                });
                room.release();
                outcome
            }
            None => Err(Counter::LostNoScratch),
        },
        Err(refused) => Err(refused),
    };
    if let (Err(_), Some(key)) = (outcome, key)
        // An earlier call of this thread at this depth that was jumped out of.
        && key.forget(place)
    {
        place.count(Counter::Replaced);
    }
    outcome
}

/// Assembles the record.
#[inline(always)]
fn fill(
    place: &Place,
    kind: u16,
    regs: Ptr,
    room: &Room,
    who: &Identity,
    cgroups: &Cgroups,
    now: u64,
) -> Result<(), Counter> {
    let to = room.process();
    put!(to.len = FIXED as u32);
    put!(to.flags = 0);
    put!(to.cgroup_id = cgroups.key.v2);
    put!(to.cgroup_v1_id = cgroups.key.v1);
    put!(to.sections = [0; namespan_ebpf::wire::section::COUNT]);
    identity::write::<Typed>(to, kind, now, who).map_err(|_| Counter::LostUnreadable)?;
    identity::namespaces::<Typed>(to, who);
    let hit = hit(room);
    put!(hit.place = of_place!(place, id));
    put!(hit.duration_ns = 0);
    put!(hit.ip = Probed::load(regs, uprobe_setting!(ip)).unwrap_or(0));
    // SAFETY: the fixed part lies within the buffer.
    let (comm, values) = unsafe { (&raw mut (*hit).comm, (&raw mut (*hit).values).cast::<ValueHead>()) };
    if !copy(comm.cast(), 16, who.task.wrapping_add(off!(task_comm) as usize)) {
        return Err(Counter::LostUnreadable);
    }
    let mut index = 0;
    while index <= ARGS_MAX {
        // SAFETY: within the fixed part.
        unsafe {
            write_volatile(values.wrapping_add(index), ValueHead { bits: 0, len: 0, kind: 0, flags: 0, reserved: 0 })
        };
        index += 1;
    }
    if kind == kind::RETURN {
        capture(regs, place.settings(), RETURNED, room);
    } else {
        let mut index = 0;
        while index < ARGS_MAX {
            capture(regs, place.settings(), index, room);
            index += 1;
        }
    }
    Ok(())
}

/// Writes a whole record to the ring.
#[inline(always)]
fn send(place: &Place, room: &Room) -> Result<(), Counter> {
    let to = room.process();
    // SAFETY: within the fixed part.
    let incomplete = unsafe { read_volatile(&raw const (*to).flags) } != 0;
    put!(to.flags = 0);
    room.output()?;
    if incomplete {
        place.count(Counter::Incomplete);
    }
    Ok(())
}

/// Tells of the call that now returns.
#[inline(always)]
fn returned(place: &Place, regs: Ptr) -> Result<(), Counter> {
    let key = CallKey::of(place, regs, uprobe_setting!(return_pops));
    let Some(kept) = key.find(place) else { return Err(Counter::Unpaired) };
    let Some(room) = Room::take() else {
        key.forget(place);
        return Err(Counter::LostReturn);
    };
    let outcome = complete(place, regs, &key, kept, &room);
    room.release();
    outcome
}

#[inline(always)]
fn complete(place: &Place, regs: Ptr, key: &CallKey, kept: *const c_void, room: &Room) -> Result<(), Counter> {
    let large = of_place!(place, large) != 0;
    let size = if large { LARGE_CALL } else { SMALL_CALL } as u32;
    let copied = copy(room.base(), size, kept.cast());
    // The kernel may have given the value to another call meanwhile, but then the key is gone: only this thread writes it.
    if !key.forget(place) || !copied {
        return Err(Counter::Unpaired);
    }
    // SAFETY: no arguments.
    let (task, now) = unsafe { (bpf_get_current_task_btf() as Ptr, bpf_ktime_get_boot_ns()) };
    let leader = pointer::<Typed>(task, off!(task_group_leader)).ok_or(Counter::LostReturn)?;
    let start = number::<Typed, u64>(leader, off!(task_start_boottime)).map_err(|_| Counter::LostReturn)?;
    let to = room.process();
    // SAFETY: within the fixed part.
    let (began, of) =
        unsafe { (read_volatile(&raw const (*to).time_boot_ns), read_volatile(&raw const (*to).start_boot_ns)) };
    if of != start {
        // Of an earlier process whose thread had this id.
        place.count(Counter::Replaced);
        return Err(Counter::Unpaired);
    }
    let hit = hit(room);
    put!(hit.duration_ns = now.saturating_sub(began));
    capture(regs, place.settings(), RETURNED, room);
    send(place, room)
}

impl CallKey {
    #[inline(always)]
    fn of(place: &Place, regs: Ptr, popped: u32) -> Self {
        // SAFETY: no arguments.
        let task = unsafe { bpf_get_current_task_btf() } as Ptr;
        let tid = number::<Typed, u32>(task, off!(task_pid)).unwrap_or(0);
        let sp = Probed::load::<u64>(regs, uprobe_setting!(sp)).unwrap_or(0);
        Self { place: of_place!(place, id), sp: sp.wrapping_sub(u64::from(popped)), tid, reserved: 0 }
    }

    #[inline(always)]
    fn keep(&self, place: &Place, room: &Room) -> Result<(), Counter> {
        if self.find(place).is_some() {
            // As where it is forgotten.
            place.count(Counter::Replaced);
        }
        let (key, value) = ((&raw const *self).cast(), room.base().cast_const().cast());
        // SAFETY: a map of ours, a key and a value of its size.
        let status = if of_place!(place, large) != 0 {
            unsafe { bpf_map_update_elem(addr_of!(LARGE_CALLS).cast_mut().cast(), key, value, u64::from(BPF_ANY)) }
        } else {
            unsafe { bpf_map_update_elem(addr_of!(CALLS).cast_mut().cast(), key, value, u64::from(BPF_ANY)) }
        };
        if status == 0 { Ok(()) } else { Err(Counter::LostUnkept) }
    }

    #[inline(always)]
    fn find(&self, place: &Place) -> Option<*const c_void> {
        let key = (&raw const *self).cast();
        // SAFETY: a map of ours, a key of its size.
        let found = if of_place!(place, large) != 0 {
            unsafe { bpf_map_lookup_elem(addr_of!(LARGE_CALLS).cast_mut().cast(), key) }
        } else {
            unsafe { bpf_map_lookup_elem(addr_of!(CALLS).cast_mut().cast(), key) }
        };
        (!found.is_null()).then_some(found.cast_const())
    }

    /// Whether it was there.
    #[inline(always)]
    fn forget(&self, place: &Place) -> bool {
        let key = (&raw const *self).cast();
        // SAFETY: a map of ours, a key of its size.
        let status = if of_place!(place, large) != 0 {
            unsafe { bpf_map_delete_elem(addr_of!(LARGE_CALLS).cast_mut().cast(), key) }
        } else {
            unsafe { bpf_map_delete_elem(addr_of!(CALLS).cast_mut().cast(), key) }
        };
        status == 0
    }
}
