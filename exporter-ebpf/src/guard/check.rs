//! A program is about to be executed: it may be refused.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use namespan_ebpf::guard_wire::{Counter, Mask, Program, action, dimension, hook, result};

use crate::arguments::of_caller;
use crate::container::{remembered, whose};
use crate::decide::{act, fires, is_exempt, is_ourselves, may_deny};
use crate::identity::{Identity, number};
use crate::kernel::{Probed, Ptr, off, pointer};
use crate::lineage::parent;
use crate::room::{CHECK_MASK, Number, Room, record_of_check, release};
use crate::subject::{
    cgroup_id, keep_ancestor, keep_any, keep_executable, keep_parent, keep_terminal_and_script, keep_uid,
};
use crate::tables::{add, count, count_result, guard_off, guard_setting, has_lease, on_shift, self_test};
use crate::tell::{assemble, send, tell_refused};

const PROGRAM: Program = Program::Check;
const EPERM: i32 = 1;

/// `bprm_check_security(struct linux_binprm *bprm)`, Linux 5.7: runs in the caller, once for the file that was asked for and
/// once more for the interpreter of a script, before anything of the old image is given up.
#[lsm(hook = "bprm_check_security")]
pub fn guard_check(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        // Another module has refused it.
        return -EPERM;
    }
    // SAFETY: no arguments.
    let (now, task) = unsafe { (bpf_ktime_get_boot_ns(), bpf_get_current_task() as Ptr) };
    if test(task) {
        return -EPERM;
    }
    if !on_shift(PROGRAM, now) {
        return 0;
    }
    count(PROGRAM, Counter::Triggered);
    let Some((room, users)) = Room::of_check() else {
        return if refuse(now, task) { -EPERM } else { 0 };
    };
    room.set(Number::Result, result::OBSERVED.into());
    let outcome = decide(now, task, ctx.arg(0), &room).unwrap_or(Counter::Unreadable);
    let denied = room.get(Number::Result) == u64::from(result::DENIED);
    release(users);
    count(PROGRAM, outcome);
    if denied { -EPERM } else { 0 }
}

/// Whether it was a child of ours that proves that refusing works.
#[inline(always)]
fn test(task: Ptr) -> bool {
    let Some(test) = self_test(action::DENY) else { return false };
    let Some(leader) = pointer::<Probed>(task, off!(task_group_leader)) else { return false };
    let Some(parent) = parent::<Probed>(leader) else { return false };
    let Ok(who) = Identity::of::<Probed>(parent) else { return false };
    if !is_ourselves(&who) {
        return false;
    }
    // SAFETY: the map's only value.
    add(unsafe { &raw mut (*test).stopped }, 1);
    true
}

/// How it ended.
#[inline(always)]
fn decide(now: u64, task: Ptr, bprm: Ptr, room: &Room) -> Option<Counter> {
    let who = Identity::of::<Probed>(task).ok()?;
    let parent = parent::<Probed>(who.leader)?;
    let flags = number::<Probed, u32>(parent, off!(task_flags)).ok()?;
    if is_exempt(&who, flags, cgroup_id::<Probed>(task)?) || !whose::<Probed>(room, &who)? {
        return Some(Counter::Exempt);
    }
    keep_uid(room, who.euid);
    keep_terminal_and_script::<Probed>(room, &who, bprm)?;
    // They cannot be read before they are the new image's.
    keep_any(room, dimension::ARGV0);
    keep_any(room, dimension::ARGV1);
    if room.get(Number::Matching) == 0 {
        return Some(Counter::Untouched);
    }
    keep_executable::<Probed>(room, &who, pointer::<Probed>(bprm, guard_off!(bprm_file))?);
    if room.get(Number::Matching) == 0 {
        return Some(Counter::Untouched);
    }
    keep_parent::<Probed>(room, parent);
    if !fires(room, PROGRAM) {
        return Some(Counter::Untouched);
    }
    act(room, now);
    // The caller goes on, and is what the would-be process would have been started by.
    keep_ancestor::<Probed>(room, who.leader);
    if let Some((to, users)) = record_of_check() {
        let record = assemble::<Probed>(room, to, &who, bprm, hook::CHECK, now);
        if let Some(record) = &record {
            of_caller(record);
        }
        send::<CHECK_MASK>(PROGRAM, record.as_ref());
        release(users);
    } else {
        count(PROGRAM, Counter::LostRingFull);
    }
    Some(Counter::Decided)
}

/// Without a room nothing can be compared: what is in the scope of a policy that denies is refused, as somebody may have made
/// that many checks on purpose. Whether it was.
#[inline(always)]
fn refuse(now: u64, task: Ptr) -> bool {
    if guard_setting!(enforces) == 0 || !has_lease(now) {
        count(PROGRAM, Counter::Unreadable);
        return false;
    }
    let Ok(who) = Identity::of::<Probed>(task) else {
        count(PROGRAM, Counter::Unreadable);
        return false;
    };
    let Some(rules) = scope(&who) else {
        count(PROGRAM, Counter::Unreadable);
        return false;
    };
    let Some(policy) = may_deny(rules) else {
        count(PROGRAM, Counter::Untouched);
        return false;
    };
    count_result(policy, result::DENIED);
    let told = tell_refused(&who, policy, now);
    count(PROGRAM, if told { Counter::Told } else { Counter::LostRingFull });
    count(PROGRAM, Counter::Decided);
    true
}

/// The rules whose scope it is in.
#[inline(always)]
fn scope(who: &Identity) -> Option<Mask> {
    let flags = number::<Probed, u32>(parent::<Probed>(who.leader)?, off!(task_flags)).ok()?;
    if is_exempt(who, flags, cgroup_id::<Probed>(who.task)?) { Some(0) } else { remembered::<Probed>(who) }
}
