//! The kernel's times as wall-clock times: `CLOCK_BOOTTIME`, which runs through suspend, plus where it began.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// What `/proc/<pid>/stat` rounds start times to, so that others who look at a process name the same moment.
const TICK_NS: u64 = 10_000_000;
/// Readings of which the best is taken.
const TRIES: usize = 8;

/// One reading of the wall clock between two of the boot clock, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Reading {
    boot_before: i64,
    wall: i64,
    boot_after: i64,
}

impl Reading {
    fn take() -> Self {
        Self {
            boot_before: ns(clock_gettime(ClockId::Boottime)),
            wall: ns(clock_gettime(ClockId::Realtime)),
            boot_after: ns(clock_gettime(ClockId::Boottime)),
        }
    }

    /// How wrong [`Reading::epoch_ns`] may be.
    fn uncertainty_ns(self) -> i64 {
        (self.boot_after - self.boot_before) / 2 + 1
    }

    /// When the boot clock was zero.
    fn epoch_ns(self) -> i64 {
        self.wall - self.boot_before - (self.boot_after - self.boot_before) / 2
    }
}

/// Converts boot-clock times. Both clocks are slewed alike, so their difference changes only when somebody steps the wall
/// clock: it is kept exactly until then, and the times of one process agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch_ns: i64,
    uncertainty_ns: i64,
}

impl Clock {
    #[must_use]
    pub fn new() -> Self {
        Self::best((0..TRIES).map(|_| Reading::take()))
    }

    fn best(readings: impl Iterator<Item = Reading>) -> Self {
        readings.min_by_key(|reading| reading.uncertainty_ns()).map_or(
            Self { epoch_ns: 0, uncertainty_ns: i64::MAX },
            |best| Self { epoch_ns: best.epoch_ns(), uncertainty_ns: best.uncertainty_ns() },
        )
    }

    /// Notices a step of the wall clock; call before converting times that were just read. Two clock readings.
    pub fn follow(&mut self) {
        if self.is_stepped(Reading::take()) {
            *self = Self::new();
        }
    }

    fn is_stepped(&self, reading: Reading) -> bool {
        let apart = (reading.epoch_ns() - self.epoch_ns).abs();
        apart > self.uncertainty_ns.saturating_add(reading.uncertainty_ns())
    }

    /// Nanoseconds since the Unix epoch at a boot-clock time.
    #[must_use]
    pub fn unix_ns(&self, boot_ns: u64) -> u64 {
        boot_ns.checked_add_signed(self.epoch_ns).unwrap_or(0)
    }

    /// When a process was created, as every observer of it can tell: [`Clock::unix_ns`] of the whole ticks since boot that
    /// `/proc/<pid>/stat` has.
    #[must_use]
    pub fn creation_unix_ns(&self, start_boot_ns: u64) -> u64 {
        self.unix_ns(start_boot_ns - start_boot_ns % TICK_NS)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The boot clock now, in nanoseconds.
#[must_use]
pub fn boot_ns() -> u64 {
    u64::try_from(ns(clock_gettime(ClockId::Boottime))).unwrap_or(0)
}

fn ns(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: i64 = 1_700_000_000_000_000_000;

    fn reading(boot: i64, gap: i64, step: i64) -> Reading {
        Reading { boot_before: boot, wall: EPOCH + step + boot + gap / 2, boot_after: boot + gap }
    }

    fn clock() -> Clock {
        Clock::best([reading(5_000, 9_000, 0), reading(20_000, 100, 0), reading(30_000, 800, 0)].into_iter())
    }

    #[test]
    fn the_tightest_reading_sets_the_epoch() {
        assert_eq!((clock().epoch_ns, clock().uncertainty_ns), (EPOCH, 51));
    }

    #[test]
    fn a_reading_within_its_uncertainty_is_no_step() {
        assert!(!clock().is_stepped(reading(60_000, 1_000_000, 400_000)));
        assert!(!clock().is_stepped(reading(60_000, 100, 90)));
    }

    #[test]
    fn a_step_in_either_direction_is_noticed() {
        assert!(clock().is_stepped(reading(60_000, 100, 2_000_000)));
        assert!(clock().is_stepped(reading(60_000, 100, -3_600_000_000_000)));
    }

    #[test]
    fn event_times_keep_nanoseconds_and_creation_times_whole_ticks() {
        assert_eq!(clock().unix_ns(1_234_567_891), 1_700_000_001_234_567_891);
        assert_eq!(clock().creation_unix_ns(1_234_567_891), 1_700_000_001_230_000_000);
    }

    #[test]
    fn a_clock_set_before_boot_gives_zero_and_no_panic() {
        let later = Clock { epoch_ns: EPOCH + 7_000_000, uncertainty_ns: 1 };
        assert_eq!(later.creation_unix_ns(1_234_567_891), 1_700_000_001_237_000_000);
        let clock = Clock { epoch_ns: -10_000, uncertainty_ns: 1 };
        assert_eq!((clock.unix_ns(5), clock.unix_ns(10_007)), (0, 7));
    }

    #[test]
    fn the_real_clocks_agree_with_the_system() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let ours = Clock::new().unix_ns(boot_ns());
        assert!(ours.abs_diff(u64::try_from(now.as_nanos()).unwrap()) < 1_000_000_000);
    }
}
