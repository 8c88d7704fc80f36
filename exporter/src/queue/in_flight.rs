//! A batch that was taken out of its queue: every record of it is settled once, here and nowhere else.

use std::sync::Arc;

use super::{Batch, Fault, Queue, Reason};

/// Dropped with records that are not settled, it goes back to its place. Once the queue is closed these could not be sent
/// before the drain was over: they stay in the spool, or are lost.
#[derive(Debug)]
pub struct InFlight {
    number: u64,
    batch: Batch,
    queue: Arc<Queue>,
    unsettled: u32,
    fault: Option<Fault>,
}

impl InFlight {
    /// Counted as such already.
    pub(super) fn new(number: u64, batch: Batch, queue: Arc<Queue>) -> Self {
        Self { number, unsettled: batch.records(), batch, queue, fault: None }
    }

    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The collector has taken these, but for `rejected` of them.
    pub fn deliver(&mut self, records: u32, rejected: u32) {
        let records = self.settle(records);
        if rejected > 0 {
            self.fault = Some(Fault::Rejected);
        }
        self.queue.counters().deliver(records, rejected.min(records));
    }

    /// These will not be sent again.
    pub fn lose(&mut self, reason: Reason, records: u32) {
        let records = self.settle(records);
        self.fault = Some(Fault::Dropped(reason));
        self.queue.counters().lose(reason, records);
    }

    /// It is not settled, and goes back to where it was: nothing is known of it yet.
    pub(crate) fn goes_back(&self) -> bool {
        self.unsettled > 0 && self.queue.keeps_batch(self.number, self.unsettled == self.batch.records())
    }

    /// What was wrong with it last; that it is not settled, too.
    pub(crate) fn fault(&self) -> Option<Fault> {
        if self.unsettled > 0 { Some(Fault::Dropped(Reason::Shutdown)) } else { self.fault }
    }

    /// No more than there are.
    fn settle(&mut self, records: u32) -> u32 {
        let records = records.min(self.unsettled);
        self.unsettled -= records;
        records
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.queue.land(self.number, &self.batch, self.unsettled);
    }
}
