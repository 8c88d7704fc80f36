//! An encoded `ExportLogsServiceRequest` or `ExportTraceServiceRequest` becomes one line of OTLP/JSON, as the
//! specification has it.
//!
//! Not through `opentelemetry-proto`'s own serde: that writes NaN and infinities as `null`, absent messages as `null`
//! and every default, such as empty trace ids.

mod trace;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::config::Signal;

#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("not an export request of the signal")]
    Decode(#[from] prost::DecodeError),
    #[error("cannot write JSON")]
    Write(#[from] serde_json::Error),
}

/// One line, without the newline.
pub fn request(signal: Signal, protobuf: &[u8]) -> Result<String, JsonError> {
    let line = match signal {
        Signal::Logs => serde_json::to_string(&Json(&ExportLogsServiceRequest::decode(protobuf)?)),
        Signal::Traces => serde_json::to_string(&Json(&ExportTraceServiceRequest::decode(protobuf)?)),
    };
    Ok(line?)
}

/// A message in its OTLP/JSON form: fields at their default are left out.
struct Json<'a, T>(&'a T);

struct List<'a, T>(&'a [T]);

/// The members of one object; the first error is kept for the end.
struct Members<M: SerializeMap> {
    map: Result<M, M::Error>,
}

impl<M: SerializeMap> Members<M> {
    fn some(&mut self, key: &'static str, value: Option<impl Serialize>) -> &mut Self {
        if let (Ok(map), Some(value)) = (&mut self.map, value)
            && let Err(error) = map.serialize_entry(key, &value)
        {
            self.map = Err(error);
        }
        self
    }

    fn text(&mut self, key: &'static str, text: &str) -> &mut Self {
        self.some(key, (!text.is_empty()).then_some(text))
    }

    fn number(&mut self, key: &'static str, number: impl Into<i64>) -> &mut Self {
        self.some(key, Some(number.into()).filter(|&number| number != 0))
    }

    /// 64-bit integers are strings: a JSON number may lose digits.
    fn long(&mut self, key: &'static str, number: u64) -> &mut Self {
        self.some(key, (number != 0).then(|| number.to_string()))
    }

    fn id(&mut self, key: &'static str, id: &[u8]) -> &mut Self {
        self.some(key, (!id.is_empty()).then(|| hex(id)))
    }

    fn list<'a, T>(&mut self, key: &'static str, items: &'a [T]) -> &mut Self
    where
        Json<'a, T>: Serialize,
    {
        self.some(key, (!items.is_empty()).then_some(List(items)))
    }

    fn message<'a, T>(&mut self, key: &'static str, message: Option<&'a T>) -> &mut Self
    where
        Json<'a, T>: Serialize,
    {
        self.some(key, message.map(Json))
    }

    fn end(self) -> Result<M::Ok, M::Error> {
        self.map?.end()
    }
}

fn object<S: Serializer>(serializer: S, fill: impl FnOnce(&mut Members<S::SerializeMap>)) -> Result<S::Ok, S::Error> {
    let mut members = Members { map: serializer.serialize_map(None) };
    fill(&mut members);
    members.end()
}

impl<'a, T> Serialize for List<'a, T>
where
    Json<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Json))
    }
}

impl Serialize for Json<'_, ExportLogsServiceRequest> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            o.list("resourceLogs", &self.0.resource_logs);
        })
    }
}

impl Serialize for Json<'_, ResourceLogs> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ResourceLogs { resource, scope_logs, schema_url } = self.0;
        object(serializer, |o| {
            o.message("resource", resource.as_ref()).list("scopeLogs", scope_logs).text("schemaUrl", schema_url);
        })
    }
}

impl Serialize for Json<'_, Resource> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Resource { attributes, dropped_attributes_count, entity_refs } = self.0;
        object(serializer, |o| {
            o.list("attributes", attributes)
                .number("droppedAttributesCount", *dropped_attributes_count)
                .list("entityRefs", entity_refs);
        })
    }
}

impl Serialize for Json<'_, EntityRef> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EntityRef { schema_url, r#type, id_keys, description_keys } = self.0;
        object(serializer, |o| {
            // All of them: receivers built on opentelemetry-proto refuse an entity that lacks one.
            o.some("schemaUrl", Some(schema_url))
                .some("type", Some(r#type))
                .some("idKeys", Some(id_keys))
                .some("descriptionKeys", Some(description_keys));
        })
    }
}

impl Serialize for Json<'_, ScopeLogs> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ScopeLogs { scope, log_records, schema_url } = self.0;
        object(serializer, |o| {
            o.message("scope", scope.as_ref()).list("logRecords", log_records).text("schemaUrl", schema_url);
        })
    }
}

impl Serialize for Json<'_, InstrumentationScope> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let InstrumentationScope { name, version, attributes, dropped_attributes_count } = self.0;
        object(serializer, |o| {
            o.text("name", name)
                .text("version", version)
                .list("attributes", attributes)
                .number("droppedAttributesCount", *dropped_attributes_count);
        })
    }
}

impl Serialize for Json<'_, LogRecord> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.0;
        object(serializer, |o| {
            o.long("timeUnixNano", record.time_unix_nano)
                .long("observedTimeUnixNano", record.observed_time_unix_nano)
                .number("severityNumber", record.severity_number)
                .text("severityText", &record.severity_text)
                .text("eventName", &record.event_name)
                .message("body", record.body.as_ref())
                .list("attributes", &record.attributes)
                .number("droppedAttributesCount", record.dropped_attributes_count)
                .number("flags", record.flags)
                .id("traceId", &record.trace_id)
                .id("spanId", &record.span_id);
        })
    }
}

impl Serialize for Json<'_, KeyValue> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            // The key even when it is empty: receivers look for it.
            o.some("key", Some(&self.0.key)).message("value", self.0.value.as_ref());
        })
    }
}

impl Serialize for Json<'_, AnyValue> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            match &self.0.value {
                Some(Value::StringValue(text)) => o.some("stringValue", Some(text)),
                Some(Value::BoolValue(bool)) => o.some("boolValue", Some(bool)),
                Some(Value::IntValue(int)) => o.some("intValue", Some(int.to_string())),
                Some(Value::DoubleValue(double)) => match non_finite(*double) {
                    Some(name) => o.some("doubleValue", Some(name)),
                    None => o.some("doubleValue", Some(double)),
                },
                Some(Value::ArrayValue(array)) => o.some("arrayValue", Some(Values(&array.values))),
                Some(Value::KvlistValue(list)) => o.some("kvlistValue", Some(Values(&list.values))),
                Some(Value::BytesValue(bytes)) => o.some("bytesValue", Some(STANDARD.encode(bytes))),
                // Means a table of the profiles signal; without it, the value is unset.
                Some(Value::StringValueStrindex(_)) | None => o,
            };
        })
    }
}

/// `{"values": [...]}`, with the list even when it is empty: `arrayValue` must not look unset.
struct Values<'a, T>(&'a [T]);

impl<'a, T> Serialize for Values<'a, T>
where
    Json<'a, T>: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            o.some("values", Some(List(self.0)));
        })
    }
}

/// JSON has no number for these.
fn non_finite(double: f64) -> Option<&'static str> {
    if double.is_nan() {
        Some("NaN")
    } else if double.is_infinite() {
        Some(if double > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        None
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Into a String: cannot fail.
        write!(hex, "{byte:02x}").ok();
        hex
    })
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, KeyValueList};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub(super) fn any(value: Value) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    pub(super) fn pair(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.into(), value: Some(any(value)), ..KeyValue::default() }
    }

    fn logs(attributes: Vec<KeyValue>) -> ExportLogsServiceRequest {
        let record = LogRecord {
            time_unix_nano: u64::MAX,
            observed_time_unix_nano: 1,
            severity_number: 9,
            event_name: "process.exec".into(),
            body: Some(any(Value::StringValue("a \"b\"\nc".into()))),
            attributes,
            dropped_attributes_count: 3,
            flags: 0x8000_0001,
            trace_id: (1..=16).collect(),
            span_id: vec![0xff; 8],
            ..LogRecord::default()
        };
        let scope = InstrumentationScope { name: "namespan".into(), version: "1".into(), ..Default::default() };
        let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records: vec![record], schema_url: "s".into() }];
        let entity = EntityRef { r#type: "host".into(), id_keys: vec!["host.id".into()], ..EntityRef::default() };
        let resource = Resource {
            attributes: vec![pair("host.id", Value::StringValue("h".into()))],
            entity_refs: vec![entity],
            ..Resource::default()
        };
        let resource_logs = vec![ResourceLogs { resource: Some(resource), scope_logs, schema_url: "r".into() }];
        ExportLogsServiceRequest { resource_logs }
    }

    fn attributes() -> Vec<KeyValue> {
        vec![
            pair("int", Value::IntValue(i64::MIN)),
            pair("bool", Value::BoolValue(false)),
            pair("double", Value::DoubleValue(1.5)),
            pair("nan", Value::DoubleValue(f64::NAN)),
            pair("inf", Value::DoubleValue(f64::NEG_INFINITY)),
            pair("bytes", Value::BytesValue(vec![0xfb, 0xff])),
            pair("empty", Value::StringValue(String::new())),
            KeyValue { key: "unset".into(), value: Some(AnyValue::default()), ..KeyValue::default() },
            KeyValue { key: "absent".into(), ..KeyValue::default() },
            pair(
                "list",
                Value::ArrayValue(ArrayValue {
                    values: vec![any(Value::BytesValue(vec![1])), AnyValue::default(), any(Value::IntValue(2))],
                }),
            ),
            pair("none", Value::ArrayValue(ArrayValue::default())),
            pair("map", Value::KvlistValue(KeyValueList { values: vec![pair("k", Value::IntValue(1))] })),
        ]
    }

    #[test]
    fn a_request_is_written_as_the_specification_has_it() {
        let line = request(Signal::Logs, &logs(attributes()).encode_to_vec()).unwrap();
        assert!(!line.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = json!({"resourceLogs": [{
            "resource": {
                "attributes": [{"key": "host.id", "value": {"stringValue": "h"}}],
                "entityRefs": [{"schemaUrl": "", "type": "host", "idKeys": ["host.id"], "descriptionKeys": []}],
            },
            "scopeLogs": [{
                "scope": {"name": "namespan", "version": "1"},
                "logRecords": [{
                    "timeUnixNano": "18446744073709551615",
                    "observedTimeUnixNano": "1",
                    "severityNumber": 9,
                    "eventName": "process.exec",
                    "body": {"stringValue": "a \"b\"\nc"},
                    "attributes": [
                        {"key": "int", "value": {"intValue": "-9223372036854775808"}},
                        {"key": "bool", "value": {"boolValue": false}},
                        {"key": "double", "value": {"doubleValue": 1.5}},
                        {"key": "nan", "value": {"doubleValue": "NaN"}},
                        {"key": "inf", "value": {"doubleValue": "-Infinity"}},
                        {"key": "bytes", "value": {"bytesValue": "+/8="}},
                        {"key": "empty", "value": {"stringValue": ""}},
                        {"key": "unset", "value": {}},
                        {"key": "absent"},
                        {"key": "list", "value": {"arrayValue": {"values": [
                            {"bytesValue": "AQ=="}, {}, {"intValue": "2"},
                        ]}}},
                        {"key": "none", "value": {"arrayValue": {"values": []}}},
                        {"key": "map", "value": {"kvlistValue": {"values": [
                            {"key": "k", "value": {"intValue": "1"}},
                        ]}}},
                    ],
                    "droppedAttributesCount": 3,
                    "flags": 0x8000_0001_u32,
                    "traceId": "0102030405060708090a0b0c0d0e0f10",
                    "spanId": "ffffffffffffffff",
                }],
                "schemaUrl": "s",
            }],
            "schemaUrl": "r",
        }]});
        assert_eq!(json, expected);
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        for signal in [Signal::Logs, Signal::Traces] {
            assert!(matches!(request(signal, b"\xff"), Err(JsonError::Decode(_))));
            assert_eq!(request(signal, b"").unwrap(), "{}");
        }
    }

    proptest! {
        #[test]
        fn any_text_stays_on_one_line_and_reads_back_the_same(text in "\\PC*|[\\x00-\\x7f]*") {
            let logs = logs(vec![pair(&text, Value::StringValue(text.clone()))]);
            let line = request(Signal::Logs, &logs.encode_to_vec()).unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let again: ExportLogsServiceRequest = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(again, logs);
        }
    }
}
