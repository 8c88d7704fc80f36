//! What is to be done about an exec, and whether it may be.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_send_signal;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use core::ptr::{read_volatile, write_volatile};
use namespan_ebpf::guard_wire::{Budget, BudgetKey, Mask, POLICIES_MAX, Program, action, result};

use crate::identity::Identity;
use crate::room::{Number, Room};
use crate::tables::{add, count_result, guard_setting, has_lease, needs_lease, policy};

const SIGKILL: u32 = 9;

#[map]
static GUARD_BUDGETS: LruHashMap<BudgetKey, Budget> = LruHashMap::with_max_entries(16_384, 0);

/// A field of one of the policies.
macro_rules! of_policy {
    ($policy:expr, $field:ident) => {{
        let policy = $policy;
        // SAFETY: one of the settings' policies.
        unsafe { read_volatile(&raw const (*policy).$field) }
    }};
}

/// Whether policies that are this program's fire: which, and which one decides.
#[inline(always)]
pub fn fires(room: &Room, program: Program) -> bool {
    room.set(Number::Fired, 0);
    room.set(Number::Rank, 0);
    room.set(Number::Policy, 0);
    let count = guard_setting!(policy_count);
    let mut index = 0;
    while index < POLICIES_MAX {
        if index as u32 >= count {
            break;
        }
        let policy = policy(index);
        let act = of_policy!(policy, action);
        let is_ours = (act == action::DENY) == matches!(program, Program::Check);
        if is_ours
            && room.get(Number::Matching) & of_policy!(policy, matches) != 0
            && room.get(Number::Excepting) & of_policy!(policy, exceptions) == 0
        {
            room.set(Number::Fired, room.get(Number::Fired) | 1 << index);
            if u64::from(act) + 1 > room.get(Number::Rank) {
                room.set(Number::Rank, u64::from(act) + 1);
                room.set(Number::Policy, index as u64);
            }
        }
        index += 1;
    }
    room.get(Number::Fired) != 0
}

/// The first policy that denies and has one of the rules.
#[inline(always)]
pub fn may_deny(rules: Mask) -> Option<u32> {
    let count = guard_setting!(policy_count);
    let mut index = 0;
    while index < POLICIES_MAX {
        if index as u32 >= count {
            break;
        }
        let policy = policy(index);
        if of_policy!(policy, action) == action::DENY && rules & of_policy!(policy, matches) != 0 {
            return Some(index as u32);
        }
        index += 1;
    }
    None
}

/// Does what the policies that fired ask for, if it may be done, and counts it: a denial is for the caller to do.
#[inline(always)]
pub fn act(room: &Room, now: u64) {
    let index = room.get(Number::Policy) as u32 & (POLICIES_MAX as u32 - 1);
    let intended = intended(room);
    room.set(Number::Error, 0);
    let result = if intended == action::OBSERVE || guard_setting!(enforces) == 0 {
        result::OBSERVED
    } else if !has_lease(now) {
        result::LEASE_EXPIRED
    } else if intended == action::DENY {
        result::DENIED
    } else if !is_armed(policy(index as usize), index, now, room.get(Number::Container)) {
        result::DISARMED
    } else {
        let error = kill();
        room.set(Number::Error, error.into());
        if error == 0 { result::KILLED } else { result::FAILED }
    };
    room.set(Number::Result, result.into());
    count_result(index, room.get(Number::Result) as u8);
}

/// The action that decides.
#[inline(always)]
pub fn intended(room: &Room) -> u8 {
    (room.get(Number::Rank) as u8).wrapping_sub(1)
}

/// 0, or the errno.
#[inline(always)]
pub fn kill() -> u32 {
    // SAFETY: the current process, which has not returned from its exec.
    let sent = unsafe { bpf_send_signal(SIGKILL) };
    if sent == 0 { 0 } else { (sent as i32).wrapping_neg() as u32 }
}

/// Counts a kill against the policy's budget for the container; whether there was one left. Of two at the same moment that
/// would use up the last one both may be refused.
#[inline(always)]
fn is_armed(policy: *const namespan_ebpf::guard_wire::Policy, index: u32, now: u64, container: u64) -> bool {
    let budget = of_policy!(policy, budget);
    if budget == 0 {
        return true;
    }
    let key = BudgetKey { cgroup_id: container, policy: index.into() };
    let fresh = Budget { since_boot_ns: now, kills: 0, disarmed: 0 };
    if GUARD_BUDGETS.get_ptr(&key).is_none() {
        // Somebody else may have been quicker.
        let _there = GUARD_BUDGETS.insert(&key, &fresh, u64::from(BPF_NOEXIST));
    }
    let Some(used) = GUARD_BUDGETS.get_ptr_mut(&key) else { return false };
    let window = of_policy!(policy, budget_window_ns);
    // SAFETY: a value of the map.
    unsafe {
        if read_volatile(&raw const (*used).disarmed) != 0 {
            return false;
        }
        if now.saturating_sub(read_volatile(&raw const (*used).since_boot_ns)) > window {
            write_volatile(&raw mut (*used).since_boot_ns, now);
            write_volatile(&raw mut (*used).kills, 0);
        }
        // With what stands behind it, as one number: there is no room to overflow before it is disarmed.
        add((&raw mut (*used).kills).cast(), 1);
        if read_volatile(&raw const (*used).kills) > budget {
            write_volatile(&raw mut (*used).disarmed, 1);
            return false;
        }
    }
    true
}

/// What must never be touched, whatever a policy says: the host's first process, what the kernel starts, ourselves.
#[inline(always)]
pub fn is_exempt(who: &Identity, parent_flags: u32, cgroup: u64) -> bool {
    /// In include/linux/sched.h.
    const PF_KTHREAD: u32 = 0x0020_0000;
    let own: u64 = guard_setting!(self_cgroup);
    (who.vpid == 1 && who.pid_ns == guard_setting!(host_pid_ns))
        || parent_flags & PF_KTHREAD != 0
        || (is_ourselves(who) && needs_lease())
        || (own != 0 && cgroup == own)
}

#[inline(always)]
pub fn is_ourselves(who: &Identity) -> bool {
    who.vpid == guard_setting!(self_vpid) && who.pid_ns == guard_setting!(self_pid_ns)
}
