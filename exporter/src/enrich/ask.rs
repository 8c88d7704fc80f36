//! The runtimes are asked for containers of which nothing is known but the id.

use std::time::Instant;

use super::containers::{Asked, Slot};
use super::{Enricher, Told};

impl Enricher {
    /// Until when a container's description is waited for.
    pub(super) fn due(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let within = |since, limit| now.saturating_duration_since(since) < limit;
        let retry = self.negative.max(self.wait);
        let entry = self.containers.peek(slot)?;
        if entry.how.is_some_and(|how| how.is_by_runtime() || !self.may_know_more(entry.container.runtime)) {
            return None;
        }
        let since = match entry.asked {
            Asked::Unknown { since } if within(since, self.negative) => return None,
            Asked::Yes { since, .. } if within(since, retry) => Some(since),
            Asked::Wanted { since } if within(since, retry) => self.ask(slot, since),
            Asked::No | Asked::Unknown { .. } | Asked::Yes { .. } | Asked::Wanted { .. } => self.ask(slot, now),
        };
        // One wait per container, not per record: a runtime that hangs delays its first records only.
        since?.checked_add(self.wait)
    }

    /// Whether a runtime itself can be asked, and not only what it leaves on disk.
    fn may_know_more(&self, runtime: &str) -> bool {
        self.sources.iter().any(|told| told.linked && !told.source.files && told.source.answers_for.contains(&runtime))
    }

    /// Puts the question to those who may know; since when an answer is awaited, if one can be.
    fn ask(&mut self, slot: Slot, since: Instant) -> Option<Instant> {
        let entry = self.containers.get(slot)?;
        let (key, runtime) = (entry.container.key(), entry.container.runtime);
        let (mut open, mut any) = (0, false);
        for (index, told) in self.sources.iter().enumerate() {
            let Told { source, linked, .. } = told;
            if !linked || source.lookups.is_closed() || !source.answers_for.contains(&runtime) {
                continue;
            }
            any = true;
            if source.lookups.try_send(key.clone().into_owned()).is_ok() {
                open |= bit(index);
            } else {
                self.stats.lookups_refused += 1;
            }
        }
        entry.asked = match open {
            _ if !any => return None,
            0 => Asked::Wanted { since },
            open => Asked::Yes { since, open },
        };
        Some(since)
    }
}

/// Of a source, among those that are asked.
pub(super) fn bit(source: usize) -> u32 {
    1_u32.checked_shl(u32::try_from(source).unwrap_or(u32::MAX)).unwrap_or(0)
}
