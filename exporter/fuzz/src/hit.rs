//! A uprobe's record: a hit whose values are the record's own bytes, and whose log record and span are OTLP.

use std::sync::Arc;

use namespan::config::{Arguments, AttributeLimits};
use namespan::enrich::{Attribution, How, Owner};
use namespan::model::uid::Uids;
use namespan::model::uprobe::{Encoder, Told};
use namespan::trace::{SpanContext, SpanId, TraceId};
use namespan::uprobe::hit::{self, Captured, Value};
use namespan::uprobe::place::Place;
use namespan::uprobe::spec::{Binary, Capture, Expression, Function, Target, Type, Uprobe};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

pub fn check(data: &[u8]) {
    let Ok(hit) = hit::decode(data) else { return };
    let len = |captured: Option<Captured<'_>>| match captured.map(|captured| captured.value) {
        Some(Value::Bytes(bytes) | Value::Str(bytes)) => bytes.len(),
        _ => 0,
    };
    let args: usize = (0..64).map(|index| len(hit.arg(index))).sum();
    assert!(args + len(hit.returned()) <= data.len());
    let capture = |name: String| Capture { name, position: 0, value: Type::String };
    let (binary, function) = (Binary::Library("libc".to_owned()), Function::Symbol("f".to_owned()));
    let probe = Uprobe {
        args: (0..8).map(|index| capture(format!("a{index}"))).collect(),
        returns: Some(capture("ret".to_owned())),
        redact: vec![Expression::new(r"[a-z=]{2,}|\W").unwrap()],
        ..Uprobe::new("fuzz".to_owned(), Target::Host, binary, function)
    };
    let place = Place { probe: Arc::new(probe), function: "f".to_owned(), binary: "/f".to_owned(), offset: u64::MAX };
    let told = Told {
        hit: &hit,
        place: &place,
        attribution: &Attribution::plain(Owner::Host(None), How::None),
        time_unix_ns: u64::MAX,
        observed_unix_ns: 2,
        creation_unix_ns: 0,
        parent_creation_unix_ns: u64::MAX,
        image: None,
        uid: Some(Uids::of_boot([1; 16]).of_hit(&hit)),
        span: None,
        trace: None,
    };
    let mut encoder = Encoder::new(Arguments::Redacted, AttributeLimits { value_length: Some(9), count: 64 });
    let (mut log, mut span) = (Vec::new(), Vec::new());
    encoder.encode(&told, &mut log);
    let record = LogRecord::decode(log.as_slice()).unwrap();
    assert_eq!(record.encode_to_vec(), log, "not as prost writes it");
    let own = SpanContext { trace_id: TraceId([1; 16]), span_id: SpanId([1; 8]), flags: 1 };
    encoder.encode_span(&told, own, None, &mut span);
    assert_eq!(Span::decode(span.as_slice()).unwrap().encode_to_vec(), span, "not as prost writes it");
}
