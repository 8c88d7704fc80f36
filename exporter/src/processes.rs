//! What is remembered of each process from its exec to its exit: what it runs, and the span that its life is.
//!
//! Bounded; to forget a process too early costs names and nesting, never a record. A span that others name as their parent
//! is told even if its process is forgotten or goes on for too long, so that no parent is missing.

mod boundary;
mod span;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use crate::config;
use crate::enrich::Owner;
use crate::event::{Event, Exec, ProcessId};
use crate::model::log::Image;
use crate::trace::context::RANDOM;
use crate::trace::ids::Ids;
use crate::trace::{Remote, SpanContext, SpanId, TraceId, is_sampled};
pub use boundary::Boundary;
use boundary::Facts;
pub use span::{Begun, Link, Parent, Span, Tree, Verdict};

/// Processes remembered at most, of which so many may have lived for longer than a span may last.
const ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);
const OLD_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);
/// Bytes of paths, names and attributes remembered at most.
const BYTES: usize = 64 << 20;
/// Longest `argv[0]` remembered; the exec's own record has it whole.
const COMMAND_MAX: usize = 1024;

/// A process that has exec'd, as far as it was seen.
#[derive(Debug)]
pub struct Process {
    pub id: ProcessId,
    /// What it runs, or has run last.
    pub image: Image,
    /// `None`: no spans are wanted.
    pub span: Option<Box<Span>>,
    /// Its exit was told; it is remembered for the last records of its children.
    exited: bool,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Spans that have begun, sampled or not.
    pub spans: u64,
    /// Processes forgotten for want of room, before their exit.
    pub evictions: u64,
    /// Sampled spans that nobody will be told of for that reason.
    pub lost: u64,
}

/// An exec, and what the stages before know of it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub event: &'a Event<'a>,
    pub exec: &'a Exec<'a>,
    pub owner: &'a Owner,
    pub time_unix_ns: u64,
}

/// The live processes that have exec'd. Belongs to one task.
#[derive(Debug)]
pub struct Processes {
    /// The oldest first, by their first exec.
    live: LruCache<ProcessId, Process>,
    /// Those that live for longer than a span may last. Their spans are told, if ever, so little is lost with them: if their
    /// exits were lost, they stay until others take their place.
    old: LruCache<ProcessId, Process>,
    bytes: usize,
    /// Processes that were forgotten after their spans were told: another exec must not have them told again.
    told: LruCache<ProcessId, ()>,
    /// Those that have exited, with the boot-clock time of it.
    exited: VecDeque<(u64, ProcessId)>,
    /// How long those are remembered.
    linger_ns: u64,
    spans: Option<Spans>,
    stats: Stats,
}

#[derive(Debug)]
struct Spans {
    ids: Ids,
    settings: config::Spans,
    max_ns: u64,
    /// A process that had exec'd before has been told of by whoever watched then.
    began_boot_ns: u64,
}

impl Processes {
    /// `spans`: settings and ids; `None`: no spans are wanted. `linger`: how long after its exit a process is remembered.
    /// `began_boot_ns`: since when execs are seen, by the boot clock.
    #[must_use]
    pub fn new(spans: Option<(config::Spans, Ids)>, linger: Duration, began_boot_ns: u64) -> Self {
        let spans = spans.map(|(settings, ids)| {
            let max_ns = ns(settings.max_duration);
            Spans { ids, settings, max_ns, began_boot_ns }
        });
        Self {
            live: LruCache::sparse(ENTRIES.saturating_add(1)),
            old: LruCache::sparse(OLD_ENTRIES.saturating_add(1)),
            told: LruCache::sparse(ENTRIES),
            bytes: 0,
            exited: VecDeque::new(),
            linger_ns: ns(linger),
            spans,
            stats: Stats::default(),
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What is known of a process; not a use in the sense of the least recently used.
    #[must_use]
    pub fn of(&self, process: ProcessId) -> Option<&Process> {
        self.live.peek(&process).or_else(|| self.old.peek(&process))
    }

    /// The id of a process's span, be it known or not; `None`: no spans are wanted.
    #[must_use]
    pub fn span_id(&self, process: ProcessId) -> Option<SpanId> {
        self.spans.as_ref().map(|spans| spans.ids.span(process))
    }

    /// A process executes: its span begins, or goes on with another image. `begun` is what is known of the span from this
    /// exec on; it is asked only if the span is sampled.
    pub fn exec(&mut self, seen: &Seen<'_>, begun: impl FnOnce(bool) -> Begun) {
        let id = seen.event.id();
        let image = image(seen.exec);
        let Self { live, old, .. } = self;
        if let Some(process) = live.peek_mut(&id).or_else(|| old.peek_mut(&id)) {
            self.bytes -= process.size();
            process.image = image;
            if let (Some(span), Some(spans)) = (&mut process.span, &self.spans) {
                span.goes_on(seen, begun(span.context.is_sampled()));
                span.facts = Facts::of(seen, &spans.settings);
            }
            self.bytes += process.size();
            return;
        }
        let span = self.begin(seen).map(|mut span| {
            let known = begun(span.context.is_sampled());
            span.begun = known;
            Box::new(span)
        });
        let process = Process { id, image, span, exited: false };
        self.bytes += process.size();
        self.live.put(id, process);
    }

    fn begin(&mut self, seen: &Seen<'_>) -> Option<Span> {
        let Self { live, old, told, spans, stats, .. } = self;
        let Spans { ids, settings, max_ns, began_boot_ns } = spans.as_mut()?;
        let (event, now) = (seen.event, seen.event.process.time_boot_ns);
        stats.spans += 1;
        let above = seen.exec.ancestor.and_then(|id| live.peek_mut(&id).or_else(|| old.peek_mut(&id)));
        let mut above = above.and_then(|process| Some((process.id, process.span.as_deref_mut()?)));
        let boundary = match &above {
            Some((id, span)) => span.boundary_below(*id, seen, *max_ns, settings.max_per_trace),
            None => Some(Boundary::UnknownParent),
        };
        let mut remote = Some(seen.exec.env)
            .filter(|env| !env.traceparent.is_empty() && is_trusted(&settings.env_context, seen.owner))
            .and_then(Remote::parse);
        let env = remote.as_ref().map(|remote| remote.context);
        let inherited = env.is_some() && above.as_ref().is_some_and(|(_, span)| span.env == env);
        let follows = boundary.is_none() && (env.is_none() || inherited);
        if inherited && matches!(boundary, Some(Boundary::LongLived | Boundary::TraceFull)) {
            // The other program's trace has had enough of this one.
            remote = None;
        }
        // Its span was told, here or by whoever watched before: it had exec'd by then.
        let closed = told.contains(&event.id()) || (event.process.start_boot_ns < *began_boot_ns && event.execs() > 1);

        let mut span = Span {
            context: SpanContext { trace_id: TraceId([0; 16]), span_id: ids.span(event.id()), flags: 0 },
            parent: None,
            state: Box::default(),
            link: None,
            boundary: None,
            owner: seen.owner.clone(),
            start_boot_ns: now,
            start_unix_ns: seen.time_unix_ns,
            execs: 1,
            begun: Begun::default(),
            tree: Arc::new(Tree::rooted(event.id(), now)),
            env,
            facts: Facts::of(seen, settings),
            named: false,
            told: closed,
            aged: closed,
        };
        let parents_flags = match (&mut above, remote) {
            (Some((_, parent)), _) if follows => {
                parent.named = true;
                span.context.trace_id = parent.context.trace_id;
                span.parent = Some(Parent { span_id: parent.context.span_id, remote: false });
                span.state.clone_from(&parent.state);
                span.tree = Arc::clone(&parent.tree);
                span.tree.grow();
                Some(parent.context.flags)
            }
            (_, Some(Remote { context, state })) => {
                span.context.trace_id = context.trace_id;
                span.parent = Some(Parent { span_id: context.span_id, remote: true });
                span.state = state;
                Some(context.flags)
            }
            (above, None) => {
                span.context.trace_id = ids.trace();
                span.boundary = boundary;
                span.link = above.as_ref().map(|(_, parent)| Link { to: parent.context });
                // What is dropped of a trace stays dropped where it goes on in another one.
                env.filter(|_| inherited).map(|env| env.flags & !RANDOM)
            }
        };
        let sampled = is_sampled(settings.sampler, span.context.trace_id, parents_flags);
        let random = if span.parent.is_some() { parents_flags.unwrap_or_default() & RANDOM } else { RANDOM };
        span.context.flags = random | u8::from(sampled);
        Some(span)
    }

    /// A process has ended: its span, if it is known to have one.
    pub fn exit(&mut self, id: ProcessId, time_boot_ns: u64) -> Option<&mut Span> {
        let Self { live, old, .. } = self;
        let process = live.peek_mut(&id).or_else(|| old.peek_mut(&id)).filter(|process| !process.exited)?;
        process.exited = true;
        self.exited.push_back((time_boot_ns, id));
        process.span.as_deref_mut()
    }

    /// No room for another process.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes > BYTES || self.live.len() >= ENTRIES.get()
    }

    /// Forgets those that exited long enough ago and those for which there is no room; gives up spans that last for too long.
    /// `tell` gets those that have to be told all the same, with their end in nanoseconds of the boot clock.
    pub fn give_up(&mut self, now_boot_ns: u64, tell: &mut dyn FnMut(&Span, u64)) {
        self.forget_exited(now_boot_ns);
        let max_ns = self.max_ns();
        while let Some(mut process) = self.pop_aged(now_boot_ns, max_ns) {
            if let Some(span) = &mut process.span {
                span.aged = true;
                if !process.exited && span.give_up() {
                    tell(span, span.start_boot_ns.saturating_add(max_ns));
                }
            }
            self.old.put(process.id, process);
            if self.old.len() > OLD_ENTRIES.get() {
                self.evict(|this| this.old.pop_lru(), now_boot_ns, tell);
            }
        }
        while self.bytes > BYTES && !self.old.is_empty() {
            self.evict(|this| this.old.pop_lru(), now_boot_ns, tell);
        }
        while self.is_full() && !self.live.is_empty() {
            self.evict(|this| this.live.pop_lru(), now_boot_ns, tell);
        }
    }

    fn evict(
        &mut self,
        pop: impl FnOnce(&mut Self) -> Option<(ProcessId, Process)>,
        now_boot_ns: u64,
        tell: &mut dyn FnMut(&Span, u64),
    ) {
        let Some((id, process)) = pop(self) else { return };
        self.bytes -= process.size();
        if process.exited {
            return;
        }
        self.stats.evictions += 1;
        let Some(mut span) = process.span else { return };
        if span.give_up() {
            tell(&span, now_boot_ns);
        } else if !span.told && !span.aged && span.context.is_sampled() {
            self.stats.lost += 1;
        }
        self.told.put(id, ());
    }

    /// Gives up the spans of all that still runs.
    pub fn finish(&mut self, now_boot_ns: u64, tell: &mut dyn FnMut(&Span, u64)) {
        self.give_up(now_boot_ns, tell);
        // What is old has been told.
        for (_, process) in &mut self.live {
            if let Some(span) = &mut process.span
                && !process.exited
                && span.give_up()
            {
                tell(span, now_boot_ns);
            }
        }
    }

    fn forget_exited(&mut self, now_boot_ns: u64) {
        while let Some((exited_boot_ns, id)) = self.exited.front().copied()
            && (exited_boot_ns.saturating_add(self.linger_ns) <= now_boot_ns || self.live.len() >= ENTRIES.get())
        {
            self.exited.pop_front();
            if let Some(process) = self.live.pop(&id).or_else(|| self.old.pop(&id)) {
                self.bytes -= process.size();
            }
        }
    }

    /// The next process that lives for longer than a span may last.
    fn pop_aged(&mut self, now_boot_ns: u64, max_ns: u64) -> Option<Process> {
        let (_, oldest) = self.live.peek_lru()?;
        let end_boot_ns = oldest.span.as_ref()?.start_boot_ns.saturating_add(max_ns);
        if end_boot_ns > now_boot_ns {
            return None;
        }
        self.live.pop_lru().map(|(_, process)| process)
    }

    /// The longest that a span may last, in nanoseconds.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.spans.as_ref().map_or(u64::MAX, |spans| spans.max_ns)
    }
}

impl Process {
    fn size(&self) -> usize {
        let image = self.image.path.len() + self.image.command.len() + self.image.script.len();
        image + self.span.as_ref().map_or(0, |span| span.size())
    }
}

fn image(exec: &Exec<'_>) -> Image {
    let command = exec.args.iter().next().unwrap_or_default();
    Image {
        path: exec.path.to_vec(),
        command: command.get(..COMMAND_MAX).unwrap_or(command).to_vec(),
        args_count: exec.args.argc,
        script: exec.script.to_vec(),
    }
}

/// Whether what this owner's processes have in their environment is believed.
fn is_trusted(trusted: &[config::Trust], owner: &Owner) -> bool {
    trusted.iter().any(|trust| match owner {
        Owner::Host(_) => matches!(trust, config::Trust::All | config::Trust::Host),
        Owner::Container(container) => match trust {
            config::Trust::All | config::Trust::Containers => true,
            config::Trust::Host => false,
            config::Trust::Name(pattern) => {
                container.name.as_ref().is_some_and(|name| config::matches(pattern, name.as_bytes()))
            }
            config::Trust::Image(pattern) => {
                container.image.as_ref().is_some_and(|image| config::matches(pattern, image.name.as_bytes()))
            }
        },
    })
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
