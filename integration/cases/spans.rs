//! Lifetimes as spans: the tree that they form, their names and times, and how they end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::host;
use namespan_integration::namespan::traced;
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, ran};
use namespan_integration::sink::Record;
use namespan_integration::span::{Code, Span, name_of, names, span_of, started_by};
use namespan_integration::strace;
use namespan_integration::watched::poll;
use namespan_integration::workload::Account;

const MAKEFILE: &str = "\
all: program
\t./program && test -x program
\t-./program fail
program: main.o one.o
\tgcc -o $@ main.o one.o
%.o: %.c
\tgcc -c $<
";

fn processes(arguments: &[&str]) -> Account {
    let account = Account::of(Command::new(env!("CARGO_BIN_EXE_nstest-processes")).args(arguments));
    assert!(account.status.success(), "{account:?}");
    account
}

/// What it says, and what Namespan does.
fn traced_processes(arguments: &[&str]) -> (Account, Vec<Record>, Vec<Span>) {
    let mut account = None;
    let (records, spans) = traced(&[], || account = Some(processes(arguments)));
    (account.unwrap(), records, spans)
}

/// The pid of a shell that has run this.
fn sh(script: &str) -> i64 {
    ran(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        .pid
}

/// Records of a pid.
fn of(records: &[Record], pid: i64) -> Vec<&Record> {
    records.iter().filter(|record| *record.get("process.pid") == pid.into()).collect()
}

#[test]
fn the_spans_of_a_build_are_the_tree_that_strace_has_seen() {
    if !met(&[Need::Namespan, Need::Program("strace"), Need::Program("make"), Need::Program("gcc")]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("Makefile"), MAKEFILE).unwrap();
    fs::write(file("one.c"), "int one(void) { return 1; }\n").unwrap();
    fs::write(file("main.c"), "int one(void); int main(int argc, char **argv) { return argc > 1 ? 3 : one() - 1; }\n")
        .unwrap();
    let log = file("log");
    let mut strace_pid = 0;
    let (_, spans) = traced(&[], || {
        let mut build = strace::command(&log);
        build.args(["make", "-j2"]).current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        // Of `make integration`.
        build.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
        let ran = ran(&mut build);
        assert!(ran.status.success(), "{}", ran.status);
        strace_pid = ran.pid;
    });

    let tree = strace::tree(&fs::read_to_string(log).unwrap());
    let name = |path: &Path| name_of(directory.path().join(path).to_str().unwrap());
    // Pid, that of the parent, name, code.
    let mut expected: BTreeSet<_> = tree
        .iter()
        .map(|process| {
            let parent = process.parent.unwrap_or(strace_pid);
            (process.pid, Some(parent), name(&process.path), process.exit_code)
        })
        .collect();
    // make; three drivers, each with two below; the linker below one of those; the program, and a shell with the program.
    assert!(expected.len() >= 13, "strace has seen too little: {tree:#?}");
    assert_eq!(expected.iter().filter(|(_, _, name, _)| name == "program").count(), 2);
    expected.insert((strace_pid, None, name_of("/usr/bin/strace"), 0));

    let root = span_of(&spans, strace_pid);
    root.assert_root("unknown_parent");
    let ours: Vec<_> = spans.iter().filter(|span| span.trace_id == root.trace_id).collect();
    let pids: BTreeMap<_, _> = ours.iter().map(|span| (span.span_id.as_str(), span.pid())).collect();
    let found: BTreeSet<_> = ours
        .iter()
        .map(|span| {
            let parent = pids.get(span.parent_span_id.as_str()).copied();
            (span.pid(), parent, span.name.clone(), span.get("process.exit.code").int())
        })
        .collect();
    assert_eq!(found, expected);
    for span in &ours {
        let code = span.get("process.exit.code").int();
        span.assert_exited(code, (code != 0).then_some(code.to_string()).as_deref());
        assert!(root.start_ns <= span.start_ns && span.end_ns <= root.end_ns, "{span:#?}");
    }
    let failed: Vec<_> = ours.iter().filter(|span| span.status.code == Code::Error).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!((failed[0].name.as_str(), failed[0].get("error.type")), ("program", &"3".into()));
}

#[test]
fn the_commands_of_pipelines_and_of_subshells_are_children_of_the_shell() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut shell = 0;
    let (records, spans) = traced(&[], || {
        shell = sh("/bin/cat /etc/passwd | /usr/bin/sort | /usr/bin/head -1; (/bin/true; (/bin/false; :); :); exit 0");
    });
    let parent = span_of(&spans, shell);
    parent.assert_root("unknown_parent");
    assert_eq!(parent.name, name_of("/bin/sh"));
    let children: Vec<_> = spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect();
    let mut found = names(&children);
    found.sort_unstable();
    let mut expected = ["/bin/cat", "/usr/bin/sort", "/usr/bin/head", "/bin/true", "/bin/false"].map(name_of).to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    for child in children {
        child.assert_child_of(parent);
    }
    // The subshells have executed nothing: they have no spans, and end as parts of the shell.
    let forks: Vec<_> = records
        .iter()
        .filter(|record| record.is_exit() && record.span_id == parent.span_id)
        .map(|record| record.get("process.pid").int())
        .filter(|pid| *pid != shell)
        .collect();
    assert_eq!(forks.len(), 2, "{forks:?}");
    for pid in forks {
        let [exit] = of(&records, pid)[..] else { panic!("{pid} has an exit only") };
        assert_eq!((&exit.trace_id, exit.flags), (&parent.trace_id, parent.trace_flags()));
        assert!(spans.iter().all(|span| span.pid() != pid), "{pid}");
    }
}

#[test]
fn a_chain_of_execs_is_one_span_with_the_name_of_the_last() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut shell = 0;
    let (records, spans) = traced(&[], || shell = sh(r#"exec /bin/sh -c "exec /bin/false""#));
    let span = span_of(&spans, shell);
    assert_eq!(span.name, name_of("/bin/false"));
    assert_eq!(*span.get("process.executable.path"), fs::canonicalize("/bin/false").unwrap().to_str().unwrap().into());
    assert_eq!(*span.get("process.command_args"), ["/bin/false"].into());
    span.assert_exited(1, Some("1"));
    let told = of(&records, shell);
    assert_eq!(told.iter().filter(|record| record.is_exec()).count(), 3);
    assert_eq!(told.len(), 4);
    for record in told {
        assert_eq!((&record.trace_id, &record.span_id), (&span.trace_id, &span.span_id));
    }
}

#[test]
fn an_orphan_belongs_to_whoever_has_adopted_it_before_its_exec() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let tool = env!("CARGO_BIN_EXE_nstest-processes");
    let (account, _, spans) = traced_processes(&["adopt", tool, "orphan", "/bin/true"]);
    let orphan = account.only("orphan");
    assert_eq!(orphan.parent, account.pid, "{account:?}");
    let adopter = span_of(&spans, account.pid);
    let mother = span_of(&spans, account.only("exec").pid);
    mother.assert_child_of(adopter);
    let child = span_of(&spans, orphan.pid);
    child.assert_child_of(adopter);
    assert_eq!(*child.get("process.parent_pid"), account.pid.into());

    let (account, _, spans) = traced_processes(&["orphan", "/bin/true"]);
    let orphan = account.only("orphan");
    let child = span_of(&spans, orphan.pid);
    assert_eq!(*child.get("process.parent_pid"), orphan.parent.into());
    // Whoever takes orphans here was there before Namespan.
    child.assert_root("unknown_parent");
    assert_ne!(child.trace_id, span_of(&spans, account.pid).trace_id);
}

#[test]
fn a_child_may_outlive_its_parent() {
    if !met(&[Need::Namespan]) {
        return;
    }
    // The shell stays until the child runs: it would be another's child when it execs.
    let directory = tempfile::tempdir().unwrap();
    let script =
        r#"/bin/sh -c ': > "$0"; /bin/sleep 0.3; exit 0' "$0" & while [ ! -e "$0" ]; do :; done; echo $!; exit 0"#;
    let (mut shell, mut sleeper) = (0, 0);
    let (_, spans) = traced(&[], || {
        let mut command = Command::new("/bin/sh");
        let child = command
            .args(["-c", script])
            .arg(directory.path().join("runs"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        shell = child.id().into();
        let stdout = child.wait_with_output().unwrap().stdout;
        sleeper = String::from_utf8(stdout).unwrap().trim().parse().unwrap();
        assert!(poll(PATIENCE, || host::has_ended(sleeper).then_some(())).is_some());
    });
    let (parent, child) = (span_of(&spans, shell), span_of(&spans, sleeper));
    child.assert_child_of(parent);
    assert!(child.end_ns > parent.end_ns, "{child:#?}");
    child.assert_exited(0, None);
}

#[test]
fn however_a_child_is_made_it_hangs_below_the_process_that_made_it() {
    if !met(&[Need::Namespan]) {
        return;
    }
    for kind in ["run", "vfork", "in-thread"] {
        let (account, _, spans) = traced_processes(&[kind, "/bin/false"]);
        let child = span_of(&spans, account.only("exec").pid);
        let parent = span_of(&spans, account.pid);
        parent.assert_root("unknown_parent");
        parent.assert_exited(0, None);
        child.assert_child_of(parent);
        child.assert_exited(1, Some("1"));
        assert_eq!(
            (parent.name.as_str(), child.name.as_str()),
            ("nstest-processes", &*name_of("/bin/false")),
            "{kind}"
        );
    }
}

#[test]
fn a_process_whose_thread_executes_something_stays_one_span() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (account, records, spans) = traced_processes(&["exec-in-thread", "/bin/true"]);
    let pid = account.pid;
    let span = span_of(&spans, pid);
    assert_eq!(span.name, name_of("/bin/true"));
    span.assert_exited(0, None);
    let told = of(&records, pid);
    assert_eq!(told.iter().filter(|record| record.is_exec()).count(), 2);
    assert!(told.iter().all(|record| record.span_id == span.span_id), "{told:#?}");
}

#[test]
fn processes_that_have_had_the_same_pid_have_spans_of_their_own() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (account, _, spans) = traced_processes(&["twice", "/bin/true"]);
    let [first, second] = account.all("exec")[..] else { panic!("{account:?}") };
    assert_eq!(first.pid, second.pid);
    let children = started_by(&spans, account.pid);
    let [one, other] = children[..] else { panic!("{children:#?}") };
    assert_eq!((one.pid(), other.pid()), (first.pid, first.pid));
    assert_ne!(one.span_id, other.span_id);
    assert!(one.end_ns <= other.start_ns);
    for child in children {
        child.assert_child_of(span_of(&spans, account.pid));
    }
}

#[test]
fn a_killed_process_is_an_error_with_its_signal() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (mut killed, mut terminated) = (0, 0);
    let (_, spans) = traced(&[], || {
        killed = sh("kill -KILL $$");
        terminated = sh("kill -TERM $$");
    });
    let span = span_of(&spans, killed);
    span.assert_killed(9, "SIGKILL");
    assert_eq!(*span.get("process.exit.code"), 137.into());
    span_of(&spans, terminated).assert_killed(15, "SIGTERM");
}

#[test]
fn a_code_that_says_no_is_no_error_of_the_programs_that_say_no_so() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let script = "/bin/grep -q x /dev/null; /bin/grep -q x /nonexistent; /usr/bin/diff /dev/null /etc/passwd; \
                  /usr/bin/test a = b; /bin/busybox grep -q x /dev/null; /bin/false; /bin/busybox false; exit 1";
    let mut shell = 0;
    let (_, spans) = traced(&[], || shell = sh(script));
    let children = started_by(&spans, shell);
    let expected = [
        (name_of("/bin/grep"), 1, None),
        (name_of("/bin/grep"), 2, Some("2")),
        (name_of("/usr/bin/diff"), 1, None),
        (name_of("/usr/bin/test"), 1, None),
        ("busybox grep".to_owned(), 1, None),
        (name_of("/bin/false"), 1, Some("1")),
        ("busybox false".to_owned(), 1, Some("1")),
    ];
    assert_eq!(names(&children), expected.each_ref().map(|(name, _, _)| name.as_str()));
    for (child, (_, code, error)) in children.iter().zip(expected) {
        child.assert_exited(code, error);
    }
    span_of(&spans, shell).assert_exited(1, Some("1"));
}

#[test]
fn a_span_begins_and_ends_when_its_process_does() {
    const TIMES: usize = 10;
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut accounts = Vec::new();
    let (_, spans) = traced(&[], || {
        accounts.extend((0..TIMES).map(|_| processes(&["run", "/bin/sleep", "0.2"])));
    });
    // The workload may have to wait for a processor between its reading and what it has read the clock for.
    let (mut late, mut early) = (u64::MAX, u64::MAX);
    for account in &accounts {
        let (exec, waited) = (account.only("exec"), account.only("waited"));
        let span: &Span = span_of(&spans, exec.pid);
        assert!(exec.at_ns <= span.start_ns && span.end_ns <= waited.at_ns, "{account:?}, {span:#?}");
        assert!(span.end_ns - span.start_ns >= 200_000_000, "{span:#?}");
        late = late.min(span.start_ns - exec.at_ns);
        early = early.min(waited.at_ns - span.end_ns);
    }
    assert!(late < 1_000_000 && early < 1_000_000, "begins {late} ns after the exec, ends {early} ns before the wait");
}

#[test]
fn of_many_arguments_a_span_has_the_first_64_and_at_most_4_kib() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let many: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    let long: Vec<_> = (0..10).map(|number| format!("{number}{}", "x".repeat(999))).collect();
    let (mut of_many, mut of_long) = (0, 0);
    let (records, spans) = traced(&[], || {
        of_many = program.run("true", &many).pid;
        of_long = program.run("true", &long).pid;
    });
    let arguments = |pid| -> Vec<_> {
        let span = span_of(&spans, pid);
        span.get("process.command_args").list().iter().map(Value::text).collect()
    };
    let given = |given: &[String]| -> Vec<_> { [&["true".to_owned()], given].concat() };

    assert_eq!(arguments(of_many), given(&many)[..64]);
    assert_eq!(*span_of(&spans, of_many).get("process.args_count"), 101.into());
    let kept = arguments(of_long);
    let bytes: usize = kept.iter().map(|argument| argument.len()).sum();
    assert!((3 << 10..=4 << 10).contains(&bytes), "{bytes} bytes kept");
    let given = given(&long);
    // The last one may be cut itself.
    let (last, whole) = kept.split_last().unwrap();
    assert_eq!(*whole, given[..whole.len()]);
    assert!(given[whole.len()].starts_with(last.trim_end_matches('…')), "{last}");
    assert_eq!(*span_of(&spans, of_long).get("process.args_count"), 11.into());
    // The records have them all.
    for (pid, count) in [(of_many, 101), (of_long, 11)] {
        let exec = of(&records, pid).into_iter().find(|record| record.is_exec()).unwrap();
        assert_eq!(exec.get("process.command_args").list().len(), count);
    }
}
