//! The span that a process's life is, while it lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Boundary, Facts, Seen};
use crate::enrich::Owner;
use crate::event::ProcessId;
use crate::trace::{SpanContext, SpanId};

#[derive(Debug)]
pub struct Span {
    pub context: SpanContext,
    pub parent: Option<Parent>,
    /// `tracestate` that came with the trace.
    pub state: Box<str>,
    /// Of a span that begins a trace: what was above.
    pub link: Option<Link>,
    /// Of a span that begins a trace: why.
    pub boundary: Option<Boundary>,
    /// Whose the process was when it last exec'd.
    pub owner: Owner,
    /// Of the first exec.
    pub start_boot_ns: u64,
    pub start_unix_ns: u64,
    /// How many were seen.
    pub execs: u32,
    pub begun: Begun,
    pub tree: Arc<Tree>,
    /// What the environment said, so that a child that has inherited it can be told from one that was given its own.
    pub(super) env: Option<SpanContext>,
    pub(super) facts: Facts,
    /// A span that was or will be told names it as its parent.
    pub(super) named: bool,
    /// It was told before its process has ended.
    pub(super) told: bool,
    /// Its process lives for longer than a span may last.
    pub(super) aged: bool,
}

/// What an exec says of a span, in the form in which it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    pub name: String,
    /// `attributes` fields, one after the other.
    pub attributes: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub span_id: SpanId,
    /// It is another program's.
    pub remote: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub to: SpanContext,
}

/// Spans that hang together through parents that we know: the part of a trace that begins with one process.
#[derive(Debug)]
pub struct Tree {
    pub root: ProcessId,
    began_boot_ns: u64,
    spans: AtomicU32,
}

impl Tree {
    pub(super) fn rooted(root: ProcessId, began_boot_ns: u64) -> Self {
        Self { root, began_boot_ns, spans: AtomicU32::new(1) }
    }

    pub(super) fn grow(&self) {
        self.spans.fetch_add(1, Relaxed);
    }
}

/// What is to be told of a span now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole of it.
    Ended,
    /// That it was there, until then: others name it as their parent.
    Unfinished {
        end_boot_ns: u64,
    },
    Nothing,
}

impl Span {
    /// Another exec in the same process.
    pub(super) fn goes_on(&mut self, seen: &Seen<'_>, begun: Begun) {
        self.execs = self.execs.saturating_add(1);
        self.owner = seen.owner.clone();
        self.begun = begun;
    }

    /// Why a process below this span's begins a trace of its own; `None`: it does not.
    pub(super) fn boundary_below(
        &self,
        process: ProcessId,
        seen: &Seen<'_>,
        max_ns: u64,
        max_spans: u32,
    ) -> Option<Boundary> {
        let now = seen.event.process.time_boot_ns;
        let own = &seen.event.process;
        // A shell that is typed into puts each command into a process group of its own; one that runs a script does not.
        let typed = own.session_leader == process.tgid && own.group_leader != own.session_leader;
        let terminal = !seen.event.tty.is_empty() && (own.session_leader == own.tgid || typed);
        if !same_owner(&self.owner, seen.owner) {
            Some(Boundary::Container)
        } else if self.facts.namespace_init {
            Some(Boundary::NamespaceInit)
        } else if self.facts.listed {
            Some(Boundary::Executable)
        } else if self.aged
            || now.saturating_sub(self.start_boot_ns) > max_ns
            || now.saturating_sub(self.tree.began_boot_ns) > max_ns
        {
            Some(Boundary::LongLived)
        } else if terminal {
            Some(Boundary::Terminal)
        } else if self.tree.spans.load(Relaxed) >= max_spans {
            Some(Boundary::TraceFull)
        } else {
            None
        }
    }

    /// What is to be told at the exit.
    pub fn end(&mut self, end_boot_ns: u64, max_ns: u64) -> Verdict {
        if end_boot_ns.saturating_sub(self.start_boot_ns) > max_ns {
            self.aged = true;
            let end_boot_ns = self.start_boot_ns.saturating_add(max_ns);
            return if self.give_up() { Verdict::Unfinished { end_boot_ns } } else { Verdict::Nothing };
        }
        if self.context.is_sampled() && !std::mem::replace(&mut self.told, true) {
            Verdict::Ended
        } else {
            Verdict::Nothing
        }
    }

    /// Before its process ends. Whether it has to be told: others name it as their parent.
    pub(super) fn give_up(&mut self) -> bool {
        self.named && self.context.is_sampled() && !std::mem::replace(&mut self.told, true)
    }

    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.state.len() + self.begun.name.len() + self.begun.attributes.len()
    }
}

fn same_owner(one: &Owner, other: &Owner) -> bool {
    match (one, other) {
        (Owner::Host(_), Owner::Host(_)) => true,
        (Owner::Container(one), Owner::Container(other)) => one.key() == other.key(),
        (Owner::Host(_), Owner::Container(_)) | (Owner::Container(_), Owner::Host(_)) => false,
    }
}
