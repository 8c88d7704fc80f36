//! What waits for a collector outlives outages, kills and full disks; and where it does not, every record is counted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use namespan_integration::PATIENCE;
use namespan_integration::namespan::{Namespan, refused};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, count};
use namespan_integration::rotel::{Rotel, free_addresses};
use namespan_integration::sink::{Record, Sink};
use tempfile::TempDir;

/// Small and soon, so that there are many batches.
const BATCHES: [(&str, &str); 4] = [
    ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
    ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "64"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64"),
];

fn run(program: &Program, endpoint: &str, spool: &Path, more: &[&str]) -> Namespan {
    let spool = spool.to_str().unwrap();
    let arguments =
        ["--console", "none", "--comm", &program.name, "--endpoint", endpoint, "--spool", spool, "--no-env-context"];
    Namespan::run_with(&[&arguments, more].concat(), &BATCHES)
}

/// Each record of an event once, however often it came.
fn by_uid<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeMap<String, &'a Record> {
    let of_events = records.into_iter().filter(|record| record.is_exec() || record.is_exit());
    of_events.map(|record| (record.get("log.record.uid").text().to_owned(), record)).collect()
}

/// All files of a folder, however deep.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }).collect()
}

#[test]
fn what_an_outage_leaves_over_is_delivered_by_the_next_run_in_order() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, spool) = (Program::new(), TempDir::new().unwrap());
    let [address] = free_addresses();
    let endpoint = format!("http://{address}");
    let namespan = run(&program, &endpoint, spool.path(), &[]);
    program.run_times(300);
    let finished = namespan.stop();
    let summary = &finished.summary;
    assert_eq!((summary.seen, summary.exported, summary.dropped, summary.spooled), (600, 0, 0, 600), "{summary:?}");
    assert_eq!((summary.spans().made, summary.spans().spooled), (300, 300), "{summary:?}");
    for file in files(spool.path()) {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }

    let sink = Sink::start_at(address);
    let namespan = run(&program, &endpoint, spool.path(), &[]);
    program.run_times(5);
    sink.wait_for("610 records", PATIENCE, |records| (records.len() >= 610).then_some(()));
    let summary = namespan.stop().summary;
    assert_eq!((summary.seen, summary.recovered, summary.exported, summary.dropped), (10, 600, 610, 0), "{summary:?}");
    assert_eq!(summary.spans().exported, 305);
    let records = sink.records();
    assert_eq!((count(program.of(&records)), by_uid(&records).len()), ((305, 305), 610));
    for is_kind in [Record::is_exec, Record::is_exit] {
        let times: Vec<_> = records.iter().filter(|record| is_kind(record)).map(|record| record.time_ns).collect();
        assert!(times.is_sorted());
    }
    // Nothing is left of it.
    let left = run(&program, &endpoint, spool.path(), &[]).stop().summary;
    assert_eq!((left.recovered, left.exported), (0, 0));
}

#[test]
fn a_collector_that_is_gone_for_a_while_costs_nothing_with_a_spool_and_is_counted_without() {
    if !met(&[Need::Namespan, Need::Rotel]) {
        return;
    }
    let at_least = outage();
    for with_spool in [true, false] {
        let (program, spool, sink) = (Program::new(), TempDir::new().unwrap(), Sink::start());
        let addresses: [SocketAddr; 2] = free_addresses();
        let rotel = Rotel::start_at(&sink, addresses);
        // A queue that holds little, and a spool that holds all.
        let file = spool.path().join("namespan.yaml");
        fs::write(&file, "queue: {max_bytes: 64KiB}\nbatch: {max_bytes: 64KiB, max_records: 64}\n").unwrap();
        let directory = spool.path().join("spool");
        let endpoint = format!("http://{}", addresses[0]);
        let mut arguments = vec!["--console", "none", "--protocol", "grpc", "--comm", &program.name];
        arguments.extend(["--endpoint", &endpoint, "--config", file.to_str().unwrap()]);
        if with_spool {
            arguments.extend(["--spool", directory.to_str().unwrap()]);
        }
        let namespan = Namespan::run(&arguments);
        program.run_times(100);
        sink.wait_for("the first records", PATIENCE, |records| (records.len() >= 200).then_some(()));
        rotel.stop();
        let runs = load_for(&program, at_least);
        namespan.wait_for_log("cannot be delivered for now");
        let rotel = Rotel::start_at(&sink, addresses);
        namespan.wait_for_log("delivered again");
        program.run_times(100);
        let finished = namespan.stop();
        let summary = &finished.summary;
        let total = 2 * (runs as u64 + 200);
        println!("{runs} programs ran in an outage of at least {at_least:?}: {summary:?}");
        assert_eq!(summary.rejected, 0, "{summary:?}");
        if with_spool {
            // What the drain had no time for is for the next run.
            let namespan = Namespan::run(&arguments);
            let rest = usize::try_from(total).unwrap();
            sink.wait_for("the rest", PATIENCE, |records| {
                // The second look takes long, and the collector waits for it.
                (records.len() >= rest && by_uid(records.iter().copied()).len() >= rest).then_some(())
            });
            let next = namespan.stop();
            println!("the next run: {:?}", next.summary);
            assert_eq!((next.summary.dropped, summary.dropped), (0, 0), "{}", finished.stderr);
            assert_eq!(summary.exported + summary.spooled, total, "{summary:?}");
        } else {
            assert!(summary.dropped > 0, "the queue was too big for this test: {summary:?}");
            let notes = summary.seen - total;
            assert_eq!(summary.exported + summary.dropped, total + notes, "{summary:?}");
            let _all = rotel.delivered(&sink, summary.exported);
        }
        let records = sink.records();
        let ours = program.of(records.iter().filter(|record| record.is_exec() || record.is_exit()));
        let (execs, exits) = count(ours.iter().copied());
        assert_eq!(by_uid(ours.iter().copied()).len(), ours.len(), "delivered twice");
        if with_spool {
            assert_eq!((execs, exits), (runs + 200, runs + 200), "{summary:?}");
        }
    }
}

/// How long the collector is gone at least: `NAMESPAN_TEST_OUTAGE`, in seconds.
fn outage() -> Duration {
    let seconds = std::env::var("NAMESPAN_TEST_OUTAGE").map_or(0, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// A storm, and then a steady load until the time is over; how many programs ran.
fn load_for(program: &Program, at_least: Duration) -> usize {
    const STORM: usize = 5000;
    const A_SECOND: usize = 100;
    let until = Instant::now() + at_least;
    let load = || {
        program.run_times(STORM);
        let mut runs = STORM;
        while Instant::now() < until {
            let next = Instant::now() + Duration::from_secs(1);
            program.run_times(A_SECOND);
            runs += A_SECOND;
            // The pace, so that it is a load on the queue and not on this machine.
            std::thread::park_timeout(next.min(until).saturating_duration_since(Instant::now()));
        }
        runs
    };
    std::thread::scope(|scope| [(); 2].map(|()| scope.spawn(load)).map(|load| load.join().unwrap()).into_iter().sum())
}

#[test]
fn killed_at_any_moment_under_load_it_has_lost_nothing_that_it_had_written_down() {
    const KILLS: usize = 50;
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, spool, sink) = (Program::new(), TempDir::new().unwrap(), Sink::start());
    let mut ran = Vec::new();
    for kill in 0..KILLS {
        // Of a collector that is there, and of one that is not.
        let [nobody] = free_addresses();
        let endpoint = if kill % 2 == 0 { sink.endpoint() } else { format!("http://{nobody}") };
        let namespan = run(&program, &endpoint, spool.path(), &[]);
        let over = AtomicBool::new(false);
        let pids = std::thread::scope(|scope| {
            // One after the other, so that what was told is the first so many.
            let load = scope.spawn(|| {
                let mut pids = Vec::new();
                while !over.load(Relaxed) {
                    pids.push(program.run("true", [""; 0]).pid);
                }
                pids
            });
            // No event to wait for: the moment is to be any.
            std::thread::park_timeout(Duration::from_millis(fastrand::u64(100..1000)));
            namespan.kill();
            over.store(true, Relaxed);
            load.join().unwrap()
        });
        ran.push(pids);
    }
    let namespan = run(&program, &sink.endpoint(), spool.path(), &[]);
    let finished = namespan.stop();
    assert_eq!((finished.summary.dropped, finished.summary.spooled), (0, 0), "{}", finished.stderr);
    assert!(!finished.stderr.contains("corrupt"), "{}", finished.stderr);
    let records = sink.records();
    let told: BTreeSet<_> =
        by_uid(&records).values().map(|record| (record.is_exec(), record.get("process.pid").int())).collect();
    let mut delivered = 0;
    for is_exec in [true, false] {
        for (kill, pids) in ran.iter().enumerate() {
            let first_missing = pids.iter().position(|pid| !told.contains(&(is_exec, *pid))).unwrap_or(pids.len());
            let late = pids[first_missing..].iter().filter(|pid| told.contains(&(is_exec, **pid))).count();
            assert_eq!(late, 0, "kill {kill}: a gap after {first_missing} of {}", pids.len());
            delivered += first_missing;
        }
    }
    // How much there is depends on the machine.
    assert!(delivered > 2 * KILLS, "{delivered}: the runs were too short to test anything");
}

#[test]
fn a_full_disk_costs_what_memory_cannot_hold_and_that_is_counted() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, folder) = (Program::new(), TempDir::new().unwrap());
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(folder.path()).status();
    assert!(mounted.unwrap().success());
    let [address] = free_addresses();
    let spool = folder.path().join("spool");
    let namespan = run(&program, &format!("http://{address}"), &spool, &["--args", "full", "--compression", "none"]);
    program.run_times(2000);
    namespan.wait_for_log("spool");
    let sink = Sink::start_at(address);
    namespan.wait_for_log("delivered again");
    program.run_times(10);
    let finished = namespan.stop();
    let unmounted = Command::new("umount").arg("--lazy").arg(folder.path()).status();
    assert!(unmounted.unwrap().success());
    let summary = &finished.summary;
    assert_eq!(summary.dropped, 0, "{}", finished.stderr);
    assert_eq!(summary.exported + summary.spooled, summary.seen, "{}", finished.stderr);
    assert_eq!(sink.records().len() as u64, summary.exported);
}

#[test]
fn a_second_agent_is_kept_out_of_a_spool_and_told_why() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, spool) = (Program::new(), TempDir::new().unwrap());
    let sink = Sink::start();
    let first = run(&program, &sink.endpoint(), spool.path(), &[]);
    let spool_path = spool.path().to_str().unwrap();
    let (status, stderr) = refused(&["--endpoint", &sink.endpoint(), "--spool", spool_path], &[]);
    assert!(!status.success());
    assert!(stderr.contains(spool_path) && stderr.contains("in use"), "{stderr}");
    // Without a spool of the same place, both watch, and both tell of the same event alike.
    let other = Sink::start();
    let endpoint = other.endpoint();
    let second = Namespan::run(&["--console", "none", "--comm", &program.name, "--endpoint", &endpoint]);
    program.run_times(3);
    for (namespan, sink) in [(first, &sink), (second, &other)] {
        assert_eq!(namespan.stop().shipped_all().summary.seen, 6);
        assert_eq!(count(program.of(&sink.records())), (3, 3));
    }
    let uids = |sink: &Sink| by_uid(&sink.records()).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(uids(&sink), uids(&other));
}

/// Puts the wall clock back where it was.
struct Step(i64);

impl Step {
    fn by(seconds: i64) -> Self {
        shift(seconds);
        Self(seconds)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        shift(-self.0);
    }
}

fn shift(seconds: i64) {
    use rustix::time::{ClockId, clock_gettime, clock_settime};
    let mut now = clock_gettime(ClockId::Realtime);
    now.tv_sec += seconds;
    clock_settime(ClockId::Realtime, now).unwrap();
}

#[test]
fn when_the_clock_is_set_nothing_is_lost_and_times_follow() {
    if !met(&[Need::Namespan]) {
        return;
    }
    // Beyond the age that is kept; no more, for the sake of whatever else runs here.
    for seconds in [200, -200] {
        let (program, spool) = (Program::new(), TempDir::new().unwrap());
        let [address] = free_addresses();
        let file = spool.path().join("namespan.yaml");
        fs::write(&file, "spool: {max_age: 1m}\n").unwrap();
        let more = ["--config", file.to_str().unwrap()];
        let namespan = run(&program, &format!("http://{address}"), &spool.path().join("spool"), &more);
        program.run_times(20);
        // So that these are written down before the clock is set.
        namespan.wait_for_log("cannot be delivered for now");
        let step = Step::by(seconds);
        program.run_times(20);
        let now = namespan_integration::time::unix_ns();
        let sink = Sink::start_at(address);
        sink.wait_for("all records", PATIENCE, |records| (records.len() >= 80).then_some(()));
        let finished = namespan.stop();
        drop(step);
        assert_eq!(finished.shipped_all().summary.seen, 80);
        let records = sink.records();
        assert_eq!((count(program.of(&records)), records.len()), ((40, 40), 80));
        let off = |record: &&Record| record.time_ns.abs_diff(now) > 100_000_000_000;
        assert_eq!(records.iter().filter(off).count(), 40, "those from before the step have the time of then");
    }
}
