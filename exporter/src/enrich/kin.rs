//! Where each process of a container stands: whose it is, and how its tree came into the container. What a process may
//! choose (its cgroup, as far as it can write there, and its namespaces) is weighed against what it can't: its parents.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::containers::{Slot, Spaces};
use super::procfs::{INIT_PID_NS, Stat};
use crate::event::ProcessId;

/// Processes remembered at most. Who is forgotten is looked up in `/proc` when it has children.
const ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(32_767);
const OUTSIDE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// How a process came to be in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Of the container's own tree.
    Init,
    /// Brought in later by its runtime, as `docker exec` does, or a child of such a process.
    Exec,
    /// It has joined namespaces of another container or of the host.
    Nsenter,
    /// The runtime's own, at work on the container: it has not left the runtime's file system yet.
    Setup,
}

impl Entry {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Exec => "exec",
            Self::Nsenter => "nsenter",
            Self::Setup => "setup",
        }
    }
}

/// Of a process in a container. `entry`: of its tree; [`Entry::Nsenter`] is never remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub slot: Slot,
    pub entry: Entry,
}

/// The processes of containers that have exec'd and not exited.
#[derive(Debug)]
pub(super) struct Kin {
    standings: LruCache<ProcessId, Standing>,
    /// Processes older than we are that were looked up, and found outside.
    outside: LruCache<ProcessId, ()>,
    /// Those that were in containers before we were there, by pid; none of them has been heard of yet.
    elders: HashMap<u32, (Stat, Standing)>,
    /// Start of the youngest that was forgotten before its exit.
    forgotten_ns: u64,
}

impl Kin {
    /// `began_boot_ns`: execs since then are seen.
    pub fn new(began_boot_ns: u64) -> Self {
        let (standings, outside) = (LruCache::sparse(ENTRIES), LruCache::sparse(OUTSIDE));
        Self { standings, outside, elders: HashMap::new(), forgotten_ns: began_boot_ns }
    }

    pub fn of(&mut self, process: ProcessId) -> Option<Standing> {
        self.standings.get(&process).copied()
    }

    pub fn remember(&mut self, process: ProcessId, standing: Standing) {
        if let Some((pushed_out, _)) = self.standings.push(process, standing)
            && pushed_out != process
        {
            self.forgotten_ns = self.forgotten_ns.max(pushed_out.start_boot_ns);
        }
    }

    /// A process that has exec'd nothing, as its child tells of it.
    pub fn remember_fork(&mut self, process: ProcessId, standing: Standing) {
        if !self.standings.contains(&process) {
            self.remember(process, standing);
        }
    }

    pub fn remember_outside(&mut self, process: ProcessId) {
        self.outside.put(process, ());
    }

    pub fn forget(&mut self, process: ProcessId) {
        self.standings.pop(&process);
        self.elder(process);
    }

    /// All who are there are looked at anew: who is gone by now must not take the place of who is not.
    pub fn forget_elders(&mut self) {
        self.elders.clear();
    }

    /// As many as others are.
    pub fn remember_elder(&mut self, pid: u32, stat: Stat, standing: Standing) {
        if self.elders.len() < ENTRIES.get() {
            self.elders.insert(pid, (stat, standing));
        }
    }

    /// Where it stood when we came; told once.
    pub fn elder(&mut self, process: ProcessId) -> Option<Standing> {
        let (stat, standing) = self.elders.remove(&process.tgid)?;
        stat.is(process).then_some(standing)
    }

    /// Whether a process that has exec'd did so outside of containers, as far as was seen.
    pub fn is_outside(&mut self, process: ProcessId) -> bool {
        let seen = process.start_boot_ns > self.forgotten_ns && self.standings.peek(&process).is_none();
        seen || self.outside.get(&process).is_some()
    }
}

/// What is weighed of one process.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Facts {
    /// The container that its cgroup names.
    pub claimed: Option<Slot>,
    /// By which that container's processes are known.
    pub claimed_spaces: Option<Spaces>,
    /// Where it stood before, or its nearest ancestor stands; `None`: not in a container.
    pub lineage: Option<Standing>,
    /// By which that container's processes are known.
    pub lineage_spaces: Option<Spaces>,
    /// Its own namespaces.
    pub spaces: Spaces,
    /// The mount namespace of its parent; 0: not known.
    pub parent_mount: u32,
    /// Its pid in its own PID namespace.
    pub vpid: u32,
    /// The container that its cgroup names is known by this process.
    pub is_first: bool,
    /// The process by which that container is known is still there.
    pub first_lives: bool,
    /// Another container is known by its mount namespace.
    pub mount_holder: Option<Slot>,
    /// Its PID namespace is the host's, or was another container's before.
    pub shares_pids: bool,
    /// What it runs was executed outside of the container.
    pub runs_foreign_image: bool,
}

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weighed {
    Host,
    Of(Standing),
    /// Not the container's that its cgroup names, and nobody else's either.
    Refused,
}

/// Whose the process is and how its tree came there.
pub(super) fn weigh(facts: &Facts) -> Weighed {
    match (facts.claimed, facts.lineage) {
        (None, None) => Weighed::Host,
        (Some(claimed), Some(lineage)) if claimed == lineage.slot => match lineage.entry {
            // A hook of the runtime, at work in the container's cgroup, or the first that it starts there.
            Entry::Setup => arrived(claimed, facts),
            Entry::Init | Entry::Exec | Entry::Nsenter => Weighed::Of(lineage),
        },
        (Some(claimed), None) => match facts.mount_holder {
            // Who has no parents any more is still where it was.
            Some(slot) => Weighed::Of(Standing { slot, entry: Entry::Exec }),
            None => arrived(claimed, facts),
        },
        // A child of another container: it has moved itself, unless the two share a PID namespace of their own. Then the
        // first process of one adopts the orphans of the other.
        (Some(slot), Some(lineage)) => {
            let own = facts.claimed_spaces.filter(|own| own.mount == facts.spaces.mount && own.pid != INIT_PID_NS);
            let adopted = own.zip(facts.lineage_spaces).is_some_and(|(own, adopter)| own.pid == adopter.pid);
            Weighed::Of(if adopted { Standing { slot, entry: Entry::Init } } else { lineage })
        }
        // Nothing brings a container's child out of it but that child.
        (None, Some(lineage)) => Weighed::Of(lineage),
    }
}

/// A process whose parent is the host's has come into a container.
fn arrived(slot: Slot, facts: &Facts) -> Weighed {
    let Facts { claimed_spaces, spaces, parent_mount, vpid, .. } = *facts;
    let of = |entry| Weighed::Of(Standing { slot, entry });
    let is_inside = claimed_spaces.is_some_and(|own| own.mount == spaces.mount);
    let with_parent = parent_mount != 0 && parent_mount == spaces.mount && facts.mount_holder.is_none();
    if facts.runs_foreign_image || (with_parent && !is_inside) {
        return of(Entry::Setup);
    }
    match claimed_spaces {
        _ if facts.is_first => of(Entry::Init),
        // Whom a runtime brings in has a parent outside. Others have one inside that is not known any more.
        Some(own) if is_inside => {
            let first = vpid == 1 && own.pid == spaces.pid;
            of(if first || parent_mount == spaces.mount { Entry::Init } else { Entry::Exec })
        }
        // Runtimes bring nobody into a container but into its mount namespace.
        Some(_) if facts.first_lives => Weighed::Refused,
        // The first process of a container has pid 1, unless the container shares another's PID namespace. One that was
        // started again has namespaces of its own.
        Some(_) | None => of(if vpid == 1 || facts.shares_pids { Entry::Init } else { Entry::Exec }),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::enrich::container::Container;
    use crate::enrich::containers::Containers;

    const OWN: Spaces = Spaces { mount: 10, pid: 20 };
    const OTHERS: Spaces = Spaces { mount: 11, pid: 21 };
    const NEW: Spaces = Spaces { mount: 99, pid: 98 };

    fn two() -> [Slot; 2] {
        let mut containers = Containers::new(NonZeroUsize::new(2).unwrap(), Duration::ZERO);
        let mut add =
            |id: &str| containers.insert(Arc::new(Container::of_id(id.repeat(64), "docker")), None, Instant::now()).0;
        [add("a"), add("b")]
    }

    #[test]
    fn who_is_gone_takes_no_place_of_those_that_are_there_now() {
        let [slot, _] = two();
        let (mut kin, standing) = (Kin::new(0), Standing { slot, entry: Entry::Init });
        let stat = Stat::parse(b"1 (a) S 1 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 7 2 3").unwrap();
        for pid in 0..u32::try_from(ENTRIES.get()).unwrap() {
            kin.remember_elder(pid, stat, standing);
        }
        kin.remember_elder(40_000, stat, standing);
        assert_eq!(kin.elder(stat.id(40_000)), None, "it is bounded");
        kin.forget_elders();
        kin.remember_elder(40_000, stat, standing);
        assert_eq!((kin.elder(stat.id(40_000)), kin.elder(stat.id(0))), (Some(standing), None));
    }

    /// A process of the host in nobody's namespaces.
    const PLAIN: Facts = Facts {
        claimed: None,
        claimed_spaces: None,
        lineage: None,
        lineage_spaces: None,
        spaces: NEW,
        parent_mount: 1,
        vpid: 7,
        is_first: false,
        first_lives: false,
        mount_holder: None,
        shares_pids: false,
        runs_foreign_image: false,
    };

    #[test]
    fn the_host_s_are_the_host_s() {
        assert_eq!(weigh(&PLAIN), Weighed::Host);
    }

    #[test]
    fn who_arrives_is_the_first_or_was_brought_or_is_the_runtime_s_own() {
        let [own, _] = two();
        let is = |facts: Facts, entry| {
            let facts = Facts { claimed: Some(own), ..facts };
            assert_eq!(weigh(&facts), Weighed::Of(Standing { slot: own, entry }), "{facts:?}");
        };
        is(Facts { vpid: 1, ..PLAIN }, Entry::Init);
        is(Facts { shares_pids: true, ..PLAIN }, Entry::Init);
        is(PLAIN, Entry::Exec);
        let known = Facts { claimed_spaces: Some(OWN), ..PLAIN };
        is(Facts { spaces: OWN, ..known }, Entry::Exec);
        is(Facts { spaces: OWN, vpid: 1, ..known }, Entry::Init);
        is(Facts { spaces: OWN, shares_pids: true, ..known }, Entry::Exec);
        is(Facts { vpid: 1, ..known }, Entry::Init);
        is(Facts { vpid: 1, first_lives: true, is_first: true, ..known }, Entry::Init);
        is(Facts { spaces: OWN, shares_pids: true, is_first: true, ..known }, Entry::Init);
        is(Facts { parent_mount: NEW.mount, vpid: 1, ..PLAIN }, Entry::Setup);
        is(Facts { parent_mount: NEW.mount, first_lives: true, ..known }, Entry::Setup);
        is(Facts { runs_foreign_image: true, vpid: 1, ..PLAIN }, Entry::Setup);
    }

    #[test]
    fn who_comes_from_a_process_of_the_container_is_as_that_is() {
        let [own, _] = two();
        for entry in [Entry::Init, Entry::Exec] {
            let lineage = Some(Standing { slot: own, entry });
            let facts = Facts { claimed: Some(own), lineage, claimed_spaces: Some(OWN), vpid: 1, ..PLAIN };
            assert_eq!(Some(weigh(&facts)), lineage.map(Weighed::Of));
        }
        let lineage = Some(Standing { slot: own, entry: Entry::Setup });
        let facts = Facts { claimed: Some(own), lineage, vpid: 1, ..PLAIN };
        assert_eq!(weigh(&facts), Weighed::Of(Standing { slot: own, entry: Entry::Init }));
    }

    #[test]
    fn who_has_no_parents_to_show_is_where_its_mount_namespace_is_or_nobody_s() {
        let [own, other] = two();
        let orphan = Facts { claimed: Some(other), claimed_spaces: Some(OTHERS), parent_mount: NEW.mount, ..PLAIN };
        let held = Facts { mount_holder: Some(own), spaces: OWN, parent_mount: OWN.mount, ..orphan };
        assert_eq!(weigh(&held), Weighed::Of(Standing { slot: own, entry: Entry::Exec }));
        for vpid in [1, 7] {
            let lost = Facts { first_lives: true, parent_mount: 1, vpid, ..orphan };
            assert_eq!(weigh(&lost), Weighed::Refused);
        }
        let set_up = Facts { spaces: OTHERS, parent_mount: OTHERS.mount, first_lives: true, ..orphan };
        assert_eq!(weigh(&set_up), Weighed::Of(Standing { slot: other, entry: Entry::Init }), "no set-up inside");
    }

    #[test]
    fn who_moves_into_another_container_s_cgroup_stays_who_it_is() {
        let [own, other] = two();
        let here = Standing { slot: own, entry: Entry::Init };
        let lineage = Some(here);
        let moved =
            Facts { claimed: Some(other), claimed_spaces: Some(OTHERS), lineage, lineage_spaces: Some(OWN), ..PLAIN };
        let stays = Weighed::Of(here);
        let joined =
            [OTHERS, Spaces { mount: OTHERS.mount, pid: OWN.pid }, Spaces { mount: OWN.mount, pid: OTHERS.pid }];
        for spaces in [OWN, NEW, Spaces { mount: NEW.mount, pid: OWN.pid }].into_iter().chain(joined) {
            for claimed_spaces in [Some(OTHERS), None] {
                assert_eq!(weigh(&Facts { claimed_spaces, spaces, ..moved }), stays, "{spaces:?}");
            }
        }
        let on_host = |mount| Some(Spaces { mount, pid: INIT_PID_NS });
        let (claimed_spaces, lineage_spaces) = (on_host(OTHERS.mount), on_host(OWN.mount));
        assert_eq!(weigh(&Facts { spaces: OTHERS, claimed_spaces, lineage_spaces, ..moved }), stays);
        assert_eq!(weigh(&Facts { claimed: None, ..moved }), stays, "nor does it become the host's");
    }

    #[test]
    fn an_orphan_that_another_container_s_first_process_has_adopted_is_its_own_container_s() {
        let [pause, app] = two();
        let pod = |mount| Some(Spaces { mount, pid: OWN.pid });
        let facts = Facts {
            claimed: Some(app),
            claimed_spaces: pod(OTHERS.mount),
            lineage: Some(Standing { slot: pause, entry: Entry::Init }),
            lineage_spaces: pod(OWN.mount),
            spaces: Spaces { mount: OTHERS.mount, pid: OWN.pid },
            shares_pids: true,
            ..PLAIN
        };
        assert_eq!(weigh(&facts), Weighed::Of(Standing { slot: app, entry: Entry::Init }));
    }
}
