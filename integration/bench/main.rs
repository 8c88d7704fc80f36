//! `nsbench`: what it costs to be watched, by Namespan and by what users would pick instead, as one table.
//!
//! As root, with nothing else that starts many processes. Every figure is a median over rounds in which all tools take turns,
//! so that ratios hold even where the machine is shared.

#![expect(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::similar_names,
    reason = "the table is the result, the rest is progress; its figures are no larger than an f64 holds"
)]

mod blackhole;
mod containers;
mod storm;
mod tool;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use storm::Storm;
use tool::{Memory, Running, Tool, count_runs};

const PATIENCE: Duration = Duration::from_secs(30);
/// After which everything that was seen has been sent: a batch waits for a second.
const SETTLED: Duration = Duration::from_millis(1_600);
/// Execs a second of a busy host.
const USUAL_RATE: u32 = 500;
const CONTAINERS: usize = 1_000;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("blackhole") => blackhole::serve().map_err(Into::into),
        Some(other) => Err(anyhow::anyhow!("there is no {other}")),
        None => bench(),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("nsbench: {error:#}");
    ExitCode::FAILURE
}

/// How much is done.
struct Effort {
    rounds: u32,
    /// Of a storm.
    execs: u32,
    /// At the usual rate.
    seconds: u32,
}

impl Effort {
    /// `ROUNDS`, `EXECS` and `SECONDS`, where they are set.
    fn of_environment() -> Result<Self> {
        let number = |name: &str, default: u32| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
            Err(_) => Ok(default),
        };
        Ok(Self { rounds: number("ROUNDS", 5)?, execs: number("EXECS", 40_000)?, seconds: number("DRIZZLE", 10)? })
    }
}

/// What one tool did in one round.
struct Round {
    storm: Duration,
    kernel_ns: f64,
    /// For 100,000 execs.
    cpu: Duration,
    usual_percent: f64,
    at_rest: Memory,
    after: Memory,
    first_event: Duration,
    lost: u64,
}

fn bench() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "BPF programs are loaded by root only");
    let _as_before = Statistics::remember()?;
    let (effort, storm, receiver) = (Effort::of_environment()?, Storm::new()?, Receiver::start()?);
    let (tools, absent): (Vec<_>, Vec<_>) = Tool::ALL.into_iter().partition(|tool| tool.path().is_some());
    for tool in absent {
        println!("not measured, as it is not installed: {}", tool.name());
    }
    let mut rounds: HashMap<&str, Vec<Round>> = HashMap::new();
    for number in 1..=effort.rounds {
        for tool in &tools {
            eprintln!("round {number} of {}: {}", effort.rounds, tool.name());
            let round = measure(*tool, &effort, &receiver, &storm)?;
            rounds.entry(tool.name()).or_default().push(round);
        }
    }
    table(&tools, &rounds, &effort);
    eprintln!("memory");
    memory(&effort, &receiver, &storm)
}

fn measure(tool: Tool, effort: &Effort, receiver: &Receiver, storm: &Storm) -> Result<Round> {
    const COUNTED: u32 = 4_000;
    if tool == Tool::Nothing {
        let nothing = Memory { now: 0.0, peak: 0.0 };
        return Ok(Round {
            storm: storm.rage(effort.execs)?,
            kernel_ns: 0.0,
            cpu: Duration::ZERO,
            usual_percent: 0.0,
            at_rest: nothing,
            after: nothing,
            first_event: Duration::ZERO,
            lost: 0,
        });
    }
    let running = Running::start(tool, &[], receiver, storm)?;
    pause(SETTLED);
    let at_rest = running.memory()?;
    let (before, took) = (running.cpu()?, storm.rage(effort.execs)?);
    pause(SETTLED);
    let cpu = running.cpu()?.saturating_sub(before) * 1_000 / (effort.execs / 100);
    let (before, seconds) = (running.cpu()?, effort.seconds);
    storm.drizzle(USUAL_RATE * seconds, Duration::from_secs(seconds.into()))?;
    pause(SETTLED);
    let usual_percent = running.cpu()?.saturating_sub(before).as_secs_f64() / f64::from(seconds) * 100.0;
    // Last, and only for this: counting costs a little.
    count_runs(true)?;
    let before = running.kernel()?;
    storm.rage(COUNTED)?;
    let kernel_ns = (running.kernel()?.ns - before.ns) as f64 / f64::from(COUNTED);
    count_runs(false)?;
    pause(SETTLED);
    let (after, first_event) = (running.memory()?, running.first_event);
    let lost = running.stop(u64::from(effort.execs + USUAL_RATE * seconds + COUNTED))?.lost;
    Ok(Round { storm: took, kernel_ns, cpu, usual_percent, at_rest, after, first_event, lost })
}

fn table(tools: &[Tool], rounds: &HashMap<&str, Vec<Round>>, effort: &Effort) {
    let of = |tool: &Tool, figure: &dyn Fn(&Round) -> f64| median(rounds[tool.name()].iter().map(figure));
    let bare = of(&Tool::Nothing, &|round| round.storm.as_secs_f64());
    let best = rounds[Tool::Nothing.name()].iter().map(|round| round.storm).min().unwrap_or_default();
    println!(
        "\nmedians of {} rounds; a storm of {} execs, {:.0} a second at most when nobody watches\n",
        effort.rounds,
        effort.execs,
        f64::from(effort.execs) / best.as_secs_f64()
    );
    println!(
        "| | kernel, µs per exec | CPU, s per 100,000 execs | at {USUAL_RATE} execs/s, % of a core | slow-down of a storm \
         | lost | RSS at rest / after / peak, MiB | first event, s |\n|---|---|---|---|---|---|---|---|"
    );
    let unit = tools.iter().find(|tool| **tool == Tool::Execsnoop);
    for tool in tools.iter().filter(|tool| **tool != Tool::Nothing) {
        let ratio = |figure: &dyn Fn(&Round) -> f64| match unit {
            Some(unit) => format!(" ({:.2} of execsnoop's)", of(tool, figure) / of(unit, figure)),
            None => String::new(),
        };
        let (kernel, cpu) = (|round: &Round| round.kernel_ns / 1_000.0, |round: &Round| round.cpu.as_secs_f64());
        println!(
            "| {} | {:.2}{} | {:.2}{} | {:.2} | {:.2} | {} | {:.0} / {:.0} / {:.0} | {:.2} |",
            tool.name(),
            of(tool, &kernel),
            ratio(&kernel),
            of(tool, &cpu),
            ratio(&cpu),
            of(tool, &|round| round.usual_percent),
            of(tool, &|round| round.storm.as_secs_f64()) / bare,
            rounds[tool.name()].iter().map(|round| round.lost).max().unwrap_or_default(),
            of(tool, &|round| round.at_rest.now),
            of(tool, &|round| round.after.now),
            of(tool, &|round| round.after.peak),
            of(tool, &|round| round.first_event.as_secs_f64()),
        );
    }
}

/// What Namespan alone has in memory.
fn memory(effort: &Effort, receiver: &Receiver, storm: &Storm) -> Result<()> {
    println!("\n| Namespan's memory, MiB | now | peak |\n|---|---|---|");
    let say = |what: &str, memory: Memory| println!("| {what} | {:.1} | {:.1} |", memory.now, memory.peak);

    let containers = containers::Containers::new(CONTAINERS)?;
    let running = Running::start(Tool::Namespan, &containers.arguments(), receiver, storm)?;
    pause(SETTLED);
    say("at rest", running.memory()?);
    containers.run_in_each(storm.program())?;
    pause(SETTLED);
    say(&format!("with {CONTAINERS} containers"), running.memory()?);
    ensure!(running.stop(0)?.lost == 0, "events of containers were lost");
    drop(containers);

    let nobody = Receiver::nobody()?;
    let running = Running::start(Tool::Namespan, &[], &nobody, storm)?;
    storm.rage(50_000)?;
    pause(SETTLED);
    say("with 100,000 records and their spans in the queues", running.memory()?);
    for _ in 0..4 {
        storm.rage(100_000.max(effort.execs))?;
    }
    pause(SETTLED);
    say("with full queues, of 16 MiB for logs and as much for spans", running.memory()?);
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Where Namespan sends to.
pub struct Receiver {
    port: u16,
    process: Option<(Child, BufReader<ChildStdout>)>,
}

impl Receiver {
    fn start() -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("blackhole")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the receiver")?;
        let mut output = BufReader::new(process.stdout.take().context("the receiver's output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(Self { port: line.trim().parse().context("the receiver's port")?, process: Some((process, output)) })
    }

    /// A port where nobody answers.
    fn nobody() -> Result<Self> {
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self { port: listener.local_addr()?.port(), process: None })
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.process {
            let _ended = process.kill().and_then(|()| process.wait());
        }
    }
}

/// `kernel.bpf_stats_enabled` as it was.
struct Statistics(String);

impl Statistics {
    const PATH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn remember() -> Result<Self> {
        Ok(Self(std::fs::read_to_string(Self::PATH).context("the kernel counts no runs of BPF programs")?))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _unchanged = std::fs::write(Self::PATH, self.0.trim());
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a rate is kept and a process left alone for a time: nothing to poll for"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// CPU time that all threads of a process have used, those that have ended included.
fn cpu_of(process: u32) -> Result<Duration> {
    let pid = libc::pid_t::try_from(process)?;
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both write to live values of their own types.
    let status = unsafe {
        match libc::clock_getcpuclockid(pid, &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            error => error,
        }
    };
    ensure!(status == 0, "process {process} has no CPU clock");
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}
