//! The containers an [`Enricher`](super::Enricher) remembers: a bounded table, found by id or by slot.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::How;
use super::container::Container;
use crate::event::CgroupPath;

/// What a key may be: that of a [`Container`].
type Key = Box<str>;

/// Entries in a table that never exceeds its capacity. What has no room pushes out a container that is gone, else one
/// without events since the hand of the clock last passed it.
#[derive(Debug)]
pub(super) struct Containers {
    by_key: HashMap<Key, usize>,
    /// Of those whose cgroup does not tell of them.
    by_root: HashMap<Box<[u8]>, Slot>,
    by_mount_ns: HashMap<u32, Slot>,
    by_pid_ns: HashMap<u32, Slot>,
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
    /// Its own cgroup in the v2 hierarchy and in that of v1, leaf first, as first seen or as its first process has it.
    pub roots: [Option<Box<[u8]>>; 2],
    /// Of its first process.
    pub spaces: Option<Spaces>,
    /// Pid of that process: when it has exited, the namespaces' numbers may be those of others.
    pub first: u32,
    /// It has no cgroup of its own.
    spaces_alone: bool,
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
            roots: [None, None],
            spaces: None,
            first: 0,
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

    pub fn mark_gone(&mut self, key: &str, now: Instant) {
        let Some(slot) = self.find(key) else { return };
        self.leave_spaces(slot);
        let Some(entry) = self.get(slot) else { return };
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
    pub fn set_spaces(&mut self, slot: Slot, spaces: Spaces, shares_pids: bool, first: u32) {
        self.leave_spaces(slot);
        let Some(entry) = self.get(slot) else { return };
        entry.spaces = Some(spaces);
        entry.first = first;
        self.by_mount_ns.insert(spaces.mount, slot);
        let holder = self.by_pid_ns.get(&spaces.pid).filter(|holder| shares_pids && self.peek(**holder).is_some());
        if holder.is_none() {
            self.by_pid_ns.insert(spaces.pid, slot);
        }
    }

    /// It has no cgroup of its own, and is known by its namespaces alone.
    pub fn set_spaces_alone(&mut self, slot: Slot, spaces: Spaces, first: u32) {
        self.set_spaces(slot, spaces, true, first);
        if let Some(entry) = self.get(slot) {
            entry.spaces_alone = true;
        }
    }

    /// A process of the container has exited.
    pub fn exited(&mut self, slot: Slot, pid: u32) {
        if self.peek(slot).is_some_and(|entry| entry.first == pid) {
            self.leave_spaces(slot);
        }
    }

    /// The container without a cgroup of its own in whose mount namespace this is.
    pub fn by_spaces_alone(&self, spaces: Spaces) -> Option<Slot> {
        let slot = *self.by_mount_ns.get(&spaces.mount)?;
        self.peek(slot)?.spaces_alone.then_some(slot)
    }

    /// Its namespaces may be those of others from now on.
    fn leave_spaces(&mut self, slot: Slot) {
        let Some(spaces) = self.get(slot).and_then(|entry| entry.spaces.take()) else { return };
        for (map, inode) in [(&mut self.by_mount_ns, spaces.mount), (&mut self.by_pid_ns, spaces.pid)] {
            if map.get(&inode) == Some(&slot) {
                map.remove(&inode);
            }
        }
    }

    pub fn in_mount_ns(&self, inode: u32) -> Option<Slot> {
        self.by_mount_ns.get(&inode).copied()
    }

    pub fn in_pid_ns(&self, inode: u32) -> Option<Slot> {
        self.by_pid_ns.get(&inode).copied()
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
        Spaces(u8, u8),
        Later(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0..12_u8;
        prop_oneof![
            id.clone().prop_map(Step::Insert),
            id.clone().prop_map(Step::Gone),
            id.clone().prop_map(Step::Back),
            (id.clone(), 0..4_u8).prop_map(|(id, root)| Step::Root(id, root)),
            (id, 0..4_u8).prop_map(|(id, spaces)| Step::Spaces(id, spaces)),
            (0..5_u8).prop_map(Step::Later),
        ]
    }

    fn key(id: u8) -> String {
        format!("{id:064x}")
    }

    proptest! {
        #[test]
        fn whatever_happens_every_way_to_a_container_leads_to_it(steps in proptest::collection::vec(step(), 0..200)) {
            let grace = Duration::from_secs(3);
            let mut table = Containers::new(NonZeroUsize::new(5).unwrap(), grace);
            let mut now = Instant::now();
            for step in steps {
                match step {
                    Step::Insert(id) => {
                        if table.find(&key(id)).is_none() {
                            table.insert(Arc::new(Container::of_id(key(id), "docker")), None, now);
                        }
                    }
                    Step::Gone(id) => table.mark_gone(&key(id), now),
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
                    Step::Spaces(id, inode) => {
                        if let Some(slot) = table.find(&key(id)) {
                            table.set_spaces(slot, Spaces { mount: inode.into(), pid: inode.into() }, id % 2 == 0, 7);
                        }
                    }
                    Step::Later(seconds) => {
                        now += Duration::from_secs(seconds.into());
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
                for (inode, slot) in table.by_mount_ns.iter().chain(&table.by_pid_ns) {
                    let spaces = table.peek(*slot).and_then(|entry| entry.spaces);
                    prop_assert_eq!(spaces.map(|spaces| spaces.mount), Some(*inode));
                }
            }
        }
    }
}
