//! Trees of processes for people: each is printed when its last process has ended.

use std::collections::HashMap;

use lru::LruCache;

use super::{BOLD, CHUNK, CONTAINER_WIDTH, CYAN, Console, RED, RESET, owner_of};
use crate::config::Signal;
use crate::enrich::{Attribution, Owner};
use crate::event::{Event, Exec, Exit, ProcessId};
use crate::model::names;
use crate::processes::Span;
use crate::trace::SpanId;

/// Rows of all trees that wait; what is over has the oldest tree printed as it is.
const ROWS: usize = 20_000;
const DURATION_WIDTH: usize = 11;
const EXIT_WIDTH: usize = 8;
/// Deepest level that is drawn as such.
const DEPTH: usize = 32;

/// Trees that have not ended.
#[derive(Debug)]
pub struct Trees {
    /// By root; what has not grown for longest first.
    trees: LruCache<ProcessId, Tree>,
    rows: usize,
}

#[derive(Debug, Default)]
struct Tree {
    rows: Vec<Row>,
    /// Rows without an outcome.
    open: usize,
}

#[derive(Debug)]
struct Row {
    span: SpanId,
    parent: Option<SpanId>,
    pid: u32,
    start_boot_ns: u64,
    start_unix_ns: u64,
    owner: Box<[u8]>,
    of_container: bool,
    command: String,
    /// When and how it ended; `None`: it runs.
    end: Option<(u64, Exit)>,
}

/// Where a row is drawn.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// No sibling follows.
    is_last: bool,
}

impl Trees {
    #[must_use]
    pub fn new() -> Self {
        Self { trees: LruCache::unbounded(), rows: 0 }
    }

    /// A process has exec'd, for the first time or again.
    pub fn exec(
        &mut self,
        console: &mut Console,
        event: &Event<'_>,
        exec: &Exec<'_>,
        span: &Span,
        attribution: &Attribution,
    ) {
        console.command(exec);
        let command = console.line.as_str().to_owned();
        let id = span.context.span_id;
        if span.execs > 1 {
            // Not found: it was printed before its time.
            if let Some(tree) = self.trees.peek_mut(&span.tree.root)
                && let Some(row) = tree.rows.iter_mut().rev().find(|row| row.span == id)
            {
                row.command = command;
            }
            return;
        }
        let tree = self.trees.get_or_insert_mut(span.tree.root, Tree::default);
        tree.open += 1;
        tree.rows.push(Row {
            span: id,
            parent: span.parent.map(|parent| parent.span_id),
            pid: event.process.tgid,
            start_boot_ns: span.start_boot_ns,
            start_unix_ns: span.start_unix_ns,
            owner: owner_of(attribution, event.nodename).into(),
            of_container: matches!(attribution.owner, Owner::Container(_)),
            command,
            end: None,
        });
        self.rows += 1;
        while self.rows > ROWS
            && let Some((_, tree)) = self.trees.pop_lru()
        {
            self.rows -= tree.rows.len();
            console.tree(&tree);
        }
    }

    /// A process has ended.
    pub fn end(&mut self, console: &mut Console, span: &Span, end_boot_ns: u64, exit: Exit) {
        let root = span.tree.root;
        let Some(tree) = self.trees.peek_mut(&root) else { return };
        let mut rows = tree.rows.iter_mut().rev();
        let Some(row) = rows.find(|row| row.span == span.context.span_id && row.end.is_none()) else { return };
        row.end = Some((end_boot_ns, exit));
        tree.open -= 1;
        if tree.open == 0
            && let Some(tree) = self.trees.pop(&root)
        {
            self.rows -= tree.rows.len();
            console.tree(&tree);
        }
    }

    /// Prints what has not ended, too.
    pub fn finish(&mut self, console: &mut Console) {
        while let Some((_, tree)) = self.trees.pop_lru() {
            console.tree(&tree);
        }
        self.rows = 0;
    }
}

impl Default for Trees {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    pub(super) fn tree_head(&mut self) {
        let (bold, reset) = if self.colour { (BOLD, RESET) } else { ("", "") };
        self.put(format_args!(
            "{bold}{:<12} {:<CONTAINER_WIDTH$} {:>7} {:>DURATION_WIDTH$} {:<EXIT_WIDTH$} COMMAND{reset}\n",
            "TIME (UTC)", "CONTAINER", "PID", "DURATION", "EXIT"
        ));
    }

    fn tree(&mut self, tree: &Tree) {
        let places: HashMap<SpanId, usize> = tree.rows.iter().enumerate().map(|(at, row)| (row.span, at)).collect();
        let mut children = vec![Vec::new(); tree.rows.len()];
        let mut pending = Vec::new();
        // Rows are in the order of their execs; a parent may have been printed with an earlier part of the tree.
        for (at, row) in tree.rows.iter().enumerate().rev() {
            match row.parent.and_then(|parent| places.get(&parent)) {
                Some(parent) => children[*parent].push(at),
                None => pending.push((at, Place { depth: 0, is_last: true })),
            }
        }
        let mut branches = String::new();
        let mut starts = Vec::new();
        while let Some((at, Place { depth, is_last })) = pending.pop() {
            starts.truncate(depth);
            branches.truncate(starts.last().copied().unwrap_or(0));
            self.tree_row(&tree.rows[at], &branches, (depth > 0).then_some(is_last));
            if (1..DEPTH).contains(&depth) {
                branches.push_str(if is_last { "   " } else { "│  " });
            }
            starts.push(branches.len());
            // The last one is pushed first, and printed last.
            let siblings = children[at].iter().enumerate();
            pending.extend(siblings.map(|(place, child)| (*child, Place { depth: depth + 1, is_last: place == 0 })));
        }
        if self.chunk.len() > CHUNK {
            self.flush();
        }
    }

    fn tree_row(&mut self, row: &Row, branches: &str, last: Option<bool>) {
        self.time(row.start_unix_ns);
        let colour = self.colour && row.of_container;
        let (cyan, reset) = if colour { (CYAN, RESET) } else { ("", "") };
        self.put(format_args!(" {cyan}"));
        self.column(&row.owner, CONTAINER_WIDTH);
        self.put(format_args!("{reset} {:>7} ", row.pid));
        match row.end {
            None => self.put(format_args!("{:>DURATION_WIDTH$} running  ", "")),
            Some((end_boot_ns, exit)) => {
                let ns = end_boot_ns.saturating_sub(row.start_boot_ns);
                let width = DURATION_WIDTH - 6;
                self.put(format_args!("{:>width$}.{:03} s ", ns / 1_000_000_000, ns / 1_000_000 % 1000));
                let failed = exit.status.code() != 0 && self.colour;
                let (red, reset) = if failed { (RED, RESET) } else { ("", "") };
                self.put(format_args!("{red}"));
                match exit.status.signal() {
                    Some(_) if exit.oom_killed() => self.put(format_args!("{:<EXIT_WIDTH$}", "OOM")),
                    Some(signal) => match names::signal(signal) {
                        Some(name) => self.put(format_args!("{name:<EXIT_WIDTH$}")),
                        None => self.put(format_args!("{:<EXIT_WIDTH$}", 128 + signal)),
                    },
                    None => self.put(format_args!("{:<EXIT_WIDTH$}", exit.status.code())),
                }
                self.put(format_args!("{reset} "));
            }
        }
        let branch = match last {
            None => "",
            Some(true) => "└─ ",
            Some(false) => "├─ ",
        };
        self.put(format_args!("{branches}{branch}{}\n", row.command));
        self.pending[Signal::Traces as usize] += 1;
    }
}
