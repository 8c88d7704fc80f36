//! The clocks, and the times that records carry.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

#[must_use]
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

/// When `CLOCK_BOOTTIME` was 0, by the clock as it is now.
#[must_use]
pub fn boot_unix_ns() -> u64 {
    let boot = clock_gettime(ClockId::Boottime);
    let since: u64 = (boot.tv_sec * 1_000_000_000 + boot.tv_nsec).try_into().unwrap();
    unix_ns() - since
}

/// Milliseconds since the Unix epoch of `2026-11-22T18:44:04.120Z`.
#[must_use]
pub fn iso_ms(text: &str) -> i64 {
    let parts: Vec<i64> = text
        .strip_suffix('Z')
        .and_then(|text| text.split(['-', 'T', ':', '.']).map(str::parse).collect::<Result<_, _>>().ok())
        .unwrap_or_else(|| panic!("{text:?} is no time"));
    let [year, month, day, hour, minute, second, ms] = parts[..] else { panic!("{text:?} is no time in ms") };
    // Years from March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_date_prints_them() {
        assert_eq!(iso_ms("1970-01-01T00:00:00.000Z"), 0);
        assert_eq!(iso_ms("2024-02-29T23:59:59.999Z"), 1_709_251_199_999);
        assert_eq!(iso_ms("2026-11-22T18:44:04.120Z"), 1_795_373_044_120);
    }
}
