//! A process has replaced its image.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use namespan_ebpf::wire::{self, Counter, Program, kind, section};

use crate::emit::{count, counted, output};
use crate::environment::trace_context;
use crate::filter;
use crate::identity::{Identity, number, put};
use crate::kernel::{Ptr, Typed, off, pointer, setting};
use crate::lineage::{nearest_exec, parent};
use crate::path::{WINDOW_SIZE, Window, executable};
use crate::record::Record;

const ARGS_MASK: u32 = 0x1ffff;
const SCRATCH_SIZE: usize = ARGS_MASK as usize + 1;

/// One record under construction per CPU; an `Array`, as per-CPU values end at 32 KiB. User space sets the entries to the
/// number of CPUs.
#[map]
static EXEC_SCRATCH: Array<[u8; SCRATCH_SIZE]> = Array::with_max_entries(1, 0);
/// A path under construction.
#[map]
static EXEC_WINDOW: PerCpuArray<[u8; WINDOW_SIZE]> = PerCpuArray::with_max_entries(1, 0);

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, Linux 3.4: runs in the process,
/// past the point of no return, before the new image's first instruction.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> u32 {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    match filter::on_shift(now) {
        Some(_) => counted(Program::Exec, try_exec(now, ctx.arg(0), ctx.arg(2))),
        None => 0,
    }
}

#[inline(always)]
fn try_exec(now: u64, task: Ptr, bprm: Ptr) -> Result<(), Counter> {
    let who = Identity::of::<Typed>(task)?;
    filter::ourselves(&who)?;
    filter::uid(&who)?;
    filter::comm(who.leader)?;
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let scratch = EXEC_SCRATCH.get_ptr_mut(cpu).ok_or(Counter::LostNoScratch)?.cast::<u8>();
    let window = Window::new(EXEC_WINDOW.get_ptr_mut(0).ok_or(Counter::LostNoScratch)?.cast());
    let record = Record::new::<wire::Exec>(scratch);
    filter::cgroups::<Typed>(&record, task)?;

    let mm = pointer::<Typed>(task, off!(task_mm)).ok_or(Counter::LostUnreadable)?;
    if let Some(file) = pointer::<Typed>(mm, off!(mm_exe_file)) {
        executable::<Typed>(&record, &window, file);
    }
    filter::path(window.at(window.start()), window.len())?;
    filter::track::<Typed>(&who)?;
    record.path(&window);

    record.identify::<Typed>(kind::EXEC, now, &who)?;
    let filename = number::<Typed, u64>(bprm, off!(bprm_filename))?;
    let interpreter = number::<Typed, u64>(bprm, off!(bprm_interp))?;
    let script = (filename != interpreter).then_some(filename as Ptr);
    record.string(section::SCRIPT, 4096, script);
    let (ancestor_tgid, ancestor_start) = match parent::<Typed>(who.leader) {
        Some(parent) => nearest_exec::<Typed>(parent)?,
        None => (0, 0),
    };
    let detail = record.detail::<wire::Exec>();
    put!(detail.ancestor_tgid = ancestor_tgid);
    put!(detail.ancestor_start_boot_ns = ancestor_start);
    put!(detail.argc = number::<Typed, u32>(bprm, off!(bprm_argc))?);
    // The path has been copied out of it.
    trace_context(&record, &window, mm)?;
    put!(detail.args_len = record.arguments(mm, setting!(args_limit))?);
    if record.is_incomplete() {
        count(Program::Exec, Counter::Incomplete);
    }
    // Whose child it is can only be asked of `/proc` then, and the parent may not live for long. Read back, or the verifier would
    // follow all from there on for the number 0 and once more for others.
    // SAFETY: within the record.
    let is_orphan = unsafe { read_volatile(&raw const (*detail).ancestor_tgid) } == 0;
    output::<ARGS_MASK>(scratch, record.len(), is_orphan)
}
