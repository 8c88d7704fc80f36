//! One OTLP request, ready for the wire: encoded, framed and compressed once, however often it is sent.

mod halves;

use std::io;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde::de::DeserializeOwned;

use super::class::Class;
use super::compression::{compress, decompress};
use crate::config::{Compression, Protocol, Signal};
use crate::ship::json::{self, JsonError};
use halves::{Halves, halves};

/// Length of gRPC's message prefix: one flag byte and the length, big endian.
pub(crate) const PREFIX_LEN: usize = 5;

/// Some log records as one `ExportLogsServiceRequest`, or some spans as one `ExportTraceServiceRequest`, in the form that
/// one destination takes.
#[derive(Clone, Debug)]
pub struct Batch {
    class: Class,
    records: u32,
    protocol: Protocol,
    compression: Compression,
    /// Length of the request before its compression.
    plain_len: u32,
    /// For gRPC with the message prefix in front, so that a send copies nothing.
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot transcode a batch to JSON")]
    Json(#[from] JsonError),
    #[error("cannot compress or decompress a batch")]
    Compression(#[from] io::Error),
    #[error("cannot decode a batch")]
    Protobuf(#[from] prost::DecodeError),
    #[error("cannot decode a JSON batch")]
    JsonDecode(#[from] serde_json::Error),
    #[error("{len} bytes are more than a gRPC message may have")]
    TooLong { len: usize },
}

impl Batch {
    /// Brings an encoded request of the class's signal with `records` log records or spans into its last form.
    pub fn seal(
        class: Class,
        records: u32,
        protobuf: &[u8],
        protocol: Protocol,
        compression: Compression,
    ) -> Result<Self, SealError> {
        let sealed = Self { class, records, protocol, compression, plain_len: 0, body: Bytes::new() };
        match protocol {
            Protocol::Grpc | Protocol::HttpProtobuf => sealed.wrap(protobuf),
            Protocol::HttpJson => sealed.wrap(json::request(class.signal(), protobuf)?.as_bytes()),
        }
    }

    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    #[must_use]
    pub fn signal(&self) -> Signal {
        self.class.signal()
    }

    /// Its log records or spans.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The request body as sent.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The request body without what gRPC puts in front.
    pub(super) fn message(&self) -> &[u8] {
        &self.body[prefix_len(self.protocol)..]
    }

    pub(super) fn plain_len(&self) -> u32 {
        self.plain_len
    }

    /// Of a [`message`](Self::message) that `body` has behind [`prefix_len`] bytes, sealed as it is said to be.
    pub(super) fn restore(
        class: Class,
        records: u32,
        (protocol, compression): (Protocol, Compression),
        plain_len: u32,
        body: Vec<u8>,
    ) -> Result<Self, SealError> {
        Self { class, records, protocol, compression, plain_len, body: Bytes::new() }.frame(body)
    }

    /// The same request in another form.
    pub(crate) fn convert(&self, protocol: Protocol, compression: Compression) -> Result<Self, SealError> {
        let is_json = |protocol| protocol == Protocol::HttpJson;
        if is_json(self.protocol) != is_json(protocol) {
            return Self::seal(self.class, self.records, &self.protobuf()?, protocol, compression);
        }
        let other = Self { protocol, compression, ..self.clone() };
        if self.compression != compression {
            return other.wrap(&self.plain()?);
        }
        let mut body = vec![0; prefix_len(protocol)];
        body.extend_from_slice(self.message());
        other.frame(body)
    }

    /// Two batches of about half the records each; `None` where there are not two records.
    pub(crate) fn halves(&self) -> Result<Option<(Self, Self)>, SealError> {
        let Some(Halves { left_items, left, right }) = halves(self.protobuf()?.into())? else { return Ok(None) };
        // The sum stays what was accepted, even if the encoder had miscounted.
        let left_records = u32::try_from(left_items).unwrap_or(u32::MAX).min(self.records);
        let seal =
            |records, protobuf: &[u8]| Self::seal(self.class, records, protobuf, self.protocol, self.compression);
        Ok(Some((seal(left_records, &left)?, seal(self.records - left_records, &right)?)))
    }

    /// With this request as its body.
    fn wrap(mut self, plain: &[u8]) -> Result<Self, SealError> {
        self.plain_len = u32::try_from(plain.len()).map_err(|_| SealError::TooLong { len: plain.len() })?;
        let body = compress(prefix_len(self.protocol), plain, self.compression)?;
        self.frame(body)
    }

    /// With this body, whose first [`prefix_len`] bytes are still to be written.
    fn frame(mut self, mut body: Vec<u8>) -> Result<Self, SealError> {
        if let Protocol::Grpc = self.protocol {
            let len = body.len() - PREFIX_LEN;
            let wire_len = u32::try_from(len).map_err(|_| SealError::TooLong { len })?;
            body[0] = u8::from(self.compression != Compression::None);
            body[1..PREFIX_LEN].copy_from_slice(&wire_len.to_be_bytes());
        }
        self.body = body.into();
        Ok(self)
    }

    /// The request as it was given to [`seal`](Self::seal).
    fn protobuf(&self) -> Result<Vec<u8>, SealError> {
        let plain = self.plain()?;
        match (self.protocol, self.signal()) {
            (Protocol::Grpc | Protocol::HttpProtobuf, _) => Ok(plain),
            (Protocol::HttpJson, Signal::Logs) => from_json::<ExportLogsServiceRequest>(&plain),
            (Protocol::HttpJson, Signal::Traces) => from_json::<ExportTraceServiceRequest>(&plain),
        }
    }

    fn plain(&self) -> Result<Vec<u8>, SealError> {
        Ok(decompress(self.message(), self.compression, self.plain_len as usize)?)
    }
}

/// What a body has in front of its message.
pub(super) fn prefix_len(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Grpc => PREFIX_LEN,
        Protocol::HttpProtobuf | Protocol::HttpJson => 0,
    }
}

fn from_json<T: Message + DeserializeOwned>(json: &[u8]) -> Result<Vec<u8>, SealError> {
    Ok(serde_json::from_slice::<T>(json)?.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

    use super::*;

    const SIGNALS: [Signal; 2] = [Signal::Logs, Signal::Traces];
    const FORMS: [Protocol; 3] = [Protocol::Grpc, Protocol::HttpProtobuf, Protocol::HttpJson];
    const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

    fn class_of(signal: Signal) -> Class {
        match signal {
            Signal::Logs => Class::Exec,
            Signal::Traces => Class::Span,
        }
    }

    /// Each signal in each form.
    fn forms() -> impl Iterator<Item = (Signal, Protocol)> {
        SIGNALS.into_iter().flat_map(|signal| FORMS.map(|protocol| (signal, protocol)))
    }

    /// An encoded request: a resource for each number, with that many items in one scope, which are numbered in all.
    fn request(signal: Signal, groups: &[usize]) -> Vec<u8> {
        let resource = Some(Resource { dropped_attributes_count: 1, ..Resource::default() });
        let (url_of, mut numbers) = (|what: &str, index: usize| format!("{what} {index}"), 1..);
        let groups = groups.iter().enumerate();
        match signal {
            Signal::Logs => {
                let record = |number| LogRecord { time_unix_nano: number, ..LogRecord::default() };
                let group = |(index, &len)| {
                    let log_records = numbers.by_ref().take(len).map(record).collect();
                    let scope = ScopeLogs { log_records, schema_url: url_of("scope", index), ..ScopeLogs::default() };
                    let schema_url = url_of("resource", index);
                    ResourceLogs { resource: resource.clone(), scope_logs: vec![scope], schema_url }
                };
                ExportLogsServiceRequest { resource_logs: groups.map(group).collect() }.encode_to_vec()
            }
            Signal::Traces => {
                let span = |number| Span { start_time_unix_nano: number, ..Span::default() };
                let group = |(index, &len)| {
                    let spans = numbers.by_ref().take(len).map(span).collect();
                    let scope = ScopeSpans { spans, schema_url: url_of("scope", index), ..ScopeSpans::default() };
                    let schema_url = url_of("resource", index);
                    ResourceSpans { resource: resource.clone(), scope_spans: vec![scope], schema_url }
                };
                ExportTraceServiceRequest { resource_spans: groups.map(group).collect() }.encode_to_vec()
            }
        }
    }

    /// Of each scope: the schema URLs of its resource and of itself, and the numbers of its items.
    fn scopes(batch: &Batch) -> Vec<(String, String, Vec<u64>)> {
        let protobuf = batch.protobuf().unwrap();
        let mut scopes = Vec::new();
        match batch.signal() {
            Signal::Logs => {
                for group in ExportLogsServiceRequest::decode(&*protobuf).unwrap().resource_logs {
                    assert_eq!(group.resource.unwrap().dropped_attributes_count, 1);
                    let [scope] = &group.scope_logs[..] else { panic!("{:?}", group.scope_logs) };
                    let numbers = scope.log_records.iter().map(|record| record.time_unix_nano).collect();
                    scopes.push((group.schema_url, scope.schema_url.clone(), numbers));
                }
            }
            Signal::Traces => {
                for group in ExportTraceServiceRequest::decode(&*protobuf).unwrap().resource_spans {
                    assert_eq!(group.resource.unwrap().dropped_attributes_count, 1);
                    let [scope] = &group.scope_spans[..] else { panic!("{:?}", group.scope_spans) };
                    let numbers = scope.spans.iter().map(|span| span.start_time_unix_nano).collect();
                    scopes.push((group.schema_url, scope.schema_url.clone(), numbers));
                }
            }
        }
        scopes
    }

    #[test]
    fn every_form_and_compression_decodes_to_what_was_sealed() {
        for (signal, protocol) in forms() {
            let request = request(signal, &[3, 1]);
            for compression in COMPRESSIONS {
                let batch = Batch::seal(class_of(signal), 4, &request, protocol, compression).unwrap();
                assert_eq!(batch.protobuf().unwrap(), request, "{signal:?} {protocol:?} {compression:?}");
                for (other, form) in COMPRESSIONS.into_iter().flat_map(|other| FORMS.map(|form| (other, form))) {
                    let again = batch.convert(form, other).unwrap();
                    assert_eq!((again.protocol(), again.compression()), (form, other));
                    assert_eq!((again.class(), again.records()), (batch.class(), 4));
                    assert_eq!(again.protobuf().unwrap(), request);
                    assert_eq!(again.convert(protocol, compression).unwrap().body(), batch.body());
                }
            }
        }
    }

    #[test]
    fn every_form_becomes_every_other() {
        for (signal, protocol) in forms() {
            let request = request(signal, &[3, 1]);
            for (compression, (of, to)) in COMPRESSIONS.into_iter().flat_map(|compression| {
                FORMS.into_iter().flat_map(|of| COMPRESSIONS.map(|to| (of, to))).map(move |pair| (compression, pair))
            }) {
                let batch = Batch::seal(class_of(signal), 4, &request, protocol, compression).unwrap();
                let again = batch.convert(of, to).unwrap();
                let direct = Batch::seal(class_of(signal), 4, &request, of, to).unwrap();
                assert_eq!((again.protocol(), again.compression(), again.records()), (of, to, 4));
                assert_eq!((again.body(), again.plain_len), (direct.body(), direct.plain_len));
            }
        }
    }

    #[test]
    fn a_message_that_decompresses_to_more_than_it_says_is_refused() {
        for compression in COMPRESSIONS {
            let batch = Batch::seal(Class::Exec, 1, &[0; 100], Protocol::HttpProtobuf, compression).unwrap();
            for plain_len in [99, 101] {
                assert!(Batch { plain_len, ..batch.clone() }.protobuf().is_err(), "{compression:?} {plain_len}");
            }
        }
    }

    #[test]
    fn a_grpc_body_starts_with_flag_and_length() {
        for (compression, flag) in [(Compression::None, 0), (Compression::Gzip, 1), (Compression::Zstd, 1)] {
            let request = request(Signal::Logs, &[2]);
            let batch = Batch::seal(Class::Exec, 2, &request, Protocol::Grpc, compression).unwrap();
            let len = u32::try_from(batch.body().len() - PREFIX_LEN).unwrap();
            assert_eq!(batch.body()[0], flag);
            assert_eq!(batch.body()[1..PREFIX_LEN], len.to_be_bytes());
        }
    }

    #[test]
    fn halves_hold_every_record_once_and_no_empty_group() {
        for (signal, protocol) in forms() {
            for (groups, expected) in
                [(&[2][..], [1, 1]), (&[1, 1], [1, 1]), (&[5, 1, 2], [4, 4]), (&[1, 7], [4, 4]), (&[3, 0, 4], [3, 4])]
            {
                let total: u32 = expected.iter().sum();
                let whole = request(signal, groups);
                let batch = Batch::seal(class_of(signal), total, &whole, protocol, Compression::Zstd).unwrap();
                let (left, right) = batch.halves().unwrap().unwrap();
                assert_eq!([left.records(), right.records()], expected, "{signal:?} {protocol:?} {groups:?}");
                let mut together = Vec::new();
                for half in [&left, &right] {
                    let before = together.len();
                    for (resource, scope, numbers) in scopes(half) {
                        assert_eq!(resource.strip_prefix("resource"), scope.strip_prefix("scope"));
                        assert!(!numbers.is_empty());
                        together.extend(numbers);
                    }
                    assert_eq!((half.signal(), together.len() - before), (signal, half.records() as usize));
                }
                assert_eq!(together, (1..=total.into()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn one_record_has_no_halves() {
        for signal in SIGNALS {
            let batch =
                Batch::seal(class_of(signal), 1, &request(signal, &[1]), Protocol::Grpc, Compression::Gzip).unwrap();
            assert!(batch.halves().unwrap().is_none());
        }
    }
}
