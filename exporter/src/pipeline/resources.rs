//! Whose an event is comes in, the bytes of its OTLP resource go out: encoded once per container, not once per record.

use std::sync::Arc;

use lru::LruCache;

use crate::config::{self, Config};
use crate::enrich::Owner;
use crate::enrich::container::Container;
use crate::model::resource::{Host, encode_resource};

/// Resources as they are sent, encoded once per container and again when its data changes.
pub(super) struct Resources {
    host: Host,
    settings: config::Resource,
    of_host: Arc<[u8]>,
    of_containers: LruCache<String, Encoded>,
    next_key: u64,
}

struct Encoded {
    container: Arc<Container>,
    key: u64,
    bytes: Arc<[u8]>,
}

impl Resources {
    const HOST_KEY: u64 = 0;

    pub(super) fn new(config: &Config) -> Self {
        let host = Host::detect();
        let of_host = encode_resource(&host, None, &config.resource).into();
        Self {
            host,
            settings: config.resource.clone(),
            of_host,
            of_containers: LruCache::new(config.enrich.cache_entries),
            next_key: Self::HOST_KEY + 1,
        }
    }

    /// The resource's bytes, and a key that is its own for as long as it is remembered.
    pub(super) fn of(&mut self, owner: &Owner) -> (u64, &Arc<[u8]>) {
        let container = match owner {
            Owner::Host => return (Self::HOST_KEY, &self.of_host),
            Owner::Container(container) => container,
        };
        let (host, settings, next_key) = (&self.host, &self.settings, &mut self.next_key);
        let encode = || encode_resource(host, Some(container), settings).into();
        let encoded = self.of_containers.get_or_insert_mut_ref(container.id.as_str(), || {
            *next_key += 1;
            Encoded { container: Arc::clone(container), key: *next_key, bytes: encode() }
        });
        if !Arc::ptr_eq(&encoded.container, container) {
            encoded.bytes = encode();
            encoded.container = Arc::clone(container);
        }
        (encoded.key, &encoded.bytes)
    }
}
