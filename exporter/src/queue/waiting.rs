//! What is under the queue's lock: what waits in memory, what of it is on disk as well, and what is with the senders.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::memory::{Amount, Memory};
use super::spool::{Kept, Place};
use super::{Batch, Class};
use crate::config;

/// A disk that takes this long does not hold up what is in memory.
pub(super) const STALL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Numbers batches in the order of their arrival.
    pub(super) next_number: u64,
    /// On no disk.
    pub(super) memory: Memory,
    /// `None` without a spool.
    pub(super) stored: Option<Stored>,
    pub(super) closed: bool,
    pub(super) overflowing: bool,
}

/// What is on disk, as far as it is known here.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// In memory too: what came first of all that is on disk.
    pub(super) ready: BTreeMap<u64, (Kept, Batch)>,
    pub(super) ready_amount: Amount,
    /// With the senders, or settled and not marked so on disk.
    pub(super) flights: BTreeMap<u64, Flight>,
    /// In no memory; without bytes.
    pub(super) unread: Amount,
    /// Where to read again what was in memory.
    pub(super) rewind: [Option<Place>; Class::ALL.len()],
    /// Nothing of what is in no memory can be read for now.
    pub(super) is_out_of_reach: bool,
    /// The disk takes nothing for now.
    pub(super) is_failing: bool,
    /// The disk has been at something since then.
    pub(super) busy_since: Option<Instant>,
    pub(super) phase: Phase,
    /// The spool's thread has not seen this yet.
    pub(super) has_news: bool,
}

/// How far the senders are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    #[default]
    Sending,
    /// One gave up in the drain: nothing more is begun.
    Stranded,
    /// Nobody sends any more.
    Ended,
}

/// A batch that was taken.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) kept: Kept,
    pub(super) state: State,
    /// It is on disk no longer.
    pub(super) is_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Aloft,
    /// Settled.
    Landed,
    /// Not sent before the drain was over.
    Stranded {
        records: u32,
    },
}

/// What became of a batch that a sender is done with.
#[derive(Debug)]
pub(super) enum Landing {
    Settled,
    /// In its place again, at the expense of others.
    Back {
        dropped: u64,
    },
    /// On disk, for the next run.
    Kept,
    Lost,
}

impl Waiting {
    /// All that is in memory.
    pub(super) fn held(&self) -> Amount {
        let ready = self.stored.as_ref().map_or_else(Amount::default, |stored| stored.ready_amount);
        self.memory.amount().and(ready)
    }

    /// The records that are dropped for it.
    pub(super) fn push(&mut self, batch: Batch, limits: &config::Queue) -> u64 {
        if !self.memory.can_hold(&batch, limits) {
            return batch.records().into();
        }
        self.memory.insert(self.next_number, batch);
        self.next_number += 1;
        self.shrink(limits)
    }

    /// What is on disk makes room first.
    fn shrink(&mut self, limits: &config::Queue) -> u64 {
        let mut dropped = 0;
        while self.held().exceeds(limits) {
            if self.stored.as_mut().is_some_and(Stored::unload) {
                continue;
            }
            let Some(batch) = self.memory.shed() else { break };
            dropped += u64::from(batch.records());
        }
        dropped
    }

    /// What came first. What is on no disk yet only if that takes too long, or fails.
    pub(super) fn take(&mut self) -> Option<(u64, Batch)> {
        let Some(stored) = &mut self.stored else { return self.memory.take_first() };
        if stored.phase >= Phase::Stranded {
            return None;
        }
        let is_direct = stored.busy_since.is_some_and(|since| since.elapsed() > STALL)
            || (stored.is_failing && (stored.unread.batches == 0 || stored.is_out_of_reach));
        let unwritten = self.memory.first().map(|(number, _)| number).filter(|_| is_direct);
        match (stored.ready.keys().next(), unwritten) {
            (Some(ready), Some(unwritten)) if unwritten < *ready => self.memory.take_first(),
            (None, Some(_)) => self.memory.take_first(),
            (_, _) => stored.take_off(),
        }
    }

    /// Nothing will be there to be sent any more.
    pub(super) fn is_over(&self) -> bool {
        let is_empty =
            |stored: &Stored| self.memory.is_empty() && stored.ready.is_empty() && stored.unread.batches == 0;
        let is_over = |stored: &Stored| stored.phase >= Phase::Stranded || is_empty(stored);
        self.closed && self.stored.as_ref().map_or(self.memory.is_empty(), is_over)
    }

    /// Whether what a sender gives back is waited for, here or by the next run: it is not settled then.
    pub(super) fn keeps(&self, number: u64, is_whole: bool) -> bool {
        let Some(stored) = &self.stored else { return is_whole && !self.closed };
        match stored.flights.get(&number) {
            Some(flight) if !flight.is_gone => is_whole || self.closed,
            // At the end the spool may still take it.
            Some(_) | None => is_whole,
        }
    }

    /// Back from a sender, with so many records unsettled.
    pub(super) fn land(&mut self, number: u64, batch: &Batch, unsettled: u32, limits: &config::Queue) -> Landing {
        // Of a part nobody knows which records it is, so that it cannot be sent again.
        let is_whole = unsettled == batch.records();
        if let Some(stored) = &mut self.stored
            && let Some(flight) = stored.flights.get_mut(&number)
            && !flight.is_gone
        {
            flight.state = State::Landed;
            if unsettled == 0 {
                return Landing::Settled;
            }
            if self.closed {
                flight.state = State::Stranded { records: unsettled };
                stored.phase = stored.phase.max(Phase::Stranded);
                return Landing::Kept;
            }
            if !is_whole {
                return Landing::Lost;
            }
            let kept = flight.kept;
            stored.flights.remove(&number);
            stored.insert(number, kept, batch.clone());
            return Landing::Back { dropped: self.shrink(limits) };
        }
        let has_spool = self.stored.is_some();
        if let Some(stored) = &mut self.stored {
            stored.flights.remove(&number);
            if self.closed && unsettled > 0 {
                stored.phase = stored.phase.max(Phase::Stranded);
            }
        }
        if unsettled == 0 {
            Landing::Settled
        } else if is_whole && (has_spool || !self.closed) {
            // At the end the spool may still take it.
            self.memory.insert(number, batch.clone());
            Landing::Back { dropped: self.shrink(limits) }
        } else {
            Landing::Lost
        }
    }
}

impl Stored {
    /// Records that are on disk and in no memory, or were left there at the end.
    pub(super) fn spooled(&self) -> u64 {
        let stranded = self.flights.values().map(|flight| match flight.state {
            State::Stranded { records } => records.into(),
            State::Aloft | State::Landed => 0,
        });
        self.unread.records + stranded.sum::<u64>()
    }

    pub(super) fn insert(&mut self, number: u64, kept: Kept, batch: Batch) {
        self.ready_amount = self.ready_amount.and(Amount::of(&batch));
        self.ready.insert(number, (kept, batch));
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<(Kept, Batch)> {
        let (kept, batch) = self.ready.remove(&number)?;
        self.ready_amount = self.ready_amount.less(Amount::of(&batch));
        Some((kept, batch))
    }

    /// What is in memory or with a sender under this number.
    pub(super) fn known(&self, number: u64) -> Option<&Kept> {
        let ready = self.ready.get(&number).map(|(kept, _)| kept);
        ready.or_else(|| self.flights.get(&number).map(|flight| &flight.kept))
    }

    fn take_off(&mut self) -> Option<(u64, Batch)> {
        let number = *self.ready.keys().next()?;
        let (kept, batch) = self.remove(number)?;
        self.flights.insert(number, Flight { kept, state: State::Aloft, is_gone: false });
        Some((number, batch))
    }

    /// Forgets what came last, as it is on disk; `false`: there is nothing.
    pub(super) fn unload(&mut self) -> bool {
        let Some(number) = self.ready.keys().next_back().copied() else { return false };
        let Some((kept, batch)) = self.remove(number) else { return false };
        self.unread = self.unread.and(Amount { bytes: 0, ..Amount::of(&batch) });
        let rewind = &mut self.rewind[kept.place.class as usize];
        *rewind = Some(rewind.map_or(kept.place, |place| place.min(kept.place)));
        true
    }
}
