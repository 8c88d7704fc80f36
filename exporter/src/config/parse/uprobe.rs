//! What a probe of a function has beside the function.

use std::num::IntErrorKind;

use super::{Expected, expected, one_of};
use crate::uprobe::spec::{Expression, Kind, NAME_MAX, PID_MAX, STRING_MAX};

pub(in crate::config) fn uprobe_name(text: &str) -> Result<String, Expected> {
    let is_ours = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_first = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if is_first && text.len() <= NAME_MAX && text.bytes().all(is_ours) {
        return Ok(text.to_owned());
    }
    Err(Expected(format!(
        "a name of 1 to {NAME_MAX} letters, digits, `.`, `_` and `-`, of which the first is a letter or a digit"
    )))
}

pub(in crate::config) fn pid(text: &str) -> Result<u32, Expected> {
    match text.trim().parse() {
        Ok(pid @ 1..=PID_MAX) => Ok(pid),
        _ => expected("the id of a process, as the host numbers it, such as 1234"),
    }
}

pub(in crate::config) fn kind(text: &str) -> Result<Kind, Expected> {
    one_of(text, &[("entry", Kind::Entry), ("return", Kind::Return), ("both", Kind::Both)])
}

pub(in crate::config) fn max_string(text: &str) -> Result<u32, Expected> {
    match text.trim().parse() {
        Ok(bytes @ 1..=STRING_MAX) => Ok(bytes),
        _ => Err(Expected(format!("a number of bytes from 1 to {STRING_MAX}"))),
    }
}

pub(in crate::config) fn sample(text: &str) -> Result<u32, Expected> {
    positive(text, "one of how many hits is told of, such as 100 for one of a hundred, or 1 for all")
}

/// `None`: no limit.
pub(in crate::config) fn rate(text: &str) -> Result<Option<u32>, Expected> {
    if text == "none" {
        return Ok(None);
    }
    positive(text, "a number of hits in a second such as 1000, or none").map(Some)
}

pub(in crate::config) fn burst(text: &str) -> Result<u32, Expected> {
    positive(text, "a number of hits at once such as 1000")
}

fn positive(text: &str, what: &str) -> Result<u32, Expected> {
    match text.trim().parse::<u32>() {
        Ok(number @ 1..) => Ok(number),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
            Err(Expected(format!("{what}; the highest is {}", u32::MAX)))
        }
        Ok(_) | Err(_) => expected(what),
    }
}

/// Numbers and short names of OTLP's `SeverityNumber`.
pub(in crate::config) fn severity(text: &str) -> Result<u8, Expected> {
    const NAMES: [&str; 6] = ["trace", "debug", "info", "warn", "error", "fatal"];
    let text = text.trim().to_ascii_lowercase();
    let word = text.trim_end_matches(|last: char| last.is_ascii_digit());
    let digits = text.get(word.len()..).unwrap_or_default();
    let number = match (NAMES.iter().zip([1, 5, 9, 13, 17, 21]).find(|(name, _)| **name == word), digits.parse::<u8>())
    {
        (Some((_, first)), _) if digits.is_empty() => Some(first),
        (Some((_, first)), Ok(step @ 2..=4)) => Some(first + step - 1),
        (None, Ok(number @ 1..=24)) if word.is_empty() => Some(number),
        _ => None,
    };
    number.map_or_else(
        || expected("one of trace, debug, info, warn, error and fatal, such a word with 2, 3 or 4, or a number from 1 to 24"),
        Ok,
    )
}

/// What is captured, and matches, is hidden.
pub(in crate::config) fn expression(text: &str) -> Result<Expression, Expected> {
    Expression::new(text).map_err(Expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_severity_is_a_number_or_a_word_of_otlp() {
        let cases = [
            ("trace", 1),
            ("DEBUG", 5),
            ("info", 9),
            ("info4", 12),
            ("warn2", 14),
            ("fatal4", 24),
            ("1", 1),
            ("24", 24),
        ];
        for (text, number) in cases {
            assert_eq!(severity(text), Ok(number), "{text}");
        }
        for text in ["", "0", "25", "info1", "info5", "info22", "notice", "-1", "9x"] {
            assert!(severity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!((max_string("1"), max_string("4096")), (Ok(1), Ok(4096)));
        assert!(max_string("0").is_err() && max_string("4097").is_err());
        assert_eq!((rate("none"), rate("5")), (Ok(None), Ok(Some(5))));
        assert!(rate("0").is_err() && burst("0").is_err() && sample("-1").is_err());
        let Err(Expected(found)) = sample("5000000000") else { panic!("must be refused") };
        assert!(found.contains("4294967295"), "{found}");
        assert_eq!(pid("4194304"), Ok(4_194_304));
        assert!(pid("0").is_err() && pid("4194305").is_err());
    }

    #[test]
    fn a_name_fits_into_an_attribute() {
        for text in ["a", "0", "bash-readline", "A.b_c-9", &"x".repeat(64)] {
            assert_eq!(uprobe_name(text), Ok(text.to_owned()));
        }
        for text in ["", "-a", ".a", "_a", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(uprobe_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_expression_is_bounded() {
        assert!(expression(r"password=\S+").is_ok());
        for (text, phrase) in [
            ("(", "a regular expression"),
            (r"\w{1000}{1000}", "repeat less"),
            ("", "1 to 1024 bytes"),
            (&"x".repeat(1025), "1 to 1024 bytes"),
        ] {
            let Err(Expected(found)) = expression(text) else { panic!("{text} must be refused") };
            assert!(found.contains(phrase), "{found}");
        }
    }
}
