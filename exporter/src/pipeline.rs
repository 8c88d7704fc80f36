//! The straight line: what waits in the ring becomes log records in the queue and rows on the console.

mod resources;
mod summary;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use namespan_ebpf::wire::Counter;

use crate::attach::refusal::refusal;
use crate::attach::{AttachError, Attached, Counted, attach};
use crate::clock::{Clock, boot_ns};
use crate::config::{Config, Export};
use crate::console::Console;
use crate::decode;
use crate::enrich::docker;
use crate::enrich::{Attribution, Enricher, Link, Update, Verdict};
use crate::event::{Event, Kind};
use crate::images::Images;
use crate::model::batch::{Accumulators, Request};

use crate::model::log::{Context, Encoder};
use crate::queue::{Batch, Queue, Reason};
use crate::ring::Ring;
use crate::ship::{self, ShipError, json};
use crate::telemetry::{Logs, Status, Telemetry, TelemetryError};
use resources::Resources;
pub use summary::Summary;

/// The kernel side wakes us when much waits; this is for the rest, and for everything with a deadline.
const TICK: Duration = Duration::from_millis(20);
/// Records handled before looking at anything else.
const TURN: usize = 4096;
/// The least that the drain leaves for the last metrics.
const LAST_METRICS: Duration = Duration::from_secs(1);
/// Most that a program which was running when it was detached still takes.
const REST: Duration = Duration::from_millis(200);
/// Questions to the runtime, and its answers, that may wait.
const LOOKUPS: usize = 1024;
const UPDATES: usize = 1024;

#[derive(Debug, Error)]
pub enum PipelineError {
    #[error("{}; `namespan check` says what is missing and what to do", refusal(.0))]
    Attach(AttachError),
    #[error("the ring buffer can't be watched: {0}")]
    Ring(#[source] std::io::Error),
    #[error("the console can't be written: {0}")]
    Console(#[source] std::io::Error),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// Everything between the kernel and the collector. Dropping it detaches the programs.
pub struct Pipeline {
    attached: Attached,
    ring: Ring,
    updates: Option<mpsc::Receiver<Update>>,
    work: Work,
    telemetry: Option<Telemetry>,
}

impl Pipeline {
    /// Attaches the programs and starts what runs beside. Within a tokio runtime only.
    pub fn start(config: &Config) -> Result<Self, PipelineError> {
        let destination = config.export.as_ref().map(|export| Destination::start(export, config)).transpose()?;
        let (attached, ring) = attach(&config.probes).map_err(PipelineError::Attach)?;
        if !attached.missing.is_empty() {
            tracing::warn!(fields = ?attached.missing, "this kernel lacks fields: records go without them");
        }
        let ring = Ring::new(ring).map_err(PipelineError::Ring)?;
        let console = Console::new(config.console, config.arguments).map_err(PipelineError::Console)?;
        let (enricher, updates) = runtime(config);
        let logs = destination.as_ref().map(Destination::logs);
        let telemetry = config.metrics.as_ref().map(|metrics| Telemetry::start(metrics, config, logs)).transpose()?;
        let work = Work::new(config, enricher, console, destination);
        Ok(Self { attached, ring, updates, work, telemetry })
    }

    /// Works until `stop` is ready, or until nobody reads what is printed and nothing is shipped.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // More waits than one turn takes: go on at once, but look at everything else in between.
        let mut more = false;
        loop {
            tokio::select! {
                () = &mut stop => return,
                update = next(&mut self.updates) => self.work.learn(update),
                result = self.ring.wait() => {
                    // Without wake-ups there is still the tick.
                    if let Err(error) = result {
                        tracing::error!(%error, "the ring buffer's wake-ups are lost");
                    }
                }
                () = tokio::task::yield_now(), if more => {}
                _ = tick.tick() => {}
            }
            more = self.turn() == TURN;
            self.publish();
            if self.work.console.is_closed() && self.work.destination.is_none() {
                return;
            }
        }
    }

    /// Ends as everything flows: detaches, reads the ring's rest, ships the rest, and says what became of every event.
    pub async fn finish(mut self) -> Summary {
        let began = Instant::now();
        if let Err(error) = self.attached.detach() {
            tracing::error!(%error, "detaching failed");
        }
        self.read_rest().await;
        let Self { attached, mut work, telemetry, .. } = self;
        work.release(Instant::now(), true);
        work.close();
        // A terminal that was stopped must not stop us too.
        if timeout(work.drain, work.console.finish()).await.is_err() {
            tracing::error!("standard output takes nothing any more: its last events are not printed");
        }
        if let Some(destination) = &mut work.destination {
            destination.queue.close();
            if let Err(error) = (&mut destination.shipper).await {
                tracing::error!(%error, "the sender failed");
            }
        }
        let counted = attached.counted();
        if let Some(mut telemetry) = telemetry {
            if let Ok(counted) = &counted {
                telemetry.publish(work.status(*counted));
            }
            // Where logs have used it up, the metrics may still go elsewhere.
            let left = work.drain.saturating_sub(began.elapsed());
            telemetry.finish(left.max(work.drain.min(LAST_METRICS))).await;
        }
        let counted = counted.unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's counters can't be read");
            Counted::default()
        });
        work.summary(&counted)
    }

    /// Reads until all is read that was ever written: a program may still have been running when it was detached.
    async fn read_rest(&mut self) {
        let deadline = Instant::now() + REST;
        loop {
            while self.turn() == TURN {}
            let written = self.attached.counted().map_or(0, |counted| counted.sum(Counter::Delivered));
            if self.work.read >= written || Instant::now() > deadline {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Our own counters, once in a while.
    fn publish(&mut self) {
        let Some(telemetry) = self.telemetry.as_mut().filter(|telemetry| telemetry.is_due(self.work.now)) else {
            return;
        };
        // What could not be read now is there the next time.
        if let Ok(counted) = self.attached.counted() {
            telemetry.publish(self.work.status(counted));
        }
    }

    /// Handles what waits in the ring, up to a turn of it, and whatever is due; how many records there were.
    fn turn(&mut self) -> usize {
        let Self { ring, work, .. } = self;
        work.begin();
        let records = ring.read(TURN, |record| work.record(record));
        work.end();
        records
    }
}

/// What happens to a record once it is read.
struct Work {
    clock: Clock,
    /// When this turn began.
    now: Instant,
    now_unix_ns: u64,
    /// Processes that started before this are older than we are.
    began_boot_ns: u64,
    enricher: Enricher,
    waiting: Waiting,
    images: Images,
    encoder: Encoder,
    resources: Resources,
    accumulators: Accumulators,
    /// When the first record came into the accumulators.
    oldest: Option<Instant>,
    delay: Duration,
    /// How long what is in flight may take at the end.
    drain: Duration,
    console: Console,
    destination: Option<Destination>,
    /// Records read from the ring.
    read: u64,
    undecodable: u64,
}

/// Records whose container has no name yet, as they were read.
struct Waiting {
    /// With the time when each was read.
    records: VecDeque<(u64, Box<[u8]>)>,
    bytes: usize,
    max_bytes: usize,
    /// When the first of them has waited long enough.
    until: Option<Instant>,
}

impl Work {
    fn new(config: &Config, enricher: Enricher, console: Console, destination: Option<Destination>) -> Self {
        let waiting = Waiting { records: VecDeque::new(), bytes: 0, max_bytes: config.enrich.wait_bytes, until: None };
        Self {
            clock: Clock::new(),
            now: Instant::now(),
            now_unix_ns: 0,
            began_boot_ns: boot_ns(),
            enricher,
            waiting,
            images: Images::new(),
            encoder: Encoder::new(config.arguments, config.limits),
            resources: Resources::new(config),
            accumulators: Accumulators::new(config.batch),
            oldest: None,
            delay: config.batch.delay,
            drain: config.queue.drain,
            console,
            destination,
            read: 0,
            undecodable: 0,
        }
    }

    fn begin(&mut self) {
        self.clock.follow();
        self.now = Instant::now();
        self.now_unix_ns = self.clock.unix_ns(boot_ns());
    }

    fn end(&mut self) {
        if self.waiting.until.is_some_and(|until| until <= self.now) {
            self.release(self.now, false);
        }
        if self.oldest.is_some_and(|oldest| self.now.duration_since(oldest) >= self.delay) {
            self.close();
        }
        self.console.flush();
    }

    /// One record as the kernel wrote it.
    fn record(&mut self, record: &[u8]) {
        self.read += 1;
        let event = match decode::event(record) {
            Ok(event) => event,
            Err(error) => {
                if self.undecodable == 0 {
                    tracing::error!(%error, "a record from the kernel can't be read; such records are counted");
                }
                self.undecodable += 1;
                return;
            }
        };
        match self.enricher.attribute(&event, self.now) {
            Verdict::Ready(attribution) => self.event(&event, &attribution, self.now_unix_ns),
            Verdict::Wait { until } if self.waiting.bytes + record.len() <= self.waiting.max_bytes => {
                self.waiting.bytes += record.len();
                self.waiting.records.push_back((self.now_unix_ns, record.into()));
                self.waiting.until = Some(self.waiting.until.map_or(until, |first| first.min(until)));
            }
            Verdict::Wait { .. } => {
                let attribution = self.enricher.attribute_now(&event, self.now);
                self.event(&event, &attribution, self.now_unix_ns);
            }
        }
    }

    /// What the runtime told; records that waited for it go on.
    fn learn(&mut self, update: Update) {
        match &update {
            Update::State(Link::Connected) => tracing::info!("connected to Docker: containers have names"),
            Update::State(Link::Lost { reason }) => {
                tracing::warn!(reason, "Docker does not answer: new containers are known by their id only");
            }
            Update::Known { .. } | Update::Unknown { .. } | Update::Gone { .. } => {}
        }
        self.now = Instant::now();
        self.enricher.apply(update, self.now);
        self.release(self.now, false);
    }

    /// Asks again for the records that wait; at their deadline, or if `all` must go, they go with what is known.
    fn release(&mut self, now: Instant, all: bool) {
        let waiting = std::mem::take(&mut self.waiting.records);
        self.waiting.bytes = 0;
        self.waiting.until = None;
        for (observed_unix_ns, record) in waiting {
            // It was an event when it came.
            let Ok(event) = decode::event(&record) else { continue };
            match self.enricher.attribute(&event, now) {
                Verdict::Ready(attribution) => self.event(&event, &attribution, observed_unix_ns),
                Verdict::Wait { until } if until > now && !all => {
                    self.waiting.until = Some(self.waiting.until.map_or(until, |first| first.min(until)));
                    self.waiting.bytes += record.len();
                    self.waiting.records.push_back((observed_unix_ns, record));
                }
                Verdict::Wait { .. } => {
                    let attribution = self.enricher.attribute_now(&event, now);
                    self.event(&event, &attribution, observed_unix_ns);
                }
            }
        }
    }

    /// An event whose process's owner is known, as far as it ever will be.
    fn event(&mut self, event: &Event<'_>, attribution: &Attribution, observed_unix_ns: u64) {
        let process = &event.process;
        let time_unix_ns = self.clock.unix_ns(process.time_boot_ns);
        if let Kind::Exec(exec) = &event.kind {
            self.images.exec(event, exec);
        }
        if self.console.is_table() {
            self.console.row(event, time_unix_ns, attribution);
        }
        if self.destination.is_some() || self.console.is_jsonl() {
            let image = match &event.kind {
                Kind::Exit(exit) => exit.image.and_then(|image| self.images.of(image)),
                Kind::Exec(_) | Kind::ExecFailed(_) => None,
            };
            let context = Context {
                time_unix_ns,
                observed_unix_ns,
                creation_unix_ns: self.clock.creation_unix_ns(process.start_boot_ns),
                parent_creation_unix_ns: self.clock.creation_unix_ns(process.parent_start_boot_ns),
                attribution: attribution.how.as_str(),
                start_type: start_type(event, self.began_boot_ns),
                image,
            };
            let (key, resource) = self.resources.of(&attribution.owner);
            let encoder = &mut self.encoder;
            let closed = self.accumulators.push(key, resource, |out| encoder.encode(event, &context, out));
            if let Some(request) = closed {
                self.hand_on(&request);
                self.oldest = Some(self.now);
            } else {
                self.oldest.get_or_insert(self.now);
            }
            if self.accumulators.is_full() {
                self.close();
            }
        }
        if let Kind::Exit(_) = &event.kind {
            self.images.exit(event.id());
        }
    }

    /// Closes the request that is being collected.
    fn close(&mut self) {
        self.oldest = None;
        if let Some(request) = self.accumulators.take() {
            self.hand_on(&request);
        }
    }

    fn hand_on(&mut self, request: &Request) {
        if self.console.is_jsonl() {
            match json::logs_request(&request.bytes) {
                Ok(line) => self.console.json(&line, request.records),
                Err(error) => {
                    tracing::error!(%error, records = request.records, "records can't be printed as JSON");
                    self.console.lose(request.records);
                }
            }
        }
        if let Some(Destination { export, queue, .. }) = &self.destination {
            match Batch::seal(request.records, &request.bytes, export.protocol, export.compression) {
                Ok(batch) => queue.push(batch),
                Err(error) => {
                    tracing::error!(%error, records = request.records, "records can't be encoded, and are counted");
                    queue.discard(request.records, Reason::Encoding);
                }
            }
        }
    }

    fn status(&self, counted: Counted) -> Status {
        let (_, unprinted) = self.console.counts();
        Status { counted, cache: self.enricher.stats(), undecodable: self.undecodable, unprinted, at: self.now }
    }

    fn summary(&self, counted: &Counted) -> Summary {
        let seen = counted.sum(Counter::Triggered) - counted.sum(Counter::Filtered) + counted.skipped();
        let mut dropped: BTreeMap<String, u64> =
            counted.losses().map(|(reason, lost)| (reason.to_owned(), lost)).collect();
        let unread = counted.sum(Counter::Delivered).saturating_sub(self.read);
        for (reason, records) in [("undecodable", self.undecodable), ("unread", unread)] {
            if records > 0 {
                dropped.insert(reason.to_owned(), records);
            }
        }
        let (printed, unprinted) = self.console.counts();
        let mut summary = Summary { seen, dropped, ..Summary::default() };
        if self.console.is_table() || self.console.is_jsonl() {
            summary.printed = Some(printed);
            if unprinted > 0 {
                let reason = if self.console.is_closed() { "console_closed" } else { "console_slow" };
                summary.dropped.insert(reason.to_owned(), unprinted);
            }
        }
        if let Some(Destination { queue, .. }) = &self.destination {
            let snapshot = queue.counters().snapshot();
            summary.exported = Some(snapshot.exported);
            summary.rejected = snapshot.rejected;
            summary.dropped.extend(snapshot.dropped.iter().map(|(reason, lost)| (reason.to_string(), *lost)));
        }
        summary
    }
}

/// How a process came to run what it runs.
fn start_type(event: &Event<'_>, began_boot_ns: u64) -> &'static str {
    if event.process.start_boot_ns < began_boot_ns && !matches!(event.kind, Kind::Exec(_)) {
        return "preexisting";
    }
    match event.execs() {
        0 => "fork",
        1 => "fork_exec",
        _ => "reexec",
    }
}

struct Destination {
    export: Export,
    queue: Arc<Queue>,
    shipper: JoinHandle<()>,
}

impl Destination {
    fn start(export: &Export, config: &Config) -> Result<Self, ShipError> {
        let queue = Arc::new(Queue::new(config.queue));
        let shipper = ship::spawn(export, Arc::clone(&queue))?;
        Ok(Self { export: export.clone(), queue, shipper })
    }

    fn logs(&self) -> Logs {
        Logs { queue: Arc::clone(&self.queue), protocol: self.export.protocol }
    }
}

/// The container runtime's side: questions go to a task of its own, answers come back.
fn runtime(config: &Config) -> (Enricher, Option<mpsc::Receiver<Update>>) {
    let Some(settings) = docker::Settings::from_config(&config.enrich) else {
        return (Enricher::new(&config.enrich, None), None);
    };
    let (lookups, questions) = mpsc::channel(LOOKUPS);
    let (answers, updates) = mpsc::channel(UPDATES);
    tokio::spawn(docker::watch(settings, questions, answers));
    (Enricher::new(&config.enrich, Some(lookups)), Some(updates))
}

/// The runtime's next word; never, if there is none.
async fn next(updates: &mut Option<mpsc::Receiver<Update>>) -> Update {
    match updates {
        Some(receiver) => match receiver.recv().await {
            Some(update) => update,
            None => pending().await,
        },
        None => pending().await,
    }
}
