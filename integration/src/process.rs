//! A child process whose lines and end are watched; killed by its own pid when dropped.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::watched::Watched;

#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    what: OsString,
    state: Arc<Watched<State>>,
    waiter: Option<JoinHandle<()>>,
}

/// What was seen of it so far.
#[derive(Debug, Default)]
pub struct State {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Set when both outputs have ended, too.
    pub status: Option<ExitStatus>,
}

impl State {
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// How it began and ended: a verifier's log has thousands of lines between.
    fn gist(&self) -> String {
        const ENDS: usize = 15;
        let stderr = self.stderr();
        let lines: Vec<_> = stderr.lines().collect();
        let gap = lines.len().saturating_sub(ENDS);
        let shown = lines.iter().enumerate().filter(|(at, _)| *at < ENDS || *at >= gap).map(|(_, line)| *line);
        shown.collect::<Vec<_>>().join("\n")
    }
}

impl Process {
    /// Starts it in a process group of its own, so that a stray child of it can be told.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let what = command.get_program().to_owned();
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", what.display()));
        let pid = Pid::from_child(&child);
        let state = Arc::new(Watched::<State>::default());
        let out = collect(child.stdout.take().unwrap(), &state, |state| &mut state.stdout);
        let err = collect(child.stderr.take().unwrap(), &state, |state| &mut state.stderr);
        let ended = state.clone();
        let waiter = std::thread::spawn(move || {
            out.join().unwrap();
            err.join().unwrap();
            let status = child.wait().unwrap();
            ended.change(|state| state.status = Some(status));
        });
        Self { pid, what, state, waiter: Some(waiter) }
    }

    /// Waits for the first answer that is not `None`; panics, with what was printed, when there is none in time.
    pub fn wait_for<R>(&self, what: &str, time: Duration, answer: impl FnMut(&State) -> Option<R>) -> R {
        let found = self.state.wait(time, answer);
        found.unwrap_or_else(|| {
            let state = self.state.lock();
            panic!("{}: not in time: {what}; {:?}, printed:\n{}", self.what.display(), state.status, state.gist())
        })
    }

    /// Waits for a line on stderr; panics if the process ends before.
    pub fn wait_for_line(&self, word: &str, time: Duration) {
        let found = self.wait_for(word, time, |state| {
            if state.stderr().contains(word) { Some(true) } else { state.status.map(|_| false) }
        });
        assert!(found, "{} ended before {word:?}:\n{}", self.what.display(), self.state.lock().gist());
    }

    pub fn signal(&self, signal: Signal) {
        // Not reaped before it has a status: the pid is still its own.
        let state = self.state.lock();
        if state.status.is_none() {
            rustix::process::kill_process(self.pid, signal).unwrap();
        }
    }

    /// Whether it ends in this time.
    #[must_use]
    pub fn ended(&self, time: Duration) -> bool {
        self.state.wait(time, |state| state.status).is_some()
    }

    /// How it ended, with all that it printed.
    #[must_use]
    pub fn finish(self, time: Duration) -> (ExitStatus, Vec<u8>, Vec<u8>) {
        self.wait_for("its end", time, |state| {
            state.status.map(|status| (status, state.stdout.clone(), state.stderr.clone()))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take()
            && waiter.join().is_err()
        {
            eprintln!("{} could not be waited for", self.what.display());
        }
    }
}

fn collect(
    output: impl Read + Send + 'static,
    state: &Arc<Watched<State>>,
    part: fn(&mut State) -> &mut Vec<u8>,
) -> JoinHandle<()> {
    let state = state.clone();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).unwrap() > 0 {
            state.change(|state| part(state).append(&mut line));
        }
    })
}

/// What a shell would say of it.
#[must_use]
pub fn code(status: ExitStatus) -> i64 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap();
    i64::from(code)
}
