//! The enricher, fed with events and updates.

use zerocopy::FromZeros;

use namespan_ebpf::wire;

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
