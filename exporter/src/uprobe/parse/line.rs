//! A whole probe in one line: `web:/usr/bin/bash:readline -> ret:string`.

use super::cursor::Cursor;
use super::{Refusal, capture, function, target};
use crate::enrich::selection::Selector;
use crate::uprobe::check::{Conflict, Part, check};
use crate::uprobe::spec::{Capture, Function, Kind, NAME_MAX, Target, Uprobe};

/// What the line does not say is at its default, and the name is that of the function. With `containers` the line has no
/// target.
pub fn probe(text: &str, containers: &[Selector]) -> Result<Uprobe, Refusal> {
    let mut cursor = Cursor::new(text)?;
    cursor.spaces();
    let start = cursor.at();
    let target =
        if containers.is_empty() { target::in_line(&mut cursor)? } else { Target::Containers(containers.to_vec()) };
    let binary = target::binary_in_line(&mut cursor)?;
    let function = function::in_line(&mut cursor)?;
    cursor.spaces();
    let args = if cursor.eat("(") { Some(capture::arguments(&mut cursor)?) } else { None };
    cursor.spaces();
    let arrow = cursor.at();
    let returns = if cursor.eat("->") {
        cursor.spaces();
        let start = cursor.at();
        Some((capture::after_arrow(&mut cursor)?, start))
    } else {
        None
    };
    cursor.end(match (&args, &returns) {
        (_, Some(_)) => "the probe ends here, so nothing else may follow",
        (Some(_), None) => "after the arguments there is `->` and what is returned, or nothing",
        (None, None) => {
            "after the function there are (ARGUMENTS), `->` and what is returned, or nothing; a name with other characters \
             stands in double quotes"
        }
    })?;
    let kind = match (&args, &returns) {
        (_, None) => Kind::Entry,
        (None, Some(_)) => Kind::Return,
        (Some(_), Some(_)) => Kind::Both,
    };
    let (args, places): (Vec<Capture>, Vec<usize>) = args.unwrap_or_default().into_iter().unzip();
    let (returns, returns_at) = returns.map_or((None, arrow), |(capture, at)| (capture, at));
    let probe = Uprobe { kind, args, returns, ..Uprobe::new(name_of(&function), target, binary, function) };
    match check(&probe) {
        Ok(()) => Ok(probe),
        Err(Conflict { part, problem }) => {
            let at = match part {
                Part::Kind => arrow,
                Part::Arg(index) => places.get(index).copied().unwrap_or(start),
                Part::Returns => returns_at,
                Part::Span => start,
            };
            cursor.refuse(at, problem)
        }
    }
}

/// A name for the probe of that function, which may not be unique.
#[must_use]
pub fn name_of(function: &Function) -> String {
    let words = match function {
        Function::Symbol(symbol) => symbol.clone(),
        Function::Pattern { regex, .. } => regex.as_str().to_owned(),
        Function::Offset { symbol: Some(symbol), offset } => format!("{symbol}-{offset:#x}"),
        Function::Offset { symbol: None, offset } => format!("{offset:#x}"),
        Function::Usdt { provider, name } => format!("{provider}-{name}"),
    };
    let mut name = String::new();
    for character in words.chars() {
        let is_ours = character.is_ascii_alphanumeric() || (matches!(character, '_' | '.') && !name.is_empty());
        if is_ours {
            name.push(character);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    // What is cut and what is left out at the end are all of one byte.
    name.truncate(NAME_MAX);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "probe".to_owned() } else { name.to_owned() }
}
