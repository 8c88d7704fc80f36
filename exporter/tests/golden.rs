//! Ring bytes in, OTLP/JSON out, both on file: whatever changes either shows in the diff.
//!
//! `NAMESPAN_BLESS=1 cargo test --test golden` writes the files anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use namespan::config::{Arguments, AttributeLimits, Batch, Resource};
use namespan::decode;
use namespan::enrich::container::{Container, Image};
use namespan::model::batch::Accumulators;
use namespan::model::log::{Context, Encoder, Image as Program};
use namespan::model::resource::{Host, encode_resource};
use namespan::ship::json::logs_request;
use namespan_ebpf::wire::{self, flag, kind, ns, section};
use zerocopy::{FromZeros as _, Immutable, IntoBytes};

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
    wire::Exec { args_len: args_len as u64, argc, reserved: 0 }
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
    let denied = wire::ExecFailed { errno: 13, reserved: 0 };
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

/// As the pipeline has it, at a fixed moment on a fixed host.
fn otlp(record: &[u8]) -> String {
    let event = decode::event(record).unwrap();
    let program = Program { path: b"/bin/ls".to_vec(), command: b"ls".to_vec(), args_count: 4, script: Vec::new() };
    let context = Context {
        time_unix_ns: 1_795_000_000_123_456_789,
        observed_unix_ns: 1_795_000_000_130_000_000,
        creation_unix_ns: 1_794_999_999_000_000_000,
        parent_creation_unix_ns: 1_794_990_000_000_000_000,
        attribution: "runtime_event",
        start_type: "fork_exec",
        image: Some(&program),
    };
    let host = Host {
        id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        name: Some("host".to_owned()),
        arch: "amd64".to_owned(),
        os_version: "6.18.0".to_owned(),
    };
    let container = Container {
        id: CONTAINER.to_owned(),
        runtime: "docker",
        name: Some("web-1".to_owned()),
        image: Some(Image {
            name: "registry:5000/shop/web".to_owned(),
            tags: vec!["1.25".to_owned()],
            id: Some("sha256:feed".to_owned()),
            repo_digests: vec!["registry:5000/shop/web@sha256:beef".to_owned()],
        }),
        labels: vec![("com.docker.compose.service".to_owned(), "web".to_owned())],
    };
    let resource = encode_resource(&host, Some(&container), &Resource::default()).into();
    let mut encoder = Encoder::new(Arguments::Redacted, AttributeLimits::default());
    let mut accumulators = Accumulators::new(Batch::default());
    assert_eq!(accumulators.push(1, &resource, |out| encoder.encode(&event, &context, out)), None);
    let line = logs_request(&accumulators.take().unwrap().bytes).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn ring_bytes_become_the_otlp_on_file() {
    let testdata = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for (name, record) in cases() {
        let (ring, expected) = (testdata.join(format!("ring/{name}.bin")), testdata.join(format!("otlp/{name}.json")));
        if std::env::var_os("NAMESPAN_BLESS").is_some() {
            fs::create_dir_all(ring.parent().unwrap()).unwrap();
            fs::create_dir_all(expected.parent().unwrap()).unwrap();
            fs::write(&ring, &record).unwrap();
            fs::write(&expected, otlp(&record)).unwrap();
        }
        assert_eq!(fs::read(&ring).unwrap(), record, "{name}: the layout of records has changed");
        assert_eq!(otlp(&record), fs::read_to_string(&expected).unwrap(), "{name}");
    }
}
