//! `nssoak`: hours of everything at once. Programs and containers come and go, settings change, the collector is away as
//! often as it is there; and at the end each event has come, and the agent is no larger than it was.
//!
//! As root, with Docker. `MINUTES` says how long, an hour if it is not set.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "it fails by panicking, and says how it goes")]

mod collector;
mod vitals;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use namespan_integration::PATIENCE;
use namespan_integration::docker::{Docker, docker};
use namespan_integration::image;
use namespan_integration::namespan::Namespan;
use namespan_integration::needs::{Need, met};
use namespan_integration::program::Program;
use namespan_integration::settings::Run;
use namespan_integration::watched::poll;
use tempfile::TempDir;

use collector::Collector;
use vitals::{Vitals, Watch};

/// A round of programs, and how long it is until the next one.
const A_ROUND: usize = 20;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(200);
/// How long an outage or a time without one is at most.
const OUTAGE: Duration = Duration::from_secs(15);
/// Execs in each container. What begins like this is busybox whatever comes then.
const EXECS: usize = 3;

fn main() {
    if !met(&[Need::Namespan, Need::Docker]) {
        return;
    }
    let minutes = std::env::var("MINUTES").map_or(60, |minutes| minutes.parse().unwrap());
    let time = Duration::from_secs(60 * minutes);
    let (program, spool) = (Program::new(), TempDir::new().unwrap());
    let inside = format!("busybox-{:x}", std::process::id() & 0xfff_ffff);
    let root = image::root();
    fs::copy("/bin/busybox", root.path().join(&inside)).unwrap();
    let docker = Docker::of(root.path());
    let collector = Collector::start();
    let settings = |change: u64| {
        format!(
            "export: {{endpoint: '{}'}}\nspool: {{directory: '{}'}}\nbatch: {{delay: 200ms}}\n\
             probes: {{args_limit: {}, filters: {{comms: [{}, {inside}]}}}}\n",
            collector.endpoint(),
            spool.path().join("spool").display(),
            1000 + change % 2,
            program.name
        )
    };
    let mut run = Run::start(&settings(0));
    program.run_times(A_ROUND);
    collector.wait_for(2 * A_ROUND);
    let calm = Vitals::of(run.namespan.pid());
    let end = Instant::now() + time;
    let load = Load { program: &program, docker: &docker, inside: &inside, end, ran: AtomicU64::new(A_ROUND as u64) };
    let (over, mut changes) = (AtomicBool::new(false), 0);
    let pid = run.namespan.pid();
    let (watch, containers) = thread::scope(|scope| {
        let programs = [(); 2].map(|()| scope.spawn(|| load.programs()));
        let containers = scope.spawn(|| load.containers());
        let outages = scope.spawn(|| collector.come_and_go(end));
        let watch = scope.spawn(|| Watch::until(pid, &over));
        while Instant::now() < end {
            changes += 1;
            run.change(&settings(changes));
            wait(Duration::from_secs(fastrand::u64(3..10)), end);
        }
        for thread in programs {
            thread.join().unwrap();
        }
        let containers = containers.join().unwrap();
        println!("{} outages, {changes} changes of settings, {containers} containers", outages.join().unwrap());
        over.store(true, Relaxed);
        (watch.join().unwrap(), containers)
    });
    let ran = load.ran.load(Relaxed);
    let events = usize::try_from(2 * ran).unwrap();
    collector.wait_for(events);
    is_calm_again(&run.namespan, calm);
    is_exact(run.namespan, &collector, ran, containers * EXECS as u64);
    watch.is_flat();
}

/// What happens all the time.
struct Load<'a> {
    program: &'a Program,
    docker: &'a Docker,
    /// The program that containers have.
    inside: &'a str,
    end: Instant,
    /// Execs, which all have ended.
    ran: AtomicU64,
}

impl Load<'_> {
    fn programs(&self) {
        while Instant::now() < self.end {
            self.program.run_times(A_ROUND);
            self.ran.fetch_add(A_ROUND as u64, Relaxed);
            wait(BETWEEN_ROUNDS, self.end);
        }
    }

    /// How many there were.
    fn containers(&self) -> u64 {
        let script = vec![format!("/{} true", self.inside); EXECS].join("; ");
        let mut count = 0;
        while Instant::now() < self.end {
            let name = self.docker.name(&count.to_string());
            docker(&["run", "--rm", "--name", &name, &self.docker.tagged(), "sh", "-c", &format!("{script}; :")]);
            count += 1;
            self.ran.fetch_add(EXECS as u64, Relaxed);
        }
        count
    }
}

/// The pace of what nothing tells the time of.
fn wait(time: Duration, end: Instant) {
    let until = end.min(Instant::now() + time);
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// What was opened and begun meanwhile is closed and over: the descriptors and threads of before are left, and no zombie.
fn is_calm_again(namespan: &Namespan, calm: Vitals) {
    // A connection to the collector, which may be one for each signal and request.
    const MORE: usize = 4;
    let is_calm = || {
        let now = Vitals::of(namespan.pid());
        let over = now.zombies == 0 && now.threads <= calm.threads + MORE && now.files <= calm.files + MORE;
        over.then_some(now)
    };
    let now = poll(2 * PATIENCE, is_calm);
    println!("before {calm:?}, after {now:?}");
    assert!(now.is_some(), "not as before, {calm:?}: {:?}", Vitals::of(namespan.pid()));
}

fn is_exact(namespan: Namespan, collector: &Collector, ran: u64, in_containers: u64) {
    let finished = namespan.stop().shipped_all();
    let summary = finished.summary;
    println!("{ran} programs ran, {in_containers} of them in containers: {summary:?}");
    let got = collector.got();
    println!("the collector has {got:?}");
    assert_eq!((summary.seen, summary.spooled, summary.rejected), (2 * ran, 0, 0), "{}", finished.stderr);
    assert_eq!((got.execs, got.exits, got.spans), (ran, ran, ran));
    assert_eq!((got.execs_in_containers, summary.spans().made), (in_containers, ran));
    assert_eq!(got.others, 0, "something was told of that nobody did");
}
