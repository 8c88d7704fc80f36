//! The containers an [`Enricher`](super::Enricher) remembers: a bounded table, found by id or by slot.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::How;
use super::container::Container;

/// Entries in a table that never exceeds its capacity. What has no room pushes out a container that is gone, else one
/// without events since the hand of the clock last passed it.
#[derive(Debug)]
pub(super) struct Containers {
    by_id: HashMap<Box<str>, usize>,
    entries: Vec<Entry>,
    /// Those marked as gone, oldest first; stale where the container has come back.
    gone: VecDeque<(Instant, Slot)>,
    free: Vec<usize>,
    hand: usize,
    serial: u64,
    capacity: usize,
    grace: Duration,
}

/// A place in the table, as long as the same container holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    index: usize,
    serial: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub container: Arc<Container>,
    pub state: State,
    serial: u64,
    gone: Option<Instant>,
    used: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The runtime has not been asked.
    New,
    /// The question found no room.
    Wanted {
        since: Instant,
    },
    Asked {
        since: Instant,
    },
    /// The runtime does not know it.
    Unknown {
        since: Instant,
    },
    Known(How),
}

impl Containers {
    pub fn new(capacity: NonZeroUsize, grace: Duration) -> Self {
        Self {
            by_id: HashMap::new(),
            entries: Vec::new(),
            gone: VecDeque::new(),
            free: Vec::new(),
            hand: 0,
            serial: 0,
            capacity: capacity.get(),
            grace,
        }
    }

    pub fn find(&self, id: &str) -> Option<Slot> {
        let index = *self.by_id.get(id)?;
        Some(Slot { index, serial: self.entries.get(index)?.serial })
    }

    /// The entry, unless another container has its place or its time is over.
    pub fn live(&mut self, slot: Slot, now: Instant) -> Option<&mut Entry> {
        let grace = self.grace;
        let entry = self.get(slot)?;
        if entry.gone.is_some_and(|since| now.saturating_duration_since(since) >= grace) {
            return None;
        }
        entry.used = true;
        Some(entry)
    }

    pub fn get(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index).filter(|entry| entry.serial == slot.serial)
    }

    /// Adds a container that is not in the table; true: another one was pushed out before its time.
    pub fn insert(&mut self, container: Arc<Container>, state: State) -> (Slot, bool) {
        let evicted = self.by_id.len() >= self.capacity && self.make_room();
        self.serial += 1;
        let id = container.id.as_str().into();
        let entry = Entry { container, state, serial: self.serial, gone: None, used: false };
        let index = self.free.pop().unwrap_or(self.entries.len());
        match self.entries.get_mut(index) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.by_id.insert(id, index);
        (Slot { index, serial: self.serial }, evicted)
    }

    pub fn mark_gone(&mut self, id: &str, now: Instant) {
        let Some(slot) = self.find(id) else { return };
        let Some(entry) = self.get(slot) else { return };
        if entry.gone.is_none() {
            entry.gone = Some(now);
            self.gone.push_back((now, slot));
        }
        // Containers that restart for ever leave a stale mark each time.
        if self.gone.len() > 2 * self.capacity {
            let entries = &self.entries;
            self.gone.retain(|(since, slot)| is_gone(entries, *slot, *since));
        }
    }

    pub fn mark_back(&mut self, slot: Slot) {
        if let Some(entry) = self.get(slot) {
            entry.gone = None;
        }
    }

    /// Drops what has been gone for the grace period.
    pub fn forget_gone(&mut self, now: Instant) {
        while let Some((since, slot)) = self.gone.front().copied()
            && now.saturating_duration_since(since) >= self.grace
        {
            self.gone.pop_front();
            if is_gone(&self.entries, slot, since) {
                self.remove(slot);
            }
        }
    }

    /// Forgets that the runtime was asked: its answers are lost.
    pub fn ask_again(&mut self) {
        for entry in &mut self.entries {
            if matches!(entry.state, State::Wanted { .. } | State::Asked { .. }) {
                entry.state = State::New;
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    #[cfg(test)]
    pub fn marks(&self) -> usize {
        self.gone.len()
    }

    /// True unless a container that was gone made the room.
    fn make_room(&mut self) -> bool {
        while let Some((since, slot)) = self.gone.pop_front() {
            if is_gone(&self.entries, slot, since) {
                self.remove(slot);
                return false;
            }
        }
        // The first round clears every mark, so the second finds a place.
        for _ in 0..=2 * self.entries.len() {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.entries.len().max(1);
            if let Some(entry) = self.entries.get_mut(index)
                && !std::mem::take(&mut entry.used)
                && entry.serial != FREE
            {
                let serial = entry.serial;
                self.remove(Slot { index, serial });
                return true;
            }
        }
        false
    }

    fn remove(&mut self, slot: Slot) {
        let Some(entry) = self.get(slot) else { return };
        entry.serial = FREE;
        let container = entry.container.clone();
        self.by_id.remove(container.id.as_str());
        self.free.push(slot.index);
    }
}

/// Serial of a free place; the first container has 1.
const FREE: u64 = 0;

/// Whether a mark still holds: the same container, gone since then.
fn is_gone(entries: &[Entry], slot: Slot, since: Instant) -> bool {
    entries.get(slot.index).is_some_and(|entry| entry.serial == slot.serial && entry.gone == Some(since))
}
