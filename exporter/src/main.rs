//! Settings, pipeline, a signal, the drain: what `namespan` does, from start to end.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;

use namespan::cli::{Cli, Command, Policy, Run};
use namespan::config::{self, Config};
use namespan::own_log;
use namespan::pipeline::Pipeline;
use namespan::reload::Settings;
use namespan::sandbox;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(flags) => run(&flags),
        Command::Probe(flags) => run(&(&*flags).into()),
        Command::Check(flags) => check(&flags),
        Command::Health(flags) => health(&flags),
        Command::Containers(flags) => containers(&flags),
        Command::Symbols(flags) => symbols(&flags),
        Command::Policy(Policy::Check(flags)) => policy_check(&flags),
        Command::Policy(Policy::Test(flags)) => policy_test(&flags),
    };
    result.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn run(flags: &Run) -> Result<ExitCode> {
    let config = Config::load(flags, &|name| std::env::var_os(name))?;
    // Ahead of the first thread.
    let sandbox = config.sandbox.then(|| sandbox::enter(&config, flags.config.is_some()));
    let log = own_log::to_stderr(config.log_level, config.log_format).context("starting the log")?;
    for note in &config.notes {
        tracing::info!("{note}");
    }
    if let Some(sandbox) = &sandbox {
        sandbox.tell();
    } else {
        tracing::debug!("sandbox: switched off, nothing is given up");
    }
    let runtime = runtime()?;
    runtime.spawn(log.limit.clone().keep_telling());
    let ended = runtime.block_on(watch(flags, &config, &log.set_level));
    let is_read = log.finish();
    // A name that is still being looked up is nothing to wait for.
    runtime.shutdown_background();
    let (closing_word, code) = ended?;
    // A write would wait for a reader.
    if is_read {
        say(&closing_word);
    }
    Ok(code)
}

/// Until it is asked to end; its closing word.
async fn watch(flags: &Run, config: &Config, set_log_level: impl Fn(LevelFilter)) -> Result<(String, ExitCode)> {
    let mut signals = Signals::new()?;
    let (reloads, taken_up) = mpsc::channel(1);
    let settings = Settings::new(flags, config.clone(), reloads, signals.hangup.take());
    let mut pipeline = Box::pin(Pipeline::start(config)).await?;
    give_back_memory();
    let mut is_shipping = false;
    for (signal, what) in [(config::Signal::Logs, "logs"), (config::Signal::Traces, "spans")] {
        for (destination, export) in config.exports(signal) {
            is_shipping = true;
            tracing::info!(destination, endpoint = %export.endpoint, "watching, and shipping {what}");
        }
    }
    if !is_shipping {
        tracing::info!("watching; nothing is shipped");
    }
    if let Some(metrics) = &config.metrics {
        tracing::info!(endpoint = %metrics.export.endpoint, "exporting metrics of Namespan itself");
    }
    let stop = Box::pin(async {
        tokio::select! {
            () = signals.next() => {}
            () = async {
                match config.run_for {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            } => {}
            never = settings.follow(|config| set_log_level(config.log_level)) => match never {},
        }
    });
    pipeline.run(stop, taken_up).await;
    tokio::select! {
        summary = pipeline.finish() => Ok((summary.to_string(), ExitCode::SUCCESS)),
        () = signals.next() => {
            Ok(("interrupted again: what was still to be sent is lost".to_owned(), ExitCode::FAILURE))
        }
    }
}

fn check(flags: &namespan::cli::Check) -> Result<ExitCode> {
    let config = Config::load(&flags.into(), &|name| std::env::var_os(name))?;
    let all_well = runtime()?.block_on(namespan::check::run(flags, &config, &mut io::stdout().lock()))?;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn health(flags: &namespan::cli::Health) -> Result<ExitCode> {
    let config = Config::load(&flags.into(), &|name| std::env::var_os(name))?;
    let health = namespan::check::health::ask(config.listen, flags.alive)?;
    // Who asks may read the exit code alone.
    let _closed = io::stdout().write_all(health.text.as_bytes());
    Ok(if health.is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn containers(flags: &namespan::cli::Containers) -> Result<ExitCode> {
    let config = Config::load(&flags.into(), &|name| std::env::var_os(name))?;
    let runtime = runtime()?;
    let silent = runtime.block_on(namespan::list::list(&config, flags.json, &mut io::stdout().lock()));
    runtime.shutdown_background();
    for sentence in silent? {
        say(&sentence);
    }
    Ok(ExitCode::SUCCESS)
}

fn symbols(flags: &namespan::cli::Symbols) -> Result<ExitCode> {
    let config = Config::load(&flags.into(), &|name| std::env::var_os(name))?;
    let runtime = runtime()?;
    let told = runtime.block_on(namespan::list::symbols::list(&config, flags, &mut io::stdout().lock()));
    runtime.shutdown_background();
    for sentence in told? {
        say(&sentence);
    }
    Ok(ExitCode::SUCCESS)
}

fn policy_check(flags: &namespan::cli::PolicyCheck) -> Result<ExitCode> {
    namespan::guard::ask::check(flags, &mut io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

/// What would be stopped has a code of its own: not that of an error, nor that of a flag that is none.
fn policy_test(flags: &namespan::cli::PolicyTest) -> Result<ExitCode> {
    const STOPPED: u8 = 3;
    let is_stopped = namespan::guard::ask::test(flags, &mut io::stdout().lock())?;
    Ok(if is_stopped { STOPPED.into() } else { ExitCode::SUCCESS })
}

/// One thread: the work is one straight line, and what waits beside it takes less time than waking another thread.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")
}

/// What is free goes back to the kernel. To start takes megabytes that nothing needs any more: the kernel's types, the programs.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but the allocator's own free memory, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What asks us to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Where there is a terminal to hang up, it ends us as ever; elsewhere it asks for other settings.
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> Result<Self> {
        let has_terminal = io::stdin().is_terminal() || io::stderr().is_terminal();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if has_terminal { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A closing word on standard error, which may be closed itself.
fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "namespan: {line}");
}
