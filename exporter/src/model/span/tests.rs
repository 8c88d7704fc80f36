use std::collections::HashMap;
use std::time::Duration;

use namespan_ebpf::wire;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use proptest::prelude::*;
use prost::Message as _;
use zerocopy::FromZeros as _;

use super::*;
use crate::enrich::{Attribution, How, Owner};
use crate::event::{CgroupPath, EnvContext, ExitStatus, Kind, ProcessId};
use crate::processes::{Processes, Seen};
use crate::trace::ids::Ids;

const START: u64 = 1_795_000_000_000_000_000;
const UNLIMITED: AttributeLimits = AttributeLimits { value_length: None, count: usize::MAX };
const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A process, and how it ends.
#[derive(Clone)]
struct Case<'a> {
    path: &'a [u8],
    argv: &'a [u8],
    env: EnvContext<'a>,
    ancestor: Option<ProcessId>,
    process: wire::Process,
    limits: AttributeLimits,
    arguments: Arguments,
}

impl Default for Case<'_> {
    fn default() -> Self {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.tid, process.vpid, process.parent_tgid) = (42, 42, 7, 41);
        (process.start_boot_ns, process.time_boot_ns, process.session_leader) = (1_000, 2_000, 40);
        process.comm[..2].copy_from_slice(b"ls");
        process.namespaces[0] = 4_026_531_836;
        Self {
            path: b"/bin/ls",
            argv: b"ls\0-l\0",
            env: EnvContext::default(),
            ancestor: None,
            process,
            limits: UNLIMITED,
            arguments: Arguments::Redacted,
        }
    }
}

struct Decoded {
    span: Proto,
    attributes: HashMap<String, Value>,
}

impl Decoded {
    fn int(&self, key: &str) -> Option<i64> {
        let value = self.attributes.get(key)?;
        let Value::IntValue(value) = value else { panic!("{key}: {value:?}") };
        Some(*value)
    }

    fn text(&self, key: &str) -> Option<&str> {
        let value = self.attributes.get(key)?;
        let Value::StringValue(text) = value else { panic!("{key}: {value:?}") };
        Some(text)
    }

    fn args(&self) -> usize {
        let Value::ArrayValue(array) = &self.attributes["process.command_args"] else { panic!("no array") };
        array.values.len()
    }
}

impl Case<'_> {
    /// Below a process that has exec'd before, if `ancestor` says so.
    fn encoded(&self, end: impl for<'e> FnOnce(&'e mut Exit) -> End<'e>) -> Decoded {
        let settings = config::Spans::default();
        let mut processes = Processes::new(Some((settings.clone(), Ids::of_boot([3; 16]))), Duration::ZERO, 0);
        let mut encoder = Encoder::new(self.arguments, self.limits, &settings);
        if let Some(ancestor) = self.ancestor {
            let process = wire::Process { tgid: ancestor.tgid, start_boot_ns: ancestor.start_boot_ns, ..self.process };
            Case { process, ancestor: None, ..self.clone() }.exec(&mut processes, &mut encoder);
        }
        self.exec(&mut processes, &mut encoder);
        let process = ProcessId { tgid: self.process.tgid, start_boot_ns: self.process.start_boot_ns };
        let span = processes.of(process).and_then(|process| process.span.as_deref()).unwrap();
        let mut bytes = Vec::new();
        let mut exit = Exit { status: ExitStatus(0), image: None, oom_victim: false };
        encoder.encode(span, end(&mut exit), &mut bytes);
        let span = Proto::decode(&*bytes).unwrap();
        assert_eq!(span.encode_to_vec(), bytes, "as prost writes it");
        let pairs = span.attributes.iter().map(|pair| (pair.key.clone(), pair.value.clone().unwrap().value.unwrap()));
        let attributes: HashMap<_, _> = pairs.collect();
        assert_eq!(attributes.len(), span.attributes.len(), "keys are unique");
        Decoded { span, attributes }
    }

    fn exec(&self, processes: &mut Processes, encoder: &mut Encoder) {
        let args = Args { head: self.argv, tail: b"", len: self.argv.len() as u64, argc: 3 };
        let exec = Exec { path: self.path, script: b"", args, ancestor: self.ancestor, env: self.env };
        let none = CgroupPath(b"");
        let kind = Kind::Exec(exec.clone());
        let process = self.process;
        let event = Event { process, nodename: b"box", tty: b"", cgroup: none, cgroup_v1: none, kind };
        let context = Context {
            time_unix_ns: START,
            observed_unix_ns: START,
            creation_unix_ns: START,
            parent_creation_unix_ns: START,
            attribution: &Attribution::plain(Owner::Host(None), How::None),
            start_type: "fork_exec",
            uid: None,
            image: None,
            span: None,
            trace: None,
        };
        let seen = Seen { event: &event, exec: &exec, owner: &Owner::Host(None), time_unix_ns: START };
        processes.exec(&seen, |_| encoder.begin(&event, &exec, &context));
    }

    fn exited(&self, status: u32, oom_victim: bool) -> Decoded {
        self.encoded(|exit| {
            *exit = Exit { status: ExitStatus(status), image: None, oom_victim };
            End::Exit { exit, end_boot_ns: 5_002_000 }
        })
    }

    fn status(&self, status: u32) -> (i32, Option<String>) {
        let decoded = self.exited(status, false);
        let code = decoded.span.status.as_ref().map_or(0, |status| status.code);
        (code, decoded.text("error.type").map(ToOwned::to_owned))
    }
}

#[test]
fn a_span_is_the_life_of_a_process() {
    let decoded = Case::default().exited(0, false);
    let span = &decoded.span;
    assert_eq!((span.name.as_str(), span.kind), ("ls", 1));
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (START, START + 5_000_000));
    assert_eq!((span.trace_id.len(), span.span_id.len(), span.parent_span_id.len()), (16, 8, 0));
    assert_eq!((span.flags, span.status.clone(), span.links.len()), (0x103, None, 0));
    assert_eq!((decoded.int("process.pid"), decoded.int("process.exit.code")), (Some(42), Some(0)));
    assert_eq!(decoded.text("process.executable.path"), Some("/bin/ls"));
    assert_eq!(decoded.text("namespan.trace.boundary"), Some("unknown_parent"));
    assert_eq!((decoded.text("error.type"), decoded.args()), (None, 2));
    assert!(span.attributes.len() <= 32, "{}", span.attributes.len());
}

#[test]
fn only_codes_that_are_listed_are_no_errors() {
    let run = |path: &'static [u8], argv: &'static [u8], status| Case { path, argv, ..Case::default() }.status(status);
    let error = |kind: &str| (2, Some(kind.to_owned()));
    assert_eq!(run(b"/bin/false", b"false\0", 1 << 8), error("1"));
    assert_eq!(run(b"/bin/grep", b"grep\0x\0", 1 << 8), (0, None));
    assert_eq!(run(b"/bin/grep", b"grep\0x\0", 2 << 8), error("2"));
    assert_eq!(run(b"/bin/busybox", b"grep\0x\0", 1 << 8), (0, None));
    assert_eq!(run(b"/bin/not grep", b"x\0", 1 << 8), error("1"));
    assert_eq!(run(b"/bin/grep", b"grep\0", 11), error("SIGSEGV"));
}

#[test]
fn a_death_by_signal_says_which_and_a_lack_of_memory_that() {
    let killed = Case::default().exited(9, false);
    assert_eq!(killed.span.status.as_ref().unwrap().message, "killed by SIGKILL");
    assert_eq!((killed.int("process.exit.code"), killed.text("error.type")), (Some(137), Some("SIGKILL")));
    assert_eq!(killed.text("namespan.process.exit.reason"), Some("signaled"));
    let oom = Case::default().exited(9, true);
    assert_eq!(oom.text("error.type"), Some("OOMKilled"));
    assert_eq!(oom.text("namespan.process.exit.reason"), Some("oom_killed"));
    let ended_by_itself = Case::default().exited(0, true);
    assert_eq!(ended_by_itself.text("namespan.process.exit.reason"), Some("exited"));
}

#[test]
fn programs_of_many_names_are_named_with_the_one_that_runs() {
    let name =
        |path: &'static [u8], argv: &'static [u8]| Case { path, argv, ..Case::default() }.exited(0, false).span.name;
    assert_eq!(name(b"/bin/busybox", b"ls\0-l\0"), "busybox ls");
    assert_eq!(name(b"/bin/busybox", b"/bin/sh\0"), "busybox sh");
    assert_eq!(name(b"/bin/busybox", b"-sh\0"), "busybox sh");
    assert_eq!(name(b"/bin/busybox", b"busybox\0[\0"), "busybox [");
    assert_eq!(name(b"/bin/busybox", b"busybox\0"), "busybox");
    assert_eq!(name(b"/bin/busybox", b"Some Thing\0"), "busybox", "what is no applet's name is not told");
    assert_eq!(name(b"/bin/busybox", b""), "busybox");
    assert_eq!(name(b"/usr/bin/perl", b"ls\0"), "perl");
    assert_eq!(name(b"/bin/\xff\x1b[m", b"x\0"), "\\xff\\u{1b}[m");
    assert_eq!(name(b"", b"x\0"), "ls", "by comm where the path could not be read");
}

#[test]
fn a_parent_of_this_host_and_one_of_another_program_are_told_apart() {
    let ancestor = Some(ProcessId { tgid: 41, start_boot_ns: 500 });
    let local = Case { ancestor, ..Case::default() }.exited(0, false);
    assert_eq!((local.span.parent_span_id.len(), local.span.flags), (8, 0x103));
    assert_eq!(local.text("namespan.trace.boundary"), None);
    let env = EnvContext { traceparent: TRACEPARENT, tracestate: b"vendor=1" };
    let remote = Case { env, ..Case::default() }.exited(0, false);
    assert_eq!((remote.span.parent_span_id[0], remote.span.parent_span_id[7]), (0x00, 0xb7));
    assert_eq!((remote.span.trace_state.as_str(), remote.span.flags), ("vendor=1", 0x301));
    assert_eq!(remote.text("namespan.trace.boundary"), None);
}

#[test]
fn whoever_begins_a_trace_below_another_process_is_linked_to_it() {
    let ancestor = Some(ProcessId { tgid: 41, start_boot_ns: 500 });
    let path = b"/usr/sbin/cron";
    let linked = Case { path, ancestor, ..Case::default() }.exited(0, false);
    let [link] = &linked.span.links[..] else { panic!("{:?}", linked.span.links) };
    assert_ne!(link.trace_id, linked.span.trace_id);
    assert_eq!((link.trace_id.len(), link.span_id.len(), link.flags), (16, 8, 0x103));
    assert_eq!(link.attributes[0].key, "namespan.link.type");
    assert_eq!(linked.text("namespan.trace.boundary"), Some("executable"));
}

#[test]
fn a_span_that_is_given_up_says_so_and_claims_no_exit() {
    let decoded = Case::default().encoded(|_| End::Unfinished { end_boot_ns: 1_000 });
    assert_eq!(decoded.attributes["namespan.span.unfinished"], Value::BoolValue(true));
    assert_eq!((decoded.int("process.exit.code"), decoded.span.status.clone()), (None, None));
    assert_eq!(decoded.span.end_time_unix_nano, START, "no negative life");
}

#[test]
fn long_arguments_are_cut_and_said_to_be() {
    let many = b"a\0".repeat(100);
    let cut = Case { argv: &many, ..Case::default() }.exited(0, false);
    assert_eq!((cut.args(), cut.int("process.args_count")), (64, Some(3)));
    assert_eq!(cut.attributes["namespan.process.args.truncated"], Value::BoolValue(true));
    assert_eq!(cut.int("namespan.process.args.length"), Some(200));
    let long = [&b"x\0"[..], &[b'y'; 5000], b"\0z\0"].concat();
    let cut = Case { argv: &long, ..Case::default() }.exited(0, false);
    assert_eq!(cut.args(), 1);
    let secret = Case { argv: b"x\0--token\0s3cret\0", ..Case::default() }.exited(0, false);
    assert_eq!(secret.attributes["namespan.process.args.redacted"], Value::BoolValue(true));
    let off = Case { arguments: Arguments::Off, ..Case::default() }.exited(0, false);
    assert!(!off.attributes.contains_key("process.command_args"));
}

#[test]
fn limits_keep_how_it_ended() {
    let limits = AttributeLimits { value_length: Some(3), count: 4 };
    let limited = Case { limits, ..Case::default() }.exited(1 << 8, false);
    let whole = Case::default().exited(1 << 8, false);
    assert_eq!(limited.attributes.len(), 4);
    assert_eq!(limited.span.dropped_attributes_count as usize, whole.attributes.len() - 4);
    assert_eq!((limited.int("process.exit.code"), limited.text("error.type")), (Some(1), Some("1")));
    let short = Case { limits: AttributeLimits { count: 128, ..limits }, ..Case::default() }.exited(0, false);
    assert_eq!(short.text("process.executable.path"), Some("/bi"));
}

proptest! {
    #[test]
    fn any_process_is_written_as_prost_writes_it(
        path in prop::collection::vec(1..=255_u8, 0..100),
        argv in prop::collection::vec(any::<u8>(), 0..300),
        traceparent in prop::option::of(Just(TRACEPARENT)),
        tracestate in prop::collection::vec(any::<u8>(), 0..40),
        status: u32,
        oom_victim: bool,
        count in 0..40_usize,
    ) {
        let env = EnvContext { traceparent: traceparent.unwrap_or_default(), tracestate: &tracestate };
        let limits = AttributeLimits { value_length: None, count };
        let case = Case { path: &path, argv: &argv, env, limits, ..Case::default() };
        let decoded = case.exited(status, oom_victim);
        prop_assert!(decoded.attributes.len() <= count);
        prop_assert!(!decoded.span.name.is_empty());
    }
}
