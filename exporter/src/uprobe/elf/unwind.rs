//! The table of unwinding comes in; where functions begin by what the compiler itself has left goes out.

use super::read::{Tables, u32_at};

/// Most bytes of the table.
const MAX_TABLE: u64 = 64 << 20;
/// `DW_EH_PE_sdata4 | DW_EH_PE_datarel`, pairs of which the table of every linker consists.
const DATA_RELATIVE_I32: u8 = 0x3b;
/// `DW_EH_PE_udata4`.
const U32: u8 = 0x03;

/// Offsets in the file, in order, of all functions that `.eh_frame_hdr` lists (Linux Standard Base, Core, 10.6.2). `None`: there is
/// no such table, or of another form.
pub fn function_starts(tables: &Tables) -> Option<Vec<u64>> {
    let (offset, address, size) = tables.unwind?;
    let bytes = tables.bytes(offset, size, MAX_TABLE, "its table of unwinding").ok()?;
    let [1, _, U32, DATA_RELATIVE_I32] = *bytes.first_chunk()? else { return None };
    let count = u32_at(&bytes, 8)? as usize;
    let entries = bytes.get(12..12usize.checked_add(count.checked_mul(8)?)?)?;
    let start = |entry: &[u8]| {
        let relative = i64::from(u32_at(entry, 0)?.cast_signed());
        Some(tables.file_offset(address.checked_add_signed(relative)?, true)?.0)
    };
    let mut starts: Vec<_> = entries.chunks_exact(8).filter_map(start).collect();
    starts.sort_unstable();
    Some(starts)
}
