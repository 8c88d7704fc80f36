//! Which inode a mapping of ours is of, as the kernel's uprobes see it: overlayfs maps the file of the layer beneath.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_find_vma, bpf_get_current_task_btf};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use namespan_ebpf::uprobe_wire::{Mapped, MappedOffsets};

use crate::kernel::{Access as _, Probed, Ptr, pointer};

#[unsafe(no_mangle)]
static MAPPED_OFFSETS: MappedOffsets = MappedOffsets::ZERO;

/// The answer; zeros: there is none.
#[map]
static MAPPED: Array<Mapped> = Array::with_max_entries(1, 0);

macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a field of a static that user space set before loading and nothing writes since.
        unsafe { read_volatile(&raw const MAPPED_OFFSETS.$field) }
    };
}

/// Never attached: user space runs it in its own process (`BPF_PROG_TEST_RUN`), with an address as its only argument.
/// `bpf_find_vma`: Linux 5.17.
#[raw_tracepoint]
pub fn real_inode(ctx: RawTracePointContext) -> i32 {
    // SAFETY: user space hands over one number.
    let address = unsafe { read_volatile(ctx.as_ptr().cast::<u64>()) };
    // SAFETY: the current process, a function of the form that the helper calls, and no data for it.
    let status =
        unsafe { bpf_find_vma(bpf_get_current_task_btf(), address, found as *mut c_void, core::ptr::null_mut(), 0) };
    status as i32
}

extern "C" fn found(_task: Ptr, vma: Ptr, _data: *mut c_void) -> i64 {
    if let Some(mapped) = mapped(vma)
        && let Some(to) = MAPPED.get_ptr_mut(0)
    {
        // SAFETY: the map's only value.
        unsafe { write_volatile(to, mapped) };
    }
    0
}

#[inline(always)]
fn mapped(vma: Ptr) -> Option<Mapped> {
    let file = pointer::<Probed>(vma, offset!(vma_file))?;
    let inode = pointer::<Probed>(file, offset!(file_inode))?;
    let sb = pointer::<Probed>(inode, offset!(inode_sb))?;
    Some(Mapped {
        inode: inode as u64,
        ino: Probed::load(inode, offset!(inode_ino))?,
        dev: Probed::load(sb, offset!(sb_dev))?,
        generation: Probed::load(inode, offset!(inode_generation))?,
    })
}
