//! Lines come in without a wait; a thread writes them down. Whoever reads our log can stop reading, and nothing else stops.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that may wait.
const LINES: usize = 1024;

enum Entry {
    Line(Vec<u8>),
    /// All lines before this one are written.
    Mark(SyncSender<()>),
}

/// The way to the thread; each write is a line.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    entries: SyncSender<Entry>,
    /// Lines that found no room since the last that was written.
    left_out: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (entries, arrived) = sync_channel(LINES);
        let left_out = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&left_out);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(&arrived, &counted, output))?;
        Ok(Self { entries, left_out })
    }

    /// Waits until all is written; `false`: it is not, after that time.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let (mark, written) = sync_channel(1);
        self.entries.try_send(Entry::Mark(mark)).is_ok() && written.recv_timeout(within).is_ok()
    }
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Until nobody can write any more. Where standard error is closed, there is nobody to tell.
fn write(entries: &Receiver<Entry>, left_out: &AtomicU64, mut output: impl Write) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                let _closed = output.write_all(&line);
                let lines = left_out.swap(0, Ordering::Relaxed);
                if lines > 0 {
                    let _closed =
                        writeln!(output, "namespan: {lines} lines of the log were left out, as it was read too slowly");
                }
            }
            Entry::Mark(mark) => {
                let _closed = output.flush();
                // Whoever waits may have given up.
                mark.try_send(()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Takes nothing until it is told to.
    struct Stuck {
        go: Mutex<Receiver<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Ends with its sender: from then on everything is taken.
            let _ended = self.go.lock().unwrap().recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing is ever sent")]
    fn who_does_not_read_holds_nobody_up_and_what_is_left_out_is_counted() {
        const ALL: usize = 3 * LINES;
        let ((stop, go), written) = (channel(), Arc::new(Mutex::new(Vec::new())));
        let mut writer = Writer::to(Stuck { go: Mutex::new(go), written: Arc::clone(&written) }).unwrap();
        for _ in 0..ALL {
            writer.write_all(b"line\n").unwrap();
        }
        assert!(!writer.flush(Duration::ZERO));
        drop(stop);
        while !writer.flush(Duration::from_secs(30)) {}
        writer.write_all(b"line\n").unwrap();
        assert!(writer.flush(Duration::from_secs(30)));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let told =
            text.lines().filter_map(|line| line.strip_prefix("namespan: ")?.split(' ').next()?.parse::<usize>().ok());
        let lines = text.lines().filter(|line| *line == "line").count();
        assert_eq!(lines + told.sum::<usize>(), ALL + 1);
    }
}
