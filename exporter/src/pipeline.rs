//! The straight line: what waits in the ring becomes log records and spans in their queues and rows on the
//! console.

mod lane;
mod resources;
mod selects;
mod summary;
mod work;

use std::future::{Future, pending};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use namespan_ebpf::wire::Counter;

use crate::attach::refusal::refusal;
use crate::attach::{AttachError, Attached, Counted, attach};
use crate::config::{Config, Probes, Signal};
use crate::console::Console;
use crate::enrich::runtime::{Line, Update, follow};
use crate::enrich::{self, Enricher, Source};
use crate::ring::Ring;
use crate::ship::ShipError;
use crate::telemetry::{Telemetry, TelemetryError};
use lane::Lane;
use selects::Selects;
pub use summary::{Fate, Summary};
use work::{Traced, Work};

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
    #[error("which boot this is, which span ids are made of, can't be read: /proc/sys/kernel/random/boot_id: {0}")]
    BootId(#[source] std::io::Error),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// Everything between the kernel and the collector. Dropping it detaches the programs.
pub struct Pipeline {
    attached: Attached,
    ring: Ring,
    updates: Option<mpsc::Receiver<(usize, Update)>>,
    work: Work,
    telemetry: Option<Telemetry>,
}

impl Pipeline {
    /// Attaches the programs and starts what runs beside. Within a tokio runtime only.
    pub fn start(config: &Config) -> Result<Self, PipelineError> {
        let console = Console::new(config).map_err(PipelineError::Console)?;
        let logs = Lane::start(Signal::Logs, config.logs.as_ref(), config.batch, config.queue)?;
        let spans = Lane::start(Signal::Traces, config.traces.as_ref(), config.span_batch, config.span_queue)?;
        let traced = Traced::new(config, &console, &logs, &spans);
        let probes =
            Probes { env_context: traced.ids && !config.spans.env_context.is_empty(), ..config.probes.clone() };
        let (attached, ring, unwanted) = attach(&probes).map_err(PipelineError::Attach)?;
        if !attached.missing.is_empty() {
            tracing::warn!(fields = ?attached.missing, "this kernel lacks fields: records go without them");
        }
        let ring = Ring::new(ring).map_err(PipelineError::Ring)?;
        let (enricher, updates) = runtimes(config);
        let selects = unwanted.map(|unwanted| Selects::new(probes.filters.clone(), unwanted));
        let shipped = [&logs, &spans].into_iter().filter_map(Lane::shipped).collect();
        let telemetry =
            config.metrics.as_ref().map(|metrics| Telemetry::start(metrics, config, shipped)).transpose()?;
        let work = Work::new(config, enricher, console, logs, spans, selects).map_err(PipelineError::BootId)?;
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
                (source, update) = next(&mut self.updates) => self.work.learn(source, update),
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
            if self.work.has_no_readers() {
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
        work.finish();
        // A terminal that was stopped must not stop us too.
        if timeout(work.drain, work.console.finish()).await.is_err() {
            tracing::error!("standard output takes nothing any more: its last events are not printed");
        }
        work.logs.end();
        work.spans.lane.end();
        tokio::join!(work.logs.ended(), work.spans.lane.ended());
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

/// The container runtimes' side: questions go to tasks of their own, answers come back.
fn runtimes(config: &Config) -> (Enricher, Option<mpsc::Receiver<(usize, Update)>>) {
    let (answers, updates) = mpsc::channel(UPDATES);
    let mut sources = Vec::new();
    for (runtime, files) in enrich::runtimes(config) {
        let (lookups, questions) = mpsc::channel(LOOKUPS);
        sources.push(Source { name: runtime.name(), answers_for: runtime.answers_for(), files, lookups });
        tokio::spawn(follow(runtime, Line::new(sources.len() - 1, questions, answers.clone())));
    }
    let updates = (!sources.is_empty()).then_some(updates);
    (Enricher::new(&config.enrich, sources), updates)
}

/// The runtime's next word; never, if there is none.
async fn next(updates: &mut Option<mpsc::Receiver<(usize, Update)>>) -> (usize, Update) {
    match updates {
        Some(receiver) => match receiver.recv().await {
            Some(update) => update,
            None => pending().await,
        },
        None => pending().await,
    }
}
