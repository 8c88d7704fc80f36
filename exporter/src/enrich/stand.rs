//! Where a process stands: what its cgroup names is weighed against whom it comes from.

use std::sync::Arc;
use std::time::Instant;

use namespan_ebpf::wire::{CgroupKey, ns};

use super::cgroup::resolve;
use super::container::Container;
use super::containers::{Slot, Spaces};
use super::home::Home;
use super::kin::{Entry, Facts, Standing, Weighed, weigh};
use super::{Attribution, Enricher, Entered, How, Owner, Resident, procfs};
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
        let known = |slot: Option<Slot>| slot.and_then(|slot| self.containers.peek(slot)?.spaces);
        let (claimed_spaces, lineage_spaces) = (known(claimed), known(lineage.map(|standing| standing.slot)));
        let first = claimed.and_then(|slot| self.containers.peek(slot)).map_or(0, |entry| entry.first);
        let others = |holder: &Slot| Some(*holder) != claimed;
        let runs_foreign_image = match &event.kind {
            Kind::Exec(_) => false,
            Kind::Exit(exit) => exit.image.is_some_and(|image| self.kin.is_outside(image)),
            Kind::ExecFailed(failed) => failed.image.is_some_and(|image| self.kin.is_outside(image)),
        };
        // 0: it has none any more.
        let strange = spaces.mount != 0 && claimed_spaces.is_some_and(|own| own.mount != spaces.mount);
        let facts = Facts {
            claimed,
            claimed_spaces,
            lineage,
            lineage_spaces,
            spaces,
            parent_mount: event.process.parent_mnt_ns,
            vpid: event.process.vpid,
            is_first: first == id.tgid,
            first_lives: strange && first != id.tgid && claimed.is_some_and(|slot| self.is_of(first, slot)),
            mount_holder: self.containers.in_mount_ns(spaces.mount).filter(others),
            shares_pids: spaces.pid == procfs::INIT_PID_NS
                || self.containers.in_pid_ns(spaces.pid).is_some_and(|holder| others(&holder)),
            runs_foreign_image,
        };
        let weighed = weigh(&facts);
        let Weighed::Of(standing) = weighed else { return weighed };
        match &event.kind {
            Kind::Exec(_) => {
                if standing.entry == Entry::Init && lineage.is_none() {
                    self.containers.set_spaces(standing.slot, spaces, facts.vpid != 1, id.tgid);
                }
                self.kin.remember(id, standing);
            }
            Kind::Exit(_) => {
                self.kin.forget(id);
                self.containers.exited(standing.slot, id.tgid);
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
        let mut residents = Vec::new();
        for pid in procfs::pids().into_iter().flatten() {
            let Some(stat) = procfs::Stat::of(pid) else { continue };
            let container = match self.in_proc(pid, stat, now) {
                Found::Inside(standing) => {
                    self.kin.remember_elder(pid, stat, standing);
                    self.containers.peek(standing.slot).map(|entry| Arc::clone(&entry.container))
                }
                Found::Outside => None,
                Found::Nothing => continue,
            };
            residents.push(Resident { pid, stat, container });
        }
        residents
    }

    /// Whose a process is of which nothing is known but its ids: by where it or its parent stands, else by its cgroup.
    pub fn whose(
        &mut self,
        process: ProcessId,
        parent: Option<ProcessId>,
        cgroup: CgroupKey,
        now: Instant,
    ) -> Attribution {
        let standing = [Some(process), parent].into_iter().flatten().find_map(|process| {
            let known = self.kin.of(process);
            known.or_else(|| if self.kin.is_outside(process) { None } else { self.look_up(process, now) })
        });
        let by_cgroup = || match self.cgroups.peek(&cgroup) {
            Some(Home::Container { slot, .. }) => Some(*slot),
            Some(Home::Host(_) | Home::Unclaimed { .. } | Home::Claim { .. } | Home::Contradicted { .. }) | None => {
                None
            }
        };
        let slot = standing.map(|standing| standing.slot).or_else(by_cgroup);
        let live = slot.filter(|slot| self.containers.live(*slot, now).is_some());
        let (owner, how) = match live {
            Some(slot) => self.described(slot),
            None => (Owner::Host(None), How::None),
        };
        let entry = standing.map(|standing| standing.entry);
        Attribution { owner, how, entry, entered: None, claimed: None, nested: None }
    }

    /// A container as it is known by now.
    #[must_use]
    pub fn container(&self, key: &str) -> Option<Arc<Container>> {
        let entry = self.containers.peek(self.containers.find(key)?)?;
        Some(Arc::clone(&entry.container))
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
        let mut top = None;
        for _ in 0..PARENTS {
            let Some(cgroups) = procfs::cgroups(pid) else { return Found::Nothing };
            let (v2, v1) = (CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1));
            if resolve(v2, v1).is_none() && self.containers.under_root(v2).or(self.containers.under_root(v1)).is_none()
            {
                break;
            }
            top = Some((pid, cgroups));
            pid = stat.parent;
            let Some(parent) = procfs::Stat::of(pid) else { break };
            stat = parent;
        }
        let Some((first, cgroups)) = top else { return Found::Outside };
        let home = self.find_home(CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1), true, now);
        let Home::Container { slot, .. } = home else { return Found::Nothing };
        let is_init =
            procfs::innermost_pid(first) == Some(1) || procfs::namespace(first, "pid") == Some(procfs::INIT_PID_NS);
        Found::Inside(Standing { slot, entry: if is_init { Entry::Init } else { Entry::Exec } })
    }

    /// Whether a process is there, and in the container's own cgroup.
    fn is_of(&self, pid: u32, slot: Slot) -> bool {
        let Some(cgroups) = procfs::cgroups(pid).filter(|_| pid != 0) else { return false };
        let (v2, v1) = (CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1));
        let id = self.containers.peek(slot).map(|entry| entry.container.id.as_str());
        resolve(v2, v1).map(|found| found.id) == id
            || [v2, v1].into_iter().any(|path| self.containers.under_root(path) == Some(slot))
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
        let own = slot.and_then(|slot| self.containers.peek(slot)?.spaces);
        let others = |holder: Option<Slot>| holder.filter(|holder| Some(*holder) != slot);
        let pid_ns = Some(spaces.pid).filter(|pid| own.is_none_or(|own| own.pid != *pid));
        let mount_of = others(self.containers.in_mount_ns(spaces.mount));
        let pids_of = others(pid_ns.and_then(|pid| self.containers.in_pid_ns(pid)));
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
