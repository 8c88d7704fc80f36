//! Settings, pipeline, a signal, the drain: what `namespan` does, from start to end.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use namespan::cli::{Cli, Command, Run};
use namespan::config::Config;
use namespan::pipeline::Pipeline;

/// The work is one straight line with a sender beside it.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(flags) => run(&flags),
        Command::Check(flags) => check(&flags),
        Command::Containers(flags) => containers(&flags),
    };
    result.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn run(flags: &Run) -> Result<ExitCode> {
    let config = Config::load(flags, &|name| std::env::var_os(name))?;
    log_to_stderr(config.log_level);
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(watch(&config));
    // A name that is still being looked up is nothing to wait for.
    runtime.shutdown_background();
    ended
}

async fn watch(config: &Config) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut pipeline = Pipeline::start(config)?;
    match (&config.logs, &config.traces) {
        (Some(logs), Some(traces)) => {
            tracing::info!(logs = %logs.endpoint, spans = %traces.endpoint, "watching, and shipping logs and spans");
        }
        (Some(logs), None) => tracing::info!(endpoint = %logs.endpoint, "watching, and shipping logs"),
        (None, Some(traces)) => tracing::info!(endpoint = %traces.endpoint, "watching, and shipping spans"),
        (None, None) => tracing::info!("watching; nothing is shipped"),
    }
    if let Some(metrics) = &config.metrics {
        tracing::info!(endpoint = %metrics.export.endpoint, "exporting metrics of Namespan itself");
    }
    let stop = async {
        tokio::select! {
            () = signals.next() => {}
            () = async {
                match config.run_for {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    };
    pipeline.run(stop).await;
    tokio::select! {
        summary = pipeline.finish() => {
            say(&summary.to_string());
            Ok(ExitCode::SUCCESS)
        }
        () = signals.next() => {
            say("interrupted again: what was still to be sent is lost");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn check(flags: &namespan::cli::Check) -> Result<ExitCode> {
    let config = Config::load(&flags.into(), &|name| std::env::var_os(name))?;
    let all_well = runtime()?.block_on(namespan::check::run(flags, &config, &mut io::stdout().lock()))?;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// What asks us to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Our own diagnostics. Libraries may only complain: at lower levels some of them print what containers are given.
fn log_to_stderr(level: LevelFilter) {
    let levels = Targets::new().with_target("namespan", level).with_default(level.min(LevelFilter::ERROR));
    let format = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(format.with_target(false)).with(levels).init();
}

/// A closing word on standard error, which may be closed itself.
fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "namespan: {line}");
}
