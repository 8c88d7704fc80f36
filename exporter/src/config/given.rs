//! A value and where it came from.

use super::error::{ConfigError, Origin};
use super::parse::Expected;

pub(super) struct Given<T = String> {
    pub value: T,
    pub origin: Origin,
}

impl Given {
    pub fn parse<T>(self, parse: impl Fn(&str) -> Result<T, Expected>) -> Result<Given<T>, ConfigError> {
        match parse(&self.value) {
            Ok(value) => Ok(Given { value, origin: self.origin }),
            Err(Expected(expected)) => Err(ConfigError::Invalid { origin: self.origin, value: self.value, expected }),
        }
    }
}

/// Of `--flag VALUE`.
pub(super) fn flag<T>(
    name: &'static str,
    text: Option<&String>,
    parse: impl Fn(&str) -> Result<T, Expected>,
) -> Result<Option<Given<T>>, ConfigError> {
    text.map(|text| Given { value: text.clone(), origin: Origin::Flag(name) }.parse(parse)).transpose()
}

/// Of `--flag VALUE --flag VALUE`; never given: no list.
pub(super) fn flags<T>(
    name: &'static str,
    texts: &[String],
    most: usize,
    parse: impl Fn(&str) -> Result<T, Expected>,
) -> Result<Option<Given<Vec<T>>>, ConfigError> {
    if texts.is_empty() {
        return Ok(None);
    }
    list(Origin::Flag(name), texts.iter().map(|text| Ok((text.clone(), Origin::Flag(name)))), most, parse).map(Some)
}

/// Of `--flag`, which stands for one value.
pub(super) fn switch<T>(name: &'static str, given: bool, value: T) -> Option<Given<T>> {
    given.then_some(Given { value, origin: Origin::Flag(name) })
}

pub(super) fn list<T>(
    origin: Origin,
    items: impl ExactSizeIterator<Item = Result<(String, Origin), ConfigError>>,
    most: usize,
    parse: impl Fn(&str) -> Result<T, Expected>,
) -> Result<Given<Vec<T>>, ConfigError> {
    let found = items.len();
    if found > most {
        return Err(ConfigError::TooMany { origin, found, most });
    }
    let value = items
        .map(|item| {
            let (value, origin) = item?;
            Ok(Given { value, origin }.parse(&parse)?.value)
        })
        .collect::<Result<_, ConfigError>>()?;
    Ok(Given { value, origin })
}

/// The value of the highest layer that has one.
pub(super) trait OrDefault<T> {
    fn or_default(self, default: T) -> T;
    fn or_given_default(self, default: T) -> Given<T>;
}

impl<T> OrDefault<T> for Option<Given<T>> {
    fn or_default(self, default: T) -> T {
        self.map_or(default, |given| given.value)
    }

    fn or_given_default(self, default: T) -> Given<T> {
        self.unwrap_or(Given { value: default, origin: Origin::Default })
    }
}
