//! The enricher, fed with events and updates.

use zerocopy::FromZeros;

use namespan_ebpf::wire;

use super::containers::Sight;
use super::runtime::{Link, Place, Update};
use super::*;
use crate::config::Runtimes;
use crate::event::{CgroupPath, Exit, ExitStatus, Kind};

const GRACE: Duration = Duration::from_secs(30);
const NEGATIVE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_millis(500);

fn config(entries: usize) -> Enrich {
    Enrich {
        runtimes: Runtimes::OFF,
        cache_entries: NonZeroUsize::new(entries).unwrap(),
        cache_grace: GRACE,
        cache_negative: NEGATIVE,
        wait: WAIT,
        wait_bytes: 0,
        labels: Vec::new(),
    }
}

fn id(number: u64) -> String {
    format!("{number:064x}")
}

fn path(number: u64) -> Vec<u8> {
    format!("{}\0docker\0", id(number)).into_bytes()
}

fn event(cgroup_id: u64, path: &[u8]) -> Event<'_> {
    let mut process = wire::Process::new_zeroed();
    process.cgroup_id = cgroup_id;
    let kind = Kind::Exit(Exit { status: ExitStatus(0), image: None, oom_victim: false });
    Event { process, nodename: b"", tty: b"", cgroup: CgroupPath(path), cgroup_v1: CgroupPath(b""), kind }
}

fn named(number: u64, name: &str) -> Arc<Container> {
    Arc::new(Container { name: Some(name.to_owned()), ..Container::of_id(id(number), "docker") })
}

fn known(number: u64, name: &str) -> Update {
    Update::Known { container: named(number, name), how: How::RuntimeEvent, place: Place::default() }
}

#[track_caller]
fn ready(verdict: Verdict) -> (Arc<Container>, How) {
    let Verdict::Ready(Attribution { owner: Owner::Container(container), how, .. }) = verdict else {
        panic!("not a container: {verdict:?}")
    };
    (container, how)
}

#[track_caller]
fn waits(verdict: &Verdict) -> Instant {
    let Verdict::Wait { until } = verdict else { panic!("does not wait: {verdict:?}") };
    *until
}

fn source(name: &'static str, answers_for: &'static [&'static str], lookups: mpsc::Sender<String>) -> Source {
    Source { name, answers_for, files: false, lookups }
}

fn attribute(enricher: &mut Enricher, event: &Event<'_>, now: Instant) -> Verdict {
    let stand = enricher.stand(event, now);
    enricher.attribute(&stand, now)
}

struct Docker {
    enricher: Enricher,
    lookups: mpsc::Receiver<String>,
    now: Instant,
}

fn docker(entries: usize, room: usize) -> Docker {
    let (sender, lookups) = mpsc::channel(room);
    Docker {
        enricher: Enricher::new(&config(entries), vec![source("docker", &["docker", "containerd"], sender)]),
        lookups,
        now: Instant::now(),
    }
}

impl Docker {
    fn attribute(&mut self, number: u64) -> Verdict {
        attribute(&mut self.enricher, &event(number + 100, &path(number)), self.now)
    }

    fn apply(&mut self, update: Update) {
        self.enricher.apply(0, update, self.now);
    }

    fn asked(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.lookups.try_recv().ok()).collect()
    }
}

#[test]
fn the_host_is_remembered_too() {
    let mut docker = docker(4, 4);
    for _ in 0..3 {
        let verdict = attribute(&mut docker.enricher, &event(7, b"a.service\0system.slice\0"), docker.now);
        let Verdict::Ready(Attribution { owner: Owner::Host(Some(unit)), how: How::None, .. }) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(unit.service(), Some("a"));
    }
    assert_eq!(docker.enricher.stats(), Stats { hits: 2, misses: 1, ..Stats::default() });
}

#[test]
fn who_is_there_is_looked_at_bit_by_bit_and_who_was_there_before_is_forgotten() {
    let mut docker = docker(4, 4);
    let stat = procfs::Stat::parse(b"1 (a) S 1 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 7 2 3").unwrap();
    let slot = docker.enricher.containers.insert(named(1, "web"), None, docker.now).0;
    let gone = stat.id(u32::MAX);
    docker.enricher.kin.remember_elder(gone.tgid, stat, kin::Standing { slot, entry: Entry::Init });
    let mut survey = docker.enricher.begin_survey();
    let mut all = Vec::new();
    while let Some(some) = docker.enricher.survey_on(&mut survey, 3, docker.now) {
        assert!(some.len() <= 3);
        all.extend(some.into_iter().map(|resident| resident.pid));
    }
    assert_eq!(all.iter().filter(|pid| **pid == std::process::id()).count(), 1);
    assert_eq!(docker.enricher.kin.elder(gone), None);
}

#[test]
fn an_unknown_container_is_asked_for_once_and_waited_for_once() {
    let mut docker = docker(4, 4);
    let start = docker.now;
    assert_eq!(waits(&docker.attribute(1)), start + WAIT);
    docker.now += WAIT / 2;
    assert_eq!(waits(&docker.attribute(1)), start + WAIT);
    assert_eq!(docker.asked(), [id(1)]);
    docker.apply(known(1, "web"));
    let (container, how) = ready(docker.attribute(1));
    assert_eq!((container.name.as_deref(), how), (Some("web"), How::RuntimeEvent));
    assert_eq!(docker.enricher.stats().unresolved, 0);
}

#[test]
fn a_runtime_that_hangs_delays_only_a_container_s_first_records() {
    let mut docker = docker(4, 4);
    waits(&docker.attribute(1));
    docker.now += WAIT;
    assert_eq!(ready(docker.attribute(1)).1, How::CgroupPath);
    assert_eq!(docker.asked().len(), 1);
    docker.now += NEGATIVE;
    waits(&docker.attribute(1));
    assert_eq!(docker.asked().len(), 1);
    assert_eq!(docker.enricher.stats().unresolved, 1);
}

#[test]
fn at_the_deadline_the_id_alone_is_the_answer() {
    let mut docker = docker(4, 4);
    waits(&docker.attribute(1));
    let stand = docker.enricher.stand(&event(101, &path(1)), docker.now);
    let attribution = docker.enricher.settle(&stand);
    let (container, how) = ready(Verdict::Ready(attribution));
    assert_eq!((container.id.clone(), container.name.clone(), how), (id(1), None, How::CgroupPath));
}

#[test]
fn a_negative_answer_holds_for_its_time() {
    let mut docker = docker(4, 4);
    waits(&docker.attribute(1));
    docker.apply(Update::Unknown { key: id(1) });
    docker.asked();
    assert_eq!(ready(docker.attribute(1)).1, How::CgroupPath);
    docker.now = (docker.now + NEGATIVE).checked_sub(Duration::from_nanos(1)).unwrap();
    assert_eq!(ready(docker.attribute(1)).1, How::CgroupPath);
    assert!(docker.asked().is_empty());
    docker.now += Duration::from_nanos(1);
    waits(&docker.attribute(1));
    assert_eq!(docker.asked(), [id(1)]);
}

#[test]
fn a_late_negative_answer_does_not_undo_what_is_known() {
    let mut docker = docker(4, 4);
    docker.apply(known(1, "web"));
    docker.apply(Update::Unknown { key: id(1) });
    assert_eq!(ready(docker.attribute(1)).1, How::RuntimeEvent);
}

#[test]
fn without_a_runtime_nothing_waits() {
    let mut off = Enricher::new(&config(4), Vec::new());
    assert_eq!(ready(attribute(&mut off, &event(1, &path(1)), Instant::now())).1, How::CgroupPath);

    let mut docker = docker(4, 4);
    docker.apply(known(2, "db"));
    docker.apply(Update::State(Link::Lost { reason: "gone".into() }));
    assert_eq!(ready(docker.attribute(1)).1, How::CgroupPath);
    assert_eq!(ready(docker.attribute(2)).1, How::RuntimeEvent);
    assert!(docker.asked().is_empty());
    docker.apply(Update::State(Link::Connected));
    waits(&docker.attribute(1));
    assert_eq!(docker.asked(), [id(1)]);
}

#[test]
fn a_question_lost_with_the_connection_is_put_again() {
    let mut docker = docker(4, 4);
    waits(&docker.attribute(1));
    docker.apply(Update::State(Link::Lost { reason: "gone".into() }));
    docker.apply(Update::State(Link::Connected));
    waits(&docker.attribute(1));
    assert_eq!(docker.asked().len(), 2);
}

#[test]
fn a_task_that_has_ended_is_not_waited_for() {
    let mut docker = docker(4, 4);
    docker.lookups.close();
    assert_eq!(ready(docker.attribute(1)).1, How::CgroupPath);
}

#[test]
fn other_runtimes_containers_are_not_asked_for() {
    let mut docker = docker(4, 4);
    let path = format!("libpod-{}.scope\0machine.slice\0", id(1)).into_bytes();
    let (container, how) = ready(attribute(&mut docker.enricher, &event(1, &path), docker.now));
    assert_eq!((container.runtime, how), ("podman", How::CgroupPath));
    assert!(docker.asked().is_empty());
}

#[test]
fn a_question_without_room_is_counted_and_put_again() {
    let mut docker = docker(4, 1);
    waits(&docker.attribute(1));
    waits(&docker.attribute(2));
    assert_eq!(docker.enricher.stats().lookups_refused, 1);
    assert_eq!(docker.asked(), [id(1)]);
    waits(&docker.attribute(2));
    assert_eq!(docker.asked(), [id(2)]);
}

#[test]
fn the_arc_changes_with_the_data_and_only_then() {
    let mut docker = docker(4, 4);
    docker.apply(known(1, "web"));
    let (first, _) = ready(docker.attribute(1));
    docker.apply(Update::Known { container: named(1, "web"), how: How::RuntimeApi, place: Place::default() });
    let (same, how) = ready(docker.attribute(1));
    assert!(Arc::ptr_eq(&first, &same) && how == How::RuntimeEvent);
    docker.apply(known(1, "renamed"));
    let (renamed, _) = ready(docker.attribute(1));
    assert_eq!(renamed.name.as_deref(), Some("renamed"));
}

#[test]
fn a_container_that_is_gone_is_remembered_for_the_grace_period() {
    let mut docker = docker(4, 4);
    docker.apply(known(1, "web"));
    docker.apply(Update::Gone { key: id(1) });
    docker.now = (docker.now + GRACE).checked_sub(Duration::from_nanos(1)).unwrap();
    assert_eq!(ready(docker.attribute(1)).0.name.as_deref(), Some("web"));
    docker.now += Duration::from_nanos(1);
    waits(&docker.attribute(1));
    assert_eq!(docker.enricher.containers.len(), 1);
    docker.apply(Update::Gone { key: id(1) });
    docker.apply(known(1, "again"));
    docker.now += 2 * GRACE;
    docker.apply(Update::Gone { key: id(9) });
    assert_eq!(ready(docker.attribute(1)).0.name.as_deref(), Some("again"));
    assert_eq!(docker.enricher.stats().evictions, 0);
}

#[test]
fn a_thousand_containers_pass_through_a_small_cache() {
    let mut docker = docker(64, 4);
    for number in 0..1000 {
        docker.apply(known(number, "x"));
        assert_eq!(ready(docker.attribute(number)).1, How::RuntimeEvent);
        assert_eq!(ready(docker.attribute(number)).1, How::RuntimeEvent);
    }
    assert_eq!(docker.enricher.containers.len(), 64);
    let expected =
        Stats { hits: 1000, misses: 1000, evictions: 936, cgroup_evictions: 744, containers: 64, ..Stats::default() };
    assert_eq!(docker.enricher.stats(), expected);
    waits(&docker.attribute(0));
    assert_eq!(docker.enricher.stats().evictions, 937);
}

#[test]
fn those_that_are_gone_make_room_first_and_are_no_evictions() {
    let mut docker = docker(64, 4);
    docker.apply(known(5000, "old and quiet"));
    for number in 0..1000 {
        docker.apply(known(number, "x"));
        docker.attribute(number);
        docker.apply(Update::Gone { key: id(number) });
    }
    assert_eq!((docker.enricher.containers.len(), docker.enricher.stats().evictions), (64, 0));
    assert_eq!(ready(docker.attribute(5000)).0.name.as_deref(), Some("old and quiet"));
    docker.now += GRACE;
    docker.apply(Update::Gone { key: id(0) });
    assert_eq!(docker.enricher.containers.len(), 1);
}

#[test]
fn a_container_in_use_outlives_those_without_events() {
    let mut docker = docker(8, 4);
    docker.apply(known(5000, "busy"));
    for number in 0..100 {
        assert_eq!(ready(docker.attribute(5000)).0.name.as_deref(), Some("busy"));
        docker.apply(known(number, "quiet"));
    }
}

#[test]
fn a_place_taken_by_another_container_is_not_mistaken_for_it() {
    let mut docker = docker(1, 4);
    docker.apply(known(1, "one"));
    ready(docker.attribute(1));
    docker.apply(known(2, "two"));
    assert_eq!(ready(docker.attribute(2)).0.id, id(2));
    waits(&docker.attribute(1));
    assert_eq!(docker.asked(), [id(1)]);
}

#[test]
fn a_path_that_could_not_be_read_is_not_remembered() {
    let mut docker = docker(4, 4);
    let mut faulty = event(101, b"");
    faulty.process.flags = wire::flag::CGROUP_FAULT;
    attribute(&mut docker.enricher, &faulty, docker.now);
    waits(&docker.attribute(1));
    assert_eq!(docker.enricher.stats().misses, 2);
    // Where it was read before, it is known by its id.
    attribute(&mut docker.enricher, &faulty, docker.now);
    assert_eq!(docker.enricher.stats().misses, 2);
}

#[test]
fn restarts_for_ever_take_no_more_memory() {
    let mut docker = docker(4, 4);
    for _ in 0..1000 {
        docker.now += Duration::from_millis(1);
        docker.apply(known(1, "crash loop"));
        docker.apply(Update::Gone { key: id(1) });
    }
    assert!(docker.enricher.containers.marks() <= 9);
}

/// Records that are read late, with times of the boot clock.
mod late {
    use super::*;
    use crate::event::{Args, EnvContext, Exec, ProcessId};

    const HOST_MOUNT: u32 = 1;
    const MOUNT: u32 = 77;
    /// No process has this pid.
    const NOBODY: u32 = 0x7fff_fff0;

    /// A process that exec's in the cgroup of a container.
    #[derive(Clone, Copy)]
    struct Program {
        /// Of the cgroup.
        container: u64,
        tgid: u32,
        vpid: u32,
        mount: u32,
        parent_mount: u32,
        /// The nearest that has exec'd, if the kernel has found it, and the parent.
        ancestor: Option<ProcessId>,
        parent: ProcessId,
        at: u64,
    }

    fn process(tgid: u32) -> ProcessId {
        // After the start, so that whoever is not known to be inside is outside.
        ProcessId { tgid, start_boot_ns: u64::MAX / 2 }
    }

    /// As a runtime starts it.
    fn first(container: u64, tgid: u32, at: u64) -> Program {
        let shim = process(9000);
        Program {
            container,
            tgid,
            vpid: 1,
            mount: MOUNT,
            parent_mount: HOST_MOUNT,
            ancestor: Some(shim),
            parent: shim,
            at,
        }
    }

    fn fields(tgid: u32, mount: u32, at: u64) -> wire::Process {
        let mut fields = wire::Process::new_zeroed();
        (fields.tgid, fields.start_boot_ns) = (tgid, process(tgid).start_boot_ns);
        fields.time_boot_ns = at;
        fields.namespaces[ns::MNT] = mount;
        fields.namespaces[ns::PID] = mount + 1000;
        fields
    }

    /// The key of the container that it is told as, if any.
    fn of(enricher: &mut Enricher, event: &Event<'_>) -> (Option<String>, How) {
        let stand = enricher.stand(event, Instant::now());
        let attribution = enricher.settle(&stand);
        match attribution.owner {
            Owner::Container(container) => (Some(container.id.clone()), attribution.how),
            Owner::Host(_) => (None, attribution.how),
        }
    }

    fn exec(enricher: &mut Enricher, exec: Program) -> (Option<String>, How) {
        let mut process = fields(exec.tgid, exec.mount, exec.at);
        (process.vpid, process.parent_mnt_ns) = (exec.vpid, exec.parent_mount);
        (process.parent_tgid, process.parent_start_boot_ns) = (exec.parent.tgid, exec.parent.start_boot_ns);
        process.cgroup_id = exec.container + 100;
        let path = path(exec.container);
        let args = Args { head: b"", tail: b"", len: 0, argc: 0 };
        let env = EnvContext::default();
        let kind = Kind::Exec(Exec { path: b"/bin/true", script: b"", args, ancestor: exec.ancestor, env });
        let (cgroup, cgroup_v1) = (CgroupPath(&path), CgroupPath(b""));
        of(enricher, &Event { process, nodename: b"", tty: b"", cgroup, cgroup_v1, kind })
    }

    fn exit(enricher: &mut Enricher, container: u64, tgid: u32, at: u64) -> (Option<String>, How) {
        let path = path(container);
        let process = wire::Process { cgroup_id: container + 100, ..fields(tgid, 0, at) };
        of(enricher, &Event { process, ..event(0, &path) })
    }

    fn enricher() -> Enricher {
        let mut enricher = Enricher::new(&config(8), Vec::new());
        for (number, name) in [(1, "one"), (2, "two")] {
            enricher.apply(0, known(number, name), Instant::now());
        }
        enricher
    }

    /// What `/proc` shows of a container's first process.
    fn seen_in_proc(enricher: &mut Enricher, container: u64, first: ProcessId, at_boot_ns: u64) {
        let slot = enricher.containers.find(&id(container)).unwrap();
        let spaces = Spaces { mount: MOUNT, pid: MOUNT + 1000 };
        enricher.containers.set_spaces(slot, Sight { spaces, first, at_boot_ns }, true);
    }

    #[test]
    fn a_namespace_s_number_that_is_another_container_s_by_now_was_not_its_before() {
        let mut enricher = enricher();
        seen_in_proc(&mut enricher, 2, process(20), 200);
        assert_eq!(exec(&mut enricher, first(1, 10, 100)).0, Some(id(1)));
        let child = Program { vpid: 2, parent_mount: MOUNT, ancestor: None, ..first(1, 11, 110) };
        assert_eq!(exec(&mut enricher, child).0, Some(id(1)));
        assert_eq!(exit(&mut enricher, 1, 10, 120).0, Some(id(1)));
        assert_eq!(exec(&mut enricher, first(2, 20, 150)).0, Some(id(2)));
        // Of nobody's parents, in the first one's cgroup.
        let orphan = Program { vpid: 2, parent_mount: 0, ancestor: None, ..first(1, 21, 210) };
        assert_eq!(exec(&mut enricher, orphan).0, Some(id(2)));
    }

    #[test]
    fn a_container_that_was_started_again_before_its_records_are_read_was_known_by_other_namespaces() {
        let mut enricher = enricher();
        assert_eq!(exec(&mut enricher, first(1, 10, 100)).0, Some(id(1)));
        let slot = enricher.containers.find(&id(1)).unwrap();
        let again = Sight { spaces: Spaces { mount: 98, pid: 1098 }, first: process(30), at_boot_ns: 200 };
        enricher.containers.set_spaces(slot, again, true);
        // Of nobody's parents, in the other one's cgroup.
        let moved = Program { vpid: 2, parent_mount: 0, ancestor: None, ..first(2, 11, 150) };
        assert_eq!(exec(&mut enricher, moved), (Some(id(1)), How::Lineage));
        assert_eq!(exit(&mut enricher, 1, 10, 160).0, Some(id(1)));
        let later = Program { tgid: 12, at: 170, ..moved };
        assert_eq!(exec(&mut enricher, later), (Some(id(2)), How::RuntimeEvent));
    }

    #[test]
    fn a_container_that_ended_before_its_records_are_read_is_known_by_its_namespaces_until_then() {
        let (before, mut enricher) = (boot_ns(), enricher());
        assert_eq!(exec(&mut enricher, first(1, 10, before)).0, Some(id(1)));
        enricher.apply(0, Update::Gone { key: id(1) }, Instant::now());
        let moved = Program { vpid: 2, parent_mount: 0, ancestor: None, ..first(2, 11, before + 1) };
        assert_eq!(exec(&mut enricher, moved), (Some(id(1)), How::Lineage));
        let later = Program { tgid: 12, at: boot_ns(), ..moved };
        assert_eq!(exec(&mut enricher, later), (Some(id(2)), How::RuntimeEvent));
    }

    #[test]
    fn a_first_process_whose_exit_is_yet_to_be_read_was_there() {
        let (before, mut enricher) = (boot_ns(), enricher());
        exit(&mut enricher, 2, 5, before);
        assert_eq!(exec(&mut enricher, first(1, NOBODY, before)).0, Some(id(1)));
        let stranger = Program { mount: 99, ..first(1, 11, before + 1) };
        assert_eq!(exec(&mut enricher, stranger), (None, How::Contradicted));
        exit(&mut enricher, 1, NOBODY, before + 2);
        let again = Program { mount: 98, ..first(1, 12, before + 3) };
        assert_eq!(exec(&mut enricher, again).0, Some(id(1)), "started again");
    }

    #[test]
    fn a_first_process_whose_exit_was_lost_is_missed_once() {
        let (before, mut enricher) = (boot_ns(), enricher());
        exit(&mut enricher, 2, 5, before);
        assert_eq!(exec(&mut enricher, first(1, NOBODY, before)).0, Some(id(1)));
        let stranger = Program { mount: 99, ..first(1, 11, before + 1) };
        assert_eq!(exec(&mut enricher, stranger), (None, How::Contradicted));
        let again = Program { mount: 98, ..first(1, 12, boot_ns()) };
        assert_eq!(exec(&mut enricher, again).0, Some(id(1)));
    }

    #[test]
    fn whoever_has_the_first_process_s_pid_by_now_is_not_it() {
        let mut enricher = enricher();
        let own = std::process::id();
        let stat = procfs::Stat::of(own).unwrap();
        seen_in_proc(&mut enricher, 1, stat.id(own), 10);
        let stranger = Program { mount: 99, ..first(1, 11, 20) };
        assert_eq!(exec(&mut enricher, stranger), (None, How::Contradicted), "we are there");
        // Nobody tells of exits, and this is another process.
        seen_in_proc(&mut enricher, 1, process(own), 30);
        assert_eq!(exec(&mut enricher, Program { at: 40, ..stranger }).0, Some(id(1)));
    }

    #[test]
    fn a_parent_that_has_exec_d_nothing_is_known_by_its_other_children() {
        let (before, mut enricher) = (boot_ns(), enricher());
        assert_eq!(exec(&mut enricher, first(1, 10, before)).0, Some(id(1)));
        let fork = process(NOBODY);
        let child = Program { ancestor: Some(process(10)), parent: fork, vpid: 3, ..first(1, 12, before + 1) };
        assert_eq!(exec(&mut enricher, child).0, Some(id(1)));
        let moved = Program { ancestor: None, parent: fork, mount: 99, vpid: 4, ..first(2, 13, before + 2) };
        assert_eq!(exec(&mut enricher, moved), (Some(id(1)), How::Lineage));
    }
}

#[test]
fn an_unseen_process_is_its_cgroup_s_only_as_far_as_its_namespaces_are() {
    let mut docker = docker(4, 4);
    for number in [1, 2] {
        docker.attribute(number);
        docker.apply(known(number, &format!("c{number}")));
        let slot = docker.enricher.containers.find(&named(number, "").key()).unwrap();
        let inode = u32::try_from(number).unwrap();
        let spaces = Spaces { mount: 10 + inode, pid: 20 + inode };
        let first = ProcessId { tgid: u32::MAX, start_boot_ns: 0 };
        docker.enricher.containers.set_spaces(slot, Sight { spaces, first, at_boot_ns: 0 }, false);
    }
    let mut whose = |mount, pid| {
        let mut process = wire::Process::new_zeroed();
        (process.cgroup_id, process.tgid, process.vpid, process.parent_mnt_ns) = (101, 7, 7, mount);
        (process.namespaces[ns::MNT], process.namespaces[ns::PID]) = (mount, pid);
        let id = ProcessId { tgid: 7, start_boot_ns: u64::MAX };
        let attribution = docker.enricher.whose(&Unseen { process: &process, id, parent: None }, docker.now);
        let Owner::Container(container) = attribution.owner else { panic!("{attribution:?}") };
        (container.name.clone().unwrap(), attribution.how)
    };
    assert_eq!(whose(11, 21), ("c1".to_owned(), How::RuntimeEvent));
    // Its cgroup alone would say that it is the first's.
    assert_eq!(whose(12, 22), ("c2".to_owned(), How::Lineage));
}
