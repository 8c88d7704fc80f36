//! What happens to a record once it is read: its owner, its span, its place in a request and on the console.

mod hits;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use namespan_ebpf::wire::{Counter, flag};

mod decided;

use super::guarding;
use super::handover::{Handover, Relief};
use super::lane::Lane;
use super::losses::{self, Early, Look, Losses};
use super::resources::Resources;
use super::selects::Selects;
use super::summary::{Decided, Fate, Hits, Summary};
use super::uprobing::Prober;
use crate::attach::Counted;
use crate::check::report::Check;
use crate::clock::{Clock, boot_ns};
use crate::config::{Arguments, Config, Probes, RootSampler, Sampler, Signal};
use crate::console::{Console, Trees};
use crate::decode;
use crate::enrich::runtime::Update;
use crate::enrich::{Attribution, Change, Changed, Enricher, KnownContainer, Stand, Survey, Verdict};
use crate::event::{Event, Exec, Exit, Kind, ProcessId};
use crate::guard::compile::Compiled;
use crate::model::guard;
use crate::model::log::{self, Context};
use crate::model::note::{self, Value};
use crate::model::semconv;
use crate::model::span::{self, End};
use crate::model::uid::Uids;
use crate::model::uprobe;
use crate::processes::{self, Begun, Processes, Seen, Span};
use crate::queue::Class;
use crate::telemetry::{Condition, Reloads, Status, name_of};
use crate::trace::ids::Ids;
use crate::uprobe::follow::{Sighting, Totals};
use crate::uprobe::place::Places;
use decided::Alarms;

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
    pub(super) traced: Traced,
    enricher: Enricher,
    waiting: Waiting,
    processes: Processes,
    /// Trees for the console; `None`: they are not printed.
    trees: Option<Trees>,
    /// `None`: there are no log records.
    uids: Option<Uids>,
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
    losses: Losses,
    /// Runtimes that should tell of their containers and do not, with the reason.
    degraded: BTreeMap<(&'static str, &'static str), String>,
    /// Names of what does not work here, as last told.
    shortfalls: Vec<String>,
    pub(super) reloads: Reloads,
    /// Which containers are wanted; `None`: all.
    pub(super) selects: Option<Selects>,
    /// Other programs have taken over just now.
    pub(super) handover: Option<Handover>,
    /// `None`: there are no uprobes, or no more.
    pub(super) prober: Option<Prober>,
    /// All who are there are looked at for the prober.
    survey: Option<(Survey, Vec<Sighting>)>,
    /// What is known of the places of the last hits, once there is no prober.
    pub(super) places: Option<Places>,
    probe_encoder: uprobe::Encoder,
    /// For spans of calls.
    call_ids: Option<Ids>,
    /// Hits read from their ring.
    pub(super) hits: u64,
    /// Nothing but hits is told.
    only_probes: bool,
    guard_encoder: guard::Encoder,
    /// What the guard did that is to be said aloud.
    pub(super) alarms: Alarms,
    /// Other policies have taken over just now.
    pub(super) relief: Option<Relief>,
    /// Decisions that two guards have counted, of which one was told.
    pub(super) twice: guarding::Totals,
    /// Decisions of the guard that were told.
    decisions: u64,
}

/// What a runtime has told of.
pub(super) enum Learned {
    Nothing,
    Known(KnownContainer),
    /// The processes of the container of this key have ended.
    Gone(String),
}

/// Whether anybody takes spans, and whether any record has ids of spans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Traced {
    pub(super) spans: bool,
    pub(super) ids: bool,
}

impl Traced {
    pub(super) fn new(config: &Config, console: &Console) -> Self {
        let is_wanted = |signal| console.is_jsonl(signal) || config.exports(signal).next().is_some();
        // A span ends with the exit.
        let spans = config.probes.exits && is_wanted(Signal::Traces)
            // A call's span lies within its process's.
            && (!config.uprobes_only || config.uprobes.iter().any(|probe| probe.span));
        Self { spans, ids: is_wanted(Signal::Logs) || spans || console.is_tree() }
    }

    /// What the programs are loaded with.
    pub(super) fn probes(self, config: &Config) -> Probes {
        Probes { env_context: self.ids && !config.spans.env_context.is_empty(), ..config.probes.clone() }
    }
}

/// The spans that are told.
pub(super) struct Spans {
    encoder: span::Encoder,
    pub(super) lane: Lane,
    told: u64,
}

impl Spans {
    fn tell(&mut self, span: &Span, end: End<'_>, now: Instant, resource: (u64, &Arc<[u8]>), console: &mut Console) {
        self.told += 1;
        let encoder = &mut self.encoder;
        self.lane.push(now, Class::Span, resource, console, |out| encoder.encode(span, end, out));
    }
}

/// What is counted beside the straight line.
#[derive(Clone, Copy, Default)]
pub(super) struct Beside<'a> {
    /// `None`: there are no uprobes.
    pub(super) hits: Option<&'a Totals>,
    /// `None`: there is no guard.
    pub(super) guard: Option<&'a guarding::Totals>,
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
    /// Of what the guard decided: by these policies.
    policies: Option<Arc<Compiled>>,
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
        let traced = Traced::new(config, &console);
        if !traced.spans {
            // The ids of log records are there all the same: an application's trace has them too.
            settings.sampler = Sampler { parent_based: false, root: RootSampler::Off };
        }
        let trees = console.is_tree().then(Trees::new);
        let began_boot_ns = boot_ns();
        let encoder = span::Encoder::new(config.arguments, config.span_limits, &settings);
        let clock = Clock::new();
        let spans = Spans { encoder, lane: spans, told: 0 };
        let ids = if traced.ids { Some(Ids::of_this_boot()?) } else { None };
        let uids = ids.as_ref().map(|ids| Uids::of_boot(ids.boot()));
        let call_ids = ids.as_ref().map(|ids| Ids::of_boot(ids.boot()));
        let settings = ids.map(|ids| (settings, ids));
        Ok(Self {
            losses: Losses::new(clock.unix_ns(began_boot_ns)),
            clock,
            now: Instant::now(),
            now_boot_ns: 0,
            now_unix_ns: 0,
            began_boot_ns,
            traced,
            enricher,
            waiting,
            processes: Processes::new(settings, config.enrich.wait.saturating_add(LINGER), began_boot_ns),
            trees,
            uids,
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
            degraded: BTreeMap::new(),
            shortfalls: Vec::new(),
            reloads: Reloads::default(),
            selects,
            handover: None,
            prober: None,
            survey: None,
            places: None,
            call_ids,
            probe_encoder: uprobe::Encoder::new(config.arguments, config.limits),
            hits: 0,
            only_probes: config.uprobes_only,
            guard_encoder: guard::Encoder::new(config.arguments, config.limits),
            alarms: Alarms::default(),
            relief: None,
            twice: guarding::Totals::default(),
            decisions: 0,
        })
    }

    /// From now on arguments leave the host like this.
    pub(super) fn arguments(&mut self, arguments: Arguments) {
        self.encoder.arguments(arguments);
        self.spans.encoder.arguments(arguments);
        self.probe_encoder.arguments(arguments);
        self.guard_encoder.arguments(arguments);
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
        if self.handover.as_ref().is_some_and(|handover| handover.is_past(self.now_boot_ns)) {
            self.handover = None;
        }
        if self.relief.as_ref().is_some_and(|relief| relief.is_past(self.now_boot_ns)) {
            self.relief = None;
        }
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
            Err(error) => return self.unreadable("from the kernel", &error),
        };
        if let Some(handover) = &mut self.handover
            && !handover.takes(&event)
        {
            self.filtered += 1;
            return;
        }
        let stand = self.enricher.stand(&event, self.now);
        match self.enricher.attribute(&stand, self.now) {
            Verdict::Ready(attribution) => self.select(&event, &stand, &attribution, self.now_unix_ns),
            Verdict::Wait { until } if self.waiting.has_room(record.len(), &stand) => {
                let observed_unix_ns = self.now_unix_ns;
                let waits = Waits { observed_unix_ns, stand, record: record.into(), policies: None };
                self.waiting.push(waits, until);
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

    /// `which`: where the record came from, as the log has it. The first is told of, and all are counted.
    fn unreadable(&mut self, which: &str, error: &dyn std::fmt::Display) {
        if self.undecodable == 0 {
            tracing::error!(%error, "a record {which} can't be read; such records are counted");
        }
        self.undecodable += 1;
    }

    /// What the runtime told; records that waited for it go on. What it told of, as it is known now.
    pub(super) fn learn(&mut self, source: usize, update: Update) -> Learned {
        let gone = if let Update::Gone { key } = &update { Some(key.clone()) } else { None };
        self.now = Instant::now();
        let applied = self.enricher.apply(source, update, self.now);
        if let Some(change) = applied.change {
            self.say(&change);
        }
        let mut learned = gone.map_or(Learned::Nothing, Learned::Gone);
        if let Some(key) = applied.described {
            if let Some(known) = self.enricher.container(&key) {
                if let Some(prober) = &mut self.prober {
                    prober.described(Arc::clone(&known.container), self.enricher.first_of(&key));
                }
                learned = Learned::Known(known);
            }
            if let Some(selects) = &mut self.selects {
                selects.think_again(&key, applied.homes);
            }
        }
        self.release(self.now, false);
        learned
    }

    /// All containers that are known now.
    pub(super) fn containers(&self) -> impl Iterator<Item = KnownContainer> {
        self.enricher.all_containers()
    }

    /// Runtimes of which nothing was heard yet.
    pub(super) fn silent(&self) -> impl Iterator<Item = &'static str> {
        self.enricher.silent()
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
            Changed::Degraded { reason } => {
                self.degraded.insert((runtime, what), reason.clone());
                (semconv::EVENT_ATTRIBUTION_DEGRADED, note::WARN, reason.as_str())
            }
            Changed::Recovered => {
                self.degraded.remove(&(runtime, what));
                (semconv::EVENT_ATTRIBUTION_RECOVERED, note::INFO, "")
            }
            Changed::Connected | Changed::Absent { .. } => return,
        };
        let attributes = [
            (semconv::CONTAINER_RUNTIME_NAME, Value::Text(runtime)),
            (semconv::RUNTIME_SOURCE, Value::Text(what)),
            (semconv::REASON, Value::Text(reason)),
        ];
        self.note(event, severity, &attributes);
    }

    /// What the settings ask for and does not work here: in our own log one by one, and as one record. Twice the same is
    /// told once.
    pub(super) fn tell_shortfalls(&mut self, shortfalls: &[Check]) {
        let names: Vec<_> = shortfalls.iter().map(|check| check.name.clone()).collect();
        if self.shortfalls == names {
            return;
        }
        self.shortfalls.clone_from(&names);
        let mut reasons = Vec::new();
        let mut remedies = Vec::new();
        for Check { name, found, consequence, remedy, .. } in shortfalls {
            let (consequence, remedy) =
                (consequence.as_deref().unwrap_or_default(), remedy.as_deref().unwrap_or_default());
            tracing::warn!(found, consequence, remedy, "{name}: does not work here, or in part; the rest goes on");
            reasons.push(format!("{name}: {found}: {consequence}"));
            remedies.push(remedy.to_owned());
        }
        if names.is_empty() {
            tracing::info!("what did not work is there, or asked for no more");
        }
        let attributes = [
            (semconv::STATUS_LACKING, Value::Texts(&names)),
            (semconv::STATUS_REASONS, Value::Texts(&reasons)),
            (semconv::STATUS_REMEDIES, Value::Texts(&remedies)),
        ];
        let severity = if names.is_empty() { note::INFO } else { note::WARN };
        self.note(semconv::EVENT_STATUS, severity, &attributes);
    }

    /// A record of our own making, which does not wait for others.
    fn note(&mut self, event: &str, severity: u8, attributes: &[(&str, Value<'_>)]) {
        if !self.logs.is_wanted(&self.console) {
            return;
        }
        let now_unix_ns = self.clock.unix_ns(boot_ns());
        self.notes += 1;
        self.losses.noted();
        let resource = self.resources.of_agent();
        let uids = self.uids.as_ref();
        self.logs.push(self.now, Class::Note, resource, &mut self.console, |out| {
            note::encode(event, severity, now_unix_ns, attributes, uids, out);
        });
    }

    /// Tells what was lost since the last look, as far as it is time; all of it, if there is no other look.
    pub(super) fn tell_losses(&mut self, counted: &Counted, beside: Beside<'_>, is_last: bool) {
        let Beside { hits, guard } = beside;
        if !self.logs.is_wanted(&self.console) {
            return;
        }
        let look = Look { at: self.now, unix_ns: self.clock.unix_ns(boot_ns()), is_last };
        // What lies in the ring is not lost while it is still read.
        let unread = if is_last { counted.sum(Counter::Delivered).saturating_sub(self.read) } else { 0 };
        let evicted = if self.traced.spans { self.processes.stats().lost } else { 0 };
        let early = [
            Early { stage: "decode", reason: "undecodable", signal: None, lost: self.undecodable },
            Early { stage: "decode", reason: "unread", signal: None, lost: unread },
            Early { stage: "processes", reason: "evicted", signal: Some(Signal::Traces), lost: evicted },
        ];
        let delivered = hits.map_or(0, |totals| totals.of("delivered"));
        let unread = if is_last { delivered.saturating_sub(self.hits) } else { 0 };
        let hits = hits.into_iter().flat_map(Totals::losses).chain([("unread", unread)]);
        let hits = hits.map(|(reason, lost)| Early { stage: "uprobe", reason, signal: Some(Signal::Logs), lost });
        let guard = guard.into_iter().flat_map(guarding::Totals::losses);
        let guard = guard.map(|(reason, lost)| Early { stage: "guard", reason, signal: Some(Signal::Logs), lost });
        let lanes = [(Signal::Logs, &self.logs), (Signal::Traces, &self.spans.lane)];
        let late = lanes.into_iter().flat_map(|(signal, lane)| {
            lane.counters().map(move |(destination, counters)| (destination, signal, counters))
        });
        let late: Vec<_> = late.collect();
        let lost = self.losses.look(look, losses::of_kernel(counted).chain(early).chain(hits).chain(guard), &late);
        for loss in &lost {
            let attributes = [
                (semconv::LOST_STAGE, Value::Text(loss.stage)),
                (semconv::REASON, Value::Text(&loss.reason)),
                (semconv::LOST_COUNT, Value::Count(loss.count)),
                (semconv::DESTINATION, Value::Text(loss.destination.as_deref().unwrap_or_default())),
                (semconv::SIGNAL, Value::Text(loss.signal.map_or("", name_of))),
                (semconv::LOST_START, Value::Time(loss.start_unix_ns)),
                (semconv::LOST_END, Value::Time(loss.end_unix_ns)),
            ];
            self.note(semconv::EVENT_LOST, note::ERROR, &attributes);
        }
        if !lost.is_empty() {
            self.logs.close_class(Class::Note, &mut self.console);
        }
    }

    /// What stands in the way of being ready.
    pub(super) fn condition(&self) -> Condition {
        let degraded = self.degraded.iter().map(|((runtime, what), reason)| format!("{runtime}'s {what}: {reason}"));
        let degraded = degraded.collect();
        let deliveries = self.logs.deliveries().chain(self.spans.lane.deliveries()).collect();
        let busy = self.prober.as_ref().and_then(Prober::busy);
        Condition { stopping: false, degraded, busy, deliveries }
    }

    /// Passes on what is wanted; what is not, the kernel side is told not to tell of.
    fn select(&mut self, event: &Event<'_>, stand: &Stand, attribution: &Attribution, observed_unix_ns: u64) {
        // The programs that told of its exec are gone, and these have not seen it.
        let is_untold = event.process.flags & flag::UNTRACKED != 0
            && image_of(event).is_none_or(|image| self.processes.of(image).is_none());
        if is_untold {
            self.filtered += 1;
            return;
        }
        if let Some(selects) = &mut self.selects
            && !selects.wants(event, stand, attribution)
        {
            self.filtered += 1;
            return;
        }
        self.sight(event, stand, attribution);
        self.event(event, attribution, observed_unix_ns);
    }

    /// Asks again for the records that wait; at their deadline, or if `all` must go, they go with what is known.
    fn release(&mut self, now: Instant, all: bool) {
        let waiting = std::mem::take(&mut self.waiting.records);
        self.waiting.bytes = 0;
        self.waiting.until = None;
        for mut waits in waiting {
            if waits.policies.is_some() {
                self.release_decision(waits, now, all);
                continue;
            }
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
            uid: None,
            image: None,
            span: None,
            trace: None,
        };
        if let Kind::Exec(exec) = &event.kind {
            self.exec(event, exec, &context, attribution);
        }
        if self.console.is_table() && !self.only_probes {
            self.console.row(event, context.time_unix_ns, attribution);
        }
        if self.logs.is_wanted(&self.console) && !self.only_probes {
            let image = image_of(event);
            let process = image.and_then(|image| self.processes.of(image));
            context.image = process.map(|process| &process.image).filter(|_| matches!(event.kind, Kind::Exit(_)));
            context.uid = self.uids.map(|uids| uids.of_event(event));
            context.span = image.and_then(|image| self.processes.span_id(image));
            context.trace = process.and_then(|process| {
                let span = process.span.as_ref()?;
                Some((span.context.trace_id, span.context.flags))
            });
            let (encoder, resource) = (&mut self.encoder, self.resources.of(&attribution.owner));
            self.logs.push(self.now, class_of(event), resource, &mut self.console, |out| {
                encoder.encode(event, &context, out);
            });
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

    /// The end of it all: what waits goes, and what runs is left running. `counted`: what the kernel side has counted, if that
    /// is known.
    pub(super) fn finish(&mut self, counted: Option<&Counted>, beside: Beside<'_>) {
        self.begin();
        self.release(self.now, true);
        self.unfinished(|processes, now_boot_ns, tell| processes.finish(now_boot_ns, tell));
        if let Some(trees) = &mut self.trees {
            trees.finish(&mut self.console);
        }
        if let Some(counted) = counted {
            self.tell_losses(counted, beside, true);
        }
        self.close();
    }

    /// Hands on what is being collected.
    pub(super) fn close(&mut self) {
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

    pub(super) fn status(&self, counted: Counted, Beside { hits, guard }: Beside<'_>) -> Status {
        let unprinted = [Signal::Logs, Signal::Traces].iter().map(|signal| self.console.counts(*signal).1).sum();
        Status {
            counted,
            cache: self.enricher.stats(),
            processes: self.processes.stats(),
            undecodable: self.undecodable,
            filtered: self.filtered,
            unprinted,
            waiting: self.waiting.records.len(),
            created: [&self.logs, &self.spans.lane].map(|lane| lane.created),
            notes: self.notes,
            reloads: self.reloads,
            hits: hits.cloned().unwrap_or_default(),
            guard: guard.cloned().unwrap_or_default(),
        }
    }

    pub(super) fn summary(&self, counted: &Counted, Beside { hits, guard }: Beside<'_>) -> Summary {
        let told = counted.sum(Counter::Triggered) - counted.sum(Counter::Filtered) + counted.skipped();
        let events = if self.only_probes { 0 } else { told.saturating_sub(self.filtered) };
        let seen = events + self.notes + self.hits + self.decisions;
        let mut events = self.fate(&self.logs, Signal::Logs, seen);
        if !self.only_probes {
            for (reason, lost) in counted.losses() {
                events.lose(reason, lost);
            }
            events.lose("unread", counted.sum(Counter::Delivered).saturating_sub(self.read));
        }
        events.lose("undecodable", self.undecodable);
        let spans = if self.traced.spans {
            let lost = self.processes.stats().lost;
            let mut spans = self.fate(&self.spans.lane, Signal::Traces, self.spans.told + lost);
            spans.lose("evicted", lost);
            Some(spans)
        } else {
            // A tree shows every process, also one that runs on.
            let begun = self.processes.stats().spans;
            self.console.is_tree().then(|| self.fate(&self.spans.lane, Signal::Traces, begun))
        };
        let hits = hits.map(|totals| Hits { told: self.hits, totals: totals.clone() });
        let guard = guard.map(|totals| Decided { told: self.decisions, totals: totals.clone() });
        Summary { events, spans, hits, guard }
    }

    fn fate(&self, lane: &Lane, signal: Signal, seen: u64) -> Fate {
        let mut fate = Fate { seen, ..Fate::default() };
        // A tree has processes, sampled or not, and is no way for what is shipped.
        if self.console.prints(signal) && !(self.console.is_tree() && lane.is_shipped()) {
            let (printed, unprinted) = self.console.counts(signal);
            fate.printed = Some(printed);
            fate.lose(if self.console.is_closed() { "console_closed" } else { "console_slow" }, unprinted);
        }
        fate.shipped = lane.counters().map(|(name, counters)| (name.to_owned(), counters)).collect();
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

/// What becomes of its record where there is no room.
fn class_of(event: &Event<'_>) -> Class {
    match event.kind {
        Kind::Exec(_) | Kind::ExecFailed(_) => Class::Exec,
        Kind::Exit(_) => Class::Exit,
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
