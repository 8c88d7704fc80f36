//! A text of any kind (a shell script, JSON, a URL's query, `KEY=value` words) in, the same without secret values out.

use std::borrow::Cow;

use super::program::Program;
use super::{REDACTED, keys, password_start};

/// Most bytes of a user's name in front of its password.
const USER_MAX: usize = 256;

/// Replaces the value of each secret name; borrowed if there is none.
pub(super) fn text(text: &[u8], mut program: Program) -> Cow<'_, [u8]> {
    let mut copy = Copy { text, done: 0, out: Vec::new() };
    let mut quote = None;
    let mut at = 0;
    while let Some(byte) = text.get(at).copied() {
        if keys::is_name(byte) {
            let end = at + text[at..].iter().take_while(|byte| keys::is_name(**byte)).count();
            let value = Scan { text, quote }.value_of(at, end, program);
            program.note(&text[at..end]);
            at = match value {
                Some((from, to)) => copy.replace(from, to.max(end)),
                None => end,
            };
            continue;
        }
        match byte {
            b'\\' if quote != Some(b'\'') => at += 1,
            b'"' | b'\'' | b'`' if quote == Some(byte) => quote = None,
            b'"' | b'\'' | b'`' if quote.is_none() => quote = Some(byte),
            _ => {}
        }
        at += 1;
    }
    copy.finish()
}

/// The name that ends where the text does.
pub(super) fn name_before(text: &[u8]) -> &[u8] {
    let len = text.iter().rev().take_while(|byte| keys::is_name(**byte)).count();
    &text[text.len() - len..]
}

/// Whether a colon between this name and this rest makes the rest a secret.
pub(super) fn colon_assigns(name: &[u8], rest: &[u8]) -> bool {
    keys::is_secret(name) && (rest.first().is_none_or(u8::is_ascii_whitespace) || keys::is_unmistakable(name))
}

struct Scan<'a> {
    text: &'a [u8],
    /// The quote within which the name stands.
    quote: Option<u8>,
}

impl Scan<'_> {
    /// Where the value of the name at `start..end` stands, if it is secret.
    fn value_of(&self, start: usize, end: usize, program: Program) -> Option<(usize, usize)> {
        let name = &self.text[start..end];
        if let Some(secret) = program.attached_secret(name) {
            return Some((start + secret, self.word_end(start + secret, false)));
        }
        let user = if program.takes_user(name) {
            Some(self.after_space(end))
        } else {
            program.attached_user(name).map(|user| start + user)
        };
        if let Some(password) = user.and_then(|user| self.password(user, name[1] == b'U')) {
            return Some(password);
        }
        if program.takes_secret(name) && self.text.get(end).is_some_and(u8::is_ascii_whitespace) {
            let from = self.after_space(end);
            return Some((from, self.word_end(from, false)));
        }
        if !keys::is_secret_assigned(name) {
            return None;
        }
        let rest = &self.text[end..];
        match rest.first()? {
            b'=' => Some((end + 1, self.word_end(end + 1, false))),
            b':' if rest.get(1) == Some(&b'=') => Some((end + 2, self.word_end(end + 2, false))),
            b':' => colon_assigns(name, &rest[1..]).then(|| self.line_value(end + 1)),
            b'"' | b'\'' | b'`' | b'\\' | b']' => self.quoted_name_value(end),
            byte if byte.is_ascii_whitespace() => {
                let next = self.after_space(end);
                match self.text.get(next) {
                    Some(b'=') if keys::is_secret(name) => {
                        let from = self.after_space(next + 1);
                        Some((from, self.word_end(from, false)))
                    }
                    Some(b':') if keys::is_secret(name) => Some(self.line_value(next + 1)),
                    Some(_) if keys::takes_secret(name) => Some((next, self.word_end(next, false))),
                    Some(_) | None => None,
                }
            }
            _ => None,
        }
    }

    /// `"name": value`, `name\": value`, `form[name]=value`
    fn quoted_name_value(&self, end: usize) -> Option<(usize, usize)> {
        let closing =
            self.text[end..].iter().take(4).take_while(|byte| matches!(byte, b'"' | b'\'' | b'`' | b'\\' | b']'));
        let assign = self.after_space(end + closing.count());
        if !matches!(self.text.get(assign), Some(b':' | b'=')) {
            return None;
        }
        let arrow = usize::from(self.text.get(assign + 1) == Some(&b'>'));
        let from = self.after_space(assign + 1 + arrow);
        // The quote around the name has ended before the value starts.
        let quote = self.quote.filter(|quote| self.text[end] != *quote);
        let scan = Scan { text: self.text, quote };
        Some((from, scan.word_end(from, true)))
    }

    /// `name: value`, to the end of the line unless the value is quoted.
    fn line_value(&self, start: usize) -> (usize, usize) {
        let from = start + self.text[start..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        match self.text.get(from) {
            Some(b'"' | b'\'' | b'`' | b'\\') => (from, self.word_end(from, false)),
            Some(_) | None => (from, self.line_end(from)),
        }
    }

    fn password(&self, from: usize, percent: bool) -> Option<(usize, usize)> {
        // A name longer than this is none: without a bound, every `-u` of a text might look at all the rest of it.
        let start = self.text.get(from..)?.iter().take(USER_MAX);
        if !start.take_while(|byte| !byte.is_ascii_whitespace()).any(|byte| matches!(byte, b':' | b'%')) {
            return None;
        }
        let word = self.text.get(from..self.word_end(from, false))?;
        password_start(word, percent).map(|password| (from + password, from + word.len()))
    }

    fn after_space(&self, from: usize) -> usize {
        let rest = self.text.get(from..).unwrap_or_default();
        let mut space = 0;
        while let Some(byte) = rest.get(space) {
            if *byte == b'\\' && rest.get(space + 1) == Some(&b'\n') {
                space += 2;
            } else if byte.is_ascii_whitespace() {
                space += 1;
            } else {
                break;
            }
        }
        from + space
    }

    /// End of a word as a shell reads it: quoted parts belong to it. Of JSON: end of the value.
    fn word_end(&self, from: usize, json: bool) -> usize {
        let mut at = from;
        while let Some(byte) = self.text.get(at).copied() {
            match byte {
                b'\\' => at += 1,
                b'"' | b'\'' | b'`' => {
                    if self.closes(at) {
                        return at;
                    }
                    at = self.closing(at);
                }
                b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')' => return at,
                b',' | b'}' | b']' if json => return at,
                byte if byte.is_ascii_whitespace() => return at,
                _ => {}
            }
            at += 1;
        }
        self.text.len()
    }

    fn line_end(&self, from: usize) -> usize {
        let end = (from..self.text.len()).find(|at| self.text[*at] == b'\n' || self.closes(*at));
        end.unwrap_or(self.text.len())
    }

    /// Index of the quote that closes the one at `open`; of the last byte if none does.
    fn closing(&self, open: usize) -> usize {
        let quote = self.text[open];
        let mut at = open + 1;
        while let Some(byte) = self.text.get(at).copied() {
            if byte == quote {
                return at;
            }
            at += if byte == b'\\' && quote != b'\'' { 2 } else { 1 };
        }
        self.text.len()
    }

    /// Whether the byte ends the quote around the name. A quote in the midst of a word does not, in case this is not the
    /// quote it seems to be: `don't PASSWORD='x'`.
    fn closes(&self, at: usize) -> bool {
        let next = self.text.get(at + 1);
        let ends = next.is_none_or(|next| next.is_ascii_whitespace() || b";&|<>(),:]}".contains(next));
        ends && self.quote == Some(self.text[at])
    }
}

struct Copy<'a> {
    text: &'a [u8],
    done: usize,
    out: Vec<u8>,
}

impl<'a> Copy<'a> {
    /// Replaces a value, but not the quotes around it; returns where the text goes on.
    fn replace(&mut self, from: usize, to: usize) -> usize {
        let value = self.text.get(from..to).unwrap_or_default();
        let quoted = usize::from(matches!(value, [first @ (b'"' | b'\'' | b'`'), .., last] if first == last));
        if value.len() > 2 * quoted {
            self.out.extend_from_slice(&self.text[self.done..from + quoted]);
            self.out.extend_from_slice(REDACTED);
            self.done = to - quoted;
        }
        to
    }

    fn finish(mut self) -> Cow<'a, [u8]> {
        if self.done == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.extend_from_slice(&self.text[self.done..]);
        Cow::Owned(self.out)
    }
}
