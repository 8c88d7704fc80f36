//! What user space tells the guard, and what the guard counts.

use core::arch::asm;
use core::ptr::read_volatile;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use namespan_ebpf::guard_wire::{
    COUNTER_SLOTS, Counter, GuardSettings, Mask, OVERLAP_NS, POLICIES_MAX, Policy, Program, Scope, SelfTest, TextKey,
    dimension, origin, result_slot,
};
use namespan_ebpf::offsets::guard::Offsets;
use namespan_ebpf::settings::Shift;

/// User space sets the size.
#[map]
pub static GUARD_RING: RingBuf = RingBuf::with_byte_size(4096, 0);
/// User space sets the sizes of these.
#[map]
pub static GUARD_TEXTS: LpmTrie<TextKey, Mask> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
#[map]
pub static GUARD_UIDS: HashMap<u32, Mask> = HashMap::with_max_entries(1, 0);
/// By the container's id.
#[map]
pub static GUARD_SCOPES: HashMap<[u8; 64], Scope> = HashMap::with_max_entries(1, 0);
/// By the container's own cgroup, those of v1 marked with [`namespan_ebpf::guard_wire::V1`].
#[map]
pub static GUARD_CGROUPS: HashMap<u64, Scope> = HashMap::with_max_entries(1, 0);
/// Changes with the keys of [`GUARD_CGROUPS`].
#[map]
static GUARD_EPOCH: Array<u64> = Array::with_max_entries(1, 0);
/// Until when actions are taken, by the boot clock.
#[map]
static GUARD_LEASE: Array<u64> = Array::with_max_entries(1, 0);
/// When execs are these programs' to decide: none until user space says so.
#[map]
static GUARD_SHIFT: Array<Shift> = Array::with_max_entries(1, 0);
#[map]
static GUARD_SELF_TEST: Array<SelfTest> = Array::with_max_entries(1, 0);
#[map]
static GUARD_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

#[unsafe(no_mangle)]
static GUARD_OFFSETS: Offsets = Offsets::ABSENT;
#[unsafe(no_mangle)]
static GUARD_SETTINGS: GuardSettings = NOTHING;

const NOTHING: GuardSettings = GuardSettings {
    any_text: [0; dimension::COUNT],
    prefix_text: [0; dimension::COUNT],
    any_uid: 0,
    interactive: [0; 2],
    script: [0; 2],
    origins: [0; origin::COUNT],
    host: 0,
    containers: 0,
    policies: [Policy { matches: 0, exceptions: 0, budget: 0, action: 0, reserved: [0; 3], budget_window_ns: 0 };
        POLICIES_MAX],
    policy_count: 0,
    enforces: 0,
    args_limit: 0,
    host_pid_ns: 0,
    host_mnt_ns: 0,
    self_vpid: 0,
    self_pid_ns: 0,
    asks: 0,
    self_cgroup: 0,
};

#[inline(always)]
pub fn offsets() -> *const Offsets {
    &raw const GUARD_OFFSETS
}

#[inline(always)]
pub fn settings() -> *const GuardSettings {
    &raw const GUARD_SETTINGS
}

/// Offset of a field that only the guard reads. Volatile, or the compiler would use the value written here.
macro_rules! guard_off {
    ($field:ident) => {
        // SAFETY: a field of a static that user space set before loading and nothing writes since.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::tables::offsets()).$field) }
    };
}
pub(crate) use guard_off;

/// A setting, or an element of one; as [`guard_off`].
macro_rules! guard_setting {
    ($field:ident) => {
        // SAFETY: as in `guard_off`.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::tables::settings()).$field) }
    };
    ($field:ident[$index:expr]) => {
        // SAFETY: as in `guard_off`; the verifier checks the index.
        $crate::kernel::element::<namespan_ebpf::guard_wire::Mask>(
            unsafe { &raw const (*$crate::tables::settings()).$field }.cast(),
            $index,
        )
    };
}
pub(crate) use guard_setting;

/// One of the policies. Its index is a number that the verifier knows.
#[inline(always)]
pub fn policy(index: usize) -> *const Policy {
    // SAFETY: an element of the array, as the verifier checks.
    unsafe { (&raw const (*settings()).policies).cast::<Policy>().wrapping_add(index) }
}

/// Whether an exec is these programs' to decide. Two programs that look at the clock one after the other about the moment of
/// a change may both decide: never do both let it pass.
#[inline(always)]
pub fn on_shift(program: Program, now: u64) -> bool {
    let Some(shift) = GUARD_SHIFT.get_ptr(0) else { return false };
    // SAFETY: the map's only value. User space writes it long before it matters.
    let (from, until) =
        unsafe { (read_volatile(&raw const (*shift).from_boot_ns), read_volatile(&raw const (*shift).until_boot_ns)) };
    let overlap = match program {
        Program::Exec => 0,
        Program::Check => OVERLAP_NS,
    };
    from.saturating_sub(overlap) <= now && now < until.saturating_add(overlap)
}

#[inline(always)]
fn word(map: &Array<u64>) -> u64 {
    // SAFETY: a value of the map.
    map.get_ptr(0).map_or(0, |word| unsafe { read_volatile(word) })
}

#[inline(always)]
pub fn epoch() -> u64 {
    word(&GUARD_EPOCH)
}

/// Whether user space is alive enough for actions to be taken.
#[inline(always)]
pub fn has_lease(now: u64) -> bool {
    now < word(&GUARD_LEASE)
}

/// Whether it ends with user space. Else nobody is exempt by our pid, which may be another's when we have ended.
#[inline(always)]
pub fn needs_lease() -> bool {
    word(&GUARD_LEASE) != u64::MAX
}

/// The test under way of this action.
#[inline(always)]
pub fn self_test(action: u8) -> Option<*mut SelfTest> {
    let test = GUARD_SELF_TEST.get_ptr_mut(0)?;
    // SAFETY: the map's only value.
    let (parent, tested) =
        unsafe { (read_volatile(&raw const (*test).parent_tgid), read_volatile(&raw const (*test).action)) };
    (parent != 0 && tested == u32::from(action)).then_some(test)
}

/// Counts atomically: a check may be interrupted by another one on its CPU.
#[inline(always)]
pub fn count(program: Program, counter: Counter) {
    if let Some(slot) = GUARD_COUNTERS.get_ptr_mut(program.slot(counter)) {
        add(slot, 1);
    }
}

#[inline(always)]
pub fn count_result(policy: u32, result: u8) {
    if let Some(slot) = GUARD_COUNTERS.get_ptr_mut(result_slot(policy, u32::from(result))) {
        add(slot, 1);
    }
}

/// Adds atomically; the sum is not asked for, as older arm64 kernels cannot compile that.
#[inline(always)]
pub fn add(to: *mut u64, what: u64) {
    // `core` has no atomics for this target, as it cannot compare and swap everywhere.
    // SAFETY: an aligned number in a map's value, which is only ever changed so or as a whole.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {what}", to = in(reg) to, what = in(reg) what, options(nostack)) };
}

/// What a text of a dimension is looked up by.
pub type Text = Key<TextKey>;
