//! The last thread of a process has exited.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use namespan_ebpf::wire::{self, Counter, Program, kind, section};

use crate::emit::{count, counted, output};
use crate::filter::{self, TrackedKey};
use crate::kernel::{Ptr, Typed, copy, off, pointer};
use crate::record::{Identity, Record, SMALL_SIZE, number};

/// `PF_KTHREAD` in include/linux/sched.h.
const KTHREAD: u32 = 0x0020_0000;
/// `SIGNAL_GROUP_EXIT` in include/linux/sched/signal.h.
const GROUP_EXIT: u32 = 0x0000_0004;
/// In include/uapi/asm-generic/errno-base.h, as helpers return it.
const EEXIST: i32 = -17;
/// Ancestors looked at for one that exec'd.
const ANCESTORS: u32 = 12;

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
    match last_of_process(task) {
        Ok(Some(last)) => counted(Program::Exit, try_exit(&last)),
        Ok(None) => 0,
        Err(lost) => counted(Program::Exit, Err(lost)),
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
fn try_exit(last: &Last) -> Result<(), Counter> {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let Last { who, key, signal } = last;
    // First, so that a process is forgotten whatever the other filters say.
    filter::untrack(key)?;
    filter::ourselves(who)?;
    let scratch = EXIT_SCRATCH.get_ptr_mut(0).ok_or(Counter::LostNoScratch)?.cast::<u8>();
    let record = Record::new::<wire::Exit>(scratch);
    filter::cgroups::<Typed>(&record, who.task)?;
    record.section(section::PATH, 0);
    record.identify::<Typed>(kind::EXIT, now, who)?;
    record.section(section::SCRIPT, 0);
    record.section(section::ARGS_HEAD, 0);
    record.section(section::ARGS_TAIL, 0);

    let status = status(who.leader, *signal)?;
    let (image_tgid, image_start_boot_ns) = image(who.leader)?;
    // SAFETY: the fixed part lies within the scratch buffer.
    unsafe { *record.detail::<wire::Exit>() = wire::Exit { image_start_boot_ns, image_tgid, status } };
    if record.is_incomplete() {
        count(Program::Exit, Counter::Incomplete);
    }
    output::<0x3fff>(scratch, record.len())
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

/// The process whose image ran: the nearest one, itself included, that has exec'd since its fork.
#[inline(always)]
fn image(leader: Ptr) -> Result<(u32, u64), Counter> {
    let mut process = leader;
    let mut step = 0;
    let mut comm = [0u64; 2];
    let mut parents_comm = [0u64; 2];
    while step < ANCESTORS {
        let own = number::<Typed, u64>(process, off!(task_self_exec_id))?;
        let parents = number::<Typed, u64>(process, off!(task_parent_exec_id))?;
        let tgid = number::<Typed, u32>(process, off!(task_tgid))?;
        if own != parents {
            return Ok((tgid, number::<Typed, u64>(process, off!(task_start_boottime))?));
        }
        if tgid <= 1 {
            break;
        }
        let Some(parent) = pointer::<Typed>(process, off!(task_real_parent)) else { break };
        let Some(parent_leader) = pointer::<Typed>(parent, off!(task_group_leader)) else { break };
        // A parent that has exec'd since the fork runs another image, and so may one that only adopted the process: what a
        // fork leaves alike must still be.
        if number::<Typed, u64>(parent_leader, off!(task_self_exec_id))? != parents {
            break;
        }
        let of = off!(task_comm) as usize;
        if !copy(comm.as_mut_ptr().cast(), 16, process.wrapping_add(of))
            || !copy(parents_comm.as_mut_ptr().cast(), 16, parent_leader.wrapping_add(of))
            || comm != parents_comm
        {
            break;
        }
        process = parent_leader;
        step += 1;
    }
    Ok((0, 0))
}
