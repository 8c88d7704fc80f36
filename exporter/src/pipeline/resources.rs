//! Whose an event is comes in, the bytes of its OTLP resource go out: encoded once per container, not once per record.

use std::sync::Arc;

use lru::LruCache;

use crate::config::{self, Config};
use crate::enrich::container::Container;
use crate::enrich::{Owner, Unit};
use crate::model::resource::{Host, Subject, encode_resource};

/// Resources as they are sent, encoded once per container or service of the host, and again when a container's data
/// changes.
pub(super) struct Resources {
    host: Host,
    settings: config::Resource,
    of_host: Arc<[u8]>,
    of_agent: Option<Arc<[u8]>>,
    of_containers: LruCache<String, Encoded>,
    of_services: LruCache<String, (u64, Arc<[u8]>)>,
    next_key: u64,
}

struct Encoded {
    container: Arc<Container>,
    key: u64,
    bytes: Arc<[u8]>,
}

impl Resources {
    const HOST_KEY: u64 = 0;
    const AGENT_KEY: u64 = 1;

    pub(super) fn new(config: &Config) -> Self {
        let host = Host::detect();
        let of_host = encode_resource(&host, Subject::Host(None), &config.resource).into();
        Self {
            host,
            settings: config.resource.clone(),
            of_host,
            of_agent: None,
            of_containers: LruCache::new(config.enrich.cache_entries),
            of_services: LruCache::new(config.enrich.cache_entries),
            next_key: Self::AGENT_KEY + 1,
        }
    }

    /// The resource's bytes, and a key that is its own for as long as it is remembered.
    pub(super) fn of(&mut self, owner: &Owner) -> (u64, &Arc<[u8]>) {
        let container = match owner {
            Owner::Container(container) => container,
            Owner::Host(unit) => return self.of_service(unit.as_deref().and_then(Unit::service)),
        };
        let (host, settings, next_key) = (&self.host, &self.settings, &mut self.next_key);
        let encode = || encode_resource(host, Subject::Container(container), settings).into();
        let encoded = self.of_containers.get_or_insert_mut_ref(container.key().as_ref(), || {
            *next_key += 1;
            Encoded { container: Arc::clone(container), key: *next_key, bytes: encode() }
        });
        if !Arc::ptr_eq(&encoded.container, container) {
            encoded.bytes = encode();
            encoded.container = Arc::clone(container);
        }
        (encoded.key, &encoded.bytes)
    }

    fn of_service(&mut self, service: Option<&str>) -> (u64, &Arc<[u8]>) {
        let Some(service) = service else { return (Self::HOST_KEY, &self.of_host) };
        let (host, settings, next_key) = (&self.host, &self.settings, &mut self.next_key);
        let (key, bytes) = self.of_services.get_or_insert_ref(service, || {
            *next_key += 1;
            (*next_key, encode_resource(host, Subject::Host(Some(service)), settings).into())
        });
        (*key, bytes)
    }

    /// Namespan's own.
    pub(super) fn of_agent(&mut self) -> (u64, &Arc<[u8]>) {
        let (host, settings) = (&self.host, &self.settings);
        let encode = || encode_resource(host, Subject::Agent, settings).into();
        (Self::AGENT_KEY, self.of_agent.get_or_insert_with(encode))
    }
}
