//! Where a process stands: what its cgroup names is weighed against whom it comes from.

use std::sync::Arc;
use std::time::Instant;

use namespan_ebpf::wire::{self, CgroupKey, ns};

use super::cgroup::resolve;
use super::containers::{Held, Sight, Slot, Spaces};
use super::home::Home;
use super::kin::{Entry, Facts, Standing, Weighed, weigh};
use super::{Attribution, Enricher, Entered, How, KnownContainer, Owner, Resident, Survey, Unseen, procfs};
use crate::clock::boot_ns;
use crate::event::{CgroupPath, Event, Kind, ProcessId};

/// Parents that are looked up for one process.
const PARENTS: usize = 64;

/// What `/proc` says of where a process stands.
enum Found {
    Inside(Standing),
    Outside,
    /// Not all that it takes.
    Nothing,
}

impl Enricher {
    /// Weighs what the cgroup names against where the process comes from, and remembers it for those that come from it.
    pub(super) fn standing(
        &mut self,
        event: &Event<'_>,
        claimed: Option<Slot>,
        lineage: Option<Standing>,
        spaces: Spaces,
    ) -> Weighed {
        if claimed.is_none() && lineage.is_none() {
            return Weighed::Host;
        }
        let id = event.id();
        let runs_foreign_image = match &event.kind {
            Kind::Exec(_) => false,
            Kind::Exit(exit) => exit.image.is_some_and(|image| self.kin.is_outside(image)),
            Kind::ExecFailed(failed) => failed.image.is_some_and(|image| self.kin.is_outside(image)),
        };
        let facts = self.facts((&event.process, id), claimed, lineage, spaces, runs_foreign_image);
        let weighed = weigh(&facts);
        let Weighed::Of(standing) = weighed else { return weighed };
        match &event.kind {
            Kind::Exec(_) => {
                // Who is in the container's namespaces already is its first process, or has lost its parents.
                let is_news = facts.claimed_spaces != Some(spaces) || facts.is_first || facts.vpid == 1;
                if standing.entry == Entry::Init && lineage.is_none() && is_news {
                    let sight = Sight { spaces, first: id, at_boot_ns: event.process.time_boot_ns };
                    self.containers.set_spaces(standing.slot, sight, facts.vpid != 1);
                }
                self.kin.remember(id, standing);
            }
            Kind::Exit(_) => {
                self.kin.forget(id);
                self.containers.exited(standing.slot, id);
            }
            Kind::ExecFailed(_) => {}
        }
        weighed
    }

    /// Where the process has stood, or whom it comes from stands.
    pub(super) fn lineage(&mut self, event: &Event<'_>, now: Instant) -> Option<Standing> {
        let is_exec = matches!(event.kind, Kind::Exec(_));
        let own = self.kin.of(event.id());
        // A runtime's process ends as such with the exec of the container's own program.
        if let Some(own) = own.filter(|own| !(is_exec && own.entry == Entry::Setup)) {
            return Some(own).filter(|own| self.containers.live(own.slot, now).is_some());
        }
        let above = match &event.kind {
            Kind::Exec(exec) => exec.ancestor,
            Kind::Exit(exit) => exit.image,
            Kind::ExecFailed(failed) => failed.image,
        };
        let parent = ProcessId::found(event.process.parent_tgid, event.process.parent_start_boot_ns);
        // What it has run itself it runs no more; and far below the last exec there is still a parent.
        let above = above.filter(|above| *above != event.id() || self.kin.is_outside(*above));
        let known = above.or(parent)?;
        if let Some(standing) = self.kin.of(known) {
            // Between the two are only forks, of which nothing else tells once they are gone.
            if let Some(parent) = parent.filter(|parent| is_exec && *parent != known && *parent != event.id()) {
                self.kin.remember_fork(parent, standing);
            }
            return Some(standing).filter(|standing| self.containers.live(standing.slot, now).is_some());
        }
        if above.is_some_and(|above| self.kin.is_outside(above)) {
            return None;
        }
        self.look_up(known, now)
    }

    /// Notes where the processes stand that are there already, before the first of their children is read of: by then they
    /// may be gone from `/proc`. Returns them.
    pub fn survey(&mut self, now: Instant) -> Vec<Resident> {
        let mut survey = self.begin_survey();
        self.survey_on(&mut survey, usize::MAX, now).unwrap_or_default()
    }

    /// As [`survey`](Self::survey), for whoever has other things to do in between.
    pub fn begin_survey(&mut self) -> Survey {
        self.kin.forget_elders();
        Survey(Box::new(procfs::pids().into_iter().flatten()))
    }

    /// Looks at the next ones, so many at most; `None`: there were no more.
    pub fn survey_on(&mut self, survey: &mut Survey, most: usize, now: Instant) -> Option<Vec<Resident>> {
        let (mut residents, mut looked_at) = (Vec::new(), 0);
        for pid in survey.0.by_ref().take(most) {
            looked_at += 1;
            let Some(stat) = procfs::Stat::of(pid) else { continue };
            let (container, by_cgroup) = match self.in_proc(pid, stat, now) {
                Found::Inside(standing) => {
                    self.kin.remember_elder(pid, stat, standing);
                    let container = self.containers.peek(standing.slot).map(|entry| Arc::clone(&entry.container));
                    (container, self.is_at_home_in(pid, standing.slot, now))
                }
                Found::Outside => (None, true),
                Found::Nothing => continue,
            };
            residents.push(Resident { pid, stat, container, by_cgroup });
        }
        (looked_at > 0).then_some(residents)
    }

    /// Whether a process's own cgroup is that of a container, and not of another one that it has moved to.
    fn is_at_home_in(&mut self, pid: u32, slot: Slot, now: Instant) -> bool {
        let Some(cgroups) = procfs::cgroups(pid) else { return false };
        let home = self.find_home(CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1), false, now);
        matches!(home, Home::Container { slot: own, .. } if own == slot)
    }

    /// Whose a process is of which nothing is known but its ids: by where it or its parent stands, else by its cgroup, as far
    /// as its namespaces are those of that container.
    pub fn whose(&mut self, unseen: &Unseen<'_>, now: Instant) -> Attribution {
        let Unseen { process, id, parent } = *unseen;
        let lineage = [Some(id), parent].into_iter().flatten().find_map(|process| {
            let known = self.kin.of(process);
            known.or_else(|| if self.kin.is_outside(process) { None } else { self.look_up(process, now) })
        });
        let lineage = lineage.filter(|standing| self.containers.live(standing.slot, now).is_some());
        let cgroup = CgroupKey { v2: process.cgroup_id, v1: process.cgroup_v1_id };
        let claimed = match self.cgroups.peek(&cgroup) {
            Some(Home::Container { slot, .. }) => Some(*slot),
            Some(Home::Host(_) | Home::Unclaimed { .. } | Home::Claim { .. } | Home::Contradicted { .. }) | None => {
                None
            }
        };
        let claimed = claimed.filter(|slot| self.containers.live(*slot, now).is_some());
        let spaces = Spaces { mount: process.namespaces[ns::MNT], pid: process.namespaces[ns::PID] };
        let facts = self.facts((process, id), claimed, lineage, spaces, false);
        let standing = match weigh(&facts) {
            Weighed::Of(standing) => standing,
            Weighed::Host => return Attribution::plain(Owner::Host(None), How::None),
            Weighed::Refused => {
                let named = claimed.and_then(|slot| self.containers.peek(slot));
                let named = named.map(|entry| entry.container.id.as_str().into());
                return Attribution { claimed: named, ..Attribution::plain(Owner::Host(None), How::Contradicted) };
            }
        };
        let (owner, how) = self.described(standing.slot);
        let moved = claimed.is_some_and(|claimed| claimed != standing.slot);
        let how = if moved { How::Lineage } else { how };
        Attribution { entry: Some(standing.entry), ..Attribution::plain(owner, how) }
    }

    /// What is weighed of a process.
    fn facts(
        &mut self,
        (process, id): (&wire::Process, ProcessId),
        claimed: Option<Slot>,
        lineage: Option<Standing>,
        spaces: Spaces,
        runs_foreign_image: bool,
    ) -> Facts {
        let at = process.time_boot_ns;
        let known = |slot: Option<Slot>| slot.and_then(|slot| self.containers.spaces(slot, at));
        let (claimed_spaces, lineage_spaces) = (known(claimed), known(lineage.map(|standing| standing.slot)));
        let is_first = claimed.and_then(|slot| self.containers.peek(slot)).is_some_and(|entry| entry.is_first(id));
        let others = |holder: &Slot| Some(*holder) != claimed;
        // 0: it has none any more.
        let strange = spaces.mount != 0 && claimed_spaces.is_some_and(|own| own.mount != spaces.mount);
        Facts {
            claimed,
            claimed_spaces,
            lineage,
            lineage_spaces,
            spaces,
            parent_mount: process.parent_mnt_ns,
            vpid: process.vpid,
            is_first,
            first_lives: strange && !is_first && claimed.is_some_and(|slot| self.first_lived(slot, at)),
            mount_holder: self.containers.in_mount_ns(spaces.mount, at).filter(others),
            shares_pids: spaces.pid == procfs::INIT_PID_NS
                || self.containers.in_pid_ns(spaces.pid, at).is_some_and(|holder| others(&holder)),
            runs_foreign_image,
        }
    }

    /// The first process of a container, by which that is known; `None` too where it has no cgroup of its own.
    #[must_use]
    pub fn first_of(&self, key: &str) -> Option<u32> {
        let entry = self.containers.peek(self.containers.find(key)?)?;
        entry.held.filter(|held| held.is_current() && !entry.spaces_alone).map(|held| held.sight.first.tgid)
    }

    /// A container as it is known by now.
    #[must_use]
    pub fn container(&self, key: &str) -> Option<KnownContainer> {
        self.containers.peek(self.containers.find(key)?).map(Into::into)
    }

    /// All containers as they are known by now.
    pub fn all_containers(&self) -> impl Iterator<Item = KnownContainer> {
        self.containers.all().map(Into::into)
    }

    /// Finds a process that is older than we are, or was forgotten.
    fn look_up(&mut self, process: ProcessId, now: Instant) -> Option<Standing> {
        if let Some(standing) = self.kin.elder(process) {
            self.kin.remember(process, standing);
            return Some(standing).filter(|standing| self.containers.live(standing.slot, now).is_some());
        }
        let stat = procfs::Stat::of(process.tgid).filter(|stat| stat.is(process))?;
        match self.in_proc(process.tgid, stat, now) {
            Found::Inside(standing) => {
                self.kin.remember(process, standing);
                Some(standing)
            }
            Found::Outside => {
                self.kin.remember_outside(process);
                None
            }
            Found::Nothing => None,
        }
    }

    /// By `/proc`, a process is of the outermost container that its parents are in.
    fn in_proc(&mut self, mut pid: u32, mut stat: procfs::Stat, now: Instant) -> Found {
        let (mut top, mut left) = (None, PARENTS);
        loop {
            // Whose it is stands further up: here it may have chosen its cgroup.
            if left == 0 {
                return Found::Nothing;
            }
            left -= 1;
            let Some(cgroups) = procfs::cgroups(pid) else { return Found::Nothing };
            // Whoever has this pid now may not be who had it.
            if !procfs::Stat::of(pid).is_some_and(|now| now.is_same(stat)) {
                return Found::Nothing;
            }
            let (v2, v1) = (CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1));
            if resolve(v2, v1).is_none() && self.containers.under_root(v2).or(self.containers.under_root(v1)).is_none()
            {
                break;
            }
            top = Some((pid, cgroups));
            pid = stat.parent;
            if pid == 0 {
                break;
            }
            // Gone meanwhile: its child is another's by now.
            let Some(parent) = procfs::Stat::of(pid) else { return Found::Nothing };
            stat = parent;
        }
        let Some((first, cgroups)) = top else { return Found::Outside };
        let home = self.find_home(CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1), true, now);
        let Home::Container { slot, .. } = home else { return Found::Nothing };
        // An orphan may have moved into that cgroup.
        let own = self.containers.peek(slot).and_then(|entry| entry.held).filter(Held::is_current);
        if own.is_some_and(|own| procfs::namespace(first, "mnt") != Some(own.sight.spaces.mount)) {
            return Found::Nothing;
        }
        let is_init =
            procfs::innermost_pid(first) == Some(1) || procfs::namespace(first, "pid") == Some(procfs::INIT_PID_NS);
        Found::Inside(Standing { slot, entry: if is_init { Entry::Init } else { Entry::Exec } })
    }

    /// Whether the process by which a container was known then was still there then. Its exit has not been read; where exits are
    /// told of, they are read in their order, and it is only asked for one that may have been lost.
    fn first_lived(&mut self, slot: Slot, at_boot_ns: u64) -> bool {
        let Some(held) = self.containers.peek(slot).and_then(|entry| entry.held_at(at_boot_ns)) else { return false };
        let first = held.sight.first;
        let is_there = procfs::Stat::of(first.tgid).is_some_and(|stat| stat.is(first));
        is_there || (self.exits && self.containers.missed(slot, at_boot_ns, boot_ns()))
    }

    /// How the process came to be where it is, and whose namespaces it has joined.
    pub(super) fn entry(
        &mut self,
        event: &Event<'_>,
        standing: Option<Standing>,
        spaces: Spaces,
    ) -> (Option<Entry>, Option<Entered>) {
        if let Some(Standing { entry: Entry::Setup, .. }) = standing {
            return (Some(Entry::Setup), None);
        }
        let slot = standing.map(|standing| standing.slot);
        let at = event.process.time_boot_ns;
        let own = slot.and_then(|slot| self.containers.spaces(slot, at));
        let others = |holder: Option<Slot>| holder.filter(|holder| Some(*holder) != slot);
        let pid_ns = Some(spaces.pid).filter(|pid| own.is_none_or(|own| own.pid != *pid));
        let mount_of = others(self.containers.in_mount_ns(spaces.mount, at));
        let pids_of = others(pid_ns.and_then(|pid| self.containers.in_pid_ns(pid, at)));
        let is_hosts = slot.is_some()
            && (Some(spaces.mount) == self.host_mount || (own.is_some() && pid_ns == Some(procfs::INIT_PID_NS)));
        if is_hosts {
            return (Some(Entry::Nsenter), Some(Entered::Host));
        }
        if let Some(other) = mount_of.or(pids_of).and_then(|other| self.containers.peek(other)) {
            return (Some(Entry::Nsenter), Some(Entered::Container(Arc::clone(&other.container))));
        }
        let entry = standing.map(|standing| standing.entry);
        (entry.or_else(|| is_runtime_at_work(event).then_some(Entry::Setup)), None)
    }
}

/// Whether it is a runtime's own process on its way into a container: `runc init`, which root alone can name so in the
/// host's file system.
fn is_runtime_at_work(event: &Event<'_>) -> bool {
    let Kind::Exec(exec) = &event.kind else { return false };
    let name = exec.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let known = matches!(name, b"runc" | b"crun" | b"youki") || exec.path.starts_with(b"/memfd:runc_cloned:");
    event.process.euid == 0
        && event.process.namespaces[ns::PID] == procfs::INIT_PID_NS
        && known
        && exec.args.iter().nth(1) == Some(b"init")
}
