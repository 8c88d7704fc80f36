//! Durations, sizes and numbers of things.

use std::num::NonZeroUsize;
use std::time::Duration;

use namespan_ebpf::wire::ARGS_MAX;

use super::{Expected, expected};

/// Longest duration there is: sums with the clock cannot overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Less would not outlast what the queue in memory holds.
const SPOOL_MIN: u64 = 16 << 20;

/// Parts of a number and a unit, such as `500ms`, `10s` and `1h30m`.
pub(in crate::config) fn duration(text: &str) -> Result<Duration, Expected> {
    parts(text)
        .filter(|total| *total <= DURATION_MAX)
        .ok_or_else(|| Expected("a duration such as 500ms, 10s, 2m or 1h30m, of at most 365d".to_owned()))
}

fn parts(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = None;
    while !rest.is_empty() {
        let (number, after) = leading(rest, |c| c.is_ascii_digit());
        let (unit, after) = leading(after, |c| c.is_ascii_alphabetic());
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(24 * 3600)?),
            _ => return None,
        };
        total = Some(total.unwrap_or(Duration::ZERO).checked_add(part)?);
        rest = after;
    }
    total
}

fn leading(text: &str, of: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !of(c)).unwrap_or(text.len()))
}

pub(in crate::config) fn positive_duration(text: &str) -> Result<Duration, Expected> {
    duration(text).and_then(positive)
}

/// Whole milliseconds, as the specification's variables have them.
pub(in crate::config) fn millis(text: &str) -> Result<Duration, Expected> {
    match text.trim().parse().map(Duration::from_millis) {
        Ok(value) if value <= DURATION_MAX => Ok(value),
        _ => expected("a whole number of milliseconds, of at most 365 days"),
    }
}

pub(in crate::config) fn positive_millis(text: &str) -> Result<Duration, Expected> {
    millis(text).and_then(positive)
}

fn positive(value: Duration) -> Result<Duration, Expected> {
    if value.is_zero() { expected("more than zero") } else { Ok(value) }
}

/// Zero: no limit.
pub(in crate::config) fn limit(value: Duration) -> Option<Duration> {
    Some(value).filter(|value| !value.is_zero())
}

/// Bytes; a unit is a power of 1024: `65536`, `32KiB`, `32K`, `8MiB`, `1G`.
pub(in crate::config) fn size(text: &str) -> Result<u64, Expected> {
    let (number, unit) = leading(text.trim(), |c| c.is_ascii_digit());
    let unit: Option<u64> = match unit.trim() {
        "" | "B" => Some(1),
        "K" | "KiB" => Some(1 << 10),
        "M" | "MiB" => Some(1 << 20),
        "G" | "GiB" => Some(1 << 30),
        _ => None,
    };
    number
        .parse()
        .ok()
        .zip(unit)
        .and_then(|(number, unit): (u64, u64)| number.checked_mul(unit))
        .ok_or_else(|| Expected("a size in bytes such as 65536, 32KiB or 8MiB".to_owned()))
}

pub(in crate::config) fn bytes(text: &str) -> Result<usize, Expected> {
    match size(text).map(usize::try_from)? {
        Ok(value @ 1..) => Ok(value),
        _ => expected("more than zero, and within this machine's memory"),
    }
}

/// Of the ring buffer.
pub(in crate::config) fn ring_bytes(text: &str) -> Result<u32, Expected> {
    let size = size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (4096..=1 << 30).contains(size))
        .ok_or_else(|| Expected("a power of two from 4KiB to 1GiB, such as 8MiB".to_owned()))
}

/// How long a record may wait in the ring buffer.
pub(in crate::config) fn ring_delay(text: &str) -> Result<Duration, Expected> {
    match duration(text) {
        Ok(value) if (Duration::from_millis(1)..=Duration::from_secs(1)).contains(&value) => Ok(value),
        _ => expected("a duration from 1ms to 1s, such as 50ms"),
    }
}

/// Of the spool of one signal for one destination.
pub(in crate::config) fn spool_bytes(text: &str) -> Result<u64, Expected> {
    let size = size(text)?;
    if size >= SPOOL_MIN { Ok(size) } else { expected("a size of at least 16MiB, such as 512MiB") }
}

pub(in crate::config) fn args_limit(text: &str) -> Result<u32, Expected> {
    let size = size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| (1..=ARGS_MAX).contains(size))
        .ok_or_else(|| Expected(format!("a size from 1 to {ARGS_MAX} bytes, such as 32KiB")))
}

pub(in crate::config) fn batch_bytes(text: &str) -> Result<usize, Expected> {
    let size = bytes(text)?;
    if (64 << 10..=64 << 20).contains(&size) { Ok(size) } else { expected("a size from 64KiB to 64MiB, such as 3MiB") }
}

/// A number of things, at least one.
pub(in crate::config) fn count(text: &str) -> Result<usize, Expected> {
    match text.trim().parse() {
        Ok(value @ 1..) => Ok(value),
        _ => expected("a whole number above zero"),
    }
}

/// A number of characters or attributes; zero: none.
pub(in crate::config) fn limit_count(text: &str) -> Result<usize, Expected> {
    text.trim().parse().or_else(|_| expected("a whole number"))
}

pub(in crate::config) fn cache_entries(text: &str) -> Result<NonZeroUsize, Expected> {
    // The cache reserves its table at once.
    match text.trim().parse::<NonZeroUsize>() {
        Ok(value) if value.get() <= 1 << 20 => Ok(value),
        _ => expected("a whole number from 1 to 1048576"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let cases = [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1s500ms", 1500),
            ("0", 0),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "10", "s", "1.5s", "-1s", "1y", "10 s", "1sms", "366d", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        let cases = [
            ("65536", 65_536),
            ("1B", 1),
            ("32K", 32_768),
            ("32KiB", 32_768),
            ("8 MiB", 8 << 20),
            ("1G", 1 << 30),
            ("0", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1KB", "1kb", "1.5M", "-1", "1T", "99999999999999999999", "18446744073709551615K"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_waits_in_the_ring_from_a_millisecond_to_a_second() {
        for (text, millis) in [("1ms", 1), ("50ms", 50), ("1s", 1000)] {
            assert_eq!(ring_delay(text), Ok(Duration::from_millis(millis)));
        }
        for text in ["0", "0ms", "1001ms", "2s", "50"] {
            assert!(ring_delay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_ring_is_a_power_of_two_within_bounds() {
        for (text, bytes) in [("4096", 4096), ("8MiB", 8 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(ring_bytes(text), Ok(bytes));
        }
        for text in ["2048", "5MiB", "2GiB", "4G", "0"] {
            assert!(ring_bytes(text).is_err(), "{text}");
        }
    }
}
