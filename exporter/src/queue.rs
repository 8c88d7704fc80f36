//! Sealed batches wait here for the collector: bounded in bytes, the oldest go first, and every loss is counted.

mod batch;
mod counters;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::{self, Signal};

pub(crate) use batch::PREFIX_LEN;
pub use batch::{Batch, SealError};
pub(crate) use counters::GRPC_CODES;
pub use counters::{Answer, Counters, Reason, Snapshot};

/// Keeps a setting such as "for ever" within what an `Instant` can hold.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What lies between the pipeline and one signal's destination.
#[derive(Debug)]
pub struct Queue {
    signal: Signal,
    limits: config::Queue,
    counters: Arc<Counters>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    /// Set when closed: when the last batch must be gone.
    deadline: watch::Sender<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    bytes: usize,
    records: u64,
    closed: bool,
    overflowing: bool,
}

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    pub batches: usize,
    /// As they will be sent: compressed.
    pub bytes: usize,
    /// Log records or spans.
    pub records: u64,
}

impl Queue {
    #[must_use]
    pub fn new(signal: Signal, limits: config::Queue) -> Self {
        Self {
            signal,
            limits,
            counters: Arc::default(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            deadline: watch::Sender::new(None),
        }
    }

    /// What its batches hold.
    #[must_use]
    pub fn signal(&self) -> Signal {
        self.signal
    }

    /// The counters of this queue and of what ships from it.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    #[must_use]
    pub fn depth(&self) -> Depth {
        let waiting = self.lock();
        Depth { batches: waiting.batches.len(), bytes: waiting.bytes, records: waiting.records }
    }

    /// Never waits: makes room by dropping the oldest. A batch larger than the whole queue is dropped itself.
    pub fn push(&self, batch: Batch) {
        debug_assert_eq!(batch.signal(), self.signal);
        self.counters.accept(batch.records());
        let mut waiting = self.lock();
        if waiting.closed {
            self.counters.discard(Reason::Shutdown, batch.records());
            return;
        }
        let len = batch.body().len();
        let alone = Waiting { bytes: len, records: batch.records().into(), ..Waiting::default() };
        let dropped = if alone.exceeds(&self.limits) {
            self.counters.discard(Reason::QueueFull, batch.records());
            true
        } else {
            waiting.bytes += len;
            waiting.records += u64::from(batch.records());
            waiting.batches.push_back(batch);
            let mut dropped = false;
            while waiting.exceeds(&self.limits)
                && let Some(oldest) = waiting.pop()
            {
                self.counters.discard(Reason::QueueFull, oldest.records());
                dropped = true;
            }
            dropped
        };
        if dropped && !waiting.overflowing {
            waiting.overflowing = true;
            tracing::error!(
                max_bytes = self.limits.max_bytes,
                "the export queue is full: the oldest {} are dropped and counted",
                items(self.signal)
            );
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Counts records that never became a [`Batch`].
    pub fn discard(&self, records: u32, reason: Reason) {
        self.counters.accept(records);
        self.counters.discard(reason, records);
    }

    /// The oldest batch, from now on in flight; `None` once closed and empty.
    pub async fn pop(&self) -> Option<Batch> {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Before the look into the queue: a push in between is not missed.
            arrived.as_mut().enable();
            {
                let mut waiting = self.lock();
                if let Some(batch) = waiting.pop() {
                    self.counters.take(batch.records());
                    waiting.overflowing &= waiting.bytes > self.limits.max_bytes / 2;
                    return Some(batch);
                }
                if waiting.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Takes no more batches; those waiting have `drain` from now on.
    pub fn close(&self) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.closed = true;
            self.deadline.send_replace(Some(Instant::now() + self.limits.drain.min(DRAIN_MAX)));
        }
        drop(waiting);
        self.arrived.notify_waiters();
    }

    /// Becomes `Some` with [`close`](Self::close).
    pub(crate) fn deadline(&self) -> watch::Receiver<Option<Instant>> {
        self.deadline.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a signal consists of, as our log has it.
pub(crate) fn items(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "log records",
        Signal::Traces => "spans",
    }
}

impl Waiting {
    fn exceeds(&self, limits: &config::Queue) -> bool {
        self.bytes > limits.max_bytes || limits.max_records.is_some_and(|max| self.records > max as u64)
    }

    fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.body().len();
        self.records -= u64::from(batch.records());
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compression, Protocol};

    fn queue(max_bytes: usize, max_records: Option<usize>) -> Queue {
        Queue::new(Signal::Logs, config::Queue { max_bytes, max_records, drain: Duration::from_secs(5) })
    }

    fn batch(records: u32, len: usize) -> Batch {
        Batch::seal(Signal::Logs, records, &vec![0; len], Protocol::HttpProtobuf, Compression::None).unwrap()
    }

    fn dropped(queue: &Queue) -> Vec<(Reason, u64)> {
        queue.counters().snapshot().dropped.into_iter().collect()
    }

    #[tokio::test]
    async fn the_oldest_go_when_the_bytes_are_used_up() {
        let queue = queue(250, None);
        for records in 1..=4 {
            queue.push(batch(records, 100));
        }
        assert_eq!(queue.depth(), Depth { batches: 2, bytes: 200, records: 7 });
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 3)]);
        assert_eq!(queue.pop().await.unwrap().records(), 3);
        queue.close();
        assert_eq!(queue.pop().await.unwrap().records(), 4);
        assert!(queue.pop().await.is_none());
        let counts = queue.counters().snapshot();
        assert_eq!((counts.accepted, counts.in_flight), (10, 7));
    }

    #[tokio::test]
    async fn the_oldest_go_when_the_records_are_used_up() {
        let queue = queue(1_000, Some(5));
        queue.push(batch(3, 1));
        queue.push(batch(2, 1));
        queue.push(batch(1, 1));
        assert_eq!(queue.depth().records, 3);
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 3)]);
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_queue_does_not_push_out_the_others() {
        let queue = queue(100, Some(10));
        queue.push(batch(1, 60));
        queue.push(batch(2, 101));
        queue.push(batch(11, 1));
        assert_eq!(queue.depth(), Depth { batches: 1, bytes: 60, records: 1 });
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 13)]);
    }

    #[tokio::test]
    async fn what_comes_after_the_close_is_counted() {
        let queue = queue(100, None);
        queue.close();
        queue.push(batch(2, 1));
        queue.discard(3, Reason::Encoding);
        assert_eq!(dropped(&queue), [(Reason::Shutdown, 2), (Reason::Encoding, 3)]);
        assert_eq!(queue.counters().snapshot().accepted, 5);
    }

    #[tokio::test]
    async fn every_waiting_consumer_gets_a_batch_or_the_end() {
        let queue = Arc::new(queue(1_000, None));
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await.map(|batch| batch.records()) })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.push(batch(1, 1));
        queue.push(batch(2, 1));
        queue.close();
        let mut got = Vec::new();
        for consumer in consumers {
            got.push(consumer.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [None, Some(1), Some(2)]);
    }
}
