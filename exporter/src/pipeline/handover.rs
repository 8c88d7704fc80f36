//! From programs to others with other settings: each event is taken from one of them, none from both, none from neither.

use std::collections::{HashMap, HashSet};

use namespan_ebpf::guard_wire::OVERLAP_NS;

use crate::event::{Event, Kind, ProcessId};
use crate::guard::decision::{Decision, Hook, Outcome};

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
/// has decided: of two checks its is the last, of two looks at what has happened the first. What the new one has stopped all
/// the same is told too.
pub(super) struct Relief {
    /// Before this, by the boot clock, the old one decides; from then on the new one.
    at_boot_ns: u64,
    /// What the old one decided last, about which execs.
    last: HashMap<Decided, Vec<Last>>,
    /// How many these are.
    decided: usize,
    /// The ring of the old one is read.
    over: bool,
}

/// More decisions of one moment are not compared.
const DECIDED_MAX: usize = 16_384;

/// One exec, whoever decided about it, and at whichever hook.
#[derive(PartialEq, Eq, Hash)]
struct Decided {
    process: ProcessId,
    /// Of that process, with this one.
    execs: u64,
    path: Box<[u8]>,
    script: Box<[u8]>,
}

/// How the old one decided.
struct Last {
    at_boot_ns: u64,
    hook: Hook,
    stopped: bool,
}

impl Decided {
    fn of(decision: &Decision<'_>) -> Self {
        let before = match decision.hook {
            Hook::Exec => 0,
            Hook::Check => 1,
        };
        Self {
            process: decision.id(),
            execs: decision.process.self_exec_id.saturating_add(before),
            path: decision.path.into(),
            script: decision.script.into(),
        }
    }
}

impl Last {
    fn of(decision: &Decision<'_>) -> Self {
        Self { at_boot_ns: decision.process.time_boot_ns, hook: decision.hook, stopped: is_stopped(decision) }
    }

    /// How long lies between this and what the new one decided, if they are about one exec.
    fn apart(&self, new: &Decision<'_>) -> Option<u64> {
        let (old, time) = (self.at_boot_ns, new.process.time_boot_ns);
        let apart = match (self.hook, new.hook) {
            (Hook::Exec, Hook::Exec) => Some(old.abs_diff(time)),
            // The newest checks first.
            (Hook::Check | Hook::Exec, Hook::Check) => old.checked_sub(time),
            (Hook::Check, Hook::Exec) => time.checked_sub(old),
        };
        apart.filter(|apart| *apart <= OVERLAP_NS)
    }
}

fn is_stopped(decision: &Decision<'_>) -> bool {
    match decision.outcome {
        Outcome::Killed | Outcome::Denied => true,
        Outcome::Observed | Outcome::Failed { .. } | Outcome::Disarmed | Outcome::LeaseExpired => false,
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
        if decision.process.time_boot_ns.abs_diff(self.at_boot_ns) > 2 * OVERLAP_NS {
            return true;
        }
        if !self.over {
            if self.decided < DECIDED_MAX {
                self.decided += 1;
                self.last.entry(Decided::of(decision)).or_default().push(Last::of(decision));
            }
            return true;
        }
        let Some(last) = self.last.get_mut(&Decided::of(decision)) else { return true };
        // One process may be refused one file over and over.
        let near = last.iter().enumerate().filter_map(|(place, old)| Some((old.apart(decision)?, place))).min();
        let Some((_, place)) = near else { return true };
        let old = last.swap_remove(place);
        is_stopped(decision) && !old.stopped
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
        decided_as(guard_wire::result::OBSERVED, tgid, execs, hook, time_boot_ns)
    }

    fn decided_as(result: u8, tgid: u32, execs: u64, hook: u8, time_boot_ns: u64) -> Vec<u8> {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.start_boot_ns, process.time_boot_ns) = (tgid, 7, time_boot_ns);
        (process.kind, process.self_exec_id) = (kind::DECISION, execs);
        let mut decision = guard_wire::Decision::new_zeroed();
        (decision.hook, decision.result) = (hook, result);
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
    fn what_one_guard_checks_and_the_other_sees_happen_is_told_once() {
        use crate::guard::decision::decode;
        use guard_wire::hook::{CHECK, EXEC};
        use guard_wire::result::{DENIED, KILLED, OBSERVED};
        let mut relief = Relief::at(AT);
        let takes = |relief: &mut Relief, result, tgid, execs, hook, time| {
            relief.takes(&decode(&decided_as(result, tgid, execs, hook, time)).unwrap())
        };
        for (tgid, execs, hook, time) in [(1, 1, CHECK, AT + 100), (2, 2, EXEC, AT - 100), (3, 1, CHECK, AT + 100)] {
            assert!(takes(&mut relief, OBSERVED, tgid, execs, hook, time));
        }
        assert!(takes(&mut relief, DENIED, 4, 1, CHECK, AT + 100));
        relief.over();
        // A check comes before what has happened, and counts that exec not yet.
        assert!(
            takes(&mut relief, OBSERVED, 1, 1, EXEC, AT + 500) && takes(&mut relief, OBSERVED, 1, 2, EXEC, AT + 50)
        );
        assert!(!takes(&mut relief, OBSERVED, 1, 2, EXEC, AT + 500));
        assert!(
            takes(&mut relief, OBSERVED, 2, 1, CHECK, AT - 50) && !takes(&mut relief, OBSERVED, 2, 1, CHECK, AT - 500)
        );
        assert!(takes(&mut relief, OBSERVED, 2, 1, CHECK, AT - 500), "tried again");
        // What is stopped is told of.
        assert!(
            takes(&mut relief, KILLED, 3, 2, EXEC, AT + 500) && takes(&mut relief, OBSERVED, 4, 1, CHECK, AT + 200)
        );
        assert!(!takes(&mut relief, OBSERVED, 4, 1, CHECK, AT));
    }

    #[test]
    fn it_is_past_a_second_after_the_old_ring_is_read() {
        let mut handover = Handover::at(AT);
        assert!(!handover.is_past(u64::MAX));
        handover.over();
        assert!(!handover.is_past(AT + 1_000_000_000) && handover.is_past(AT + 1_000_000_001));
    }
}
