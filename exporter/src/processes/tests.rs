use std::collections::HashSet;

use namespan_ebpf::wire;
use proptest::prelude::*;
use zerocopy::FromZeros as _;

use super::*;
use crate::config::{RootSampler, Sampler, Trust};
use crate::enrich::container::Container;
use crate::event::{Args, CgroupPath, EnvContext, Kind};

const S: u64 = 1_000_000_000;
const MAX: u64 = 600 * S;
const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTHER: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000aa-01";
const UNSAMPLED: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// An exec of one process at a time in seconds, below another.
#[derive(Clone)]
struct Case {
    tgid: u32,
    ancestor: u32,
    at: u64,
    path: &'static [u8],
    env: &'static [u8],
    owner: Owner,
    vpid: u32,
    session: u32,
    group: u32,
    execs: u64,
    tty: &'static [u8],
}

fn case(tgid: u32, ancestor: u32) -> Case {
    let owner = Owner::Host(None);
    Case {
        tgid,
        ancestor,
        at: 1,
        path: b"/bin/x",
        env: b"",
        owner,
        vpid: tgid,
        session: 1,
        group: 1,
        execs: 1,
        tty: b"",
    }
}

fn id(tgid: u32) -> ProcessId {
    ProcessId { tgid, start_boot_ns: u64::from(tgid) }
}

fn container(name: &str) -> Owner {
    Owner::Container(Arc::new(Container { name: Some(name.into()), ..Container::of_id(name.repeat(8), "docker") }))
}

fn processes(change: impl FnOnce(&mut config::Spans)) -> Processes {
    let mut settings = config::Spans::default();
    change(&mut settings);
    Processes::new(Some((settings, Ids::of_boot([1; 16]))), Duration::from_secs(1), S / 2)
}

impl Case {
    fn exec(&self, processes: &mut Processes) {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.start_boot_ns, process.time_boot_ns) = (self.tgid, self.tgid.into(), self.at * S);
        (process.vpid, process.session_leader) = (self.vpid, self.session);
        (process.group_leader, process.self_exec_id) = (self.group, self.execs);
        let exec = Exec {
            path: self.path,
            script: b"",
            args: Args { head: b"x\0", tail: b"", len: 2, argc: 1 },
            ancestor: (self.ancestor != 0).then(|| id(self.ancestor)),
            env: EnvContext { traceparent: self.env, tracestate: b"" },
        };
        let none = CgroupPath(b"");
        let kind = Kind::Exec(exec.clone());
        let event = Event { process, nodename: b"", tty: self.tty, cgroup: none, cgroup_v1: none, kind };
        let seen = Seen { event: &event, exec: &exec, owner: &self.owner, time_unix_ns: self.at * S };
        processes.exec(&seen, |_| Begun { name: "x".into(), attributes: vec![0; 500].into() });
    }
}

fn span(processes: &Processes, tgid: u32) -> &Span {
    processes.of(id(tgid)).unwrap().span.as_deref().unwrap()
}

/// Parent's span id, and why there is none.
fn nesting(processes: &Processes, tgid: u32) -> (Option<SpanId>, Option<Boundary>) {
    let span = span(processes, tgid);
    (span.parent.map(|parent| parent.span_id), span.boundary)
}

/// Of the second of two processes, one below the other.
fn below(first: impl FnOnce(&mut Case), second: impl FnOnce(&mut Case)) -> Option<Boundary> {
    let mut processes = processes(|settings| settings.max_per_trace = 3);
    let (mut one, mut two) = (case(10, 0), case(11, 10));
    first(&mut one);
    second(&mut two);
    one.exec(&mut processes);
    two.exec(&mut processes);
    let (parent, boundary) = nesting(&processes, 11);
    let above = span(&processes, 10).context;
    assert_eq!(parent.is_none(), boundary.is_some());
    assert_eq!(span(&processes, 11).context.trace_id == above.trace_id, boundary.is_none());
    // Whoever begins a trace is linked to what is above.
    assert_eq!(span(&processes, 11).link.map(|link| link.to), boundary.map(|_| above));
    boundary
}

fn told(give_up: impl FnOnce(&mut dyn FnMut(&Span, u64))) -> Vec<(SpanId, u64)> {
    let mut told = Vec::new();
    give_up(&mut |span, end| told.push((span.context.span_id, end)));
    told
}

#[test]
fn processes_nest_as_they_exec_and_share_a_trace() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    case(11, 10).exec(&mut processes);
    case(12, 11).exec(&mut processes);
    assert_eq!(nesting(&processes, 10), (None, Some(Boundary::UnknownParent)));
    assert_eq!(span(&processes, 10).link, None);
    for (child, parent) in [(11, 10), (12, 11)] {
        let above = span(&processes, parent).context;
        assert_eq!(nesting(&processes, child), (Some(above.span_id), None));
        let context = span(&processes, child).context;
        assert_eq!((context.trace_id, context.flags), (above.trace_id, 0x03));
    }
    assert_eq!(processes.stats().spans, 3);
}

#[test]
fn a_second_exec_goes_on_with_the_span() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    let before = span(&processes, 10).context;
    Case { at: 2, path: b"/bin/y", env: TRACEPARENT, ..case(10, 0) }.exec(&mut processes);
    let after = span(&processes, 10);
    assert_eq!((after.context, after.execs, after.start_boot_ns), (before, 2, S));
    assert_eq!(processes.of(id(10)).unwrap().image.path, b"/bin/y");
}

#[test]
fn each_boundary_begins_a_trace_with_a_link_to_what_is_above() {
    let nothing = |_: &mut Case| {};
    assert_eq!(below(nothing, nothing), None);
    assert_eq!(below(nothing, |two| two.owner = container("a")), Some(Boundary::Container));
    assert_eq!(below(|one| one.owner = container("a"), |two| two.owner = container("b")), Some(Boundary::Container));
    assert_eq!(below(|one| one.owner = container("a"), |two| two.owner = container("a")), None);
    assert_eq!(below(|one| one.vpid = 1, nothing), Some(Boundary::NamespaceInit));
    assert_eq!(below(|one| one.path = b"/usr/sbin/sshd-session", nothing), Some(Boundary::Executable));
    assert_eq!(below(|one| one.path = b"/usr/bin/my-cron", nothing), None);
    assert_eq!(below(nothing, |two| two.at = 601), None);
    assert_eq!(below(nothing, |two| two.at = 602), Some(Boundary::LongLived));
    let typed = |two: &mut Case| (two.session, two.group, two.tty) = (10, 11, b"pts/0");
    assert_eq!(below(nothing, typed), Some(Boundary::Terminal));
    let scripted = |two: &mut Case| (two.session, two.group, two.tty) = (10, 10, b"pts/0");
    assert_eq!(below(nothing, scripted), None, "by a script that leads the session");
    assert_eq!(below(nothing, |two| (two.session, two.tty) = (11, b"pts/0")), Some(Boundary::Terminal));
    assert_eq!(below(nothing, |two| two.session = 10), None, "a session without a terminal");
    assert_eq!(below(nothing, |two| two.tty = b"pts/0"), None, "in a script of a terminal");
}

#[test]
fn a_full_trace_and_a_long_one_go_on_in_others() {
    let mut processes = processes(|settings| settings.max_per_trace = 3);
    case(10, 0).exec(&mut processes);
    for tgid in 11..15 {
        case(tgid, 10).exec(&mut processes);
    }
    assert_eq!(nesting(&processes, 12).1, None);
    assert_eq!(nesting(&processes, 13).1, Some(Boundary::TraceFull));
    // Each hands on to a younger one before it is old itself.
    Case { at: 400, ..case(20, 10) }.exec(&mut processes);
    Case { at: 700, ..case(21, 20) }.exec(&mut processes);
    Case { at: 1200, ..case(22, 21) }.exec(&mut processes);
    assert_eq!(nesting(&processes, 21).1, None);
    assert_eq!(nesting(&processes, 22).1, Some(Boundary::LongLived));
}

#[test]
fn a_context_of_its_own_environment_is_the_parent_and_an_inherited_one_nests() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    Case { env: TRACEPARENT, ..case(11, 10) }.exec(&mut processes);
    Case { env: TRACEPARENT, ..case(12, 11) }.exec(&mut processes);
    Case { env: OTHER, ..case(13, 12) }.exec(&mut processes);
    case(14, 13).exec(&mut processes);
    let remote = Remote::parse(EnvContext { traceparent: TRACEPARENT, tracestate: b"" }).unwrap().context;
    let first = span(&processes, 11);
    assert_eq!(first.parent, Some(Parent { span_id: remote.span_id, remote: true }));
    assert_eq!((first.context.trace_id, first.context.flags), (remote.trace_id, 0x01));
    let second = span(&processes, 12);
    assert_eq!(second.parent, Some(Parent { span_id: first.context.span_id, remote: false }));
    assert_eq!(span(&processes, 13).parent.map(|parent| parent.span_id.0[7]), Some(0xaa));
    assert_eq!(nesting(&processes, 14).0, Some(span(&processes, 13).context.span_id));
    assert!([11, 12, 13, 14].iter().all(|tgid| span(&processes, *tgid).context.trace_id == remote.trace_id));
}

#[test]
fn an_inherited_context_is_the_parent_where_the_process_above_can_not_be() {
    let mut processes = processes(|_| {});
    Case { env: TRACEPARENT, vpid: 1, ..case(10, 0) }.exec(&mut processes);
    Case { env: TRACEPARENT, ..case(11, 10) }.exec(&mut processes);
    assert_eq!(span(&processes, 10).parent, span(&processes, 11).parent);
    assert!(span(&processes, 11).parent.is_some_and(|parent| parent.remote));
}

#[test]
fn a_context_is_believed_only_of_whom_the_settings_trust() {
    let believed = |trust: &[Trust], owner: Owner| {
        let mut processes = processes(|settings| settings.env_context = trust.to_vec());
        Case { env: TRACEPARENT, owner, ..case(10, 0) }.exec(&mut processes);
        span(&processes, 10).parent.is_some()
    };
    for (trust, of_host, of_web, of_db) in [
        (&[][..], false, false, false),
        (&[Trust::All], true, true, true),
        (&[Trust::Host], true, false, false),
        (&[Trust::Containers], false, true, true),
        (&[Trust::Name("web".into())], false, true, false),
        (&[Trust::Name("we*".into()), Trust::Host], true, true, false),
        (&[Trust::Image("web".into())], false, false, false),
    ] {
        let found = [Owner::Host(None), container("web"), container("db")].map(|owner| believed(trust, owner));
        assert_eq!(found, [of_host, of_web, of_db], "{trust:?}");
    }
}

#[test]
fn what_is_not_sampled_has_ids_and_is_never_told() {
    let mut processes = processes(|_| {});
    Case { env: UNSAMPLED, ..case(10, 0) }.exec(&mut processes);
    case(11, 10).exec(&mut processes);
    assert_eq!([10, 11].map(|tgid| span(&processes, tgid).context.flags), [0, 0]);
    for tgid in [11, 10] {
        let span = processes.exit(id(tgid), 2 * S).unwrap();
        assert_eq!(span.end(2 * S, MAX), Verdict::Nothing);
    }
    let mut off = self::processes(|settings| {
        settings.sampler = Sampler { parent_based: false, root: RootSampler::Off };
    });
    Case { env: TRACEPARENT, ..case(10, 0) }.exec(&mut off);
    assert!(!span(&off, 10).context.is_sampled());
}

#[test]
fn a_span_ends_once_with_its_process() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    assert_eq!(processes.exit(id(10), 2 * S).unwrap().end(2 * S, MAX), Verdict::Ended);
    assert!(processes.exit(id(10), 2 * S).is_none());
    assert!(processes.exit(id(99), 2 * S).is_none(), "never seen to exec");
    assert_eq!(told(|tell| processes.finish(3 * S, tell)), []);
}

#[test]
fn who_has_just_exited_is_still_found_by_its_children() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    processes.exit(id(10), 2 * S).unwrap().end(2 * S, MAX);
    case(11, 10).exec(&mut processes);
    assert_eq!(nesting(&processes, 11).1, None);
    processes.give_up(3 * S - 1, &mut |_, _| {});
    assert!(processes.of(id(10)).is_some());
    processes.give_up(3 * S, &mut |_, _| {});
    assert!(processes.of(id(10)).is_none());
}

#[test]
fn a_span_that_lasts_for_too_long_is_told_only_if_others_name_it() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    case(11, 10).exec(&mut processes);
    assert_eq!(told(|tell| processes.give_up(600 * S, tell)), []);
    let parent = span(&processes, 10).context.span_id;
    assert_eq!(told(|tell| processes.give_up(601 * S, tell)), [(parent, 601 * S)]);
    assert_eq!(told(|tell| processes.give_up(2000 * S, tell)), []);
    Case { at: 2000, ..case(12, 10) }.exec(&mut processes);
    assert_eq!(nesting(&processes, 12).1, Some(Boundary::LongLived));
    for tgid in [10, 11] {
        assert_eq!(processes.exit(id(tgid), 3000 * S).unwrap().end(3000 * S, MAX), Verdict::Nothing);
    }
    assert_eq!(told(|tell| processes.finish(3000 * S, tell)), []);
}

#[test]
fn an_exit_that_comes_too_late_is_cut_to_the_longest_span() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    case(11, 10).exec(&mut processes);
    let end = processes.exit(id(10), 700 * S).unwrap().end(700 * S, MAX);
    assert_eq!(end, Verdict::Unfinished { end_boot_ns: 601 * S });
}

#[test]
fn at_the_end_open_parents_are_told_and_others_are_not() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    case(11, 10).exec(&mut processes);
    let parent = span(&processes, 10).context.span_id;
    assert_eq!(told(|tell| processes.finish(5 * S, tell)), [(parent, 5 * S)]);
}

#[test]
fn entries_and_bytes_stay_bounded_and_evictions_lose_no_parent() {
    let mut processes = processes(|_| {});
    case(200_000, 0).exec(&mut processes);
    case(200_001, 200_000).exec(&mut processes);
    let parent = span(&processes, 200_000).context.span_id;
    let mut all = Vec::new();
    for tgid in 2..100_000 {
        case(tgid, 0).exec(&mut processes);
        all.extend(told(|tell| processes.give_up(2 * S, tell)));
        assert!(processes.bytes <= BYTES && processes.live.len() <= ENTRIES.get());
    }
    assert_eq!(all, [(parent, 2 * S)]);
    assert_eq!(processes.bytes, processes.live.iter().map(|(_, process)| process.size()).sum::<usize>());
    let stats = processes.stats();
    assert_eq!(stats.evictions, 100_000 - processes.live.len() as u64);
    assert_eq!(stats.lost, stats.evictions - 1, "all but the one that was told");
    assert_eq!(nesting(&processes, 99_999).1, Some(Boundary::UnknownParent));
}

#[test]
fn an_inherited_context_brings_nothing_more_into_a_trace_that_is_full_or_old() {
    let full = |env: &'static [u8]| {
        let mut processes = processes(|settings| settings.max_per_trace = 2);
        for (tgid, ancestor) in [(10, 0), (11, 10), (12, 10)] {
            Case { env, ..case(tgid, ancestor) }.exec(&mut processes);
        }
        assert_eq!(span(&processes, 10).context.trace_id, span(&processes, 11).context.trace_id);
        assert_ne!(span(&processes, 10).context.trace_id, span(&processes, 12).context.trace_id);
        assert_eq!(nesting(&processes, 12), (None, Some(Boundary::TraceFull)));
        assert_eq!(span(&processes, 12).link.map(|link| link.to), Some(span(&processes, 10).context));
        span(&processes, 12).context.is_sampled()
    };
    assert!(full(TRACEPARENT));
    assert!(!full(UNSAMPLED), "what is dropped stays dropped");
}

#[test]
fn what_was_told_and_forgotten_is_not_told_again_by_another_exec() {
    let mut processes = processes(|_| {});
    case(200_000, 0).exec(&mut processes);
    case(200_001, 200_000).exec(&mut processes);
    let mut all = Vec::new();
    for tgid in 2..100_000 {
        case(tgid, 0).exec(&mut processes);
        all.extend(told(|tell| processes.give_up(2 * S, tell)));
    }
    assert_eq!(all.len(), 1);
    Case { execs: 2, ..case(200_000, 0) }.exec(&mut processes);
    Case { at: 2, ..case(200_002, 200_000) }.exec(&mut processes);
    assert_eq!(nesting(&processes, 200_002).1, Some(Boundary::LongLived));
    assert_eq!(processes.exit(id(200_000), 3 * S).unwrap().end(3 * S, MAX), Verdict::Nothing);
}

#[test]
fn whoever_had_execd_before_we_watched_is_left_to_whoever_watched_then() {
    let mut processes = Processes::new(Some((config::Spans::default(), Ids::of_boot([1; 16]))), Duration::ZERO, S);
    // Forked before, executed for the first time since.
    case(10, 0).exec(&mut processes);
    Case { execs: 2, ..case(11, 0) }.exec(&mut processes);
    case(12, 11).exec(&mut processes);
    assert_eq!(nesting(&processes, 12).1, Some(Boundary::LongLived));
    let ended = [10, 11, 12].map(|tgid| processes.exit(id(tgid), 2 * S).unwrap().end(2 * S, MAX));
    assert_eq!(ended, [Verdict::Ended, Verdict::Nothing, Verdict::Ended]);
}

#[test]
fn who_lives_for_long_is_remembered_apart_and_makes_no_room_scarce() {
    let mut processes = processes(|_| {});
    for tgid in 2..20_000 {
        case(tgid, 0).exec(&mut processes);
    }
    processes.give_up(601 * S, &mut |_, _| {});
    assert_eq!((processes.live.len(), processes.old.len()), (0, OLD_ENTRIES.get()));
    assert_eq!(processes.of(id(19_999)).unwrap().image.path, b"/bin/x");
    assert_eq!(processes.stats().lost, 0, "a span that lasts for too long was not to be told");
    let bytes = processes.old.iter().map(|(_, process)| process.size()).sum::<usize>();
    assert_eq!(processes.bytes, bytes);
}

#[test]
fn an_exit_in_time_is_told_though_it_is_read_late() {
    let mut processes = processes(|_| {});
    case(10, 0).exec(&mut processes);
    processes.give_up(700 * S, &mut |_, _| {});
    assert_eq!(processes.exit(id(10), 600 * S).unwrap().end(600 * S, MAX), Verdict::Ended);
}

#[test]
fn without_spans_only_images_are_remembered() {
    let mut processes = Processes::new(None, Duration::ZERO, 0);
    case(10, 0).exec(&mut processes);
    assert!(processes.of(id(10)).unwrap().span.is_none());
    assert!(processes.exit(id(10), 2 * S).is_none());
    processes.give_up(2 * S, &mut |_, _| {});
    assert_eq!((processes.live.len(), processes.bytes), (0, 0));
}

proptest! {
    /// Whatever happens, a span that is told has a parent that is told or another program's, and none is told twice.
    #[test]
    fn no_parent_is_missing_and_no_span_is_told_twice(
        steps in prop::collection::vec((0..4_u8, 1..30_u32, 0..30_u32, 0..300_u64, 0..3_u8), 1..300),
    ) {
        let mut processes = processes(|settings| settings.max_per_trace = 5);
        let mut spans: Vec<(SpanId, Option<Parent>)> = Vec::new();
        let mut gone = HashSet::new();
        let mut now = 1;
        for (step, tgid, ancestor, later, owner) in steps {
            now += later;
            match step {
                0 | 1 => {
                    if ancestor == tgid || gone.contains(&tgid) {
                        continue;
                    }
                    let owner = if owner == 0 { container("a") } else { Owner::Host(None) };
                    Case { at: now, owner, ..case(tgid, ancestor) }.exec(&mut processes);
                }
                2 => {
                    gone.insert(tgid);
                    let max_ns = processes.max_ns();
                    if let Some(span) = processes.exit(id(tgid), now * S)
                        && span.end(now * S, max_ns) != Verdict::Nothing
                    {
                        spans.push((span.context.span_id, span.parent));
                    }
                }
                _ => processes.give_up(now * S, &mut |span, _| spans.push((span.context.span_id, span.parent))),
            }
        }
        processes.finish(now * S, &mut |span, _| spans.push((span.context.span_id, span.parent)));
        let ids: HashSet<_> = spans.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(ids.len(), spans.len());
        for (_, parent) in &spans {
            if let Some(Parent { span_id, remote: false }) = parent {
                prop_assert!(ids.contains(span_id), "{span_id:?} is missing");
            }
        }
    }
}
