//! What is measured, Namespan and what users would pick instead: started, watched from outside, stopped.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use namespan_integration::namespan;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::tempfile;

use crate::storm::{self, Storm};
use crate::{PATIENCE, Receiver, pause};

/// What tells a container's execs from the host's by hand: PID namespace, host name, pids, comm and arguments.
const SCRIPT: &str = r#"tracepoint:syscalls:sys_enter_execve {
    $task = (struct task_struct *)curtask;
    printf("%-10u %-15s %-6d %-6d %-15s ", $task->nsproxy->pid_ns_for_children->ns.inum,
        $task->nsproxy->uts_ns->name.nodename, $task->real_parent->tgid, pid, comm);
    join(args->argv);
}"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Nobody watches.
    Nothing,
    Namespan,
    NamespanLogs,
    Execsnoop,
    Bpftrace,
}

impl Tool {
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Namespan, Self::NamespanLogs, Self::Execsnoop, Self::Bpftrace];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nobody watches",
            Self::Namespan => "Namespan, logs and spans",
            Self::NamespanLogs => "Namespan, logs",
            Self::Execsnoop => "execsnoop (libbpf-tools)",
            Self::Bpftrace => "bpftrace, a script",
        }
    }

    /// `None`: it is not installed.
    pub fn path(self) -> Option<PathBuf> {
        let named = |name: &str| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
        };
        match self {
            Self::Nothing => Some(PathBuf::new()),
            Self::Namespan | Self::NamespanLogs => Some(PathBuf::from(namespan::command().get_program())),
            Self::Execsnoop => named("execsnoop"),
            Self::Bpftrace => named("bpftrace"),
        }
    }

    fn command(self, path: &Path, receiver: &Receiver) -> Command {
        let mut command = if self.is_ours() { namespan::command() } else { Command::new(path) };
        if self.is_ours() {
            command.args(["run", "--console", "none", "--protocol", "grpc", "--endpoint", &receiver.endpoint()]);
        }
        match self {
            Self::NamespanLogs => command.arg("--no-spans"),
            Self::Bpftrace => command.args(["-e", SCRIPT]),
            Self::Nothing | Self::Namespan | Self::Execsnoop => &mut command,
        };
        command
    }

    pub fn is_ours(self) -> bool {
        matches!(self, Self::Namespan | Self::NamespanLogs)
    }
}

/// A tool that runs.
pub struct Running {
    tool: Tool,
    child: Child,
    output: File,
    errors: File,
    /// From the start until its programs ran for the first time.
    pub first_event: Duration,
}

/// What its BPF programs took, by the kernel's count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    pub ns: u64,
    pub runs: u64,
}

/// In MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub now: f64,
    pub peak: f64,
}

/// What became of the execs of a storm.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub lost: u64,
}

impl Running {
    /// Starts it, with these further arguments, and returns when it sees what happens.
    pub fn start(tool: Tool, arguments: &[&str], receiver: &Receiver, storm: &Storm) -> Result<Self> {
        let path = tool.path().context("not installed")?;
        let mut command = tool.command(&path, receiver);
        let (output, errors) = (tempfile()?, tempfile()?);
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?);
        count_runs(true)?;
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("starting {}", path.display()))?;
        let mut running = Self { tool, child, output, errors, first_event: Duration::ZERO };
        while running.kernel()?.runs == 0 {
            ensure!(began.elapsed() < PATIENCE, "{} sees nothing: {}", tool.name(), running.complaint());
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended, {status}: {}", tool.name(), running.complaint());
            }
            storm.rage(2)?;
        }
        running.first_event = began.elapsed();
        count_runs(false)?;
        Ok(running)
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Result<Duration> {
        crate::cpu_of(self.child.id())
    }

    /// Over all of its programs.
    pub fn kernel(&self) -> Result<Kernel> {
        let mut kernel = Kernel::default();
        let mut seen = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let number = |name: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
            };
            // Links tell of their program too, but not what it took; descriptors may be doubled.
            if let (Some(id), Some(ns), Some(runs)) = (number("prog_id"), number("run_time_ns"), number("run_cnt"))
                && !seen.contains(&id)
            {
                seen.push(id);
                kernel.ns += ns;
                kernel.runs += runs;
            }
        }
        Ok(kernel)
    }

    pub fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mib = |name: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
        };
        Ok(Memory { now: mib("VmRSS:").context("VmRSS")?, peak: mib("VmHWM:").context("VmHWM")? })
    }

    /// Ends it and asks what it has told of `execs` execs.
    pub fn stop(mut self, execs: u64) -> Result<Told> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                ensure!(!self.tool.is_ours(), "{} does not end", self.tool.name());
                // What it has printed by now is what it tells.
                self.child.kill()?;
            }
            pause(Duration::from_millis(10));
        }
        if self.tool.is_ours() {
            let text = self.complaint();
            let line = text.lines().last().unwrap_or_default();
            let summary = namespan::Summary::parse(line).with_context(|| format!("no summary: {text}"))?;
            return Ok(Told { lost: summary.dropped + summary.rejected + summary.spans().dropped });
        }
        self.output.rewind()?;
        let mut told = 0;
        for line in BufReader::new(&self.output).split(b'\n') {
            told += u64::from(String::from_utf8_lossy(&line?).contains(storm::NAME));
        }
        Ok(Told { lost: execs.saturating_sub(told) })
    }

    fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.errors.rewind().and_then(|()| self.errors.read_to_end(&mut text));
        read.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&text).trim().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Whether the kernel counts what BPF programs take. That costs a little itself.
pub fn count_runs(on: bool) -> io::Result<()> {
    fs::write("/proc/sys/kernel/bpf_stats_enabled", if on { "1" } else { "0" })
}
