//! The environment: names come in, values with their origin go out. An empty variable is an unset one.

use std::ffi::OsString;

use super::error::{ConfigError, Origin};
use super::given::Given;
use super::parse::Expected;

/// Looks variables up by name.
pub(super) struct Env<'a>(pub &'a dyn Fn(&str) -> Option<OsString>);

impl Env<'_> {
    pub fn text(&self, name: &'static str) -> Result<Option<Given>, ConfigError> {
        let Some(value) = (self.0)(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let origin = Origin::Variable(name);
        match value.into_string() {
            Ok(value) => Ok(Some(Given { value, origin })),
            Err(_) => Err(ConfigError::NotUtf8 { origin }),
        }
    }

    pub fn parse<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<Given<T>>, ConfigError> {
        self.text(name)?.map(|given| given.parse(parse)).transpose()
    }

    /// The signal's own variable, else the general one; both are checked.
    pub fn either<T>(
        &self,
        names: [&'static str; 2],
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<Given<T>>, ConfigError> {
        let [own, general] = self.both(names, parse)?;
        Ok(own.or(general))
    }

    pub fn both<T>(
        &self,
        [own, general]: [&'static str; 2],
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<[Option<Given<T>>; 2], ConfigError> {
        Ok([self.parse(own, &parse)?, self.parse(general, parse)?])
    }
}
