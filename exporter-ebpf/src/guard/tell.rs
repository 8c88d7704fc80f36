//! The record of a decision.

use core::ptr::addr_of;

use aya_ebpf::helpers::generated::{bpf_ringbuf_discard, bpf_ringbuf_output, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use namespan_ebpf::guard_wire::{
    Counter, Decision, Program, V1, action, hook, kind, origin, result, section as guard_section,
};
use namespan_ebpf::wire::{Process, flag, section};

use crate::decide::intended;
use crate::identity::{self, Cgroups, Identity, number, put};
use crate::kernel::{Access, Probed, Ptr, copy, off};
use crate::lineage::nearest_exec;
use crate::record::{PATH_MASK, PATH_MAX, Record};
use crate::room::{Number, Room, walked};
use crate::tables::{GUARD_RING, count};

/// Writes all but the arguments of what stands in the room to `to`. `bprm`: what is executed.
#[inline(always)]
pub fn assemble<A: Access>(room: &Room, to: *mut u8, who: &Identity, bprm: Ptr, hook: u8, now: u64) -> Option<Record> {
    let record = Record::new::<Decision>(to);
    {
        let cgroups = Cgroups::of::<A>(who.task).ok()?;
        let to = record.process();
        put!(to.cgroup_id = cgroups.key.v2);
        put!(to.cgroup_v1_id = cgroups.key.v1);
        record.cgroup::<A>(section::CGROUP, Some(cgroups.v2));
        record.cgroup::<A>(section::CGROUP_V1, cgroups.v1);
    }
    match room.get(Number::Walked) {
        walked::WHOLE => {}
        walked::TRUNCATED => record.flag(flag::PATH_TRUNCATED),
        _ => record.flag(flag::PATH_FAULT),
    }
    if matches!(room.get(Number::Origin) as usize, origin::MEMFD | origin::DELETED) {
        record.flag(flag::UNLINKED);
    }
    record.path(&room.path());
    record.identify::<A>(kind::DECISION, now, who).ok()?;
    let script = room.get(Number::Script);
    record.string(section::SCRIPT, 4096, (script != 0).then_some(script as Ptr));
    parent(&record, room);
    record.section(section::TRACESTATE, 0);
    let detail = record.detail::<Decision>();
    put!(detail.args_len = 0);
    put!(detail.ancestor_tgid = room.get(Number::AncestorTgid) as u32);
    put!(detail.ancestor_start_boot_ns = room.get(Number::AncestorStart));
    put!(detail.rules = room.get(Number::Matching));
    put!(detail.container_cgroup_id = room.get(Number::Container) & !V1);
    put!(detail.argc = number::<A, u32>(bprm, off!(bprm_argc)).unwrap_or(0));
    put!(detail.fired = room.get(Number::Fired) as u32);
    put!(detail.error = room.get(Number::Error) as u32);
    put!(detail.policy = room.get(Number::Policy) as u16);
    put!(detail.intended = intended(room));
    put!(detail.result = room.get(Number::Result) as u8);
    put!(detail.origin = room.get(Number::Origin) as u8);
    put!(detail.hook = hook);
    put!(detail.reserved = [0; 2]);
    Some(record)
}

/// The path of the parent's executable, as far as it could be read.
#[inline(always)]
fn parent(record: &Record, room: &Room) {
    let window = room.parent();
    let start = window.start();
    let bytes = PATH_MAX.wrapping_sub(start) & PATH_MASK;
    let copied =
        room.get(Number::ParentWalked) != walked::UNREADABLE && copy(record.tail::<0x7fff>(), bytes, window.at(start));
    record.section(guard_section::PARENT_PATH, if copied { bytes } else { 0 });
}

/// Puts the record into the ring; the action was taken already.
#[inline(always)]
pub fn send<const MASK: u32>(program: Program, record: Option<&Record>) {
    let sent = match record {
        Some(record) => {
            let (from, len) = (record.buffer(), record.len());
            // Few they are, and each is urgent: the kernel wakes the reader when it has read all before.
            // SAFETY: a map of ours; the verifier checks the buffer against the masked length.
            let status = unsafe {
                bpf_ringbuf_output(addr_of!(GUARD_RING).cast_mut().cast(), from.cast(), u64::from(len & MASK), 0)
            };
            status == 0
        }
        None => false,
    };
    count(program, if sent { Counter::Told } else { Counter::LostRingFull });
}

/// Tells who was refused an exec that nobody had the room to look at, right in the ring: a record of numbers. Whether the ring
/// had room for it.
#[inline(always)]
pub fn tell_refused(who: &Identity, policy: u32, now: u64) -> bool {
    const SIZE: u64 = (size_of::<Process>() + size_of::<Decision>()) as u64;
    // SAFETY: a map of ours.
    let to = unsafe { bpf_ringbuf_reserve(addr_of!(GUARD_RING).cast_mut().cast(), SIZE, 0) };
    if to.is_null() {
        return false;
    }
    let is_whole = refused(&Record::new::<Decision>(to.cast()), who, policy, now).is_some();
    // SAFETY: reserved above, and given back once.
    unsafe { if is_whole { bpf_ringbuf_submit(to, 0) } else { bpf_ringbuf_discard(to, 0) } };
    is_whole
}

#[inline(always)]
fn refused(record: &Record, who: &Identity, policy: u32, now: u64) -> Option<()> {
    let to = record.process();
    identity::write::<Probed>(to, kind::DECISION, now, who).ok()?;
    identity::namespaces::<Probed>(to, who);
    let cgroups = Cgroups::of::<Probed>(who.task).ok()?;
    put!(to.cgroup_id = cgroups.key.v2);
    put!(to.cgroup_v1_id = cgroups.key.v1);
    record.flag(flag::PATH_FAULT | flag::ARGS_FAULT | flag::CGROUP_FAULT);
    record.end_at(0);
    let detail = record.detail::<Decision>();
    put!(detail.args_len = 0);
    let (ancestor_tgid, ancestor_start) = nearest_exec::<Probed>(who.leader).unwrap_or((0, 0));
    put!(detail.ancestor_tgid = ancestor_tgid);
    put!(detail.ancestor_start_boot_ns = ancestor_start);
    put!(detail.rules = 0);
    put!(detail.container_cgroup_id = 0);
    put!(detail.argc = 0);
    put!(detail.fired = 1 << (policy & 31));
    put!(detail.error = 0);
    put!(detail.policy = policy as u16);
    put!(detail.intended = action::DENY);
    put!(detail.result = result::DENIED);
    put!(detail.origin = origin::UNKNOWN as u8);
    put!(detail.hook = hook::CHECK);
    put!(detail.reserved = [0; 2]);
    Some(())
}
