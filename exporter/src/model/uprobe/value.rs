//! Captured values in, what may be told of them out: without what the probe's expressions hide.

use std::ops::Range;

use crate::model::text::without_cut_end;
use crate::uprobe::hit::{Captured, Hit, Value};
use crate::uprobe::place::Place;
use crate::uprobe::spec::Expression;

/// What stands for what is hidden.
const HIDDEN: &[u8] = b"***";

/// A captured value, as it may be told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) name: Name<'a>,
    pub(crate) value: Value<'a>,
    /// There was more of it.
    pub(crate) truncated: bool,
    /// Some of it is hidden.
    pub(crate) redacted: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Name<'a> {
    Arg(&'a str),
    Returned,
}

/// Hides what is not to leave the host; keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct Hiding {
    matches: Vec<Range<usize>>,
    text: Vec<u8>,
}

impl Hiding {
    /// Tells of each captured value, arguments in the probe's order and then the return value.
    pub(crate) fn each(&mut self, hit: &Hit<'_>, place: &Place, mut tell: impl FnMut(&Shown<'_>)) {
        let probe = &place.probe;
        let args = probe.args.iter().enumerate().map(|(index, arg)| (Name::Arg(&arg.name), hit.arg(index)));
        let returned = probe.returns.iter().map(|_| (Name::Returned, hit.returned()));
        for (name, captured) in args.chain(returned) {
            if let Some(captured) = captured {
                tell(&self.shown(name, captured, &probe.redact));
            }
        }
    }

    fn shown<'a>(&'a mut self, name: Name<'a>, captured: Captured<'a>, expressions: &[Expression]) -> Shown<'a> {
        let Captured { value, truncated } = captured;
        let whole = |bytes| if truncated { without_cut_end(bytes) } else { bytes };
        let (value, redacted) = match value {
            Value::Str(bytes) => match self.hide(whole(bytes), expressions) {
                Some(hidden) => (Value::Str(hidden), true),
                None => (Value::Str(whole(bytes)), false),
            },
            Value::Bytes(bytes) => match self.hide(whole(bytes), expressions) {
                Some(hidden) => (Value::Bytes(hidden), true),
                None => (Value::Bytes(whole(bytes)), false),
            },
            Value::Int(_)
            | Value::Uint(_)
            | Value::Bool(_)
            | Value::Pointer(_)
            | Value::F64(_)
            | Value::Null
            | Value::Fault { .. } => (value, false),
        };
        Shown { name, value, truncated, redacted }
    }

    /// What is left where something matches. All expressions see the text as it was: none undoes what another would find.
    /// What is not UTF-8 is hidden whole, as is each run of matches that touch.
    fn hide(&mut self, bytes: &[u8], expressions: &[Expression]) -> Option<&[u8]> {
        if expressions.is_empty() {
            return None;
        }
        self.text.clear();
        let Ok(text) = str::from_utf8(bytes) else {
            let text = String::from_utf8_lossy(bytes);
            // An empty match hides nothing.
            let found = |regex: &Expression| regex.find_iter(&text).any(|found| !found.is_empty());
            return expressions.iter().any(found).then_some(HIDDEN);
        };
        self.matches.clear();
        for regex in expressions {
            self.matches.extend(regex.find_iter(text).map(|found| found.range()).filter(|range| !range.is_empty()));
        }
        self.matches.sort_unstable_by_key(|range| range.start);
        let mut told = 0;
        for (index, range) in self.matches.iter().enumerate() {
            if index == 0 || range.start > told {
                self.text.extend_from_slice(&bytes[told..range.start]);
                self.text.extend_from_slice(HIDDEN);
            }
            told = told.max(range.end);
        }
        if self.matches.is_empty() {
            return None;
        }
        self.text.extend_from_slice(&bytes[told..]);
        Some(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hidden(bytes: &[u8], expressions: &[&str]) -> Option<Vec<u8>> {
        let expressions: Vec<_> = expressions.iter().map(|text| Expression::new(text).unwrap()).collect();
        Hiding::default().hide(bytes, &expressions).map(<[u8]>::to_vec)
    }

    #[test]
    fn what_any_expression_finds_in_the_text_as_it_was_is_hidden() {
        let text = b"password=hunter2 and token=abc";
        assert_eq!(hidden(text, &[]), None);
        assert_eq!(hidden(text, &["nothing", "x*"]), None);
        assert_eq!(hidden(text, &["hunter2"]).unwrap(), b"password=*** and token=abc");
        // The first leaves nothing of what the second looks for.
        assert_eq!(hidden(text, &["password", r"password=\w+"]).unwrap(), b"*** and token=abc");
        assert_eq!(hidden(text, &[r"\d", r"(hunter|token=)", "c$"]).unwrap(), b"password=*** and ***ab***");
        assert_eq!(hidden("é1é".as_bytes(), &["[0-9]"]).unwrap(), "é***é".as_bytes());
        assert_eq!(hidden(b"all", &[".*"]).unwrap(), b"***");
    }

    #[test]
    fn bytes_that_are_no_text_are_hidden_whole() {
        assert_eq!(hidden(b"\xff secret", &["secret"]).unwrap(), b"***");
        assert_eq!(hidden(b"\xff secret", &["public", "z*"]), None);
    }

    proptest! {
        #[test]
        fn no_match_is_left(
            text in "[a-d1-3é ]{0,60}",
            expressions in prop::collection::vec(prop::sample::select(vec!["a+", "b1", "[cd]é", "1 ?2", "é"]), 0..4),
        ) {
            let regexes: Vec<_> = expressions.iter().map(|text| Expression::new(text).unwrap()).collect();
            let found = regexes.iter().any(|regex| regex.is_match(&text));
            match hidden(text.as_bytes(), &expressions) {
                None => prop_assert!(!found),
                Some(hidden) => {
                    let left = String::from_utf8(hidden).unwrap();
                    prop_assert!(found && left.split("***").all(|part| text.contains(part)));
                    prop_assert!(left.split("***").all(|part| !regexes.iter().any(|regex| regex.is_match(part))));
                }
            }
        }
    }
}
