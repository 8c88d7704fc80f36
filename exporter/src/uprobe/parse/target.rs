//! Whose calls: `host`, `pid=7`, `web-*`, `[image:debian:*]`; and in which file: `/usr/bin/bash`, `libssl`, `"/a:b"`.

use super::Refusal;
use super::cursor::Cursor;
use crate::config;
use crate::enrich::selection::{Condition, Glob, Selector};
use crate::uprobe::spec::{Binary, PID_MAX, Target};

pub(in crate::uprobe) const HOST: &str = "host";
const PID: &str = "pid=";

/// Longest path that Linux takes, without its final NUL.
const PATH_MAX: usize = 4095;
/// Longest name of a file.
const NAME_MAX: usize = 255;

/// An absolute path, or a library's name. The error completes the sentence "this is not …".
pub fn binary(text: &str) -> Result<Binary, String> {
    let is_printable = !text.contains(char::is_control);
    if text.starts_with('/') {
        let is_path = is_printable && text.len() <= PATH_MAX && text != "/";
        return if is_path {
            Ok(Binary::Path(text.to_owned()))
        } else {
            Err(format!("the path of a file, of at most {PATH_MAX} bytes, all printable"))
        };
    }
    if is_printable && !text.trim().is_empty() && text.len() <= NAME_MAX && !text.contains('/') {
        return Ok(Binary::Library(text.to_owned()));
    }
    Err("an absolute path such as /usr/bin/bash, or the name of a library such as libssl".to_owned())
}

/// With its colon. A path can only be a binary, so that the host is meant.
pub(super) fn in_line(cursor: &mut Cursor<'_>) -> Result<Target, Refusal> {
    let start = cursor.at();
    let target = match cursor.peek() {
        Some('/' | '"') => return Ok(Target::Host),
        Some('[') => bracketed(cursor)?,
        _ => word(cursor)?,
    };
    if !cursor.eat(":") {
        return cursor.refuse(
            start,
            "a probe is TARGET:BINARY:FUNCTION, and TARGET is host, pid=N, the name of a container, or [SELECTOR]",
        );
    }
    Ok(target)
}

/// With its colon.
pub(super) fn binary_in_line(cursor: &mut Cursor<'_>) -> Result<Binary, Refusal> {
    let start = cursor.at();
    let is_quoted = cursor.peek() == Some('"');
    let text = if is_quoted { cursor.quoted()? } else { cursor.take_while(is_binary).to_owned() };
    let binary = binary(&text).or_else(|expected| cursor.refuse(start, format!("this is not {expected}")))?;
    if cursor.eat(":") {
        return Ok(binary);
    }
    let problem = match cursor.peek() {
        None if start == 0 => "a function is missing: a probe is TARGET:BINARY:FUNCTION",
        None => {
            "a function is missing: a probe is TARGET:BINARY:FUNCTION, and a library takes a target, such as host:libc:malloc"
        }
        Some(_) => {
            "after the binary there are `:` and a function; a path with other characters stands in double quotes"
        }
    };
    cursor.refuse(cursor.at(), problem)
}

/// Whether a binary can stand in a line without quotes.
pub(in crate::uprobe) fn is_bare_binary(text: &str) -> bool {
    text.chars().all(is_binary)
}

/// Whether a pattern of a container's name can stand in a line without brackets.
pub(in crate::uprobe) fn is_bare_name(text: &str) -> bool {
    !text.is_empty() && text != HOST && text.chars().all(is_word)
}

fn is_binary(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !matches!(character, ':' | '"' | '\\' | '[' | ']')
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-' | '*' | '?')
}

fn word(cursor: &mut Cursor<'_>) -> Result<Target, Refusal> {
    let start = cursor.at();
    if cursor.eat(PID) {
        return match cursor.number("a process id")?.try_into() {
            Ok(pid @ 1..=PID_MAX) => Ok(Target::Pid(pid)),
            _ => cursor.refuse(start, "no process has this id"),
        };
    }
    match cursor.take_while(is_word) {
        "" => cursor
            .refuse(start, "a target is host, pid=N, the name of a container, or [SELECTOR], such as [image:debian:*]"),
        HOST => Ok(Target::Host),
        name => Ok(Target::Containers(vec![Selector(vec![Condition::Name(Glob::parse(name))])])),
    }
}

fn bracketed(cursor: &mut Cursor<'_>) -> Result<Target, Refusal> {
    let mut selectors = Vec::new();
    while cursor.eat("[") {
        let start = cursor.at();
        let text = cursor.rest();
        let length = loop {
            match cursor.next() {
                Some(']') => break cursor.at() - 1 - start,
                Some('\\') => {
                    cursor.next();
                }
                Some(_) => {}
                None => return cursor.refuse(start - 1, "this bracket is never closed"),
            }
        };
        let selector = config::selector(text.get(..length).unwrap_or_default());
        selectors.push(selector.or_else(|expected| cursor.refuse(start, format!("a selector is {expected}")))?);
    }
    Ok(Target::Containers(selectors))
}
