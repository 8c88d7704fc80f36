//! Records of one signal, on their way from the encoder to the console and to the queues of their destinations.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt as _, join_all};
use tokio::task::JoinHandle;

use super::PipelineError;
use crate::config::{self, Config, Export, Signal};
use crate::console::Console;
use crate::model::batch::{Accumulators, Request};
use crate::queue::{Batch, Class, Queue, Reason, Snapshot};
use crate::ship::{Idle, Replacement, ShipError, Shipper, json};
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
    /// By name, what became of all that destinations were given that have left.
    gone: BTreeMap<String, Snapshot>,
}

/// A destination that gets no more.
struct Leaving {
    name: String,
    export: Export,
    queue: Arc<Queue>,
    /// Ends with its drain.
    task: JoinHandle<()>,
}

type Prepare = Box<dyn FnOnce() -> Result<Replacement, ShipError> + Send>;

/// What a lane is to change to, and what is to be opened for it.
pub(super) struct Plan {
    signal: Signal,
    limits: config::Queue,
    spool: Option<config::Spool>,
    /// Of those that stay, by their index.
    changed: Vec<(usize, Export, Prepare)>,
    /// Their names.
    stays: HashSet<String>,
    added: Vec<(String, Export)>,
}

/// What a lane changes to, ready to be taken up. Dropping it leaves what is in the spools where it is.
pub(super) struct Prepared {
    changed: Vec<(usize, Export, Replacement)>,
    stays: HashSet<String>,
    added: Vec<Opened>,
}

struct Destination {
    name: String,
    export: Export,
    queue: Arc<Queue>,
    shipper: Shipper,
}

/// A destination that nothing is shipped to yet.
struct Opened {
    name: String,
    export: Export,
    queue: Arc<Queue>,
    idle: Idle,
}

impl Plan {
    /// Reads files, and all that is in the spools: takes a while. Within a tokio runtime only.
    pub(super) fn open(self) -> Result<Prepared, PipelineError> {
        let Self { signal, limits, spool, changed, stays, added } = self;
        let replaced = changed.into_iter().map(|(index, export, prepare)| Ok((index, export, prepare()?)));
        let opened =
            added.into_iter().map(|(name, export)| Opened::new(name, export, (signal, limits, spool.as_ref())));
        Ok(Prepared {
            changed: replaced.collect::<Result<_, ShipError>>()?,
            stays,
            added: opened.collect::<Result<_, PipelineError>>()?,
        })
    }
}

impl Lane {
    /// Starts the senders, if there is somewhere to send to. Within a tokio runtime only.
    pub(super) fn start(signal: Signal, config: &Config) -> Result<Self, PipelineError> {
        let (batch, limits) = match signal {
            Signal::Logs => (config.batch, config.queue),
            Signal::Traces => (config.span_batch, config.span_queue),
        };
        let with = (signal, limits, config.spool.as_ref());
        let destinations = config
            .exports(signal)
            .map(|(name, export)| Ok(Opened::new(name.to_owned(), export.clone(), with)?.start()));
        Ok(Self {
            signal,
            collected: Class::ALL.map(|class| Accumulators::new(class.scope(), batch)),
            created: 0,
            oldest: None,
            delay: batch.delay,
            limits,
            destinations: destinations.collect::<Result<_, PipelineError>>()?,
            leaving: Vec::new(),
            gone: BTreeMap::new(),
        })
    }

    /// Other destinations, or the same with other settings.
    pub(super) fn plan(&self, config: &Config) -> Plan {
        let mut plan = Plan {
            signal: self.signal,
            limits: self.limits,
            spool: config.spool.clone(),
            changed: Vec::new(),
            stays: HashSet::new(),
            added: Vec::new(),
        };
        for (name, export) in config.exports(self.signal) {
            let known = self.destinations.iter().enumerate().find(|(_, known)| known.name == name);
            match known {
                Some((index, known)) => {
                    plan.stays.insert(name.to_owned());
                    if known.export != *export {
                        plan.changed.push((index, export.clone(), Box::new(known.shipper.prepare(export))));
                    }
                }
                None => plan.added.push((name.to_owned(), export.clone())),
            }
        }
        plan
    }

    /// What was [planned](Self::plan) since the last change. Within a tokio runtime only.
    pub(super) fn reload(&mut self, Prepared { changed, stays, added }: Prepared) {
        for (index, export, replacement) in changed {
            let destination = &mut self.destinations[index];
            destination.shipper.replace(replacement);
            destination.export = export;
        }
        let (stay, leave): (_, Vec<_>) = self.destinations.drain(..).partition(|known| stays.contains(&known.name));
        self.destinations = stay;
        self.destinations.extend(added.into_iter().map(Opened::start));
        self.leaving.extend(leave.into_iter().map(Destination::leave));
    }

    /// Forgets those whose drain is over, but for what became of everything; whether there were any.
    pub(super) fn settle(&mut self) -> bool {
        let (over, draining): (Vec<_>, _) = self.leaving.drain(..).partition(|leaving| leaving.task.is_finished());
        self.leaving = draining;
        let is_news = !over.is_empty();
        for Leaving { name, queue, task, .. } in over {
            if let Some(Err(error)) = task.now_or_never() {
                tracing::error!(destination = name, %error, "the sender failed");
            }
            let counted = queue.counters().snapshot();
            let sum = self.gone.remove(&name).unwrap_or_default();
            self.gone.insert(name, counted.and(&sum));
        }
        is_news
    }

    pub(super) fn is_shipped(&self) -> bool {
        !self.destinations.is_empty()
    }

    /// Whether anybody takes records.
    pub(super) fn is_wanted(&self, console: &Console) -> bool {
        self.is_shipped() || console.is_jsonl(self.signal)
    }

    /// What our own metrics need to know of the senders, and of those that are shipped to no longer until all of theirs is
    /// settled.
    pub(super) fn shipped(&self) -> impl Iterator<Item = Shipped> + '_ {
        let all = self.destinations.iter().map(|to| (&to.name, &to.queue, &to.export));
        let all = all.chain(self.leaving.iter().rev().map(|to| (&to.name, &to.queue, &to.export)));
        let mut shipped: Vec<Shipped> = Vec::new();
        for (name, queue, export) in all {
            // One that has come back before the other was settled is one with it.
            if let Some(known) = shipped.iter_mut().find(|known| known.destination == *name) {
                known.earlier.push(Arc::clone(queue));
                continue;
            }
            let gone = self.gone.get(name).cloned().unwrap_or_default();
            shipped.push(Shipped { gone, ..Shipped::new(name, queue, export, self.limits.max_bytes) });
        }
        shipped.into_iter()
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
        let staying = self.destinations.iter().map(|to| (to.name.as_str(), to.queue.counters().snapshot()));
        let leaving = self.leaving.iter().rev().map(|to| (to.name.as_str(), to.queue.counters().snapshot()));
        let gone = self.gone.iter().map(|(name, counted)| (name.as_str(), counted.clone()));
        let mut sums: Vec<(&str, Snapshot)> = Vec::new();
        for (name, counted) in staying.chain(leaving).chain(gone) {
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = std::mem::take(sum).and(&counted),
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

impl Opened {
    fn new(
        name: String,
        export: Export,
        (signal, limits, spool): (Signal, config::Queue, Option<&config::Spool>),
    ) -> Result<Self, PipelineError> {
        let queue = Arc::new(Queue::open(signal, &name, limits, spool)?);
        let idle = Idle::new(&export, Arc::clone(&queue))?;
        Ok(Self { name, export, queue, idle })
    }

    fn start(self) -> Destination {
        let Self { name, export, queue, idle } = self;
        Destination { name, export, queue, shipper: idle.start() }
    }
}

impl Destination {
    /// Takes no more; what waits has its drain.
    fn leave(mut self) -> Leaving {
        self.queue.close();
        let (name, export, queue) = (self.name.clone(), self.export.clone(), Arc::clone(&self.queue));
        Leaving { name, export, queue, task: tokio::spawn(async move { self.ended().await }) }
    }

    /// Waits for the end of its closed queue.
    async fn ended(&mut self) {
        self.shipper.ended().await;
        self.queue.finished().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Compression, Protocol, Spool};
    use crate::ship::tests::collector::{Answer, Collector, poll};

    fn to(destinations: &[(&str, &Collector)], spool: Option<&Spool>) -> Config {
        let destinations = destinations.iter().map(|(name, collector)| {
            let endpoint = format!("http://{}/v1/logs", collector.address).parse().unwrap();
            config::Destination { name: (*name).to_owned(), logs: Some(Export::to(endpoint)), traces: None }
        });
        let queue = config::Queue { drain: Duration::from_secs(20), ..config::Queue::default() };
        Config { destinations: destinations.collect(), queue, spool: spool.cloned(), ..Config::default() }
    }

    fn push(queue: &Queue, records: u32) {
        queue.push(Batch::seal(Class::Exec, records, b"", Protocol::HttpProtobuf, Compression::None).unwrap());
    }

    fn change(lane: &mut Lane, config: &Config) {
        lane.reload(lane.plan(config).open().unwrap());
    }

    fn counted(lane: &Lane) -> Vec<(String, u64, u64)> {
        lane.counters().map(|(name, counted)| (name.to_owned(), counted.accepted, counted.exported)).collect()
    }

    fn names(lane: &Lane) -> Vec<String> {
        lane.shipped().map(|shipped| shipped.destination).collect()
    }

    #[tokio::test]
    async fn a_new_destination_ships_nothing_before_it_is_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::at(directory.path().join("spool"));
        let earlier = Queue::open(Signal::Logs, "new", config::Queue::default(), Some(&spool)).unwrap();
        push(&earlier, 3);
        earlier.close();
        earlier.finished().await;
        let [old, new] = [Collector::start([]).await, Collector::start([]).await];
        let mut lane = Lane::start(Signal::Logs, &to(&[("old", &old)], Some(&spool))).unwrap();
        let both = to(&[("old", &old), ("new", &new)], Some(&spool));
        let prepared = lane.plan(&both).open().unwrap();
        let opened = Arc::clone(&prepared.added[0].queue);
        poll("read", || opened.depth().records == 3).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((new.received().len(), opened.depth().records), (0, 3));
        // Something else in the settings can't be had: it is left for another time.
        drop(prepared);
        opened.close();
        opened.finished().await;
        drop(opened);
        assert_eq!(names(&lane), ["old"]);
        change(&mut lane, &both);
        poll("shipped", || new.received().len() == 1).await;
        assert_eq!(names(&lane), ["old", "new"]);
    }

    #[tokio::test]
    async fn files_are_read_when_the_plan_is_carried_out_and_what_is_wrong_changes_nothing() {
        let [old, new] = [Collector::start([]).await, Collector::start([]).await];
        let mut lane = Lane::start(Signal::Logs, &to(&[("old", &old)], None)).unwrap();
        for wrong in 0..2 {
            let mut bad = to(&[("old", &new), ("new", &new)], None);
            let export = bad.destinations[wrong].logs.as_mut().unwrap();
            export.endpoint = "https://localhost/v1/logs".parse().unwrap();
            export.ca_file = Some("/nonexistent/ca.pem".into());
            let plan = lane.plan(&bad);
            let error = plan.open().err().unwrap().to_string();
            assert!(error.contains("/nonexistent/ca.pem"), "{error}");
        }
        push(&lane.destinations[0].queue, 1);
        poll("shipped", || old.received().len() == 1).await;
        change(&mut lane, &to(&[("old", &new)], None));
        push(&lane.destinations[0].queue, 1);
        poll("shipped", || new.received().len() == 1).await;
    }

    #[tokio::test]
    async fn one_that_leaves_has_its_metrics_until_it_is_drained_and_leaves_nothing_but_its_counts() {
        let [stays, other] = [Collector::start([]).await, Collector::start([]).await];
        let gate = Arc::new(tokio::sync::Notify::new());
        let leaves = Collector::start([Answer::Hold(Arc::clone(&gate))]).await;
        let (without, with) = (to(&[("stays", &stays)], None), to(&[("stays", &stays), ("comes", &other)], None));
        let mut lane = Lane::start(Signal::Logs, &to(&[("stays", &stays), ("comes", &leaves)], None)).unwrap();
        push(&lane.destinations[1].queue, 7);
        poll("under way", || leaves.received().len() == 1).await;
        change(&mut lane, &without);
        assert!(!lane.settle());
        assert_eq!(names(&lane), ["stays", "comes"]);
        assert_eq!(lane.shipped().last().unwrap().queue.counters().snapshot().in_flight, 7);
        // It comes back while the other is still at it: one for whoever looks.
        change(&mut lane, &with);
        push(&lane.destinations[1].queue, 5);
        poll("shipped", || other.received().len() == 1).await;
        assert_eq!(names(&lane), ["stays", "comes"]);
        assert_eq!(lane.shipped().last().unwrap().earlier.len(), 1);
        gate.notify_one();
        poll("drained", || lane.settle()).await;
        assert_eq!(lane.shipped().last().unwrap().gone.exported, 7);
        for _ in 0..10 {
            change(&mut lane, &without);
            poll("drained", || lane.settle()).await;
            assert_eq!((lane.leaving.len(), names(&lane)), (0, vec!["stays".to_owned()]));
            change(&mut lane, &with);
        }
        assert_eq!(counted(&lane), [("stays".to_owned(), 0, 0), ("comes".to_owned(), 12, 12)]);
    }
}
