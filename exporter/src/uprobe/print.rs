//! A probe comes in; the line that it is written as goes out, which [`super::parse::probe`] reads. What has no place in the
//! line is left out: the name, limits, severity, span and redaction.

use std::fmt::{self, Write as _};

use super::parse::{HOST, is_bare, is_bare_binary, is_bare_name};
use super::spec::{Binary, Capture, Function, Kind, Target, Type, Uprobe};
use crate::enrich::selection::Condition;

impl fmt::Display for Uprobe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.target, self.binary, self.function)?;
        if self.kind == Kind::Both || !self.args.is_empty() {
            f.write_char('(')?;
            let mut next = 0;
            for (index, Capture { name, position, value }) in self.args.iter().enumerate() {
                f.write_str(if index > 0 { ", " } else { "" })?;
                f.write_str(name)?;
                if *position != next {
                    write!(f, "@{position}")?;
                }
                next = position.saturating_add(1);
                write!(f, ":{value}")?;
            }
            f.write_char(')')?;
        }
        match (self.kind, &self.returns) {
            (Kind::Entry, _) => Ok(()),
            (Kind::Return | Kind::Both, None) => f.write_str(" -> _"),
            (Kind::Return | Kind::Both, Some(Capture { name, value, .. })) => write!(f, " -> {name}:{value}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str(HOST),
            Self::Pid(pid) => write!(f, "pid={pid}"),
            Self::Containers(selectors) => {
                if let [selector] = selectors.as_slice()
                    && let [Condition::Name(name)] = selector.0.as_slice()
                    && is_bare_name(&name.to_string())
                {
                    return write!(f, "{name}");
                }
                selectors.iter().try_for_each(|selector| write!(f, "[{selector}]"))
            }
        }
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Path(text) | Self::Library(text)) = self;
        if is_bare_binary(text) { f.write_str(text) } else { quoted(f, text) }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => symbol(f, name),
            Self::Pattern { regex, limit } => {
                f.write_char('/')?;
                let mut escaped = false;
                for character in regex.as_str().chars() {
                    f.write_str(if character == '/' && !escaped { "\\" } else { "" })?;
                    f.write_char(character)?;
                    escaped = character == '\\' && !escaped;
                }
                write!(f, "/{limit}")
            }
            Self::Offset { symbol: name, offset } => {
                name.iter().try_for_each(|name| symbol(f, name))?;
                write!(f, "+{offset:#x}")
            }
            Self::Usdt { provider, name } => write!(f, "usdt:{provider}:{name}"),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Pointer => "pointer",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Bytes { length } => return write!(f, "bytes({length})"),
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F32At => "*f32",
            Self::F64At => "*f64",
        })
    }
}

fn symbol(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    if is_bare(name) { f.write_str(name) } else { quoted(f, name) }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        f.write_str(if matches!(character, '"' | '\\') { "\\" } else { "" })?;
        f.write_char(character)?;
    }
    f.write_char('"')
}
