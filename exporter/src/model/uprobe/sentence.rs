//! A hit in, one line for people out: `readline(prompt="$ ") = "ls -l" 1.2 ms`, bounded and escaped.

use std::fmt::Write as _;

use super::value::{Hiding, Name, Shown};
use crate::model::text::{Line, shortened};
use crate::uprobe::hit::{Hit, Kind, Value};
use crate::uprobe::place::Place;

/// Most characters of one value: what comes after it is to be seen too.
const VALUE_MAX: usize = 80;

/// Writes a hit's line.
pub(crate) fn write(line: &mut Line, hiding: &mut Hiding, hit: &Hit<'_>, place: &Place) {
    let mut sentence = Sentence::of(line, &place.function);
    hiding.each(hit, place, |shown| sentence.value(shown));
    sentence.end(hit.kind);
}

/// The line, as it grows: parentheses are there with arguments only.
pub(super) struct Sentence<'a> {
    line: &'a mut Line,
    is_open: bool,
    has_returned: bool,
}

impl<'a> Sentence<'a> {
    pub(super) fn of(line: &'a mut Line, function: &str) -> Self {
        line.push(function.as_bytes());
        Self { line, is_open: false, has_returned: false }
    }

    pub(super) fn value(&mut self, shown: &Shown<'_>) {
        match shown.name {
            Name::Arg(name) => {
                self.line.push(if self.is_open { b", " } else { b"(" });
                self.is_open = true;
                self.line.push(name.as_bytes());
                self.line.push(b"=");
            }
            Name::Returned => {
                self.close();
                self.has_returned = true;
                self.line.push(b" = ");
            }
        }
        push(self.line, shown);
    }

    pub(super) fn end(mut self, kind: Kind) {
        self.close();
        match kind {
            Kind::Entry => {}
            Kind::Return if self.has_returned => {}
            Kind::Return => self.line.push(b" returned"),
            Kind::Call { duration_ns } => {
                self.line.push(b" ");
                push_duration(self.line, duration_ns);
            }
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.line.push(b")");
        }
    }
}

fn push(line: &mut Line, shown: &Shown<'_>) {
    // A line takes any text.
    let _infallible = match shown.value {
        Value::Int(value) => write!(line, "{value}"),
        Value::Uint(value) => write!(line, "{value}"),
        Value::Bool(value) => write!(line, "{value}"),
        Value::Pointer(address) => write!(line, "{address:#x}"),
        // The short form of large and small numbers.
        Value::F64(value) => write!(line, "{value:?}"),
        Value::Null => line.write_str("null"),
        Value::Fault { .. } => line.write_str("?"),
        Value::Bytes(bytes) | Value::Str(bytes) => {
            push_quoted(line, bytes, shown.truncated);
            Ok(())
        }
    };
}

/// With the quotes in it escaped: no text looks like the end of its own.
fn push_quoted(line: &mut Line, text: &[u8], truncated: bool) {
    let kept = shortened(text, Some(VALUE_MAX));
    line.push(b"\"");
    for part in kept.split_inclusive(|byte| matches!(byte, b'"' | b'\\')) {
        match part {
            [plain @ .., special @ (b'"' | b'\\')] => {
                line.push(plain);
                line.push(&[b'\\', *special]);
            }
            plain => line.push(plain),
        }
    }
    line.push(b"\"");
    if truncated || kept.len() < text.len() {
        line.push("…".as_bytes());
    }
}

/// Three digits or four, in the unit that they make sense in.
fn push_duration(line: &mut Line, ns: u64) {
    let (unit, name) = match ns {
        0..1_000 => {
            let _infallible = write!(line, "{ns} ns");
            return;
        }
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        1_000_000_000.. => (1_000_000_000, "s"),
    };
    let _infallible = write!(line, "{}.{} {name}", ns / unit, ns % unit / (unit / 10));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &[u8], truncated: bool) -> String {
        let mut line = Line::default();
        push_quoted(&mut line, text, truncated);
        line.as_str().to_owned()
    }

    fn duration(ns: u64) -> String {
        let mut line = Line::default();
        push_duration(&mut line, ns);
        line.as_str().to_owned()
    }

    #[test]
    fn a_text_can_t_end_its_own_quotes() {
        assert_eq!(quoted(br#"a") = "\"#, false), r#""a\") = \"\\""#);
        assert_eq!(quoted(b"\x1b[2J\n\xff\xc3\xa9", false), "\"\\u{1b}[2J\\n\\xff\u{e9}\"");
        assert_eq!(quoted(b"cut", true), "\"cut\"…");
        assert_eq!(quoted(&[b'x'; 4096], false), format!("\"{}\"…", "x".repeat(VALUE_MAX)));
        assert_eq!(quoted(b"", false), "\"\"");
    }

    #[test]
    fn durations_have_a_unit_that_fits() {
        assert_eq!(duration(0), "0 ns");
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(1_999), "1.9 µs");
        assert_eq!(duration(1_250_000), "1.2 ms");
        assert_eq!(duration(61_050_000_000), "61.0 s");
        assert_eq!(duration(u64::MAX), "18446744073.7 s");
    }
}
