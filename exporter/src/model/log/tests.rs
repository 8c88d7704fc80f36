use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use proptest::prelude::*;
use prost::Message as _;
use zerocopy::FromZeros as _;

use namespan_ebpf::wire::{self, flag};

use super::*;
use crate::enrich::{Attribution, How, Owner};
use crate::event::{Args, CgroupPath, EnvContext, Exec, ExitStatus};
use crate::model::uid::Uids;
use crate::trace::{SpanId, TraceId};

const UNLIMITED: AttributeLimits = AttributeLimits { value_length: None, count: usize::MAX };
/// `SIGSEGV`, and a core was dumped.
const SEGV_CORE: u32 = 0x0b | 0x80;
const ARGV: &[u8] = b"ls\0-l\0--token\0abc\0";

fn process() -> wire::Process {
    wire::Process {
        tgid: 42,
        tid: 42,
        vpid: 7,
        parent_tgid: 40,
        time_boot_ns: 3_500_000_000,
        start_boot_ns: 1_000_000_000,
        euid: 1000,
        uid: 1000,
        suid: 1000,
        namespaces: [1, 2, 3, 4, 5, 6, 7, 0],
        comm: *b"ls\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ..wire::Process::new_zeroed()
    }
}

fn event(kind: Kind<'_>) -> Event<'_> {
    Event {
        process: process(),
        nodename: b"box",
        tty: b"",
        cgroup: CgroupPath(b"abc\0docker\0"),
        cgroup_v1: CgroupPath(b""),
        kind,
    }
}

fn exec(args: Args<'_>) -> Event<'_> {
    event(Kind::Exec(Exec { path: b"/bin/ls", script: b"", args, ancestor: None, env: EnvContext::default() }))
}

fn all(bytes: &[u8]) -> Args<'_> {
    Args { head: bytes, tail: b"", len: bytes.len() as u64, argc: 4 }
}

fn exit(status: u32) -> Event<'static> {
    event(Kind::Exit(Exit { status: ExitStatus(status), image: None, oom_victim: false }))
}

static BY_PATH: Attribution = Attribution::plain(Owner::Host(None), How::CgroupPath);

fn context() -> Context<'static> {
    Context {
        time_unix_ns: 1_795_373_044_120_000_000,
        observed_unix_ns: 1_795_373_044_130_000_000,
        creation_unix_ns: 1_795_373_041_620_000_000,
        parent_creation_unix_ns: 0,
        attribution: &BY_PATH,
        start_type: "fork_exec",
        uid: None,
        image: None,
        span: None,
        trace: None,
    }
}

struct Decoded {
    record: LogRecord,
    attributes: HashMap<String, Value>,
}

impl Decoded {
    fn text(&self, key: &str) -> &str {
        match self.attributes.get(key) {
            Some(Value::StringValue(text)) => text,
            other => panic!("{key}: {other:?}"),
        }
    }

    fn int(&self, key: &str) -> i64 {
        match self.attributes.get(key) {
            Some(Value::IntValue(int)) => *int,
            other => panic!("{key}: {other:?}"),
        }
    }

    fn is_true(&self, key: &str) -> bool {
        self.attributes.get(key) == Some(&Value::BoolValue(true))
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let Some(Value::ArrayValue(array)) = self.attributes.get(key) else { panic!("{key}") };
        let text = |value: &Option<Value>| match value {
            Some(Value::StringValue(text)) => text.clone(),
            other => format!("{other:?}"),
        };
        array.values.iter().map(|value| text(&value.value)).collect()
    }

    fn has(&self, key: &str) -> bool {
        self.attributes.contains_key(key)
    }

    fn body(&self) -> &str {
        match self.record.body.as_ref().and_then(|body| body.value.as_ref()) {
            Some(Value::StringValue(text)) => text,
            other => panic!("{other:?}"),
        }
    }
}

fn decode(bytes: &[u8]) -> Decoded {
    let record = LogRecord::decode(bytes).unwrap();
    assert_eq!(record.encode_to_vec(), bytes, "as prost writes it");
    let pairs = record.attributes.iter().map(|pair| (pair.key.clone(), pair.value.clone().unwrap().value.unwrap()));
    let attributes: HashMap<_, _> = pairs.collect();
    assert_eq!(attributes.len(), record.attributes.len(), "keys are unique");
    Decoded { record, attributes }
}

fn encoded(event: &Event<'_>, context: &Context<'_>, arguments: Arguments, limits: AttributeLimits) -> Decoded {
    let mut out = Vec::new();
    Encoder::new(arguments, limits).encode(event, context, &mut out);
    decode(&out)
}

fn usual(event: &Event<'_>) -> Decoded {
    encoded(event, &context(), Arguments::Redacted, UNLIMITED)
}

#[test]
fn an_exec_tells_who_ran_what_where() {
    let exec = usual(&exec(all(ARGV)));
    assert_eq!(exec.record.event_name, "namespan.process.exec");
    assert_eq!((exec.record.severity_number, exec.record.severity_text.as_str()), (9, ""));
    assert_eq!(exec.record.time_unix_nano, context().time_unix_ns);
    assert_eq!(exec.record.observed_time_unix_nano, context().observed_unix_ns);
    assert_eq!(exec.body(), "exec /bin/ls -l --token REDACTED");
    assert_eq!((exec.int("process.pid"), exec.int("process.vpid"), exec.int("process.parent_pid")), (42, 7, 40));
    assert_eq!(exec.text("process.creation.time"), "2026-11-22T18:44:01.620Z");
    assert_eq!((exec.text("process.executable.name"), exec.text("process.executable.path")), ("ls", "/bin/ls"));
    assert_eq!((exec.text("process.command"), exec.int("process.args_count")), ("ls", 4));
    assert_eq!(exec.text("process.linux.cgroup"), "0::/docker/abc");
    assert_eq!(exec.text("namespan.container.attribution"), "cgroup_path");
    assert_eq!((exec.int("namespan.namespace.pid.inode"), exec.int("namespan.namespace.cgroup.inode")), (1, 7));
    assert_eq!((exec.text("namespan.uts.nodename"), exec.text("namespan.process.comm")), ("box", "ls"));
    for absent in ["namespan.namespace.time.inode", "namespan.tty.name", "process.real_user.id", "namespan.process.tid"]
    {
        assert!(!exec.has(absent), "{absent}");
    }
}

#[test]
fn arguments_leave_as_the_mode_says() {
    let with = |mode| encoded(&exec(all(ARGV)), &context(), mode, UNLIMITED);
    let off = with(Arguments::Off);
    assert_eq!((off.body(), off.text("process.command")), ("exec /bin/ls", "ls"));
    assert!(!off.has("process.command_args") && !off.has("namespan.process.args.redacted"));
    let redacted = with(Arguments::Redacted);
    assert_eq!(redacted.texts("process.command_args"), ["ls", "-l", "--token", "REDACTED"]);
    assert!(redacted.is_true("namespan.process.args.redacted"));
    let full = with(Arguments::Full);
    assert_eq!(full.texts("process.command_args"), ["ls", "-l", "--token", "abc"]);
    assert_eq!(full.body(), "exec /bin/ls -l --token abc");
    assert!(!full.has("namespan.process.args.redacted"));
}

#[test]
fn a_gap_in_the_arguments_is_told_and_hides_what_it_cuts() {
    let args =
        Args { head: "sh\0--é".as_bytes().split_last().unwrap().1, tail: b"ret\0s3cret\0end\0", len: 9000, argc: 20 };
    let redacted = encoded(&exec(args), &context(), Arguments::Redacted, UNLIMITED);
    assert_eq!(redacted.texts("process.command_args"), ["sh", "--", "REDACTED", "REDACTED", "end"]);
    assert!(redacted.is_true("namespan.process.args.truncated"));
    assert_eq!((redacted.int("namespan.process.args.length"), redacted.int("process.args_count")), (9000, 20));
    let full = encoded(&exec(args), &context(), Arguments::Full, UNLIMITED);
    assert_eq!(full.texts("process.command_args"), ["sh", "--", "ret", "s3cret", "end"]);
}

#[test]
fn bytes_that_are_no_text_survive_as_bytes() {
    let mut odd = exec(all(b"a\0\xfe\0"));
    if let Kind::Exec(exec) = &mut odd.kind {
        exec.path = b"/bin/\xff";
    }
    let exec = usual(&odd);
    assert_eq!(exec.attributes["process.executable.path"], Value::BytesValue(b"/bin/\xff".to_vec()));
    assert_eq!(exec.body(), "exec /bin/\\xff \\xfe");
}

#[test]
fn exits_have_the_severity_of_their_cause() {
    let severity = |status| usual(&exit(status)).record.severity_number;
    assert_eq!([0, 1, 2, 13, 15].map(severity), [9; 5]);
    assert_eq!([3 << 8, 143 << 8, 9, 5, 34].map(severity), [13; 5]);
    assert_eq!([11, 6, 7, 4, 8, SEGV_CORE].map(severity), [17; 6]);
}

#[test]
fn an_exit_tells_how_and_when_it_ended() {
    let success = usual(&exit(0));
    assert_eq!((success.int("process.exit.code"), success.text("namespan.process.exit.reason")), (0, "exited"));
    assert_eq!(success.text("process.exit.time"), "2026-11-22T18:44:04.120Z");
    assert_eq!(success.attributes["namespan.process.duration"], Value::DoubleValue(2.5));
    assert!(!success.has("error.type") && !success.has("namespan.process.exit.signal.number"));
    assert_eq!((success.record.event_name.as_str(), success.body()), ("namespan.process.exit", "exit ls code 0"));
    let failure = usual(&exit(3 << 8));
    assert_eq!((failure.text("error.type"), failure.body()), ("3", "exit ls code 3"));
    let crash = usual(&exit(SEGV_CORE));
    assert_eq!((crash.int("process.exit.code"), crash.text("error.type")), (139, "SIGSEGV"));
    assert_eq!(crash.text("namespan.process.exit.reason"), "signaled");
    assert_eq!(crash.int("namespan.process.exit.signal.number"), 11);
    assert!(crash.is_true("namespan.process.exit.core_dumped"));
    assert_eq!(crash.body(), "exit ls signal SIGSEGV (core dumped)");
    assert_eq!(usual(&exit(34)).text("error.type"), "SIG34");
}

#[test]
fn an_exit_remembers_what_was_executed() {
    let image = Image {
        path: b"/usr/bin/python3".to_vec(),
        command: b"PASSWORD=x".to_vec(),
        args_count: 3,
        script: b"/srv/run.py".to_vec(),
    };
    let exit = encoded(&exit(0), &Context { image: Some(&image), ..context() }, Arguments::Off, UNLIMITED);
    assert_eq!((exit.body(), exit.text("process.executable.name")), ("exit python3 code 0", "python3"));
    assert_eq!((exit.text("process.command"), exit.int("process.args_count")), ("PASSWORD=REDACTED", 3));
    assert_eq!(exit.text("namespan.process.script.path"), "/srv/run.py");
}

#[test]
fn a_failed_exec_is_a_warning_named_after_the_errno() {
    let failed = usual(&event(Kind::ExecFailed(ExecFailed { path: b"/nope", errno: 2, image: None })));
    assert_eq!((failed.record.event_name.as_str(), failed.record.severity_number), ("namespan.process.exec", 13));
    assert_eq!((failed.text("error.type"), failed.body()), ("ENOENT", "exec failed /nope: ENOENT"));
    assert_eq!(failed.text("process.executable.path"), "/nope");
    let odd = usual(&event(Kind::ExecFailed(ExecFailed { path: b"/nope", errno: 600, image: None })));
    assert_eq!(odd.text("error.type"), "600");
}

#[test]
fn ids_that_differ_from_the_effective_ones_are_told() {
    let mut event = exec(all(ARGV));
    event.process.euid = 0;
    event.process.sgid = 5;
    event.process.tid = 43;
    event.tty = b"pts/0";
    let exec = usual(&event);
    assert_eq!((exec.int("process.user.id"), exec.int("process.real_user.id")), (0, 1000));
    assert_eq!((exec.int("process.saved_user.id"), exec.int("namespan.process.saved_group.id")), (1000, 5));
    assert!(!exec.has("namespan.process.real_group.id"));
    assert_eq!((exec.int("namespan.process.tid"), exec.text("namespan.tty.name")), (43, "pts/0"));
    assert!(exec.is_true("process.interactive"));
}

#[test]
fn what_is_incomplete_says_so() {
    let flags = [
        (flag::ARGS_FAULT, "namespan.process.args.unreadable"),
        (flag::PATH_TRUNCATED, "namespan.process.executable.truncated"),
        (flag::PATH_FAULT, "namespan.process.executable.unreadable"),
        (flag::CGROUP_TRUNCATED, "namespan.cgroup.truncated"),
        (flag::CGROUP_FAULT, "namespan.cgroup.unreadable"),
        (flag::UNLINKED, "namespan.process.executable.unlinked"),
        (flag::ENV_UNREAD, "namespan.process.environment.unread"),
    ];
    for (bit, _) in flags {
        let mut event = exec(all(ARGV));
        event.process.flags = bit;
        let exec = usual(&event);
        for (other, key) in flags {
            assert_eq!(exec.is_true(key), bit == other, "{key}");
        }
    }
}

#[test]
fn the_cgroup_is_that_of_the_hierarchy_that_tells_most() {
    let cgroup = |v2: &'static [u8], v1: &'static [u8]| {
        usual(&Event { cgroup: CgroupPath(v2), cgroup_v1: CgroupPath(v1), ..exec(all(ARGV)) })
            .text("process.linux.cgroup")
            .to_owned()
    };
    assert_eq!(cgroup(b"a\0b\0", b"c\0"), "0::/b/a");
    assert_eq!(cgroup(b"", b"c\0docker\0"), "/docker/c");
    assert_eq!(cgroup(b"", b""), "0::/");
}

#[test]
fn limits_cut_values_by_characters_and_the_least_important_attributes() {
    let limits = AttributeLimits { value_length: Some(3), count: 7 };
    let exec = encoded(&exec(all("ls\0éééé\0".as_bytes())), &context(), Arguments::Full, limits);
    assert_eq!(exec.texts("process.command_args"), ["ls", "ééé"]);
    assert_eq!(exec.text("process.executable.path"), "/bi");
    assert_eq!(exec.record.attributes.len(), 7);
    let whole = usual(&self::exec(all(b"ls\0x\0"))).record.attributes.len();
    assert_eq!(exec.record.dropped_attributes_count as usize, whole - 7);
    assert_eq!(exec.body(), "exec /bin/ls éééé");
}

#[test]
fn a_uid_is_whole_or_not_there() {
    let event = exec(all(ARGV));
    let uid = Uids::of_boot([7; 16]).of_event(&event);
    let context = Context { uid: Some(uid), ..context() };
    let text = std::str::from_utf8(uid.as_bytes()).unwrap();
    let with = |limits| encoded(&event, &context, Arguments::Redacted, limits);
    assert_eq!(with(UNLIMITED).text("log.record.uid"), text);
    assert_eq!(with(AttributeLimits { value_length: Some(3), count: 3 }).text("log.record.uid"), text);
    assert!(!with(AttributeLimits { value_length: None, count: 2 }).has("log.record.uid"));
}

#[test]
fn an_encoder_forgets_the_event_before() {
    let mut encoder = Encoder::new(Arguments::Redacted, UNLIMITED);
    let mut out = Vec::new();
    encoder.encode(&exec(all(ARGV)), &context(), &mut out);
    out.clear();
    encoder.encode(&exit(0), &context(), &mut out);
    let exit = decode(&out);
    assert!(!exit.has("process.command") && !exit.has("namespan.process.args.redacted"));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..60), "[ -~é€\u{1F600}]{0,60}".prop_map(String::into_bytes)]
}

#[test]
fn a_group_or_session_that_nobody_leads_is_left_out() {
    let leaders = ["process.group_leader.pid", "process.session_leader.pid"];
    let mut event = exit(0);
    (event.process.group_leader, event.process.session_leader) = (42, 41);
    let led = encoded(&event, &context(), Arguments::Redacted, UNLIMITED);
    assert_eq!(leaders.map(|key| led.int(key)), [42, 41]);
    (event.process.group_leader, event.process.session_leader) = (0, 0);
    let unled = encoded(&event, &context(), Arguments::Redacted, UNLIMITED);
    assert_eq!(leaders.map(|key| unled.has(key)), [false; 2]);
}

#[test]
fn a_record_names_the_span_it_belongs_to() {
    let record = |span, trace| {
        let context = Context { span, trace, ..self::context() };
        let record = encoded(&exit(0), &context, Arguments::Redacted, UNLIMITED).record;
        (record.trace_id, record.span_id, record.flags)
    };
    let (trace, span) = (TraceId([7; 16]), SpanId([8; 8]));
    assert_eq!(record(Some(span), Some((trace, 1))), (vec![7; 16], vec![8; 8], 1));
    assert_eq!(record(Some(span), Some((trace, 0))), (vec![7; 16], vec![8; 8], 0));
    assert_eq!(record(Some(span), None), (vec![], vec![8; 8], 0));
    assert_eq!(record(None, None), (vec![], vec![], 0));
}

#[test]
fn who_was_killed_for_want_of_memory_is_told_as_an_error() {
    let killed = |status| usual(&event(Kind::Exit(Exit { status: ExitStatus(status), image: None, oom_victim: true })));
    let oom = killed(9);
    assert_eq!((oom.text("error.type"), oom.record.severity_number), ("OOMKilled", 17));
    assert_eq!(oom.text("namespan.process.exit.reason"), "oom_killed");
    assert!(oom.body().ends_with("signal SIGKILL (out of memory)"), "{}", oom.body());
    assert_eq!(killed(15).text("namespan.process.exit.reason"), "signaled", "it was ending by itself");
}

proptest! {
    #[test]
    fn any_event_is_written_as_prost_writes_it(
        numbers in prop::collection::vec(any::<u8>(), size_of::<wire::Process>()),
        texts in prop::collection::vec(bytes(), 8),
        args in prop_oneof![bytes(), prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..0xffff)],
        kind in 0..3,
        number: u32,
        len: u64,
        times: [u64; 4],
        mode in prop::sample::select(vec![Arguments::Off, Arguments::Redacted, Arguments::Full]),
        value_length in prop::option::of(0..50_usize),
        count in 0..60_usize,
    ) {
        let image = Image { path: texts[6].clone(), command: texts[7].clone(), args_count: number, script: vec![] };
        let process = <wire::Process as zerocopy::FromBytes>::read_from_bytes(&numbers).unwrap();
        let args = Args { head: &args, tail: &texts[7], len, argc: number };
        let exec = Exec { path: &texts[4], script: &texts[5], args, ancestor: None, env: EnvContext::default() };
        let event = Event {
            process,
            nodename: &texts[0],
            tty: &texts[1],
            cgroup: CgroupPath(&texts[2]),
            cgroup_v1: CgroupPath(&texts[3]),
            kind: match kind {
                0 => Kind::Exec(exec),
                1 => Kind::Exit(Exit { status: ExitStatus(number), image: None, oom_victim: false }),
                _ => Kind::ExecFailed(ExecFailed { path: &texts[4], errno: number, image: None }),
            },
        };
        let context = Context {
            time_unix_ns: times[0].max(1),
            observed_unix_ns: times[1].max(1),
            creation_unix_ns: times[2],
            parent_creation_unix_ns: times[3],
            image: (number % 2 == 0).then_some(&image),
            ..self::context()
        };
        let limited = encoded(&event, &context, mode, AttributeLimits { value_length, count });
        let whole = encoded(&event, &context, mode, UNLIMITED);
        let sent = limited.record.attributes.len();
        prop_assert!(sent <= count);
        prop_assert_eq!(sent + limited.record.dropped_attributes_count as usize, whole.record.attributes.len());
        prop_assert_eq!(whole.int("process.pid"), i64::from(process.tgid));
        prop_assert!(whole.body().chars().count() <= 257);
        if let (Kind::Exec(exec), Arguments::Full) = (&event.kind, mode) {
            prop_assert_eq!(whole.has("process.command_args"), exec.args.iter().next().is_some());
        }
    }
}
