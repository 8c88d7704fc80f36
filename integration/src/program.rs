//! Programs that only one case runs, so that their records can be counted among those of a busy host.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tempfile::TempDir;

use crate::sink::Record;
use crate::time::unix_ns;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A copy of busybox under a name of its own.
#[derive(Debug)]
pub struct Program {
    /// At most 15 bytes: it is the comm of whatever runs.
    pub name: String,
    pub path: PathBuf,
    directory: TempDir,
}

/// A process that has ended, and clock readings around its life.
#[derive(Debug)]
pub struct Ran {
    pub pid: i64,
    pub status: ExitStatus,
    pub before_ns: u64,
    pub after_ns: u64,
}

/// A shell that is told its commands one by one.
#[derive(Debug)]
pub struct Shell {
    pub pid: i64,
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    #[must_use]
    pub fn new() -> Self {
        // Other users run it too.
        let permissions = fs::Permissions::from_mode(0o755);
        let directory = tempfile::Builder::new().prefix("nstest-").permissions(permissions).tempdir().unwrap();
        let name = format!("ns{:x}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        assert!(name.len() <= 15, "{name}");
        let path = directory.path().join(&name);
        fs::copy("/bin/busybox", &path).unwrap();
        Self { name, path, directory }
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// One of busybox's applets: it goes by the first argument, the kernel's comm by the file.
    #[must_use]
    pub fn command(&self, applet: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(applet).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    #[must_use]
    pub fn start(&self, applet: &str, arguments: &[&str]) -> Child {
        self.command(applet).args(arguments).spawn().unwrap()
    }

    pub fn run(&self, applet: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
        ran(self.command(applet).args(arguments))
    }

    pub fn run_times(&self, count: usize) {
        for _ in 0..count {
            assert!(self.run("true", [""; 0]).status.success());
        }
    }

    /// Its records among others.
    pub fn of<'a>(&self, records: impl IntoIterator<Item = &'a Record>) -> Vec<&'a Record> {
        records.into_iter().filter(|record| record.comm() == self.name).collect()
    }
}

impl Default for Program {
    fn default() -> Self {
        Self::new()
    }
}

impl Shell {
    /// From a command that reads what to do from standard input.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (commands, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { pid: process.id().into(), process, commands, answers: BufReader::new(answers) }
    }

    /// Returns when it is done.
    pub fn run(&mut self, command: &str) {
        writeln!(self.commands, "{command}; echo").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "what {command} has printed");
    }

    /// Lets it come to the end of its input.
    #[must_use]
    pub fn end(self) -> ExitStatus {
        let Self { mut process, commands, .. } = self;
        drop(commands);
        process.wait().unwrap()
    }
}

/// Runs it to its end.
pub fn ran(command: &mut Command) -> Ran {
    let before_ns = unix_ns();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let pid = i64::from(child.id());
    let status = child.wait().unwrap();
    Ran { pid, status, before_ns, after_ns: unix_ns() }
}

/// How many execs and how many exits there are.
pub fn count<'a>(records: impl IntoIterator<Item = &'a Record>) -> (usize, usize) {
    records.into_iter().fold((0, 0), |(execs, exits), record| {
        (execs + usize::from(record.is_exec()), exits + usize::from(record.is_exit()))
    })
}

/// The only exec of a pid.
#[must_use]
pub fn exec_of<'a>(records: &[&'a Record], pid: i64) -> &'a Record {
    only(records, pid, Record::is_exec)
}

/// The only exit of a pid.
#[must_use]
pub fn exit_of<'a>(records: &[&'a Record], pid: i64) -> &'a Record {
    only(records, pid, Record::is_exit)
}

fn only<'a>(records: &[&'a Record], pid: i64, kind: fn(&Record) -> bool) -> &'a Record {
    let mut found = records.iter().filter(|record| kind(record) && *record.get("process.pid") == pid.into());
    let record = found.next().unwrap_or_else(|| panic!("no record of {pid} among {}", records.len()));
    assert!(found.next().is_none(), "two records of {pid}");
    record
}
