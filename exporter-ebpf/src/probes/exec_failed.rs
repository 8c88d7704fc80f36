//! `execve` or `execveat` has returned an error.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_user_str,
};
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::TracePointContext;
use namespan_ebpf::wire::{self, Counter, Program, flag, kind, section};

use crate::emit::{count, counted, output};
use crate::filter;
use crate::identity::Identity;
use crate::kernel::{Access, Probed, Ptr, off};
use crate::lineage::nearest_exec;
use crate::record::{Record, SMALL_SIZE};

/// Path arguments of the calls that have not returned yet, by thread.
#[map]
static EXEC_CALLS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);
#[map]
static FAILED_SCRATCH: PerCpuArray<[u8; SMALL_SIZE]> = PerCpuArray::with_max_entries(1, 0);

/// `syscalls:sys_enter_execve(filename, argv, envp)`.
#[tracepoint]
pub fn execve_enter(ctx: TracePointContext) -> u32 {
    remember(&ctx, 0)
}

/// `syscalls:sys_enter_execveat(fd, filename, argv, envp, flags)`, Linux 3.19.
#[tracepoint]
pub fn execveat_enter(ctx: TracePointContext) -> u32 {
    remember(&ctx, 1)
}

/// `syscalls:sys_exit_execve`: its return value is 0 or a negative errno.
#[tracepoint]
pub fn execve_exit(ctx: TracePointContext) -> u32 {
    returned(&ctx)
}

/// `syscalls:sys_exit_execveat`.
#[tracepoint]
pub fn execveat_exit(ctx: TracePointContext) -> u32 {
    returned(&ctx)
}

#[inline(always)]
fn remember(ctx: &TracePointContext, argument: u32) -> u32 {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    if let Some(path) = Probed::load::<u64>(ctx.as_ptr().cast(), off!(sys_enter_args) + argument * 8) {
        // A call that is not remembered is still told of when it fails, without its path.
        let _full = EXEC_CALLS.insert(&thread, &path, u64::from(BPF_ANY));
    }
    0
}

#[inline(always)]
fn returned(ctx: &TracePointContext) -> u32 {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    // Null for a call that was not remembered: reading it fails, and the record says so. No `Option`, whose unset half
    // the compiler may copy and the verifier may not see copied.
    // SAFETY: the value is copied at once.
    let path = unsafe { EXEC_CALLS.get(&thread) }.map_or(0, |path| *path);
    let _absent = EXEC_CALLS.remove(&thread);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    match Probed::load::<i64>(ctx.as_ptr().cast(), off!(sys_exit_ret)) {
        Some(result) if result < 0 && filter::on_shift(now).is_some() => {
            counted(Program::ExecFailed, try_failed(now, path, -result as u32))
        }
        _ => 0,
    }
}

#[inline(always)]
fn try_failed(now: u64, path: u64, errno: u32) -> Result<(), Counter> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() as Ptr };
    let who = Identity::of::<Probed>(task)?;
    filter::ourselves(&who)?;
    filter::uid(&who)?;
    filter::comm(who.leader)?;
    let scratch = FAILED_SCRATCH.get_ptr_mut(0).ok_or(Counter::LostNoScratch)?.cast::<u8>();
    let record = Record::new::<wire::ExecFailed>(scratch);
    filter::cgroups::<Probed>(&record, task)?;
    let asked = record.tail::<0x3fff>();
    // SAFETY: the verifier checks the buffer, the helper checks the address, which the workload chose.
    let copied = unsafe { bpf_probe_read_user_str(asked.cast(), 4096, path as *const _) };
    let bytes = if copied > 0 { (copied as u32 - 1) & 0xfff } else { 0 };
    if copied <= 0 {
        record.flag(flag::PATH_FAULT);
    }
    filter::path(asked, bytes)?;
    record.section(section::PATH, bytes);
    record.identify::<Probed>(kind::EXEC_FAILED, now, &who)?;
    record.end_at(section::SCRIPT);
    let (image_tgid, image_start_boot_ns) = nearest_exec::<Probed>(who.leader)?;
    // SAFETY: the fixed part lies within the scratch buffer.
    unsafe { *record.detail::<wire::ExecFailed>() = wire::ExecFailed { image_start_boot_ns, image_tgid, errno } };
    if record.is_incomplete() {
        count(Program::ExecFailed, Counter::Incomplete);
    }
    output::<0x3fff>(scratch, record.len(), false)
}
