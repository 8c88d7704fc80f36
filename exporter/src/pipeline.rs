//! The straight line: what waits in the ring becomes log records and spans in their queues and rows on the
//! console.

mod guarding;
mod handover;
mod lane;
mod losses;
mod reload;
mod resources;
mod selects;
mod summary;
mod uprobing;
mod work;

use std::future::{Future, pending};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use namespan_ebpf::wire::Counter;

use crate::attach::refusal::refusal;
use crate::attach::{AttachError, Attached, Counted, attach};
use crate::check;
use crate::config::{Config, Probes, Signal};
use crate::console::Console;
use crate::enrich::runtime::{Line, Update, follow};
use crate::enrich::{self, Enricher, Source};
use crate::lifecycle::Lifecycle;
use crate::model::note::{self, Value};
use crate::model::semconv;
use crate::queue::SpoolError;
use crate::ring::Ring;
use crate::ship::ShipError;
use crate::telemetry::{Condition, Telemetry, TelemetryError};
use guarding::{Guarding, Loaded};
pub use guarding::{GuardingError, Totals as GuardTotals};
use lane::Lane;
use reload::Reloading;
pub use reload::{Reload, ReloadError};
use selects::Selects;
pub use summary::{Decided, Fate, Hits, Summary};
pub use uprobing::UprobingError;
use uprobing::{Next, Uprobing};
use work::{Beside, Learned, Traced, Work};

/// From one look at our own counters to the next.
const LOOK: Duration = Duration::from_secs(1);
/// Records handled before looking at anything else.
const TURN: usize = 4096;
/// The least that the drain leaves for the last metrics.
const LAST_METRICS: Duration = Duration::from_secs(1);
/// Most that a program which was running when it was detached still takes.
const REST: Duration = Duration::from_millis(200);
/// Most that what lies in the rings at the end takes: by then nothing is added.
const LAST_READ: Duration = Duration::from_secs(2);
/// As long as there are uprobes: a container has to be seen before it can be probed.
const PROBED: Duration = Duration::from_millis(20);
/// Most that runtimes are waited for until they have said which containers run, where the guard has to know.
const ANSWERED: Duration = Duration::from_secs(5);
/// What systemd is told while all is well.
const WATCHING: &str = "watching";
/// Questions to the runtime, and its answers, that may wait.
const LOOKUPS: usize = 1024;
const UPDATES: usize = 1024;

#[derive(Debug, Error)]
pub enum PipelineError {
    #[error("{}; `namespan check` says what is missing and what to do", refusal(.0))]
    Attach(AttachError),
    #[error("{obstacle}; the kernel said: {said}")]
    Unprivileged { obstacle: String, said: String },
    #[error("the ring buffer can't be watched: {0}")]
    Ring(#[source] std::io::Error),
    #[error("the console can't be written: {0}")]
    Console(#[source] std::io::Error),
    #[error("which boot this is, which span ids are made of, can't be read: /proc/sys/kernel/random/boot_id: {0}")]
    BootId(#[source] std::io::Error),
    #[error("{0}; `namespan check` says what the guard can do here")]
    Guard(#[from] GuardingError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// Everything between the kernel and the collector. Dropping it detaches the programs.
pub struct Pipeline {
    /// What the programs at work were loaded with.
    probes: Probes,
    attached: Attached,
    /// What programs counted that have been replaced.
    retired: Counted,
    ring: Ring,
    updates: Option<mpsc::Receiver<(usize, Update)>>,
    work: Work,
    /// `None`: there are no uprobes.
    uprobing: Option<Uprobing>,
    /// `None`: there are no policies.
    guarding: Option<Guarding>,
    /// What those guards counted that are gone.
    guarded: GuardTotals,
    /// How long runtimes are waited for.
    patient_until: Instant,
    telemetry: Option<Telemetry>,
    lifecycle: Lifecycle,
    looked: Option<Instant>,
}

impl Pipeline {
    /// Attaches the programs and starts what runs beside. Within a tokio runtime only.
    pub async fn start(config: &Config) -> Result<Self, PipelineError> {
        let console = Console::new(config).map_err(PipelineError::Console)?;
        let logs = Lane::start(Signal::Logs, config)?;
        let spans = Lane::start(Signal::Traces, config)?;
        let traced = Traced::new(config, &console);
        let probes = traced.probes(config);
        let (attached, ring, unwanted) = attach(&probes).map_err(|error| match check::obstacle() {
            Some(obstacle) => PipelineError::Unprivileged { obstacle, said: refusal(&error) },
            None => PipelineError::Attach(error),
        })?;
        let ring = Ring::new(ring).map_err(PipelineError::Ring)?;
        let (mut enricher, updates) = runtimes(config);
        // After the programs are there, so that nobody comes in between.
        let residents = enricher.survey(Instant::now());
        let selects = unwanted.map(|unwanted| Selects::new(probes.filters.clone(), unwanted));
        let shipped = logs.shipped().chain(spans.shipped()).collect();
        let telemetry = Telemetry::start(config, shipped)?;
        let mut work = Work::new(config, enricher, console, logs, spans, selects).map_err(PipelineError::BootId)?;
        work.tell_shortfalls(&check::shortfalls(config, &attached));
        let uprobing = if config.uprobes.is_empty() { None } else { work.probe(config, residents) };
        let guard = if config.guard.policies.is_empty() {
            guarding::remove_pinned()?;
            None
        } else {
            Some(Loaded::load(config)?)
        };
        let mut pipeline = Self {
            probes,
            attached,
            retired: Counted::default(),
            ring,
            updates,
            work,
            uprobing,
            guarding: None,
            guarded: GuardTotals::default(),
            patient_until: Instant::now() + ANSWERED,
            telemetry,
            lifecycle: Lifecycle::of_environment(),
            looked: None,
        };
        if let Some(guard) = guard {
            if guard.needs_containers() {
                pipeline.meet_runtimes().await;
            }
            pipeline.guard(guard)?;
        }
        pipeline.lifecycle.ready(WATCHING);
        Ok(pipeline)
    }

    /// The guard goes to work.
    fn guard(&mut self, loaded: Loaded) -> Result<(), GuardingError> {
        let (guarding, decided) = Guarding::start(loaded, self.work.containers())?;
        if decided > 0 {
            let more = [(semconv::GUARD_DECIDED, Value::Count(decided))];
            tracing::warn!(
                decided,
                "the guard that an earlier run had left has decided so many execs since it began; nobody tells of those that \
                 the earlier run did not"
            );
            self.work.note_guard(note::WARN, "taken_over", &more);
        }
        self.work.note_guarding(Some(guarding.status()));
        self.work.alarms.rearm(Some(guarding.policies()));
        self.guarding = Some(guarding);
        Ok(())
    }

    /// Works until `stop` is ready, or until nobody reads what is printed and nothing is shipped. Meanwhile takes up other
    /// settings.
    pub async fn run(&mut self, stop: impl Future<Output = ()>, mut reloads: mpsc::Receiver<Reload>) {
        let mut stop = std::pin::pin!(stop);
        let mut reloading = Reloading::default();
        let mut tick = ticks(self.delay());
        // More waits than one turn takes: go on at once, but look at everything else in between.
        let mut more = false;
        loop {
            tokio::select! {
                () = &mut stop => return,
                (source, update) = next(&mut self.updates) => self.learn(source, update),
                Some(reload) = reloads.recv(), if reloading.is_idle() => self.begin_reload(reload, &mut reloading),
                ready = reloading.ready() => {
                    Box::pin(self.reload(ready)).await;
                    tick = ticks(self.delay());
                }
                result = self.ring.wait() => {
                    // Without wake-ups there is still the tick.
                    if let Err(error) = result {
                        tracing::error!(%error, "the ring buffer's wake-ups are lost");
                    }
                }
                next = Uprobing::next(&mut self.uprobing) => match next {
                    Next::Hits(Ok(())) => {}
                    Next::Hits(Err(error)) => tracing::error!(%error, "the wake-ups of uprobes' ring buffer are lost"),
                    Next::Answer(answer) => self.work.probed(&answer),
                },
                result = Guarding::next(&mut self.guarding) => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the wake-ups of the guard's ring buffer are lost");
                    }
                }
                () = tokio::task::yield_now(), if more => {}
                _ = tick.tick() => {}
            }
            more = self.turn() == TURN;
            more |= self.work.survey_on();
            self.look();
            if self.work.has_no_readers() {
                return;
            }
        }
    }

    /// Ends as everything flows: detaches, reads the ring's rest, ships the rest, and says what became of every event.
    pub async fn finish(mut self) -> Summary {
        let began = Instant::now();
        self.lifecycle.stopping();
        if let Some(telemetry) = &self.telemetry {
            telemetry.tell(Condition { stopping: true, ..self.work.condition() });
        }
        if let Err(error) = self.attached.detach() {
            tracing::error!(%error, "detaching failed");
        }
        if let Some(guarding) = &mut self.guarding {
            guarding.finish();
        }
        if let (Some(uprobing), Some(prober)) = (&mut self.uprobing, self.work.prober.take()) {
            self.work.places = Some(prober.places.clone());
            uprobing.end(prober).await;
        }
        self.read_rest(LAST_READ).await;
        let counted = self.counted();
        let guard = self.guard_totals();
        let Self { attached, mut work, mut uprobing, telemetry, .. } = self;
        drop(attached);
        let beside = Beside { hits: uprobing.as_ref().map(Uprobing::totals), guard: guard.as_ref() };
        work.finish(counted.as_ref().ok(), beside);
        // A terminal that was stopped must not stop us too.
        if timeout(work.drain, work.console.finish()).await.is_err() {
            tracing::error!("standard output takes nothing any more: its last events are not printed");
        }
        work.logs.end();
        work.spans.lane.end();
        tokio::join!(work.logs.ended(), work.spans.lane.ended());
        if let Some(telemetry) = telemetry {
            if let Ok(counted) = &counted {
                telemetry.publish(work.status(*counted, beside));
            }
            // Where logs have used it up, the metrics may still go elsewhere.
            let left = work.drain.saturating_sub(began.elapsed());
            telemetry.finish(left.max(work.drain.min(LAST_METRICS))).await;
        }
        if let Some(uprobing) = &mut uprobing {
            uprobing.ended().await;
        }
        let beside = Beside { hits: uprobing.as_ref().map(Uprobing::totals), guard: guard.as_ref() };
        let counted = counted.unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's counters can't be read");
            Counted::default()
        });
        work.summary(&counted, beside)
    }

    /// Reads until all is read that was ever written: a program may still have been running when it was detached.
    async fn read_rest(&mut self, most: Duration) {
        let began = Instant::now();
        let (rest, deadline) = (began + REST, began + most);
        loop {
            // For as long as it takes: what hits meanwhile must not hold it up for ever.
            while self.turn() == TURN && Instant::now() < deadline {}
            let written = self.counted().map_or(0, |counted| counted.sum(Counter::Delivered));
            let hits = self.uprobing.as_ref().map_or(0, |uprobing| uprobing.totals().of("delivered"));
            let decided = self.guarding.as_ref().is_none_or(Guarding::is_read);
            if (self.work.read >= written && self.work.hits >= hits && decided) || Instant::now() > rest {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Most that a record waits to be read.
    fn delay(&self) -> Duration {
        let delay = self.probes.ring_delay;
        let delay = if self.uprobing.is_some() { delay.min(PROBED) } else { delay };
        self.guarding.as_ref().map_or(delay, |guarding| delay.min(guarding.patience()))
    }

    /// What the runtime told, which the guard's programs may have to know too.
    fn learn(&mut self, source: usize, update: Update) {
        let learned = self.work.learn(source, update);
        let Some(guarding) = &mut self.guarding else { return };
        match learned {
            Learned::Nothing => {}
            Learned::Known(known) => guarding.described(&known),
            Learned::Gone(key) => guarding.ended(&key),
        }
    }

    /// What the guard counted, be it gone.
    fn guard_totals(&self) -> Option<GuardTotals> {
        if self.guarding.is_none() && self.guarded == GuardTotals::default() {
            return None;
        }
        let mut totals = self.guarded.clone();
        if let Some(guarding) = &self.guarding {
            totals += &guarding.totals();
        }
        totals.untold_alarms = self.work.alarms.untold;
        Some(totals.without(&self.work.twice))
    }

    /// Until each runtime has said which containers run, or for as long as they are waited for.
    async fn meet_runtimes(&mut self) {
        let mut tick = ticks(self.delay());
        while self.work.silent().next().is_some() {
            if Instant::now() >= self.patient_until {
                self.work.note_silent();
                return;
            }
            tokio::select! {
                (source, update) = next(&mut self.updates) => self.learn(source, update),
                _ = tick.tick() => {}
            }
            self.turn();
        }
    }

    /// What all programs counted, those that have been replaced too.
    fn counted(&self) -> Result<Counted, AttachError> {
        let mut counted = self.attached.counted()?;
        counted += self.retired;
        Ok(counted)
    }

    /// Once in a while: what our own counters say is told to whoever wants to know.
    fn look(&mut self) {
        let now = self.work.now;
        self.lifecycle.alive(now);
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK) {
            return;
        }
        self.looked = Some(now);
        if self.work.logs.settle() | self.work.spans.lane.settle() {
            self.tell_shipped();
        }
        self.work.look_again();
        let condition = self.work.condition();
        self.lifecycle.status(condition.obstacles().first().map_or(WATCHING, String::as_str));
        if let Some(telemetry) = &self.telemetry {
            telemetry.alive(now);
            telemetry.tell(condition);
        }
        if self.telemetry.is_none() && !self.work.logs.is_wanted(&self.work.console) {
            return;
        }
        // What could not be read now is there the next time.
        let Ok(counted) = self.counted() else { return };
        if let (Some(uprobing), Some(prober)) = (&mut self.uprobing, &mut self.work.prober) {
            uprobing.look(prober);
        }
        if let Some(guarding) = &mut self.guarding {
            guarding.look();
        }
        let guard = self.guard_totals();
        let beside = Beside { hits: self.uprobing.as_ref().map(Uprobing::totals), guard: guard.as_ref() };
        self.work.tell_losses(&counted, beside, false);
        if let Some(telemetry) = &self.telemetry {
            telemetry.publish(self.work.status(counted, beside));
        }
    }

    /// Handles what waits in the ring, up to a turn of it, and whatever is due; how many records there were.
    fn turn(&mut self) -> usize {
        let Self { ring, work, uprobing, guarding, .. } = self;
        work.begin();
        let records = ring.read(TURN, |record| work.record(record));
        let hits = uprobing.as_mut().map_or(0, |uprobing| uprobing.read(TURN, |record| work.hit(record)));
        // After the execs, whose processes they name as their parents.
        let decisions = guarding.as_mut().map_or(0, |guarding| {
            guarding.renew(work.now);
            work.alarms.renewals = guarding.renewals;
            if guarding.has_newly_overflowed() {
                work.note_overflow();
            }
            guarding.read(TURN, |record, policies| work.decision(record, policies))
        });
        work.end();
        self.work.tell_alarms();
        records.max(hits).max(decisions)
    }
}

/// The kernel side wakes us when much waits; this is for the rest, and for everything with a deadline.
fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
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
