//! What happens to a record once it is read: its owner, its span, its place in a request and on the console.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use namespan_ebpf::wire::Counter;

use super::lane::Lane;
use super::resources::Resources;
use super::selects::Selects;
use super::summary::{Fate, Summary};
use crate::attach::Counted;
use crate::clock::{Clock, boot_ns};
use crate::config::{Config, RootSampler, Sampler, Signal};
use crate::console::{Console, Trees};
use crate::decode;
use crate::enrich::runtime::Update;
use crate::enrich::{Attribution, Change, Changed, Enricher, Stand, Verdict};
use crate::event::{Event, Exec, Exit, Kind, ProcessId};

use crate::model::log::{self, Context};
use crate::model::span::{self, End};
use crate::model::{note, semconv};
use crate::processes::{self, Begun, Processes, Seen, Span};
use crate::telemetry::Status;
use crate::trace::ids::Ids;

/// How long a process is remembered after its exit, beyond the time for which its children's records may wait: its exit may
/// be read before the exec of a child that ran at the same moment on another CPU.
const LINGER: Duration = Duration::from_millis(500);

/// What happens to a record once it is read.
pub(super) struct Work {
    clock: Clock,
    /// When this turn began.
    pub(super) now: Instant,
    now_boot_ns: u64,
    now_unix_ns: u64,
    /// Processes that started before this are older than we are.
    began_boot_ns: u64,
    enricher: Enricher,
    waiting: Waiting,
    processes: Processes,
    /// Trees for the console; `None`: they are not printed.
    trees: Option<Trees>,
    encoder: log::Encoder,
    resources: Resources,
    pub(super) logs: Lane,
    pub(super) spans: Spans,
    /// How long what is in flight may take at the end.
    pub(super) drain: Duration,
    pub(super) console: Console,
    /// Records read from the ring.
    pub(super) read: u64,
    undecodable: u64,
    /// Records that were read, and then not wanted.
    filtered: u64,
    /// Records of our own making.
    notes: u64,
    /// Which containers are wanted; `None`: all.
    selects: Option<Selects>,
}

/// Whether anybody takes spans, and whether any record has ids of spans.
#[derive(Clone, Copy)]
pub(super) struct Traced {
    pub(super) spans: bool,
    pub(super) ids: bool,
}

impl Traced {
    pub(super) fn new(config: &Config, console: &Console, logs: &Lane, spans: &Lane) -> Self {
        // A span ends with the exit.
        let spans = config.probes.exits && spans.is_wanted(console);
        Self { spans, ids: logs.is_wanted(console) || spans || console.is_tree() }
    }
}

/// The spans that are told.
pub(super) struct Spans {
    encoder: span::Encoder,
    pub(super) lane: Lane,
    /// They are made.
    wanted: bool,
    told: u64,
}

impl Spans {
    fn tell(&mut self, span: &Span, end: End<'_>, now: Instant, resource: (u64, &Arc<[u8]>), console: &mut Console) {
        self.told += 1;
        let encoder = &mut self.encoder;
        self.lane.push(now, resource, console, |out| encoder.encode(span, end, out));
    }
}

/// Records whose container has no name yet, as they were read.
struct Waiting {
    records: VecDeque<Waits>,
    bytes: usize,
    max_bytes: usize,
    /// When the first of them has waited long enough.
    until: Option<Instant>,
}

struct Waits {
    /// When it was read.
    observed_unix_ns: u64,
    stand: Stand,
    record: Box<[u8]>,
}

impl Waiting {
    /// A quarter is for those that may be nobody's.
    fn has_room(&self, bytes: usize, stand: &Stand) -> bool {
        let max_bytes = if stand.is_open() { self.max_bytes / 4 } else { self.max_bytes };
        self.bytes + bytes <= max_bytes
    }

    fn push(&mut self, waits: Waits, until: Instant) {
        self.bytes += waits.record.len();
        self.records.push_back(waits);
        self.until = Some(self.until.map_or(until, |first| first.min(until)));
    }
}

impl Work {
    pub(super) fn new(
        config: &Config,
        enricher: Enricher,
        console: Console,
        logs: Lane,
        spans: Lane,
        selects: Option<Selects>,
    ) -> io::Result<Self> {
        let waiting = Waiting { records: VecDeque::new(), bytes: 0, max_bytes: config.enrich.wait_bytes, until: None };
        let mut settings = config.spans.clone();
        let Traced { spans: spanned, ids: traced } = Traced::new(config, &console, &logs, &spans);
        if !spanned {
            // The ids of log records are there all the same: an application's trace has them too.
            settings.sampler = Sampler { parent_based: false, root: RootSampler::Off };
        }
        let trees = console.is_tree().then(Trees::new);
        let began_boot_ns = boot_ns();
        let encoder = span::Encoder::new(config.arguments, config.span_limits, &settings);
        let spans = Spans { encoder, lane: spans, wanted: spanned, told: 0 };
        let settings = if traced { Some((settings, Ids::of_this_boot()?)) } else { None };
        Ok(Self {
            clock: Clock::new(),
            now: Instant::now(),
            now_boot_ns: 0,
            now_unix_ns: 0,
            began_boot_ns,
            enricher,
            waiting,
            processes: Processes::new(settings, config.enrich.wait.saturating_add(LINGER), began_boot_ns),
            trees,
            encoder: log::Encoder::new(config.arguments, config.limits),
            resources: Resources::new(config),
            logs,
            spans,
            drain: config.queue.drain,
            console,
            read: 0,
            undecodable: 0,
            filtered: 0,
            notes: 0,
            selects,
        })
    }

    /// Nobody takes anything of what is seen any more.
    pub(super) fn has_no_readers(&self) -> bool {
        self.console.is_closed() && !self.logs.is_shipped() && !self.spans.lane.is_shipped()
    }

    pub(super) fn begin(&mut self) {
        self.clock.follow();
        self.now = Instant::now();
        self.now_boot_ns = boot_ns();
        self.now_unix_ns = self.clock.unix_ns(self.now_boot_ns);
        // Before what is read now, which their containers' later records are among.
        if self.waiting.until.is_some_and(|until| until <= self.now) {
            self.release(self.now, false);
        }
    }

    pub(super) fn end(&mut self) {
        self.give_up();
        self.logs.close_due(self.now, &mut self.console);
        self.spans.lane.close_due(self.now, &mut self.console);
        self.console.flush();
    }

    /// One record as the kernel wrote it.
    pub(super) fn record(&mut self, record: &[u8]) {
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
        let stand = self.enricher.stand(&event, self.now);
        match self.enricher.attribute(&stand, self.now) {
            Verdict::Ready(attribution) => self.select(&event, &stand, &attribution, self.now_unix_ns),
            Verdict::Wait { until } if self.waiting.has_room(record.len(), &stand) => {
                self.waiting.push(Waits { observed_unix_ns: self.now_unix_ns, stand, record: record.into() }, until);
            }
            Verdict::Wait { .. } => {
                // No room: all go, so that none overtakes another. Whoever may be nobody's does not push out the others.
                if !stand.is_open() {
                    self.release(self.now, true);
                }
                let attribution = self.enricher.settle(&stand);
                self.select(&event, &stand, &attribution, self.now_unix_ns);
            }
        }
    }

    /// What the runtime told; records that waited for it go on.
    pub(super) fn learn(&mut self, source: usize, update: Update) {
        self.now = Instant::now();
        let applied = self.enricher.apply(source, update, self.now);
        if let Some(change) = applied.change {
            self.say(&change);
        }
        if let (Some(key), Some(selects)) = (applied.described, &mut self.selects) {
            selects.think_again(&key, applied.homes);
        }
        self.release(self.now, false);
    }

    /// A runtime tells of its containers, or no longer.
    fn say(&mut self, change: &Change) {
        let (runtime, what) = (change.source, if change.files { "files" } else { "socket" });
        match &change.what {
            Changed::Connected if change.files => tracing::debug!(runtime, "what it keeps on disk is read"),
            Changed::Connected => tracing::info!(runtime, what, "connected: its containers have names"),
            Changed::Absent { reason } => tracing::debug!(runtime, what, reason, "not on this host"),
            Changed::Degraded { reason } => {
                tracing::warn!(
                    runtime,
                    what,
                    reason,
                    "does not answer: its new containers may be known by their id only"
                );
            }
            Changed::Recovered => tracing::info!(runtime, what, "answers again: its containers have names"),
        }
        let (event, severity, reason) = match &change.what {
            Changed::Degraded { reason } => (semconv::EVENT_ATTRIBUTION_DEGRADED, note::WARN, reason.as_str()),
            Changed::Recovered => (semconv::EVENT_ATTRIBUTION_RECOVERED, note::INFO, ""),
            Changed::Connected | Changed::Absent { .. } => return,
        };
        if !self.logs.is_wanted(&self.console) {
            return;
        }
        let now_unix_ns = self.clock.unix_ns(boot_ns());
        let attributes =
            [(semconv::CONTAINER_RUNTIME_NAME, runtime), (semconv::RUNTIME_SOURCE, what), (semconv::REASON, reason)];
        self.notes += 1;
        let resource = self.resources.of_agent();
        self.logs.push(self.now, resource, &mut self.console, |out| {
            note::encode(event, severity, now_unix_ns, &attributes, out);
        });
    }

    /// Passes on what is wanted; what is not, the kernel side is told not to tell of.
    fn select(&mut self, event: &Event<'_>, stand: &Stand, attribution: &Attribution, observed_unix_ns: u64) {
        if let Some(selects) = &mut self.selects
            && !selects.wants(event, stand, attribution)
        {
            self.filtered += 1;
            return;
        }
        self.event(event, attribution, observed_unix_ns);
    }

    /// Asks again for the records that wait; at their deadline, or if `all` must go, they go with what is known.
    fn release(&mut self, now: Instant, all: bool) {
        let waiting = std::mem::take(&mut self.waiting.records);
        self.waiting.bytes = 0;
        self.waiting.until = None;
        for mut waits in waiting {
            // It was an event when it came.
            let Ok(event) = decode::event(&waits.record) else { continue };
            if waits.stand.is_open() {
                let stand = self.enricher.stand(&event, now);
                // Otherwise it waits from when it came.
                if !stand.is_open() {
                    waits.stand = stand;
                }
            }
            let attribution = match self.enricher.attribute(&waits.stand, now) {
                Verdict::Ready(attribution) => attribution,
                Verdict::Wait { until } if !all => {
                    self.waiting.push(waits, until);
                    continue;
                }
                Verdict::Wait { .. } => self.enricher.settle(&waits.stand),
            };
            self.select(&event, &waits.stand, &attribution, waits.observed_unix_ns);
        }
    }

    /// An event whose process's owner is known, as far as it ever will be.
    fn event(&mut self, event: &Event<'_>, attribution: &Attribution, observed_unix_ns: u64) {
        let process = &event.process;
        let mut context = Context {
            time_unix_ns: self.clock.unix_ns(process.time_boot_ns),
            // The clock is read before the ring is: what came in between is older than it seems.
            observed_unix_ns: observed_unix_ns.max(self.clock.unix_ns(process.time_boot_ns)),
            creation_unix_ns: self.clock.creation_unix_ns(process.start_boot_ns),
            parent_creation_unix_ns: self.clock.creation_unix_ns(process.parent_start_boot_ns),
            attribution,
            start_type: start_type(event, self.began_boot_ns),
            image: None,
            span: None,
            trace: None,
        };
        if let Kind::Exec(exec) = &event.kind {
            self.exec(event, exec, &context, attribution);
        }
        if self.console.is_table() {
            self.console.row(event, context.time_unix_ns, attribution);
        }
        if self.logs.is_wanted(&self.console) {
            let image = image_of(event);
            let process = image.and_then(|image| self.processes.of(image));
            context.image = process.map(|process| &process.image).filter(|_| matches!(event.kind, Kind::Exit(_)));
            context.span = image.and_then(|image| self.processes.span_id(image));
            context.trace = process.and_then(|process| {
                let span = process.span.as_ref()?;
                Some((span.context.trace_id, span.context.flags))
            });
            let (encoder, resource) = (&mut self.encoder, self.resources.of(&attribution.owner));
            self.logs.push(self.now, resource, &mut self.console, |out| encoder.encode(event, &context, out));
        }
        if let Kind::Exit(exit) = &event.kind {
            self.exit(event, exit, attribution);
        }
    }

    /// A span begins, or goes on.
    fn exec(&mut self, event: &Event<'_>, exec: &Exec<'_>, context: &Context<'_>, attribution: &Attribution) {
        if self.processes.is_full() {
            self.give_up();
        }
        let seen = Seen { event, exec, owner: &attribution.owner, time_unix_ns: context.time_unix_ns };
        let Self { processes, spans, trees, console, .. } = self;
        processes.exec(
            &seen,
            |is_sampled| {
                if is_sampled { spans.encoder.begin(event, exec, context) } else { Begun::default() }
            },
        );
        if let Some(trees) = trees
            && let Some(span) = processes.of(event.id()).and_then(|process| process.span.as_deref())
        {
            trees.exec(console, event, exec, span, attribution);
        }
    }

    /// A span ends.
    fn exit(&mut self, event: &Event<'_>, exit: &Exit, attribution: &Attribution) {
        let Self { processes, spans, trees, console, resources, now, .. } = self;
        let (end_boot_ns, max_ns) = (event.process.time_boot_ns, processes.max_ns());
        let Some(span) = processes.exit(event.id(), end_boot_ns) else { return };
        if let Some(trees) = trees {
            trees.end(console, span, end_boot_ns, *exit);
        }
        let end = match span.end(end_boot_ns, max_ns) {
            processes::Verdict::Ended => End::Exit { exit, end_boot_ns },
            processes::Verdict::Unfinished { end_boot_ns } => End::Unfinished { end_boot_ns },
            processes::Verdict::Nothing => return,
        };
        spans.tell(span, end, *now, resources.of(&attribution.owner), console);
    }

    /// Forgets processes that have ended or for which there is no room, and gives up the spans of those that live for too
    /// long; tells of the spans that others name as their parents.
    fn give_up(&mut self) {
        self.unfinished(Processes::give_up);
    }

    /// The end of it all: what waits goes, and what runs is left running.
    pub(super) fn finish(&mut self) {
        self.begin();
        self.release(self.now, true);
        self.unfinished(|processes, now_boot_ns, tell| processes.finish(now_boot_ns, tell));
        if let Some(trees) = &mut self.trees {
            trees.finish(&mut self.console);
        }
        self.logs.close(&mut self.console);
        self.spans.lane.close(&mut self.console);
    }

    fn unfinished(&mut self, give_up: impl FnOnce(&mut Processes, u64, &mut dyn FnMut(&Span, u64))) {
        let Self { processes, spans, resources, enricher, console, now, .. } = self;
        give_up(processes, self.now_boot_ns, &mut |span, end_boot_ns| {
            spans.tell(
                span,
                End::Unfinished { end_boot_ns },
                *now,
                resources.of(&enricher.newest(&span.owner)),
                console,
            );
        });
    }

    pub(super) fn status(&self, counted: Counted) -> Status {
        let unprinted = [Signal::Logs, Signal::Traces].iter().map(|signal| self.console.counts(*signal).1).sum();
        Status {
            counted,
            cache: self.enricher.stats(),
            processes: self.processes.stats(),
            undecodable: self.undecodable,
            filtered: self.filtered,
            unprinted,
            at: self.now,
        }
    }

    pub(super) fn summary(&self, counted: &Counted) -> Summary {
        let told = counted.sum(Counter::Triggered) - counted.sum(Counter::Filtered) + counted.skipped();
        let seen = told.saturating_sub(self.filtered) + self.notes;
        let mut events = self.fate(&self.logs, Signal::Logs, seen);
        for (reason, lost) in counted.losses() {
            events.lose(reason, lost);
        }
        events.lose("undecodable", self.undecodable);
        events.lose("unread", counted.sum(Counter::Delivered).saturating_sub(self.read));
        let spans = if self.spans.wanted {
            let lost = self.processes.stats().lost;
            let mut spans = self.fate(&self.spans.lane, Signal::Traces, self.spans.told + lost);
            spans.lose("evicted", lost);
            Some(spans)
        } else {
            // A tree shows every process, also one that runs on.
            let begun = self.processes.stats().spans;
            self.console.is_tree().then(|| self.fate(&self.spans.lane, Signal::Traces, begun))
        };
        Summary { events, spans }
    }

    fn fate(&self, lane: &Lane, signal: Signal, seen: u64) -> Fate {
        let mut fate = Fate { seen, ..Fate::default() };
        // A tree has processes, sampled or not, and is no way for what is shipped.
        if self.console.prints(signal) && !(self.console.is_tree() && lane.is_shipped()) {
            let (printed, unprinted) = self.console.counts(signal);
            fate.printed = Some(printed);
            fate.lose(if self.console.is_closed() { "console_closed" } else { "console_slow" }, unprinted);
        }
        if let Some(counters) = lane.counters() {
            fate.exported = Some(counters.exported);
            fate.rejected = counters.rejected;
            for (reason, lost) in &counters.dropped {
                fate.lose(&reason.to_string(), *lost);
            }
        }
        fate
    }
}

/// The process whose span an event belongs to: what has exec'd, or for a fork alone whose program it runs.
fn image_of(event: &Event<'_>) -> Option<ProcessId> {
    match &event.kind {
        Kind::Exec(_) => Some(event.id()),
        Kind::Exit(exit) => exit.image,
        Kind::ExecFailed(failed) => failed.image,
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
