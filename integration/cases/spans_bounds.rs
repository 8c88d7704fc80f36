//! Where traces begin: what no span hangs below, and what is told of those that live too long.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use namespan_integration::namespan::{ship, traced};
use namespan_integration::needs::{Need, met};
use namespan_integration::program::{Program, Shell, exec_of, exit_of, ran};
use namespan_integration::sink::Record;
use namespan_integration::span::{Span, assert_consistent, name_of, names, only_child, span_of, started_by};
use namespan_integration::watched::poll;
use namespan_integration::workload::Account;
use namespan_integration::{PATIENCE, host};

#[test]
fn what_an_init_starts_begins_a_trace_and_names_it() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut outside = 0;
    let (_, spans) = traced(&[], || {
        let mut unshare = Command::new("/usr/bin/unshare");
        unshare.args(["--pid", "--fork", "/bin/sh", "-c", "/bin/true; /bin/sh -c '/bin/false; exit 0'; exit 0"]);
        outside = ran(&mut unshare).pid;
    });
    let unshare = span_of(&spans, outside);
    let init = only_child(&spans, outside);
    init.assert_child_of(unshare);
    assert_eq!(*init.get("process.vpid"), 1.into());
    let children = started_by(&spans, init.pid());
    assert_eq!(names(&children), [name_of("/bin/true"), name_of("/bin/sh")]);
    for child in &children {
        child.assert_spawned_by(init, "namespace_init");
    }
    assert_ne!(children[0].trace_id, children[1].trace_id);
    let grandchild = only_child(&spans, children[1].pid());
    grandchild.assert_child_of(children[1]);
}

#[test]
fn what_a_daemon_of_the_list_starts_begins_a_trace_and_names_it() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("crond");
    fs::copy(env!("CARGO_BIN_EXE_nstest-processes"), &daemon).unwrap();
    let mut account = None;
    let (_, spans) = traced(&[], || {
        account = Some(Account::of(Command::new(&daemon).args(["run", "/bin/sh", "-c", "/bin/true; exit 0"])));
    });
    let account = account.unwrap();
    let daemon = span_of(&spans, account.pid);
    assert_eq!(daemon.name, "crond");
    let job = span_of(&spans, account.only("exec").pid);
    job.assert_spawned_by(daemon, "executable");
    let command = only_child(&spans, job.pid());
    command.assert_child_of(job);
}

/// A shell that leads the session of a terminal: the spans of whoever gave it that, of itself, and of its two commands.
fn in_a_terminal(job_control: &str, check: impl FnOnce(&Span, &Span, &[&Span], &Span)) {
    let mut terminal = 0;
    let (_, spans) = traced(&[], || {
        let mut script = Command::new("script");
        let commands = format!("{job_control} /bin/true; /bin/sh -c '/bin/false; exit 0'; exit 0");
        script.args(["--quiet", "--return", "--command", &commands]);
        script.arg("/dev/null").env("SHELL", "/bin/sh").stdin(Stdio::null()).stdout(Stdio::null());
        let ran = ran(&mut script);
        assert!(ran.status.success(), "{}", ran.status);
        terminal = ran.pid;
    });
    let terminal = span_of(&spans, terminal);
    let shell = only_child(&spans, terminal.pid());
    let commands = started_by(&spans, shell.pid());
    assert_eq!(names(&commands), [name_of("/bin/true"), name_of("/bin/sh")]);
    check(terminal, shell, &commands, only_child(&spans, commands[1].pid()));
}

#[test]
fn each_command_that_is_typed_into_a_terminal_is_a_trace() {
    if !met(&[Need::Namespan, Need::Program("script")]) {
        return;
    }
    // What a shell does by itself when it is typed into.
    in_a_terminal("set -m;", |terminal, shell, commands, inner| {
        shell.assert_spawned_by(terminal, "terminal");
        for command in commands {
            command.assert_spawned_by(shell, "terminal");
        }
        inner.assert_child_of(commands[1]);
    });
}

#[test]
fn a_script_that_leads_the_session_of_a_terminal_is_one_trace() {
    if !met(&[Need::Namespan, Need::Program("script")]) {
        return;
    }
    in_a_terminal("", |terminal, shell, commands, inner| {
        shell.assert_spawned_by(terminal, "terminal");
        for command in commands {
            command.assert_child_of(shell);
        }
        inner.assert_child_of(commands[1]);
    });
}

#[test]
fn what_ran_before_has_no_span_and_its_children_begin_traces() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let mut shell = Shell::start(&mut Command::new("/bin/sh"));
    let pid = shell.pid;
    let (_, spans) = traced(&[], || {
        shell.run("/bin/true");
        shell.run("/bin/false");
        assert!(shell.end().success());
    });
    assert!(spans.iter().all(|span| span.pid() != pid));
    let children = started_by(&spans, pid);
    assert_eq!(names(&children), [name_of("/bin/true"), name_of("/bin/false")]);
    for child in &children {
        child.assert_root("unknown_parent");
        assert_eq!(child.links, []);
    }
    assert_ne!(children[0].trace_id, children[1].trace_id);
}

#[test]
fn a_process_that_lives_too_long_ends_early_if_it_has_children_and_is_left_out_if_not() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let settings = directory.path().join("namespan.yaml");
    fs::write(&settings, "spans:\n  max_duration: 1s\n").unwrap();
    let program = Program::new();
    let (mut shell_pid, mut sleeper) = (0, 0);
    let (finished, records, spans) = ship(&["--config", settings.to_str().unwrap()], &[], || {
        let mut shell = Shell::start(&mut Command::new("/bin/sh"));
        shell_pid = shell.pid;
        shell.run("/bin/true");
        sleeper = program.run("sleep", ["1.5"]).pid;
        shell.run("/bin/false");
        assert!(shell.end().success());
    });
    assert!(finished.shipped_all().status.success());
    assert_consistent(&records, &spans);

    let shell = span_of(&spans, shell_pid);
    shell.assert_unfinished();
    assert_eq!(shell.end_ns - shell.start_ns, 1_000_000_000);
    let children = started_by(&spans, shell_pid);
    assert_eq!(names(&children), [name_of("/bin/true"), name_of("/bin/false")]);
    children[0].assert_child_of(shell);
    children[1].assert_spawned_by(shell, "long_lived");
    assert!(spans.iter().all(|span| span.pid() != sleeper));
    let ours = program.of(&records);
    assert_eq!(exec_of(&ours, sleeper).span_id, exit_of(&ours, sleeper).span_id);
}

#[test]
fn of_what_lives_through_a_restart_records_agree_and_a_span_is_told_once_for_its_children() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let mut sleeper = None;
    let mut shell = None;
    let (first_records, first) = traced(&[], || {
        sleeper = Some(program.start("sleep", &["600"]));
        let shell = shell.insert(Shell::start(&mut Command::new("/bin/sh")));
        shell.run("/bin/true");
    });
    let (mut sleeper, mut shell) = (sleeper.unwrap(), shell.unwrap());
    let (sleeper_pid, shell_pid) = (i64::from(sleeper.id()), shell.pid);
    let (second_records, second) = traced(&[], || {
        shell.run("/bin/false");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(shell.end().success());
    });

    for pid in [sleeper_pid, shell_pid] {
        let is = |record: &&Record| *record.get("process.pid") == pid.into();
        let exec = first_records.iter().find(|record| is(record)).unwrap();
        let exit = second_records.iter().find(|record| is(record)).unwrap();
        assert!(exec.is_exec() && exit.is_exit());
        assert_eq!(exec.span_id, exit.span_id, "{exec:#?}\n{exit:#?}");
        assert!(second.iter().all(|span| span.pid() != pid), "told again");
    }
    assert!(first.iter().all(|span| span.pid() != sleeper_pid), "nothing hangs below it");
    let parent = span_of(&first, shell_pid);
    parent.assert_root("unknown_parent");
    parent.assert_unfinished();
    let child = only_child(&first, shell_pid);
    child.assert_child_of(parent);
    let child = only_child(&second, shell_pid);
    child.assert_root("unknown_parent");
    assert_eq!(child.links, []);
    let ids: BTreeSet<_> = first.iter().chain(&second).map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), first.len() + second.len());
}

/// A cgroup like a container's, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(id: &str) -> Self {
        let path = host::cgroup2_mount().join(id);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that is just ending still counts.
        let removed = poll(PATIENCE, || fs::remove_dir(&self.0).ok());
        assert!(removed.is_some() || std::thread::panicking(), "{} is in use", self.0.display());
    }
}

#[test]
fn no_record_of_a_container_overtakes_another_while_docker_says_nothing() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Somebody who takes every question and answers none.
    let socket = directory.path().join("docker.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let config = directory.path().join("namespan.yaml");
    for (room, id) in [("8MiB", "a".repeat(64)), ("16KiB", "b".repeat(64))] {
        fs::write(&config, format!("enrich: {{wait_bytes: {room}}}\n")).unwrap();
        let cgroup = Cgroup::new(&id);
        let runtime = format!("docker={}", socket.display());
        let arguments = ["--runtime", &runtime, "--config", config.to_str().unwrap()];
        // For longer than a record waits.
        let script = r#"echo $$ > "$0/cgroup.procs"; end=$(($(date +%s) + 2))
            while [ $(date +%s) -lt $end ]; do /bin/sh -c '/bin/true; exit 0'; done"#;
        let mut shell = 0;
        let (_, spans) = traced(&arguments, || {
            let ran = ran(Command::new("/bin/sh").args(["-c", script]).arg(&cgroup.0));
            assert!(ran.status.success(), "{}", ran.status);
            shell = ran.pid;
        });
        let is_shell = |span: &&&Span| span.name == name_of("/bin/sh");
        let shells = started_by(&spans, shell);
        let shells: Vec<_> = shells.iter().filter(is_shell).collect();
        assert!(shells.len() > 50, "{}", shells.len());
        for inner in shells {
            assert_eq!(*inner.of_resource("container.id"), id.as_str().into(), "{inner:#?}");
            assert_eq!(*inner.get("namespan.container.attribution"), "cgroup_path".into(), "{inner:#?}");
            // The outer shell began on the host.
            assert_eq!(*inner.get("namespan.trace.boundary"), "container".into(), "{inner:#?}");
            only_child(&spans, inner.pid()).assert_child_of(inner);
        }
    }
}
