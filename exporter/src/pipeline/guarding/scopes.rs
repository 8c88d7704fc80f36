//! Which containers the kernel side of the guard is told of: as many as fit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use namespan_ebpf::guard_wire::Scope;

use crate::enrich::KnownContainer;
use crate::enrich::container::{Container, is_full_id};
use crate::guard::compile::Compiled;
use crate::guard::load::{Guard, GuardError};
use crate::list::host::Hierarchies;

/// What the kernel side is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Set(Known, Scope),
    Remove(Known),
}

/// How the kernel side knows a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Id(Box<str>),
    /// Its own cgroup in the v2 hierarchy and in that of v1, each with numbers of its own.
    Cgroups([Option<u64>; 2]),
}

/// Containers by their [key](Container::key). One that is gone is remembered until its room is needed: it may be started
/// again, and its runtime tells of that after its first exec.
pub(super) struct Scopes {
    told: HashMap<Box<str>, Told>,
    /// Those that are gone, the oldest first; stale where one has come back.
    gone: VecDeque<(u64, Box<str>)>,
    serial: u64,
    capacity: usize,
    hierarchies: Hierarchies,
    /// How often a container found no room.
    pub(super) refused: u64,
}

struct Told {
    container: Arc<Container>,
    cgroup: Option<Box<str>>,
    /// `None`: it has no cgroup yet, or no more.
    known: Option<Known>,
    gone: Option<u64>,
}

impl Scopes {
    pub(super) fn new(capacity: usize, hierarchies: Hierarchies) -> Self {
        let (told, gone) = (HashMap::new(), VecDeque::new());
        Self { told, gone, serial: 0, capacity, hierarchies, refused: 0 }
    }

    /// A container is known, or known anew: what follows from that.
    pub(super) fn described(&mut self, compiled: &Compiled, known: &KnownContainer) -> Vec<Order> {
        let KnownContainer { container, cgroup, is_gone } = known;
        let mut orders = Vec::new();
        // What a user's own runtime says can be any id, so nothing is allowed or asked for by it.
        if !compiled.selects() || container.user.is_some() {
            return orders;
        }
        let key: Box<str> = container.key().into();
        let (before, cgroup_before) = match self.told.remove(&key) {
            Some(told) => (told.known, told.cgroup),
            None => (None, None),
        };
        let cgroup = cgroup.clone().or(cgroup_before);
        // Nobody can tell by what it is to be known.
        if cgroup.is_none() && !is_full_id(container.id.as_bytes()) {
            return orders;
        }
        if self.told.len() >= self.capacity && !self.make_room(&mut orders) {
            self.refused += 1;
            return orders;
        }
        let known = self.place(container, cgroup.as_deref());
        orders.extend(before.filter(|before| known.as_ref() != Some(before)).map(Order::Remove));
        orders.extend(known.clone().map(|known| Order::Set(known, compiled.scope(container))));
        self.told.insert(key.clone(), Told { container: Arc::clone(container), cgroup, known, gone: None });
        if *is_gone {
            orders.extend(self.ended(&key));
        }
        orders
    }

    fn place(&self, container: &Container, cgroup: Option<&str>) -> Option<Known> {
        if is_full_id(container.id.as_bytes()) {
            return Some(Known::Id(container.id.as_str().into()));
        }
        let cgroups = self.hierarchies.inodes(cgroup?);
        cgroups.iter().any(Option::is_some).then_some(Known::Cgroups(cgroups))
    }

    /// Its processes have ended.
    pub(super) fn ended(&mut self, key: &str) -> Option<Order> {
        let told = self.told.get_mut(key)?;
        // Its next cgroup has another number.
        let known = told.known.take_if(|known| matches!(known, Known::Cgroups(_)));
        self.serial += 1;
        told.gone = Some(self.serial);
        self.gone.push_back((self.serial, key.into()));
        // Containers that restart for ever leave a stale mark each time.
        if self.gone.len() > 2 * self.capacity {
            let told = &self.told;
            self.gone.retain(|(serial, key)| told.get(key).is_some_and(|told| told.gone == Some(*serial)));
        }
        known.map(Order::Remove)
    }

    /// The kernel side could not be told of one after all.
    pub(super) fn refuse(&mut self) {
        self.refused += 1;
    }

    /// Forgets the one that has been gone for longest. `false`: all are there.
    fn make_room(&mut self, orders: &mut Vec<Order>) -> bool {
        while let Some((serial, key)) = self.gone.pop_front() {
            if self.told.get(&key).is_some_and(|told| told.gone == Some(serial)) {
                let told = self.told.remove(&key);
                orders.extend(told.and_then(|told| told.known).map(Order::Remove));
                return true;
            }
        }
        false
    }

    /// All that are remembered, those that are gone in their order.
    pub(super) fn all(&self) -> Vec<KnownContainer> {
        let mut all: Vec<_> = self.told.values().collect();
        all.sort_unstable_by_key(|told| told.gone);
        let known = all.into_iter().map(|Told { container, cgroup, gone, .. }| KnownContainer {
            container: Arc::clone(container),
            cgroup: cgroup.clone(),
            is_gone: gone.is_some(),
        });
        known.collect()
    }
}

impl Order {
    pub(super) fn give(&self, guard: &mut Guard) -> Result<(), GuardError> {
        match self {
            Self::Set(Known::Id(id), scope) => guard.set_scope(id, *scope),
            Self::Set(Known::Cgroups([v2, v1]), scope) => {
                v2.map_or(Ok(()), |cgroup| guard.set_cgroup_scope(cgroup, *scope))?;
                v1.map_or(Ok(()), |cgroup| guard.set_cgroup_v1_scope(cgroup, *scope))
            }
            Self::Remove(Known::Id(id)) => {
                guard.remove_scope(id);
                Ok(())
            }
            Self::Remove(Known::Cgroups([v2, v1])) => {
                let v2 = v2.map_or(Ok(()), |cgroup| guard.remove_cgroup_scope(cgroup));
                v2.and(v1.map_or(Ok(()), |cgroup| guard.remove_cgroup_v1_scope(cgroup)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::selector;
    use crate::guard::spec::{self, Action, Containers, Policy, Rule, Text};

    /// What the kernel side has been told.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Table(BTreeMap<String, u64>);

    impl Table {
        fn obey(&mut self, orders: impl IntoIterator<Item = Order>) {
            for order in orders {
                match order {
                    Order::Set(known, scope) => self.0.insert(format!("{known:?}"), scope.rules),
                    Order::Remove(known) => self.0.remove(&format!("{known:?}")),
                };
            }
        }
    }

    fn compiled() -> Compiled {
        let rule = Rule { path: vec![Text { text: "/".to_owned(), is_prefix: true }], ..Rule::default() };
        let policy = Policy {
            name: "p".to_owned(),
            description: String::new(),
            severity: 17,
            action: Action::Kill,
            scope: spec::Scope { containers: Containers::Selected(vec![selector("name:web-*").unwrap()]), host: false },
            rules: vec![rule],
            exceptions: Vec::new(),
        };
        Compiled::new(&spec::Guard { policies: vec![policy], ..spec::Guard::default() }, false).unwrap()
    }

    fn known(number: u32) -> KnownContainer {
        let mut container = Container::of_id(format!("{number:064x}"), "docker");
        container.name = Some(format!("web-{number}"));
        KnownContainer { container: Arc::new(container), cgroup: None, is_gone: false }
    }

    fn key(number: u32) -> String {
        format!("{number:064x}")
    }

    #[test]
    fn one_that_is_gone_stays_until_its_room_is_needed() {
        let (mut table, compiled) = (Table::default(), compiled());
        let mut scopes = Scopes::new(2, Hierarchies::default());
        for number in [1, 2] {
            table.obey(scopes.described(&compiled, &known(number)));
        }
        table.obey(scopes.ended(&key(1)));
        assert_eq!(table.0.len(), 2);
        table.obey(scopes.described(&compiled, &known(3)));
        assert_eq!(table.0.len(), 2);
        assert!(!table.0.contains_key(&format!("{:?}", Known::Id(key(1).into()))));
        // Nobody is gone: it is counted.
        table.obey(scopes.described(&compiled, &known(4)));
        assert_eq!((table.0.len(), scopes.refused), (2, 1));
        // One that came back keeps its room.
        table.obey(scopes.ended(&key(2)));
        table.obey(scopes.described(&compiled, &known(2)));
        table.obey(scopes.described(&compiled, &known(4)));
        assert_eq!((table.0.len(), scopes.refused), (2, 2));
    }

    #[test]
    fn the_next_programs_are_told_of_all_that_these_know() {
        let (mut table, compiled) = (Table::default(), compiled());
        let mut scopes = Scopes::new(8, Hierarchies::default());
        for number in 1..=3 {
            table.obey(scopes.described(&compiled, &known(number)));
        }
        table.obey(scopes.ended(&key(2)));
        let (mut next, mut scopes_next) = (Table::default(), Scopes::new(8, Hierarchies::default()));
        for known in scopes.all() {
            next.obey(scopes_next.described(&compiled, &known));
        }
        assert_eq!(next.0, table.0);
        assert!(next.0.values().all(|rules| *rules != 0));
        assert_eq!(scopes_next.all().iter().filter(|known| known.is_gone).count(), 1);
    }

    #[test]
    fn a_container_of_another_name_is_known_by_its_cgroup_for_as_long_as_it_runs() {
        let (mut table, compiled) = (Table::default(), compiled());
        let hierarchies = Hierarchies::of_this_process();
        if hierarchies.inodes("/").iter().all(Option::is_none) {
            return;
        }
        let mut scopes = Scopes::new(8, hierarchies);
        let mut container = Container::of_id("machine".to_owned(), "nspawn");
        container.name = Some("web-m".to_owned());
        let mut known = KnownContainer { container: Arc::new(container), cgroup: Some("/".into()), is_gone: false };
        table.obey(scopes.described(&compiled, &known));
        assert_eq!(table.0.len(), 1);
        // It is told of again without its place.
        known.cgroup = None;
        table.obey(scopes.described(&compiled, &known));
        assert_eq!((table.0.len(), scopes.all()[0].cgroup.as_deref()), (1, Some("/")));
        table.obey(scopes.ended(&known.container.key()));
        assert!(table.0.is_empty());
        table.obey(scopes.described(&compiled, &known));
        assert_eq!(table.0.len(), 1);
    }
}
