//! What the sources tell is taken in.

use std::sync::Arc;
use std::time::Instant;

use super::cgroup;
use super::container::Container;
use super::containers::{Asked, Held, Sight, Slot, Spaces};
use super::home::Home;
use super::runtime::{Link, Place, Update};
use super::{Enricher, How, bit, procfs};
use crate::clock::boot_ns;
use crate::event::CgroupPath;

/// How the connection to a source has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub source: &'static str,
    pub files: bool,
    pub what: Changed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// For the first time.
    Connected,
    /// There is none.
    Absent { reason: String },
    /// It does not tell (any more).
    Degraded { reason: String },
    /// It tells again.
    Recovered,
}

/// What follows from an [`Update`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub change: Option<Change>,
    /// Key of a container of which more may be known now.
    pub described: Option<String>,
    /// Cgroups that were the host's may be a container's now.
    pub homes: bool,
}

impl Enricher {
    /// Takes in what a source tells.
    pub fn apply(&mut self, source: usize, update: Update, now: Instant) -> Applied {
        self.containers.forget_gone(now);
        match update {
            Update::Known { container, how, place } => {
                let key = container.key().into_owned();
                self.learn(container, how, &place, now);
                return Applied { described: Some(key), homes: std::mem::take(&mut self.homes), ..Applied::default() };
            }
            Update::Unknown { key } => {
                if let Some(claim) = self.claims.get_mut(key.as_str()) {
                    claim.answered = true;
                }
                if let Some(slot) = self.containers.find(&key)
                    && let Some(entry) = self.containers.get(slot)
                    && let Asked::Yes { open, .. } = &mut entry.asked
                {
                    *open &= !bit(source);
                    if *open == 0 {
                        entry.asked = Asked::Unknown { since: now };
                    }
                }
            }
            Update::Gone { key } => self.containers.mark_gone(&key, now, boot_ns()),
            Update::State(link) => return Applied { change: self.link(source, link), ..Applied::default() },
        }
        Applied::default()
    }

    fn link(&mut self, source: usize, link: Link) -> Option<Change> {
        let told = self.sources.get_mut(source)?;
        let (was_degraded, was_silent) = (told.degraded, std::mem::take(&mut told.silent));
        let was_linked = std::mem::replace(&mut told.linked, link == Link::Connected) && !was_silent;
        let what = match link {
            Link::Connected => {
                told.degraded = false;
                if was_degraded { Changed::Recovered } else { Changed::Connected }
            }
            // Who was never there is not missed.
            Link::Absent { reason } if !was_linked && !was_degraded => Changed::Absent { reason },
            Link::Absent { reason } | Link::Lost { reason } => {
                told.degraded = true;
                Changed::Degraded { reason }
            }
        };
        self.containers.forget_asked(bit(source));
        let told = self.sources.get(source)?;
        Some(Change { source: told.source.name, files: told.source.files, what })
    }

    fn learn(&mut self, container: Arc<Container>, how: How, place: &Place, now: Instant) {
        let known = self.containers.find(&container.key());
        let slot = match known {
            Some(slot) => {
                self.containers.mark_back(slot);
                slot
            }
            None => self.insert(Arc::clone(&container), Some(how), now),
        };
        let Some(entry) = self.containers.get(slot) else { return };
        let known_by_runtime = entry.how.is_some_and(How::is_by_runtime);
        // What the runtime says itself is more than what it leaves on disk.
        if !known_by_runtime || how.is_by_runtime() {
            let mut container = container;
            if let (None, Some(uid)) = (&container.pod.uid, &entry.container.pod.uid) {
                Arc::make_mut(&mut container).pod.uid = Some(uid.clone());
            }
            let changed = *entry.container != *container;
            if changed {
                entry.container = container;
            }
            if changed || entry.how.is_none() || !known_by_runtime && how.is_by_runtime() {
                entry.how = Some(how);
            }
        }
        if how.is_by_runtime() {
            entry.asked = Asked::No;
        }
        self.place(slot, place);
    }

    /// Takes in where a container's processes are.
    fn place(&mut self, slot: Slot, place: &Place) {
        if let Some(path) = &place.cgroup {
            if let Some(entry) = self.containers.get(slot) {
                entry.cgroup = Some(path.as_str().into());
            }
            let root = procfs::walked(path.as_bytes());
            let tells = cgroup::resolve(CgroupPath(&root), CgroupPath(b"")).is_some();
            // A slice or a unit is systemd's, with all that is in it.
            let is_own = !root.is_empty() && !cgroup::is_systemd_s(CgroupPath(&root));
            if !tells && is_own && self.containers.set_root(slot, root.into()) {
                // Some of these may have been its own.
                self.forget_homes(|home| matches!(home, Home::Host(_) | Home::Unclaimed { .. }));
                self.homes = true;
            }
        }
        if let Some(pid) = place.pid {
            self.look_at(slot, pid);
        }
        let key = self.containers.peek(slot).map(|entry| entry.container.key().into_owned());
        if key.is_some_and(|key| self.claims.pop(key.as_str()).is_some()) {
            self.forget_homes(|home| matches!(home, Home::Claim { .. }));
        }
    }

    /// Looks at a container's first process, if it is that: where its cgroup and namespaces are, whoever was there before.
    fn look_at(&mut self, slot: Slot, pid: u32) {
        let at_boot_ns = boot_ns();
        let Some(entry) = self.containers.peek(slot) else { return };
        let (id, has_cgroup) = (entry.container.id.clone(), entry.container.runtime != "podman");
        let known = entry.held.filter(Held::is_current);
        let Some(stat) = procfs::Stat::of(pid) else { return };
        if known.is_some_and(|held| procfs::is_same(held.sight.first, stat.id(pid))) {
            return;
        }
        let Some(cgroups) = procfs::cgroups(pid) else { return };
        let spaces = procfs::namespace(pid, "mnt").zip(procfs::namespace(pid, "pid"));
        // It is still the same process, and no other one of this pid.
        if procfs::Stat::of(pid) != Some(stat) {
            return;
        }
        let (v2, v1) = (CgroupPath(&cgroups.v2), CgroupPath(&cgroups.v1));
        let own = |path| cgroup::resolve(path, CgroupPath(b"")).filter(|found| found.id == id);
        let roots = [v2, v1].map(|path| own(path).map(|found| Box::from(found.root.0)));
        let told = [v2, v1].into_iter().any(|path| self.containers.under_root(path) == Some(slot));
        let in_own = roots.iter().any(Option::is_some);
        let slot = if in_own { self.move_home(slot, roots) } else { slot };
        let Some((mount, pid_ns)) = spaces.filter(|(mount, _)| Some(*mount) != self.host_mount) else { return };
        let sight = Sight { spaces: Spaces { mount, pid: pid_ns }, first: stat.id(pid), at_boot_ns };
        if in_own || told {
            self.containers.set_spaces(slot, sight, true);
        } else if !has_cgroup && cgroup::resolve(v2, v1).is_none() {
            self.containers.set_spaces_alone(slot, sight);
        }
    }

    /// The container's own cgroups are these. Where others were taken for them, somebody else was there: nothing that was
    /// known by the old place counts any more.
    fn move_home(&mut self, slot: Slot, roots: [Option<Box<[u8]>>; 2]) -> Slot {
        let Some(entry) = self.containers.get(slot) else { return slot };
        let agree = entry.roots.iter().zip(&roots).all(|(known, now)| known.is_none() || known == now);
        let slot = if agree { slot } else { self.containers.renew(slot) };
        if let Some(entry) = self.containers.get(slot)
            && entry.roots != roots
        {
            entry.roots = roots;
            self.forget_homes(|home| matches!(home, Home::Contradicted { .. }));
        }
        slot
    }
}
