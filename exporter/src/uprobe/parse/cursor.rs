//! A text, read from its beginning to its end.

use super::{Refusal, TEXT_MAX};

pub(super) struct Cursor<'a> {
    text: &'a str,
    /// In bytes, at a character.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TEXT_MAX {
            let problem = format!("{} bytes are too many for a probe: at most {TEXT_MAX}", text.len());
            return Err(Refusal { text: text.chars().take(64).collect(), column: 0, problem });
        }
        Ok(Self { text, at: 0 })
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        Some(character)
    }

    pub fn eat(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }

    /// Passes so many bytes, of whole characters.
    pub fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// To a position that was passed.
    pub fn back_to(&mut self, at: usize) {
        self.at = at;
    }

    pub fn spaces(&mut self) {
        self.take_while(char::is_whitespace);
    }

    pub fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|character| !wanted(character)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    /// Decimal, or as hexadecimal with `0x`.
    pub fn number(&mut self, what: &str) -> Result<u64, Refusal> {
        let start = self.at;
        let digits = self.take_while(|character| character.is_ascii_alphanumeric());
        let number = match digits.strip_prefix("0x") {
            // A sign is none of the characters taken.
            Some(digits) => u64::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        number.or_else(|_| self.refuse(start, format!("{what} is a number such as 16 or 0x10")))
    }

    /// A text in double quotes, of which the first is the next character. `\` takes the next character as it is.
    pub fn quoted(&mut self) -> Result<String, Refusal> {
        let start = self.at;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.extend(self.next()),
                Some(character) => text.push(character),
                None => return self.refuse(start, "this quote is never closed"),
            }
        }
    }

    pub fn end(&mut self, otherwise: &str) -> Result<(), Refusal> {
        self.spaces();
        if self.is_at_end() { Ok(()) } else { self.refuse(self.at, otherwise) }
    }

    /// At a position that was passed.
    pub fn refuse<T>(&self, at: usize, problem: impl Into<String>) -> Result<T, Refusal> {
        let column = self.text.get(..at).unwrap_or_default().chars().count();
        Err(Refusal { text: self.text.to_owned(), column, problem: problem.into() })
    }
}
