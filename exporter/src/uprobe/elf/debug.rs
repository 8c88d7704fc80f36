//! What a stripped program has elsewhere comes in; its functions go out.

use std::io::Read as _;

use lzma_rust2::XzReader;
use object::elf::SHT_SYMTAB;

use super::ElfError;
use super::read::{Source, Tables};
use super::symbols::Table;
use super::unwind::function_starts;
use crate::uprobe::root::{OpenError, Root};

/// Most bytes of a compressed and of an uncompressed `.gnu_debugdata`.
const MAX_COMPRESSED: u64 = 16 << 20;
const MAX_DEBUGDATA: u64 = 64 << 20;
/// Most memory for uncompressing, in KiB.
const MAX_MEMORY: u32 = 64 << 10;

/// Whose word a file of symbols is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The host's: taken as it is.
    Host,
    /// A container's, which may share the program with others that a wrong place would crash: only where the program's own
    /// table of unwinding has a function too.
    Container,
}

/// The functions of `.gnu_debugdata`, a compressed ELF file (GDB calls it `MiniDebugInfo`); `None`: there is no such section.
pub fn embedded(program: &Tables) -> Result<Option<Table>, ElfError> {
    const WHAT: &str = "its .gnu_debugdata";
    let Some(section) = program.section(b".gnu_debugdata") else { return Ok(None) };
    let compressed = program.section_bytes(section, MAX_COMPRESSED, WHAT)?;
    let mut bytes = Vec::new();
    let mut reader = XzReader::new_mem_limit(&*compressed, false, MAX_MEMORY).take(MAX_DEBUGDATA + 1);
    reader.read_to_end(&mut bytes).map_err(|source| ElfError::Read { what: WHAT, source })?;
    let size = bytes.len() as u64;
    if size > MAX_DEBUGDATA {
        return Err(ElfError::TooLarge { what: WHAT, size, limit: MAX_DEBUGDATA });
    }
    symbols(&Tables::read(Box::new(bytes))?, program)
}

/// Path of the file that has the symbols of a program of this build id.
pub fn path(build_id: &[u8]) -> Option<String> {
    let (first, rest) = build_id.split_first().filter(|(_, rest)| !rest.is_empty())?;
    Some(format!("/usr/lib/debug/.build-id/{first:02x}/{}.debug", super::hex(rest)))
}

/// The functions of that file in a root; `None`: there is no such file, or it is of another program.
pub fn separate(program: &Tables, root: &Root, trust: Trust) -> Result<Option<Table>, ElfError> {
    let Some(path) = program.build_id.as_deref().and_then(path) else { return Ok(None) };
    let file = match root.open(&path) {
        Ok(opened) => opened.file,
        Err(OpenError::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(ElfError::DebugFile { source }),
    };
    from_source(program, Box::new(file), trust)
}

/// The functions of a file that is already open; `None` where it is of another program.
pub fn from_source(program: &Tables, source: Box<dyn Source>, trust: Trust) -> Result<Option<Table>, ElfError> {
    let separate = Tables::read(source)?;
    if separate.build_id != program.build_id || separate.machine != program.machine {
        return Ok(None);
    }
    let Some(mut table) = symbols(&separate, program)? else { return Ok(None) };
    if trust == Trust::Container {
        let Some(starts) = function_starts(program) else { return Ok(None) };
        table.retain(|offset| starts.binary_search(&offset).is_ok());
    }
    Ok(Some(table))
}

fn symbols(from: &Tables, program: &Tables) -> Result<Option<Table>, ElfError> {
    let section = from.sections.iter().find(|section| section.kind == SHT_SYMTAB);
    section.map(|section| Table::read(from, section, program)).transpose()
}
