//! One uprobe, as it is asked for: which function, of whom, and what is told of each hit.

use std::ops::Deref;

use crate::enrich::selection::Selector;

/// Most probes of one configuration.
pub const PROBES_MAX: usize = 256;
/// Most arguments captured by one probe.
pub const ARGS_MAX: usize = 8;
/// Longest name of a probe.
pub const NAME_MAX: usize = 64;
/// Highest position of an argument: of those in registers, as the ABI of `x86_64` has six.
pub const POSITION_MAX: u8 = 5;
/// Highest position of an operand of a USDT marker: its macros take twelve.
pub const OPERAND_MAX: u8 = 11;
/// Highest process id: `PID_MAX_LIMIT` of the kernel's `include/linux/threads.h`.
pub const PID_MAX: u32 = 4_194_304;
/// Most bytes kept of a string.
pub const STRING_MAX: u32 = 4096;
/// Most functions of one pattern.
pub const MATCHES_MAX: u32 = 1000;

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uprobe {
    /// 1 to [`NAME_MAX`] letters, digits, `.`, `_` and `-`, the first a letter or digit; unique among all probes.
    pub name: String,
    pub target: Target,
    pub binary: Binary,
    pub function: Function,
    pub kind: Kind,
    /// At most [`ARGS_MAX`], no name twice. Those of [`Kind::Both`] are read at entry.
    pub args: Vec<Capture>,
    /// Never at [`Kind::Entry`].
    pub returns: Option<Capture>,
    /// Bytes kept of every string or bytes value, from 1 to [`STRING_MAX`].
    pub max_string: u32,
    /// One of so many hits is told of; 1: all.
    pub sample: u32,
    /// `None`: no limit.
    pub rate: Option<Rate>,
    /// OTLP's severity number, from 1 to 24.
    pub severity: u8,
    /// A span for each call; of [`Kind::Both`] alone.
    pub span: bool,
    /// What matches in captured strings becomes `***`.
    pub redact: Vec<Expression>,
}

impl Uprobe {
    pub const MAX_STRING: u32 = 256;
    /// INFO.
    pub const SEVERITY: u8 = 9;

    /// Everything else at its default.
    #[must_use]
    pub fn new(name: String, target: Target, binary: Binary, function: Function) -> Self {
        Self {
            name,
            target,
            binary,
            function,
            kind: Kind::Entry,
            args: Vec::new(),
            returns: None,
            max_string: Self::MAX_STRING,
            sample: 1,
            rate: Some(Rate::default()),
            severity: Self::SEVERITY,
            span: false,
            redact: Vec::new(),
        }
    }
}

impl Uprobe {
    /// Keys of the labels that its containers are selected by.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        let selectors = match &self.target {
            Target::Containers(selectors) => selectors.as_slice(),
            Target::Host | Target::Pid(_) => &[],
        };
        selectors.iter().flat_map(Selector::label_keys)
    }
}

/// Whose calls are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every container for which one of these holds, now or later. Never empty.
    Containers(Vec<Selector>),
    /// Processes outside containers.
    Host,
    /// One process, as the host numbers it (tgid), from 1 to [`PID_MAX`].
    Pid(u32),
}

/// Where the function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binary {
    /// An absolute path in the target's root.
    Path(String),
    /// A library that processes of the target have mapped: its name up to the first `.so`, or the whole file name.
    Library(String),
}

/// What is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// As it stands in the symbol table, or demangled.
    Symbol(String),
    /// Every function in whose name the expression is found, up to the limit, from 1 to [`MATCHES_MAX`].
    Pattern { regex: Expression, limit: u32 },
    /// Bytes from the beginning of the symbol; or of the file, if there is none.
    Offset { symbol: Option<String>, offset: u64 },
    /// A marker that the program's author has left.
    Usdt { provider: String, name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Entry,
    Return,
    /// One record at return, with what was captured at entry, and the time between.
    Both,
}

/// A value to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// 1 to 32 letters, digits and `_`, the first no digit.
    pub name: String,
    /// Of the argument, from 0 to [`POSITION_MAX`], or [`OPERAND_MAX`] for USDT; 0 for the return value.
    pub position: u8,
    pub value: Type,
}

/// How a register's value is understood. Strings, bytes and floats behind a pointer are read from the process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Pointer,
    Bool,
    /// Up to the first NUL.
    String,
    /// As many as the argument at this position says.
    Bytes {
        length: u8,
    },
    /// Of USDT operands in memory only: a BPF program cannot read registers of floating point.
    F32,
    /// As [`Type::F32`].
    F64,
    /// The register has a pointer to it.
    F32At,
    /// The register has a pointer to it.
    F64At,
}

/// A token bucket for each probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: 1000, burst: 1000 }
    }
}

/// A regular expression of bounded size; equal to one of the same text.
#[derive(Clone, Debug)]
pub struct Expression(regex::Regex);

/// Longest text of an expression, in bytes.
const EXPRESSION_MAX: usize = 1024;
/// Most memory of a compiled expression, and of the cache it is matched with, in bytes each.
const COMPILED_MAX: usize = 1 << 20;

impl Expression {
    /// The error completes the sentence "this is not …".
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > EXPRESSION_MAX {
            return Err(format!("a regular expression of 1 to {EXPRESSION_MAX} bytes"));
        }
        let built = regex::RegexBuilder::new(text).size_limit(COMPILED_MAX).dfa_size_limit(COMPILED_MAX).build();
        match built {
            Ok(regex) => Ok(Self(regex)),
            Err(regex::Error::CompiledTooBig(_)) => {
                Err(format!("a regular expression of less than {COMPILED_MAX} bytes of memory: repeat less in it"))
            }
            // Its message draws the place over several lines, of which the last is the reason.
            Err(error) => {
                let message = error.to_string();
                let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Err(format!("a regular expression: {reason}"))
            }
        }
    }
}

impl Deref for Expression {
    type Target = regex::Regex;

    fn deref(&self) -> &regex::Regex {
        &self.0
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Expression {}
