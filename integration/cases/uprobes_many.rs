//! Many uprobes, many containers, and many hits: all attach, and each hit is accounted for.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it has measured"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use namespan_integration::PATIENCE;
use namespan_integration::called::{self, CALLED, Caller, is_hit, number, probe, settings};
use namespan_integration::docker::Docker;
use namespan_integration::namespan::{Finished, HitSummary};
use namespan_integration::needs::{Need, met};
use namespan_integration::settings::Run;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::watched::poll;

/// Functions of the program, `told_00` and so on.
const FUNCTIONS: usize = 100;
/// From a first call of all of them to the next.
const ROUND: Duration = Duration::from_millis(500);

fn ready() -> bool {
    met(&[Need::Namespan, Need::Docker, Need::Program("cc")])
}

/// Container and function.
fn whose(record: &Record) -> (String, String) {
    let [container, function] = [record.of_resource("container.name"), record.get("code.function.name")];
    (container.text().to_owned(), function.text().to_owned())
}

/// How often each function of each container was told with this number.
fn told(sink: &Sink, with: i64) -> BTreeMap<(String, String), usize> {
    let mut told = BTreeMap::new();
    sink.seen(|records| {
        for record in records.iter().filter(|record| is_hit(record) && number(record) == with) {
            *told.entry(whose(record)).or_default() += 1;
        }
    });
    told
}

/// Has all containers call all functions until each has been told; then once more, which is told exactly.
fn all_of_all(containers: usize, probes: impl Fn(&str) -> String) -> Finished {
    let docker = Docker::of(called::root().path());
    let names: Vec<_> = (0..containers).map(|number| docker.name(&format!("many-{number}"))).collect();
    let mut callers: Vec<_> = names.iter().map(|name| Caller::in_container(&docker, name, &[])).collect();
    let sink = Sink::start();
    let began = Instant::now();
    let run = Run::start(&settings(&sink.endpoint(), &probes(&format!("name:{}", docker.name("many-*")))));
    let watching = began.elapsed();
    let mut seen = BTreeSet::new();
    let mut round = 0;
    let attached = poll(4 * PATIENCE, || {
        round += 1;
        for caller in &mut callers {
            assert_eq!(caller.ask(&format!("all -{round}")), "done");
        }
        poll(ROUND, || {
            seen.extend(told(&sink, -round).into_keys());
            (seen.len() == containers * FUNCTIONS).then(|| began.elapsed())
        })
    });
    let attached = attached.unwrap_or_else(|| panic!("{} of {} attached", seen.len(), containers * FUNCTIONS));
    for caller in &mut callers {
        assert_eq!(caller.ask("all 0"), "done");
    }
    let peak = run.namespan.peak_memory_kib();
    let began = Instant::now();
    let finished = run.namespan.stop().shipped_all();
    eprintln!(
        "{FUNCTIONS} functions in {containers} containers: watching after {watching:?}, all attached after {attached:?}, \
         {peak} KiB at most, stopped in {:?}",
        began.elapsed()
    );
    let told = told(&sink, 0);
    assert_eq!(told.len(), containers * FUNCTIONS);
    assert!(told.values().all(|times| *times == 1), "{told:#?}");
    finished
}

#[test]
fn a_hundred_probes_on_twenty_containers_tell_each_call_of_each_once() {
    if !ready() {
        return;
    }
    let probes = |target: &str| {
        let one = |at| probe(&format!("probe-{at:02}"), target, CALLED, &format!("told_{at:02}"));
        (0..FUNCTIONS).map(one).collect::<String>()
    };
    assert!(all_of_all(20, probes).status.success());
}

#[test]
fn a_pattern_of_a_hundred_functions_is_as_many_probes() {
    if !ready() {
        return;
    }
    let pattern = format!("/^told_[0-9]+$/{FUNCTIONS}");
    assert!(all_of_all(2, |target| probe("pattern", target, CALLED, &pattern)).status.success());
}

/// Calls of malloc in batches, the next when all of one are accounted for or told; what became of them by the summary.
struct Malloc {
    docker: Docker,
    caller: Caller,
    sink: Sink,
    run: Run,
    /// Calls of which all must be known.
    calls: u64,
    /// Calls that may have come before the probe.
    unsure: u64,
}

impl Malloc {
    /// When it is attached, with these settings. The hits of single calls, or if it is sampled of so many at a time.
    fn start(settings_of_probe: &str, at_a_time: u64) -> Self {
        let docker = Docker::of(called::dynamic_root().path());
        let name = docker.name("malloc");
        // The only process there that has the C library.
        let mut caller = Caller::in_container(&docker, &name, &[]);
        let sink = Sink::start();
        let probes = format!(
            "- {{name: malloc, containers: ['name:{name}'], binary: libc, function: malloc, args: ['size:u64'], \
             {settings_of_probe}}}\n"
        );
        let run = Run::start(&settings(&sink.endpoint(), &probes));
        // Each of a size of its own, which tells those before the probe from those after.
        let mut size: i64 = 0;
        let first = poll(PATIENCE, || {
            size += 1;
            assert_eq!(caller.ask(&format!("malloc {at_a_time} {size}")), "done");
            poll(ROUND, || sink.seen(|records| records.iter().filter(|r| is_hit(r)).map(|r| size_of(r)).min()))
        });
        let first = first.expect("malloc is attached");
        let surely = size.abs_diff(first) * at_a_time;
        let (calls, unsure) = if at_a_time == 1 { (surely + 1, 0) } else { (surely, 2 * at_a_time) };
        Self { docker, caller, sink, run, calls, unsure }
    }

    fn call(&mut self, times: u64) {
        assert_eq!(self.caller.ask(&format!("malloc {times} {SIZE}")), "done");
        self.calls += times;
    }

    /// How many of [`call`](Self::call) are told.
    fn told(&self) -> u64 {
        self.sink.seen(|records| records.iter().filter(|r| is_hit(r) && size_of(r) == SIZE).count() as u64)
    }

    /// Each hit is accounted for, each call was one, and what is said to be told is.
    fn finish(self) -> (HitSummary, u64) {
        let finished = self.run.namespan.stop().without_loss();
        let hits = finished.summary.hits.clone().expect("there are uprobes");
        hits.assert_accounted();
        let triggered = hits.triggered + hits.dropped_for("kernel_recursion");
        let range = self.calls..=self.calls + self.unsure;
        assert!(range.contains(&triggered), "{range:?} calls of {}: {hits:#?}", self.docker.name("malloc"));
        let records = self.sink.records();
        assert_eq!(records.iter().filter(|record| is_hit(record)).count() as u64, hits.told, "{}", finished.stderr);
        // What was lost is told as such.
        let is_of_uprobes = |record: &&Record| *record.get("namespan.lost.stage") == "uprobe".into();
        let lost = records.iter().filter(|record| record.is_loss()).filter(is_of_uprobes);
        let lost: i64 = lost.map(|record| record.get("namespan.lost.count").int()).sum();
        assert_eq!(lost.unsigned_abs(), hits.dropped, "{hits:#?}");
        let told = records.iter().filter(|r| is_hit(r) && size_of(r) == SIZE).count() as u64;
        (hits, told)
    }
}

/// Of no call before.
const SIZE: i64 = 123_456;

fn size_of(record: &Record) -> i64 {
    record.get("namespan.uprobe.args.size").int()
}

#[test]
fn of_malloc_under_load_all_that_is_not_told_is_counted() {
    const CALLS: u64 = 200_000;
    if !ready() {
        return;
    }
    let mut malloc = Malloc::start("rate: none", 1);
    let began = Instant::now();
    malloc.call(CALLS);
    eprintln!("{CALLS} calls of malloc in {:?}", began.elapsed());
    let (hits, told) = malloc.finish();
    assert_eq!(told + hits.dropped, CALLS, "{hits:#?}");
    assert_eq!((hits.filtered, hits.sampled_out, hits.dropped_for("rate_limited")), (0, 0, 0), "{hits:#?}");
    eprintln!("{hits:?}");
}

#[test]
fn of_malloc_with_a_rate_the_rest_is_limited_and_counted() {
    const CALLS: u64 = 100_000;
    if !ready() {
        return;
    }
    let mut malloc = Malloc::start("rate: 200, burst: 500", 1);
    let began = Instant::now();
    malloc.call(CALLS);
    let took = began.elapsed();
    let (hits, told) = malloc.finish();
    assert_eq!(hits.dropped, hits.dropped_for("rate_limited"), "{hits:#?}");
    assert_eq!(told + hits.dropped, CALLS, "{hits:#?}");
    // What the calls before have taken may not be there again.
    let most = 501 + 200 * (took.as_secs() + 1);
    assert!((400..=most).contains(&told), "{told}, not up to {most}, of {CALLS} in {took:?}");
    eprintln!("{hits:?} in {took:?}");
}

#[test]
fn of_malloc_sampled_one_of_a_hundred_is_told() {
    const CALLS: u64 = 50_000;
    const OF: u64 = 100;
    if !ready() {
        return;
    }
    let mut malloc = Malloc::start(&format!("rate: none, sample: {OF}"), OF);
    malloc.call(CALLS);
    let (hits, told) = malloc.finish();
    assert_eq!(hits.dropped, 0, "{hits:#?}");
    assert_eq!(hits.told + hits.sampled_out, hits.triggered, "{hits:#?}");
    // Wherever the count begins, on each CPU.
    assert!(told.abs_diff(CALLS / OF) <= 20, "{told} of {CALLS}: {hits:#?}");
}

#[test]
fn calls_of_malloc_and_their_returns_are_pairs() {
    const CALLS: u64 = 500;
    const BATCHES: u64 = 10;
    if !ready() {
        return;
    }
    let mut malloc = Malloc::start("returns: pointer, rate: none", 1);
    for batch in 1..=BATCHES {
        malloc.call(CALLS);
        // No more at once than the ring has room for.
        let come = poll(PATIENCE, || (malloc.told() == batch * CALLS).then_some(()));
        assert!(come.is_some(), "{} of {}", malloc.told(), batch * CALLS);
    }
    let (hits, told) = malloc.finish();
    assert_eq!((told, hits.told, hits.dropped, hits.unfinished), (BATCHES * CALLS, hits.triggered, 0, 0), "{hits:#?}");
}
