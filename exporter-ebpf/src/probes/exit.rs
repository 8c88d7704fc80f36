//! The last thread of a process has exited.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use namespan_ebpf::wire::{self, Counter, Program, flag, kind, section};

use crate::emit::{count, counted, output};
use crate::filter::{self, Tracked, TrackedKey};
use crate::identity::{Identity, number, optional};
use crate::kernel::{Ptr, Typed, off, pointer};
use crate::lineage::image;
use crate::record::{Record, SMALL_SIZE};

/// `PF_KTHREAD` in include/linux/sched.h.
const KTHREAD: u32 = 0x0020_0000;
/// `SIGNAL_GROUP_EXIT` in include/linux/sched/signal.h.
const GROUP_EXIT: u32 = 0x0000_0004;
/// In include/uapi/asm-generic/errno-base.h, as helpers return it.
const EEXIST: i32 = -17;

#[map]
static EXIT_SCRATCH: PerCpuArray<[u8; SMALL_SIZE]> = PerCpuArray::with_max_entries(1, 0);
/// Processes of several threads whose exit was just told of: their last threads may reach the hook at the same time.
#[map]
static EXITED: LruHashMap<TrackedKey, u8> = LruHashMap::with_max_entries(1024, 0);

/// `sched_process_exit(struct task_struct *p)`, Linux 2.6.28 (a second argument since 6.17 is not used): runs in each
/// exiting thread, its memory may be gone, its namespaces and cgroups are not.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(ctx: BtfTracePointContext) -> u32 {
    let task: Ptr = ctx.arg(0);
    let last = match last_of_process(task) {
        Ok(None) => return 0,
        Ok(Some(last)) => Ok(last),
        Err(lost) => Err(lost),
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    match (filter::on_shift(now), last) {
        (Some(since), Ok(last)) => counted(Program::Exit, try_exit(now, since, &last)),
        (Some(_), Err(lost)) => counted(Program::Exit, Err(lost)),
        (None, _) => 0,
    }
}

/// The last thread of a process.
struct Last {
    who: Identity,
    key: TrackedKey,
    signal: Ptr,
}

/// `None` if other threads of the process live on; kernel threads are no processes.
#[inline(always)]
fn last_of_process(task: Ptr) -> Result<Option<Last>, Counter> {
    if number::<Typed, u32>(task, off!(task_flags))? & KTHREAD != 0 {
        return Ok(None);
    }
    let signal = pointer::<Typed>(task, off!(task_signal)).ok_or(Counter::LostUnreadable)?;
    if number::<Typed, u32>(signal, off!(signal_live))? != 0 {
        return Ok(None);
    }
    // Two last threads may both find nobody alive. The first to come here while both are there tells; the other one finds
    // that it did, also when the first is gone already. A full map loses nothing: at worst an exit is told twice.
    let who = Identity::of::<Typed>(task)?;
    let key = TrackedKey::of::<Typed>(&who)?;
    let told = if number::<Typed, u32>(signal, off!(signal_nr_threads))? > 1 {
        EXITED.insert(&key, &0, u64::from(BPF_NOEXIST)) == Err(EEXIST)
    } else {
        // SAFETY: nothing is read.
        unsafe { EXITED.get(&key) }.is_some()
    };
    Ok((!told).then_some(Last { who, key, signal }))
}

#[inline(always)]
fn try_exit(now: u64, since: u64, last: &Last) -> Result<(), Counter> {
    let Last { who, key, signal } = last;
    // First, so that a process is forgotten whatever the other filters say.
    let tracked = filter::untrack(key, since)?;
    filter::ourselves(who)?;
    let scratch = EXIT_SCRATCH.get_ptr_mut(0).ok_or(Counter::LostNoScratch)?.cast::<u8>();
    let record = Record::new::<wire::Exit>(scratch);
    filter::cgroups::<Typed>(&record, who.task)?;
    record.section(section::PATH, 0);
    record.identify::<Typed>(kind::EXIT, now, who)?;
    record.end_at(section::SCRIPT);
    if tracked == Tracked::Unknown {
        record.flag(flag::UNTRACKED);
    }
    if optional::<Typed>(*signal, off!(signal_oom_mm)).is_some() {
        record.flag(flag::OOM_VICTIM);
    }

    let status = status(who.leader, *signal)?;
    let (image_tgid, image_start_boot_ns) = image(who.leader)?;
    // SAFETY: the fixed part lies within the scratch buffer.
    unsafe { *record.detail::<wire::Exit>() = wire::Exit { image_start_boot_ns, image_tgid, status } };
    if record.is_incomplete() {
        count(Program::Exit, Counter::Incomplete);
    }
    output::<0x3fff>(scratch, record.len(), false)
}

/// The status that the parent's `wait(2)` will see (`wait_task_zombie` in kernel/exit.c).
#[inline(always)]
fn status(leader: Ptr, signal: Ptr) -> Result<u32, Counter> {
    if number::<Typed, u32>(signal, off!(signal_flags))? & GROUP_EXIT != 0 {
        number::<Typed, u32>(signal, off!(signal_group_exit_code))
    } else {
        number::<Typed, u32>(leader, off!(task_exit_code))
    }
}
