//! What is probed: `readline`, `"ns::f(int)"`, `f+0x10`, `+0x1234`, `/^SSL_(read|write)$/20`, `usdt:python:function__entry`.

use super::Refusal;
use super::cursor::Cursor;
use crate::uprobe::spec::{Expression, Function, MATCHES_MAX};

/// Functions of a pattern that says no limit.
const MATCHES: u32 = 10;
/// Longest name of a symbol, in bytes: those of C++ templates are long.
const SYMBOL_MAX: usize = 4096;
const MARKER: &str = "usdt:";

/// The whole text. Unlike in a line, any symbol can stand without quotes, such as `ns::f(int)`.
pub fn function(text: &str) -> Result<Function, Refusal> {
    let mut cursor = Cursor::new(text)?;
    let is_symbol = !text.starts_with(['"', '/', '+']) && !starts_marker(text);
    if !is_symbol {
        let function = in_line(&mut cursor)?;
        cursor.end("the function ends here, so nothing else may follow")?;
        return Ok(function);
    }
    if let Some((name, digits)) = text.rsplit_once('+')
        && digits.starts_with(|first: char| first.is_ascii_digit())
    {
        cursor.skip(name.len() + 1);
        let offset = cursor.number("an offset")?;
        cursor.end("the offset ends here, so nothing else may follow")?;
        return Ok(Function::Offset { symbol: Some(checked(&cursor, 0, name.to_owned())?), offset });
    }
    checked(&cursor, 0, text.to_owned()).map(Function::Symbol)
}

pub(super) fn in_line(cursor: &mut Cursor<'_>) -> Result<Function, Refusal> {
    let start = cursor.at();
    if cursor.eat("/") {
        return pattern(cursor, start);
    }
    if cursor.eat("+") {
        return Ok(Function::Offset { symbol: None, offset: cursor.number("an offset")? });
    }
    if starts_marker(cursor.rest()) {
        cursor.eat(MARKER);
        return marker(cursor);
    }
    let symbol = if cursor.peek() == Some('"') { cursor.quoted()? } else { bare(cursor)? };
    let symbol = checked(cursor, start, symbol)?;
    Ok(if cursor.eat("+") {
        Function::Offset { symbol: Some(symbol), offset: cursor.number("an offset")? }
    } else {
        Function::Symbol(symbol)
    })
}

/// Whether a symbol can stand in a line without quotes.
pub(in crate::uprobe) fn is_bare(symbol: &str) -> bool {
    !symbol.is_empty() && symbol.split("::").all(|part| part.chars().all(is_bare_character))
}

fn is_bare_character(character: char) -> bool {
    character.is_alphanumeric()
        || matches!(character, '_' | '.' | '$' | '@' | '~' | '<' | '>' | '&' | '{' | '}' | '#' | '!')
}

fn bare(cursor: &mut Cursor<'_>) -> Result<String, Refusal> {
    let mut symbol = String::new();
    loop {
        symbol.push_str(cursor.take_while(is_bare_character));
        if !cursor.eat("::") {
            break;
        }
        symbol.push_str("::");
    }
    match cursor.peek() {
        Some('*' | '?') => cursor.refuse(
            cursor.at(),
            "a pattern is a regular expression between slashes, such as /^malloc/, and other names with this character \
             stand in double quotes",
        ),
        _ if symbol.is_empty() => cursor.refuse(
            cursor.at(),
            "a function is missing: its name, /REGEX/, +OFFSET or usdt:PROVIDER:NAME; a name with other characters \
             stands in double quotes",
        ),
        Some(_) | None => Ok(symbol),
    }
}

fn checked(cursor: &Cursor<'_>, start: usize, symbol: String) -> Result<String, Refusal> {
    if symbol.trim().is_empty() || symbol.len() > SYMBOL_MAX || symbol.contains(char::is_control) {
        return cursor.refuse(start, format!("the name of a function has 1 to {SYMBOL_MAX} bytes, all printable"));
    }
    Ok(symbol)
}

/// The first slash is passed. Only the slash is escaped: what else stands after `\` is the expression's.
fn pattern(cursor: &mut Cursor<'_>, start: usize) -> Result<Function, Refusal> {
    let mut text = String::new();
    loop {
        match cursor.next() {
            Some('/') => break,
            Some('\\') => match cursor.next() {
                Some('/') => text.push('/'),
                escaped => {
                    text.push('\\');
                    text.extend(escaped);
                }
            },
            Some(character) => text.push(character),
            None => return cursor.refuse(start, "this regular expression has no slash at its end"),
        }
    }
    let regex = Expression::new(&text).or_else(|expected| cursor.refuse(start, format!("this is not {expected}")))?;
    let start = cursor.at();
    let digits = cursor.take_while(|character| character.is_ascii_digit());
    if digits.is_empty() {
        return Ok(Function::Pattern { regex, limit: MATCHES });
    }
    match digits.parse() {
        Ok(limit @ 1..=MATCHES_MAX) => Ok(Function::Pattern { regex, limit }),
        _ => cursor.refuse(start, format!("a pattern is for 1 to {MATCHES_MAX} functions")),
    }
}

/// `usdt::x` is a name of C++ or Rust.
fn starts_marker(text: &str) -> bool {
    text.strip_prefix(MARKER).is_some_and(|rest| !rest.starts_with(':'))
}

/// Of a provider or a name of USDT.
fn is_marker(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '$')
}

fn marker(cursor: &mut Cursor<'_>) -> Result<Function, Refusal> {
    let provider = cursor.take_while(is_marker);
    let is_whole = !provider.is_empty() && cursor.eat(":");
    let name = cursor.take_while(is_marker);
    if !is_whole || name.is_empty() {
        let problem = "a USDT marker is usdt:PROVIDER:NAME, each of letters, digits, `_`, `.` and `$`";
        return cursor.refuse(cursor.at(), problem);
    }
    Ok(Function::Usdt { provider: provider.to_owned(), name: name.to_owned() })
}
