//! Programs that no shell can play: the test's executable itself, started with the name of one in its environment.
//!
//! They run before `main`, in the first and only thread, as it is the process's threads that they are about.

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use namespan::attach::attach;
use namespan::config::Probes;
use namespan::decode;

use crate::uprobes;
use crate::watch::slowness;

const NAME: &str = "NAMESPAN_KERNEL_TEST_HELPER";

/// The command that starts a helper.
pub fn helper(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(NAME, name).args(arguments).stdin(Stdio::null());
    command
}

// SAFETY: the loader calls what stands in this section, after std's own entry there that keeps the arguments.
#[unsafe(link_section = ".init_array")]
#[used]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    let Ok(name) = std::env::var(NAME) else { return };
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let status = match (name.as_str(), &*arguments) {
        ("exit", _) => 0,
        ("build_programs", [folder]) => build_programs(folder),
        ("all_threads_exit", [threads, _token]) => all_threads_exit(threads.parse().unwrap()),
        ("one_thread_ends_all", [threads, _token]) => one_thread_ends_all(threads.parse().unwrap()),
        ("first_thread_exits_first", [code]) => first_thread_exits_first(code.parse().unwrap()),
        ("exec_in_thread", [path, token]) => exec_in_thread(path, token),
        ("exec_file", [path, arguments @ ..]) => exec_file(path, arguments),
        ("exec_memfd", [path, arguments @ ..]) => exec_memfd(path, arguments),
        ("execveat_fd", [path, arguments @ ..]) => {
            let file = fs::File::open(path).unwrap();
            execveat(file.as_raw_fd(), "", arguments, libc::AT_EMPTY_PATH)
        }
        ("exec_self", [token]) => exec_self(token),
        ("exec_without_arguments", [path]) => exec_without_arguments(path),
        ("execveat", [path]) => execveat(libc::AT_FDCWD, path, &[path], 0),
        ("mounts_tracefs", _) => mounts_tracefs(),
        ("not_itself", [token]) => not_itself(token),
        _ => 101,
    };
    // SAFETY: ends the process; nothing is left to be done.
    unsafe { libc::_exit(status) }
}

/// For machines without a compiler.
fn build_programs(folder: &str) -> c_int {
    uprobes::build_all(Path::new(folder));
    0
}

/// Ends the calling thread only, as `pthread_exit` does in the end.
fn exit_thread(code: c_int) -> ! {
    // SAFETY: the thread owns nothing that others use.
    unsafe { libc::syscall(libc::SYS_exit, code) };
    unreachable!()
}

/// Every thread by itself, at the same time; the process's status is that of one of them.
fn all_threads_exit(threads: c_int) -> ! {
    at_once(threads, |thread| exit_thread(110 + thread))
}

/// As [`all_threads_exit`], but one takes the others with it.
fn one_thread_ends_all(threads: c_int) -> ! {
    at_once(threads, |thread| {
        if thread == 1 {
            // SAFETY: ends the process, which is what it is for.
            unsafe { libc::_exit(200) };
        }
        exit_thread(110 + thread)
    })
}

/// Runs it in so many threads, the first one included; they start as close together as they can.
fn at_once(threads: c_int, run: fn(c_int) -> !) -> ! {
    static READY: AtomicI32 = AtomicI32::new(0);
    let start = move |thread| {
        READY.fetch_add(1, Ordering::SeqCst);
        while READY.load(Ordering::SeqCst) < threads {
            std::thread::yield_now();
        }
        run(thread)
    };
    // Whoever leaves it last frees it, and comes late.
    std::hint::black_box(vec![1_u8; 2 << 20].leak());
    for thread in 1..threads {
        std::thread::spawn(move || start(thread));
    }
    start(0)
}

/// The first thread ends with `code`; when it is a zombie, the other one ends.
fn first_thread_exits_first(code: c_int) -> ! {
    std::thread::spawn(|| {
        while !fs::read_to_string("/proc/self/stat").unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        exit_thread(7)
    });
    exit_thread(code)
}

fn exec_in_thread(path: &str, token: &str) -> ! {
    let (path, token) = (path.to_owned(), token.to_owned());
    let exec = move || panic!("{}", Command::new(path).args(["true", &token]).env_remove(NAME).exec());
    std::thread::spawn(exec);
    loop {
        std::thread::park();
    }
}

/// A file that has lost its name by the time it is executed.
fn exec_file(path: &str, arguments: &[&str]) -> c_int {
    let file = fs::File::open(path).unwrap();
    fs::remove_file(path).unwrap();
    execveat(file.as_raw_fd(), "", arguments, libc::AT_EMPTY_PATH)
}

/// A copy in memory.
fn exec_memfd(path: &str, arguments: &[&str]) -> c_int {
    // SAFETY: the name ends with NUL.
    let fd = unsafe { libc::memfd_create(c"ktest".as_ptr(), libc::MFD_CLOEXEC) };
    fs::write(format!("/proc/self/fd/{fd}"), fs::read(path).unwrap()).unwrap();
    execveat(fd, "", arguments, libc::AT_EMPTY_PATH)
}

fn exec_self(token: &str) -> c_int {
    let error = Command::new("/proc/self/exe").arg(token).env(NAME, "exit").exec();
    error.raw_os_error().unwrap()
}

fn exec_without_arguments(path: &str) -> c_int {
    let path = CString::new(path).unwrap();
    let none = [std::ptr::null::<c_char>()];
    // SAFETY: a path that ends with NUL, lists that end with null.
    unsafe { libc::execve(path.as_ptr(), none.as_ptr(), none.as_ptr()) };
    1
}

/// The errno, if it returns.
fn execveat(fd: c_int, path: &str, arguments: &[&str], flags: c_int) -> c_int {
    let path = CString::new(path).unwrap();
    let arguments: Vec<_> = arguments.iter().map(|argument| CString::new(*argument).unwrap()).collect();
    let argv: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).chain([std::ptr::null()]).collect();
    let none = [std::ptr::null::<c_char>()];
    let flags = c_long::from(flags);
    // SAFETY: a path that ends with NUL, lists that end with null.
    unsafe { libc::syscall(libc::SYS_execveat, fd, path.as_ptr(), argv.as_ptr(), none.as_ptr(), flags) };
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// In a mount namespace of its own, which has lost its tracefs.
fn mounts_tracefs() -> c_int {
    const PATH: &CStr = c"/sys/kernel/tracing";
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: paths that end with NUL, and null where nothing is told.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        assert_eq!(libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
        while libc::umount2(PATH.as_ptr(), libc::MNT_DETACH) == 0 {}
        while libc::umount2(c"/sys/kernel/debug".as_ptr(), libc::MNT_DETACH) == 0 {}
    }
    let there = || fs::exists("/sys/kernel/tracing/events/syscalls").unwrap();
    assert!(!there());
    let attached = attach(&Probes { failed_execs: true, ..Probes::default() }).map(drop);
    assert!(there());
    attached.unwrap();
    0
}

/// Attaches, and leaves watching to a child while it execs and exits itself. The child prints what it was told of us.
fn not_itself(token: &str) -> c_int {
    let (attached, mut ring, _) = attach(&Probes::default()).unwrap();
    let ourselves = std::process::id();
    // SAFETY: this process has one thread.
    if unsafe { libc::fork() } != 0 {
        let exec = Command::new("/bin/busybox").args(["true", token]).exec();
        return exec.raw_os_error().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20) * slowness();
    while std::os::unix::process::parent_id() == ourselves && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let last = Command::new("/bin/busybox").args(["true", "last"]).env_remove(NAME).status();
    assert!(last.unwrap().success());
    drop(attached);
    let (mut of_us, mut others) = (0, 0);
    while let Some(record) = ring.next() {
        if decode::event(&record).unwrap().process.tgid == ourselves { of_us += 1 } else { others += 1 }
    }
    let said = format!("{of_us} of us, {}\n", if others > 1 { "more of others" } else { "too few of others" });
    std::io::stdout().write_all(said.as_bytes()).unwrap();
    0
}

/// All that a helper and its children print.
pub fn output(command: &mut Command) -> String {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(child.wait().unwrap().success());
    printed
}
