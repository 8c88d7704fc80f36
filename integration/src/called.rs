//! A program in C whose functions are called as often as a case says, in a container or not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::docker::Docker;
use crate::image::{self, succeed};
use crate::sink::{Record, Sink};
use crate::{PATIENCE, watched};

/// What can be said to it stands at its head.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/called.c");

/// Where images have it.
pub const CALLED: &str = "/bin/called";

/// An argument of a probe, so that [`numbers`] finds which calls are told.
pub const NUMBER: &str = "number:i64";

/// How long a call is waited for before there is another one.
const PATIENCE_OF_A_CALL: Duration = Duration::from_millis(50);

/// How it is compiled.
#[derive(Clone, Copy, Debug)]
pub enum Build {
    Static,
    /// With the C library, and able to open others.
    Dynamic,
    /// Of `from_library` alone.
    Library,
}

/// Compiles it.
pub fn build(path: &Path, build: Build) {
    let flags: &[&str] = match build {
        Build::Static => &["-static"],
        Build::Dynamic => &["-DDYNAMIC"],
        Build::Library => &["-DLIBRARY", "-shared", "-fPIC"],
    };
    succeed(Command::new("cc").args(["-O1", "-o"]).arg(path).args(flags).arg(SOURCE));
}

/// The files of an image that has it, and nothing else but busybox.
#[must_use]
pub fn root() -> TempDir {
    let root = image::root();
    build(&root.path().join(&CALLED[1..]), Build::Static);
    root
}

/// The same, linked dynamically, with the libraries that this takes.
#[must_use]
pub fn dynamic_root() -> TempDir {
    let root = image::root();
    let program = root.path().join(&CALLED[1..]);
    build(&program, Build::Dynamic);
    image::add_libraries(root.path(), &program);
    root
}

/// A process that calls.
#[derive(Debug)]
pub struct Caller {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// How a probe came to be attached, as seen by who calls.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    /// Calls before, of which there is no record.
    pub missed: usize,
    pub after: Duration,
}

impl Caller {
    /// From a command that runs it with its standard input open. Runs when this returns.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let mut caller = Self::begin(command);
        caller.call("called", 0);
        caller
    }

    /// Does not wait for it.
    #[must_use]
    pub fn begin(command: &mut Command) -> Self {
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let (commands, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, commands, answers: BufReader::new(answers) }
    }

    /// In a new container of this name and with these options of `docker run`.
    #[must_use]
    pub fn in_container(docker: &Docker, name: &str, options: &[&str]) -> Self {
        Self::start(run(docker, name, options).arg(CALLED))
    }

    /// One more process of a container.
    #[must_use]
    pub fn in_running(container: &str, path: &str) -> Self {
        Self::start(Command::new("docker").args(["exec", "--interactive", container, path]))
    }

    /// Calls a function with 0 and the numbers after it.
    pub fn call(&mut self, function: &str, times: usize) {
        assert_eq!(self.ask(&format!("call {function} {times} 0")), "done", "{function}");
    }

    /// Its answer to a command.
    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Does not wait for an answer.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    #[must_use]
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it has ended, its last word {line:?}");
        line.trim_end().to_owned()
    }

    /// Has it call a function until such a record comes, with numbers below 0.
    pub fn call_until_told(
        &mut self,
        function: &str,
        sink: &Sink,
        what: &str,
        is_ours: impl Fn(&Record) -> bool,
    ) -> Attached {
        let (began, mut calls) = (Instant::now(), 0);
        let attached = watched::poll(PATIENCE, || {
            calls += 1;
            assert_eq!(self.ask(&format!("call {function} 1 -{calls}")), "done", "{function}");
            let first = || {
                sink.seen(|records| records.iter().filter(|record| is_ours(record)).map(|record| number(record)).max())
            };
            let first = watched::poll(PATIENCE_OF_A_CALL, first)?;
            Some(Attached { missed: usize::try_from(-first - 1).unwrap(), after: began.elapsed() })
        });
        attached.unwrap_or_else(|| panic!("not in time: {what}; {calls} calls, none told"))
    }

    /// Has it come to the end of its input.
    pub fn end(self) {
        let Self { mut process, commands, .. } = self;
        drop(commands);
        let status = process.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// A container of this name and with these options, its standard input open; the command is still to be said.
#[must_use]
pub fn run(docker: &Docker, name: &str, options: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(["run", "--interactive", "--name", name]).args(options).arg(docker.tagged());
    command
}

/// With which number a call was made.
#[must_use]
pub fn number(record: &Record) -> i64 {
    record.get("namespan.uprobe.args.number").int()
}

/// Those from 0 on, in order.
#[must_use]
pub fn numbers<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<i64> {
    let mut numbers: Vec<_> = records.into_iter().map(number).filter(|number| *number >= 0).collect();
    numbers.sort_unstable();
    numbers
}

/// Each of the numbers from 0 on once, so many of them.
#[must_use]
pub fn each_of(times: usize) -> Vec<i64> {
    (0..i64::try_from(times).unwrap()).collect()
}

/// Of hits and returns alone.
#[must_use]
pub fn is_hit(record: &Record) -> bool {
    ["namespan.uprobe.hit", "namespan.uprobe.return"].contains(&record.event.as_str())
}

/// Hits of a probe in a container.
pub fn hits<'a>(records: &'a [Record], probe: &str, container: &str) -> impl Iterator<Item = &'a Record> {
    let (probe, container) = (probe.to_owned(), container.to_owned());
    records.iter().filter(move |record| is_hit_of(record, &probe, &container))
}

#[must_use]
pub fn is_hit_of(record: &Record, probe: &str, container: &str) -> bool {
    is_hit(record)
        && *record.get("namespan.uprobe.name") == probe.into()
        && *record.of_resource("container.name") == container.into()
}

/// Settings with these probes, which ship without waiting for more.
#[must_use]
pub fn settings(endpoint: &str, probes: &str) -> String {
    // What waits at the end of a storm is told, however busy the machine is.
    format!("export: {{endpoint: '{endpoint}'}}\nbatch: {{delay: 50ms}}\nqueue: {{drain: 30s}}\nuprobes:\n{probes}")
}

/// A probe in one line of such settings.
#[must_use]
pub fn probe(name: &str, target: &str, binary: &str, function: &str) -> String {
    let target = format!("containers: ['{target}']");
    format!("- {{name: {name}, {target}, binary: {binary}, function: '{function}', args: ['{NUMBER}'], rate: none}}\n")
}
