//! Processes of the host, field by field: what a third-party collector was told, against `/proc` and the test's own clocks.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use namespan_integration::attribute::{Value, has};
use namespan_integration::namespan::{Namespan, shipped};
use namespan_integration::needs::{Need, met};
use namespan_integration::process::code;
use namespan_integration::program::{Program, Ran, count, exec_of, exit_of, ran};
use namespan_integration::rotel::Rotel;
use namespan_integration::sink::{Record, Sink};
use namespan_integration::time::{boot_unix_ns, iso_ms};
use namespan_integration::{cgroup, host};

const INFO: i32 = 9;
const WARN: i32 = 13;
const INVALID_UTF8: &[u8] = b"\xff\xfe\x80caf\xc3";

#[test]
fn every_field_of_a_host_process_is_in_the_collector_over_grpc() {
    every_field_is_in_the_collector("grpc");
}

#[test]
fn every_field_of_a_host_process_is_in_the_collector_over_http_protobuf() {
    every_field_is_in_the_collector("http/protobuf");
}

#[test]
fn every_field_of_a_host_process_is_in_the_collector_over_http_json() {
    every_field_is_in_the_collector("http/json");
}

fn every_field_is_in_the_collector(protocol: &str) {
    if !met(&[Need::Namespan, Need::Rotel]) {
        return;
    }
    let sink = Sink::start();
    let rotel = Rotel::start(&sink);
    let endpoint = rotel.endpoint(protocol);
    let namespan = Namespan::run(&["--console", "none", "--protocol", protocol, "--endpoint", &endpoint]);

    let program = Program::new();
    let ls = program.run("ls", [OsStr::new("-d"), OsStr::new(""), OsStr::from_bytes(INVALID_UTF8)]);
    let exit_7 = program.run("sh", ["-c", "exit 7"]);
    let mut sleeper = program.start("sleep", &["600"]);
    let alive = Alive::of(sleeper.id().into());
    sleeper.kill().unwrap();
    let killed = code(sleeper.wait().unwrap());

    let summary = namespan.stop().shipped_all().summary;
    let all = rotel.delivered(&sink, summary.exported);
    let ours = program.of(&all);
    assert_eq!(count(ours.iter().copied()), (3, 3));

    for record in &ours {
        around(record, &program);
    }
    let exec = exec_of(&ours, ls.pid);
    let arguments = [b"ls", &b"-d"[..], b"", INVALID_UTF8];
    assert_eq!(exec.get("process.command_args").list().iter().map(Value::raw).collect::<Vec<_>>(), arguments);
    assert_eq!(exec.get("process.command_args").list()[3], Value::Bytes(INVALID_UTF8.to_vec()));
    assert_eq!(*exec.get("process.args_count"), 4.into());
    assert_eq!(exec.body.text(), format!(r"exec {} -d  \xff\xfe\x80caf\xc3", program.path.display()));
    within(exec, &ls);
    within(exit_of(&ours, ls.pid), &ls);
    assert_ne!(code(ls.status), 0, "there is no such file");

    alive.check(exec_of(&ours, alive.pid));
    alive.check(exit_of(&ours, alive.pid));
    ended(exit_of(&ours, exit_7.pid), 7, WARN, "7");
    let signaled = exit_of(&ours, alive.pid);
    assert_eq!(killed, 137);
    ended(signaled, 137, WARN, "SIGKILL");
    assert_eq!(*signaled.get("namespan.process.exit.reason"), "signaled".into());
    assert_eq!(*signaled.get("namespan.process.exit.signal.number"), 9.into());
    assert_eq!(*signaled.get("namespan.process.exit.signal.name"), "SIGKILL".into());
    assert_eq!(*signaled.get("namespan.process.exit.core_dumped"), false.into());
}

/// What holds for each record of the program.
fn around(record: &Record, program: &Program) {
    let resource = &record.resource;
    assert_eq!(record.scope.name, "namespan.exec");
    assert!(!record.scope.version.is_empty());
    for url in [&record.scope.schema_url, &resource.schema_url] {
        assert_eq!(url, "https://opentelemetry.io/schemas/1.44.0");
    }
    has(
        &resource.attributes,
        "resource",
        &[
            ("host.name", host::nodename().as_str().into()),
            ("os.type", "linux".into()),
            ("os.version", rustix::system::uname().release().to_str().unwrap().into()),
            ("service.name", "unknown_service".into()),
            ("telemetry.distro.name", "namespan".into()),
            ("telemetry.distro.version", record.scope.version.as_str().into()),
        ],
    );
    if let Ok(id) = fs::read_to_string("/etc/machine-id") {
        assert_eq!(*record.of_resource("host.id"), id.trim().into());
    }
    #[cfg(target_arch = "x86_64")]
    assert_eq!(*record.of_resource("host.arch"), "amd64".into());
    for key in resource.attributes.keys() {
        assert!(!key.starts_with("process.") && !key.starts_with("container."), "{key} on the host's resource");
    }
    assert_eq!(record.dropped_attributes, 0);
    assert!(record.observed_ns >= record.time_ns, "observed before it happened");
    assert!(record.observed_ns - record.time_ns < 5_000_000_000, "observed late");

    let parent = i64::from(std::process::id());
    has(
        &record.attributes,
        &record.event,
        &[
            ("process.parent_pid", parent.into()),
            ("process.vpid", record.get("process.pid").clone()),
            ("process.executable.path", program.path.to_str().unwrap().into()),
            ("process.executable.name", program.name.as_str().into()),
            ("process.user.id", 0.into()),
            ("process.interactive", false.into()),
            ("namespan.container.attribution", "none".into()),
            ("namespan.process.comm", program.name.as_str().into()),
            ("namespan.process.group.id", 0.into()),
            ("namespan.process.start_type", "fork_exec".into()),
            ("namespan.uts.nodename", host::nodename().as_str().into()),
            ("namespan.cgroup.id", host::cgroup_id("self").into()),
        ],
    );
    for kind in host::NAMESPACES {
        let inode = record.get(&format!("namespan.namespace.{kind}.inode"));
        assert_eq!(*inode, host::namespace("self", kind).into(), "{kind}");
    }
    let cgroups = host::cgroups("self");
    assert!(cgroups.contains(&record.get("process.linux.cgroup").text().to_owned()), "{record:?} in {cgroups:?}");
    for absent in ["process.real_user.id", "process.saved_user.id", "process.command_line", "namespan.tty.name"] {
        assert_eq!(*record.get(absent), Value::Empty, "{absent}");
    }
    if record.is_exec() {
        assert_eq!(record.severity, INFO);
        assert_eq!(record.get("process.command_args").list()[0], *record.get("process.command"));
        assert_eq!(*record.get("error.type"), Value::Empty);
    } else {
        assert_eq!(iso_ms(record.get("process.exit.time").text()), ms(record.time_ns));
        let Value::Double(seconds) = record.get("namespan.process.duration") else { panic!("{record:?}") };
        assert!((0.0..60.0).contains(seconds), "{seconds} s");
    }
}

fn ended(record: &Record, code: i64, severity: i32, error: &str) {
    assert_eq!(*record.get("process.exit.code"), code.into());
    assert_eq!(*record.get("error.type"), error.into());
    assert_eq!(record.severity, severity);
}

/// It happened between two clock readings of the test, and so did the fork, as far as 10 ms tell.
fn within(record: &Record, ran: &Ran) {
    assert!((ran.before_ns..=ran.after_ns).contains(&record.time_ns), "{} not in {ran:?}", record.time_ns);
    let created = iso_ms(record.get("process.creation.time").text());
    assert!((ms(ran.before_ns) - 15..=ms(ran.after_ns)).contains(&created), "created {created}, {ran:?}");
}

fn ms(ns: u64) -> i64 {
    (ns / 1_000_000).cast_signed()
}

/// What `/proc` says of a process while it lives.
struct Alive {
    pid: i64,
    created_ms: i64,
    group: Value,
    session: Value,
    vpid: i64,
    cgroups: Vec<String>,
}

impl Alive {
    fn of(pid: i64) -> Self {
        // What init's children inherit unless somebody makes a session or group: nobody leads those.
        let leader = |field| match host::stat(pid, field) {
            0 => Value::Empty,
            leader => leader.into(),
        };
        Self {
            pid,
            created_ms: ms(boot_unix_ns()) + host::start_since_boot_ms(pid),
            group: leader(5),
            session: leader(6),
            vpid: host::vpid(pid),
            cgroups: host::cgroups(&pid.to_string()),
        }
    }

    fn check(&self, record: &Record) {
        let created = iso_ms(record.get("process.creation.time").text());
        // Both are cut to 10 ms, at different ends of the conversion.
        assert!((created - self.created_ms).abs() <= 11, "{created} and {}", self.created_ms);
        assert_eq!(*record.get("process.group_leader.pid"), self.group);
        assert_eq!(*record.get("process.session_leader.pid"), self.session);
        assert_eq!(*record.get("process.vpid"), self.vpid.into());
        assert!(self.cgroups.contains(&record.get("process.linux.cgroup").text().to_owned()));
    }
}

#[test]
fn effective_real_and_saved_users_are_told_apart() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    chown(&program.path, Some(54_321), Some(54_322)).unwrap();
    fs::set_permissions(&program.path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mut setuid = 0;
    let records = shipped(&[], || setuid = program.run("true", [""; 0]).pid);
    let ours = program.of(&records);
    has(
        &exec_of(&ours, setuid).attributes,
        "set-user-id exec",
        &[
            ("process.user.id", 54_321.into()),
            ("process.real_user.id", 0.into()),
            ("namespan.process.group.id", 54_322.into()),
            ("namespan.process.real_group.id", 0.into()),
        ],
    );
}

#[test]
fn a_process_of_a_systemd_unit_is_told_as_that_unit_s() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let name = format!("nstest-{}", std::process::id());
    // As systemd makes them.
    let units = [
        (format!("system.slice/{name}@7.service"), format!("{name}@7.service"), "", name.as_str()),
        (format!("user.slice/{name}.scope"), format!("{name}.scope"), "", "unknown_service"),
        (
            format!("user.slice/user-{0}.slice/user@{0}.service/app.slice/{name}.service", 64_999),
            "user@64999.service".to_owned(),
            &*format!("{name}.service"),
            "unknown_service",
        ),
    ];
    let mut pids = Vec::new();
    let records = shipped(&["--comm", &program.name], || {
        for (path, ..) in &units {
            let folder = cgroup::unified().join(path);
            fs::create_dir_all(&folder).unwrap();
            let mut command = Command::new(&program.path);
            let script = format!("echo 0 > {}/cgroup.procs; exit 0", folder.display());
            pids.push(ran(command.arg0("sh").args(["-c", &script])).pid);
            cgroup::remove(path);
        }
    });
    cgroup::remove("user.slice/user-64999.slice");
    let ours = program.of(&records);
    for (pid, (_, unit, user_unit, service)) in pids.iter().zip(&units) {
        let exit = exit_of(&ours, *pid);
        assert_eq!(*exit.get("namespan.systemd.unit"), unit.as_str().into());
        let told = exit.get("namespan.systemd.user_unit");
        assert_eq!(*told, if user_unit.is_empty() { Value::Empty } else { (*user_unit).into() });
        assert_eq!(*exit.of_resource("service.name"), (*service).into(), "{unit}");
        assert_eq!(*exit.get("namespan.container.attribution"), "none".into());
    }
}

#[test]
fn a_script_is_told_from_its_interpreter() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    fs::write(&program.path, "#!/bin/busybox sh\nexit 3\n").unwrap();
    let mut script = 0;
    let records = shipped(&[], || script = ran(&mut Command::new(&program.path)).pid);
    let ours = program.of(&records);
    let path = program.path.to_str().unwrap();
    for record in [exec_of(&ours, script), exit_of(&ours, script)] {
        let interpreter = fs::canonicalize("/bin/busybox").unwrap();
        has(
            &record.attributes,
            &record.event,
            &[
                ("process.executable.path", interpreter.to_str().unwrap().into()),
                ("namespan.process.script.path", path.into()),
            ],
        );
    }
    let exec = exec_of(&ours, script);
    assert_eq!(*exec.get("process.command_args"), ["/bin/busybox", "sh", path].into());
    ended(exit_of(&ours, script), 3, WARN, "3");
}

#[test]
fn failed_execs_are_told_with_their_errno_if_they_are_asked_for() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let absent = program.directory().join("absent");
    let forbidden = program.directory().join("forbidden");
    fs::write(&forbidden, "").unwrap();
    let fail = || {
        for path in [&absent, &forbidden] {
            assert!(Command::new(path).spawn().is_err());
        }
        program.run_times(1);
    };
    let asked_for = |path: &Path, records: &[Record]| {
        let path: Value = path.to_str().unwrap().into();
        records.iter().filter(|record| *record.get("process.executable.path") == path).cloned().collect::<Vec<_>>()
    };

    let records = shipped(&["--failed"], fail);
    for (path, error) in [(&absent, "ENOENT"), (&forbidden, "EACCES")] {
        let found = asked_for(path, &records);
        let failed: Vec<_> = found.iter().filter(|record| record.is_exec()).collect();
        assert_eq!((failed.len(), found.len()), (1, 1), "{found:#?}");
        assert_eq!(failed[0].severity, WARN);
        has(
            &failed[0].attributes,
            "failed exec",
            &[
                ("error.type", error.into()),
                ("process.parent_pid", i64::from(std::process::id()).into()),
                ("process.executable.name", path.file_name().unwrap().to_str().unwrap().into()),
            ],
        );
    }
    assert_eq!(count(program.of(&records)), (1, 1));

    let records = shipped(&[], fail);
    assert!(asked_for(&absent, &records).is_empty() && asked_for(&forbidden, &records).is_empty());
}

#[test]
fn filters_by_user_comm_and_path_deliver_exactly_what_they_say() {
    if !met(&[Need::Namespan]) {
        return;
    }
    let (wanted, other) = (Program::new(), Program::new());
    let act = || {
        wanted.run_times(3);
        other.run_times(2);
        for uid in [54_321, 54_321, 54_323] {
            assert!(ran(wanted.command("true").uid(uid)).status.success());
        }
    };
    // Nothing else on the host may come: not only ours are counted.
    let all = |records: &[Record]| count(records);

    let records = shipped(&["--uid", "54321"], act);
    assert_eq!(all(&records), (2, 2));
    assert!(records.iter().all(|record| *record.get("process.user.id") == 54_321.into()));
    assert_eq!(all(&shipped(&["--uid", "54321", "--uid", "54323"], act)), (3, 3));

    assert_eq!(all(&shipped(&["--comm", &wanted.name], act)), (6, 6));
    assert_eq!(all(&shipped(&["--comm", &wanted.name, "--comm", &other.name], act)), (8, 8));

    let directory = wanted.directory().to_str().unwrap();
    let records = shipped(&["--path", directory], act);
    assert_eq!(all(&records), (6, 6));
    assert_eq!(wanted.of(&records).len(), 12);
    assert_eq!(all(&shipped(&["--path", directory, "--uid", "54323"], act)), (1, 1));
    assert_eq!(all(&shipped(&["--path", directory, "--no-exit"], act)), (6, 0));
}

#[test]
fn a_storm_of_20_000_execs_loses_nothing() {
    const EACH: usize = 10_000;
    if !met(&[Need::Namespan]) {
        return;
    }
    let program = Program::new();
    let sink = Sink::start();
    let namespan = Namespan::run(&["--console", "none", "--endpoint", &sink.endpoint()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| program.run_times(EACH));
        }
    });
    let finished = namespan.stop();
    let records = sink.records();
    let summary = &finished.summary;
    assert_eq!(summary.seen, summary.exported + summary.rejected + summary.dropped, "{summary:?}");
    assert_eq!(records.len() as u64, summary.exported);
    let (execs, exits) = count(program.of(&records));
    // Whatever is missing must have been counted: delivered + lost = triggered.
    let missing = 4 * EACH - execs - exits;
    assert!(missing as u64 <= summary.dropped, "{execs} execs and {exits} exits delivered, {summary:?}");
    assert_eq!((execs, exits, summary.dropped), (2 * EACH, 2 * EACH, 0), "{summary:?}");
}
