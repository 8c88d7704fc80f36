//! The log of `strace -f` in, the tree of processes that have executed something out: what somebody else saw.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One that has executed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    pub pid: i64,
    /// The nearest ancestor that had executed something when this did for the first time; `None`: not in the log.
    pub parent: Option<i64>,
    /// What it executed last, as it was asked for.
    pub path: PathBuf,
    pub execs: usize,
    /// As a shell tells it.
    pub exit_code: i64,
}

/// `strace` that writes this log; the program and its arguments are to follow.
#[must_use]
pub fn command(log: &Path) -> Command {
    let mut command = Command::new("strace");
    // Once quiet: nothing of who is attached, but how each ends.
    command.args(["-f", "-q", "-e", "trace=execve,execveat,clone,clone3,fork,vfork", "-o"]).arg(log).arg("--");
    command
}

/// All that have executed something, in the order in which they did.
#[must_use]
pub fn tree(log: &str) -> Vec<Traced> {
    let calls = calls(log);
    let mut families = Families::default();
    for call in &calls {
        if let What::Forked { child, thread, same_parent } = call.what {
            families.fork(call.tid, child, thread, same_parent);
        }
    }
    let mut traced: Vec<Traced> = Vec::new();
    for call in calls {
        let pid = families.process(call.tid);
        let known = traced.iter().position(|traced| traced.pid == pid);
        match (call.what, known) {
            (What::Executed(path), Some(known)) => {
                traced[known].execs += 1;
                traced[known].path = path;
            }
            (What::Executed(path), None) => {
                let parent = families.ancestors(pid).find(|ancestor| traced.iter().any(|one| one.pid == *ancestor));
                traced.push(Traced { pid, parent, path, execs: 1, exit_code: -1 });
            }
            // Of a process's threads the first is the last to be told of.
            (What::Ended(code), Some(known)) => traced[known].exit_code = code,
            (What::Forked { .. }, _) | (What::Ended(_), None) => {}
        }
    }
    traced
}

/// Who was made by whom.
#[derive(Default)]
struct Families {
    parents: HashMap<i64, i64>,
    /// Threads other than the first, with their processes.
    threads: HashMap<i64, i64>,
}

impl Families {
    fn process(&self, tid: i64) -> i64 {
        self.threads.get(&tid).copied().unwrap_or(tid)
    }

    fn fork(&mut self, tid: i64, child: i64, thread: bool, same_parent: bool) {
        let process = self.process(tid);
        if thread {
            self.threads.insert(child, process);
        } else if !same_parent {
            self.parents.insert(child, process);
        } else if let Some(parent) = self.parents.get(&process) {
            self.parents.insert(child, *parent);
        }
    }

    fn ancestors(&self, pid: i64) -> impl Iterator<Item = i64> {
        std::iter::successors(self.parents.get(&pid).copied(), |pid| self.parents.get(pid).copied())
    }
}

#[derive(Debug)]
struct Call {
    tid: i64,
    what: What,
}

#[derive(Debug)]
enum What {
    Forked { child: i64, thread: bool, same_parent: bool },
    Executed(PathBuf),
    Ended(i64),
}

/// Calls that succeeded, when they did, and ends.
fn calls(log: &str) -> Vec<Call> {
    let mut unfinished: HashMap<i64, &str> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (tid, event) = line.split_once(char::is_whitespace).unwrap_or_else(|| panic!("{line:?}"));
        let (tid, event) = (tid.parse().unwrap(), event.trim_start());
        if event.starts_with("--- ") {
            continue;
        }
        if let Some(end) = event.strip_prefix("+++ ") {
            calls.extend(ended(end).map(|code| Call { tid, what: What::Ended(code) }));
        } else if let Some((asked, _)) = event.split_once(" <unfinished ...>") {
            unfinished.insert(tid, asked);
        } else if let Some((asked, becomes)) = event.split_once(" <pid changed to ") {
            // A thread takes the place of the first one.
            let (first, _) = becomes.split_once(' ').unwrap();
            unfinished.insert(first.parse().unwrap(), asked);
        } else if event.starts_with("<... ") {
            let asked = unfinished.remove(&tid).unwrap_or_else(|| panic!("{line:?} was never begun"));
            calls.extend(finished(asked, event).map(|what| Call { tid, what }));
        } else {
            calls.extend(finished(event, event).map(|what| Call { tid, what }));
        }
    }
    assert!(unfinished.is_empty(), "{unfinished:?}");
    calls
}

/// From what was asked for and the line with the answer; `None`: it failed.
fn finished(asked: &str, answer: &str) -> Option<What> {
    let (_, result) = answer.rsplit_once(" = ").unwrap_or_else(|| panic!("{answer:?} has no result"));
    let result: i64 = result.split_whitespace().next()?.parse().ok().filter(|result| *result >= 0)?;
    let (name, arguments) = asked.split_once('(').unwrap_or_else(|| panic!("{asked:?} is no call"));
    if name.starts_with("exec") {
        let path = arguments.split('"').nth(1).unwrap_or_else(|| panic!("{asked:?} has no path"));
        return Some(What::Executed(path.into()));
    }
    let has = |flag: &str| arguments.split(['|', '=', ',', ' ', '}']).any(|word| word == flag);
    Some(What::Forked { child: result, thread: has("CLONE_THREAD"), same_parent: has("CLONE_PARENT") })
}

/// Of `exited with 3 +++` and of `killed by SIGKILL +++`; another thread's exec is no end.
fn ended(end: &str) -> Option<i64> {
    if let Some(code) = end.strip_prefix("exited with ") {
        return code.strip_suffix(" +++").unwrap().parse().ok();
    }
    let signal = end.strip_prefix("killed by ")?.split_whitespace().next()?;
    let number = match signal {
        "SIGKILL" => 9,
        "SIGSEGV" => 11,
        "SIGPIPE" => 13,
        "SIGTERM" => 15,
        other => panic!("which number has {other}?"),
    };
    Some(128 + number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{Need, met};

    fn traced(pid: i64, parent: Option<i64>, path: &str, execs: usize, exit_code: i64) -> Traced {
        Traced { pid, parent, path: path.into(), execs, exit_code }
    }

    #[test]
    fn calls_that_are_interrupted_by_others_are_put_together() {
        // Of `sh -c '(/bin/true; /bin/false); exit 0'`, with a search of PATH added.
        let log = r#"18284 execve("/usr/bin/sh", ["sh", "-c", "(/bin/true; /bin/false); exit 0"], 0x7fff91e4e7c0 /* 39 vars */) = 0
18284 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f13069f9a10) = 18285
18285 vfork( <unfinished ...>
18286 execve("/usr/local/bin/true", ["true"], 0x55a8dc22bb98 /* 39 vars */) = -1 ENOENT (No such file or directory)
18286 execve("/bin/true", ["/bin/true"], 0x55a8dc22bb98 /* 39 vars */ <unfinished ...>
18285 <... vfork resumed>)              = 18286
18286 <... execve resumed>)             = 0
18286 +++ exited with 0 +++
18285 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=18286, si_uid=0, si_status=0, si_utime=0, si_stime=0} ---
18285 execve("/bin/false", ["/bin/false"], 0x55a8dc22bb98 /* 39 vars */) = 0
18285 +++ exited with 1 +++
18284 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=18285, si_uid=0, si_status=1, si_utime=0, si_stime=0} ---
18284 +++ killed by SIGKILL +++
"#;
        let expected = [
            traced(18284, None, "/usr/bin/sh", 1, 137),
            traced(18286, Some(18284), "/bin/true", 1, 0),
            traced(18285, Some(18284), "/bin/false", 1, 1),
        ];
        assert_eq!(tree(log), expected);
    }

    #[test]
    fn a_thread_that_executes_something_is_its_process() {
        let log = r#"23257 execve("/bin/tool", ["/bin/tool"], 0x7fff268bcbe0 /* 39 vars */) = 0
23257 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS, exit_signal=0, stack=0x7f, stack_size=0x1, tls=0x7f} => {parent_tid=[23258]}, 88) = 23258
23258 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x7f6311835000, stack_size=0x9000}, 88 <unfinished ...>
23259 execve("/bin/false", ["false"], 0x55a3249f3bd0 /* 42 vars */ <unfinished ...>
23258 <... clone3 resumed>)             = 23259
23259 <... execve resumed>)             = 0
23259 +++ exited with 1 +++
23258 execve("/bin/true", ["/bin/true"], 0x7fffb9d2da08 /* 39 vars */ <pid changed to 23257 ...>
23257 +++ superseded by execve in pid 23258 +++
23257 <... execve resumed>)             = 0
23257 +++ exited with 0 +++
"#;
        let expected = [traced(23257, None, "/bin/true", 2, 0), traced(23259, Some(23257), "/bin/false", 1, 1)];
        assert_eq!(tree(log), expected);
    }

    #[test]
    fn a_shell_is_seen_as_strace_writes_of_it_here() {
        if !met(&[Need::Program("strace")]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = "/bin/true | /bin/cat; (/bin/false; :); exec /bin/sh -c '/bin/true; exit 3'";
        let status = command(&log).args(["/bin/sh", "-c", script]).status().unwrap();
        assert_eq!(status.code(), Some(3));
        let tree = tree(&std::fs::read_to_string(log).unwrap());
        let shell = tree[0].pid;
        assert_eq!(tree[0], traced(shell, None, "/bin/sh", 2, 3));
        let mut children: Vec<_> = tree[1..].iter().map(|one| (one.path.to_str().unwrap(), one.exit_code)).collect();
        children.sort_unstable();
        assert_eq!(children, [("/bin/cat", 0), ("/bin/false", 1), ("/bin/true", 0), ("/bin/true", 0)]);
        assert!(tree[1..].iter().all(|one| one.parent == Some(shell) && one.execs == 1), "{tree:#?}");
    }
}
