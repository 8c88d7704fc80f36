//! Whose the processes of a cgroup are: read from its path once, and remembered by its id.

use std::sync::Arc;
use std::time::Instant;

use namespan_ebpf::wire::{self, CgroupKey};

use super::cgroup::{self, ContainerRef};
use super::container::{self, Container};
use super::containers::Slot;
use super::{Claim, Enricher, ROOTLESS, Unit};
use crate::event::{CgroupPath, Event};

/// Whose the processes of a cgroup are.
#[derive(Clone, Debug)]
pub(super) enum Home {
    Host(Option<Arc<Unit>>),
    Unclaimed { path: Arc<[u8]>, since: Instant },
    Claim { key: Arc<str>, id: Arc<str>, since: Instant },
    Container { slot: Slot, nested: Option<Arc<str>> },
    Contradicted { id: Arc<str> },
}

impl Enricher {
    /// `binds`: the process comes from no container, so that its cgroup may be a container's that is not known yet.
    pub(super) fn home(&mut self, event: &Event<'_>, binds: bool, now: Instant) -> Home {
        let key = CgroupKey { v2: event.process.cgroup_id, v1: event.process.cgroup_v1_id };
        if let Some(home) = self.cgroups.get(&key).cloned()
            && self.still_holds(&home, now)
        {
            self.stats.hits += 1;
            return home;
        }
        self.stats.misses += 1;
        // A path with a hole in it may begin anywhere.
        if event.process.flags & wire::flag::CGROUP_FAULT != 0 {
            return Home::Contradicted { id: "".into() };
        }
        self.containers.forget_gone(now);
        let home = self.find_home(event.cgroup, event.cgroup_v1, binds, now);
        // What is refused to one process may be another's.
        if (binds || !matches!(home, Home::Contradicted { .. }))
            && let Some((evicted, _)) = self.cgroups.push(key, home.clone())
            && evicted != key
        {
            self.stats.cgroup_evictions += 1;
        }
        home
    }

    fn still_holds(&mut self, home: &Home, now: Instant) -> bool {
        match home {
            Home::Host(_) | Home::Contradicted { .. } => true,
            Home::Unclaimed { since, .. } | Home::Claim { since, .. } => {
                now.saturating_duration_since(*since) < self.negative.max(self.wait)
            }
            Home::Container { slot, .. } => self.containers.live(*slot, now).is_some(),
        }
    }

    pub(super) fn find_home(&mut self, v2: CgroupPath<'_>, v1: CgroupPath<'_>, binds: bool, now: Instant) -> Home {
        let told = self.containers.under_root(v2).or_else(|| self.containers.under_root(v1));
        if let Some(slot) = told {
            return Home::Container { slot, nested: None };
        }
        let Some(found) = cgroup::resolve(v2, v1) else {
            if let Some(unit) = cgroup::unit(v2, v1) {
                let user_unit = unit.user_unit.map(ToOwned::to_owned);
                return Home::Host(Some(Arc::new(Unit { name: unit.unit.to_owned(), user_unit })));
            }
            let unclaimed = [v2, v1].into_iter().find(|path| cgroup::is_unclaimed(*path));
            return match unclaimed {
                Some(path) => Home::Unclaimed { path: path.0.into(), since: now },
                None => Home::Host(None),
            };
        };
        if found.user.is_some() {
            return self.claim(&found, now);
        }
        let slot = if binds { Some(self.slot(&found, now)) } else { self.known_slot(&found, now) };
        match slot.filter(|slot| self.is_at_home(*slot, &found, binds)) {
            Some(slot) => Home::Container { slot, nested: found.nested.map(Arc::from) },
            None => Home::Contradicted { id: found.id.into() },
        }
    }

    /// A user's container is what that user's runtime vouches for, unless it is named like one of root's.
    fn claim(&mut self, found: &ContainerRef<'_>, now: Instant) -> Home {
        let id: Arc<str> = found.id.into();
        if self.containers.find(found.id).is_some() {
            return Home::Contradicted { id };
        }
        let key: Arc<str> = container::key(found.runtime, None, found.user, found.id).into();
        if let Some(slot) = self.containers.find(&key)
            && self.containers.live(slot, now).is_some()
        {
            return Home::Container { slot, nested: found.nested.map(Arc::from) };
        }
        let negative = self.negative.max(self.wait);
        let since = match self.claims.get(&key) {
            Some(claim) if now.saturating_duration_since(claim.since) < negative => claim.since,
            _ => {
                self.claims.put(Arc::clone(&key), Claim { since: now, answered: false });
                for told in
                    self.sources.iter().filter(|told| told.linked && told.source.answers_for.contains(&ROOTLESS))
                {
                    self.stats.lookups_refused += u64::from(told.source.lookups.try_send(key.as_ref().into()).is_err());
                }
                now
            }
        };
        Home::Claim { key, id, since }
    }

    fn known_slot(&mut self, found: &ContainerRef<'_>, now: Instant) -> Option<Slot> {
        let slot = self.containers.find(&container::key(found.runtime, None, None, found.id))?;
        self.containers.live(slot, now).is_some().then_some(slot)
    }

    fn slot(&mut self, found: &ContainerRef<'_>, now: Instant) -> Slot {
        if let Some(slot) = self.known_slot(found, now) {
            return slot;
        }
        let mut container = Container::of_id(found.id.to_owned(), found.runtime);
        container.pod.uid = found.pod_uid.map(|uid| uid.replace('_', "-"));
        self.insert(Arc::new(container), None, now)
    }

    /// Whether this is where the container's own cgroup is: where it was first seen, or where its first process is, the
    /// same in each hierarchy.
    fn is_at_home(&mut self, slot: Slot, found: &ContainerRef<'_>, binds: bool) -> bool {
        let Some(entry) = self.containers.get(slot) else { return true };
        let (this, other) = (usize::from(found.in_v1), usize::from(!found.in_v1));
        match (&entry.roots[this], &entry.roots[other]) {
            (Some(root), _) | (None, Some(root)) => **root == *found.root.0,
            (None, None) => {
                if binds {
                    entry.roots[this] = Some(found.root.0.into());
                }
                binds
            }
        }
    }

    pub(super) fn forget_homes(&mut self, of: impl Fn(&Home) -> bool) {
        let keys: Vec<_> = self.cgroups.iter().filter(|(_, home)| of(home)).map(|(key, _)| *key).collect();
        for key in keys {
            self.cgroups.pop(&key);
        }
    }
}
