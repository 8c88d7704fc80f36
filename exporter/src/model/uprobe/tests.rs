use std::collections::HashMap;
use std::sync::Arc;

use namespan_ebpf::uprobe_wire::{self as wire, RETURNED, VALUES_MAX, ValueHead, value};
use namespan_ebpf::wire::Process;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;
use crate::enrich::{How, Owner};
use crate::uprobe::hit::decode;
use crate::uprobe::spec::{self, Binary, Capture, Expression, Function, Target, Type, Uprobe};

const UNLIMITED: AttributeLimits = AttributeLimits { value_length: None, count: usize::MAX };
static ON_HOST: Attribution = Attribution::plain(Owner::Host(None), How::CgroupPath);

/// `open(path:string, flags:u32) -> i64`, as a record of this kind.
fn record(kind: u16, duration_ns: u64, path: &[u8], has_returned: bool) -> Vec<u8> {
    let head = |kind, bits, len| ValueHead { bits, len, kind, flags: 0, reserved: 0 };
    let mut values = [ValueHead::new_zeroed(); VALUES_MAX];
    values[0] = head(value::STRING, 0, u32::try_from(path.len()).unwrap());
    values[1] = head(value::UINT, u64::MAX / 2, 0);
    if has_returned {
        values[RETURNED] = head(value::INT, u64::MAX, 0);
    }
    let mut process = Process::new_zeroed();
    (process.kind, process.tgid, process.tid) = (kind, 42, 43);
    process.len = u32::try_from(wire::FIXED + path.len()).unwrap();
    let hit = wire::Hit { place: 7, duration_ns, ip: 0, comm: *b"io\0old name\0\0\0\0\0", values };
    [process.as_bytes(), hit.as_bytes(), path].concat()
}

fn place(redact: &[&str]) -> Place {
    let capture = |name: &str, position, value| Capture { name: name.to_owned(), position, value };
    let function = Function::Symbol("open".to_owned());
    let probe = Uprobe {
        kind: spec::Kind::Both,
        args: vec![capture("path", 0, Type::String), capture("flags", 1, Type::U32)],
        returns: Some(capture("fd", 0, Type::I64)),
        severity: 17,
        redact: redact.iter().map(|text| Expression::new(text).unwrap()).collect(),
        ..Uprobe::new("opens".to_owned(), Target::Host, Binary::Library("libc".to_owned()), function)
    };
    Place { probe: Arc::new(probe), function: "open".to_owned(), binary: "/lib/libc.so.6".to_owned(), offset: u64::MAX }
}

fn told<'a>(hit: &'a Hit<'a>, place: &'a Place) -> Told<'a> {
    Told {
        hit,
        place,
        attribution: &ON_HOST,
        time_unix_ns: 1_000,
        observed_unix_ns: 9_000,
        creation_unix_ns: 500,
        parent_creation_unix_ns: 0,
        image: None,
        uid: None,
        span: None,
        trace: None,
    }
}

fn log(limits: AttributeLimits, told: &Told<'_>) -> LogRecord {
    let mut out = Vec::new();
    Encoder::new(Arguments::Redacted, limits).encode(told, &mut out);
    let record = LogRecord::decode(&*out).unwrap();
    assert_eq!(record.encode_to_vec(), out, "as prost writes it");
    record
}

fn body(record: &LogRecord) -> &str {
    match record.body.as_ref().and_then(|body| body.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn by_key(attributes: &[KeyValue]) -> HashMap<&str, any_value::Value> {
    let pair = |pair: &'_ KeyValue| pair.value.clone().unwrap().value.unwrap();
    let by_key: HashMap<_, _> = attributes.iter().map(|each| (each.key.as_str(), pair(each))).collect();
    assert_eq!(by_key.len(), attributes.len(), "keys are unique");
    by_key
}

fn text(text: &str) -> any_value::Value {
    any_value::Value::StringValue(text.to_owned())
}

#[test]
fn a_call_is_told_at_its_return_and_other_hits_when_they_were() {
    let place = place(&[]);
    for (kind, has_returned, time, name, line) in [
        (wire::kind::ENTRY, false, 1_000, "namespan.uprobe.hit", ""),
        (wire::kind::RETURN, true, 1_000, "namespan.uprobe.return", " = -1"),
        (wire::kind::RETURN, false, 1_000, "namespan.uprobe.return", " returned"),
        (wire::kind::CALL, true, 3_500, "namespan.uprobe.return", " = -1 2.5 µs"),
        (wire::kind::CALL, false, 3_500, "namespan.uprobe.return", " 2.5 µs"),
    ] {
        let record = record(kind, 2_500, b"/etc/passwd", has_returned);
        let hit = decode(&record).unwrap();
        let record = log(UNLIMITED, &told(&hit, &place));
        assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (time, 9_000));
        assert_eq!((record.event_name.as_str(), record.severity_number), (name, 17));
        assert_eq!(body(&record), format!("open(path=\"/etc/passwd\", flags=9223372036854775807){line}"));
        let attributes = by_key(&record.attributes);
        assert_eq!(attributes.contains_key("namespan.uprobe.duration"), kind == wire::kind::CALL);
        assert_eq!(attributes.contains_key("namespan.uprobe.return_value"), has_returned);
        assert_eq!(attributes["thread.name"], text("io"));
        assert!(!attributes.contains_key("log.record.uid"));
        assert!(!attributes.contains_key("process.executable.name"));
    }
}

#[test]
fn limits_hold_after_redaction_and_count_what_they_cut() {
    let place = place(&["secret"]);
    let record = record(wire::kind::CALL, 1, "/é/secret/b".as_bytes(), true);
    let hit = decode(&record).unwrap();
    let told = told(&hit, &place);
    let all = log(UNLIMITED, &told).attributes;
    assert_eq!(by_key(&all)["namespan.uprobe.args.path"], text("/é/***/b"));
    let short = log(AttributeLimits { value_length: Some(5), ..UNLIMITED }, &told);
    assert_eq!(by_key(&short.attributes)["namespan.uprobe.args.path"], text("/é/**"));
    assert_eq!(body(&short), "open(path=\"/é/***/b\", flags=9223372036854775807) = -1 1 ns");
    for count in 0..=all.len() {
        let record = log(AttributeLimits { count, ..UNLIMITED }, &told);
        assert_eq!(record.attributes, all[..count]);
        assert_eq!(record.dropped_attributes_count as usize, all.len() - count);
    }
}

#[test]
fn a_call_s_span_is_below_its_process_s_and_says_what_its_record_says() {
    let place = place(&["passwd"]);
    let record = record(wire::kind::CALL, u64::MAX, b"/etc/passwd", true);
    let hit = decode(&record).unwrap();
    let told = told(&hit, &place);
    let own = SpanContext { trace_id: TraceId([1; 16]), span_id: SpanId([2; 8]), flags: 1 };
    let mut out = Vec::new();
    let mut encoder = Encoder::new(Arguments::Redacted, UNLIMITED);
    encoder.encode_span(&told, own, Some(SpanId([3; 8])), &mut out);
    let span = Span::decode(&*out).unwrap();
    assert_eq!(span.encode_to_vec(), out, "as prost writes it");
    assert_eq!((span.trace_id.as_slice(), span.span_id.as_slice()), (&[1; 16][..], &[2; 8][..]));
    assert_eq!((span.parent_span_id.as_slice(), span.name.as_str()), (&[3; 8][..], "open"));
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000, u64::MAX));
    assert_eq!((span.kind, span.flags), (1, 0x101));
    assert_eq!(span.attributes, log(UNLIMITED, &told).attributes);
    out.clear();
    encoder.encode_span(&told, own, None, &mut out);
    assert_eq!(Span::decode(&*out).unwrap().parent_span_id, b"");
}
