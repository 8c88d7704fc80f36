//! Foreign bytes: whatever is in the ring, reading and encoding it never panics, and what is encoded is OTLP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use namespan::config::{Arguments, AttributeLimits};
use namespan::decode;
use namespan::enrich::{Attribution, How, Owner, cgroup};
use namespan::guard::decision;
use namespan::guard::spec::{Action, Containers, Mode, Policy, Scope};
use namespan::model::guard;
use namespan::model::log::{Context, Encoder};
use namespan::model::uid::{Uid, Uids};
use namespan::model::uprobe::{self, Told};
use namespan::trace::{SpanContext, SpanId, TraceId};
use namespan::uprobe::hit;
use namespan::uprobe::place::Place;
use namespan::uprobe::spec::{Binary, Capture, Expression, Function, Target, Type, Uprobe};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use prost::Message as _;
use zerocopy::FromBytes as _;

/// The golden records, to be damaged; those of a span follow one another in one file.
fn golden() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ring");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut records = Vec::new();
    for file in files {
        let mut rest = fs::read(file).unwrap();
        while !rest.is_empty() {
            let (len, _) = u32::read_from_prefix(&rest).unwrap();
            let next = rest.split_off(len as usize);
            records.push(std::mem::replace(&mut rest, next));
        }
    }
    records
}

/// What is known beside a record.
fn context(attribution: &Attribution, uid: Uid) -> Context<'_> {
    Context {
        time_unix_ns: 1,
        observed_unix_ns: 2,
        creation_unix_ns: 0,
        parent_creation_unix_ns: u64::MAX,
        attribution,
        start_type: "fork",
        uid: Some(uid),
        image: None,
        span: None,
        trace: None,
    }
}

/// Whether it was an event; then it has gone through everything that looks at an event's bytes.
fn survives(record: &[u8], arguments: Arguments) -> bool {
    let Ok(event) = decode::event(record) else { return hit_survives(record, arguments) };
    let _container = cgroup::resolve(event.cgroup, event.cgroup_v1);
    let attribution = Attribution::plain(Owner::Host(None), How::None);
    let context = context(&attribution, Uids::of_boot([1; 16]).of_event(&event));
    let mut out = Vec::new();
    Encoder::new(arguments, AttributeLimits::default()).encode(&event, &context, &mut out);
    let decoded = LogRecord::decode(out.as_slice()).unwrap();
    assert!(decoded.event_name.starts_with("namespan.process."), "{}", decoded.event_name);
    true
}

/// The same of a uprobe's hit: every value is wanted, and some of them are hidden.
fn hit_survives(record: &[u8], arguments: Arguments) -> bool {
    let Ok(hit) = hit::decode(record) else { return decision_survives(record, arguments) };
    let value = |name: String| Capture { name, position: 0, value: Type::String };
    let target = (Target::Host, Binary::Library("libc".to_owned()), Function::Symbol("f".to_owned()));
    let probe = Uprobe {
        args: (0..8).map(|index| value(format!("a{index}"))).collect(),
        returns: Some(value("ret".to_owned())),
        redact: vec![Expression::new(r"[a-z=]{2,}|\W").unwrap()],
        ..Uprobe::new("props".to_owned(), target.0, target.1, target.2)
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
    let mut encoder = uprobe::Encoder::new(arguments, AttributeLimits { value_length: Some(9), count: 64 });
    let (mut log, mut span) = (Vec::new(), Vec::new());
    encoder.encode(&told, &mut log);
    let decoded = LogRecord::decode(log.as_slice()).unwrap();
    assert_eq!(decoded.encode_to_vec(), log);
    assert!(decoded.event_name.starts_with("namespan.uprobe."), "{}", decoded.event_name);
    let own = SpanContext { trace_id: TraceId([1; 16]), span_id: SpanId([1; 8]), flags: 1 };
    encoder.encode_span(&told, own, None, &mut span);
    assert_eq!(Span::decode(span.as_slice()).unwrap().encode_to_vec(), span);
    true
}

/// The same of what the guard decided.
fn decision_survives(record: &[u8], arguments: Arguments) -> bool {
    let Ok(decision) = decision::decode(record) else { return false };
    let policy = Policy {
        name: "props".to_owned(),
        description: String::new(),
        severity: 17,
        action: Action::Kill,
        scope: Scope { containers: Containers::All, host: false },
        rules: Vec::new(),
        exceptions: Vec::new(),
    };
    let attribution = Attribution::plain(Owner::Host(None), How::None);
    let context = context(&attribution, Uids::of_boot([1; 16]).of_decision(&decision));
    let told = guard::Told {
        decision: &decision,
        policy: &policy,
        rule: "match[0]",
        fired: &["props", "look"],
        mode: Mode::Enforce,
        context,
    };
    let mut out = Vec::new();
    guard::Encoder::new(arguments, AttributeLimits { value_length: Some(9), count: 64 }).encode(&told, &mut out);
    let decoded = LogRecord::decode(out.as_slice()).unwrap();
    assert_eq!(decoded.encode_to_vec(), out);
    assert!(decoded.event_name.starts_with("namespan.enforcement."), "{}", decoded.event_name);
    true
}

#[test]
fn every_golden_record_cut_anywhere_is_an_error_and_no_panic() {
    for record in golden() {
        for len in 0..record.len() {
            let cut = &record[..len];
            assert!(decode::event(cut).is_err() && hit::decode(cut).is_err() && decision::decode(cut).is_err());
        }
        assert!(survives(&record, Arguments::Redacted));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_event_or_an_error(record in prop::collection::vec(any::<u8>(), 0..1024)) {
        survives(&record, Arguments::Full);
    }

    #[test]
    fn any_damage_to_a_record_is_an_event_or_an_error(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
        arguments in prop_oneof![Just(Arguments::Off), Just(Arguments::Redacted), Just(Arguments::Full)],
    ) {
        let golden = golden();
        let mut record = which.get(&golden).clone();
        for (at, byte) in damage {
            let at = at.index(record.len());
            record[at] = byte;
        }
        survives(&record, arguments);
    }

    #[test]
    fn any_argument_bytes_survive_decoding(head in prop::collection::vec(any::<u8>(), 0..512)) {
        let record = with_arguments(&head);
        prop_assert!(survives(&record, Arguments::Redacted));
        let event = decode::event(&record).unwrap();
        let namespan::event::Kind::Exec(exec) = event.kind else { panic!("not an exec") };
        prop_assert_eq!(exec.args.head, head.as_slice());
    }
}

/// A golden exec with other arguments.
fn with_arguments(head: &[u8]) -> Vec<u8> {
    use namespan_ebpf::wire::{Exec, Process, section};
    use zerocopy::{FromBytes as _, IntoBytes as _};

    let golden = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ring/exec.bin")).unwrap();
    let (mut process, rest) = Process::read_from_prefix(&golden).unwrap();
    let (mut exec, sections) = Exec::read_from_prefix(rest).unwrap();
    let kept = sections.len() - usize::from(process.sections[section::ARGS_HEAD]);
    process.sections[section::ARGS_HEAD] = u16::try_from(head.len()).unwrap();
    process.len = u32::try_from(size_of::<Process>() + size_of::<Exec>() + kept + head.len()).unwrap();
    exec.args_len = head.len() as u64;
    [process.as_bytes(), exec.as_bytes(), &sections[..kept], head].concat()
}
