//! What is captured: `buf:bytes(1)`, `size@2:u64`, `ret:string`.

use super::cursor::Cursor;
use super::{RETURNED, Refusal};
use crate::uprobe::spec::{Capture, OPERAND_MAX, Type};

/// Longest name of a capture.
const NAME_MAX: usize = 32;

const PLAIN: [(&str, Type); 15] = [
    ("i8", Type::I8),
    ("i16", Type::I16),
    ("i32", Type::I32),
    ("i64", Type::I64),
    ("u8", Type::U8),
    ("u16", Type::U16),
    ("u32", Type::U32),
    ("u64", Type::U64),
    ("pointer", Type::Pointer),
    ("bool", Type::Bool),
    ("string", Type::String),
    ("f32", Type::F32),
    ("f64", Type::F64),
    ("*f32", Type::F32At),
    ("*f64", Type::F64At),
];

/// What somebody may write who thinks in C.
const MEANT: [(&str, &str); 16] = [
    ("int", "i32"),
    ("uint", "u32"),
    ("unsigned", "u32"),
    ("long", "i64"),
    ("short", "i16"),
    ("char", "i8"),
    ("size_t", "u64"),
    ("ssize_t", "i64"),
    ("usize", "u64"),
    ("isize", "i64"),
    ("ptr", "pointer"),
    ("str", "string"),
    ("cstr", "string"),
    ("double", "f64"),
    ("float", "f32"),
    ("buf", "bytes(N)"),
];

/// `NAME[@POSITION]:TYPE`, and nothing else; `next` is its position where it says none.
pub fn argument(text: &str, next: u8) -> Result<Capture, Refusal> {
    whole(text, |cursor| one(cursor, next))
}

/// `[NAME:]TYPE`, and nothing else.
pub fn returned(text: &str) -> Result<Capture, Refusal> {
    whole(text, result)
}

fn whole<T>(text: &str, read: impl FnOnce(&mut Cursor<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
    let mut cursor = Cursor::new(text)?;
    cursor.spaces();
    let value = read(&mut cursor)?;
    cursor.end("the type ends here, so nothing else may follow")?;
    Ok(value)
}

/// Between parentheses, of which the first is passed; each with the place where it begins.
pub(super) fn arguments(cursor: &mut Cursor<'_>) -> Result<Vec<(Capture, usize)>, Refusal> {
    let mut found: Vec<(Capture, usize)> = Vec::new();
    cursor.spaces();
    if cursor.eat(")") {
        return Ok(found);
    }
    loop {
        cursor.spaces();
        let start = cursor.at();
        let next = found.last().map_or(0, |(last, _)| last.position.saturating_add(1));
        found.push((one(cursor, next)?, start));
        cursor.spaces();
        if cursor.eat(")") {
            return Ok(found);
        }
        if !cursor.eat(",") {
            return cursor.refuse(cursor.at(), "after an argument there is `,` or `)`");
        }
    }
}

/// After `->`. `None`: `_`, for no value.
pub(super) fn after_arrow(cursor: &mut Cursor<'_>) -> Result<Option<Capture>, Refusal> {
    let start = cursor.at();
    let word = cursor.take_while(is_name);
    if word == "_" {
        return Ok(None);
    }
    cursor.back_to(start);
    result(cursor).map(Some)
}

fn result(cursor: &mut Cursor<'_>) -> Result<Capture, Refusal> {
    let start = cursor.at();
    let name = match name(cursor) {
        Ok(name) if cursor.eat(":") => name,
        // It is the type already.
        Ok(_) | Err(_) => {
            cursor.back_to(start);
            RETURNED.to_owned()
        }
    };
    cursor.spaces();
    Ok(Capture { name, position: 0, value: value(cursor)? })
}

fn one(cursor: &mut Cursor<'_>, next: u8) -> Result<Capture, Refusal> {
    let name = name(cursor)?;
    let position = if cursor.eat("@") { position(cursor)? } else { next };
    if !cursor.eat(":") {
        return cursor
            .refuse(cursor.at(), "an argument is NAME:TYPE or NAME@POSITION:TYPE: `:` and its type are missing");
    }
    cursor.spaces();
    Ok(Capture { name, position, value: value(cursor)? })
}

fn name(cursor: &mut Cursor<'_>) -> Result<String, Refusal> {
    let start = cursor.at();
    let name = cursor.take_while(is_name);
    let is_word = !name.starts_with(|first: char| first.is_ascii_digit()) && name.bytes().any(|byte| byte != b'_');
    if is_word && name.len() <= NAME_MAX {
        return Ok(name.to_owned());
    }
    cursor.refuse(
        start,
        format!("an argument is NAME:TYPE, and NAME has 1 to {NAME_MAX} letters, digits and `_`, the first no digit"),
    )
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

fn position(cursor: &mut Cursor<'_>) -> Result<u8, Refusal> {
    let start = cursor.at();
    let digits = cursor.take_while(|character| character.is_ascii_digit());
    let problem = || format!("a position counts from 0, and is at most {OPERAND_MAX}");
    let position = digits.parse().ok().filter(|position| *position <= OPERAND_MAX);
    position.map_or_else(|| cursor.refuse(start, problem()), Ok)
}

fn value(cursor: &mut Cursor<'_>) -> Result<Type, Refusal> {
    let start = cursor.at();
    let text = cursor.take_while(|character| is_name(character) || character == '*');
    if let Some((_, value)) = PLAIN.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    if text == "bytes" {
        if !cursor.eat("(") {
            return cursor.refuse(start, "bytes(N) takes the position of the argument that has the length");
        }
        let length = position(cursor)?;
        if !cursor.eat(")") {
            return cursor.refuse(cursor.at(), "`)` is missing after the position of the length");
        }
        return Ok(Type::Bytes { length });
    }
    let names: Vec<_> = PLAIN.iter().map(|(name, _)| *name).collect();
    let meant = MEANT.iter().find(|(name, _)| *name == text).map(|(_, meant)| format!("; {meant} may be meant"));
    let meant = meant.unwrap_or_default();
    cursor.refuse(start, format!("a type is one of {} or bytes(N){meant}", names.join(", ")))
}
