//! A program of Go comes in; its functions by the table that its runtime unwinds stacks with go out, which no stripping
//! removes.

use super::Machine;
use super::read::{Section, Tables, text, u32_at, u64_at};
use super::symbols::{MAX_SYMBOLS, Table};

/// Most bytes of the table.
const MAX_TABLE: u64 = 128 << 20;
/// Most bytes of relocations.
const MAX_RELOCATIONS: u64 = 64 << 20;
/// Places that are looked at as if the table began there.
const MAX_CANDIDATES: usize = 16;

/// Whether the Go toolchain has linked it: its stacks move, and a uretprobe would corrupt them.
pub fn is_go(tables: &Tables) -> bool {
    tables.sections.iter().any(|section| {
        [&b".go.buildinfo"[..], b".note.go.buildid"].contains(&&section.name[..])
            || section.name.ends_with(b".gopclntab")
    })
}

/// The functions of the table of functions (`runtime.pcHeader` and `runtime._func` of Go's `runtime/symtab.go`); `None`:
/// there is none, or of a form that is not known.
pub fn functions(tables: &Tables) -> Option<Table> {
    let own = tables.sections.iter().find(|section| section.name.ends_with(b".gopclntab"));
    // Where a system linker was at work, the table is among other data that is not written to once it is moved.
    let section = own.or_else(|| tables.section(b".data.rel.ro"))?;
    let bytes = tables.section_bytes(section, MAX_TABLE, "its table of Go functions").ok()?;
    let starts = (0..bytes.len()).step_by(8).filter(|start| own.is_none() || *start == 0);
    let starts = starts.filter(|start| is_header(&bytes[*start..])).take(MAX_CANDIDATES);
    starts.filter_map(|start| table_at(tables, section, &bytes, start)).find(|table| !table.is_empty())
}

fn table_at(tables: &Tables, section: &Section, bytes: &[u8], start: usize) -> Option<Table> {
    let (bytes, address) = (bytes.get(start..)?, section.address.checked_add(start as u64)?);
    let layout = Layout::of(tables, bytes, address)?;
    let names = bytes.get(layout.names.clone())?.to_vec();
    let functions = (0..layout.count).filter_map(|index| {
        let (address, name) = (layout.entry(bytes, index)?, layout.name(bytes, index)?);
        let size = layout.entry(bytes, index + 1)?.checked_sub(address)?;
        Some((name, address, size))
    });
    Table::of(tables, names, functions).ok()
}

const GO_1_2: u32 = 0xffff_fffb;
const GO_1_16: u32 = 0xffff_fffa;
const GO_1_18: u32 = 0xffff_fff0;
const GO_1_20: u32 = 0xffff_fff1;

/// Magic number, two zeros, the least size of an instruction, and 8 bytes of a pointer.
fn is_header(bytes: &[u8]) -> bool {
    let magic = u32_at(bytes, 0).is_some_and(|magic| [GO_1_2, GO_1_16, GO_1_18, GO_1_20].contains(&magic));
    magic && matches!(bytes.get(4..8), Some([0, 0, 1 | 4, 8]))
}

/// Where things are in the table.
struct Layout {
    count: usize,
    /// Address that entries count from.
    text: u64,
    names: std::ops::Range<usize>,
    /// Pairs of an entry and the offset, from `data`, of what describes it; one more entry ends the last function.
    pairs: usize,
    data: usize,
    /// Bytes of a number in these pairs.
    width: usize,
}

impl Layout {
    fn of(tables: &Tables, bytes: &[u8], address: u64) -> Option<Self> {
        let number = |index: usize| usize::try_from(u64_at(bytes, 8 + 8 * index)?).ok();
        let count = number(0).filter(|count| *count as u64 <= MAX_SYMBOLS)?;
        match u32_at(bytes, 0)? {
            GO_1_2 => Some(Self { count, text: 0, names: 0..bytes.len(), pairs: 16, data: 0, width: 8 }),
            GO_1_16 => {
                let (names, pairs) = (number(2)?..number(3)?, number(6)?);
                Some(Self { count, text: 0, names, pairs, data: pairs, width: 8 })
            }
            GO_1_18 | GO_1_20 => {
                let (names, pairs) = (number(3)?..number(4)?, number(7)?);
                let text = match number(2)? as u64 {
                    0 => relocated(tables, address.checked_add(24)?).unwrap_or(0),
                    text => text,
                };
                Self { count, text, names, pairs, data: pairs, width: 4 }.anchored(tables, bytes)
            }
            _ => None,
        }
    }

    /// Where the table does not say where code begins, that is where the section of code does, if the program's entry
    /// proves it.
    fn anchored(self, tables: &Tables, bytes: &[u8]) -> Option<Self> {
        if self.text != 0 {
            return Some(self);
        }
        let guess = Self { text: tables.section(b".text")?.address, ..self };
        let entry = match tables.machine {
            Machine::X86_64 => b"_rt0_amd64_linux",
            Machine::Aarch64 => b"_rt0_arm64_linux",
        };
        let names = bytes.get(guess.names.clone())?;
        let is_entry =
            |index: &usize| guess.name(bytes, *index).is_some_and(|name| text(names, name as usize) == entry);
        let index = (0..guess.count).find(is_entry)?;
        (guess.entry(bytes, index)? == tables.entry).then_some(guess)
    }

    fn number(&self, bytes: &[u8], at: usize) -> Option<u64> {
        if self.width == 8 { u64_at(bytes, at) } else { u32_at(bytes, at).map(u64::from) }
    }

    /// The address of a function.
    fn entry(&self, bytes: &[u8], index: usize) -> Option<u64> {
        let at = self.pairs.checked_add(index.checked_mul(2 * self.width)?)?;
        self.text.checked_add(self.number(bytes, at)?)
    }

    /// The offset of a function's name.
    fn name(&self, bytes: &[u8], index: usize) -> Option<u32> {
        let at = self.pairs.checked_add((2 * index + 1).checked_mul(self.width)?)?;
        let described = self.data.checked_add(usize::try_from(self.number(bytes, at)?).ok()?)?;
        u32_at(bytes, described.checked_add(self.width)?)
    }
}

/// What the loader would write to an address, before the program is moved (`Elf64_Rela` of the gABI).
fn relocated(tables: &Tables, address: u64) -> Option<u64> {
    let section = tables.section(b".rela.dyn")?;
    let bytes = tables.section_bytes(section, MAX_RELOCATIONS, "its relocations").ok()?;
    let entry = bytes.chunks_exact(24).find(|entry| u64_at(entry, 0) == Some(address))?;
    u64_at(entry, 16)
}
