//! The symbol tables of an ELF file come in; its functions go out, each with its offset in the file of the program.

use std::borrow::Cow;
use std::collections::BTreeMap;

use object::LittleEndian as LE;
use object::elf::{SHN_UNDEF, STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, Sym64};
use serde::Serialize;

use super::ElfError;
use super::read::{MAX_TEXT, Section, Tables, pods, text};

/// Most symbols of one table.
pub const MAX_SYMBOLS: u64 = 2 << 20;
/// Most bytes of all names of one table; also if several symbols have the same.
pub const MAX_NAMES: u64 = 64 << 20;
const NAMES: &str = "the names of its symbols";
const ENTRY: u64 = size_of::<Sym64<LE>>() as u64;
/// Entries read at once.
const CHUNK: u64 = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    Global,
    Weak,
    Local,
}

/// Names beside what they name.
#[derive(Default)]
pub struct Table {
    names: Vec<u8>,
    entries: Vec<Entry>,
    /// Bytes of the entries' names, which is what looking through them costs.
    named: u64,
}

struct Entry {
    /// Of its name in `names`.
    name: u32,
    binding: Binding,
    is_indirect: bool,
    offset: u64,
    size: u64,
}

/// A function as a table has it.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    pub name: &'a [u8],
    pub binding: Binding,
    /// Its address is chosen when the program starts (`STT_GNU_IFUNC`): this is the code that chooses.
    pub is_indirect: bool,
    /// In the file.
    pub offset: u64,
    /// Bytes; 0: not known.
    pub size: u64,
}

impl Symbol<'_> {
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.name)
    }
}

impl Table {
    /// The functions that a section of kind `SHT_SYMTAB` or `SHT_DYNSYM` of `from` defines, at their places in `program`:
    /// itself, or that of which `from` has the symbols.
    pub fn read(from: &Tables, section: &Section, program: &Tables) -> Result<Self, ElfError> {
        const WHAT: &str = "its symbols";
        let count = section.size / ENTRY;
        if count > MAX_SYMBOLS {
            return Err(ElfError::TooLarge { what: WHAT, size: section.size, limit: MAX_SYMBOLS * ENTRY });
        }
        let names = from.sections.get(section.link).ok_or(ElfError::Malformed { what: WHAT })?;
        let names = from.section_bytes(names, MAX_NAMES, NAMES)?;
        let mut table = Self { names, ..Self::default() };
        let mut done = 0;
        while done < count {
            let chunk = CHUNK.min(count - done);
            let at = section.offset.checked_add(done * ENTRY).ok_or(ElfError::Malformed { what: WHAT })?;
            let bytes = from.bytes(at, chunk * ENTRY, CHUNK * ENTRY, WHAT)?;
            let symbols: &[Sym64<LE>] = pods(&bytes, bytes.len() / size_of::<Sym64<LE>>(), WHAT)?;
            for symbol in symbols {
                let kind = symbol.st_info & 0xf;
                if ![STT_FUNC, STT_GNU_IFUNC].contains(&kind) || symbol.st_shndx.get(LE) == SHN_UNDEF {
                    continue;
                }
                let binding = match symbol.st_info >> 4 {
                    STB_GLOBAL => Binding::Global,
                    STB_WEAK => Binding::Weak,
                    _ => Binding::Local,
                };
                let (name, address, size) = (symbol.st_name.get(LE), symbol.st_value.get(LE), symbol.st_size.get(LE));
                table.push(program, name, address, size, binding, kind == STT_GNU_IFUNC)?;
            }
            done += chunk;
        }
        Ok(table)
    }

    /// Functions by other means: offset of the name in `names`, address and size.
    pub fn of(
        program: &Tables,
        names: Vec<u8>,
        functions: impl Iterator<Item = (u32, u64, u64)>,
    ) -> Result<Self, ElfError> {
        let mut table = Self { names, ..Self::default() };
        for (name, address, size) in functions {
            table.push(program, name, address, size, Binding::Local, false)?;
        }
        Ok(table)
    }

    /// What lies outside of the program's code is left out.
    fn push(
        &mut self,
        program: &Tables,
        name: u32,
        address: u64,
        size: u64,
        binding: Binding,
        is_indirect: bool,
    ) -> Result<(), ElfError> {
        let length = text(&self.names, name as usize).len();
        self.named += if length == 0 { MAX_TEXT } else { length } as u64;
        if self.named > MAX_NAMES {
            return Err(ElfError::TooLarge { what: NAMES, size: self.named, limit: MAX_NAMES });
        }
        if address == 0 || length == 0 {
            return Ok(());
        }
        if let Some((offset, rest)) = program.file_offset(address, true) {
            self.entries.push(Entry { name, binding, is_indirect, offset, size: size.min(rest) });
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn retain(&mut self, mut wanted: impl FnMut(u64) -> bool) {
        self.entries.retain(|entry| wanted(entry.offset));
    }

    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.entries.iter().map(|entry| Symbol {
            name: text(&self.names, entry.name as usize),
            binding: entry.binding,
            is_indirect: entry.is_indirect,
            offset: entry.offset,
            size: entry.size,
        })
    }
}

/// One for each offset: of several names the one that others see, then the shortest, then the first.
pub fn one_of_each<'a>(symbols: impl Iterator<Item = Symbol<'a>>) -> Vec<Symbol<'a>> {
    let mut best: BTreeMap<u64, Symbol<'a>> = BTreeMap::new();
    let rank = |symbol: &Symbol<'a>| (symbol.binding, symbol.name.len(), symbol.name);
    for symbol in symbols {
        let known = best.entry(symbol.offset).or_insert(symbol);
        if rank(&symbol) < rank(known) {
            *known = Symbol { size: symbol.size.max(known.size), ..symbol };
        }
    }
    best.into_values().collect()
}
