//! Sealed batches wait here for the collector: bounded in bytes, on disk if so set, what matters least goes first where
//! there is no room, and every loss is counted.

mod batch;
mod class;
mod compression;
mod counters;
mod in_flight;
mod memory;
pub(crate) mod spool;
mod waiting;

use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{self, Signal};
use crate::lock::lock;

pub(crate) use batch::PREFIX_LEN;
pub use batch::{Batch, SealError};
pub use class::Class;
pub(crate) use counters::GRPC_CODES;
pub use counters::{Answer, Counters, Fault, Reason, Snapshot, Spooled};
pub use in_flight::InFlight;
pub use spool::SpoolError;
use waiting::{Phase, STALL, Stored, Waiting};

/// Keeps a setting such as "for ever" within what an `Instant` can hold.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most that the spool takes for its last writes, beyond the drain.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What lies between the pipeline and one signal's destination.
#[derive(Debug)]
pub struct Queue {
    signal: Signal,
    shared: Arc<Shared>,
    /// Set when closed: when the last batch must be gone.
    deadline: watch::Sender<Option<Instant>>,
    spool: Option<Spool>,
}

/// What the queue and its spool's thread both see.
#[derive(Debug)]
struct Shared {
    limits: config::Queue,
    counters: Arc<Counters>,
    waiting: Mutex<Waiting>,
    /// There is a batch to send, or the end.
    arrived: Notify,
    /// There is work for the spool's thread.
    work: Condvar,
}

#[derive(Debug)]
struct Spool {
    max_age: Duration,
    /// Set by the thread as its last act.
    ended: watch::Receiver<bool>,
}

/// How full the queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub batches: usize,
    /// As they will be sent: compressed.
    pub bytes: usize,
    /// Log records or spans.
    pub records: u64,
    /// Log records or spans that are on disk and in no memory.
    pub spooled: u64,
    /// Bytes of all that is on disk.
    pub spool_bytes: u64,
}

impl Queue {
    /// In memory alone.
    #[must_use]
    pub fn new(signal: Signal, limits: config::Queue) -> Self {
        let shared = Shared::new(limits, Counters::default(), Waiting::default());
        Self { signal, shared: Arc::new(shared), deadline: watch::Sender::new(None), spool: None }
    }

    /// Of this destination, with what the spool has kept for it: every batch is on disk before it is sent.
    pub fn open(
        signal: Signal,
        destination: &str,
        limits: config::Queue,
        spool: Option<&config::Spool>,
    ) -> Result<Self, SpoolError> {
        let Some(settings) = spool else { return Ok(Self::new(signal, limits)) };
        let (spooler, shared) = spool::open(signal, destination, limits, settings)?;
        let ended = spooler.start()?;
        let spool = Some(Spool { max_age: settings.max_age, ended });
        Ok(Self { signal, shared, deadline: watch::Sender::new(None), spool })
    }

    /// What its batches hold.
    #[must_use]
    pub fn signal(&self) -> Signal {
        self.signal
    }

    /// For how long a batch is kept, however often it fails; `None`: as long as the retries' settings say.
    #[must_use]
    pub fn keeps(&self) -> Option<Duration> {
        self.spool.as_ref().map(|spool| spool.max_age)
    }

    /// The counters of this queue and of what ships from it.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    #[must_use]
    pub fn depth(&self) -> Depth {
        let held = self.shared.lock().held();
        let spool = self.shared.counters.snapshot().spool.unwrap_or_default();
        Depth {
            batches: held.batches,
            bytes: held.bytes,
            records: held.records,
            spooled: spool.records,
            spool_bytes: spool.bytes,
        }
    }

    /// Never waits: makes room by dropping the oldest of the last class, be it the batch itself. What higher classes do
    /// not leave room for pushes out nothing.
    pub fn push(&self, batch: Batch) {
        debug_assert_eq!(batch.signal(), self.signal);
        let Shared { limits, counters, .. } = &*self.shared;
        counters.accept(batch.records());
        let mut waiting = self.shared.lock();
        if waiting.closed {
            counters.discard(Reason::Shutdown, batch.records());
            return;
        }
        let dropped = waiting.push(batch, limits);
        counters.discard(Reason::QueueFull, dropped);
        if dropped > 0 && !std::mem::replace(&mut waiting.overflowing, true) {
            tracing::error!(
                max_bytes = limits.max_bytes,
                "the export queue is full: the oldest {} are dropped and counted",
                items(self.signal)
            );
        }
        self.shared.changed(waiting);
        // With a spool too: the disk may be taking nothing.
        self.shared.arrived.notify_one();
    }

    /// Counts records that never became a [`Batch`].
    pub fn discard(&self, records: u32, reason: Reason) {
        self.shared.counters.accept(records);
        self.shared.counters.discard(reason, records);
    }

    /// What came first; `None` once closed and empty. With a spool also once closed and past the drain: what is left
    /// stays there.
    pub async fn pop(self: &Arc<Self>) -> Option<InFlight> {
        loop {
            let mut arrived = pin!(self.shared.arrived.notified());
            // Before the look into the queue: a push in between is not missed.
            arrived.as_mut().enable();
            let end = self.deadline.borrow().filter(|_| self.spool.is_some());
            if end.is_some_and(|end| Instant::now() >= end) {
                return None;
            }
            if let Some(taken) = self.take() {
                return Some(taken);
            }
            let is_unwritten = {
                let waiting = self.shared.lock();
                if waiting.is_over() {
                    return None;
                }
                !waiting.memory.is_empty()
            };
            // Whichever it is, there is a new look.
            match (end, is_unwritten) {
                (Some(end), _) => drop(timeout_at(end, arrived).await),
                (None, true) => drop(timeout(STALL, arrived).await),
                (None, false) => arrived.await,
            }
        }
    }

    /// What came first, if there is anything to send.
    fn take(self: &Arc<Self>) -> Option<InFlight> {
        let mut waiting = self.shared.lock();
        let (number, batch) = waiting.take()?;
        waiting.overflowing &= waiting.held().bytes > self.shared.limits.max_bytes / 2;
        // Before the lock is released: it is always somewhere.
        self.shared.counters.take(batch.records());
        // There may be room for more, or this was the last.
        let is_news = |stored: &Stored| stored.unread.batches > 0 || waiting.closed;
        if waiting.stored.as_ref().is_some_and(is_news) {
            self.shared.changed(waiting);
        }
        Some(InFlight::new(number, batch, Arc::clone(self)))
    }

    /// Takes no more batches; those waiting have `drain` from now on.
    pub fn close(&self) {
        let mut waiting = self.shared.lock();
        if !waiting.closed {
            waiting.closed = true;
            self.deadline.send_replace(Some(Instant::now() + self.shared.limits.drain.min(DRAIN_MAX)));
        }
        self.shared.changed(waiting);
        self.shared.arrived.notify_waiters();
    }

    /// Closed, and nobody sends any more: waits until the spool has written down what is left.
    pub async fn finished(&self) {
        let Some(spool) = &self.spool else { return };
        self.end();
        let mut ended = spool.ended.clone();
        if timeout(LAST_WRITES, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::error!("the spool's disk does not answer: what it has not taken is lost");
        }
    }

    /// Becomes `Some` with [`close`](Self::close).
    pub(crate) fn deadline(&self) -> watch::Receiver<Option<Instant>> {
        self.deadline.subscribe()
    }

    /// As [`Waiting::keeps`].
    fn keeps_batch(&self, number: u64, is_whole: bool) -> bool {
        self.shared.lock().keeps(number, is_whole)
    }

    /// A batch comes back from its sender with records that are not settled.
    fn land(&self, number: u64, batch: &Batch, unsettled: u32) {
        let Shared { limits, counters, .. } = &*self.shared;
        let mut waiting = self.shared.lock();
        match waiting.land(number, batch, unsettled, limits) {
            waiting::Landing::Settled => {}
            waiting::Landing::Back { dropped } => {
                counters.put_back(unsettled);
                counters.discard(Reason::QueueFull, dropped);
            }
            waiting::Landing::Kept => counters.put_back(unsettled),
            waiting::Landing::Lost => counters.lose(Reason::Shutdown, unsettled),
        }
        self.shared.changed(waiting);
        if unsettled > 0 {
            // One for the batch, or all for the end.
            self.shared.arrived.notify_one();
            self.shared.arrived.notify_waiters();
        }
    }

    fn end(&self) {
        let mut waiting = self.shared.lock();
        waiting.closed = true;
        if let Some(stored) = &mut waiting.stored {
            stored.phase = Phase::Ended;
        }
        self.shared.changed(waiting);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn new(limits: config::Queue, counters: Counters, waiting: Waiting) -> Self {
        Self {
            limits,
            counters: Arc::new(counters),
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            work: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    /// Tells the spool's thread.
    fn changed(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let Some(stored) = &mut waiting.stored else { return };
        stored.has_news = true;
        self.count(stored);
        drop(waiting);
        self.work.notify_one();
    }

    fn count(&self, stored: &Stored) {
        self.counters.set_spooled(stored.spooled());
    }
}

/// What a signal consists of, as our log has it.
pub(crate) fn items(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "log records",
        Signal::Traces => "spans",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compression, Protocol};

    fn queue(max_bytes: usize, max_records: Option<usize>) -> Arc<Queue> {
        Arc::new(Queue::new(Signal::Logs, config::Queue { max_bytes, max_records, drain: Duration::from_secs(5) }))
    }

    fn batch(records: u32, len: usize) -> Batch {
        Batch::seal(Class::Exec, records, &vec![0; len], Protocol::HttpProtobuf, Compression::None).unwrap()
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
        assert_eq!(queue.depth(), Depth { batches: 2, bytes: 200, records: 7, ..Depth::default() });
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 3)]);
        let third = queue.pop().await.unwrap();
        assert_eq!(third.batch().records(), 3);
        queue.close();
        let fourth = queue.pop().await.unwrap();
        assert_eq!(fourth.batch().records(), 4);
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
    async fn the_last_class_goes_first_and_the_order_stays_that_of_arrival() {
        let queue = queue(500, None);
        let of = |class, records, len| {
            Batch::seal(class, records, &vec![0; len], Protocol::HttpProtobuf, Compression::None).unwrap()
        };
        for (class, records) in [(Class::Exit, 1), (Class::Exec, 2), (Class::Exit, 4), (Class::Note, 8)] {
            queue.push(of(class, records, 100));
        }
        // Pushes out the older exit, then the newer one.
        queue.push(of(Class::Exec, 16, 200));
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 1)]);
        queue.push(of(Class::Exec, 32, 100));
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 5)]);
        // Less than all that is there: dropped itself. A note makes the oldest exec go.
        queue.push(of(Class::Exit, 64, 1));
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 69)]);
        queue.push(of(Class::Note, 128, 50));
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 71)]);
        // There would be room if the notes went, which they do not: nothing else goes either.
        queue.push(of(Class::Exec, 256, 400));
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 71 + 256)]);
        queue.close();
        let mut sent = Vec::new();
        while let Some(mut taken) = queue.pop().await {
            sent.push(taken.batch().records());
            taken.deliver(u32::MAX, 0);
        }
        assert_eq!(sent, [8, 16, 32, 128]);
    }

    #[tokio::test]
    async fn what_the_guard_did_goes_last() {
        let queue = queue(200, None);
        for (class, records) in [(Class::Enforcement, 1), (Class::Note, 2), (Class::Exec, 4), (Class::Enforcement, 8)] {
            queue.push(Batch::seal(class, records, &[0; 100], Protocol::HttpProtobuf, Compression::None).unwrap());
        }
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 6)]);
    }

    #[tokio::test]
    async fn hits_go_before_exits() {
        let queue = queue(200, None);
        for (class, records) in [(Class::Probe, 1), (Class::Exit, 2), (Class::Exit, 4), (Class::Probe, 8)] {
            queue.push(Batch::seal(class, records, &[0; 100], Protocol::HttpProtobuf, Compression::None).unwrap());
        }
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 9)]);
    }

    #[tokio::test]
    async fn what_comes_back_unsettled_goes_to_its_place_or_ends_with_the_drain() {
        let queue = queue(250, None);
        for records in [1, 2] {
            queue.push(batch(records, 100));
        }
        let (first, second) = (queue.pop().await.unwrap(), queue.pop().await.unwrap());
        drop(second);
        drop(first);
        assert_eq!(queue.counters().snapshot().in_flight, 0);
        let first = queue.pop().await.unwrap();
        assert_eq!(first.batch().records(), 1);
        // There is no room for it any more, and it is the oldest.
        queue.push(batch(4, 100));
        drop(first);
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 1)]);
        let second = queue.pop().await.unwrap();
        queue.close();
        drop(second);
        assert_eq!(dropped(&queue), [(Reason::QueueFull, 1), (Reason::Shutdown, 2)]);
        assert_eq!(queue.depth().records, 4);
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_queue_does_not_push_out_the_others() {
        let queue = queue(100, Some(10));
        queue.push(batch(1, 60));
        queue.push(batch(2, 101));
        queue.push(batch(11, 1));
        assert_eq!(queue.depth(), Depth { batches: 1, bytes: 60, records: 1, ..Depth::default() });
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
        let queue = queue(1_000, None);
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await.map(|taken| taken.batch().records()) })
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
