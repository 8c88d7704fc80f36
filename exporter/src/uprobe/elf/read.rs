//! A file or bytes come in; the tables of a 64-bit little-endian ELF file go out, each read when it is asked for, and
//! never more than a limit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, NT_GNU_BUILD_ID, PF_X,
    PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64, SHT_NOBITS, SHT_NOTE, SectionHeader64,
};
use object::pod::{from_bytes, slice_from_bytes};
use object::{LittleEndian as LE, Pod};

use super::{ElfError, Machine};

/// Most bytes of a file; its tables are read one by one.
const MAX_FILE: u64 = 16 << 30;
/// Most bytes of the names of sections, and of notes.
const MAX_SMALL: u64 = 4 << 20;
/// Most parts of a file that are mapped; linkers make fewer than ten.
const MAX_SEGMENTS: usize = 256;
/// Longest build id that is kept: longer than any that linkers make.
const MAX_BUILD_ID: usize = 64;

/// Where an ELF file is read from. It may change meanwhile.
pub trait Source: Send + Sync {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, at)
    }
}

impl Source for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Part of the file that is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub address: u64,
    pub offset: u64,
    /// Bytes that the file has of it.
    pub size: u64,
    pub is_code: bool,
}

#[derive(Clone, Debug)]
pub struct Section {
    pub name: Vec<u8>,
    pub kind: u32,
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    /// Index of another section that belongs to it.
    pub link: usize,
}

/// What all else is found by.
pub struct Tables {
    source: Box<dyn Source>,
    /// Bytes.
    size: u64,
    pub machine: Machine,
    /// Address of the first instruction; 0: none.
    pub entry: u64,
    pub segments: Vec<Segment>,
    /// Where the table of unwinding is: offset, address, bytes.
    pub unwind: Option<(u64, u64, u64)>,
    /// None in a file without section headers.
    pub sections: Vec<Section>,
    pub build_id: Option<Vec<u8>>,
}

impl Tables {
    pub fn read(source: Box<dyn Source>) -> Result<Self, ElfError> {
        let size = source.size().map_err(|source| ElfError::Read { what: "its size", source })?;
        if size > MAX_FILE {
            return Err(ElfError::TooLarge { what: "the file", size, limit: MAX_FILE });
        }
        if size < size_of::<FileHeader64<LE>>() as u64 {
            return Err(ElfError::NotElf);
        }
        let bytes = read(&*source, size, 0, size_of::<FileHeader64<LE>>() as u64, MAX_SMALL, "its header")?;
        let header: &FileHeader64<LE> = pod(&bytes, "its header")?;
        if header.e_ident.magic != object::elf::ELFMAG {
            return Err(ElfError::NotElf);
        }
        if header.e_ident.class != ELFCLASS64 || header.e_ident.data != ELFDATA2LSB {
            return Err(ElfError::NotOurs { what: "a program of 32 bits or of the other byte order" });
        }
        let machine = match header.e_machine.get(LE) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            _ => return Err(ElfError::NotOurs { what: "a program for neither x86-64 nor arm64" }),
        };
        if ![ET_EXEC, ET_DYN].contains(&header.e_type.get(LE)) {
            return Err(ElfError::NotOurs { what: "neither a program nor a shared library" });
        }
        let entry = header.e_entry.get(LE);
        let mut tables = Self {
            source,
            size,
            machine,
            entry,
            segments: Vec::new(),
            unwind: None,
            sections: Vec::new(),
            build_id: None,
        };
        tables.read_segments(header)?;
        tables.read_sections(header)?;
        tables.build_id = tables.find_build_id();
        Ok(tables)
    }

    fn read_segments(&mut self, header: &FileHeader64<LE>) -> Result<(), ElfError> {
        const WHAT: &str = "its program headers";
        let count = header.e_phnum.get(LE);
        if count == 0 {
            return Ok(());
        }
        if usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
            return Err(ElfError::Malformed { what: WHAT });
        }
        let bytes = u64::from(count) * size_of::<ProgramHeader64<LE>>() as u64;
        let bytes = self.bytes(header.e_phoff.get(LE), bytes, MAX_SMALL, WHAT)?;
        let headers: &[ProgramHeader64<LE>] = pods(&bytes, usize::from(count), WHAT)?;
        for header in headers {
            let (address, offset, size) = (header.p_vaddr.get(LE), header.p_offset.get(LE), header.p_filesz.get(LE));
            match header.p_type.get(LE) {
                PT_LOAD if self.segments.len() == MAX_SEGMENTS => {
                    let limit = MAX_SEGMENTS as u64;
                    return Err(ElfError::TooMuch { what: "parts that are mapped", limit });
                }
                PT_LOAD => {
                    let is_code = header.p_flags.get(LE) & PF_X != 0;
                    self.segments.push(Segment { address, offset, size, is_code });
                }
                PT_GNU_EH_FRAME => self.unwind = Some((offset, address, size)),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_sections(&mut self, header: &FileHeader64<LE>) -> Result<(), ElfError> {
        const WHAT: &str = "its section headers";
        let count = header.e_shnum.get(LE);
        if count == 0 {
            return Ok(());
        }
        if usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader64<LE>>() {
            return Err(ElfError::Malformed { what: WHAT });
        }
        let bytes = u64::from(count) * size_of::<SectionHeader64<LE>>() as u64;
        let bytes = self.bytes(header.e_shoff.get(LE), bytes, MAX_SMALL, WHAT)?;
        let headers: &[SectionHeader64<LE>] = pods(&bytes, usize::from(count), WHAT)?;
        let names = headers.get(usize::from(header.e_shstrndx.get(LE))).ok_or(ElfError::Malformed { what: WHAT })?;
        let names =
            self.bytes(names.sh_offset.get(LE), names.sh_size.get(LE), MAX_SMALL, "the names of its sections")?;
        self.sections = headers
            .iter()
            .map(|header| Section {
                name: text(&names, header.sh_name.get(LE) as usize).to_vec(),
                kind: header.sh_type.get(LE),
                address: header.sh_addr.get(LE),
                offset: header.sh_offset.get(LE),
                size: header.sh_size.get(LE),
                link: header.sh_link.get(LE) as usize,
            })
            .collect();
        Ok(())
    }

    fn find_build_id(&self) -> Option<Vec<u8>> {
        self.sections.iter().filter(|section| section.kind == SHT_NOTE).find_map(|section| {
            let bytes = self.section_bytes(section, MAX_SMALL, "its notes").ok()?;
            let note = Notes(&bytes).find(|note| note.kind == NT_GNU_BUILD_ID && note.name == b"GNU")?;
            (!note.data.is_empty() && note.data.len() <= MAX_BUILD_ID).then(|| note.data.to_vec())
        })
    }
}

impl Tables {
    /// Bytes `at..at + size` of the file; `what` they are is told in errors.
    pub fn bytes(&self, at: u64, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, ElfError> {
        read(&*self.source, self.size, at, size, limit, what)
    }

    pub fn section(&self, name: &[u8]) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Nothing of a section that only takes up room in memory.
    pub fn section_bytes(&self, section: &Section, limit: u64, what: &'static str) -> Result<Vec<u8>, ElfError> {
        if section.kind == SHT_NOBITS {
            return Ok(Vec::new());
        }
        self.bytes(section.offset, section.size, limit, what)
    }

    /// Where in the file an address is, and how many bytes of its segment follow there.
    pub fn file_offset(&self, address: u64, is_code: bool) -> Option<(u64, u64)> {
        let mut segments = self.segments.iter().filter(|segment| segment.is_code == is_code);
        segments.find_map(|segment| {
            let within = address.checked_sub(segment.address).filter(|within| *within < segment.size)?;
            let offset = segment.offset.checked_add(within).filter(|offset| *offset < self.size)?;
            Some((offset, segment.size - within))
        })
    }

    /// Where in memory, before it is moved, an offset of the file is code.
    pub fn code_address(&self, offset: u64) -> Option<u64> {
        let mut segments = self.segments.iter().filter(|segment| segment.is_code);
        segments.find_map(|segment| {
            let within = offset.checked_sub(segment.offset).filter(|within| *within < segment.size)?;
            segment.address.checked_add(within)
        })
    }
}

fn read(
    source: &dyn Source,
    file: u64,
    at: u64,
    size: u64,
    limit: u64,
    what: &'static str,
) -> Result<Vec<u8>, ElfError> {
    if size > limit {
        return Err(ElfError::TooLarge { what, size, limit });
    }
    if at.checked_add(size).is_none_or(|end| end > file) {
        return Err(ElfError::Malformed { what });
    }
    let length = usize::try_from(size).map_err(|_| ElfError::TooLarge { what, size, limit })?;
    let mut bytes = vec![0; length];
    source.read_at(at, &mut bytes).map_err(|source| ElfError::Read { what, source })?;
    Ok(bytes)
}

fn pod<'a, T: Pod>(bytes: &'a [u8], what: &'static str) -> Result<&'a T, ElfError> {
    from_bytes(bytes).map(|(pod, _)| pod).map_err(|()| ElfError::Malformed { what })
}

/// A table of so many entries.
pub fn pods<'a, T: Pod>(bytes: &'a [u8], count: usize, what: &'static str) -> Result<&'a [T], ElfError> {
    slice_from_bytes(bytes, count).map(|(pods, _)| pods).map_err(|()| ElfError::Malformed { what })
}

/// Longest text that counts, in bytes.
pub const MAX_TEXT: usize = 4096;

/// What stands before the next NUL; empty where there is none near.
pub fn text(bytes: &[u8], at: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    let rest = &rest[..rest.len().min(MAX_TEXT + 1)];
    rest.iter().position(|byte| *byte == 0).map_or(&[], |end| &rest[..end])
}

/// Little-endian numbers.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Entries of a section of notes (`Elf64_Nhdr` of the gABI), up to the first that is torn.
pub struct Notes<'a>(pub &'a [u8]);

pub struct Note<'a> {
    /// Without its NUL.
    pub name: &'a [u8],
    pub kind: u32,
    pub data: &'a [u8],
}

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        let [name, data, kind] = [0, 4, 8].map(|at| u32_at(self.0, at));
        let (name, data, kind) = (name? as usize, data? as usize, kind?);
        let rest = self.0.get(12..)?;
        let (data_at, name) = (name.checked_next_multiple_of(4)?, text_of(rest.get(..name)?));
        let end = data_at.checked_add(data.checked_next_multiple_of(4)?)?;
        let data = rest.get(data_at..data_at.checked_add(data)?)?;
        self.0 = rest.get(end..).unwrap_or_default();
        Some(Note { name, kind, data })
    }
}

fn text_of(name: &[u8]) -> &[u8] {
    name.strip_suffix(b"\0").unwrap_or(name)
}
