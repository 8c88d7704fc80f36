//! The containers an [`Enricher`](super::Enricher) remembers: a bounded table, found by id or by slot.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::container::Container;
use super::procfs::is_same;
use super::{How, KnownContainer};
use crate::event::{CgroupPath, ProcessId};

/// What a key may be: that of a [`Container`].
type Key = Box<str>;

/// Entries in a table that never exceeds its capacity. What has no room pushes out a container that is gone, else one
/// without events since the hand of the clock last passed it.
#[derive(Debug)]
pub(super) struct Containers {
    by_key: HashMap<Key, usize>,
    /// Of those whose cgroup does not tell of them.
    by_root: HashMap<Box<[u8]>, Slot>,
    /// Those that have a namespace of this number, or had it when the records that are yet to be read were written; none is
    /// there without its [`Held`].
    by_mount_ns: HashMap<u32, Vec<Slot>>,
    by_pid_ns: HashMap<u32, Vec<Slot>>,
    entries: Vec<Entry>,
    /// Those marked as gone, oldest first; stale where the container has come back.
    gone: VecDeque<(Instant, Slot)>,
    free: Vec<usize>,
    hand: usize,
    serial: u64,
    capacity: usize,
    grace: Duration,
}

/// A place in the table, as long as the same container holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    index: usize,
    serial: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub container: Arc<Container>,
    /// Where the knowledge of it comes from; `None`: there is nothing but the id.
    pub how: Option<How>,
    pub asked: Asked,
    /// Where its runtime says that its cgroup is.
    pub cgroup: Option<Box<str>>,
    /// Its own cgroup in the v2 hierarchy and in that of v1, leaf first, as first seen or as its first process has it.
    pub roots: [Option<Box<[u8]>>; 2],
    /// `None` when its first process has exited: the namespaces' numbers may be those of others then.
    pub held: Option<Held>,
    /// Of the first process before that one, until its exit is read: records of then may still come.
    before: Option<Held>,
    /// It has no cgroup of its own.
    pub spaces_alone: bool,
    key: Key,
    /// As in `by_root`.
    told_root: Option<Box<[u8]>>,
    serial: u64,
    since: Instant,
    gone: Option<Instant>,
    used: bool,
}

/// Whether its runtime has been asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    No,
    /// The question found no room.
    Wanted {
        since: Instant,
    },
    Yes {
        since: Instant,
        /// A bit for each source that has not answered.
        open: u32,
    },
    /// Nobody knows it.
    Unknown {
        since: Instant,
    },
}

/// Namespaces by which a container's processes are known, by inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spaces {
    pub mount: u32,
    pub pid: u32,
}

/// A container's first process, where it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub spaces: Spaces,
    /// Of `/proc`, its start is in whole ticks.
    pub first: ProcessId,
    /// When: what was seen in `/proc` is no news of what came before, which may be read later.
    pub at_boot_ns: u64,
}

/// The namespaces by which a container's processes are known, and when: a number may be another's before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub sight: Sight,
    /// From then on they are another's, or the runtime has said that it has ended.
    until_boot_ns: u64,
    /// As far as the PID namespace goes; 0: it has always been another's.
    pids_until_boot_ns: u64,
    /// When the first process was found to be gone, though its exit had not been read.
    missed_boot_ns: Option<u64>,
}

impl Held {
    fn holds(&self, at_boot_ns: u64) -> bool {
        (self.sight.at_boot_ns..self.until_boot_ns).contains(&at_boot_ns)
    }

    fn holds_pids(&self, at_boot_ns: u64) -> bool {
        self.holds(at_boot_ns) && at_boot_ns < self.pids_until_boot_ns
    }

    fn is_in_mount_ns(&self, inode: u32) -> bool {
        self.sight.spaces.mount == inode
    }

    fn is_in_pid_ns(&self, inode: u32) -> bool {
        self.sight.spaces.pid == inode && self.pids_until_boot_ns > 0
    }

    /// Nobody has taken its place since.
    pub fn is_current(&self) -> bool {
        self.until_boot_ns == u64::MAX
    }
}

impl Entry {
    /// Which of its first processes it was known by then, or is known by.
    pub fn held_at(&self, at_boot_ns: u64) -> Option<&Held> {
        self.before.as_ref().filter(|before| before.holds(at_boot_ns)).or(self.held.as_ref())
    }

    /// It is known by this process, or was.
    pub fn is_first(&self, process: ProcessId) -> bool {
        self.all_held().any(|held| is_same(held.sight.first, process))
    }

    fn all_held(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().chain(&self.before)
    }

    fn all_held_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.held.iter_mut().chain(&mut self.before)
    }
}

impl From<&Entry> for KnownContainer {
    fn from(entry: &Entry) -> Self {
        let (container, cgroup) = (Arc::clone(&entry.container), entry.cgroup.clone());
        Self { container, cgroup, is_gone: entry.gone.is_some() }
    }
}

/// One of an entry's two.
type Which = fn(&mut Entry) -> &mut Option<Held>;
const HELD: Which = |entry| &mut entry.held;
const BEFORE: Which = |entry| &mut entry.before;

impl Containers {
    pub fn new(capacity: NonZeroUsize, grace: Duration) -> Self {
        Self {
            by_key: HashMap::new(),
            by_root: HashMap::new(),
            by_mount_ns: HashMap::new(),
            by_pid_ns: HashMap::new(),
            entries: Vec::new(),
            gone: VecDeque::new(),
            free: Vec::new(),
            hand: 0,
            serial: 0,
            capacity: capacity.get(),
            grace,
        }
    }

    pub fn find(&self, key: &str) -> Option<Slot> {
        let index = *self.by_key.get(key)?;
        Some(Slot { index, serial: self.entries.get(index)?.serial })
    }

    /// The entry, unless another container has its place or its time is over.
    pub fn live(&mut self, slot: Slot, now: Instant) -> Option<&mut Entry> {
        let grace = self.grace;
        let entry = self.get(slot)?;
        if entry.gone.is_some_and(|since| now.saturating_duration_since(since) >= grace) {
            return None;
        }
        entry.used = true;
        Some(entry)
    }

    pub fn peek(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.index).filter(|entry| entry.serial == slot.serial)
    }

    pub fn get(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index).filter(|entry| entry.serial == slot.serial)
    }

    /// Adds a container that is not in the table. One that was pushed out for it before its time had been there since then.
    pub fn insert(&mut self, container: Arc<Container>, how: Option<How>, now: Instant) -> (Slot, Option<Instant>) {
        // One whose time is over makes way for itself.
        if let Some(old) = self.find(&container.key()) {
            self.remove(old);
        }
        let evicted = if self.by_key.len() >= self.capacity { self.make_room() } else { None };
        self.serial += 1;
        let key: Key = container.key().into();
        let entry = Entry {
            container,
            how,
            asked: Asked::No,
            cgroup: None,
            roots: [None, None],
            held: None,
            before: None,
            spaces_alone: false,
            key: key.clone(),
            told_root: None,
            serial: self.serial,
            since: now,
            gone: None,
            used: false,
        };
        let index = self.free.pop().unwrap_or(self.entries.len());
        match self.entries.get_mut(index) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.by_key.insert(key, index);
        (Slot { index, serial: self.serial }, evicted)
    }

    /// `now_boot_ns` is `now`: records of what was before may still come.
    pub fn mark_gone(&mut self, key: &str, now: Instant, now_boot_ns: u64) {
        let Some(slot) = self.find(key) else { return };
        let Some(entry) = self.get(slot) else { return };
        if let Some(held) = &mut entry.held {
            held.until_boot_ns = held.until_boot_ns.min(now_boot_ns);
        }
        if entry.gone.is_none() {
            entry.gone = Some(now);
            self.gone.push_back((now, slot));
        }
        // Containers that restart for ever leave a stale mark each time.
        if self.gone.len() > 2 * self.capacity {
            let entries = &self.entries;
            self.gone.retain(|(since, slot)| is_gone(entries, *slot, *since));
        }
    }

    pub fn mark_back(&mut self, slot: Slot) {
        if let Some(entry) = self.get(slot) {
            entry.gone = None;
        }
    }

    /// Drops what has been gone for the grace period.
    pub fn forget_gone(&mut self, now: Instant) {
        while let Some((since, slot)) = self.gone.front().copied()
            && now.saturating_duration_since(since) >= self.grace
        {
            self.gone.pop_front();
            if is_gone(&self.entries, slot, since) {
                self.remove(slot);
            }
        }
    }

    /// The container whose cgroup, or one above, was told to be this.
    pub fn under_root(&self, path: CgroupPath<'_>) -> Option<Slot> {
        if self.by_root.is_empty() {
            return None;
        }
        path.from_root().find_map(|root| self.by_root.get(root.0)).copied()
    }

    /// Its runtime says that this is its cgroup, which does not tell of it. False: that was known.
    pub fn set_root(&mut self, slot: Slot, root: Box<[u8]>) -> bool {
        if self.by_root.get(&root) == Some(&slot) {
            return false;
        }
        if self.by_root.get(&root).is_some_and(|holder| self.peek(*holder).is_some_and(|entry| entry.gone.is_none())) {
            // Who shares another one's cgroup can't be told from it by that.
            return false;
        }
        let Some(entry) = self.get(slot) else { return false };
        if let Some(old) = entry.told_root.replace(root.clone())
            && self.by_root.get(&old) == Some(&slot)
        {
            self.by_root.remove(&old);
        }
        self.by_root.insert(root, slot);
        true
    }

    /// The same container in a new place: who was known by the old one is not.
    pub fn renew(&mut self, slot: Slot) -> Slot {
        self.leave_spaces(slot);
        self.serial += 1;
        let renewed = Slot { index: slot.index, serial: self.serial };
        let Some(entry) = self.get(slot) else { return slot };
        entry.serial = renewed.serial;
        if let Some(root) = entry.told_root.clone() {
            self.by_root.insert(root, renewed);
        }
        renewed
    }

    /// Its processes are known by these namespaces. The mount namespace is its own, and whoever else had one of this number
    /// has none any more; so is the PID namespace, unless it `shares_pids` with whoever has that.
    pub fn set_spaces(&mut self, slot: Slot, sight: Sight, shares_pids: bool) {
        let Sight { spaces, first, at_boot_ns } = sight;
        let Some(entry) = self.get(slot) else { return };
        let known = entry.held.filter(|held| !is_same(held.sight.first, first));
        // `/proc` may have shown the next one already.
        let next_boot_ns = known.map(|held| held.sight.at_boot_ns).filter(|next| *next > at_boot_ns);
        let which = if next_boot_ns.is_some() { BEFORE } else { HELD };
        if next_boot_ns.is_none() && known.is_some() {
            self.leave(slot, BEFORE);
            if let Some(entry) = self.get(slot) {
                entry.before = entry.held.take();
            }
        }
        self.leave(slot, which);
        if next_boot_ns.is_none()
            && let Some(before) = self.get(slot).and_then(|entry| entry.before.as_mut())
        {
            before.until_boot_ns = before.until_boot_ns.min(at_boot_ns);
        }
        let is_shared = shares_pids && self.in_pid_ns(spaces.pid, at_boot_ns).is_some();
        let mut until_boot_ns = next_boot_ns.unwrap_or(u64::MAX);
        let mut pids_until_boot_ns = if is_shared { 0 } else { u64::MAX };
        let Self { by_mount_ns, by_pid_ns, entries, .. } = self;
        let others = by_mount_ns.entry(spaces.mount).or_default();
        for other in others.iter() {
            let held = entries.get_mut(other.index).into_iter().flat_map(Entry::all_held_mut);
            for held in held.filter(|held| held.is_in_mount_ns(spaces.mount)) {
                yield_to(&mut held.until_boot_ns, held.sight.at_boot_ns, &mut until_boot_ns, at_boot_ns);
            }
        }
        add(others, slot);
        if !is_shared {
            let others = by_pid_ns.entry(spaces.pid).or_default();
            for other in others.iter() {
                let held = entries.get_mut(other.index).into_iter().flat_map(Entry::all_held_mut);
                for held in held.filter(|held| held.is_in_pid_ns(spaces.pid)) {
                    yield_to(&mut held.pids_until_boot_ns, held.sight.at_boot_ns, &mut pids_until_boot_ns, at_boot_ns);
                }
            }
            add(others, slot);
        }
        if let Some(entry) = self.get(slot) {
            *which(entry) = Some(Held { sight, until_boot_ns, pids_until_boot_ns, missed_boot_ns: None });
        }
    }

    /// It has no cgroup of its own, and is known by its namespaces alone.
    pub fn set_spaces_alone(&mut self, slot: Slot, sight: Sight) {
        self.set_spaces(slot, sight, true);
        if let Some(entry) = self.get(slot) {
            entry.spaces_alone = true;
        }
    }

    /// A process of the container has exited.
    pub fn exited(&mut self, slot: Slot, process: ProcessId) {
        for which in [HELD, BEFORE] {
            let held = self.get(slot).and_then(|entry| *which(entry));
            if held.is_some_and(|held| is_same(held.sight.first, process)) {
                self.leave(slot, which);
            }
        }
    }

    /// Its first process of then is gone from `/proc`, and its exit has not been read. Whether it was still there then, as far
    /// as can be told: what is read next may be the exit, unless it is of a time at which the process was already gone. Then
    /// the exit was lost.
    pub fn missed(&mut self, slot: Slot, at_boot_ns: u64, now_boot_ns: u64) -> bool {
        let Some(entry) = self.get(slot) else { return false };
        let is_before = entry.before.is_some_and(|before| before.holds(at_boot_ns));
        let which = if is_before { BEFORE } else { HELD };
        let Some(held) = which(entry) else { return false };
        let was_there = at_boot_ns <= *held.missed_boot_ns.get_or_insert(now_boot_ns);
        if !was_there {
            self.leave(slot, which);
        }
        was_there
    }

    /// By which namespaces its processes were known then.
    pub fn spaces(&self, slot: Slot, at_boot_ns: u64) -> Option<Spaces> {
        Some(self.peek(slot)?.all_held().find(|held| held.holds(at_boot_ns))?.sight.spaces)
    }

    /// The container without a cgroup of its own in whose mount namespace this was. Nothing but `/proc` tells of one, and so of
    /// all the time that its first process has been there.
    pub fn by_spaces_alone(&self, spaces: Spaces, at_boot_ns: u64) -> Option<Slot> {
        let was_there = |held: &Held| {
            held.is_in_mount_ns(spaces.mount)
                && (held.sight.first.start_boot_ns..held.until_boot_ns).contains(&at_boot_ns)
        };
        let is_alone =
            |slot: &&Slot| self.peek(**slot).is_some_and(|entry| entry.spaces_alone && entry.all_held().any(was_there));
        self.by_mount_ns.get(&spaces.mount)?.iter().find(is_alone).copied()
    }

    /// Its namespaces may be those of others from now on.
    fn leave_spaces(&mut self, slot: Slot) {
        self.leave(slot, HELD);
        self.leave(slot, BEFORE);
    }

    fn leave(&mut self, slot: Slot, which: Which) {
        let Some(entry) = self.get(slot) else { return };
        let Some(left) = which(entry).take() else { return };
        let Spaces { mount, pid } = left.sight.spaces;
        let still_there = entry.all_held().any(|held| held.is_in_mount_ns(mount));
        let still_has_pids = entry.all_held().any(|held| held.is_in_pid_ns(pid));
        let maps = [(&mut self.by_mount_ns, mount, still_there), (&mut self.by_pid_ns, pid, still_has_pids)];
        for (map, inode, is_still) in maps {
            if let Some(holders) = map.get_mut(&inode)
                && !is_still
            {
                holders.retain(|holder| *holder != slot);
                if holders.is_empty() {
                    map.remove(&inode);
                }
            }
        }
    }

    /// The container whose mount namespace this was.
    pub fn in_mount_ns(&self, inode: u32, at_boot_ns: u64) -> Option<Slot> {
        let holders = self.by_mount_ns.get(&inode)?;
        self.holder(holders, |held| held.is_in_mount_ns(inode) && held.holds(at_boot_ns))
    }

    /// The container whose PID namespace this was.
    pub fn in_pid_ns(&self, inode: u32, at_boot_ns: u64) -> Option<Slot> {
        let holders = self.by_pid_ns.get(&inode)?;
        self.holder(holders, |held| held.is_in_pid_ns(inode) && held.holds_pids(at_boot_ns))
    }

    /// The last of them to come by then.
    fn holder(&self, holders: &[Slot], then: impl Fn(&Held) -> bool) -> Option<Slot> {
        let held = |slot| self.peek(slot).into_iter().flat_map(Entry::all_held).filter(|held| then(held));
        let all = holders.iter().flat_map(|slot| held(*slot).map(|held| (*slot, held.sight.at_boot_ns)));
        all.max_by_key(|(_, at_boot_ns)| *at_boot_ns).map(|(slot, _)| slot)
    }

    /// Forgets what one of the sources was asked: its answers are lost, or it can be asked from now on.
    pub fn forget_asked(&mut self, source: u32) {
        for entry in &mut self.entries {
            match &mut entry.asked {
                Asked::Yes { open, .. } => {
                    *open &= !source;
                    if *open == 0 {
                        entry.asked = Asked::No;
                    }
                }
                Asked::Wanted { .. } => entry.asked = Asked::No,
                Asked::No | Asked::Unknown { .. } => {}
            }
        }
    }

    /// Each that is remembered, once.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.by_key.values().filter_map(|index| self.entries.get(*index))
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    #[cfg(test)]
    pub fn marks(&self) -> usize {
        self.gone.len()
    }

    /// True unless a container that was gone made the room.
    fn make_room(&mut self) -> Option<Instant> {
        while let Some((since, slot)) = self.gone.pop_front() {
            if is_gone(&self.entries, slot, since) {
                self.remove(slot);
                return None;
            }
        }
        // The first round clears every mark, so the second finds a place; the third takes also one whose path would not tell
        // of it again.
        let len = self.entries.len();
        for step in 0..=3 * len {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.entries.len().max(1);
            if let Some(entry) = self.entries.get_mut(index)
                && !std::mem::take(&mut entry.used)
                && entry.serial != FREE
                && (entry.told_root.is_none() || step >= 2 * len)
            {
                let (serial, since) = (entry.serial, entry.since);
                self.remove(Slot { index, serial });
                return Some(since);
            }
        }
        None
    }

    fn remove(&mut self, slot: Slot) {
        self.leave_spaces(slot);
        let Some(entry) = self.get(slot) else { return };
        entry.serial = FREE;
        let (key, root) = (std::mem::take(&mut entry.key), entry.told_root.take());
        self.by_key.remove(&key);
        if let Some(root) = root.filter(|root| self.by_root.get(root) == Some(&slot)) {
            self.by_root.remove(&root);
        }
        self.free.push(slot.index);
    }
}

/// Of two that hold a number, the later one has it from its time on; what `/proc` has shown may be later than what is read.
fn yield_to(other_until: &mut u64, other_at: u64, own_until: &mut u64, own_at: u64) {
    if other_at <= own_at {
        *other_until = own_at.min(*other_until);
    } else {
        *own_until = other_at.min(*own_until);
    }
}

fn add(slots: &mut Vec<Slot>, slot: Slot) {
    if !slots.contains(&slot) {
        slots.push(slot);
    }
}

/// Serial of a free place; the first container has 1.
const FREE: u64 = 0;

/// Whether a mark still holds: the same container, gone since then.
fn is_gone(entries: &[Entry], slot: Slot, since: Instant) -> bool {
    entries.get(slot.index).is_some_and(|entry| entry.serial == slot.serial && entry.gone == Some(since))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Gone(u8),
        Back(u8),
        Root(u8, u8),
        /// By its first process, or by the one after a restart.
        Spaces(u8, u8, bool),
        Exited(u8, bool),
        Later(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0..12_u8;
        prop_oneof![
            id.clone().prop_map(Step::Insert),
            id.clone().prop_map(Step::Gone),
            id.clone().prop_map(Step::Back),
            (id.clone(), 0..4_u8).prop_map(|(id, root)| Step::Root(id, root)),
            (id.clone(), 0..4_u8, any::<bool>()).prop_map(|(id, spaces, again)| Step::Spaces(id, spaces, again)),
            (id, any::<bool>()).prop_map(|(id, again)| Step::Exited(id, again)),
            (0..5_u8).prop_map(Step::Later),
        ]
    }

    fn key(id: u8) -> String {
        format!("{id:064x}")
    }

    fn process(id: u8, again: bool) -> ProcessId {
        ProcessId { tgid: u32::from(id) + 100 * u32::from(again), start_boot_ns: 0 }
    }

    #[test]
    fn what_was_held_before_is_known_until_the_exit_of_then_is_read() {
        let mut table = Containers::new(NonZeroUsize::new(5).unwrap(), Duration::ZERO);
        let [one, two] =
            [1, 2].map(|id| table.insert(Arc::new(Container::of_id(key(id), "docker")), None, Instant::now()).0);
        let sight = |mount, pid, first, at_boot_ns| Sight { spaces: Spaces { mount, pid }, first, at_boot_ns };
        table.set_spaces(one, sight(10, 20, process(1, false), 100), false);
        // Started again, as `/proc` has it, while records of before are yet to be read.
        table.set_spaces(one, sight(11, 21, process(1, true), 200), true);
        let mounts = |table: &Containers, at| table.spaces(one, at).map(|spaces| spaces.mount);
        assert_eq!([50, 150, 250].map(|at| mounts(&table, at)), [None, Some(10), Some(11)]);
        assert_eq!((table.in_mount_ns(10, 150), table.in_mount_ns(10, 250)), (Some(one), None));
        assert!(table.peek(one).unwrap().is_first(process(1, true)));
        // The exec of that one, read later, was earlier.
        table.set_spaces(one, sight(11, 21, process(1, true), 180), false);
        assert_eq!([150, 190].map(|at| mounts(&table, at)), [Some(10), Some(11)]);
        table.exited(one, process(1, false));
        assert_eq!([150, 190].map(|at| mounts(&table, at)), [None, Some(11)]);
        assert_eq!((table.in_mount_ns(10, 150), table.by_mount_ns.len(), table.by_pid_ns.len()), (None, 1, 1));
        // What is read of an even earlier one does not push out what is there now.
        table.set_spaces(one, sight(9, 19, process(7, false), 90), false);
        assert_eq!([95, 190].map(|at| mounts(&table, at)), [Some(9), Some(11)]);
        // The number of its PID namespace is another's from then on, and was its own before.
        table.set_spaces(two, sight(30, 21, process(2, false), 300), false);
        assert_eq!([250, 350].map(|at| table.in_pid_ns(21, at)), [Some(one), Some(two)]);
        table.exited(two, process(2, false));
        assert_eq!([250, 350].map(|at| table.in_pid_ns(21, at)), [Some(one), None]);
        table.remove(one);
        assert!(table.by_mount_ns.is_empty() && table.by_pid_ns.is_empty());
    }

    proptest! {
        #[test]
        fn whatever_happens_every_way_to_a_container_leads_to_it(steps in proptest::collection::vec(step(), 0..200)) {
            let grace = Duration::from_secs(3);
            let mut table = Containers::new(NonZeroUsize::new(5).unwrap(), grace);
            let (mut now, mut boot_ns) = (Instant::now(), 7_u64);
            for step in steps {
                match step {
                    Step::Insert(id) => {
                        if table.find(&key(id)).is_none() {
                            table.insert(Arc::new(Container::of_id(key(id), "docker")), None, now);
                        }
                    }
                    Step::Gone(id) => table.mark_gone(&key(id), now, boot_ns),
                    Step::Back(id) => {
                        if let Some(slot) = table.find(&key(id)) {
                            table.mark_back(slot);
                        }
                    }
                    Step::Root(id, root) => {
                        if let Some(slot) = table.find(&key(id)) {
                            table.set_root(slot, [b'r', root + 1, 0].into());
                        }
                    }
                    Step::Spaces(id, inode, again) => {
                        if let Some(slot) = table.find(&key(id)) {
                            let spaces = Spaces { mount: inode.into(), pid: inode.into() };
                            // Seen in `/proc`, or read of late.
                            let at_boot_ns = if id % 3 == 0 { boot_ns } else { boot_ns.saturating_sub(2) };
                            table.set_spaces(slot, Sight { spaces, first: process(id, again), at_boot_ns }, id % 2 == 0);
                        }
                    }
                    Step::Exited(id, again) => {
                        if let Some(slot) = table.find(&key(id)) {
                            table.exited(slot, process(id, again));
                        }
                    }
                    Step::Later(seconds) => {
                        now += Duration::from_secs(seconds.into());
                        boot_ns += u64::from(seconds);
                        table.forget_gone(now);
                    }
                }
                prop_assert!(table.len() <= 5 && table.marks() <= 11);
                prop_assert_eq!(table.by_key.len() + table.free.len(), table.entries.len());
                for (key, index) in &table.by_key {
                    prop_assert_eq!(&table.entries[*index].container.id, &**key);
                }
                for (root, slot) in &table.by_root {
                    prop_assert_eq!(table.peek(*slot).and_then(|entry| entry.told_root.as_ref()), Some(root));
                }
                for (inode, slots) in table.by_mount_ns.iter().chain(&table.by_pid_ns) {
                    prop_assert!(!slots.is_empty());
                    for (at, slot) in slots.iter().enumerate() {
                        prop_assert!(!slots[..at].contains(slot), "once");
                        let mut held = table.peek(*slot).into_iter().flat_map(Entry::all_held);
                        prop_assert!(held.any(|held| held.is_in_mount_ns(*inode)));
                    }
                }
                for (inode, slots) in &table.by_mount_ns {
                    let held = |slot| table.peek(slot).into_iter().flat_map(Entry::all_held);
                    let all = || slots.iter().flat_map(|slot| held(*slot)).filter(|held| held.is_in_mount_ns(*inode));
                    let at = |time| all().filter(|held| held.holds(time)).count();
                    prop_assert!((0..boot_ns + 2).all(|time| at(time) <= 1), "one holder at a time");
                }
                for entry in table.by_key.values().filter_map(|index| table.entries.get(*index)) {
                    let at = |time| entry.all_held().filter(|held| held.holds(time)).count();
                    prop_assert!((0..boot_ns + 2).all(|time| at(time) <= 1), "known by one at a time");
                    for held in entry.all_held() {
                        let slots = &table.by_mount_ns[&held.sight.spaces.mount];
                        prop_assert!(slots.iter().any(|slot| table.entries[slot.index].key == entry.key));
                    }
                }
            }
        }
    }
}
