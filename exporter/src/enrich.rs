//! Events come in, whose they are goes out: the host's, or a container's as its runtime describes it.
//!
//! The cgroup says whose a process is: the container's own part of the path is the runtime's to name, and only what lies
//! below is the container's. Namespaces and parents are witnesses against what a process could make of it. What the path
//! alone says is confirmed, or not, by the runtimes.

mod ask;
mod attribution;
pub mod cgroup;
pub mod container;
pub mod containerd;
mod containers;
pub mod cri;
pub mod docker;
pub mod files;
mod grpc;
mod home;
mod kin;
mod learn;
mod oci;
pub(crate) mod procfs;
pub mod runtime;
pub mod selection;
mod stand;
pub(crate) mod told;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use namespan_ebpf::wire::{self, CgroupKey, ns};
use tokio::sync::mpsc;

use crate::clock::boot_ns;
use crate::config::{Config, Enrich, RuntimeName, present};
use crate::event::{CgroupPath, Event, Kind, ProcessId};
use ask::bit;
pub use attribution::{Attribution, Entered, How, Owner, Unit};
use container::{Container, Labels};
use containers::{Containers, Slot, Spaces};
use files::Files;
use home::Home;
pub use kin::Entry;
use kin::{Kin, Weighed};
pub use learn::{Applied, Change, Changed};
use runtime::Runtime;

/// Cgroups remembered per container: those that systemd, dind or `docker exec` make below it, and the host's own.
const CGROUPS_PER_CONTAINER: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Users' containers that nobody has vouched for yet.
const CLAIMS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Where an event's process stands, before its container's description is there.
#[derive(Clone, Debug)]
pub struct Stand {
    whose: Whose,
    entry: Option<Entry>,
    entered: Option<Entered>,
    claimed: Option<Arc<str>>,
    nested: Option<Arc<str>>,
    /// Its cgroup decides of it, and of every process there alike.
    pub by_cgroup: bool,
}

#[derive(Clone, Debug)]
enum Whose {
    Host(Option<Arc<Unit>>),
    /// A cgroup that may turn out to be a container's.
    Unclaimed {
        path: Arc<[u8]>,
        since: Instant,
    },
    /// A container that a user's cgroup names.
    Claim {
        key: Arc<str>,
        since: Instant,
    },
    /// As it was known when the event came, should it be forgotten since.
    Container {
        slot: Slot,
        container: Arc<Container>,
        how: Option<How>,
    },
    Contradicted,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    Ready(Attribution),
    /// The runtimes have been asked: try again after each [`Update`], and take [`Enricher::settle`] at `until`.
    Wait {
        until: Instant,
    },
}

/// A runtime that tells of containers.
#[derive(Debug)]
pub struct Source {
    /// As in messages.
    pub name: &'static str,
    /// As [`Runtime::answers_for`](runtime::Runtime::answers_for).
    pub answers_for: &'static [&'static str],
    /// It reads files, and another source may know more.
    pub files: bool,
    /// Leads to its task.
    pub lookups: mpsc::Sender<String>,
}

/// A container as it is known by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownContainer {
    pub container: Arc<Container>,
    /// As [`Place::cgroup`](runtime::Place::cgroup).
    pub cgroup: Option<Box<str>>,
    /// Its processes have ended.
    pub is_gone: bool,
}

/// Of a user's container that nobody has vouched for.
#[derive(Clone, Copy, Debug)]
struct Claim {
    since: Instant,
    /// Its user's runtime does not know it.
    answered: bool,
}

/// All processes that are there, to be looked at bit by bit.
pub struct Survey(Box<dyn Iterator<Item = u32>>);

/// A process that was there before its events.
#[derive(Clone, Debug)]
pub struct Resident {
    pub pid: u32,
    pub stat: procfs::Stat,
    /// `None`: it is outside of containers.
    pub container: Option<Arc<Container>>,
    /// As [`Stand::by_cgroup`].
    pub by_cgroup: bool,
}

/// A process of which no event has been seen.
#[derive(Clone, Copy, Debug)]
pub struct Unseen<'a> {
    pub process: &'a wire::Process,
    pub id: ProcessId,
    pub parent: Option<ProcessId>,
}

#[derive(Debug)]
struct Told {
    source: Source,
    linked: bool,
    /// It has been there, or should be.
    degraded: bool,
    /// Nothing was heard of it yet.
    silent: bool,
}

/// Totals since the start, but for what says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Questions whose cgroup was remembered.
    pub hits: u64,
    /// Questions whose cgroup path had to be read.
    pub misses: u64,
    /// Containers forgotten for want of room, before their time.
    pub evictions: u64,
    /// How long the last of these had been remembered.
    pub evicted_age: Duration,
    /// Cgroups forgotten for want of room.
    pub cgroup_evictions: u64,
    /// Answers that name a container by its id alone.
    pub unresolved: u64,
    /// Answers that do not believe what the cgroup names.
    pub refused: u64,
    /// Questions to the runtime put off because too many were waiting.
    pub lookups_refused: u64,
    /// Containers that are remembered now.
    pub containers: u32,
    /// Sources that should tell, and do not now.
    pub degraded: u32,
}

/// The container of each event, through one cache lookup for most. Belongs to one task.
#[derive(Debug)]
pub struct Enricher {
    cgroups: LruCache<CgroupKey, Home>,
    containers: Containers,
    kin: Kin,
    claims: LruCache<Arc<str>, Claim>,
    sources: Vec<Told>,
    /// `None`: it could not be known.
    host_mount: Option<u32>,
    /// Whose some cgroups are was forgotten.
    homes: bool,
    /// Exits are told of.
    exits: bool,
    wait: Duration,
    negative: Duration,
    stats: Stats,
}

impl Stand {
    /// It may turn out to be a container's.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.whose, Whose::Unclaimed { .. } | Whose::Claim { .. })
    }
}

impl Enricher {
    /// `sources`: without any, containers are known by their ids only.
    #[must_use]
    pub fn new(config: &Enrich, sources: Vec<Source>) -> Self {
        let began_boot_ns = boot_ns();
        let told = |source| Told { source, linked: true, degraded: false, silent: true };
        Self {
            cgroups: LruCache::sparse(config.cache_entries.saturating_mul(CGROUPS_PER_CONTAINER)),
            containers: Containers::new(config.cache_entries, config.cache_grace),
            kin: Kin::new(began_boot_ns),
            claims: LruCache::sparse(CLAIMS),
            sources: sources.into_iter().map(told).collect(),
            host_mount: procfs::host_mount_ns(),
            homes: false,
            exits: false,
            wait: config.wait,
            negative: config.cache_negative,
            stats: Stats::default(),
        }
    }

    /// Where the event's process stands; asked once for each event, in their order.
    pub fn stand(&mut self, event: &Event<'_>, now: Instant) -> Stand {
        self.exits |= matches!(event.kind, Kind::Exit(_));
        let spaces = Spaces { mount: event.process.namespaces[ns::MNT], pid: event.process.namespaces[ns::PID] };
        let lineage = self.lineage(event, now);
        let home = self.home(event, lineage.is_none(), now);
        let by_path = if let Home::Container { slot, .. } = home { Some(slot) } else { None };
        // A container without a cgroup of its own is known by its namespaces.
        let by_spaces = || match home {
            Home::Host(_) | Home::Unclaimed { .. } => {
                self.containers.by_spaces_alone(spaces, event.process.time_boot_ns)
            }
            Home::Container { .. } | Home::Claim { .. } | Home::Contradicted { .. } => None,
        };
        let claimed = by_path.or_else(by_spaces);
        let weighed = self.standing(event, claimed, lineage, spaces);
        let standing = if let Weighed::Of(standing) = weighed { Some(standing) } else { None };
        let (entry, entered) = self.entry(event, standing, spaces);
        let slot = standing.map(|standing| standing.slot);
        let by_cgroup =
            weighed != Weighed::Refused && slot == by_path && matches!(home, Home::Container { .. } | Home::Host(_));
        // Only where it is doubted: a name costs an allocation.
        let named = if slot.is_none() || slot != claimed { self.named_by(&home) } else { None };
        let known = slot.and_then(|slot| Some((slot, Arc::clone(&self.containers.get(slot)?.container))));
        let (mut claimed_id, mut nested) = (None, None);
        let whose = match (known, home) {
            (Some((slot, container)), home) => {
                let moved = Some(slot) != claimed;
                claimed_id = named;
                if let Home::Container { nested: below, .. } = home {
                    nested = below.filter(|_| !moved);
                }
                Whose::Container { slot, container, how: moved.then_some(How::Lineage) }
            }
            (None, Home::Host(unit)) => Whose::Host(unit),
            (None, Home::Unclaimed { path, since }) => Whose::Unclaimed { path, since },
            (None, Home::Claim { key, since, .. }) => {
                claimed_id = named;
                Whose::Claim { key, since }
            }
            (None, Home::Contradicted { .. } | Home::Container { .. }) => {
                claimed_id = named;
                Whose::Contradicted
            }
        };
        Stand { whose, entry, entered, claimed: claimed_id.filter(|id| !id.is_empty()), nested, by_cgroup }
    }

    /// Whose it is, as far as is known by now.
    pub fn attribute(&mut self, stand: &Stand, now: Instant) -> Verdict {
        let until = match &stand.whose {
            Whose::Host(_) | Whose::Contradicted => None,
            Whose::Unclaimed { path, since } => {
                let told = self.sources.iter().any(|told| told.linked && told.source.answers_for.contains(&ANY_PATH));
                let known = self.containers.under_root(CgroupPath(path)).is_some();
                (told && !known).then(|| since.checked_add(self.wait)).flatten()
            }
            Whose::Claim { key, since } => {
                let known =
                    self.containers.find(key).is_some() || self.claims.peek(key).is_some_and(|claim| claim.answered);
                let asked = self.sources.iter().any(|told| told.linked && told.source.answers_for.contains(&ROOTLESS));
                (asked && !known).then(|| since.checked_add(self.wait)).flatten()
            }
            Whose::Container { slot, .. } => self.due(*slot, now),
        };
        match until {
            Some(until) if now < until => Verdict::Wait { until },
            _ => Verdict::Ready(self.settle(stand)),
        }
    }

    /// Whose it is, without any more waiting.
    pub fn settle(&mut self, stand: &Stand) -> Attribution {
        let (owner, how) = match &stand.whose {
            Whose::Host(unit) => (Owner::Host(unit.clone()), How::None),
            Whose::Contradicted => (Owner::Host(None), How::Contradicted),
            Whose::Unclaimed { path, .. } => match self.containers.under_root(CgroupPath(path)) {
                Some(slot) => self.described(slot),
                None => (Owner::Host(None), How::None),
            },
            Whose::Claim { key, .. } => match self.containers.find(key) {
                Some(slot) => self.described(slot),
                None => (Owner::Host(None), How::Unverified),
            },
            Whose::Container { slot, container, how } => {
                let (owner, known) = match self.containers.get(*slot) {
                    Some(_) => self.described(*slot),
                    None => (Owner::Container(Arc::clone(container)), How::CgroupPath),
                };
                (owner, how.unwrap_or(known))
            }
        };
        self.stats.unresolved += u64::from(how == How::CgroupPath);
        self.stats.refused += u64::from(how.is_doubt());
        Attribution {
            owner,
            how,
            entry: stand.entry,
            entered: stand.entered.clone(),
            claimed: stand.claimed.clone().filter(|_| how.is_doubt()),
            nested: stand.nested.clone(),
        }
    }

    /// The owner of an earlier event, as it is known by now.
    pub fn newest(&mut self, owner: &Owner) -> Owner {
        if let Owner::Container(container) = owner
            && let Some(slot) = self.containers.find(&container.key())
            && let Some(entry) = self.containers.get(slot)
        {
            return Owner::Container(Arc::clone(&entry.container));
        }
        owner.clone()
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let degraded = self.sources.iter().filter(|told| told.degraded).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Stats { containers: count(self.containers.len()), degraded: count(degraded), ..self.stats }
    }

    /// Sources of which nothing was heard yet: not what runs, and not that they are not there.
    pub fn silent(&self) -> impl Iterator<Item = &'static str> {
        self.sources.iter().filter(|told| told.silent).map(|told| told.source.name)
    }

    fn insert(&mut self, container: Arc<Container>, how: Option<How>, now: Instant) -> Slot {
        let (slot, evicted) = self.containers.insert(container, how, now);
        if let Some(since) = evicted {
            self.stats.evictions += 1;
            self.stats.evicted_age = now.saturating_duration_since(since);
        }
        slot
    }

    fn named_by(&mut self, home: &Home) -> Option<Arc<str>> {
        match home {
            Home::Container { slot, .. } => Some(self.containers.get(*slot)?.container.id.as_str().into()),
            Home::Claim { id, .. } | Home::Contradicted { id } => Some(Arc::clone(id)),
            Home::Host(_) | Home::Unclaimed { .. } => None,
        }
    }

    /// What is known by now, be it the id alone.
    fn described(&mut self, slot: Slot) -> (Owner, How) {
        match self.containers.get(slot) {
            Some(entry) => (Owner::Container(Arc::clone(&entry.container)), entry.how.unwrap_or(How::CgroupPath)),
            None => (Owner::Host(None), How::None),
        }
    }
}

/// The runtimes that the settings ask for, and whether each reads files.
#[must_use]
pub fn runtimes(config: &Config) -> Vec<(Box<dyn Runtime>, bool)> {
    let enrich = &config.enrich;
    let labels = Labels { sent: enrich.labels.clone(), matched: config.label_keys().map(ToOwned::to_owned).collect() };
    let capacity = enrich.cache_entries;
    // Before its records are told without any name at all.
    let patience = enrich.wait * 3 / 4;
    let mut runtimes: Vec<(Box<dyn Runtime>, bool)> = Vec::new();
    let storage = || (PathBuf::from("/var/lib/containers/storage"), PathBuf::from("/run/containers/storage"));
    for name in RuntimeName::ALL {
        let Some(socket) = present(&enrich.runtimes.sockets(name)).map(Path::to_owned) else { continue };
        let kept = || labels.clone();
        runtimes.push(match name {
            RuntimeName::Docker | RuntimeName::Podman => {
                (Box::new(docker::Daemon::new(name.name(), socket, kept(), capacity, patience)), false)
            }
            RuntimeName::Containerd => (Box::new(containerd::Containerd::new(socket, kept(), capacity)), false),
            RuntimeName::Crio => (Box::new(cri::Cri::new(name.name(), socket, kept(), capacity)), false),
        });
        if !enrich.runtimes.files {
            continue;
        }
        let files = match name {
            RuntimeName::Docker => Files::new(files::Docker::new("/var/lib/docker".into()), kept(), capacity),
            RuntimeName::Containerd => {
                Files::new(files::Containerd::new(Path::new("/run/containerd")), kept(), capacity)
            }
            RuntimeName::Crio => {
                let (graph, run) = storage();
                Files::new(files::Storage::crio(graph, run), kept(), capacity)
            }
            RuntimeName::Podman => {
                // Users can make as many as they like, and are not to push out root's.
                let few = NonZeroUsize::new(capacity.get() / 4).unwrap_or(NonZeroUsize::MIN);
                runtimes.push((Box::new(Files::of_users(files::Users::default(), kept(), few)), true));
                let (graph, run) = storage();
                Files::new(files::Storage::podman(graph, run), kept(), capacity)
            }
        };
        runtimes.push((Box::new(files), true));
    }
    runtimes
}

/// Of [`Runtime::answers_for`](runtime::Runtime::answers_for): containers of users, by key.
pub const ROOTLESS: &str = "rootless";
/// Of [`Runtime::answers_for`](runtime::Runtime::answers_for): containers whose cgroup may have any path, which it tells.
pub const ANY_PATH: &str = "any_path";

#[cfg(test)]
mod tests;
