//! The ring, and the counters of everything that did and did not go into it.

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use core::ptr::addr_of;

use namespan_ebpf::wire::{COUNTER_SLOTS, Counter, Program};

use crate::kernel::setting;

/// User space sets the size.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// Bytes that wait in the ring (`BPF_RB_AVAIL_DATA`).
const AVAIL_DATA: u64 = 0;

/// Counts one event and how it ended.
#[inline(always)]
pub fn counted(program: Program, outcome: Result<(), Counter>) -> u32 {
    count(program, Counter::Triggered);
    count(program, outcome.err().unwrap_or(Counter::Delivered));
    0
}

#[inline(always)]
pub fn count(program: Program, counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(program.slot(counter)) {
        // SAFETY: this CPU's own slot, which only this program writes, and it does not interrupt itself.
        unsafe { *slot += 1 };
    }
}

/// Writes one record of `len` bytes. `MASK + 1` is at most the size of the buffer behind `record`. `is_urgent`: it is to be read
/// at once.
#[inline(always)]
pub fn output<const MASK: u32>(record: *mut u8, len: u32, is_urgent: bool) -> Result<(), Counter> {
    let ring = addr_of!(RING).cast_mut().cast();
    let threshold = setting!(wakeup_bytes);
    // SAFETY: a map of ours.
    let waiting = unsafe { bpf_ringbuf_query(ring, AVAIL_DATA) };
    // Only the event that crosses the threshold wakes the reader: a wake-up costs more than the whole record. Two CPUs
    // may both step over it, so the reader has a timer too.
    let crosses = waiting < threshold && waiting + u64::from(len) >= threshold;
    let flags = if crosses || is_urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    // SAFETY: the verifier checks `record` against the masked length.
    let status = unsafe { bpf_ringbuf_output(ring, record.cast(), u64::from(len & MASK), u64::from(flags)) };
    if status == 0 { Ok(()) } else { Err(Counter::LostRingFull) }
}
