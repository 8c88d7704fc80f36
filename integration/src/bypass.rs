//! `nstest-bypass KIND ARGUMENT...`: executes programs in the ways by which one would get past whoever forbids it.

use std::ffi::{CString, c_char};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, Stdio};
use std::ptr::null;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(said) => writeln!(io::stdout(), "{said}").map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Err(error) => {
            let _closed = writeln!(io::stderr(), "nstest-bypass {words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> io::Result<String> {
    match words {
        // Under whatever name it is told.
        ["as", path, zeroth, rest @ ..] => Err(Command::new(path).arg0(zeroth).args(rest).exec()),
        ["fd", path, arguments @ ..] => Err(execute(&File::open(path)?, arguments)),
        ["memfd", path, arguments @ ..] => {
            let mut memory = File::from(memfd_create("memory", MemfdFlags::empty())?);
            io::copy(&mut File::open(path)?, &mut memory)?;
            Err(execute(&memory, arguments))
        }
        // By way of a copy that nobody finds any more.
        ["deleted", path, copy, arguments @ ..] => {
            fs::copy(path, copy)?;
            let file = File::open(copy)?;
            fs::remove_file(copy)?;
            Err(execute(&file, arguments))
        }
        // COUNT children of each of WORKERS threads, which do nothing else.
        ["storm", workers, count, path, zeroth, rest @ ..] => {
            let ends = Ends::default();
            let [workers, count] = [number(workers)?, number(count)?];
            // Where processes are few, children would take the place of the last workers.
            let all_are_there = Barrier::new(workers);
            thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| {
                        all_are_there.wait();
                        (0..count).for_each(|_| ends.count(path, zeroth, rest));
                    });
                }
            });
            Ok(ends.said())
        }
        // Children one by one, until standard input ends.
        ["until-told", path, zeroth, rest @ ..] => {
            let (ends, is_over) = (Ends::default(), AtomicBool::new(false));
            thread::scope(|scope| {
                let told = scope.spawn(|| {
                    let read = io::copy(&mut io::stdin(), &mut io::sink());
                    is_over.store(true, Relaxed);
                    read
                });
                while !is_over.load(Relaxed) {
                    ends.count(path, zeroth, rest);
                }
                told.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
            })?;
            Ok(ends.said())
        }
        // COUNT children, by the one and the other name of a file that is renamed without end.
        ["race", count, one, other, zeroth, rest @ ..] => {
            let (ends, is_over) = (Ends::default(), AtomicBool::new(false));
            let count = number(count)?;
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Relaxed) {
                        let _renamed = fs::rename(one, other).and_then(|()| fs::rename(other, one));
                    }
                });
                for turn in 0..count {
                    ends.count(if turn % 2 == 0 { one } else { other }, zeroth, rest);
                }
                is_over.store(true, Relaxed);
            });
            Ok(ends.said())
        }
        _ => Err(io::Error::other("there is no such kind, or too little is said")),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}

/// Of the descriptor and nothing else; the error if it cannot.
fn execute(file: &File, arguments: &[&str]) -> io::Error {
    // What came from a command line has no NUL in it.
    let arguments: Vec<_> = arguments.iter().filter_map(|text| CString::new(*text).ok()).collect();
    let pointers: Vec<*const c_char> = arguments.iter().map(|text| text.as_ptr()).chain([null()]).collect();
    let none: [*const c_char; 1] = [null()];
    let (list, empty) = (pointers.as_ptr(), none.as_ptr());
    // SAFETY: strings that end with NUL, and lists of them that end with null, all of which live until the call is over.
    unsafe { libc::syscall(libc::SYS_execveat, file.as_raw_fd(), c"".as_ptr(), list, empty, libc::AT_EMPTY_PATH) };
    io::Error::last_os_error()
}

/// What became of programs.
#[derive(Default)]
struct Ends {
    ran: AtomicUsize,
    killed: AtomicUsize,
    denied: AtomicUsize,
    absent: AtomicUsize,
    /// As the container may have no more processes: it never came to an exec.
    crowded: AtomicUsize,
}

impl Ends {
    fn count(&self, path: &str, zeroth: &str, rest: &[&str]) {
        let mut command = Command::new(path);
        command.arg0(zeroth).args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let end = match command.status() {
            Ok(status) if status.signal() == Some(libc::SIGKILL) => &self.killed,
            Ok(_) => &self.ran,
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM) => &self.denied,
                Some(libc::EAGAIN) => &self.crowded,
                _ => &self.absent,
            },
        };
        end.fetch_add(1, Relaxed);
    }

    fn said(&self) -> String {
        let [ran, killed, denied, absent, crowded] =
            [&self.ran, &self.killed, &self.denied, &self.absent, &self.crowded].map(|count| count.load(Relaxed));
        format!("ran {ran} killed {killed} denied {denied} absent {absent} crowded {crowded}")
    }
}
