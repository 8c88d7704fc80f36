//! The real binary: started, ready, stopped, and what it said at the end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::Process;
use crate::sink::{Record, Sink};
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
        let process = Process::start(command);
        process.wait_for_line(READY, PATIENCE);
        Self { process }
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
        assert_eq!(self.summary.dropped, 0, "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// And every event has reached the collector.
    #[must_use]
    pub fn shipped_all(self) -> Self {
        let this = self.without_loss();
        assert_eq!(this.summary.seen, this.summary.exported, "{}", this.stderr);
        this
    }
}

impl Summary {
    /// `namespan: seen 123, exported 120, rejected 0, dropped 3 (queue_full 2, ring_full 1)`; parts may be missing.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let after = |word: &str| {
            let (_, rest) = line.split_once(&format!("{word} "))?;
            rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
        };
        let inner = line.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("", |(inner, _)| inner);
        let reasons = inner
            .split(", ")
            .filter_map(|reason| reason.rsplit_once(' '))
            .map(|(reason, count)| Some((reason.to_owned(), count.parse().ok()?)))
            .collect::<Option<BTreeMap<_, _>>>()?;
        Some(Self {
            seen: after("seen")?,
            exported: after("exported").unwrap_or_default(),
            rejected: after("rejected").unwrap_or_default(),
            printed: after("printed").unwrap_or_default(),
            dropped: after("dropped")?,
            reasons,
        })
    }
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
    let sink = Sink::start();
    let namespan = Namespan::run(&[&["--console", "none", "--endpoint", &sink.endpoint()], arguments].concat());
    meanwhile();
    let summary = namespan.stop().shipped_all().summary;
    let records = sink.records();
    assert_eq!(records.len() as u64, summary.exported);
    records
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
        assert_eq!(Summary::parse("error: no"), None);
    }
}
