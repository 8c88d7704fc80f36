//! How old a batch on disk is, whatever is done to the wall clock.

use std::fs;
use std::time::{Duration, SystemTime};

use super::Kept;
use crate::clock::boot_ns;

/// What an earlier boot has left is not too old before that: the wall clock may still be set.
pub(super) const GRACE: Duration = Duration::from_secs(600);

/// By the boot clock, which nobody sets, since a batch was written. What an earlier boot has left only has its wall clock: it
/// is put on this boot's clock once, when the wall clock had time to be set, and not before is any of it too old.
#[derive(Debug)]
pub(super) struct Aging {
    max_age: Duration,
    opened_boot_ns: u64,
    /// The wall clock at this boot's zero, in nanoseconds.
    epoch: Option<i128>,
}

impl Aging {
    pub(super) fn new(max_age: Duration) -> Self {
        Self { max_age, opened_boot_ns: boot_ns(), epoch: None }
    }

    pub(super) fn look(&mut self, now: Moment) {
        let has_settled = u128::from(now.boot_ns.saturating_sub(self.opened_boot_ns)) >= GRACE.as_nanos();
        if self.epoch.is_none() && has_settled {
            self.epoch = Some(i128::from(now.unix_ns) - i128::from(now.boot_ns));
        }
    }

    pub(super) fn is_expired(&self, kept: &Kept, now: Moment) -> bool {
        let written = if kept.is_of_this_boot {
            i128::from(kept.written.boot_ns)
        } else {
            let Some(epoch) = self.epoch else { return false };
            i128::from(kept.written.unix_ns) - epoch
        };
        u128::try_from(i128::from(now.boot_ns) - written).is_ok_and(|age| age > self.max_age.as_nanos())
    }
}

/// When something was written, or is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::queue) struct Moment {
    pub(super) boot_ns: u64,
    pub(super) unix_ns: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { boot_ns: boot_ns(), unix_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX) }
    }
}

/// 0 where it cannot be told.
pub(super) fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}
