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

#[cfg(test)]
mod tests {
    use namespan_ebpf::wire;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::event::{CgroupPath, ExecFailed, Exit, ExitStatus};

    const AT: u64 = 1_000_000_000;

    fn event(tgid: u32, time_boot_ns: u64, kind: Kind<'_>) -> Event<'_> {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.start_boot_ns, process.time_boot_ns) = (tgid, 7, time_boot_ns);
        Event { process, nodename: b"", tty: b"", cgroup: CgroupPath(b""), cgroup_v1: CgroupPath(b""), kind }
    }

    fn exit(tgid: u32, time_boot_ns: u64) -> Event<'static> {
        let exit = Exit { status: ExitStatus(0), image: None, oom_victim: false };
        event(tgid, time_boot_ns, Kind::Exit(exit))
    }

    fn failed(path: &[u8], time_boot_ns: u64) -> Event<'_> {
        event(1, time_boot_ns, Kind::ExecFailed(ExecFailed { path, errno: 2, image: None }))
    }

    #[test]
    fn each_event_is_told_by_the_programs_whose_time_it_is() {
        let mut handover = Handover::at(AT);
        assert!(handover.takes(&exit(1, 0)) && handover.takes(&exit(2, AT - 1)));
        // The new ones have it.
        assert!(!handover.takes(&exit(3, AT)) && !handover.takes(&exit(4, AT + APART_NS)));
        handover.over();
        assert!(handover.takes(&exit(3, AT)) && handover.takes(&exit(4, AT + APART_NS)));
        assert!(!handover.takes(&exit(5, AT - 1)), "the old ones had it");
    }

    #[test]
    fn what_both_have_seen_at_that_moment_is_told_once() {
        let mut handover = Handover::at(AT);
        assert!(handover.takes(&exit(1, AT - APART_NS)) && handover.takes(&failed(b"/a", AT - 1)));
        assert!(handover.takes(&exit(2, AT - APART_NS - 1)));
        handover.over();
        // A program reads the clock for itself.
        assert!(!handover.takes(&exit(1, AT)) && !handover.takes(&failed(b"/a", AT + APART_NS - 1)));
        // Others of the same process, the same one too late to be that, and what was too early to be seen twice.
        assert!(handover.takes(&failed(b"/b", AT)) && handover.takes(&failed(b"/a", AT + APART_NS)));
        assert!(handover.takes(&exit(2, AT)));
        let mut again = exit(1, AT);
        again.process.start_boot_ns += 1;
        assert!(handover.takes(&again), "another process of that pid");
        let mut next = exit(1, AT);
        next.process.self_exec_id += 1;
        assert!(handover.takes(&next), "another image");
    }

    #[test]
    fn it_is_past_a_second_after_the_old_ring_is_read() {
        let mut handover = Handover::at(AT);
        assert!(!handover.is_past(u64::MAX));
        handover.over();
        assert!(!handover.is_past(AT + 1_000_000_000) && handover.is_past(AT + 1_000_000_001));
    }
}
