//! Events for people: a line each, aligned and safe for any terminal; written by a thread that nothing waits for.

mod tree;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::sync::oneshot;

use namespan_ebpf::wire::{Process, ns};

use crate::config::{self, Arguments, Config, Signal};
use crate::enrich::{Attribution, Owner};
use crate::event::{Event, Exec, Exit, Kind};
use crate::model::args::sent;
use crate::model::guard;
use crate::model::names;
use crate::model::text::Line;
use crate::model::uprobe::{Hiding, Told, sentence};
use crate::redact::Redactor;
pub use tree::Trees;

/// Chunks and bytes that wait for a slow terminal; what is over is dropped, and counted.
const CHUNKS: usize = 256;
const WAITING_BYTES: usize = 32 << 20;
/// Bytes of a chunk: it is handed on when larger, and after each turn of the pipeline.
const CHUNK: usize = 64 << 10;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const CYAN: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

const CONTAINER_WIDTH: usize = 20;
const COMM_WIDTH: usize = 15;

/// Standard output in one of its forms.
#[derive(Debug)]
pub struct Console {
    form: config::Console,
    switched_off: Vec<Signal>,
    arguments: Arguments,
    colour: bool,
    chunk: Vec<u8>,
    /// Records in the chunk.
    pending: PerSignal,
    writer: Option<SyncSender<Chunk>>,
    progress: Arc<Progress>,
    finished: Option<oneshot::Receiver<()>>,
    line: Line,
    redactor: Redactor,
    hiding: Hiding,
    handed_on: PerSignal,
    dropped: PerSignal,
    closed: bool,
}

/// Log records, which are events, and spans.
type PerSignal = [u64; 2];

/// Whole lines, and how many records they hold.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    records: PerSignal,
}

/// What the writer has done so far.
#[derive(Debug, Default)]
struct Progress {
    waiting_bytes: AtomicUsize,
    records: [AtomicU64; 2],
}

impl Console {
    /// Prints the head of a table at once.
    pub fn new(config: &Config) -> io::Result<Self> {
        let form = config.console;
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        let mut console = Self {
            form,
            switched_off: config.switched_off.clone(),
            arguments: config.arguments,
            colour,
            chunk: Vec::new(),
            pending: [0; 2],
            writer: None,
            progress: Arc::default(),
            finished: None,
            line: Line::default(),
            redactor: Redactor::new(),
            hiding: Hiding::default(),
            handed_on: [0; 2],
            dropped: [0; 2],
            closed: false,
        };
        if form != config::Console::None {
            let (chunks, to_write) = sync_channel(CHUNKS);
            let (finished, wait) = oneshot::channel();
            let progress = Arc::clone(&console.progress);
            thread::Builder::new().name("console".to_owned()).spawn(move || {
                write(&to_write, &progress);
                // Whoever waited may have given up.
                let _gone = finished.send(());
            })?;
            console.writer = Some(chunks);
            console.finished = Some(wait);
        }
        match form {
            config::Console::Table => console.head(),
            config::Console::Tree => console.tree_head(),
            config::Console::Jsonl | config::Console::None => {}
        }
        console.flush();
        Ok(console)
    }

    #[must_use]
    pub fn is_table(&self) -> bool {
        self.form == config::Console::Table
    }

    #[must_use]
    pub fn is_tree(&self) -> bool {
        self.form == config::Console::Tree
    }

    /// Whether records of this signal are printed as JSON.
    #[must_use]
    pub fn is_jsonl(&self, signal: Signal) -> bool {
        self.form == config::Console::Jsonl && !self.switched_off.contains(&signal)
    }

    /// Whoever read the output is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether records of this signal are printed, in whatever form.
    #[must_use]
    pub fn prints(&self, signal: Signal) -> bool {
        match self.form {
            config::Console::Table => signal == Signal::Logs,
            config::Console::Tree => signal == Signal::Traces,
            config::Console::Jsonl => self.is_jsonl(signal),
            config::Console::None => false,
        }
    }

    /// Records that standard output has taken, and those it was too slow for or will not take any more. Exact once
    /// finished.
    #[must_use]
    pub fn counts(&self, signal: Signal) -> (u64, u64) {
        let at = signal as usize;
        let printed = self.progress.records[at].load(Ordering::Acquire);
        (printed, self.dropped[at] + self.handed_on[at] - printed)
    }

    /// One row of the table.
    pub fn row(&mut self, event: &Event<'_>, unix_ns: u64, attribution: &Attribution) {
        let is_exit = matches!(event.kind, Kind::Exit(_));
        let (dim, reset) = if self.colour && is_exit { (DIM, RESET) } else { ("", "") };
        self.put(format_args!("{dim}"));
        let process = &event.process;
        self.who(unix_ns, process, (attribution, event.nodename), (&process.comm, is_exit));
        self.what(event);
        self.put(format_args!("{reset}"));
        self.end_row();
    }

    /// One row of the table: a hit of a uprobe, with the thread's name.
    pub fn hit(&mut self, told: &Told<'_>) {
        let Told { hit, place, attribution, .. } = *told;
        // Of what is on the host its own name is not known.
        self.who(told.ended_unix_ns(), &hit.process, (attribution, b"host"), (&hit.comm, false));
        self.line.clear();
        sentence::write(&mut self.line, &mut self.hiding, hit, place);
        self.chunk.extend_from_slice(self.line.as_bytes());
        self.end_row();
    }

    /// One row of the table: what the guard did about an exec.
    pub fn decision(&mut self, told: &guard::Told<'_>) {
        let guard::Told { decision, policy, context, .. } = told;
        let process = &decision.process;
        self.who(context.time_unix_ns, process, (context.attribution, decision.nodename), (&process.comm, false));
        let (red, reset) = if self.colour { (RED, RESET) } else { ("", "") };
        self.put(format_args!("{red}{} {}:{reset} ", policy.name, guard::verb(decision)));
        self.command(&guard::exec(decision));
        self.chunk.extend_from_slice(self.line.as_bytes());
        self.end_row();
    }

    /// The columns that each row has; `is_plain`: without colour.
    fn who(
        &mut self,
        unix_ns: u64,
        process: &Process,
        (attribution, host): (&Attribution, &[u8]),
        (comm, is_plain): (&[u8], bool),
    ) {
        self.time(unix_ns);
        self.put(format_args!(" {:<10} ", process.namespaces[ns::PID]));
        let colour = self.colour && matches!(attribution.owner, Owner::Container(_)) && !is_plain;
        if colour {
            self.put(format_args!("{CYAN}"));
        }
        self.column(owner_of(attribution, host), CONTAINER_WIDTH);
        if colour {
            self.put(format_args!("{RESET}"));
        }
        self.put(format_args!(
            " {:>7} {:>7} {:>7} {:>6} ",
            process.parent_tgid, process.tgid, process.vpid, process.euid
        ));
        let comm = comm.split(|byte| *byte == 0).next().unwrap_or_default();
        self.column(comm, COMM_WIDTH);
        self.put(format_args!(" "));
    }

    fn end_row(&mut self) {
        self.put(format_args!("\n"));
        self.pending[Signal::Logs as usize] += 1;
        if self.chunk.len() > CHUNK {
            self.flush();
        }
    }

    /// One line of OTLP/JSON that holds so many records.
    pub fn json(&mut self, line: &str, signal: Signal, records: u32) {
        self.put(format_args!("{line}\n"));
        self.pending[signal as usize] += u64::from(records);
        self.flush();
    }

    /// Counts records that can't be printed.
    pub fn lose(&mut self, signal: Signal, records: u32) {
        self.dropped[signal as usize] += u64::from(records);
    }

    /// Hands what was printed to the writer; never waits for it.
    pub fn flush(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let Some(writer) = &self.writer else {
            self.chunk.clear();
            add(&mut self.dropped, pending);
            return;
        };
        let len = self.chunk.len();
        let waiting = self.progress.waiting_bytes.load(Ordering::Acquire);
        let chunk = Chunk { bytes: std::mem::take(&mut self.chunk), records: pending };
        // One chunk is always taken, however large.
        let sent = if waiting > 0 && waiting + len > WAITING_BYTES {
            Err(TrySendError::Full(chunk))
        } else {
            self.progress.waiting_bytes.fetch_add(len, Ordering::AcqRel);
            writer.try_send(chunk).inspect_err(|_| {
                self.progress.waiting_bytes.fetch_sub(len, Ordering::AcqRel);
            })
        };
        match sent {
            Ok(()) => add(&mut self.handed_on, pending),
            Err(TrySendError::Full(_)) => {
                if self.dropped == [0; 2] {
                    tracing::error!("standard output is too slow: events are not printed, and counted");
                }
                add(&mut self.dropped, pending);
            }
            Err(TrySendError::Disconnected(_)) => {
                add(&mut self.dropped, pending);
                self.writer = None;
                self.closed = true;
            }
        }
    }

    /// Waits until all is written; forever, if whoever reads the output has stopped to.
    pub async fn finish(&mut self) {
        self.flush();
        self.writer = None;
        if let Some(finished) = self.finished.take() {
            // An error: the thread is gone, which is as finished as it gets.
            let _finished = finished.await;
        }
    }

    fn head(&mut self) {
        let (bold, reset) = if self.colour { (BOLD, RESET) } else { ("", "") };
        self.put(format_args!(
            "{bold}{:<12} {:<10} {:<CONTAINER_WIDTH$} {:>7} {:>7} {:>7} {:>6} {:<COMM_WIDTH$} ARGS{reset}\n",
            "TIME (UTC)", "PIDNS", "CONTAINER", "PPID", "PID", "VPID", "UID", "COMM"
        ));
    }

    /// What happened: the arguments of an exec, or how it ended.
    fn what(&mut self, event: &Event<'_>) {
        self.line.clear();
        match &event.kind {
            Kind::Exec(exec) => self.command(exec),
            Kind::Exit(exit) => return self.exit(event, *exit),
            Kind::ExecFailed(failed) => {
                self.line.push(failed.path);
                let (red, reset) = if self.colour { (RED, RESET) } else { ("", "") };
                self.put(format_args!("{red}failed: "));
                match names::errno(failed.errno) {
                    Some(name) => self.put(format_args!("{name}{reset} ")),
                    None => self.put(format_args!("errno {}{reset} ", failed.errno)),
                }
            }
        }
        self.chunk.extend_from_slice(self.line.as_bytes());
    }

    /// The arguments of an exec, into the line.
    fn command(&mut self, exec: &Exec<'_>) {
        self.line.clear();
        let most = if self.arguments == Arguments::Off { 1 } else { usize::MAX };
        for (index, arg) in sent(exec.args, self.arguments, &mut self.redactor).take(most).enumerate() {
            if index > 0 {
                self.line.push(b" ");
            }
            self.line.push(&arg);
            if self.line.full() {
                break;
            }
        }
    }

    fn exit(&mut self, event: &Event<'_>, exit: Exit) {
        let ran_ns = event.process.time_boot_ns.saturating_sub(event.process.start_boot_ns);
        match exit.status.signal() {
            Some(signal) => match names::signal(signal) {
                Some(name) => self.put(format_args!("killed by {name}")),
                None => self.put(format_args!("killed by signal {signal}")),
            },
            None => self.put(format_args!("exit {}", exit.status.code())),
        }
        self.put(format_args!(" after {}.{:03} s", ran_ns / 1_000_000_000, ran_ns / 1_000_000 % 1000));
    }

    fn time(&mut self, unix_ns: u64) {
        let ms = unix_ns / 1_000_000;
        let (seconds, ms) = (ms / 1000 % 86_400, ms % 1000);
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        self.put(format_args!("{:02}:{:02}:{seconds:02}.{ms:03}", minutes / 60, minutes % 60));
    }

    /// Bytes that anybody may have chosen, cut or padded to a width.
    fn column(&mut self, bytes: &[u8], width: usize) {
        self.line.clear();
        self.line.push(bytes);
        let text = self.line.as_str();
        let chars = text.chars().count();
        if chars > width {
            let cut = text.char_indices().nth(width - 1).map_or(text, |(at, _)| &text[..at]);
            self.chunk.extend_from_slice(cut.as_bytes());
            self.chunk.extend_from_slice("…".as_bytes());
        } else {
            self.chunk.extend_from_slice(text.as_bytes());
            self.chunk.resize(self.chunk.len() + width - chars, b' ');
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // A vector takes any number of bytes.
        let _infallible = self.chunk.write_fmt(text);
    }
}

/// A container's name, or that of the host.
fn owner_of<'a>(attribution: &'a Attribution, host: &'a [u8]) -> &'a [u8] {
    match &attribution.owner {
        Owner::Container(container) => {
            container.name.as_deref().unwrap_or_else(|| container.id.get(..12).unwrap_or(&container.id)).as_bytes()
        }
        Owner::Host(_) => host,
    }
}

fn add(total: &mut PerSignal, more: PerSignal) {
    for (total, more) in total.iter_mut().zip(more) {
        *total += more;
    }
}

fn write(chunks: &Receiver<Chunk>, progress: &Progress) {
    let mut out = io::stdout().lock();
    for Chunk { bytes, records } in chunks {
        // Nobody reads any more: dropping the receiver tells the pipeline.
        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
            return;
        }
        for (total, records) in progress.records.iter().zip(records) {
            total.fetch_add(records, Ordering::AcqRel);
        }
        progress.waiting_bytes.fetch_sub(bytes.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use namespan_ebpf::uprobe_wire::{self, RETURNED, ValueHead, value};
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;
    use crate::enrich::How;
    use crate::uprobe::hit;
    use crate::uprobe::place::Place;
    use crate::uprobe::spec::{Binary, Capture, Function, Target, Type, Uprobe};

    #[test]
    fn a_hit_is_a_row_in_which_nothing_is_obeyed() {
        let typed = b"ls\x1b[2J\n";
        let mut process = Process::new_zeroed();
        process.kind = uprobe_wire::kind::RETURN;
        (process.tgid, process.tid, process.vpid, process.parent_tgid, process.euid) = (42, 43, 7, 41, 1000);
        process.namespaces[ns::PID] = 4_026_532_180;
        process.len = u32::try_from(uprobe_wire::FIXED + typed.len()).unwrap();
        let mut record = uprobe_wire::Hit::new_zeroed();
        record.comm[..6].copy_from_slice(b"ba\x07sh\0");
        let len = u32::try_from(typed.len()).unwrap();
        record.values[RETURNED] = ValueHead { bits: 0, len, kind: value::STRING, flags: 0, reserved: 0 };
        let record = [process.as_bytes(), record.as_bytes(), typed].concat();
        let hit = hit::decode(&record).unwrap();
        let function = Function::Symbol("readline".to_owned());
        let probe = Uprobe {
            returns: Some(Capture { name: "line".to_owned(), position: 0, value: Type::String }),
            ..Uprobe::new("typed".to_owned(), Target::Host, Binary::Path("/bin/bash".to_owned()), function)
        };
        let (function, binary) = ("readline".to_owned(), "/bin/bash".to_owned());
        let place = Place { probe: Arc::new(probe), function, binary, offset: 1 };
        let told = Told {
            hit: &hit,
            place: &place,
            attribution: &Attribution::plain(Owner::Host(None), How::None),
            time_unix_ns: 3_600_000_000_000 + 5_000_000,
            observed_unix_ns: 0,
            creation_unix_ns: 0,
            parent_creation_unix_ns: 0,
            image: None,
            uid: None,
            span: None,
            trace: None,
        };
        let mut console = Console::new(&Config { console: config::Console::None, ..Config::default() }).unwrap();
        console.hit(&told);
        assert_eq!(
            String::from_utf8(std::mem::take(&mut console.chunk)).unwrap(),
            "01:00:00.005 4026532180 host                      41      42       7   1000 ba\\u{7}sh       \
             readline = \"ls\\u{1b}[2J\\n\"\n"
        );
        assert_eq!(console.pending, [1, 0]);
    }
}
