//! The real binary: started, ready, stopped, and what it said at the end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::Process;
use crate::sink::{Record, Sink};
use crate::span::{Span, assert_complete, assert_consistent};
use crate::{PATIENCE, needs};

/// Its log has this word once all probes are attached.
const READY: &str = "watching";

#[derive(Debug)]
pub struct Namespan {
    process: Process,
}

/// What is left of a run.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub summary: Summary,
}

/// The last line on stderr.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub seen: u64,
    pub exported: u64,
    pub rejected: u64,
    pub printed: u64,
    pub dropped: u64,
    /// Left on disk for the next run.
    pub spooled: u64,
    /// Found on disk from an earlier run.
    pub recovered: u64,
    pub reasons: BTreeMap<String, u64>,
    /// `None`: there are no spans.
    pub spans: Option<SpanSummary>,
    /// `None`: there are no uprobes.
    pub hits: Option<HitSummary>,
    /// `None`: there is no guard.
    pub guard: Option<GuardSummary>,
}

/// What became of the guard's decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSummary {
    pub decided: u64,
    pub told: u64,
    pub observed: u64,
    pub killed: u64,
    pub disarmed: u64,
    pub dropped: u64,
}

impl GuardSummary {
    fn parse(text: &str) -> Option<Self> {
        let text = &format!("decided {text}");
        let of = |name| count(text, name);
        Some(Self {
            decided: of("decided")?,
            told: of("told")?,
            observed: of("observed").unwrap_or_default(),
            killed: of("killed").unwrap_or_default(),
            disarmed: of("disarmed").unwrap_or_default(),
            dropped: of("dropped")?,
        })
    }
}

/// What became of the hits of uprobes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HitSummary {
    pub triggered: u64,
    pub told: u64,
    pub filtered: u64,
    pub sampled_out: u64,
    pub unfinished: u64,
    pub dropped: u64,
    pub reasons: BTreeMap<String, u64>,
}

/// What became of the spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanSummary {
    pub made: u64,
    pub exported: u64,
    pub rejected: u64,
    pub printed: u64,
    pub dropped: u64,
    pub spooled: u64,
    pub reasons: BTreeMap<String, u64>,
}

/// `namespan` without any setting of whoever runs the tests.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(needs::namespan());
    let foreign = |name: &OsStr| name.to_string_lossy().starts_with("OTEL_") || name == "DOCKER_HOST";
    for (name, _) in std::env::vars_os().filter(|(name, _)| foreign(name)) {
        command.env_remove(name);
    }
    command
}

impl Namespan {
    /// `namespan run` with these arguments; watches when it returns.
    #[must_use]
    pub fn run(arguments: &[&str]) -> Self {
        Self::run_with(arguments, &[])
    }

    #[must_use]
    pub fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command();
        command.arg("run").args(arguments).envs(environment.iter().copied());
        Self::start(command)
    }

    /// `namespan probe` with these arguments; watches when it returns.
    #[must_use]
    pub fn probe(arguments: &[&str]) -> Self {
        let mut command = command();
        command.arg("probe").args(arguments);
        Self::start(command)
    }

    /// Whatever command comes to be one; watches when it returns.
    #[must_use]
    pub fn start(command: Command) -> Self {
        let process = Process::start(command);
        process.wait_for_line(READY, PATIENCE);
        Self { process }
    }

    /// Waits until its own log says so.
    pub fn wait_for_log(&self, text: &str) {
        self.process.wait_for_line(text, PATIENCE);
    }

    /// Waits until its own log says so this many times.
    pub fn wait_for_logs(&self, text: &str, times: usize) {
        self.process.wait_for(&format!("{text:?} {times} times"), PATIENCE, |state| {
            (state.stderr().matches(text).count() >= times).then_some(())
        });
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid.as_raw_pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its own log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.wait_for("its log", PATIENCE, |state| Some(state.stderr()))
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.wait_for_stdout("anything", |printed| Some(printed.to_owned()))
    }

    /// What its open files are links to.
    #[must_use]
    pub fn open_files(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        // What is closed meanwhile is left out.
        folder.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect()
    }

    /// The most memory that it has had so far, in KiB.
    #[must_use]
    pub fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// What it has printed so far, once there is such an answer.
    pub fn wait_for_stdout<R>(&self, what: &str, answer: impl Fn(&str) -> Option<R>) -> R {
        self.process.wait_for(what, PATIENCE, |state| answer(&String::from_utf8_lossy(&state.stdout)))
    }

    /// Ends it as an operator does.
    #[must_use]
    pub fn stop(self) -> Finished {
        self.stop_by(Signal::TERM)
    }

    #[must_use]
    pub fn stop_by(self, signal: Signal) -> Finished {
        self.process.signal(signal);
        self.finish()
    }

    /// Ends it as no operator should.
    pub fn kill(self) {
        self.process.signal(Signal::KILL);
        let _ended = self.process.finish(PATIENCE);
    }

    /// Waits for it to end by itself. Nothing of it may be left.
    #[must_use]
    pub fn finish(self) -> Finished {
        let group = self.process.pid;
        let (status, stdout, stderr) = self.process.finish(PATIENCE);
        let left: Vec<_> = members(group.as_raw_pid()).collect();
        assert!(left.is_empty(), "stray processes: {left:?}");
        let stderr = String::from_utf8(stderr).unwrap();
        let summary = stderr.lines().last().and_then(Summary::parse);
        let summary = summary.unwrap_or_else(|| panic!("{status}, without a summary at the end of:\n{stderr}"));
        Finished { status, stdout, stderr, summary }
    }
}

impl Finished {
    /// It has ended well and lost nothing on the way.
    #[must_use]
    pub fn without_loss(self) -> Self {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        assert_eq!((self.summary.dropped, self.summary.spans().dropped), (0, 0), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// And every event and every span has reached the collector.
    #[must_use]
    pub fn shipped_all(self) -> Self {
        let this = self.without_loss();
        let spans = this.summary.spans();
        assert_eq!(this.summary.seen, this.summary.exported, "{}", this.stderr);
        assert_eq!(spans.made, spans.exported, "{}", this.stderr);
        this
    }
}

impl Summary {
    /// `namespan: seen 123, exported 120, rejected 0, dropped 3 (queue_full 2, ring_full 1); spans 60, exported 60, ...; hits 7, ...`;
    /// parts may be missing.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (line, guard) = match line.split_once("; guard ") {
            Some((line, guard)) => (line, Some(GuardSummary::parse(guard)?)),
            None => (line, None),
        };
        let (line, hits) = match line.split_once("; hits ") {
            Some((line, hits)) => (line, Some(HitSummary::parse(hits)?)),
            None => (line, None),
        };
        let (events, spans) = match line.split_once("; ") {
            Some((events, spans)) => (events, Some(spans)),
            None => (line, None),
        };
        let spans = match spans {
            Some(spans) => Some(SpanSummary {
                made: count(spans, "spans")?,
                exported: count(spans, "exported").unwrap_or_default(),
                rejected: count(spans, "rejected").unwrap_or_default(),
                printed: count(spans, "printed").unwrap_or_default(),
                dropped: count(spans, "dropped")?,
                spooled: count(spans, "spooled").unwrap_or_default(),
                reasons: reasons(spans)?,
            }),
            None => None,
        };
        Some(Self {
            seen: count(events, "seen")?,
            exported: count(events, "exported").unwrap_or_default(),
            rejected: count(events, "rejected").unwrap_or_default(),
            printed: count(events, "printed").unwrap_or_default(),
            dropped: count(events, "dropped")?,
            spooled: count(events, "spooled").unwrap_or_default(),
            recovered: count(events, "recovered").unwrap_or_default(),
            reasons: reasons(events)?,
            spans,
            hits,
            guard,
        })
    }

    /// Zeros where there are none.
    #[must_use]
    pub fn spans(&self) -> SpanSummary {
        self.spans.clone().unwrap_or_default()
    }
}

impl HitSummary {
    /// `9, told 5, filtered 1, dropped 3 (rate_limited 3)`; parts may be missing.
    fn parse(part: &str) -> Option<Self> {
        let number = |word| count(part, word).unwrap_or_default();
        Some(Self {
            triggered: part.split(',').next()?.parse().ok()?,
            told: count(part, "told")?,
            filtered: number("filtered"),
            sampled_out: number("sampled_out"),
            unfinished: number("unfinished"),
            dropped: count(part, "dropped")?,
            reasons: reasons(part)?,
        })
    }

    /// Dropped for this reason.
    #[must_use]
    pub fn dropped_for(&self, reason: &str) -> u64 {
        self.reasons.get(reason).copied().unwrap_or_default()
    }

    /// Each hit has one fate, and none has none. What the kernel ran no program for was never counted as a hit.
    pub fn assert_accounted(&self) {
        let fates = self.told + self.filtered + self.sampled_out + self.unfinished + self.dropped;
        assert_eq!(fates, self.triggered + self.dropped_for("kernel_recursion"), "{self:#?}");
        assert_eq!(self.reasons.values().sum::<u64>(), self.dropped, "{self:#?}");
    }
}

/// The number after this word.
fn count(part: &str, word: &str) -> Option<u64> {
    let (_, rest) = part.split_once(&format!("{word} "))?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// In parentheses at the end.
fn reasons(part: &str) -> Option<BTreeMap<String, u64>> {
    let inner = part.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("", |(inner, _)| inner);
    let pairs = inner.split(", ").filter_map(|reason| reason.rsplit_once(' '));
    pairs.map(|(reason, count)| Some((reason.to_owned(), count.parse().ok()?))).collect()
}

/// Processes of a process group.
fn members(group: i32) -> impl Iterator<Item = String> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(move |entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut after_comm = stat.rsplit_once(')')?.1.split_whitespace();
        (after_comm.nth(2)?.parse() == Ok(group)).then_some(stat)
    })
}

/// Ships to a sink, with these further arguments, what happens meanwhile; nothing of it may be lost.
pub fn shipped(arguments: &[&str], meanwhile: impl FnOnce()) -> Vec<Record> {
    let (finished, records, _) = ship(arguments, &[], meanwhile);
    assert!(finished.shipped_all().status.success());
    records
}

/// The same, with the spans; for runs without filters: nothing may be told without its surroundings.
pub fn traced(arguments: &[&str], meanwhile: impl FnOnce()) -> (Vec<Record>, Vec<Span>) {
    let (finished, records, spans) = ship(arguments, &[], meanwhile);
    assert!(finished.shipped_all().status.success());
    assert_consistent(&records, &spans);
    assert_complete(&records, &spans);
    (records, spans)
}

/// Ships to a sink what happens meanwhile; the collector has what is said to be exported, and nothing is lost.
pub fn ship(
    arguments: &[&str],
    environment: &[(&str, &str)],
    meanwhile: impl FnOnce(),
) -> (Finished, Vec<Record>, Vec<Span>) {
    let sink = Sink::start();
    let endpoint = sink.endpoint();
    let arguments = [&["--console", "none", "--endpoint", &endpoint], arguments].concat();
    let namespan = Namespan::run_with(&arguments, environment);
    meanwhile();
    let finished = namespan.stop().without_loss();
    let (records, spans) = (sink.records(), sink.spans());
    let came = (records.len() as u64, spans.len() as u64);
    assert_eq!(came, (finished.summary.exported, finished.summary.spans().exported), "{}", finished.stderr);
    (finished, records, spans)
}

/// The table of what happens meanwhile.
pub fn table(arguments: &[&str], meanwhile: impl FnOnce()) -> String {
    let namespan = Namespan::run(&[&["--console", "table"], arguments].concat());
    meanwhile();
    let finished = namespan.stop().without_loss();
    assert_eq!(finished.summary.printed, finished.summary.seen);
    String::from_utf8(finished.stdout).unwrap()
}

/// Of a run that ends at once: status and all that was printed.
#[must_use]
pub fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut command = command();
    command.arg("run").args(arguments).envs(environment.iter().copied());
    let (status, _, stderr) = Process::start(command).finish(Duration::from_secs(10));
    (status, String::from_utf8(stderr).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read_with_and_without_losses() {
        let line = "namespan: seen 123, exported 119, rejected 1, dropped 3 (queue_full 2, permanent:400 1)";
        let summary = Summary::parse(line).unwrap();
        assert_eq!((summary.seen, summary.exported, summary.rejected, summary.dropped), (123, 119, 1, 3));
        assert_eq!(summary.reasons, [("permanent:400".into(), 1), ("queue_full".into(), 2)].into());
        let summary = Summary::parse("namespan: seen 5, printed 5, dropped 0").unwrap();
        assert_eq!((summary.seen, summary.printed, summary.dropped, summary.reasons.len()), (5, 5, 0, 0));
        assert_eq!(summary.spans, None);
        assert_eq!(Summary::parse("error: no"), None);
    }

    #[test]
    fn hits_are_counted_apart_with_or_without_spans() {
        for spans in ["", "; spans 5, exported 4, rejected 0, dropped 1 (queue_full 1)"] {
            let events = "namespan: seen 12, exported 11, rejected 0, dropped 1 (queue_full 1)";
            let hits = "; hits 20, told 9, filtered 4, sampled_out 2, dropped 6 (kernel_recursion 1, rate_limited 5)";
            let summary = Summary::parse(&format!("{events}{spans}{hits}")).unwrap();
            assert_eq!((summary.seen, summary.dropped, summary.reasons.len()), (12, 1, 1));
            assert_eq!(summary.spans().dropped, u64::from(!spans.is_empty()));
            let hits = summary.hits.unwrap();
            let parts = (hits.triggered, hits.told, hits.filtered, hits.sampled_out, hits.unfinished, hits.dropped);
            assert_eq!(parts, (20, 9, 4, 2, 0, 6));
            assert_eq!((hits.dropped_for("rate_limited"), hits.dropped_for("ring_full")), (5, 0));
            hits.assert_accounted();
        }
        assert_eq!(Summary::parse("namespan: seen 5, dropped 0; hits 1, told 1, dropped 0").unwrap().spans, None);
    }

    #[test]
    fn events_and_spans_are_counted_apart_with_losses_in_either() {
        let line = "namespan: seen 10, exported 7, rejected 1, dropped 2 (queue_full 2); \
                    spans 5, exported 1, rejected 1, dropped 3 (permanent:400 2, shutdown 1)";
        let summary = Summary::parse(line).unwrap();
        assert_eq!((summary.seen, summary.exported, summary.rejected, summary.dropped), (10, 7, 1, 2));
        assert_eq!(summary.reasons, [("queue_full".into(), 2)].into());
        let spans = summary.spans.unwrap();
        assert_eq!((spans.made, spans.exported, spans.rejected, spans.printed, spans.dropped), (5, 1, 1, 0, 3));
        assert_eq!(spans.reasons, [("permanent:400".into(), 2), ("shutdown".into(), 1)].into());

        let line = "namespan: seen 10, dropped 0; spans 5, exported 4, rejected 0, printed 5, dropped 1 (queue_full 1)";
        let summary = Summary::parse(line).unwrap();
        assert_eq!((summary.seen, summary.exported, summary.printed, summary.reasons.len()), (10, 0, 0, 0));
        let spans = summary.spans();
        assert_eq!((spans.made, spans.exported, spans.printed, spans.dropped), (5, 4, 5, 1));

        let summary = Summary::parse("namespan: seen 2, printed 2, dropped 0; spans 1, printed 1, dropped 0").unwrap();
        assert_eq!((summary.printed, summary.dropped), (2, 0));
        assert_eq!(summary.spans, Some(SpanSummary { made: 1, printed: 1, ..SpanSummary::default() }));
        assert_eq!(Summary::default().spans(), SpanSummary::default());
    }
}
