//! Events come in, whose they are goes out: the host's, or a container's as its runtime describes it.

pub mod cgroup;
pub mod container;
mod containers;
pub mod docker;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use namespan_ebpf::wire;
use tokio::sync::mpsc;

use crate::config::Enrich;
use crate::event::Event;
use cgroup::ContainerRef;
use container::Container;
use containers::{Containers, Slot, State};

/// Cgroups remembered per container: those that systemd, dind or `docker exec` make below it, and the host's own.
const CGROUPS_PER_CONTAINER: NonZeroUsize = NonZeroUsize::new(4).unwrap();

const HOST: Attribution = Attribution { owner: Owner::Host, how: How::None };

/// Whose an event is, and how that is known.
#[derive(Clone, Debug)]
pub struct Attribution {
    pub owner: Owner,
    pub how: How,
}

#[derive(Clone, Debug)]
pub enum Owner {
    Host,
    /// A new `Arc` whenever the container's data changes, and only then.
    Container(Arc<Container>),
}

/// Where the knowledge of a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The runtime told by itself, when the container was made.
    RuntimeEvent,
    /// The runtime was asked.
    RuntimeApi,
    /// The id from the cgroup path, and no more.
    CgroupPath,
    /// No container.
    None,
}

impl How {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RuntimeEvent => "runtime_event",
            Self::RuntimeApi => "runtime_api",
            Self::CgroupPath => "cgroup_path",
            Self::None => "none",
        }
    }
}

#[derive(Clone, Debug)]
pub enum Verdict {
    Ready(Attribution),
    /// The runtime has been asked: try again after each [`Update`], and take [`Enricher::attribute_now`] at `until`.
    Wait {
        until: Instant,
    },
}

/// What a runtime's task tells.
#[derive(Clone, Debug)]
pub enum Update {
    /// A container is there, or has changed.
    Known {
        container: Arc<Container>,
        how: How,
    },
    /// The runtime has no such container.
    Unknown {
        id: String,
    },
    /// A container has ended.
    Gone {
        id: String,
    },
    State(Link),
}

/// The connection to a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Connected; what already runs is told from now on.
    Connected,
    Lost {
        reason: String,
    },
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Questions whose cgroup was remembered; a record that waits asks several times.
    pub hits: u64,
    /// Questions whose cgroup path had to be read.
    pub misses: u64,
    /// Containers forgotten for want of room, before their time.
    pub evictions: u64,
    /// Cgroups forgotten for want of room.
    pub cgroup_evictions: u64,
    /// Answers that name a container by its id alone.
    pub unresolved: u64,
    /// Questions to the runtime put off because too many were waiting.
    pub lookups_refused: u64,
}

/// The container of each event, through one cache lookup for most. Belongs to one task.
#[derive(Debug)]
pub struct Enricher {
    cgroups: LruCache<CgroupKey, Home>,
    containers: Containers,
    /// `None`: no runtime to ask.
    lookups: Option<mpsc::Sender<String>>,
    lost: bool,
    wait: Duration,
    negative: Duration,
    stats: Stats,
}

/// Both ids, as both paths decide: on a hybrid host either hierarchy may know what the other does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CgroupKey {
    v2: u64,
    v1: u64,
}

#[derive(Clone, Copy, Debug)]
enum Home {
    Host,
    Container(Slot),
}

impl Enricher {
    /// `lookups` leads to a runtime's task, such as [`docker::watch`]; `None`: containers are known by their ids only.
    #[must_use]
    pub fn new(config: &Enrich, lookups: Option<mpsc::Sender<String>>) -> Self {
        Self {
            cgroups: LruCache::sparse(config.cache_entries.saturating_mul(CGROUPS_PER_CONTAINER)),
            containers: Containers::new(config.cache_entries, config.cache_grace),
            lookups,
            lost: false,
            wait: config.wait,
            negative: config.cache_negative,
            stats: Stats::default(),
        }
    }

    /// Whose this event is, as far as is known by now.
    pub fn attribute(&mut self, event: &Event<'_>, now: Instant) -> Verdict {
        match self.home(event, now) {
            Home::Host => Verdict::Ready(HOST),
            Home::Container(slot) => self.verdict(slot, now),
        }
    }

    /// Whose this event is, without any more waiting.
    pub fn attribute_now(&mut self, event: &Event<'_>, now: Instant) -> Attribution {
        match self.home(event, now) {
            Home::Host => HOST,
            Home::Container(slot) => self.settle(slot),
        }
    }

    /// The owner of an earlier event, as it is known by now.
    pub fn newest(&mut self, owner: &Owner) -> Owner {
        if let Owner::Container(container) = owner
            && let Some(slot) = self.containers.find(&container.id)
            && let Some(entry) = self.containers.get(slot)
        {
            return Owner::Container(Arc::clone(&entry.container));
        }
        owner.clone()
    }

    /// Takes in what a runtime's task tells.
    pub fn apply(&mut self, update: Update, now: Instant) {
        self.containers.forget_gone(now);
        match update {
            Update::Known { container, how } => self.learn(container, how),
            Update::Unknown { id } => {
                if let Some(slot) = self.containers.find(&id)
                    && let Some(entry) = self.containers.get(slot)
                    // The answer may have been overtaken by the container's own event.
                    && !matches!(entry.state, State::Known(_))
                {
                    entry.state = State::Unknown { since: now };
                }
            }
            Update::Gone { id } => self.containers.mark_gone(&id, now),
            Update::State(Link::Connected) => {
                self.lost = false;
                self.containers.ask_again();
            }
            Update::State(Link::Lost { .. }) => self.lost = true,
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn home(&mut self, event: &Event<'_>, now: Instant) -> Home {
        let key = CgroupKey { v2: event.process.cgroup_id, v1: event.process.cgroup_v1_id };
        if let Some(home) = self.cgroups.get(&key).copied()
            && self.still_holds(home, now)
        {
            self.stats.hits += 1;
            return home;
        }
        self.stats.misses += 1;
        self.containers.forget_gone(now);
        let home = match cgroup::resolve(event.cgroup, event.cgroup_v1) {
            Some(found) => Home::Container(self.slot(found, now)),
            None => Home::Host,
        };
        // A path with a hole in it says nothing about the next event's.
        if event.process.flags & wire::flag::CGROUP_FAULT == 0
            && let Some((evicted, _)) = self.cgroups.push(key, home)
            && evicted != key
        {
            self.stats.cgroup_evictions += 1;
        }
        home
    }

    fn still_holds(&mut self, home: Home, now: Instant) -> bool {
        match home {
            Home::Host => true,
            Home::Container(slot) => self.containers.live(slot, now).is_some(),
        }
    }

    fn slot(&mut self, found: ContainerRef<'_>, now: Instant) -> Slot {
        if let Some(slot) = self.containers.find(found.id)
            && self.containers.live(slot, now).is_some()
        {
            return slot;
        }
        self.insert(Arc::new(Container::of_id(found.id.to_owned(), found.runtime)), State::New)
    }

    fn insert(&mut self, container: Arc<Container>, state: State) -> Slot {
        let (slot, evicted) = self.containers.insert(container, state);
        self.stats.evictions += u64::from(evicted);
        slot
    }

    fn learn(&mut self, container: Arc<Container>, how: How) {
        let Some(slot) = self.containers.find(&container.id) else {
            self.insert(container, State::Known(how));
            return;
        };
        self.containers.mark_back(slot);
        let Some(entry) = self.containers.get(slot) else { return };
        if *entry.container != *container {
            entry.container = container;
            entry.state = State::Known(how);
        } else if !matches!(entry.state, State::Known(_)) {
            entry.state = State::Known(how);
        }
    }

    fn verdict(&mut self, slot: Slot, now: Instant) -> Verdict {
        let within = |since, limit| now.saturating_duration_since(since) < limit;
        let retry = self.negative.max(self.wait);
        let since = match self.state(slot) {
            State::Known(_) => return Verdict::Ready(self.settle(slot)),
            State::Unknown { since } if within(since, self.negative) => return Verdict::Ready(self.settle(slot)),
            State::Asked { since } if within(since, retry) => Some(since),
            State::Wanted { since } if within(since, retry) => self.ask(slot, since),
            State::New | State::Unknown { .. } | State::Asked { .. } | State::Wanted { .. } => self.ask(slot, now),
        };
        // One wait per container, not per record: a runtime that hangs delays its first records only.
        match since.and_then(|since| since.checked_add(self.wait)) {
            Some(until) if now < until && !self.lost => Verdict::Wait { until },
            _ => Verdict::Ready(self.settle(slot)),
        }
    }

    fn state(&mut self, slot: Slot) -> State {
        self.containers.get(slot).map_or(State::New, |entry| entry.state)
    }

    /// Puts the question to the runtime; since when an answer is awaited, if one can be.
    fn ask(&mut self, slot: Slot, since: Instant) -> Option<Instant> {
        let lookups = self.lookups.as_ref().filter(|lookups| !self.lost && !lookups.is_closed())?;
        let entry = self.containers.get(slot)?;
        // Docker knows nothing of other runtimes' containers; cri-dockerd's may look like containerd's.
        if !matches!(entry.container.runtime, "docker" | "containerd") {
            return None;
        }
        entry.state = if lookups.try_send(entry.container.id.clone()).is_ok() {
            State::Asked { since }
        } else {
            self.stats.lookups_refused += 1;
            State::Wanted { since }
        };
        Some(since)
    }

    /// What is known by now, be it the id alone.
    fn settle(&mut self, slot: Slot) -> Attribution {
        let Some(entry) = self.containers.get(slot) else { return HOST };
        let how = if let State::Known(how) = entry.state {
            how
        } else {
            self.stats.unresolved += 1;
            How::CgroupPath
        };
        Attribution { owner: Owner::Container(entry.container.clone()), how }
    }
}

#[cfg(test)]
mod tests;
