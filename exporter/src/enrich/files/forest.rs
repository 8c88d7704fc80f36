//! All folders of one runtime: what changes in them comes in, updates go out. Every look is at all there is, whatever
//! the change was, so that none can be misunderstood.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;

use super::folder::{Ears, Folder};
use super::known::Known;
use super::layout::Layout;
use super::users::{self, Users};
use super::watches::{Spot, Watches};
use crate::enrich::container::Labels;
use crate::enrich::runtime::Update;

/// Most users whose containers are known.
const USERS: usize = 64;
/// Most containers known of each.
const PER_USER: usize = 256;
/// Most groups of a tree.
const GROUPS: usize = 64;
/// Most steps to a folder that comes into being while it is looked for.
const STEPS: usize = 16;

pub struct Forest {
    labels: Labels,
    capacity: usize,
    trees: BTreeMap<Option<u32>, Tree>,
    /// Where more trees come from.
    users: Option<Users>,
    users_watch: Option<i32>,
    watches: Watches,
    dirty: BTreeSet<Spot>,
    updates: Vec<Update>,
}

/// The folder of root, or of one user.
struct Tree {
    layout: Box<dyn Layout>,
    groups: BTreeMap<String, Group>,
    watch: Option<i32>,
    /// Its folder is not there.
    absent: bool,
    /// Whatever comes now is new.
    begun: bool,
}

#[derive(Default)]
struct Group {
    containers: BTreeMap<String, Known>,
    watch: Option<i32>,
    /// Whatever comes now is new.
    begun: bool,
}

impl Forest {
    pub fn new(labels: Labels, capacity: NonZeroUsize) -> Self {
        Self {
            labels,
            capacity: capacity.get(),
            trees: BTreeMap::new(),
            users: None,
            users_watch: None,
            watches: Watches::default(),
            dirty: BTreeSet::new(),
            updates: Vec::new(),
        }
    }

    pub fn of(mut self, layout: Box<dyn Layout>) -> Self {
        self.plant(layout);
        self
    }

    pub fn of_users(mut self, users: Users) -> Self {
        self.users = Some(users);
        self
    }

    /// Begins to watch, with everything still to be looked at.
    pub fn listen(&mut self) -> io::Result<Ears> {
        let ears = self.watches.begin()?;
        self.all_dirty();
        Ok(ears)
    }

    /// Whether there is a folder at all; users come and go.
    pub fn is_there(&self) -> bool {
        self.users.is_some() || self.trees.values().any(|tree| !tree.absent)
    }

    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }

    /// Takes in what has happened. False: there is more.
    pub fn hear(&mut self) -> bool {
        let mut overflow = false;
        let heard_all = self.watches.hear(&mut self.dirty, &mut overflow);
        if overflow {
            self.all_dirty();
        }
        self.refresh();
        heard_all
    }

    /// Tells of a container, as its files show it by now.
    pub fn look_up(&mut self, lookup: &str) {
        let Key { user, runtime, group, id } = Key::parse(lookup);
        let new = user.is_some_and(|user| self.add_user(user));
        if self.watches.deaf {
            self.all_dirty();
        }
        self.hear();
        if new && self.trees.get(&user).is_some_and(|tree| tree.absent) {
            self.fell(user);
        }
        let tree = self.trees.get(&user);
        let tree = tree.filter(|tree| runtime.is_none_or(|runtime| runtime == tree.layout.runtime()));
        let groups = tree.into_iter().flat_map(|tree| &tree.groups);
        let mut groups = groups.filter(|(name, _)| group.is_none_or(|group| group == *name));
        let found = groups.find(|(_, group)| group.containers.contains_key(id)).map(|(name, _)| name.clone());
        let told = found.is_some_and(|group| self.refresh_container(user, &group, id, true));
        if !told {
            self.updates.push(Update::Unknown { key: lookup.to_owned() });
        }
    }

    /// Tells whose processes have ended, or have been found after all.
    pub fn check(&mut self) {
        let Self { trees, updates, dirty, .. } = self;
        for (user, tree) in trees {
            for (name, group) in &mut tree.groups {
                for (id, known) in &mut group.containers {
                    known.check(updates);
                    if known.lacks_process() {
                        dirty.insert(Spot::Container(*user, name.clone(), id.clone()));
                    }
                }
            }
        }
        self.refresh();
    }

    fn plant(&mut self, layout: Box<dyn Layout>) {
        let user = layout.user();
        let tree = Tree { layout, groups: BTreeMap::new(), watch: None, absent: false, begun: false };
        self.trees.insert(user, tree);
        self.dirty.insert(Spot::Tree(user));
    }

    fn all_dirty(&mut self) {
        if self.users.is_some() {
            self.dirty.insert(Spot::Users);
        }
        for (user, tree) in &self.trees {
            self.dirty.insert(Spot::Tree(*user));
            for (name, group) in &tree.groups {
                self.dirty.insert(Spot::Group(*user, name.clone()));
                let ids = group.containers.keys().cloned();
                self.dirty.extend(ids.map(|id| Spot::Container(*user, name.clone(), id)));
            }
        }
    }

    /// From the outside in, so that whatever is found is looked at, too.
    pub fn refresh(&mut self) {
        while let Some(spot) = self.dirty.pop_first() {
            match &spot {
                Spot::Users => self.refresh_users(),
                Spot::Tree(user) => self.refresh_tree(*user),
                Spot::Group(user, group) => self.refresh_group(*user, group),
                Spot::Container(user, group, id) => {
                    self.refresh_container(*user, group, id, false);
                }
            }
        }
    }

    fn refresh_users(&mut self) {
        let Some(users) = self.users.clone() else { return };
        let root = users.root();
        let folder = root.open();
        let absent = folder.is_err();
        let Ok(folder) = folder.or_else(|_| root.nearest()) else { return };
        let watch = self.watches.watch(&folder, Spot::Users);
        let before = std::mem::replace(&mut self.users_watch, watch).filter(|before| Some(*before) != watch);
        self.watches.forget(before, &Spot::Users);
        let present = root.open().and_then(|folder| users::present(&folder));
        if absent && present.is_ok() {
            self.dirty.insert(Spot::Users);
        }
        let present = present.unwrap_or_default();
        for user in &present {
            self.add_user(*user);
        }
        let is_here = |user: Option<u32>| user.is_some_and(|user| present.contains(&user));
        let gone: Vec<_> =
            self.trees.iter().filter(|(user, tree)| !is_here(**user) && !tree.runs()).map(|(user, _)| *user).collect();
        for user in gone {
            self.fell(user);
        }
    }

    fn fell(&mut self, user: Option<u32>) {
        self.clear(user);
        let watch = self.trees.remove(&user).and_then(|tree| tree.watch);
        self.watches.forget(watch, &Spot::Tree(user));
    }

    /// True: this user was not known before.
    fn add_user(&mut self, user: u32) -> bool {
        let storage = self.users.as_ref().filter(|_| !self.trees.contains_key(&Some(user)));
        let Some(storage) = storage.and_then(|users| users.storage(user)) else { return false };
        if self.trees.len() >= USERS {
            tracing::debug!(user, "too many users with containers");
            return false;
        }
        self.plant(Box::new(storage));
        true
    }

    fn refresh_tree(&mut self, user: Option<u32>) {
        let Some(base) = self.base(user) else {
            self.clear(user);
            return;
        };
        let Some(tree) = self.trees.get_mut(&user) else { return };
        let names = base.names(usize::from(u16::MAX)).unwrap_or_default();
        let names: BTreeSet<_> = names.into_iter().filter(|name| tree.layout.is_group(name)).collect();
        let gone: Vec<_> = tree.groups.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in names {
            if !tree.groups.contains_key(&name) && tree.groups.len() < GROUPS {
                tree.groups.insert(name.clone(), Group { begun: tree.begun, ..Group::default() });
                self.dirty.insert(Spot::Group(user, name));
            }
        }
        tree.begun = true;
        for name in gone {
            self.remove_group(user, &name);
        }
    }

    /// The tree's folder, watched; if it is not there, the way to it is.
    fn base(&mut self, user: Option<u32>) -> Option<Folder> {
        for _ in 0..STEPS {
            let tree = self.trees.get_mut(&user)?;
            let base = tree.layout.base();
            tree.absent = base.is_err();
            // What was not there has nothing old in it.
            tree.begun |= tree.absent;
            let folder = base.or_else(|_| tree.layout.nearest()).ok()?;
            let (before, absent) = (tree.watch, tree.absent);
            let watch = self.watches.watch(&folder, Spot::Tree(user));
            // Until nothing changes any more: the next part of the way may appear before it is watched.
            if watch.is_none() || watch == before {
                return (!absent).then_some(folder);
            }
            self.trees.get_mut(&user)?.watch = watch;
            self.watches.forget(before, &Spot::Tree(user));
        }
        self.watches.deaf = true;
        None
    }

    fn refresh_group(&mut self, user: Option<u32>, name: &str) {
        let Some(tree) = self.trees.get(&user) else { return };
        let folder = tree.layout.base().and_then(|base| base.folder(name));
        let spot = Spot::Group(user, name.to_owned());
        let watch = folder.as_ref().ok().and_then(|folder| self.watches.watch(folder, spot));
        let Some(tree) = self.trees.get(&user) else { return };
        let listed = folder.and_then(|folder| tree.layout.list(&folder)).unwrap_or_else(|error| {
            tracing::debug!(place = tree.layout.place(), group = name, %error, "no list of containers");
            Vec::new()
        });
        let room = self.room(user);
        let Some(group) = self.trees.get_mut(&user).and_then(|tree| tree.groups.get_mut(name)) else { return };
        group.watch = watch.or(group.watch);
        let spot = |id: &str| Spot::Container(user, name.to_owned(), id.to_owned());
        let ids: BTreeSet<_> = listed.iter().map(|entry| entry.id.clone()).collect();
        let gone: Vec<_> = group.containers.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        let (known, new): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|entry| group.containers.contains_key(&entry.id));
        for entry in known {
            // One that is listed before it has a folder is not watched yet.
            let changed = |known: &&mut Known| known.entry != entry || !known.is_described();
            if let Some(known) = group.containers.get_mut(&entry.id).filter(changed) {
                self.dirty.insert(spot(&entry.id));
                known.entry = entry;
            }
        }
        if new.len() > room {
            tracing::debug!(group = name, containers = new.len(), room, "too many containers");
        }
        for entry in new.into_iter().rev().take(room) {
            self.dirty.insert(spot(&entry.id));
            group.containers.insert(entry.id.clone(), Known::new(entry, group.begun));
        }
        group.begun = true;
        for id in gone {
            self.remove(user, name, &id);
        }
    }

    /// Most containers that may still be added.
    fn room(&self, user: Option<u32>) -> usize {
        let known = |tree: &Tree| tree.groups.values().map(|group| group.containers.len()).sum::<usize>();
        let room = self.capacity.saturating_sub(self.trees.values().map(known).sum());
        let own = self.trees.get(&user).map_or(0, known);
        if user.is_some() { room.min(PER_USER.saturating_sub(own)) } else { room }
    }

    /// Tells of a container if there is something to tell, or if somebody has `asked`; true: there is such a container.
    fn refresh_container(&mut self, user: Option<u32>, group: &str, id: &str, asked: bool) -> bool {
        self.watch_container(user, group, id);
        let Self { trees, labels, updates, .. } = self;
        let Some(tree) = trees.get_mut(&user) else { return false };
        let Some(known) = tree.groups.get_mut(group).and_then(|group| group.containers.get_mut(id)) else {
            return false;
        };
        let found = tree.layout.describe(group, &known.entry);
        match found {
            Ok(found) => {
                known.news |= tree.layout.lists_what_runs() && !known.is_told();
                known.found(tree.layout.runtime(), found, labels, asked, updates);
                true
            }
            Err(error) => {
                tracing::debug!(place = tree.layout.place(), id, %error, "no description of a container (yet)");
                false
            }
        }
    }

    /// Before it is looked at: what changes afterwards will be heard of.
    fn watch_container(&mut self, user: Option<u32>, group: &str, id: &str) {
        let spot = Spot::Container(user, group.to_owned(), id.to_owned());
        for _ in 0..STEPS {
            let Some(tree) = self.trees.get(&user) else { return };
            let folders = tree.layout.folders(group, id);
            let watches: Vec<_> =
                folders.iter().filter_map(|folder| self.watches.watch(folder, spot.clone())).collect();
            let known = self.trees.get_mut(&user).and_then(|tree| tree.groups.get_mut(group)?.containers.get_mut(id));
            let Some(known) = known else { return };
            if known.watches == watches {
                return;
            }
            // A folder below may have appeared before these were watched.
            let before = std::mem::replace(&mut known.watches, watches.clone());
            let stale = before.into_iter().filter(|watch| !watches.contains(watch));
            for watch in stale {
                self.watches.forget(Some(watch), &spot);
            }
        }
    }

    fn clear(&mut self, user: Option<u32>) {
        let groups = self.trees.get(&user).map(|tree| tree.groups.keys().cloned().collect::<Vec<_>>());
        for group in groups.into_iter().flatten() {
            self.remove_group(user, &group);
        }
    }

    fn remove_group(&mut self, user: Option<u32>, name: &str) {
        let Some(group) = self.trees.get_mut(&user).and_then(|tree| tree.groups.remove(name)) else { return };
        self.watches.forget(group.watch, &Spot::Group(user, name.to_owned()));
        group
            .containers
            .into_iter()
            .for_each(|(id, known)| self.removed(&Spot::Container(user, name.to_owned(), id), known));
    }

    fn remove(&mut self, user: Option<u32>, name: &str, id: &str) {
        let group = self.trees.get_mut(&user).and_then(|tree| tree.groups.get_mut(name));
        if let Some(known) = group.and_then(|group| group.containers.remove(id)) {
            self.removed(&Spot::Container(user, name.to_owned(), id.to_owned()), known);
        }
    }

    fn removed(&mut self, spot: &Spot, mut known: Known) {
        for watch in &known.watches {
            self.watches.forget(Some(*watch), spot);
        }
        known.end(&mut self.updates);
    }
}

impl Tree {
    fn runs(&self) -> bool {
        self.groups.values().flat_map(|group| group.containers.values()).any(Known::runs)
    }
}

/// A container's [key](crate::enrich::container::key), taken apart.
#[derive(Default)]
struct Key<'a> {
    user: Option<u32>,
    runtime: Option<&'a str>,
    group: Option<&'a str>,
    id: &'a str,
}

impl<'a> Key<'a> {
    fn parse(key: &'a str) -> Self {
        let mut parts = key.splitn(3, '/');
        let (Some(first), Some(second), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
            return Self { id: key, ..Self::default() };
        };
        match first.parse() {
            Ok(user) => Self { user: Some(user), runtime: Some(second), group: None, id },
            Err(_) => {
                Self { user: None, runtime: Some(first), group: Some(second).filter(|group| !group.is_empty()), id }
            }
        }
    }
}

#[cfg(test)]
mod tests;
