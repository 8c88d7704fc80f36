//! From programs to others with other settings: each event is taken from one of them, none from both, none from neither.

use std::collections::HashSet;

use crate::event::{Event, Kind, ProcessId};

/// How far apart two programs may see the same event.
const APART_NS: u64 = 100_000;

pub(super) struct Handover {
    /// Before this, by the boot clock, the old programs tell; from then on the new ones.
    at_boot_ns: u64,
    /// What the old ones told of last: what happened at that very moment both may have taken.
    last: HashSet<Seen>,
    /// The ring of the old ones is read.
    over: bool,
}

/// One event, whoever saw it.
#[derive(PartialEq, Eq, Hash)]
struct Seen {
    process: ProcessId,
    /// A process may execute one file after the other, and may fail to.
    execs: u64,
    failed: Option<Vec<u8>>,
    exit: bool,
}

impl Seen {
    fn of(event: &Event<'_>) -> Self {
        let (failed, exit) = match &event.kind {
            Kind::Exec(_) => (None, false),
            Kind::Exit(_) => (None, true),
            Kind::ExecFailed(failed) => (Some(failed.path.to_vec()), false),
        };
        Self { process: event.id(), execs: event.execs(), failed, exit }
    }
}

impl Handover {
    pub(super) fn at(at_boot_ns: u64) -> Self {
        Self { at_boot_ns, last: HashSet::new(), over: false }
    }

    /// What comes now is told by the new programs.
    pub(super) fn over(&mut self) {
        self.over = true;
    }

    /// Whether this moment is long gone.
    pub(super) fn is_past(&self, now_boot_ns: u64) -> bool {
        self.over && now_boot_ns > self.at_boot_ns + 1_000_000_000
    }

    /// Whether the event is the teller's to tell of.
    pub(super) fn takes(&mut self, event: &Event<'_>) -> bool {
        let time = event.process.time_boot_ns;
        if !self.over {
            if time < self.at_boot_ns && time + APART_NS >= self.at_boot_ns {
                self.last.insert(Seen::of(event));
            }
            return time < self.at_boot_ns;
        }
        let near = time < self.at_boot_ns + APART_NS;
        time >= self.at_boot_ns && !(near && self.last.contains(&Seen::of(event)))
    }
}
