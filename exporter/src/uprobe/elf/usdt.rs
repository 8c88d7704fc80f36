//! Notes of `sys/sdt.h` come in; the markers that the program's author has left go out.

use super::ElfError;
use super::operand::{Operand, operands};
use super::read::{Notes, Tables, text, u64_at};

/// Most bytes of notes.
const MAX_NOTES: u64 = 16 << 20;
/// Most markers of one program.
const MAX_MARKERS: usize = 64 << 10;
/// Longest provider, name or list of operands, in bytes.
const MAX_TEXT: usize = 1024;
/// `_SDT_NOTE_TYPE`.
const NOTE: u32 = 3;

/// One place of a marker: inlined functions and templates have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub provider: String,
    pub name: String,
    /// Of its `nop`, in the file.
    pub offset: u64,
    pub usdt: Usdt,
}

/// What the kernel has to know of a marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usdt {
    /// By position, from 0; or why an operand can't be read.
    pub operands: Vec<Result<Operand, String>>,
    /// Where in the file the counter is that turns the marker on: `ref_ctr_offset` of `perf_event_open`.
    pub semaphore_offset: Option<u64>,
}

/// The markers of `.note.stapsdt`; those outside of the program's code are left out.
pub fn markers(tables: &Tables) -> Result<Vec<Marker>, ElfError> {
    let Some(section) = tables.section(b".note.stapsdt") else { return Ok(Vec::new()) };
    let notes = tables.section_bytes(section, MAX_NOTES, "its notes of USDT probes")?;
    // A prelinked program has moved since its notes were written, and this section with it.
    let base = tables.section(b".stapsdt.base").map(|section| section.address);
    let ours = Notes(&notes).filter(|note| note.kind == NOTE && note.name == b"stapsdt");
    Ok(ours.filter_map(|note| marker(tables, base, note.data)).take(MAX_MARKERS).collect())
}

/// Addresses of the marker, the base and the semaphore; then provider, name and operands, each ended by NUL.
fn marker(tables: &Tables, base: Option<u64>, note: &[u8]) -> Option<Marker> {
    let [address, linked_base, semaphore] = [0, 8, 16].map(|at| u64_at(note, at));
    let (address, linked_base, semaphore) = (address?, linked_base?, semaphore?);
    let moved = base.map_or(0, |base| base.wrapping_sub(linked_base));
    let (offset, _) = tables.file_offset(address.wrapping_add(moved), true)?;
    let semaphore_offset = match semaphore {
        0 => None,
        address => Some(tables.file_offset(address.wrapping_add(moved), false)?.0),
    };
    let mut at = 24;
    let mut next = || {
        let part = text(note, at);
        at += part.len() + 1;
        (part.len() <= MAX_TEXT).then(|| String::from_utf8_lossy(part).into_owned())
    };
    let (provider, name, arguments) = (next()?, next()?, next()?);
    if provider.is_empty() || name.is_empty() {
        return None;
    }
    let operands = operands(tables.machine, &arguments);
    Some(Marker { provider, name, offset, usdt: Usdt { operands, semaphore_offset } })
}
