//! What `nstest-processes` did, by its own account.

use std::process::{Command, ExitStatus, Stdio};

use crate::watched::poll;
use crate::{PATIENCE, host};

/// A run of it that has ended, and all that it started.
#[derive(Debug)]
pub struct Account {
    pub pid: i64,
    pub status: ExitStatus,
    pub lines: Vec<Line>,
}

/// `event pid parent time`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub event: String,
    pub pid: i64,
    /// As the process itself saw it then.
    pub parent: i64,
    /// By `CLOCK_REALTIME`.
    pub at_ns: u64,
}

impl Account {
    /// Runs it until all that it tells of have ended, whoever's children they are then.
    #[must_use]
    pub fn of(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let pid = i64::from(child.id());
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> =
            stdout.lines().map(|line| Line::parse(line).unwrap_or_else(|| panic!("{line:?}"))).collect();
        for line in &lines {
            let ended = poll(PATIENCE, || host::has_ended(line.pid).then_some(()));
            assert!(ended.is_some(), "{line:?} has not ended");
        }
        Self { pid, status: output.status, lines }
    }

    /// All lines of this event.
    #[must_use]
    pub fn all(&self, event: &str) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.event == event).collect()
    }

    /// The only line of this event.
    #[must_use]
    pub fn only(&self, event: &str) -> &Line {
        let [line] = self.all(event)[..] else { panic!("not one {event} in {:#?}", self.lines) };
        line
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let [event, pid, parent, at_ns] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let at_ns = at_ns.parse().ok()?;
        Some(Self { event: event.to_owned(), pid: pid.parse().ok()?, parent: parent.parse().ok()?, at_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_event_two_pids_and_a_time() {
        let line = Line { event: "exec".to_owned(), pid: 12, parent: 1, at_ns: 1_795_373_044_120_000_007 };
        assert_eq!(Line::parse("exec 12 1 1795373044120000007"), Some(line));
        for other in ["", "exec 12 1", "exec 12 1 7 8", "exec twelve 1 7"] {
            assert_eq!(Line::parse(other), None, "{other}");
        }
    }
}
