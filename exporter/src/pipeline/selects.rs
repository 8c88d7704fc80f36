//! Which containers are wanted: decided once for each place, and then by the kernel side.

use std::num::NonZeroUsize;

use lru::LruCache;
use namespan_ebpf::wire::{CgroupKey, Place, ns};

use crate::attach::Unwanted;
use crate::config::{Filters, Scope};
use crate::enrich::{Attribution, Owner, Stand};
use crate::event::Event;

/// Places of which it is remembered that they are not wanted, for the case that their container is named anew.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

pub(super) struct Selects {
    filters: Filters,
    unwanted: Unwanted,
    /// With the key of each one's container; empty: the host's.
    told: LruCache<Place, Box<str>>,
}

impl Selects {
    pub(super) fn new(filters: Filters, unwanted: Unwanted) -> Self {
        Self { filters, unwanted, told: LruCache::sparse(ENTRIES) }
    }

    /// Whether the event is wanted. What is not is told to the kernel side, if the cgroup alone decides of it.
    pub(super) fn wants(&mut self, event: &Event<'_>, stand: &Stand, attribution: &Attribution) -> bool {
        let (wanted, key) = match &attribution.owner {
            Owner::Host(_) => (self.filters.scope != Scope::Containers, "".into()),
            Owner::Container(container) => {
                let wanted = self.filters.scope != Scope::Host && self.filters.containers.wants(container);
                (wanted, container.key())
            }
        };
        let cgroup = CgroupKey { v2: event.process.cgroup_id, v1: event.process.cgroup_v1_id };
        let place = Place { cgroup, mount_ns: event.process.namespaces[ns::MNT].into() };
        // What comes up again has been pushed out in the kernel.
        if !wanted && stand.by_cgroup {
            match self.unwanted.add(place) {
                Ok(()) => {
                    if let Some((pushed_out, _)) = self.told.push(place, key.as_ref().into())
                        && pushed_out != place
                    {
                        self.unwanted.remove(pushed_out);
                    }
                }
                // It is asked again with the next event.
                Err(error) => tracing::debug!(%error, "a cgroup can't be filtered in the kernel"),
            }
        }
        wanted
    }

    /// A container is described, or described anew: its events come up again, and are decided of anew. `hosts`: those of the
    /// host's cgroups too.
    pub(super) fn think_again(&mut self, key: &str, hosts: bool) {
        let concerned = |of: &str| of == key || (hosts && of.is_empty());
        let places: Vec<_> = self.told.iter().filter(|(_, of)| concerned(of)).map(|(place, _)| *place).collect();
        for place in places {
            self.told.pop(&place);
            self.unwanted.remove(place);
        }
    }
}
