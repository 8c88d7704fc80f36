//! Ring bytes in, OTLP/JSON out, both on file: whatever changes either shows in the diff.
//!
//! `NAMESPAN_BLESS=1 cargo test --test golden` writes the files anew.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "golden/guard.rs"]
mod guard;
#[path = "golden/uprobe.rs"]
mod uprobe;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use namespan::config::{self, Arguments, AttributeLimits, Batch, Resource, Signal};
use namespan::decode;
use namespan::enrich::container::{Container, Image, Service};
use namespan::enrich::{Attribution, Entry, How, Owner};
use namespan::event::Kind;
use namespan::model::batch::Accumulators;
use namespan::model::log::{Context, Encoder, Image as Program};
use namespan::model::resource::{Host, Subject, encode_resource};
use namespan::model::span::{self, End};
use namespan::model::uid::Uids;
use namespan::processes::{Processes, Seen};
use namespan::queue::Class;
use namespan::ship::json;
use namespan::trace::ids::Ids;
use namespan::trace::{SpanId, TraceId};
use namespan_ebpf::wire::{self, flag, kind, ns, section};
use zerocopy::{FromBytes as _, FromZeros as _, Immutable, IntoBytes};

const CONTAINER: &str = "3f4e1c2b5a6978879685a4b3c2d1e0f00112233445566778899aabbccddeeff0";

/// The record of a process in a container, with these sections and what every process has.
fn record<Detail>(kind: u16, flags: u16, detail: &Detail, given: &[(usize, &[u8])]) -> Vec<u8>
where
    Detail: IntoBytes + Immutable,
{
    let cgroup = format!("{CONTAINER}\0docker\0");
    let mut sections = [&b""[..]; section::COUNT];
    sections[section::CGROUP] = cgroup.as_bytes();
    sections[section::CGROUP_V1] = cgroup.as_bytes();
    sections[section::NODENAME] = b"web";
    for (index, bytes) in given {
        sections[*index] = bytes;
    }
    let mut process = wire::Process::new_zeroed();
    process.kind = kind;
    process.flags = flags;
    process.time_boot_ns = 5_000_123_456_789;
    process.start_boot_ns = 4_999_000_000_001;
    process.parent_start_boot_ns = 1_000_000_000;
    (process.self_exec_id, process.parent_exec_id) = (8, 7);
    (process.cgroup_id, process.cgroup_v1_id) = (5231, 12971);
    (process.tgid, process.tid, process.vpid, process.parent_tgid) = (4242, 4242, 7, 4200);
    (process.uid, process.euid, process.suid) = (1000, 0, 0);
    (process.gid, process.egid, process.sgid) = (1000, 1000, 1000);
    (process.session_leader, process.group_leader) = (4200, 4242);
    for (inode, namespace) in process.namespaces.iter_mut().zip(4_026_532_180..) {
        *inode = namespace;
    }
    process.namespaces[ns::USER] = 4_026_531_837;
    process.comm[..2].copy_from_slice(b"ls");
    for (len, section) in process.sections.iter_mut().zip(sections) {
        *len = u16::try_from(section.len()).unwrap();
    }
    let sections = sections.concat();
    process.len = u32::try_from(size_of::<wire::Process>() + size_of::<Detail>() + sections.len()).unwrap();
    [process.as_bytes(), detail.as_bytes(), &sections].concat()
}

fn exec(args_len: usize, argc: u32) -> wire::Exec {
    wire::Exec { args_len: args_len as u64, ancestor_start_boot_ns: 4_998_000_000_001, ancestor_tgid: 4200, argc }
}

fn exit(status: u32) -> wire::Exit {
    wire::Exit { image_start_boot_ns: 4_999_000_000_001, image_tgid: 4242, status }
}

fn cases() -> Vec<(&'static str, Vec<u8>)> {
    use section::{ARGS_HEAD, ARGS_TAIL, PATH, SCRIPT, TTY};
    let ls = b"ls\0-l\0\0/tmp\0";
    let odd = b"echo\0\xff\xfe bytes\0\x1b[31mred\0\xc3\xbcn\xc3\xaf\0";
    let secret = b"curl\0--token\0s3cret\0https://me:pw@example.com/?sig=abc\0";
    let cut = [
        (PATH, &b"/bin/sh"[..]),
        (SCRIPT, b"/opt/job.sh"),
        (ARGS_HEAD, b"sh\0/opt/job.sh\0aaaa"),
        (ARGS_TAIL, b"zz\0end\0"),
    ];
    let denied = wire::ExecFailed { image_start_boot_ns: 4_998_000_000_001, image_tgid: 4200, errno: 13 };
    let (all, odd_len, secret_len) = (exec(ls.len(), 4), exec(odd.len(), 4), exec(secret.len(), 4));
    vec![
        ("exec", record(kind::EXEC, 0, &all, &[(PATH, b"/bin/ls"), (TTY, b"pts/0"), (ARGS_HEAD, ls)])),
        ("exec_odd_bytes", record(kind::EXEC, 0, &odd_len, &[(PATH, b"/bin/\xffecho"), (ARGS_HEAD, odd)])),
        ("exec_secrets", record(kind::EXEC, 0, &secret_len, &[(PATH, b"/bin/curl"), (ARGS_HEAD, secret)])),
        ("exec_script_truncated", record(kind::EXEC, flag::UNLINKED, &exec(204_800, 5000), &cut)),
        ("exec_unreadable", record(kind::EXEC, flag::ARGS_FAULT | flag::PATH_FAULT, &exec(9, 2), &[])),
        ("exit_code", record(kind::EXIT, 0, &exit(3 << 8), &[])),
        ("exit_crash", record(kind::EXIT, 0, &exit(0x8b), &[])),
        ("exec_failed", record(kind::EXEC_FAILED, 0, &denied, &[(PATH, b"./not-executable")])),
    ]
}

/// An exec and the exit of the same process, one after the other.
fn span_cases() -> Vec<(&'static str, Vec<u8>)> {
    use section::{ARGS_HEAD, PATH, TRACEPARENT, TRACESTATE};
    const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let grep = b"grep\0--color\0-e\0x\0";
    let sections = [(PATH, &b"/bin/busybox"[..]), (TRACEPARENT, PARENT), (TRACESTATE, b"vendor=1"), (ARGS_HEAD, grep)];
    let exec = record(kind::EXEC, 0, &exec(grep.len(), 4), &sections);
    let with = |exit: Vec<u8>| [exec.clone(), exit].concat();
    vec![
        ("span_not_found", with(record(kind::EXIT, 0, &exit(1 << 8), &[]))),
        ("span_error", with(record(kind::EXIT, 0, &exit(2 << 8), &[]))),
        ("span_out_of_memory", with(record(kind::EXIT, flag::OOM_VICTIM, &exit(9), &[]))),
    ]
}

/// As the pipeline has it, at a fixed moment on a fixed host and boot.
fn span_otlp(records: &[u8]) -> String {
    let (len, _) = u32::read_from_prefix(records).unwrap();
    let (exec, exit) = records.split_at(len as usize);
    let (exec, exit) = (decode::event(exec).unwrap(), decode::event(exit).unwrap());
    let Kind::Exec(executed) = &exec.kind else { panic!("{exec:?}") };
    let Kind::Exit(ended) = &exit.kind else { panic!("{exit:?}") };
    let settings = config::Spans::default();
    let ids = Ids::of_boot([1; 16]);
    let mut processes = Processes::new(Some((settings.clone(), ids)), Duration::from_secs(1), 0);
    let mut encoder = span::Encoder::new(Arguments::Redacted, AttributeLimits::default(), &settings);
    let context = context(None);
    let seen = Seen { event: &exec, exec: executed, owner: &Owner::Host(None), time_unix_ns: context.time_unix_ns };
    processes.exec(&seen, |_| encoder.begin(&exec, executed, &context));
    let span = processes.exit(exit.id(), exit.process.time_boot_ns).unwrap();
    let end = End::Exit { exit: ended, end_boot_ns: exec.process.time_boot_ns + 1_500_000_000 };
    request(Signal::Traces, Class::Span.scope(), |out| encoder.encode(span, end, out))
}

/// As the pipeline has it, at a fixed moment on a fixed host.
fn otlp(record: &[u8]) -> String {
    let event = decode::event(record).unwrap();
    let program = Program { path: b"/bin/ls".to_vec(), command: b"ls".to_vec(), args_count: 4, script: Vec::new() };
    let uid = Some(Uids::of_boot([1; 16]).of_event(&event));
    let context = Context { uid, ..context(Some(&program)) };
    let mut encoder = Encoder::new(Arguments::Redacted, AttributeLimits::default());
    let class = if matches!(event.kind, Kind::Exit(_)) { Class::Exit } else { Class::Exec };
    request(Signal::Logs, class.scope(), |out| encoder.encode(&event, &context, out))
}

static TOLD: Attribution = Attribution {
    owner: Owner::Host(None),
    how: How::RuntimeEvent,
    entry: Some(Entry::Init),
    entered: None,
    claimed: None,
    nested: None,
};

fn context(image: Option<&Program>) -> Context<'_> {
    Context {
        time_unix_ns: 1_795_000_000_123_456_789,
        observed_unix_ns: 1_795_000_000_130_000_000,
        creation_unix_ns: 1_794_999_999_000_000_000,
        parent_creation_unix_ns: 1_794_990_000_000_000_000,
        attribution: &TOLD,
        start_type: "fork_exec",
        uid: None,
        image,
        span: Some(SpanId([0x5b; 8])),
        trace: Some((TraceId([0x5a; 16]), 0x03)),
    }
}

/// One record of a container, as a request.
fn request(signal: Signal, scope: &'static str, write: impl FnOnce(&mut Vec<u8>)) -> String {
    let host = Host {
        id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        name: Some("host".to_owned()),
        arch: "amd64".to_owned(),
        os_version: "6.18.0".to_owned(),
    };
    let container = Container {
        name: Some("web-1".to_owned()),
        image: Some(Image {
            name: "registry:5000/shop/web".to_owned(),
            tags: vec!["1.25".to_owned()],
            id: Some("sha256:feed".to_owned()),
            repo_digests: vec!["registry:5000/shop/web@sha256:beef".to_owned()],
        }),
        labels: vec![("com.docker.compose.service".to_owned(), "web".to_owned())],
        service: Service { name: Some("web".to_owned()), ..Service::default() },
        ..Container::of_id(CONTAINER.to_owned(), "docker")
    };
    let resource = encode_resource(&host, Subject::Container(&container), &Resource::default()).into();
    let mut accumulators = Accumulators::new(scope, Batch::default());
    assert_eq!(accumulators.push(1, &resource, write), None);
    let line = json::request(signal, &accumulators.take().unwrap().bytes).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn ring_bytes_become_the_otlp_on_file() {
    let testdata = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let logs = cases().into_iter().map(|(name, record)| (name, otlp(&record), record));
    let spans = span_cases().into_iter().map(|(name, records)| (name, span_otlp(&records), records));
    for (name, otlp, record) in logs.chain(spans).chain(uprobe::cases()).chain(guard::cases()) {
        let (ring, expected) = (testdata.join(format!("ring/{name}.bin")), testdata.join(format!("otlp/{name}.json")));
        if std::env::var_os("NAMESPAN_BLESS").is_some() {
            fs::create_dir_all(ring.parent().unwrap()).unwrap();
            fs::create_dir_all(expected.parent().unwrap()).unwrap();
            fs::write(&ring, &record).unwrap();
            fs::write(&expected, &otlp).unwrap();
        }
        assert_eq!(fs::read(&ring).unwrap(), record, "{name}: the layout of records has changed");
        assert_eq!(otlp, fs::read_to_string(&expected).unwrap(), "{name}");
    }
}
