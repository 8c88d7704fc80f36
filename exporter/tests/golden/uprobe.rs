//! Hits of uprobes: records of the second ring in, log records and spans out.

use std::sync::Arc;

use namespan::config::{Arguments, AttributeLimits, Signal};
use namespan::model::log::Image;
use namespan::model::uid::Uids;
use namespan::model::uprobe::{Encoder, Told};
use namespan::queue::Class;
use namespan::trace::ids::Ids;
use namespan::trace::{SpanContext, SpanId, TraceId};
use namespan::uprobe::hit;
use namespan::uprobe::place::Place;
use namespan::uprobe::spec::{Binary, Capture, Expression, Function, Kind, Target, Type, Uprobe};
use namespan_ebpf::uprobe_wire::{FIXED, Hit, RETURNED, VALUES_MAX, ValueHead, flag, kind, value};
use namespan_ebpf::wire::{Process, ns};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// A value of a record: its kind, number, bytes and flags.
type Value<'a> = (u8, u64, &'a [u8], u8);

/// The record of a hit in a container, with these arguments and maybe a return value.
fn record(kind: u16, args: &[Value<'_>], returned: Option<Value<'_>>) -> Vec<u8> {
    let mut process = Process::new_zeroed();
    process.kind = kind;
    process.time_boot_ns = 5_000_123_456_789;
    process.start_boot_ns = 4_999_000_000_001;
    process.parent_start_boot_ns = 1_000_000_000;
    (process.self_exec_id, process.parent_exec_id) = (8, 7);
    (process.cgroup_id, process.cgroup_v1_id) = (5231, 12971);
    (process.tgid, process.tid, process.vpid, process.parent_tgid) = (4242, 4250, 7, 4200);
    (process.uid, process.euid, process.suid) = (1000, 0, 0);
    (process.gid, process.egid, process.sgid) = (1000, 1000, 1000);
    (process.session_leader, process.group_leader) = (4200, 4242);
    for (inode, namespace) in process.namespaces.iter_mut().zip(4_026_532_180..) {
        *inode = namespace;
    }
    process.namespaces[ns::USER] = 4_026_531_837;
    process.comm[..4].copy_from_slice(b"bash");
    let duration_ns = if kind == kind::CALL { 1_250_000 } else { 0 };
    let values = [ValueHead::new_zeroed(); VALUES_MAX];
    let mut hit = Hit { place: 3 << 32 | 7, duration_ns, ip: 0x7f3a_1234, comm: [0; 16], values };
    hit.comm[..12].copy_from_slice(b"worker\x1b[2J-1");
    let mut data = Vec::new();
    let args = args.iter().copied().enumerate();
    for (index, (kind, bits, bytes, flags)) in args.chain(returned.map(|value| (RETURNED, value))) {
        hit.values[index] = ValueHead { bits, len: u32::try_from(bytes.len()).unwrap(), kind, flags, reserved: 0 };
        data.extend_from_slice(bytes);
    }
    process.len = u32::try_from(FIXED + data.len()).unwrap();
    [process.as_bytes(), hit.as_bytes(), &data].concat()
}

/// What a record comes from: `function(name:type, ...) -> type`, and what is hidden.
fn place(kind: Kind, function: &str, args: &[(&str, Type)], returns: Option<Type>, redact: &[&str]) -> Place {
    let capture = |name: &str, position, value| Capture { name: name.to_owned(), position, value };
    let probe = Uprobe {
        kind,
        args: (0..).zip(args).map(|(position, (name, value))| capture(name, position, *value)).collect(),
        returns: returns.map(|value| capture("ret", 0, value)),
        redact: redact.iter().map(|text| Expression::new(text).unwrap()).collect(),
        ..Uprobe::new(
            "golden".to_owned(),
            Target::Host,
            Binary::Path("/usr/bin/bash".to_owned()),
            Function::Symbol(function.to_owned()),
        )
    };
    Place {
        probe: Arc::new(probe),
        function: function.to_owned(),
        binary: "/usr/bin/bash".to_owned(),
        offset: 0xd_3f10,
    }
}

fn int(value: i64) -> Value<'static> {
    (value::INT, value.cast_unsigned(), b"", 0)
}

fn string(text: &[u8]) -> Value<'_> {
    (value::STRING, 0, text, 0)
}

fn hits() -> Vec<(&'static str, Place, Vec<u8>)> {
    let entry = |args: &[Value<'_>]| record(kind::ENTRY, args, None);
    let every = [
        ("int", Type::I32),
        ("uint", Type::U64),
        ("flag", Type::Bool),
        ("at", Type::Pointer),
        ("text", Type::String),
        ("data", Type::Bytes { length: 1 }),
        ("single", Type::F32At),
        ("double", Type::F64At),
    ];
    let every_value = [
        int(-5),
        (value::UINT, u64::MAX, b"", 0),
        (value::BOOL, 1, b"", 0),
        (value::POINTER, 0x7ffd_1234_5678, b"", 0),
        string("grüße".as_bytes()),
        (value::BYTES, 4, b"\x00\xffab", 0),
        (value::F32_AT, (-0.5_f32).to_bits().into(), b"", 0),
        (value::F64_AT, 6.02e23_f64.to_bits(), b"", 0),
    ];
    let write = [("ssl", Type::Pointer), ("buf", Type::Bytes { length: 2 }), ("len", Type::I32)];
    let written = [(value::POINTER, 0x5581_0000, &b""[..], 0), (value::BYTES, 14, b"GET / HTTP/1.1", 0), int(14)];
    let missing = [("none", Type::String), ("gone", Type::String), ("cut", Type::String), ("off", Type::F64At)];
    let missing_value = [
        (value::STRING, 0, &b""[..], flag::FAULT),
        (value::STRING, 0x1000, b"", flag::FAULT),
        // In the middle of a character.
        (value::STRING, 0, b"caf\xc3", flag::TRUNCATED),
        (value::F64_AT, 0x2000, b"", flag::FAULT),
    ];
    let secret = [("line", Type::String), ("raw", Type::Bytes { length: 0 }), ("plain", Type::String)];
    let secrets = [
        string(b"mysql --password=hunter2 --token=abc"),
        (value::BYTES, 9, b"\xfftoken=ab", 0),
        string(b"nothing to hide"),
    ];
    let odd = [("shell", Type::String), ("quote", Type::String), ("broken", Type::String), ("huge", Type::String)];
    let huge = [b'"'; 4096];
    let odd_values = [
        string(b"\x1b]0;owned\x07\x1b[31m\r\n\xe2\x80\xae"),
        string(br#"a") = "b\"#),
        string(b"\xc3\x28\xf0\x9f"),
        (value::STRING, 0, &huge, flag::TRUNCATED),
    ];
    let redact = ["(?i)password=\\S+", "token=[a-z]+"];
    let readline = place(Kind::Return, "readline", &[], Some(Type::String), &[]);
    vec![
        ("uprobe_entry", place(Kind::Entry, "every", &every, None, &[]), entry(&every_value)),
        ("uprobe_marker", place(Kind::Entry, "python:function__entry", &[], None, &[]), entry(&[])),
        ("uprobe_return", readline, record(kind::RETURN, &[], Some(string(b"ls -l /tmp")))),
        (
            "uprobe_call",
            place(Kind::Both, "SSL_write", &write, Some(Type::I32), &[]),
            record(kind::CALL, &written, Some(int(14))),
        ),
        (
            "uprobe_missing",
            place(Kind::Both, "lookup", &missing, Some(Type::String), &[]),
            record(kind::CALL, &missing_value, Some((value::STRING, 0, b"", flag::FAULT))),
        ),
        ("uprobe_redacted", place(Kind::Entry, "shop::Cart::pay(int)", &secret, None, &redact), entry(&secrets)),
        ("uprobe_hostile", place(Kind::Entry, "evil\x1b[2J\n", &odd, None, &[]), entry(&odd_values)),
    ]
}

fn told<'a>(hit: &'a hit::Hit<'a>, place: &'a Place, image: Option<&'a Image>) -> Told<'a> {
    Told {
        hit,
        place,
        attribution: &super::TOLD,
        time_unix_ns: 1_795_000_000_123_456_789,
        observed_unix_ns: 1_795_000_000_130_000_000,
        creation_unix_ns: 1_794_999_999_000_000_000,
        parent_creation_unix_ns: 1_794_990_000_000_000_000,
        image,
        uid: Some(Uids::of_boot([1; 16]).of_hit(hit)),
        span: Some(SpanId([0x5b; 8])),
        trace: Some((TraceId([0x5a; 16]), 0x03)),
    }
}

/// Names, OTLP and records of the ring.
pub fn cases() -> Vec<(&'static str, String, Vec<u8>)> {
    let image = Image { path: b"/bin/bash".to_vec(), command: b"-bash".to_vec(), args_count: 1, script: Vec::new() };
    let mut encoder = Encoder::new(Arguments::Redacted, AttributeLimits::default());
    let mut cases = Vec::new();
    for (name, place, record) in hits() {
        let hit = hit::decode(&record).unwrap();
        let mut told = told(&hit, &place, Some(&image));
        let mut bytes = Vec::new();
        encoder.encode(&told, &mut bytes);
        assert_eq!(LogRecord::decode(&*bytes).unwrap().encode_to_vec(), bytes, "{name}: as prost writes it");
        let scope = Class::Probe.scope();
        cases.push((name, super::request(Signal::Logs, scope, |out| out.extend_from_slice(&bytes)), record.clone()));
        if name == "uprobe_call" {
            bytes.clear();
            let span_id = Ids::of_boot([1; 16]).call(hit.process.tid, hit.place, hit.process.time_boot_ns);
            let own = SpanContext { trace_id: TraceId([0x5a; 16]), span_id, flags: 0x03 };
            told.image = None;
            encoder.encode_span(&told, own, Some(SpanId([0x5b; 8])), &mut bytes);
            assert_eq!(Span::decode(&*bytes).unwrap().encode_to_vec(), bytes, "{name}: as prost writes it");
            let otlp = super::request(Signal::Traces, scope, |out| out.extend_from_slice(&bytes));
            cases.push(("uprobe_call_span", otlp, record));
        }
    }
    cases
}
