//! Processes of ours to be told of.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::watch::slowness;

pub const BUSYBOX: &str = "/bin/busybox";

/// A text that nobody else on this machine has among its arguments.
pub fn token() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ktest-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A program that runs until it is dropped.
pub struct Live {
    child: Child,
}

impl Live {
    /// Whatever leads to `busybox sh -c 'read x' TOKEN` in the end: it waits on its standard input.
    pub fn start(command: &mut Command) -> Self {
        Self { child: command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it end by itself: its standard input ends.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may have ended already, and then that is what we want.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// What waits on its standard input under the name `path`.
pub fn waits(path: &str, token: &str) -> [String; 5] {
    [path, "sh", "-c", "read x", token].map(str::to_owned)
}

/// A shell script with positional parameters.
pub fn shell(script: &str, parameters: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-e", "-c", script, "sh"]).args(parameters);
    command
}

/// A program to its end; its process id.
#[track_caller]
pub fn run(command: &mut Command) -> u32 {
    let mut child = command.stderr(Stdio::inherit()).spawn().unwrap();
    let pid = child.id();
    let status = child.wait().unwrap();
    assert!(status.success(), "{command:?}: {status}");
    pid
}

/// `busybox true` under the name `path`, with more arguments.
#[track_caller]
pub fn run_true(path: impl AsRef<OsStr>, token: &str) -> u32 {
    // Which applet is meant is in the first argument's name.
    run(Command::new(path).arg0(BUSYBOX).args(["true", token]))
}

/// Where the unified hierarchy is mounted, if it is.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| path.into())
    })
}

/// The v1 hierarchies that are told of, in the order of preference, as far as this machine has them.
pub fn cgroup1() -> Option<(&'static str, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounted = |controller: &str| {
        mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let is_it = fields[2] == "cgroup" && fields[3].split(',').any(|option| option == controller);
            is_it.then(|| PathBuf::from(fields[1]))
        })
    };
    let controller = "memory";
    mounted(controller).map(|path| (controller, path))
}

/// A cgroup of ours, with all above it that was made for it; gone when dropped.
pub struct Cgroup {
    made: Vec<PathBuf>,
}

impl Cgroup {
    pub fn new(mount: &Path, below: &str) -> Self {
        let mut made = Vec::new();
        let mut path = mount.to_owned();
        for component in below.split('/') {
            path.push(component);
            if !path.exists() {
                fs::create_dir(&path).unwrap();
                made.push(path.clone());
            }
        }
        Self { made }
    }

    /// Runs a program in it.
    #[track_caller]
    pub fn run_true(&self, token: &str) -> u32 {
        run(&mut self.command(&[BUSYBOX, "true", token]))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let procs = self.made.last().unwrap().join("cgroup.procs");
        let mut command = Command::new("/bin/sh");
        command.args(["-e", "-c", r#"echo $$ > "$0"; exec "$@""#]).arg(procs).args(arguments);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10) * slowness();
        while let Some(path) = self.made.pop() {
            // Busy until the kernel is done with the processes that were in it.
            while fs::remove_dir(&path).is_err() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }
}
