//! What the guard has beside its policies, and what these are made of.

use std::time::Duration;

use super::{Expected, duration, expected, one_of};
use crate::guard::parse as form;
use crate::guard::spec::{Action, DESCRIPTION_MAX, Mode, Origin, Text, WithoutLsm};

/// Shorter ones would end between two looks of a machine that is busy.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

pub(in crate::config) fn mode(text: &str) -> Result<Mode, Expected> {
    one_of(text, &[Mode::Observe, Mode::Enforce].map(|mode| (mode.name(), mode)))
}

pub(in crate::config) fn without_lsm(text: &str) -> Result<WithoutLsm, Expected> {
    one_of(text, &[("refuse", WithoutLsm::Refuse), ("kill", WithoutLsm::Kill)])
}

pub(in crate::config) fn lease(text: &str) -> Result<Duration, Expected> {
    let is_sensible = |lease: &Duration| LEASE.contains(lease);
    duration(text).ok().filter(is_sensible).ok_or_else(|| Expected("a duration from 1s to 1h, such as 10s".to_owned()))
}

/// `None`: no limit.
pub(in crate::config) fn kills(text: &str) -> Result<Option<u32>, Expected> {
    match (text.trim(), text.trim().parse()) {
        ("none", _) => Ok(None),
        (_, Ok(kills @ 1..)) => Ok(Some(kills)),
        (_, Ok(0) | Err(_)) => expected("a number of kills such as 20, or none for no limit"),
    }
}

pub(in crate::config) fn description(text: &str) -> Result<String, Expected> {
    let text = text.trim();
    if text.len() > DESCRIPTION_MAX || text.contains(|c: char| c.is_control() && c != '\n') {
        return Err(Expected(format!("a text of at most {DESCRIPTION_MAX} bytes, all printable")));
    }
    Ok(text.to_owned())
}

pub(in crate::config) fn action(text: &str) -> Result<Action, Expected> {
    form::action(text).map_err(Expected)
}

pub(in crate::config) fn origin(text: &str) -> Result<Origin, Expected> {
    form::origin(text).map_err(Expected)
}

/// Of one of [`namespan_ebpf::guard_wire::dimension`].
pub(in crate::config) fn text(dimension: usize) -> impl Fn(&str) -> Result<Text, Expected> {
    move |text| form::text(dimension, text).map_err(Expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_guard_have_bounds() {
        assert_eq!((kills("none"), kills("7")), (Ok(None), Ok(Some(7))));
        assert!(kills("0").is_err() && kills("-1").is_err());
        assert_eq!(lease("10s"), Ok(Duration::from_secs(10)));
        assert!(lease("500ms").is_err() && lease("2h").is_err());
        assert!(description(&"x".repeat(DESCRIPTION_MAX + 1)).is_err() && description("a\x1bb").is_err());
    }
}
