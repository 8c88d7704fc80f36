//! Batches that are in memory alone, by class: what came first goes out first, what matters least is given up first.

use std::collections::VecDeque;

use super::{Batch, Class};
use crate::config;

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) batches: usize,
    pub(super) bytes: usize,
    pub(super) records: u64,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    classes: [Waits; Class::ALL.len()],
}

/// Those of one class, in the order of their numbers.
#[derive(Debug, Default)]
struct Waits {
    batches: VecDeque<(u64, Batch)>,
    amount: Amount,
}

impl Amount {
    pub(super) fn of(batch: &Batch) -> Self {
        Self { batches: 1, bytes: batch.body().len(), records: batch.records().into() }
    }

    pub(super) fn exceeds(self, limits: &config::Queue) -> bool {
        self.bytes > limits.max_bytes || limits.max_records.is_some_and(|max| self.records > max as u64)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            batches: self.batches + other.batches,
            bytes: self.bytes + other.bytes,
            records: self.records + other.records,
        }
    }

    pub(super) fn less(self, other: Self) -> Self {
        debug_assert!(self.batches >= other.batches && self.bytes >= other.bytes && self.records >= other.records);
        Self {
            batches: self.batches.saturating_sub(other.batches),
            bytes: self.bytes.saturating_sub(other.bytes),
            records: self.records.saturating_sub(other.records),
        }
    }
}

impl Memory {
    pub(super) fn amount(&self) -> Amount {
        self.classes.iter().fold(Amount::default(), |sum, waits| sum.and(waits.amount))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(|waits| waits.batches.is_empty())
    }

    /// Whether there would be room for it, had everything been given up that may be for its sake.
    pub(super) fn can_hold(&self, batch: &Batch, limits: &config::Queue) -> bool {
        let before = self.classes[..batch.class() as usize].iter();
        let kept = before.fold(Amount::of(batch), |sum, waits| sum.and(waits.amount));
        !kept.exceeds(limits)
    }

    pub(super) fn insert(&mut self, number: u64, batch: Batch) {
        let waits = &mut self.classes[batch.class() as usize];
        waits.amount = waits.amount.and(Amount::of(&batch));
        let at = waits.batches.partition_point(|(other, _)| *other < number);
        waits.batches.insert(at, (number, batch));
    }

    /// What came first.
    pub(super) fn first(&self) -> Option<(u64, &Batch)> {
        let firsts = self.classes.iter().filter_map(|waits| waits.batches.front());
        firsts.min_by_key(|(number, _)| *number).map(|(number, batch)| (*number, batch))
    }

    pub(super) fn take_first(&mut self) -> Option<(u64, Batch)> {
        let (number, batch) = self.first()?;
        let class = batch.class();
        self.remove(class, number).map(|batch| (number, batch))
    }

    pub(super) fn remove(&mut self, class: Class, number: u64) -> Option<Batch> {
        let waits = &mut self.classes[class as usize];
        let at = waits.batches.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        let (_, batch) = waits.batches.remove(at)?;
        waits.amount = waits.amount.less(Amount::of(&batch));
        Some(batch)
    }

    /// Gives up the oldest of the last class.
    pub(super) fn shed(&mut self) -> Option<Batch> {
        let (number, batch) = self.classes.iter().rev().find_map(|waits| waits.batches.front())?;
        let (number, class) = (*number, batch.class());
        self.remove(class, number)
    }
}
