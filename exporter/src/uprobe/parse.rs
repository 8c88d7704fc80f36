//! What a user writes of a probe comes in; its parts go out, or what is wrong at which character.
//!
//! ```text
//! PROBE    = [ TARGET ":" ] BINARY ":" FUNCTION [ "(" [ ARG { "," ARG } ] ")" ] [ "->" RETURN ]
//! TARGET   = "host" | "pid=" NUMBER | NAME-GLOB | "[" SELECTOR "]" { "[" SELECTOR "]" }
//! BINARY   = PATH | LIBRARY | QUOTED
//! FUNCTION = SYMBOL [ "+" OFFSET ] | "+" OFFSET | "/" REGEX "/" [ LIMIT ] | "usdt:" PROVIDER ":" NAME
//! SYMBOL   = BARE | QUOTED
//! ARG      = NAME [ "@" POSITION ] ":" TYPE
//! RETURN   = [ NAME ":" ] TYPE | "_"
//! TYPE     = "i8" | ... | "u64" | "pointer" | "bool" | "string" | "bytes(" POSITION ")" | "f32" | "f64" | "*f32" | "*f64"
//! ```
//!
//! A target may be left out before a path: it is the host then. Neither `->` nor arguments: the entry. `->` alone: the return.
//! Both: one record of the whole call. [`super::print`] is the inverse.

use std::fmt;

mod capture;
mod cursor;
mod function;
mod line;
mod target;

pub use capture::{argument, returned};
pub use function::function;
pub use line::{name_of, probe};
pub use target::binary;

pub(super) use function::is_bare;
pub(super) use target::{HOST, is_bare_binary, is_bare_name};

/// Longest text of a probe, in bytes.
pub const TEXT_MAX: usize = 8192;

/// The name of a return value that was given none.
pub const RETURNED: &str = "ret";

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub text: String,
    /// In characters, from 0 to the number of them.
    pub column: usize,
    /// A sentence with the remedy.
    pub problem: String,
}

impl std::error::Error for Refusal {}

/// Three lines: the problem, the text, and a caret below the character.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = |character: char| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
        let text: String = self.text.chars().map(printable).collect();
        write!(f, "{}\n  {text}\n  {:width$}^", self.problem, "", width = self.column)
    }
}

#[cfg(test)]
mod tests;
