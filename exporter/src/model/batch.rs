//! Records of many resources, collected side by side, out as one
//! `ExportLogsServiceRequest` or `ExportTraceServiceRequest`: the fields around the records have the same numbers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config;
use crate::model::{proto, semconv};

/// Bytes of a `ResourceLogs` or `ResourceSpans` besides its resource and records.
const fn group_overhead(scope: &str) -> usize {
    2 * proto::NESTED_OVERHEAD
        + proto::len_field_len(scope_len(scope))
        + 2 * proto::len_field_len(semconv::SCHEMA_URL.len())
}

const fn scope_len(scope: &str) -> usize {
    proto::len_field_len(scope.len()) + proto::len_field_len(semconv::VERSION.len())
}

/// The next request, as it grows.
#[derive(Debug)]
pub struct Accumulators {
    /// Name of the scope of all records.
    scope: &'static str,
    max_records: usize,
    max_bytes: usize,
    groups: Vec<Group>,
    /// Index of each resource's group.
    by_key: HashMap<u64, usize>,
    records: usize,
    /// Upper bound of the request's bytes.
    bytes: usize,
    /// One record, until its length is known.
    record: Vec<u8>,
    /// Buffers of groups and requests that are gone: theirs is the most of what a record would cost in new memory.
    spare: Vec<Vec<u8>>,
}

/// Buffers that are kept for later. A request has few resources as a rule, and each time the same.
const SPARE: usize = 4;

#[derive(Debug)]
struct Group {
    resource: Arc<[u8]>,
    /// `log_records` fields, one after the other.
    records: Vec<u8>,
}

/// An `ExportLogsServiceRequest` or `ExportTraceServiceRequest`; never without records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub records: u32,
    pub bytes: Vec<u8>,
}

impl Accumulators {
    #[must_use]
    pub fn new(scope: &'static str, limits: config::Batch) -> Self {
        Self {
            scope,
            max_records: limits.max_records,
            max_bytes: limits.max_bytes,
            groups: Vec::new(),
            by_key: HashMap::new(),
            records: 0,
            bytes: 0,
            record: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Adds the record that `write` appends, under its resource. Returns the request that had to be closed before, as
    /// the record did not fit into it; a record that is too large by itself gets a request of its own.
    ///
    /// All records of a key are sent under the resource that was given last: what is learnt of a container late is true of
    /// its earlier records too.
    #[must_use]
    pub fn push(&mut self, key: u64, resource: &Arc<[u8]>, write: impl FnOnce(&mut Vec<u8>)) -> Option<Request> {
        self.record.clear();
        write(&mut self.record);
        let record_len = proto::len_field_len(self.record.len());
        let closed = if self.is_full() || self.bytes + self.growth(key, resource) + record_len > self.max_bytes {
            self.take()
        } else {
            None
        };
        self.bytes += self.growth(key, resource) + record_len;
        self.records += 1;
        let index = *self.by_key.entry(key).or_insert(self.groups.len());
        if index == self.groups.len() {
            let records = self.spare.pop().unwrap_or_default();
            self.groups.push(Group { resource: Arc::clone(resource), records });
        }
        let group = &mut self.groups[index];
        if !Arc::ptr_eq(&group.resource, resource) {
            group.resource = Arc::clone(resource);
        }
        proto::len_field(&mut group.records, 2, &self.record);
        closed
    }

    /// What a record of this resource adds to the size, besides itself. A resource that replaces a longer one adds
    /// nothing, so that the size stays an upper bound.
    fn growth(&self, key: u64, resource: &[u8]) -> usize {
        let new = proto::len_field_len(resource.len());
        match self.by_key.get(&key) {
            Some(index) => new.saturating_sub(proto::len_field_len(self.groups[*index].resource.len())),
            None => new + group_overhead(self.scope),
        }
    }

    /// Closes the request; `None` if there are no records.
    pub fn take(&mut self) -> Option<Request> {
        if self.records == 0 {
            return None;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.reserve(self.bytes);
        for group in std::mem::take(&mut self.groups) {
            group.write(self.scope, &mut bytes);
            self.keep(group.records);
        }
        self.by_key.clear();
        self.bytes = 0;
        let records = u32::try_from(std::mem::take(&mut self.records)).unwrap_or(u32::MAX);
        Some(Request { records, bytes })
    }

    /// Takes back what was taken, once it has been handed on.
    pub fn reuse(&mut self, request: Request) {
        self.keep(request.bytes);
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Another record would close the request: take it now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records >= self.max_records || self.bytes >= self.max_bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// At least the bytes that [`take`](Self::take) would return.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Group {
    fn write(&self, scope: &str, out: &mut Vec<u8>) {
        let scope_len = scope_len(scope);
        let schema_len = proto::len_field_len(semconv::SCHEMA_URL.len());
        let scope_logs = proto::len_field_len(scope_len) + self.records.len() + schema_len;
        let resource_logs = proto::len_field_len(self.resource.len()) + proto::len_field_len(scope_logs) + schema_len;
        proto::len_prefix(out, 1, resource_logs);
        proto::len_field(out, 1, &self.resource);
        proto::len_prefix(out, 2, scope_logs);
        proto::len_prefix(out, 1, scope_len);
        proto::len_field(out, 1, scope.as_bytes());
        proto::len_field(out, 2, semconv::VERSION.as_bytes());
        out.extend_from_slice(&self.records);
        proto::len_field(out, 3, semconv::SCHEMA_URL.as_bytes());
        proto::len_field(out, 3, semconv::SCHEMA_URL.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn accumulators(max_records: usize, max_bytes: usize) -> Accumulators {
        Accumulators::new(semconv::SCOPE_EXEC, config::Batch { max_records, max_bytes, delay: Duration::from_secs(1) })
    }

    fn resource(name: &str) -> Resource {
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(name.to_owned())) });
        let attributes = vec![KeyValue { key: "container.id".into(), value, key_strindex: 0 }];
        Resource { attributes, ..Resource::default() }
    }

    fn resource_bytes(name: &str) -> Arc<[u8]> {
        resource(name).encode_to_vec().into()
    }

    fn record(text: &str) -> LogRecord {
        LogRecord { event_name: text.to_owned(), ..LogRecord::default() }
    }

    fn push(accumulators: &mut Accumulators, key: u64, text: &str) -> Option<Request> {
        let bytes = record(text).encode_to_vec();
        accumulators.push(key, &resource_bytes(&key.to_string()), |out| out.extend_from_slice(&bytes))
    }

    fn expected(groups: &[(u64, Vec<String>)]) -> ExportLogsServiceRequest {
        let group = |(key, texts): &(u64, Vec<String>)| ResourceLogs {
            resource: Some(resource(&key.to_string())),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "namespan.exec".into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    ..InstrumentationScope::default()
                }),
                log_records: texts.iter().map(|text| record(text)).collect(),
                schema_url: semconv::SCHEMA_URL.into(),
            }],
            schema_url: semconv::SCHEMA_URL.into(),
        };
        ExportLogsServiceRequest { resource_logs: groups.iter().map(group).collect() }
    }

    proptest! {
        #[test]
        fn a_request_is_what_prost_writes_and_never_larger_than_estimated(
            records in prop::collection::vec((0..8_u64, "[a-z]{0,300}"), 1..200)
        ) {
            let mut accumulators = accumulators(1000, usize::MAX);
            let mut groups: Vec<(u64, Vec<String>)> = Vec::new();
            for (key, text) in &records {
                prop_assert_eq!(push(&mut accumulators, *key, text), None);
                match groups.iter_mut().find(|(other, _)| other == key) {
                    Some((_, texts)) => texts.push(text.clone()),
                    None => groups.push((*key, vec![text.clone()])),
                }
            }
            let estimate = accumulators.bytes();
            let request = accumulators.take().unwrap();
            prop_assert_eq!(request.records as usize, records.len());
            prop_assert!(request.bytes.len() <= estimate);
            prop_assert_eq!(expected(&groups).encode_to_vec(), request.bytes);
            prop_assert_eq!(accumulators.take(), None);
        }

        #[test]
        fn every_request_stays_within_the_limits_and_no_record_is_lost(
            records in prop::collection::vec((0..8_u64, "[a-z]{0,300}"), 0..200),
            max_records in 1..50_usize,
            max_bytes in 600..5000_usize,
        ) {
            let mut accumulators = accumulators(max_records, max_bytes);
            let mut requests = Vec::new();
            for (key, text) in &records {
                requests.extend(push(&mut accumulators, *key, text));
            }
            requests.extend(accumulators.take());
            let mut total = 0;
            for request in requests {
                prop_assert!(request.bytes.len() <= max_bytes);
                prop_assert!((1..=max_records).contains(&(request.records as usize)));
                let decoded = ExportLogsServiceRequest::decode(&*request.bytes).unwrap();
                let count: usize = decoded.resource_logs.iter().map(|logs| logs.scope_logs[0].log_records.len()).sum();
                prop_assert_eq!(count, request.records as usize);
                prop_assert!(decoded.resource_logs.iter().all(|logs| !logs.scope_logs[0].log_records.is_empty()));
                total += count;
            }
            prop_assert_eq!(total, records.len());
        }
    }

    #[test]
    fn a_record_that_is_too_large_travels_alone() {
        let mut accumulators = accumulators(10, 600);
        assert_eq!(push(&mut accumulators, 1, "small"), None);
        assert_eq!(push(&mut accumulators, 1, &"x".repeat(5000)).unwrap().records, 1);
        assert!(accumulators.is_full());
        assert_eq!(push(&mut accumulators, 1, "small").unwrap().records, 1);
        assert_eq!(accumulators.take().unwrap().records, 1);
    }

    #[test]
    fn what_is_learnt_late_of_a_resource_holds_for_its_earlier_records() {
        let mut accumulators = accumulators(10, 10_000);
        for name in ["", "long name", "name"] {
            assert_eq!(accumulators.push(7, &resource_bytes(name), |out| out.push(0)), None);
        }
        let estimate = accumulators.bytes();
        let bytes = accumulators.take().unwrap().bytes;
        assert!(bytes.len() <= estimate);
        let name = resource_bytes("name");
        assert!(bytes.windows(name.len()).any(|window| *window == *name));
    }
}
