//! Records of one signal, on their way from the encoder to the console and to the queue of their destination.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::config::{self, Export, Signal};
use crate::console::Console;
use crate::model::batch::{Accumulators, Request};
use crate::queue::{Batch, Queue, Reason, Snapshot};
use crate::ship::{self, ShipError, json};
use crate::telemetry::Shipped;

pub(super) struct Lane {
    signal: Signal,
    accumulators: Accumulators,
    /// When the first record came into the accumulators.
    oldest: Option<Instant>,
    delay: Duration,
    destination: Option<Destination>,
}

struct Destination {
    export: Export,
    queue: Arc<Queue>,
    shipper: JoinHandle<()>,
}

impl Lane {
    /// Starts the sender, if there is somewhere to send to. Within a tokio runtime only.
    pub(super) fn start(
        signal: Signal,
        export: Option<&Export>,
        batch: config::Batch,
        queue: config::Queue,
    ) -> Result<Self, ShipError> {
        let destination = export.map(|export| {
            let queue = Arc::new(Queue::new(signal, queue));
            let shipper = ship::spawn(export, Arc::clone(&queue))?;
            Ok(Destination { export: export.clone(), queue, shipper })
        });
        Ok(Self {
            signal,
            accumulators: Accumulators::new(batch),
            oldest: None,
            delay: batch.delay,
            destination: destination.transpose()?,
        })
    }

    pub(super) fn is_shipped(&self) -> bool {
        self.destination.is_some()
    }

    /// Whether anybody takes records.
    pub(super) fn is_wanted(&self, console: &Console) -> bool {
        self.is_shipped() || console.is_jsonl(self.signal)
    }

    /// What our own metrics need to know of the sender.
    pub(super) fn shipped(&self) -> Option<Shipped> {
        let Destination { export, queue, .. } = self.destination.as_ref()?;
        Some(Shipped { queue: Arc::clone(queue), protocol: export.protocol })
    }

    pub(super) fn counters(&self) -> Option<Snapshot> {
        Some(self.destination.as_ref()?.queue.counters().snapshot())
    }

    /// The record that `write` appends, under the resource of this key.
    pub(super) fn push(
        &mut self,
        now: Instant,
        (key, resource): (u64, &Arc<[u8]>),
        console: &mut Console,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(request) = self.accumulators.push(key, resource, write) {
            self.hand_on(&request, console);
            self.oldest = Some(now);
        } else {
            self.oldest.get_or_insert(now);
        }
        if self.accumulators.is_full() {
            self.close(console);
        }
    }

    pub(super) fn close_due(&mut self, now: Instant, console: &mut Console) {
        if self.oldest.is_some_and(|oldest| now.duration_since(oldest) >= self.delay) {
            self.close(console);
        }
    }

    /// Closes the request that is being collected.
    pub(super) fn close(&mut self, console: &mut Console) {
        self.oldest = None;
        if let Some(request) = self.accumulators.take() {
            self.hand_on(&request, console);
        }
    }

    fn hand_on(&mut self, request: &Request, console: &mut Console) {
        let Request { records, bytes } = request;
        if console.is_jsonl(self.signal) {
            match json::request(self.signal, bytes) {
                Ok(line) => console.json(&line, self.signal, *records),
                Err(error) => {
                    tracing::error!(%error, records, "records can't be printed as JSON");
                    console.lose(self.signal, *records);
                }
            }
        }
        if let Some(Destination { export, queue, .. }) = &self.destination {
            match Batch::seal(self.signal, *records, bytes, export.protocol, export.compression) {
                Ok(batch) => queue.push(batch),
                Err(error) => {
                    tracing::error!(%error, records, "records can't be encoded, and are counted");
                    queue.discard(*records, Reason::Encoding);
                }
            }
        }
    }

    /// Takes no more: what waits has its drain from now on.
    pub(super) fn end(&self) {
        if let Some(destination) = &self.destination {
            destination.queue.close();
        }
    }

    /// Waits until everything is settled, or the drain is over.
    pub(super) async fn ended(&mut self) {
        if let Some(destination) = &mut self.destination
            && let Err(error) = (&mut destination.shipper).await
        {
            tracing::error!(%error, "the sender failed");
        }
    }
}
