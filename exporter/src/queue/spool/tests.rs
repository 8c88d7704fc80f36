//! Batches in at a queue whose thread is stepped by hand, files on a real disk, and every record accounted for.

mod disk;
mod kill;
mod model;
mod reader;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::time::timeout;

use super::age::GRACE;
use super::*;
use crate::clock::boot_ns;
use crate::config::{Compression, Protocol};
use crate::queue::{Batch, InFlight, Queue, Snapshot, Spool};
use crate::ship::tests::collector::poll;

const LIMITS: config::Queue = config::Queue { max_bytes: 1 << 20, max_records: None, drain: Duration::from_secs(20) };
const HOUR: Duration = Duration::from_secs(3600);

/// A spool's directory, and a queue on it while one runs.
struct Rig {
    directory: TempDir,
    settings: config::Spool,
    limits: config::Queue,
    signal: Signal,
    /// What the clocks say.
    moment: Moment,
    now: Instant,
}

/// One run of it.
struct Run {
    queue: Arc<Queue>,
    spooler: Spooler,
    /// The thread's farewell.
    ended: watch::Sender<bool>,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = config::Spool { max_age: HOUR, ..config::Spool::at(directory.path().join("spool")) };
        let moment = Moment { boot_ns: boot_ns(), unix_ns: 1_700_000_000_000_000_000 };
        Self { directory, settings, limits: LIMITS, signal: Signal::Logs, moment, now: Instant::now() }
    }

    fn open(&self) -> Run {
        let deadline = Instant::now() + Duration::from_secs(20);
        let (spooler, shared) = loop {
            match open(self.signal, "main", self.limits, &self.settings) {
                // A process that another test has begun has all our files until it is what it shall be.
                Err(SpoolError::InUse { .. }) if Instant::now() < deadline => thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        let (ended, receiver) = watch::channel(false);
        let spool = Some(Spool { max_age: self.settings.max_age, ended: receiver });
        let queue = Queue { signal: self.signal, shared, deadline: watch::Sender::new(None), spool };
        Run { queue: Arc::new(queue), spooler, ended }
    }

    fn step(&self, run: &mut Run) {
        while run.spooler.step(self.now, self.moment).is_some_and(|again| again <= self.now) {}
        run.check();
    }

    fn pass(&mut self, time: Duration) {
        self.moment.boot_ns += u64::try_from(time.as_nanos()).unwrap();
        self.moment.unix_ns += u64::try_from(time.as_nanos()).unwrap();
        self.now += time;
    }

    /// As the thread does when all senders have ended.
    fn finish(&self, mut run: Run) -> Snapshot {
        run.queue.close();
        run.queue.end();
        run.spooler.finish(self.moment);
        run.ended.send_replace(true);
        run.check();
        assert_eq!(run.queue.depth().records, 0);
        run.queue.counters().snapshot()
    }

    /// Of all its files.
    fn bytes(&self) -> u64 {
        self.files().iter().map(|path| path.metadata().unwrap().len()).sum()
    }

    fn files(&self) -> Vec<PathBuf> {
        let signal = if self.signal == Signal::Logs { "logs" } else { "traces" };
        let Ok(entries) = fs::read_dir(self.settings.directory.join("main").join(signal)) else { return Vec::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.file_name().unwrap() != "lock");
        files.sort();
        files
    }
}

impl Run {
    /// Everything is somewhere.
    fn check(&self) -> Snapshot {
        let (counts, depth) = (self.queue.counters().snapshot(), self.queue.depth());
        let spool = counts.spool.unwrap();
        assert_eq!(
            counts.accepted + spool.recovered,
            counts.exported
                + counts.rejected
                + counts.dropped_total()
                + depth.records
                + counts.in_flight
                + spool.records,
            "{counts:?} {depth:?}"
        );
        counts
    }

    fn push(&self, class: Class, records: u32, len: usize) {
        self.queue.push(batch(class, records, len));
    }

    fn pop(&self) -> Option<InFlight> {
        self.queue.take()
    }

    /// Sends what there is; the records of each batch.
    fn send_all(&mut self, rig: &Rig) -> Vec<u32> {
        let mut sent = Vec::new();
        loop {
            rig.step(self);
            let Some(mut taken) = self.pop() else { return sent };
            sent.push(taken.batch().records());
            taken.deliver(u32::MAX, 0);
        }
    }

    fn dropped(&self) -> Vec<(Reason, u64)> {
        self.check().dropped.into_iter().collect()
    }
}

fn batch(class: Class, records: u32, len: usize) -> Batch {
    Batch::seal(class, records, &vec![0; len], Protocol::HttpProtobuf, Compression::None).unwrap()
}

#[test]
fn what_was_not_sent_is_sent_in_order_by_the_next_run() {
    let rig = Rig::new();
    let mut run = rig.open();
    for (class, records) in [(Class::Exit, 1), (Class::Exec, 2), (Class::Exit, 3), (Class::Note, 4), (Class::Probe, 5)]
    {
        run.push(class, records, 100);
    }
    rig.step(&mut run);
    run.pop().unwrap().deliver(1, 0);
    let (kept, mut second) = (run.pop().unwrap(), run.pop().unwrap());
    second.deliver(3, 1);
    drop(second);
    rig.step(&mut run);
    let counts = run.check();
    assert_eq!((counts.exported, counts.rejected, counts.in_flight, run.queue.depth().records), (3, 1, 2, 9));
    // As after a kill: nobody has said that the batch in flight was settled.
    drop(run.spooler);
    drop(kept);

    let mut run = rig.open();
    assert_eq!(run.check().spool.unwrap().recovered, 11);
    assert_eq!(run.queue.depth().spooled, 11);
    run.push(Class::Note, 6, 100);
    assert_eq!(run.send_all(&rig), [2, 4, 5, 6]);
    let counts = rig.finish(run);
    assert_eq!((counts.exported, counts.spool.unwrap().records), (17, 0));

    let mut run = rig.open();
    assert_eq!(run.check().spool.unwrap().recovered, 0);
    assert!(run.send_all(&rig).is_empty());
}

#[test]
fn what_the_spool_keeps_at_the_end_is_neither_settled_nor_dropped() {
    let rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 100);
    rig.step(&mut run);
    let taken = run.pop().unwrap();
    run.queue.close();
    assert!(taken.goes_back());
    drop(taken);
    assert_eq!(rig.finish(run).spool.unwrap().records, 1);

    let without = Arc::new(Queue::new(Signal::Logs, LIMITS));
    without.push(batch(Class::Exec, 1, 100));
    without.push(batch(Class::Exec, 2, 100));
    let (mut first, second) = (without.take().unwrap(), without.take().unwrap());
    assert!(first.goes_back() && second.goes_back());
    without.close();
    assert!(!second.goes_back());
    drop(second);
    first.deliver(1, 0);
    assert!(!first.goes_back());
    assert_eq!(without.counters().snapshot().dropped.into_iter().collect::<Vec<_>>(), [(Reason::Shutdown, 2)]);
}

#[test]
fn nothing_is_sent_before_it_is_on_disk() {
    let rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 100);
    assert!(run.pop().is_none());
    rig.step(&mut run);
    assert_eq!(run.pop().unwrap().batch().records(), 1);
}

#[test]
fn what_is_left_at_the_end_is_spooled_and_not_lost() {
    let rig = Rig::new();
    let mut run = rig.open();
    for records in [1, 2, 4, 8] {
        run.push(Class::Exec, records, 100);
    }
    rig.step(&mut run);
    let (whole, mut part) = (run.pop().unwrap(), run.pop().unwrap());
    run.push(Class::Exec, 16, 100);
    part.deliver(1, 0);
    run.queue.close();
    drop((whole, part));
    assert!(run.pop().is_none(), "what came back in the drain is the end of it");
    let counts = rig.finish(run);
    assert_eq!((counts.exported, counts.spool.unwrap().records, counts.dropped_total()), (1, 30, 0));

    // Of the batch that was sent in part nobody knows which part.
    let mut run = rig.open();
    assert_eq!(run.check().spool.unwrap().recovered, 31);
    assert_eq!(run.send_all(&rig), [1, 2, 4, 8, 16]);
}

#[test]
fn a_batch_that_comes_back_while_the_queue_is_open_goes_to_its_place() {
    let rig = Rig::new();
    let mut run = rig.open();
    for records in [1, 2, 4] {
        run.push(Class::Exec, records, 100);
    }
    rig.step(&mut run);
    let (first, second) = (run.pop().unwrap(), run.pop().unwrap());
    drop(second);
    drop(first);
    assert_eq!(run.send_all(&rig), [1, 2, 4]);
    assert_eq!(rig.finish(run).exported, 7);
}

#[test]
fn what_memory_has_no_room_for_is_read_back_when_its_turn_comes() {
    let mut rig = Rig::new();
    rig.limits = config::Queue { max_bytes: 1000, ..LIMITS };
    let mut run = rig.open();
    let expected: Vec<u32> = (1..=200).collect();
    for records in &expected {
        run.push(if records % 3 == 0 { Class::Exec } else { Class::Exit }, *records, 300);
        rig.step(&mut run);
        assert!(run.queue.depth().bytes <= 1000);
    }
    assert!(run.queue.depth().spooled > 0);
    assert_eq!(run.dropped(), []);
    assert_eq!(run.send_all(&rig), expected);
    rig.step(&mut run);
    assert_eq!(run.queue.depth().spool_bytes, rig.bytes());
}

#[test]
fn where_the_disk_is_too_slow_memory_is_bounded_and_the_last_class_goes() {
    let mut rig = Rig::new();
    rig.limits = config::Queue { max_bytes: 1000, ..LIMITS };
    let mut run = rig.open();
    for (class, records) in [(Class::Exit, 1), (Class::Exec, 2), (Class::Exec, 4), (Class::Exec, 8), (Class::Exit, 16)]
    {
        run.push(class, records, 300);
    }
    assert_eq!(run.dropped(), [(Reason::QueueFull, 17)]);
    assert_eq!(run.send_all(&rig), [2, 4, 8]);
}

#[test]
fn a_full_spool_gives_up_the_oldest_of_the_last_class() {
    let mut rig = Rig::new();
    // Four segments of 64 KiB.
    rig.settings.max_bytes = 256 << 10;
    rig.limits = config::Queue { max_bytes: 40_000, ..LIMITS };
    let mut run = rig.open();
    let fill = |run: &mut Run, class, records: std::ops::Range<u32>| {
        for records in records {
            run.push(class, records, 20_000);
            rig.step(run);
            assert!(run.queue.depth().spool_bytes <= rig.settings.max_bytes);
        }
    };
    fill(&mut run, Class::Exit, 1..4);
    fill(&mut run, Class::Exec, 4..14);
    assert_eq!(run.dropped(), []);
    let mut taken = run.pop().unwrap();
    assert_eq!(taken.batch().records(), 1);
    // The exits go, but for the one that is being sent.
    fill(&mut run, Class::Note, 14..15);
    assert_eq!(run.dropped(), [(Reason::SpoolFull, 5)]);
    fill(&mut run, Class::Exec, 15..17);
    assert_eq!(run.dropped(), [(Reason::SpoolFull, 5)]);
    // Then the oldest segment of the execs, and what matters less than all that is there.
    fill(&mut run, Class::Exec, 17..18);
    assert_eq!(run.dropped(), [(Reason::SpoolFull, 5 + 4 + 5 + 6)]);
    fill(&mut run, Class::Note, 18..20);
    fill(&mut run, Class::Exit, 20..21);
    assert_eq!(run.dropped(), [(Reason::SpoolFull, 5 + 4 + 5 + 6 + 20)]);
    taken.deliver(1, 0);
    drop(taken);
    assert_eq!(run.send_all(&rig), (7..20).collect::<Vec<_>>());
    rig.finish(run);
}

#[test]
fn a_batch_larger_than_the_spool_pushes_out_nothing() {
    let mut rig = Rig::new();
    rig.settings.max_bytes = 10_000;
    let mut run = rig.open();
    run.push(Class::Exit, 1, 5000);
    run.push(Class::Note, 2, 10_000);
    assert_eq!(run.send_all(&rig), [1]);
    assert_eq!(run.dropped(), [(Reason::SpoolFull, 2)]);
}

#[test]
fn what_is_settled_leaves_the_disk() {
    let rig = Rig::new();
    let mut run = rig.open();
    for _ in 0..200 {
        run.push(Class::Exec, 1, 100_000);
        run.send_all(&rig);
    }
    rig.step(&mut run);
    assert!(run.queue.depth().spool_bytes <= 1 << 20, "{:?}", run.queue.depth());
    rig.finish(run);
    let mut run = rig.open();
    assert!(run.send_all(&rig).is_empty());
}

#[test]
fn age_is_by_the_boot_clock_whatever_becomes_of_the_wall_clock() {
    let mut rig = Rig::new();
    rig.limits = config::Queue { max_bytes: 1000, ..LIMITS };
    let mut run = rig.open();
    for records in 1..=8 {
        run.push(Class::Exec, records, 300);
        rig.step(&mut run);
    }
    for step in [HOUR * 24 * 365, Duration::ZERO] {
        rig.moment.unix_ns = u64::try_from(step.as_nanos()).unwrap();
        rig.pass(EXPIRY);
        rig.step(&mut run);
        assert_eq!(run.dropped(), []);
    }
    rig.pass(HOUR / 2);
    run.push(Class::Exec, 100, 300);
    rig.step(&mut run);
    assert_eq!(run.dropped(), []);
    let taken = run.pop().unwrap();
    rig.pass(HOUR / 2);
    rig.step(&mut run);
    // What is being sent is its sender's to give up.
    assert_eq!(run.dropped(), [(Reason::SpoolExpired, 36 - 1)]);
    drop(taken);
    rig.pass(EXPIRY);
    rig.step(&mut run);
    assert_eq!(run.dropped(), [(Reason::SpoolExpired, 36)]);
    assert_eq!(run.send_all(&rig), [100]);
    rig.finish(run);
}

#[test]
fn what_an_earlier_boot_left_has_time_until_the_wall_clock_is_set() {
    let mut rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 100);
    rig.step(&mut run);
    rig.finish(run);
    // As if of another boot.
    let [file] = &rig.files()[..] else { panic!("{:?}", rig.files()) };
    let mut bytes = fs::read(file).unwrap();
    let head = format::segment_head(7, format::Sums::default());
    bytes[..28].copy_from_slice(&head[..28]);
    fs::write(file, &bytes).unwrap();

    let reopened = |rig: &Rig| {
        let mut run = rig.open();
        rig.step(&mut run);
        assert_eq!((run.queue.depth().records, run.check().spool.unwrap().recovered), (1, 1));
        run
    };
    // The wall clock is wrong by years, and then it is set.
    rig.moment.unix_ns += 10 * 365 * u64::try_from((24 * HOUR).as_nanos()).unwrap();
    rig.moment.boot_ns = boot_ns();
    let mut run = reopened(&rig);
    rig.pass(GRACE.mul_f32(0.9));
    rig.step(&mut run);
    rig.moment.unix_ns = 1_700_000_000_000_000_000 + u64::try_from(GRACE.as_nanos()).unwrap();
    rig.pass(Duration::from_secs(120));
    rig.step(&mut run);
    // From now on it makes no difference.
    rig.moment.unix_ns *= 2;
    rig.pass(HOUR / 2);
    rig.step(&mut run);
    assert_eq!(run.dropped(), []);
    rig.pass(HOUR / 2);
    rig.step(&mut run);
    assert_eq!(run.dropped(), [(Reason::SpoolExpired, 1)]);
    assert_eq!(rig.finish(run).spool.unwrap().records, 0);
}

#[tokio::test]
async fn whoever_waits_at_the_end_is_told_that_it_is_over() {
    let rig = Rig::new();
    let mut run = rig.open();
    let consume = |queue: Arc<Queue>| async move {
        while let Some(mut taken) = queue.pop().await {
            taken.deliver(u32::MAX, 0);
        }
    };
    let consumers = [0, 1].map(|_| tokio::spawn(consume(Arc::clone(&run.queue))));
    tokio::task::yield_now().await;
    run.push(Class::Exec, 1, 100);
    run.queue.close();
    // Both look, and wait for the disk.
    tokio::task::yield_now().await;
    rig.step(&mut run);
    poll("taken", || run.queue.counters().snapshot().exported == 1).await;
    rig.step(&mut run);
    for consumer in consumers {
        timeout(LIMITS.drain / 2, consumer).await.unwrap().unwrap();
    }
    rig.finish(run);
}

#[test]
fn a_disk_that_does_not_answer_holds_up_nothing() {
    let mut rig = Rig::new();
    let mut run = rig.open();
    run.push(Class::Exec, 1, 100);
    let Some(long_ago) = Instant::now().checked_sub(2 * super::super::STALL) else { return };
    run.spooler.with(|stored| stored.busy_since = Some(long_ago));
    let mut taken = run.pop().unwrap();
    run.push(Class::Exec, 2, 100);
    // It was given to the disk as well, which now answers.
    rig.pass(SYNC);
    rig.step(&mut run);
    taken.deliver(1, 0);
    drop(taken);
    assert_eq!(run.send_all(&rig), [2]);
    rig.finish(run);
    assert_eq!(rig.open().check().spool.unwrap().recovered, 0);
}
