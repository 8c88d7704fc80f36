//! An `ExportTraceServiceRequest` and what it holds, in their OTLP/JSON form.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use serde::ser::{Serialize, Serializer};

use super::{Json, object};

impl Serialize for Json<'_, ExportTraceServiceRequest> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            o.list("resourceSpans", &self.0.resource_spans);
        })
    }
}

impl Serialize for Json<'_, ResourceSpans> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ResourceSpans { resource, scope_spans, schema_url } = self.0;
        object(serializer, |o| {
            o.message("resource", resource.as_ref()).list("scopeSpans", scope_spans).text("schemaUrl", schema_url);
        })
    }
}

impl Serialize for Json<'_, ScopeSpans> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ScopeSpans { scope, spans, schema_url } = self.0;
        object(serializer, |o| {
            o.message("scope", scope.as_ref()).list("spans", spans).text("schemaUrl", schema_url);
        })
    }
}

impl Serialize for Json<'_, Span> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let span = self.0;
        object(serializer, |o| {
            o.id("traceId", &span.trace_id)
                .id("spanId", &span.span_id)
                .text("traceState", &span.trace_state)
                .id("parentSpanId", &span.parent_span_id)
                .number("flags", span.flags)
                .text("name", &span.name)
                .number("kind", span.kind)
                .long("startTimeUnixNano", span.start_time_unix_nano)
                .long("endTimeUnixNano", span.end_time_unix_nano)
                .list("attributes", &span.attributes)
                .number("droppedAttributesCount", span.dropped_attributes_count)
                .list("events", &span.events)
                .number("droppedEventsCount", span.dropped_events_count)
                .list("links", &span.links)
                .number("droppedLinksCount", span.dropped_links_count)
                .message("status", span.status.as_ref());
        })
    }
}

impl Serialize for Json<'_, Event> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Event { time_unix_nano, name, attributes, dropped_attributes_count } = self.0;
        object(serializer, |o| {
            o.long("timeUnixNano", *time_unix_nano)
                .text("name", name)
                .list("attributes", attributes)
                .number("droppedAttributesCount", *dropped_attributes_count);
        })
    }
}

impl Serialize for Json<'_, Link> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Link { trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags } = self.0;
        object(serializer, |o| {
            o.id("traceId", trace_id)
                .id("spanId", span_id)
                .text("traceState", trace_state)
                .list("attributes", attributes)
                .number("droppedAttributesCount", *dropped_attributes_count)
                .number("flags", *flags);
        })
    }
}

impl Serialize for Json<'_, Status> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object(serializer, |o| {
            o.text("message", &self.0.message).number("code", self.0.code);
        })
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use prost::Message as _;
    use serde_json::json;

    use super::super::request;
    use super::super::tests::pair;
    use super::*;
    use crate::config::Signal;

    fn traces(spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope { name: "namespan".into(), version: "1".into(), ..Default::default() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: "s".into() }];
        let attributes = vec![pair("host.id", Value::StringValue("h".into()))];
        let resource = Some(Resource { attributes, ..Resource::default() });
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: "r".into() }],
        }
    }

    fn full_span() -> Span {
        Span {
            trace_id: (1..=16).collect(),
            span_id: vec![0xff; 8],
            trace_state: "ot=th:0,a=b".into(),
            parent_span_id: (0xa0..0xa8).collect(),
            flags: 0x8000_0301,
            name: "exec \"ls\"".into(),
            kind: SpanKind::Consumer.into(),
            start_time_unix_nano: 1,
            end_time_unix_nano: u64::MAX,
            attributes: vec![pair("process.exit.code", Value::IntValue(i64::MIN))],
            dropped_attributes_count: u32::MAX,
            events: vec![Event {
                time_unix_nano: u64::MAX - 1,
                name: "process.exec".into(),
                attributes: vec![pair("raw", Value::BytesValue(vec![0xfb, 0xff]))],
                dropped_attributes_count: 2,
            }],
            dropped_events_count: 3,
            links: vec![Link {
                trace_id: vec![0xab; 16],
                span_id: vec![0x0c; 8],
                trace_state: "c=d".into(),
                attributes: vec![pair("nan", Value::DoubleValue(f64::NAN))],
                dropped_attributes_count: 4,
                flags: 0x100,
            }],
            dropped_links_count: 5,
            status: Some(Status { message: "exit code 1".into(), code: StatusCode::Error.into() }),
        }
    }

    #[test]
    fn a_span_is_written_as_the_specification_has_it() {
        let started = Span { status: Some(Status::default()), ..Span::default() };
        let line = request(Signal::Traces, &traces(vec![full_span(), started]).encode_to_vec()).unwrap();
        assert!(!line.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = json!({"resourceSpans": [{
            "resource": {"attributes": [{"key": "host.id", "value": {"stringValue": "h"}}]},
            "scopeSpans": [{
                "scope": {"name": "namespan", "version": "1"},
                "spans": [
                    {
                        "traceId": "0102030405060708090a0b0c0d0e0f10",
                        "spanId": "ffffffffffffffff",
                        "traceState": "ot=th:0,a=b",
                        "parentSpanId": "a0a1a2a3a4a5a6a7",
                        "flags": 0x8000_0301_u32,
                        "name": "exec \"ls\"",
                        "kind": 5,
                        "startTimeUnixNano": "1",
                        "endTimeUnixNano": "18446744073709551615",
                        "attributes": [{"key": "process.exit.code", "value": {"intValue": "-9223372036854775808"}}],
                        "droppedAttributesCount": u32::MAX,
                        "events": [{
                            "timeUnixNano": "18446744073709551614",
                            "name": "process.exec",
                            "attributes": [{"key": "raw", "value": {"bytesValue": "+/8="}}],
                            "droppedAttributesCount": 2,
                        }],
                        "droppedEventsCount": 3,
                        "links": [{
                            "traceId": "abababababababababababababababab",
                            "spanId": "0c0c0c0c0c0c0c0c",
                            "traceState": "c=d",
                            "attributes": [{"key": "nan", "value": {"doubleValue": "NaN"}}],
                            "droppedAttributesCount": 4,
                            "flags": 0x100,
                        }],
                        "droppedLinksCount": 5,
                        "status": {"message": "exit code 1", "code": 2},
                    },
                    {"status": {}},
                ],
                "schemaUrl": "s",
            }],
            "schemaUrl": "r",
        }]});
        assert_eq!(json, expected);
    }

    fn text() -> impl Strategy<Value = String> {
        "\\PC{0,9}|[\\x00-\\x7f]{0,9}"
    }

    fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
        let value = prop_oneof![
            text().prop_map(Value::StringValue),
            any::<bool>().prop_map(Value::BoolValue),
            any::<i64>().prop_map(Value::IntValue),
            vec(any::<u8>(), 0..9).prop_map(Value::BytesValue),
        ];
        vec((text(), value).prop_map(|(key, value)| pair(&key, value)), 0..3)
    }

    /// Of any length: what is not an id is not ours to judge.
    fn id() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..17)
    }

    prop_compose! {
        fn event()(time_unix_nano: u64, name in text(), attributes in attributes(), dropped_attributes_count: u32) -> Event {
            Event { time_unix_nano, name, attributes, dropped_attributes_count }
        }
    }

    prop_compose! {
        fn link()(
            trace_id in id(),
            span_id in id(),
            trace_state in text(),
            attributes in attributes(),
            dropped_attributes_count: u32,
            flags: u32,
        ) -> Link {
            Link { trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags }
        }
    }

    prop_compose! {
        fn span()(
            [trace_id, span_id, parent_span_id] in [id(), id(), id()],
            [trace_state, name] in [text(), text()],
            flags: u32,
            kind: i32,
            [start_time_unix_nano, end_time_unix_nano]: [u64; 2],
            attributes in attributes(),
            [dropped_attributes_count, dropped_events_count, dropped_links_count]: [u32; 3],
            events in vec(event(), 0..3),
            links in vec(link(), 0..3),
            status in option::of((text(), any::<i32>()).prop_map(|(message, code)| Status { message, code })),
        ) -> Span {
            Span {
                trace_id, span_id, trace_state, parent_span_id, flags, name, kind, start_time_unix_nano,
                end_time_unix_nano, attributes, dropped_attributes_count, events, dropped_events_count, links,
                dropped_links_count, status,
            }
        }
    }

    proptest! {
        #[test]
        fn any_span_stays_on_one_line_and_reads_back_the_same(spans in vec(span(), 0..3)) {
            let traces = traces(spans);
            let line = request(Signal::Traces, &traces.encode_to_vec()).unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let again: ExportTraceServiceRequest = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(again, traces);
        }
    }
}
