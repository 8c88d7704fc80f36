//! A new image is in place: it is observed or killed before its first instruction.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use namespan_ebpf::guard_wire::{Counter, Program, action, dimension, hook};

use crate::arguments::{end_of, keep_component, of_image};
use crate::container::whose;
use crate::decide::{act, fires, is_exempt, is_ourselves, kill};
use crate::identity::{Identity, number};
use crate::kernel::{Ptr, Typed, off, pointer};
use crate::lineage::parent;
use crate::room::{EXEC_MASK, Number, Room};
use crate::subject::{
    asks, cgroup_id, keep_ancestor, keep_any, keep_executable, keep_parent, keep_terminal_and_script, keep_uid,
    keep_unread,
};
use crate::tables::{add, count, on_shift, self_test};
use crate::tell::{assemble, send};

const PROGRAM: Program = Program::Exec;

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, Linux 3.4: runs in the process,
/// past the point of no return, before the new image's first instruction. `bpf_send_signal`: Linux 5.3.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn guard_exec(ctx: BtfTracePointContext) -> u32 {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if test(ctx.arg(0)) || !on_shift(PROGRAM, now) {
        return 0;
    }
    count(PROGRAM, Counter::Triggered);
    let outcome = decide(now, ctx.arg(0), ctx.arg(2)).unwrap_or(Counter::Unreadable);
    count(PROGRAM, outcome);
    0
}

/// Whether it was a child of ours that proves that killing works.
#[inline(always)]
fn test(task: Ptr) -> bool {
    let Some(test) = self_test(action::KILL) else { return false };
    let Some(leader) = pointer::<Typed>(task, off!(task_group_leader)) else { return false };
    let Some(parent) = parent::<Typed>(leader) else { return false };
    let Ok(who) = Identity::of::<Typed>(parent) else { return false };
    if !is_ourselves(&who) {
        return false;
    }
    if kill() == 0 {
        // SAFETY: the map's only value.
        add(unsafe { &raw mut (*test).stopped }, 1);
    }
    true
}

/// How it ended.
#[inline(always)]
fn decide(now: u64, task: Ptr, bprm: Ptr) -> Option<Counter> {
    let who = Identity::of::<Typed>(task).ok()?;
    let parent = parent::<Typed>(who.leader)?;
    let flags = number::<Typed, u32>(parent, off!(task_flags)).ok()?;
    if is_exempt(&who, flags, cgroup_id::<Typed>(task)?) {
        return Some(Counter::Exempt);
    }
    let room = Room::of_exec()?;
    if !whose::<Typed>(&room, &who)? {
        return Some(Counter::Exempt);
    }
    keep_uid(&room, who.euid);
    keep_terminal_and_script::<Typed>(&room, &who, bprm)?;
    if room.get(Number::Matching) == 0 {
        return Some(Counter::Untouched);
    }
    let mm = pointer::<Typed>(task, off!(task_mm))?;
    keep_executable::<Typed>(&room, &who, pointer::<Typed>(mm, off!(mm_exe_file))?);
    if room.get(Number::Matching) == 0 {
        return Some(Counter::Untouched);
    }
    keep_arguments(&room, mm)?;
    keep_parent::<Typed>(&room, parent);
    if !fires(&room, PROGRAM) {
        return Some(Counter::Untouched);
    }
    act(&room, now);
    keep_ancestor::<Typed>(&room, parent);
    let record = assemble::<Typed>(&room, room.record(), &who, bprm, hook::EXEC, now);
    if let Some(record) = &record {
        of_image(record, mm);
    }
    send::<EXEC_MASK>(PROGRAM, record.as_ref());
    Some(Counter::Decided)
}

#[inline(always)]
fn keep_arguments(room: &Room, mm: Ptr) -> Option<()> {
    let start = number::<Typed, u64>(mm, off!(mm_arg_start)).ok()?;
    let end = number::<Typed, u64>(mm, off!(mm_arg_end)).ok()?;
    if !asks(dimension::ARGV0) && !asks(dimension::ARGV1) {
        return Some(());
    }
    if start >= end {
        keep_any(room, dimension::ARGV0);
        keep_any(room, dimension::ARGV1);
        return Some(());
    }
    let Some(second) = end_of(room, start) else {
        keep_unread(room, dimension::ARGV0);
        keep_unread(room, dimension::ARGV1);
        return Some(());
    };
    if asks(dimension::ARGV0) {
        keep_component(room, dimension::ARGV0, start, second, true);
    }
    if asks(dimension::ARGV1) {
        if second >= end {
            keep_any(room, dimension::ARGV1);
        } else if let Some(third) = end_of(room, second) {
            keep_component(room, dimension::ARGV1, second, third, false);
        } else {
            keep_unread(room, dimension::ARGV1);
        }
    }
    Some(())
}
