//! A program or shared library comes in; what of it can be probed, and at which offsets of the file, goes out.
//!
//! The files are those of containers, and may be anything: whatever is read has a limit, and nothing panics.

mod code;
mod debug;
mod demangle;
mod go;
mod operand;
mod read;
mod symbols;
#[cfg(test)]
mod tests;
mod unwind;
mod usdt;

use std::fmt::Write as _;
use std::fs::File;
use std::io;

use object::elf::{SHT_DYNSYM, SHT_SYMTAB};

pub use debug::Trust;
pub use operand::{Location, Operand, Register};
pub use symbols::Binding;
pub use usdt::{Marker, Usdt};

use super::root::{OpenError, Root};
use super::spec::{Function, Kind};
use crate::model::text::Line;
use code::MAX_FUNCTION;
use demangle::{Demangled, shown};
use read::{Source, Tables};
use symbols::{Symbol, Table, one_of_each};

/// Most functions of one name, such as overloads.
const MAX_OF_NAME: usize = 64;
/// Names that an error offers.
const MAX_OFFERED: usize = 3;
/// Names that are looked through for those.
const MAX_LOOKED_THROUGH: usize = 200_000;

/// Functions that never return to their caller, or more than once, or that find their caller by the stack: replacing the
/// return address, as a uretprobe does, would break the program. Of the C library and of compilers.
const NEVER_RETURNING: [&str; 16] = [
    "_setjmp",
    "setjmp",
    "__setjmp",
    "sigsetjmp",
    "__sigsetjmp",
    "vfork",
    "__vfork",
    "getcontext",
    "__getcontext",
    "setcontext",
    "swapcontext",
    "__start_context",
    "__restore_rt",
    "__morestack",
    "_start",
    "_dl_start_user",
];
const NEVER_RETURNING_PREFIXES: [&str; 2] = ["_dl_runtime_", "_dl_tlsdesc_"];
/// Functions of Go's runtime that change stacks.
const GO_SWITCHES: [&str; 9] = [
    "runtime.gogo",
    "runtime.mcall",
    "runtime.systemstack",
    "runtime.morestack",
    "runtime.morestack_noctxt",
    "runtime.goexit",
    "runtime.rt0_go",
    "runtime.asmcgocall",
    "runtime.cgocallback",
];

/// Instruction set of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// This host's; `None`: Namespan does not know it.
    #[must_use]
    pub const fn of_host() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }
}

/// A program or shared library, as far as probes are concerned.
pub struct Image {
    tables: Tables,
    symbols: Vec<Table>,
    markers: Vec<Marker>,
    is_go: bool,
    is_stripped: bool,
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the programmer calls it; `provider:name` of a USDT probe; in hexadecimal where there is only an offset.
    pub function: String,
    /// In the file.
    pub offset: u64,
    pub kind: Kind,
    pub usdt: Option<Usdt>,
    /// Of a Go function: offsets, in the file, of its `ret` instructions, which take the place of a uretprobe. A call may
    /// return on another thread and, if its stack has grown, at another stack pointer; and it enters again where growing the
    /// stack interrupted it. What stays is the goroutine: `r14` of x86-64, `x28` of arm64.
    pub returns: Vec<u64>,
}

/// A function that can be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Demangled.
    pub name: String,
    /// As the table has it.
    pub symbol: String,
    /// In the file.
    pub offset: u64,
    /// Bytes; 0: not known.
    pub size: u64,
    pub binding: Binding,
}

#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("can't read {what}")]
    Read { what: &'static str, source: io::Error },
    #[error("not an ELF file; for a script give the path of its interpreter")]
    NotElf,
    #[error("{what}; only 64-bit programs and libraries of x86-64 and arm64 can be probed")]
    NotOurs { what: &'static str },
    #[error(
        "a program of another architecture than this host's, which runs in an emulator if at all: probe the emulator"
    )]
    Foreign,
    #[error("{what} are damaged or reach beyond the end of the file")]
    Malformed { what: &'static str },
    #[error("{what} has {size} bytes, at most {limit} are read")]
    TooLarge { what: &'static str, size: u64, limit: u64 },
    #[error("it has more than {limit} {what}, and no linker makes so many")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("the file with its debug symbols can't be used")]
    DebugFile { source: OpenError },
    #[error("no function `{symbol}`{}{}", offer(similar), stripped(*is_stripped, debug_file.as_deref()))]
    NoSymbol { symbol: String, similar: Vec<String>, is_stripped: bool, debug_file: Option<String> },
    #[error("no function matches `{pattern}`{}", stripped(*is_stripped, debug_file.as_deref()))]
    NoMatch { pattern: String, is_stripped: bool, debug_file: Option<String> },
    #[error(
        "{found} functions are called `{name}`, at most {limit} are taken; name one more exactly, or narrow the pattern or raise its limit"
    )]
    TooMany { name: String, found: usize, limit: usize },
    #[error(
        "`{symbol}` is an indirect function: its code is chosen when the program starts; probe what it chooses, such as with a pattern{}",
        offer(similar)
    )]
    Indirect { symbol: String, similar: Vec<String> },
    #[error("offset {offset:#x} is outside of {what}")]
    Outside { offset: u64, what: String },
    #[error(
        "offset {offset:#x} of `{function}` is no beginning of an instruction; probing there would crash the program"
    )]
    NoInstruction { function: String, offset: u64 },
    #[error("the return of `{function}` can't be probed: {reason}; probe its entry")]
    NoReturn { function: String, reason: &'static str },
    #[error("no USDT probe `{provider}:{name}`{}", offer(similar))]
    NoMarker { provider: String, name: String, similar: Vec<String> },
}

impl ElfError {
    /// Whether the same file may be read later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::DebugFile { .. })
    }
}

fn offer(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; similar: {}", names.join(", ")) }
}

fn stripped(is_stripped: bool, debug_file: Option<&str>) -> String {
    match (is_stripped, debug_file) {
        (false, _) => String::new(),
        (true, None) => "; the program is stripped: give an offset, or a program with symbols".to_owned(),
        (true, Some(path)) => {
            format!("; the program is stripped: give an offset, or install its debug symbols, which would be {path}")
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _written = write!(text, "{byte:02x}");
        text
    })
}

fn printable(name: &str) -> String {
    let mut line = Line::default();
    line.push(name.as_bytes());
    line.as_str().to_owned()
}

impl Image {
    /// A program that this host can run.
    pub fn open(file: File) -> Result<Self, ElfError> {
        let image = Self::read(Box::new(file))?;
        if Some(image.machine()) == Machine::of_host() { Ok(image) } else { Err(ElfError::Foreign) }
    }

    /// A program of any architecture, from memory.
    pub fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        Self::read(Box::new(bytes.to_vec()))
    }

    fn read(source: Box<dyn Source>) -> Result<Self, ElfError> {
        let tables = Tables::read(source)?;
        let table_of = |kind: u32| {
            let section = tables.sections.iter().find(|section| section.kind == kind && section.size > 0);
            section.map(|section| Table::read(&tables, section, &tables)).transpose()
        };
        let (is_go, markers) = (go::is_go(&tables), usdt::markers(&tables)?);
        let mut symbols: Vec<_> = table_of(SHT_SYMTAB)?.into_iter().filter(|table| !table.is_empty()).collect();
        let mut is_stripped = symbols.is_empty();
        if is_stripped {
            symbols.extend(table_of(SHT_DYNSYM)?);
            let more = [debug::embedded(&tables)?, is_go.then(|| go::functions(&tables)).flatten()];
            let more = more.into_iter().flatten().filter(|table| !table.is_empty());
            symbols.extend(more.inspect(|_| is_stripped = false));
        }
        Ok(Self { tables, symbols, markers, is_go, is_stripped })
    }

    /// Reads the symbols that a stripped program has in a separate file of this root, found by build id. Whether there is
    /// such a file, and it was needed.
    pub fn add_debug_file(&mut self, root: &Root, trust: Trust) -> Result<bool, ElfError> {
        if !self.is_stripped {
            return Ok(false);
        }
        let Some(table) = debug::separate(&self.tables, root, trust)? else { return Ok(false) };
        self.is_stripped = table.is_empty();
        self.symbols.push(table);
        Ok(!self.is_stripped)
    }

    /// Whether only those functions are known that the program shows to others.
    #[must_use]
    pub fn is_stripped(&self) -> bool {
        self.is_stripped
    }

    /// Whether the Go toolchain has made it.
    #[must_use]
    pub fn is_go(&self) -> bool {
        self.is_go
    }

    #[must_use]
    pub fn machine(&self) -> Machine {
        self.tables.machine
    }

    /// As the linker wrote it.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        self.tables.build_id.as_deref()
    }

    /// In hexadecimal, as tools write it.
    #[must_use]
    pub fn build_id_hex(&self) -> Option<String> {
        self.build_id().map(hex)
    }

    /// Where in a root a file with more symbols of it would be.
    #[must_use]
    pub fn debug_file(&self) -> Option<String> {
        debug::path(self.build_id()?)
    }

    /// All functions that a probe can name, in no order; a function of several names comes with each.
    pub fn functions(&self) -> impl Iterator<Item = Listing> {
        self.symbols().filter(|symbol| !symbol.is_indirect).map(|symbol| {
            let text = symbol.text();
            Listing {
                name: shown(&text),
                symbol: text.into_owned(),
                offset: symbol.offset,
                size: symbol.size,
                binding: symbol.binding,
            }
        })
    }

    /// All USDT probes; one that was inlined comes several times.
    #[must_use]
    pub fn markers(&self) -> &[Marker] {
        &self.markers
    }

    /// Where the probes of a function go: at least one place. An indirect or unreturning function is refused by name, and
    /// left out of a pattern.
    pub fn resolve(&self, function: &Function, kind: Kind) -> Result<Vec<Place>, ElfError> {
        match function {
            Function::Symbol(name) => self.called(name)?.iter().map(|symbol| self.place(symbol, kind)).collect(),
            Function::Pattern { regex, limit } => {
                self.matching(regex, *limit, kind)?.iter().map(|symbol| self.place(symbol, kind)).collect()
            }
            Function::Offset { symbol: Some(name), offset } => match *self.called(name)? {
                [symbol] => Ok(vec![self.within(&symbol, *offset, kind)?]),
                ref several => Err(ElfError::TooMany { name: name.clone(), found: several.len(), limit: 1 }),
            },
            Function::Offset { symbol: None, offset } => Ok(vec![self.at(*offset, kind)?]),
            Function::Usdt { provider, name } => self.marked(provider, name, kind),
        }
    }

    fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.symbols.iter().flat_map(Table::symbols)
    }

    /// Functions of this name: as the table has it, else demangled.
    fn called(&self, name: &str) -> Result<Vec<Symbol<'_>>, ElfError> {
        let mut found: Vec<_> = self.symbols().filter(|symbol| unversioned(symbol.name) == name.as_bytes()).collect();
        if found.is_empty() {
            let is_called = |symbol: &Symbol<'_>| Demangled::of(&symbol.text()).is_some_and(|known| known.is(name));
            found = self.symbols().filter(is_called).collect();
        }
        if found.is_empty() {
            let (similar, debug_file) = (self.similar(name), self.debug_file());
            let is_stripped = self.is_stripped;
            return Err(ElfError::NoSymbol { symbol: name.to_owned(), similar, is_stripped, debug_file });
        }
        found.retain(|symbol| !symbol.is_indirect);
        if found.is_empty() {
            return Err(ElfError::Indirect { symbol: name.to_owned(), similar: self.similar(name) });
        }
        let found = one_of_each(found.into_iter());
        if found.len() > MAX_OF_NAME {
            return Err(ElfError::TooMany { name: name.to_owned(), found: found.len(), limit: MAX_OF_NAME });
        }
        Ok(found)
    }

    fn matching(&self, pattern: &regex::Regex, limit: u32, kind: Kind) -> Result<Vec<Symbol<'_>>, ElfError> {
        let is_wanted = |symbol: &Symbol<'_>| {
            let text = symbol.text();
            !symbol.is_indirect
                && !is_part(symbol.name)
                && (pattern.is_match(&text) || Demangled::of(&text).is_some_and(|name| pattern.is_match(&name.shown)))
                && (kind == Kind::Entry || self.unreturning(symbol).is_none())
        };
        let found = one_of_each(self.symbols().filter(is_wanted));
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        match found.len() {
            0 => Err(ElfError::NoMatch {
                pattern: pattern.as_str().to_owned(),
                is_stripped: self.is_stripped,
                debug_file: self.debug_file(),
            }),
            count if count > limit => Err(ElfError::TooMany { name: pattern.as_str().to_owned(), found: count, limit }),
            _ => Ok(found),
        }
    }

    /// Names that have the wanted one in them.
    fn similar(&self, wanted: &str) -> Vec<String> {
        let wanted = wanted.to_lowercase();
        let names = self.symbols().take(MAX_LOOKED_THROUGH).filter(|symbol| !symbol.is_indirect);
        let mut names: Vec<_> = names
            .map(|symbol| shown(&symbol.text()))
            .filter(|name| !wanted.is_empty() && name.to_lowercase().contains(&wanted))
            .collect();
        names.sort_unstable_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
        names.dedup();
        names.iter().take(MAX_OFFERED).map(|name| printable(name)).collect()
    }

    /// Why its return can't be probed, if so.
    fn unreturning(&self, symbol: &Symbol<'_>) -> Option<&'static str> {
        let name = unversioned(symbol.name);
        let is = |known: &&str| known.as_bytes() == name;
        if self.tables.file_offset(self.tables.entry, true).is_some_and(|(entry, _)| entry == symbol.offset) {
            return Some("the kernel starts the program there, and there is no caller to return to");
        }
        if is_part(name) {
            return Some("it is a part of a function that is jumped to, not called");
        }
        if NEVER_RETURNING.iter().any(is)
            || NEVER_RETURNING_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
        {
            return Some("it does not return as others do, and the program would crash");
        }
        let is_switch = self.is_go
            && GO_SWITCHES
                .iter()
                .any(|known| name == known.as_bytes() || name.strip_suffix(b".abi0") == Some(known.as_bytes()));
        is_switch.then_some("it changes the stack")
    }

    fn place(&self, symbol: &Symbol<'_>, kind: Kind) -> Result<Place, ElfError> {
        let function = shown(&symbol.text());
        let mut returns = Vec::new();
        if kind != Kind::Entry {
            let refused = |reason| ElfError::NoReturn { function: printable(&function), reason };
            if let Some(reason) = self.unreturning(symbol) {
                return Err(refused(reason));
            }
            if self.is_go {
                // Go moves stacks, and finds no way through a return address that a uretprobe has replaced.
                if symbol.size == 0 {
                    return Err(refused("how long it is is not known"));
                }
                let within = code::returns(self.machine(), &self.code(symbol)?).map_err(refused)?;
                returns = within.into_iter().map(|within| symbol.offset + within).collect();
            }
        }
        Ok(Place { function, offset: symbol.offset, kind, usdt: None, returns })
    }

    /// At an offset from its beginning.
    fn within(&self, symbol: &Symbol<'_>, offset: u64, kind: Kind) -> Result<Place, ElfError> {
        if offset == 0 {
            return self.place(symbol, kind);
        }
        let function = shown(&symbol.text());
        if offset >= symbol.size {
            return Err(ElfError::Outside { offset, what: format!("`{}`", printable(&function)) });
        }
        if kind != Kind::Entry {
            let reason = "an offset within a function is no call of it";
            return Err(ElfError::NoReturn { function: printable(&function), reason });
        }
        if code::is_boundary(self.machine(), &self.code(symbol)?, offset) != Some(true) {
            return Err(ElfError::NoInstruction { function: printable(&function), offset });
        }
        Ok(Place { function, offset: symbol.offset + offset, kind, usdt: None, returns: Vec::new() })
    }

    /// At an offset of the file.
    fn at(&self, offset: u64, kind: Kind) -> Result<Place, ElfError> {
        if self.tables.code_address(offset).is_none() {
            return Err(ElfError::Outside { offset, what: "the program's code".to_owned() });
        }
        let has = |symbol: &Symbol<'_>| {
            offset.checked_sub(symbol.offset).is_some_and(|within| within == 0 || within < symbol.size)
        };
        let around = one_of_each(self.symbols().filter(has));
        if let Some(symbol) = around.last() {
            return self.within(symbol, offset - symbol.offset, kind);
        }
        let function = format!("{offset:#x}");
        if kind != Kind::Entry {
            let reason = "that a function begins at this offset is not known";
            return Err(ElfError::NoReturn { function, reason });
        }
        if self.machine() == Machine::Aarch64 && !offset.is_multiple_of(4) {
            return Err(ElfError::NoInstruction { function, offset });
        }
        Ok(Place { function, offset, kind, usdt: None, returns: Vec::new() })
    }

    fn marked(&self, provider: &str, name: &str, kind: Kind) -> Result<Vec<Place>, ElfError> {
        let full = format!("{provider}:{name}");
        if kind != Kind::Entry {
            let reason = "a USDT probe is a point in a function";
            return Err(ElfError::NoReturn { function: full, reason });
        }
        let found = self.markers.iter().filter(|marker| marker.provider == provider && marker.name == name);
        let places: Vec<_> = found
            .map(|marker| Place {
                function: full.clone(),
                offset: marker.offset,
                kind,
                usdt: Some(marker.usdt.clone()),
                returns: Vec::new(),
            })
            .collect();
        if places.is_empty() {
            let mut similar: Vec<_> = self
                .markers
                .iter()
                .filter(|marker| marker.name.contains(name) || marker.provider == provider)
                .map(|marker| printable(&format!("{}:{}", marker.provider, marker.name)))
                .collect();
            similar.sort_unstable();
            similar.dedup();
            similar.truncate(MAX_OFFERED);
            return Err(ElfError::NoMarker { provider: provider.to_owned(), name: name.to_owned(), similar });
        }
        Ok(places)
    }

    /// The instructions of a function.
    fn code(&self, symbol: &Symbol<'_>) -> Result<Vec<u8>, ElfError> {
        self.tables.bytes(symbol.offset, symbol.size, MAX_FUNCTION, "the code of the function")
    }
}

/// Linkers write `name@VERSION` for symbols that have versions.
fn unversioned(name: &[u8]) -> &[u8] {
    match name.iter().position(|byte| *byte == b'@') {
        None | Some(0) => name,
        Some(end) => &name[..end],
    }
}

/// `f.cold` is what the compiler has moved out of `f`: it is jumped to.
fn is_part(name: &[u8]) -> bool {
    name.windows(5).enumerate().any(|(at, part)| part == b".cold" && matches!(name.get(at + 5), None | Some(b'.')))
}
