//! What this process costs, as `/proc/self` tells when it is asked for.

use std::fs;

/// CPU time since the start, in seconds.
pub(super) struct CpuTimes {
    pub(super) user: f64,
    pub(super) system: f64,
}

/// Fields of `/proc/self/stat` after the name, which may hold anything; the first one there is the third of all.
mod field {
    pub const UTIME: usize = 14 - 3;
    pub const STIME: usize = 15 - 3;
    pub const THREADS: usize = 20 - 3;
}

pub(super) fn cpu_times() -> Option<CpuTimes> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    #[expect(clippy::cast_precision_loss, reason = "exact for thousands of years")]
    let seconds = |field| Some(stat_field(&stat, field)? as f64 / rustix::param::clock_ticks_per_second() as f64);
    Some(CpuTimes { user: seconds(field::UTIME)?, system: seconds(field::STIME)? })
}

pub(super) fn threads() -> Option<u64> {
    stat_field(&fs::read_to_string("/proc/self/stat").ok()?, field::THREADS)
}

pub(super) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Without the one that reads them.
pub(super) fn descriptors() -> Option<u64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn stat_field(stat: &str, field: usize) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_shifts_no_field() {
        let stat = "7 (a) R ) x) S 1 7 7 0 -1 4194560 9 0 0 0 31 12 0 0 20 0 5 0 99 1 2\n";
        let fields = [field::UTIME, field::STIME, field::THREADS].map(|field| stat_field(stat, field));
        assert_eq!(fields, [Some(31), Some(12), Some(5)]);
    }

    #[test]
    fn this_process_uses_something_of_everything() {
        let file = fs::File::open("/proc/self/stat").unwrap();
        let before = descriptors().unwrap();
        drop(file);
        assert!(before >= 4 && threads().unwrap() >= 1);
        let resident = resident_bytes().unwrap();
        assert!((1 << 20..1 << 36).contains(&resident), "{resident}");
        let burn_until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let times = loop {
            let times = cpu_times().unwrap();
            if times.user + times.system > 0.0 || std::time::Instant::now() > burn_until {
                break times;
            }
        };
        assert!(times.user + times.system > 0.0);
    }
}
