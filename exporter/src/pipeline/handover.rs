//! From programs to others with other settings: each event is taken from one of them, none from both, none from neither.

use std::collections::{HashMap, HashSet};

use namespan_ebpf::guard_wire::OVERLAP_NS;

use crate::event::{Event, Kind, ProcessId};
use crate::guard::decision::{Decision, Hook};

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

/// From a guard to the next one. About the moment of the change both may decide about one exec, which is told as the old one
/// has decided: it asks last where an exec may be refused, and first where it has happened.
pub(super) struct Relief {
    /// Before this, by the boot clock, the old one decides; from then on the new one.
    at_boot_ns: u64,
    /// When the old one decided last about which execs.
    last: HashMap<Decided, Vec<u64>>,
    /// How many these are.
    decided: usize,
    /// The ring of the old one is read.
    over: bool,
}

/// More decisions of one moment are not compared.
const DECIDED_MAX: usize = 16_384;

/// One exec, whoever decided about it.
#[derive(PartialEq, Eq, Hash)]
struct Decided {
    process: ProcessId,
    execs: u64,
    hook: Hook,
    path: Box<[u8]>,
    script: Box<[u8]>,
}

impl Decided {
    fn of(decision: &Decision<'_>) -> Self {
        Self {
            process: decision.id(),
            execs: decision.process.self_exec_id,
            hook: decision.hook,
            path: decision.path.into(),
            script: decision.script.into(),
        }
    }
}

impl Relief {
    pub(super) fn at(at_boot_ns: u64) -> Self {
        Self { at_boot_ns, last: HashMap::new(), decided: 0, over: false }
    }

    /// What comes now was decided by the new one.
    pub(super) fn over(&mut self) {
        self.over = true;
    }

    /// Whether this moment is long gone.
    pub(super) fn is_past(&self, now_boot_ns: u64) -> bool {
        self.over && now_boot_ns > self.at_boot_ns + 1_000_000_000
    }

    /// Whether the decision is the teller's to tell of.
    pub(super) fn takes(&mut self, decision: &Decision<'_>) -> bool {
        let time = decision.process.time_boot_ns;
        if time.abs_diff(self.at_boot_ns) > 2 * OVERLAP_NS {
            return true;
        }
        if !self.over {
            if self.decided < DECIDED_MAX {
                self.decided += 1;
                self.last.entry(Decided::of(decision)).or_default().push(time);
            }
            return true;
        }
        let Some(times) = self.last.get_mut(&Decided::of(decision)) else { return true };
        // One process may be refused one file over and over.
        let apart = |old: u64| match decision.hook {
            Hook::Exec => old.abs_diff(time),
            Hook::Check => old.checked_sub(time).unwrap_or(u64::MAX),
        };
        let near = times.iter().enumerate().map(|(place, old)| (apart(*old), place)).min();
        let Some((_, place)) = near.filter(|(apart, _)| *apart <= OVERLAP_NS) else { return true };
        times.swap_remove(place);
        false
    }
}

#[cfg(test)]
mod tests {
    use namespan_ebpf::guard_wire::{self, kind};
    use namespan_ebpf::wire;
    use zerocopy::{FromZeros as _, IntoBytes as _};

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

    /// A record of the guard.
    fn decided(tgid: u32, execs: u64, hook: u8, time_boot_ns: u64) -> Vec<u8> {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.start_boot_ns, process.time_boot_ns) = (tgid, 7, time_boot_ns);
        (process.kind, process.self_exec_id) = (kind::DECISION, execs);
        let mut decision = guard_wire::Decision::new_zeroed();
        decision.hook = hook;
        process.len = u32::try_from(size_of_val(&process) + size_of_val(&decision)).unwrap();
        [process.as_bytes(), decision.as_bytes()].concat()
    }

    #[test]
    fn what_two_guards_decide_is_told_once() {
        use crate::guard::decision::decode;
        use guard_wire::hook::{CHECK, EXEC};
        let mut relief = Relief::at(AT);
        let takes = |relief: &mut Relief, tgid, execs, hook, time| {
            relief.takes(&decode(&decided(tgid, execs, hook, time)).unwrap())
        };
        // The old one tells of all that it has decided.
        for (tgid, execs, hook, time) in
            [(1, 1, EXEC, AT - 1), (2, 1, CHECK, AT + 500), (2, 1, CHECK, AT + 9000), (3, 1, CHECK, AT - 1)]
        {
            assert!(takes(&mut relief, tgid, execs, hook, time));
        }
        relief.over();
        // The same exec, looked at a little later; another one of that process, and another process.
        assert!(!takes(&mut relief, 1, 1, EXEC, AT + 100));
        assert!(takes(&mut relief, 1, 1, EXEC, AT + 200) && takes(&mut relief, 1, 2, EXEC, AT + 100));
        assert!(takes(&mut relief, 9, 1, EXEC, AT + 100));
        // Of one that may be refused the newest looks first, each time it is tried.
        assert!(!takes(&mut relief, 2, 1, CHECK, AT + 100) && !takes(&mut relief, 2, 1, CHECK, AT + 8900));
        assert!(takes(&mut relief, 2, 1, CHECK, AT + 20_000));
        assert!(takes(&mut relief, 3, 1, CHECK, AT + 100), "tried again");
        assert!(!relief.is_past(AT + 1_000_000_000) && relief.is_past(AT + 1_000_000_001));
    }

    #[test]
    fn it_is_past_a_second_after_the_old_ring_is_read() {
        let mut handover = Handover::at(AT);
        assert!(!handover.is_past(u64::MAX));
        handover.over();
        assert!(!handover.is_past(AT + 1_000_000_000) && handover.is_past(AT + 1_000_000_001));
    }
}
