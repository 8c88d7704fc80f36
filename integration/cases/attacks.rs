//! Attacks on the agent itself: it goes on, and whatever they cost is counted to the last record.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use namespan_integration::docker::Docker;
use namespan_integration::image::{self, succeed};
use namespan_integration::namespan::Namespan;
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, count};
use namespan_integration::rotel::free_addresses;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::watched::poll;
use namespan_integration::{PATIENCE, host};
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

fn run(program: &Program, sink: &Sink, more: &[&str]) -> Namespan {
    let endpoint = sink.endpoint();
    Namespan::run(&[&["--console", "none", "--comm", &program.name, "--endpoint", &endpoint], more].concat())
}

/// Stopped, and not only told to be.
fn hold(namespan: &Namespan) {
    namespan.signal(Signal::STOP);
    let process = format!("/proc/{}", namespan.pid());
    let is_stopped = || (host::state(Path::new(&process)) == Some('T')).then_some(());
    assert!(poll(PATIENCE, is_stopped).is_some(), "it does not stop");
}

fn lost(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|record| record.is_loss()).collect()
}

/// What is not about Namespan itself.
fn events(records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().filter(|record| record.is_exec() || record.is_exit())
}

/// How many records are told to be lost at a stage.
fn told_lost(records: &[Record], stage: &str) -> u64 {
    let of_stage = lost(records).into_iter().filter(|record| *record.get("namespan.lost.stage") == stage.into());
    of_stage.map(|record| record.get("namespan.lost.count").int().unsigned_abs()).sum()
}

fn distinct(records: &[&Record]) -> usize {
    records.iter().map(|record| record.get("log.record.uid").text()).collect::<BTreeSet<_>>().len()
}

#[test]
fn what_a_full_ring_has_no_room_for_is_counted_exactly_and_told() {
    const RUNS: usize = 1000;
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, sink) = (Program::new(), Sink::start());
    let namespan = run(&program, &sink, &["--ring-size", "64KiB"]);
    program.run_times(10);
    sink.wait_for("the first", PATIENCE, |records| (records.len() >= 20).then_some(()));
    hold(&namespan);
    program.run_times(RUNS);
    namespan.signal(Signal::CONT);
    let is_told = |records: &[&Record]| records.iter().any(|record| record.is_loss()).then_some(());
    sink.wait_for("the loss", PATIENCE, is_told);
    // After it, all is as before.
    program.run_times(10);
    let finished = namespan.stop();
    let (summary, records) = (&finished.summary, sink.records());
    let ours = program.of(events(&records));
    let (execs, exits) = count(ours.iter().copied());
    let dropped = 2 * (RUNS + 20) - execs - exits;
    assert!(finished.status.success() && dropped > 0, "the ring was too large for this test: {summary:?}");
    assert_eq!(distinct(&ours), ours.len(), "told twice");
    assert_eq!(summary.reasons, [("ring_full".to_owned(), dropped as u64)].into(), "{summary:?}");
    assert_eq!(told_lost(&records, "kernel"), dropped as u64, "{:#?}", lost(&records));
    assert_eq!(summary.exported, (execs + exits + lost(&records).len()) as u64, "{summary:?}");
    assert_eq!(summary.seen, summary.exported + summary.dropped);
}

#[test]
fn what_happens_while_it_is_held_is_told_with_the_time_of_then() {
    const RUNS: usize = 100;
    if !met(&[Need::Namespan]) {
        return;
    }
    let (program, sink) = (Program::new(), Sink::start());
    let namespan = run(&program, &sink, &[]);
    let mut ran = Vec::new();
    for _ in 0..3 {
        hold(&namespan);
        ran.extend((0..RUNS).map(|_| program.run("true", [""; 0])));
        namespan.signal(Signal::CONT);
        sink.wait_for("what happened", PATIENCE, |records| (records.len() >= 2 * ran.len()).then_some(()));
    }
    assert_eq!(namespan.stop().shipped_all().summary.seen, 2 * ran.len() as u64);
    let records = sink.records();
    for is_kind in [Record::is_exec, Record::is_exit] {
        let mut told: Vec<_> = records.iter().filter(|record| is_kind(record)).collect();
        assert_eq!(told.len(), ran.len());
        told.sort_by_key(|record| record.time_ns);
        for (record, ran) in told.iter().zip(&ran) {
            assert_eq!(record.get("process.pid").int(), ran.pid);
            // The two clocks are read one after the other.
            let time = ran.before_ns - 10_000_000..=ran.after_ns + 10_000_000;
            assert!(time.contains(&record.time_ns), "{} is not in {time:?}", record.time_ns);
        }
    }
}

/// It still tells of all that happens, and ends as it should. What it says of itself is told too.
fn goes_on(program: &Program, namespan: Namespan, sink: &Sink, before: usize) {
    program.run_times(10);
    wait_for_events(sink, 2 * (before + 10));
    let finished = namespan.stop().shipped_all();
    let records = sink.records();
    let ours: Vec<_> = events(&records).collect();
    assert_eq!(count(ours.iter().copied()), (before + 10, before + 10));
    assert_eq!(program.of(ours.iter().copied()).len(), ours.len());
    assert_eq!(finished.summary.seen, records.len() as u64);
}

fn wait_for_events(sink: &Sink, events: usize) {
    let is_event = |record: &&&Record| record.is_exec() || record.is_exit();
    sink.wait_for(&format!("{events} events"), PATIENCE, |records| {
        (records.iter().filter(is_event).count() >= events).then_some(())
    });
}

#[test]
fn a_container_that_writes_to_all_of_its_files_in_proc_changes_nothing() {
    if !met(&[Need::Namespan, Need::Docker]) {
        return;
    }
    let (docker, program, sink) = (Docker::new(), Program::new(), Sink::start());
    let spool = TempDir::new().unwrap();
    let namespan = run(&program, &sink, &["--spool", spool.path().to_str().unwrap()]);
    let pid = namespan.pid();
    // It sees the host's processes, as a container with monitoring in it does; it is not given more than that.
    let script = format!(
        "cd /proc/{pid} || exit 1
        for file in * task/*/* fd/* fdinfo/* map_files/* ns/* attr/* root/etc/passwd cwd/attacked exe; do
            echo 7 > $file && echo \"WROTE $file\"
        done 2>/dev/null; :"
    );
    let attacker = docker.run("attacker", &["--pid=host"], &["sh", "-c", &script]);
    let wrote: Vec<_> = attacker.stdout.lines().filter_map(|line| line.strip_prefix("WROTE ")).collect();
    // What the kernel lets root set for anybody: to be killed first where memory is short, and figures about itself.
    let harmless =
        ["oom_adj", "oom_score_adj", "coredump_filter", "clear_refs", "timerslack_ns", "autogroup", "sched", "comm"];
    let harmful = wrote.iter().filter(|file| !harmless.iter().any(|name| file.rsplit('/').next() == Some(name)));
    assert_eq!(harmful.collect::<Vec<_>>(), Vec::<&&str>::new());
    goes_on(&program, namespan, &sink, 0);
}

#[test]
fn a_spool_that_a_container_may_write_to_costs_no_more_than_what_is_in_it() {
    const RUNS: usize = 500;
    if !met(&[Need::Namespan, Need::Docker]) {
        return;
    }
    let (docker, program, spool) = (Docker::new(), Program::new(), TempDir::new().unwrap());
    let [address] = free_addresses();
    let (endpoint, directory) = (format!("http://{address}"), spool.path().to_str().unwrap());
    let namespan =
        Namespan::run(&["--console", "none", "--comm", &program.name, "--endpoint", &endpoint, "--spool", directory]);
    program.run_times(RUNS);
    namespan.wait_for_log("cannot be delivered for now");
    let script = "cd /spool && for round in 1 2 3; do for file in $(busybox find . -type f); do
            busybox dd if=/dev/urandom of=$file bs=200 count=20 conv=notrunc seek=$round
            busybox dd if=/dev/null of=$file bs=1 seek=9999 2>/dev/null
        done; done 2>/dev/null; echo x > note-1.segment; busybox mkfifo exec-00000000000000000099.segment; :";
    let volume = format!("{directory}:/spool");
    let attacker = docker.run("attacker", &["--volume", &volume], &["sh", "-c", script]);
    assert_eq!(attacker.stdout, "");
    program.run_times(RUNS);
    let sink = Sink::start_at(address);
    namespan.wait_for_log("delivered again");
    program.run_times(10);
    let finished = namespan.stop();
    let (summary, records) = (&finished.summary, sink.records());
    assert!(finished.status.success() && !finished.stderr.contains("panicked"), "{}", finished.stderr);
    assert_eq!(summary.seen, summary.exported + summary.dropped + summary.spooled, "{summary:?}");
    let ours = program.of(events(&records));
    assert_eq!(distinct(&ours), ours.len(), "told twice");
    let missing = 2 * (2 * RUNS + 10) - ours.len();
    assert!(missing as u64 <= summary.dropped + summary.spooled, "{missing} are missing: {summary:?}");
    assert_eq!(records.len() as u64, summary.exported, "{summary:?}");
}

#[test]
fn a_container_may_not_trace_it_unless_it_is_given_that_and_even_then_nothing_is_lost() {
    if !met(&[Need::Namespan, Need::Docker, Need::Program("cc")]) {
        return;
    }
    let root = image::root();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/attach.c");
    succeed(Command::new("cc").args(["-O1", "-static", "-o"]).arg(root.path().join("bin/attach")).arg(source));
    let (docker, program, sink) = (Docker::of(root.path()), Program::new(), Sink::start());
    let namespan = run(&program, &sink, &[]);
    let pid = namespan.pid().to_string();
    let plain = docker.run("plain", &["--pid=host"], &["/bin/attach", &pid]).stdout;
    let refused = [Errno::PERM, Errno::ACCESS].map(|errno| format!("refused {}\n", errno.raw_os_error()));
    assert!(refused.contains(&plain), "{plain}");
    let options = [
        "--pid=host",
        "--cap-add=SYS_PTRACE",
        "--security-opt=apparmor=unconfined",
        "--security-opt=seccomp=unconfined",
    ];
    for number in 0..5 {
        program.run_times(10);
        let attached = docker.run(&format!("tracer-{number}"), &options, &["/bin/attach", &pid]).stdout;
        assert_eq!(attached, "attached\n");
    }
    assert!(!host::has_ended(pid.parse().unwrap()));
    goes_on(&program, namespan, &sink, 50);
}

/// What a runtime's socket does with whoever asks.
type Answer = fn(UnixStream);

/// Takes the question and never answers.
fn silence(mut stream: UnixStream) {
    let mut taken = [0; 4096];
    while stream.read(&mut taken).is_ok_and(|taken| taken > 0) {}
}

/// Zeros, which are neither HTTP/1 nor HTTP/2, without an end.
fn noise(mut stream: UnixStream) {
    while stream.write_all(&vec![0; 65536]).is_ok() {}
}

/// HTTP whose body never ends and is no JSON.
fn flood(mut stream: UnixStream) {
    let mut asked = [0; 4096];
    if stream.read(&mut asked).is_err() {
        return;
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [&b"10000\r\n"[..], &vec![b'['; 65536], b"\r\n"].concat();
    if stream.write_all(head).is_ok() {
        while stream.write_all(&chunk).is_ok() {}
    }
}

/// A header that never ends.
fn endless_head(mut stream: UnixStream) {
    let began = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ");
    while began.is_ok() && stream.write_all(&vec![b'y'; 65536]).is_ok() {}
}

fn hangs_up(stream: UnixStream) {
    drop(stream);
}

fn listen(path: &Path, answer: Answer) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
}

#[test]
fn a_runtime_that_answers_nonsense_or_never_holds_up_nothing() {
    let answers: [(&str, Answer); 4] =
        [("silence", silence), ("noise", noise), ("endless-head", endless_head), ("hangs-up", hangs_up)];
    for (name, answer) in answers {
        holds_up_nothing(name, answer);
    }
}

#[test]
fn a_runtime_whose_answer_has_no_end_takes_no_memory() {
    holds_up_nothing("flood", flood);
}

/// All runtimes answer so.
fn holds_up_nothing(name: &str, answer: Answer) {
    const MEMORY_KIB: u64 = 400 << 10;
    if !met(&[Need::Namespan]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let runtimes = ["docker", "podman", "containerd", "cri-o"].map(|runtime| {
        let path = folder.path().join(runtime);
        listen(&path, answer);
        format!("{runtime}={}", path.display())
    });
    let arguments: Vec<_> = runtimes.iter().flat_map(|runtime| ["--runtime", runtime]).collect();
    let (program, sink) = (Program::new(), Sink::start());
    let namespan = run(&program, &sink, &arguments);
    for round in 1..=20 {
        program.run_times(10);
        wait_for_events(&sink, 20 * round);
    }
    let memory = namespan.peak_memory_kib();
    assert!(memory < MEMORY_KIB, "{name}: {memory} KiB");
    goes_on(&program, namespan, &sink, 200);
}
