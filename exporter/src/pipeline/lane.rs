//! Records of one signal, on their way from the encoder to the console and to the queues of their destinations.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::JoinHandle;

use super::PipelineError;
use crate::config::{self, Config, Export, Signal};
use crate::console::Console;
use crate::model::batch::{Accumulators, Request};
use crate::queue::{Batch, Class, Counters, Queue, Reason, Snapshot};
use crate::ship::{self, Replacement, Shipper, json};
use crate::telemetry::{Delivery, Shipped};

pub(super) struct Lane {
    signal: Signal,
    /// By class: a request has one only, so that the queue can tell what to keep.
    collected: [Accumulators; Class::ALL.len()],
    /// Records that were ever collected.
    pub(super) created: u64,
    /// When the first record came into the accumulators.
    oldest: Option<Instant>,
    delay: Duration,
    limits: config::Queue,
    destinations: Vec<Destination>,
    /// They are shipped to no longer, but for what waited.
    leaving: Vec<Leaving>,
}

/// A destination that gets no more.
struct Leaving {
    name: String,
    counters: Arc<Counters>,
    /// Ends with its drain.
    task: JoinHandle<()>,
}

/// What a lane changes to, ready to be taken up.
pub(super) struct Prepared {
    /// Of those that stay, by their index.
    changed: Vec<(usize, Export, Replacement)>,
    /// Their names.
    stays: HashSet<String>,
    added: Vec<Destination>,
}

struct Destination {
    name: String,
    export: Export,
    queue: Arc<Queue>,
    shipper: Shipper,
}

impl Lane {
    /// Starts the senders, if there is somewhere to send to. Within a tokio runtime only.
    pub(super) fn start(signal: Signal, config: &Config) -> Result<Self, PipelineError> {
        let (batch, limits) = match signal {
            Signal::Logs => (config.batch, config.queue),
            Signal::Traces => (config.span_batch, config.span_queue),
        };
        let destinations =
            config.exports(signal).map(|(name, export)| Destination::start(name, signal, export, limits, config));
        Ok(Self {
            signal,
            collected: Class::ALL.map(|class| Accumulators::new(class.scope(), batch)),
            created: 0,
            oldest: None,
            delay: batch.delay,
            limits,
            destinations: destinations.collect::<Result<_, _>>()?,
            leaving: Vec::new(),
        })
    }

    /// Other destinations, or the same with other settings. Within a tokio runtime only.
    pub(super) fn prepare(&self, config: &Config) -> Result<Prepared, PipelineError> {
        let mut prepared = Prepared { changed: Vec::new(), stays: HashSet::new(), added: Vec::new() };
        for (name, export) in config.exports(self.signal) {
            let known = self.destinations.iter().enumerate().find(|(_, known)| known.name == name);
            match known {
                Some((index, known)) => {
                    prepared.stays.insert(name.to_owned());
                    if known.export != *export {
                        prepared.changed.push((index, export.clone(), known.shipper.prepare(export)?));
                    }
                }
                None => prepared.added.push(Destination::start(name, self.signal, export, self.limits, config)?),
            }
        }
        Ok(prepared)
    }

    pub(super) fn reload(&mut self, mut prepared: Prepared) {
        for (index, export, replacement) in prepared.changed.drain(..) {
            let destination = &mut self.destinations[index];
            destination.shipper.replace(replacement);
            destination.export = export;
        }
        let (stay, leave): (_, Vec<_>) =
            self.destinations.drain(..).partition(|known| prepared.stays.contains(&known.name));
        self.destinations = stay;
        self.destinations.append(&mut prepared.added);
        self.leaving.extend(leave.into_iter().map(Destination::leave));
    }

    pub(super) fn is_shipped(&self) -> bool {
        !self.destinations.is_empty()
    }

    /// Whether anybody takes records.
    pub(super) fn is_wanted(&self, console: &Console) -> bool {
        self.is_shipped() || console.is_jsonl(self.signal)
    }

    /// What our own metrics need to know of the senders.
    pub(super) fn shipped(&self) -> impl Iterator<Item = Shipped> + '_ {
        let shipped = |to: &Destination| Shipped::new(&to.name, &to.queue, &to.export, self.limits.max_bytes);
        self.destinations.iter().map(shipped)
    }

    /// How each destination does.
    pub(super) fn deliveries(&self) -> impl Iterator<Item = Delivery> {
        self.destinations.iter().map(|to| Delivery {
            destination: to.name.clone(),
            signal: self.signal,
            state: to.shipper.state().into(),
        })
    }

    /// What became of everything, for each destination once: one that has left may have come back.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&str, Snapshot)> {
        let staying = self.destinations.iter().map(|to| (to.name.as_str(), to.queue.counters()));
        let leaving = self.leaving.iter().map(|to| (to.name.as_str(), &to.counters));
        let mut sums: Vec<(&str, Snapshot)> = Vec::new();
        for (name, counters) in staying.chain(leaving) {
            let counted = counters.snapshot();
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = counted.and(sum),
                None => sums.push((name, counted)),
            }
        }
        sums.into_iter()
    }

    /// The record that `write` appends, under the resource of this key.
    pub(super) fn push(
        &mut self,
        now: Instant,
        class: Class,
        (key, resource): (u64, &Arc<[u8]>),
        console: &mut Console,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.created += 1;
        let collected = &mut self.collected[class as usize];
        let before = collected.push(key, resource, write);
        let full = if collected.is_full() { collected.take() } else { None };
        self.oldest.get_or_insert(now);
        for request in [before, full].into_iter().flatten() {
            self.hand_on(class, request, console);
        }
    }

    pub(super) fn close_due(&mut self, now: Instant, console: &mut Console) {
        if self.oldest.is_some_and(|oldest| now.duration_since(oldest) >= self.delay) {
            self.close(console);
        }
    }

    /// Closes what is being collected of one class: the others go on.
    pub(super) fn close_class(&mut self, class: Class, console: &mut Console) {
        if let Some(request) = self.collected[class as usize].take() {
            self.hand_on(class, request, console);
        }
    }

    /// Closes the requests that are being collected.
    pub(super) fn close(&mut self, console: &mut Console) {
        self.oldest = None;
        for class in Class::ALL {
            self.close_class(class, console);
        }
    }

    fn hand_on(&mut self, class: Class, request: Request, console: &mut Console) {
        let Request { records, bytes } = &request;
        if console.is_jsonl(self.signal) {
            match json::request(self.signal, bytes) {
                Ok(line) => console.json(&line, self.signal, *records),
                Err(error) => {
                    tracing::error!(%error, records, "records can't be printed as JSON");
                    console.lose(self.signal, *records);
                }
            }
        }
        // Destinations that take the same form share the bytes.
        let mut sealed: Vec<Batch> = Vec::new();
        for Destination { queue, shipper, .. } in &self.destinations {
            let (protocol, compression) = shipper.form();
            let alike = sealed.iter().find(|batch| (batch.protocol(), batch.compression()) == (protocol, compression));
            let batch = match alike {
                Some(batch) => Ok(batch.clone()),
                None => Batch::seal(class, *records, bytes, protocol, compression),
            };
            match batch {
                Ok(batch) => {
                    sealed.push(batch.clone());
                    queue.push(batch);
                }
                Err(error) => {
                    tracing::error!(%error, records, "records can't be encoded, and are counted");
                    queue.discard(*records, Reason::Encoding);
                }
            }
        }
        self.collected[class as usize].reuse(request);
    }

    /// Takes no more: what waits has its drain from now on.
    pub(super) fn end(&self) {
        for destination in &self.destinations {
            destination.queue.close();
        }
    }

    /// Waits until everything is settled, or the drain is over.
    pub(super) async fn ended(&mut self) {
        // Side by side: a disk that hangs holds up its own destination only.
        join_all(self.destinations.iter_mut().map(Destination::ended)).await;
        for Leaving { name, task, .. } in &mut self.leaving {
            if let Err(error) = task.await {
                tracing::error!(destination = name, %error, "the sender failed");
            }
        }
    }
}

impl Destination {
    fn start(
        name: &str,
        signal: Signal,
        export: &Export,
        limits: config::Queue,
        config: &Config,
    ) -> Result<Self, PipelineError> {
        let queue = Arc::new(Queue::open(signal, name, limits, config.spool.as_ref())?);
        let shipper = ship::spawn(export, Arc::clone(&queue))?;
        Ok(Self { name: name.to_owned(), export: export.clone(), queue, shipper })
    }

    /// Takes no more; what waits has its drain.
    fn leave(mut self) -> Leaving {
        self.queue.close();
        let (name, counters) = (self.name.clone(), Arc::clone(self.queue.counters()));
        Leaving { name, counters, task: tokio::spawn(async move { self.ended().await }) }
    }

    /// Waits for the end of its closed queue.
    async fn ended(&mut self) {
        self.shipper.ended().await;
        self.queue.finished().await;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // They were not taken up.
        for destination in &self.added {
            destination.queue.close();
        }
    }
}
