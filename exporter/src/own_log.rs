//! Namespan's own log, for people or for machines, on standard error: the same line over and over is cut short and counted.
//!
//! It goes nowhere else: what is shipped never depends on it, and never makes it grow.

mod writer;

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layered, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;
use crate::lock::lock;
use writer::Writer;

/// Lines that one place in the code may write in a window.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Most that the last lines are waited for.
const LAST: Duration = Duration::from_secs(1);
/// What says how many were left out is not left out itself.
const TARGET: &str = "namespan::left_out";

/// Begins the log of this process. Libraries may only complain: at lower levels some of them print what containers are
/// given.
pub fn to_stderr(level: LevelFilter, format: LogFormat) -> io::Result<OwnLog> {
    let (limit, writer) = (Limit::default(), Writer::to(io::stderr())?);
    let ansi = io::stderr().is_terminal();
    let (levels, handle) = reload::Layer::new(levels(level));
    let lines = writer.clone();
    subscriber(levels, format, ansi, move || lines.clone(), &limit).init();
    let set_level = Box::new(move |level| {
        if let Err(error) = handle.reload(self::levels(level)) {
            tracing::error!(%error, "the log's level stays");
        }
    });
    Ok(OwnLog { limit, set_level, writer })
}

/// The log of this process, for as long as it runs.
pub struct OwnLog {
    pub limit: Limit,
    pub set_level: Box<dyn Fn(LevelFilter)>,
    writer: Writer,
}

impl OwnLog {
    /// Says what was left out, and waits until all is written. `false`: nobody reads it any more.
    #[must_use]
    pub fn finish(&self) -> bool {
        self.limit.finish();
        self.writer.flush(LAST)
    }
}

fn levels(level: LevelFilter) -> Targets {
    Targets::new().with_target("namespan", level).with_default(level.min(LevelFilter::ERROR))
}

/// What writes each line.
type Lines = Box<dyn Layer<Registry> + Send + Sync>;

fn subscriber<W>(
    levels: impl Layer<Layered<Lines, Registry>> + Send + Sync + 'static,
    format: LogFormat,
    ansi: bool,
    writer: W,
    limit: &Limit,
) -> impl Subscriber + Send + Sync + 'static
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let lines: Lines = match format {
        LogFormat::Text => Box::new(lines.with_ansi(ansi)),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).with_current_span(false).with_span_list(false)),
    };
    tracing_subscriber::registry().with(lines).with(levels).with(limit.clone())
}

/// Lets a place in the code write so many lines in a window, and counts the others. Who asked for `debug` gets all of it.
#[derive(Clone, Debug, Default)]
pub struct Limit(Arc<Mutex<HashMap<Identifier, Window>>>);

/// Of one place in the code; there are no more of them than the code has.
#[derive(Debug)]
struct Window {
    metadata: &'static Metadata<'static>,
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Limit {
    /// Says, once for each window and place, how many lines were left out; for as long as it is polled.
    pub async fn keep_telling(self) {
        let mut ticks = tokio::time::interval(WINDOW);
        loop {
            ticks.tick().await;
            self.tell(Instant::now());
        }
    }

    /// What was left out in windows that are over.
    fn tell(&self, now: Instant) {
        let over = self.take(|window| now.saturating_duration_since(window.began) >= WINDOW);
        Self::say(over);
    }

    /// All that was left out.
    pub fn finish(&self) {
        Self::say(self.take(|_| true));
    }

    /// Outside of the lock: saying it comes back here.
    fn say(left_out: Vec<(&'static Metadata<'static>, u64)>) {
        for (metadata, lines) in left_out {
            let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            tracing::warn!(target: TARGET, lines, place = format!("{file}:{line}"), "lines like others were left out");
        }
    }

    fn take(&self, is_over: impl Fn(&Window) -> bool) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut left_out = Vec::new();
        self.windows().retain(|_, window| {
            let is_over = is_over(window);
            if is_over && window.left_out > 0 {
                left_out.push((window.metadata, window.left_out));
            }
            !is_over
        });
        left_out
    }

    /// Whether another line of this place may be written.
    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut windows = self.windows();
        let window = windows.entry(metadata.callsite()).or_insert_with(|| Window {
            metadata,
            began: now,
            lines: 0,
            left_out: 0,
        });
        // One with something to tell stays until it is told.
        if window.left_out == 0 && now.saturating_duration_since(window.began) >= WINDOW {
            (window.began, window.lines) = (now, 0);
        }
        let admitted = window.lines < LINES;
        if admitted {
            window.lines += 1;
        } else {
            window.left_out += 1;
        }
        admitted
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<Identifier, Window>> {
        lock(&self.0)
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    /// What is written while `work` logs.
    fn written(level: LevelFilter, format: LogFormat, work: impl FnOnce(&Limit)) -> Vec<String> {
        let (written, limit) = (Written::default(), Limit::default());
        let writer = written.clone();
        let subscriber = subscriber(level, format, false, move || writer.clone(), &limit);
        tracing::subscriber::with_default(subscriber, || work(&limit));
        written.lines()
    }

    fn repeat(times: u32) {
        for number in 0..times {
            tracing::warn!(number, "again");
        }
    }

    #[test]
    fn a_line_over_and_over_is_cut_short_and_the_others_are_not() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = written(LevelFilter::INFO, format, |limit| {
                repeat(LINES + 7);
                tracing::error!("another");
                limit.tell(Instant::now());
                assert_eq!(limit.windows().len(), 2);
                let later = Instant::now() + WINDOW;
                limit.tell(later);
                limit.tell(later);
                // Anew, though by the clock the window is not over.
                repeat(LINES + 1);
                limit.finish();
            });
            let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
            let again = usize::try_from(2 * LINES).unwrap();
            assert_eq!((lines.len(), count("again"), count("another")), (again + 3, again, 1), "{lines:#?}");
            let told: Vec<_> = lines.iter().filter(|line| line.contains("left out")).collect();
            let counts = match format {
                LogFormat::Text => ["lines=7", "lines=1"],
                LogFormat::Json => ["\"lines\":7", "\"lines\":1"],
            };
            assert!(told[0].contains(counts[0]) && told[0].contains("own_log.rs:"), "{told:?}");
            assert!(told[1].contains(counts[1]), "{told:?}");
        }
    }

    #[test]
    fn who_asks_for_details_gets_all_of_them() {
        let lines = written(LevelFilter::DEBUG, LogFormat::Text, |_| {
            for number in 0..3 * LINES {
                tracing::debug!(number, "a detail");
            }
        });
        assert_eq!(lines.len(), usize::try_from(3 * LINES).unwrap());
    }

    #[test]
    fn a_line_for_machines_is_an_object() {
        let lines = written(LevelFilter::INFO, LogFormat::Json, |_| {
            tracing::warn!(endpoint = "http://a", reason = "\"no\"\n", records = 7, "can't be delivered");
            tracing::debug!("a detail");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"can't be delivered".into()));
        assert_eq!((&line["reason"], &line["records"]), (&"\"no\"\n".into(), &7.into()));
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
