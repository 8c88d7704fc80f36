//! `nstest-processes KIND ARGUMENT...`: makes processes in ways that shells do not, and says on stdout what it did.
//!
//! A line is `EVENT PID PARENT TIME`: pids as the process itself saw them, `CLOCK_REALTIME` in nanoseconds.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::ptr::{null, null_mut};
use std::time::{SystemTime, UNIX_EPOCH};

use libc::pid_t;

/// What a shell says of a program that it cannot run.
const NOT_RUN: c_int = 127;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((kind, arguments)) => make(kind, arguments),
        None => Err(io::Error::other("which kind?")),
    };
    if let Err(error) = &done {
        let _closed = writeln!(io::stderr(), "nstest-processes {arguments:?}: {error}");
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn make(kind: &str, arguments: &[String]) -> io::Result<()> {
    match (kind, arguments) {
        // PATH ARGUMENT...: a child.
        ("run", [_, ..]) => {
            let program = Program::new(arguments);
            wait(fork(|| program.execute("exec"))?)
        }
        // So that parent and child share their memory until the exec.
        ("vfork", [_, ..]) => wait(vfork(&Program::new(arguments))?),
        // Of a thread that is not the first.
        ("in-thread", [_, ..]) => in_thread(arguments, |program| wait(fork(|| program.execute("exec"))?)),
        // No child: another thread than the first becomes the program.
        ("exec-in-thread", [_, ..]) => in_thread(arguments, |program| Err(program.execute("exec"))),
        // A child, and when it has ended another of the same pid.
        ("twice", [_, ..]) => {
            let program = Program::new(arguments);
            let pid = fork(|| program.execute("exec"))?;
            wait(pid)?;
            wait(fork_as(pid, || program.execute("exec"))?)
        }
        // A grandchild that has lost its parent when it becomes the program; its process is not waited for.
        ("orphan", [_, ..]) => {
            let program = Program::new(arguments);
            wait(fork(|| orphan(&program))?)
        }
        // A child; its orphans become children too.
        ("adopt", [_, ..]) => adopt(&Program::new(arguments)),
        // COUNT PATH: so many children, two at a time.
        ("storm", [count, path]) => storm(count.parse().map_err(io::Error::other)?, path),
        _ => Err(io::Error::other("there is no such kind, or too little is said")),
    }
}

/// Stays as a fork of its parent, without an exec.
fn orphan(program: &Program) {
    let middle = own_pid();
    let child = || {
        while parent_pid() == middle {
            // SAFETY: takes nothing.
            unsafe { libc::sched_yield() };
        }
        program.execute("orphan");
    };
    if fork(child).is_ok() {
        leave(0);
    }
}

fn adopt(program: &Program) -> io::Result<()> {
    // SAFETY: of this request only the second argument is read, and it is a number.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    fork(|| program.execute("exec"))?;
    loop {
        match wait(-1) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            other => other?,
        }
    }
}

fn storm(count: u32, path: &str) -> io::Result<()> {
    let half = || -> io::Result<()> {
        for _ in 0..count / 2 {
            let status = Command::new(path).arg0("true").stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{status}")));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(half);
        half().and(other.join().unwrap_or_else(|_| Err(io::Error::other("the other half panicked"))))
    })
}

fn in_thread(arguments: &[String], act: fn(&Program) -> io::Result<()>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || act(&Program::new(arguments)));
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Made whole before the fork: what is between fork and exec may not allocate.
struct Program {
    /// Keeps what `pointers` points to.
    _arguments: Vec<CString>,
    /// Path and arguments, and null.
    pointers: Vec<*const c_char>,
}

impl Program {
    /// From a path and the arguments after it.
    fn new(arguments: &[String]) -> Self {
        // What came from a command line has no NUL in it.
        let arguments: Vec<_> = arguments.iter().filter_map(|text| CString::new(text.as_str()).ok()).collect();
        let pointers = arguments.iter().map(|text| text.as_ptr()).chain([null()]).collect();
        Self { _arguments: arguments, pointers }
    }

    /// Says so, and becomes it; the error if it cannot.
    fn execute(&self, event: &str) -> io::Error {
        tell(event, own_pid(), parent_pid(), now_ns());
        // SAFETY: strings that end with NUL, and a list of them that ends with null, which live as long as `self`.
        unsafe { libc::execv(self.pointers[0], self.pointers.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// A copy of this process that does this and ends.
fn fork<R>(child: impl FnOnce() -> R) -> io::Result<pid_t> {
    // SAFETY: the child calls nothing that takes a lock which another thread may hold.
    let pid = unsafe { libc::fork() };
    in_child(pid == 0, child);
    made(pid)
}

/// The same, with this pid, which nobody may have now.
fn fork_as<R>(pid: pid_t, child: impl FnOnce() -> R) -> io::Result<pid_t> {
    let pids = [pid];
    // SAFETY: a structure of numbers.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.exit_signal = libc::SIGCHLD as u64;
    how.set_tid = pids.as_ptr() as u64;
    how.set_tid_size = 1;
    // SAFETY: without a stack of its own and without shared memory the child is a copy, as of `fork`; there is one thread.
    let made_pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) };
    in_child(made_pid == 0, child);
    made(pid_t::try_from(made_pid).unwrap_or(-1))
}

fn vfork(program: &Program) -> io::Result<pid_t> {
    extern "C" fn child(program: *mut c_void) -> c_int {
        // SAFETY: `vfork` gives a program, and waits until this has executed it.
        let _error = unsafe { &*program.cast::<Program>() }.execute("exec");
        NOT_RUN
    }
    let mut stack = vec![0_u128; 4096];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack grows down from its end, which is aligned; it and the program live until the child has executed it.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len());
        libc::clone(child, top.cast(), flags, (&raw const *program).cast_mut().cast())
    };
    made(pid)
}

fn in_child<R>(here: bool, act: impl FnOnce() -> R) {
    if here {
        act();
        leave(NOT_RUN);
    }
}

fn leave(code: c_int) -> ! {
    // SAFETY: ends this copy, and leaves to the original what is to be done at its end.
    unsafe { libc::_exit(code) }
}

fn made(pid: pid_t) -> io::Result<pid_t> {
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// For a child; -1: any.
fn wait(pid: pid_t) -> io::Result<()> {
    // SAFETY: nobody wants the status.
    let pid = unsafe { libc::waitpid(pid, null_mut(), 0) };
    let ended_ns = now_ns();
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    tell("waited", pid, own_pid(), ended_ns);
    Ok(())
}

fn own_pid() -> pid_t {
    // SAFETY: takes nothing.
    unsafe { libc::getpid() }
}

fn parent_pid() -> pid_t {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() }
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

/// In one write, without an allocation and without a lock.
fn tell(event: &str, pid: pid_t, parent: pid_t, at_ns: u128) {
    let mut line = [0_u8; 128];
    let mut rest = &mut line[..];
    let fits = writeln!(rest, "{event} {pid} {parent} {at_ns}");
    let length = 128 - rest.len();
    // SAFETY: so many bytes of the line are written.
    let written = unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), length) };
    if fits.is_err() || usize::try_from(written) != Ok(length) {
        leave(NOT_RUN);
    }
}
