//! With which capabilities what works, by a binary that has those and no others; and what it gives up by itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use namespan_integration::PATIENCE;
use namespan_integration::attribute::Value;
use namespan_integration::image::{public_directory, succeed};
use namespan_integration::namespan::{Finished, Namespan, command};
use namespan_integration::needs::{Need, met, namespan};
use namespan_integration::process::Process;
use namespan_integration::program::{Program, count};
use namespan_integration::sink::{Record, lines};

/// Capabilities as `/proc/PID/status` has them: `CAP_BPF`, `CAP_PERFMON`, `CAP_SYS_PTRACE`, `CAP_DAC_READ_SEARCH`.
const KEPT: u64 = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2;
/// Whoever else is on this machine is not asked, and what runtimes leave on disk is not read.
const ALONE: [&str; 9] = [
    "--runtime",
    "docker=none",
    "--runtime",
    "containerd=none",
    "--runtime",
    "cri-o=none",
    "--runtime",
    "podman=none",
    "--no-runtime-files",
];

fn ready() -> bool {
    met(&[Need::Namespan, Need::Program("setpriv"), Need::Program("setcap")])
}

/// Whose binary has these capabilities, by the names of setpriv, and no others.
enum Who<'a> {
    Root(&'a [&'a str]),
    /// By the file's.
    Nobody(&'a FileCapabilities),
}

/// A copy of the binary that everybody may run.
struct FileCapabilities {
    _folder: tempfile::TempDir,
    binary: PathBuf,
}

impl FileCapabilities {
    fn of(capabilities: &[&str]) -> Self {
        let folder = public_directory();
        let binary = folder.path().join("namespan");
        fs::copy(namespan(), &binary).unwrap();
        let names: Vec<_> = capabilities.iter().map(|name| format!("cap_{name}")).collect();
        succeed(Command::new("setcap").arg(format!("{}+ep", names.join(","))).arg(&binary));
        Self { _folder: folder, binary }
    }
}

impl Who<'_> {
    fn command(&self) -> Command {
        let plain = command();
        let binary = plain.get_program();
        let mut setpriv = Command::new("setpriv");
        // Nothing of whoever runs the tests.
        for (name, _) in plain.get_envs() {
            setpriv.env_remove(name);
        }
        match self {
            Self::Root(capabilities) => {
                let kept: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
                let set = [vec!["-all".to_owned()], kept].concat().join(",");
                setpriv.arg(format!("--bounding-set={set}")).arg("--inh-caps=-all").arg(binary);
            }
            Self::Nobody(file) => {
                setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&file.binary);
            }
        }
        setpriv
    }

    fn run(&self, arguments: &[&str]) -> Namespan {
        let mut command = self.command();
        command.args(["run", "--console", "jsonl", "--log-level", "debug"]).args(ALONE).args(arguments);
        Namespan::start(command)
    }

    /// Which does not come to watch.
    fn refused(&self) -> String {
        let Output { status, stderr, .. } = self.command().arg("run").args(ALONE).output().unwrap();
        assert!(!status.success());
        String::from_utf8(stderr).unwrap()
    }
}

/// Two processes of ours are told of, from exec to exit; all that was told.
fn tells(namespan: Namespan) -> (Finished, Vec<Record>) {
    let program = Program::new();
    program.run("true", [""; 0]);
    program.run("true", [""; 0]);
    let finished = namespan.stop().without_loss();
    let (records, _) = lines(&finished.stdout);
    let events = records.iter().filter(|record| record.is_exec() || record.is_exit());
    assert_eq!(count(program.of(events)), (2, 2));
    (finished, records)
}

/// Names of what the record of the start says is missing.
fn lacking(records: &[Record]) -> Vec<&str> {
    let told: Vec<_> = records.iter().filter(|record| record.event == "namespan.status").collect();
    assert!(told.len() <= 1, "{told:?}");
    let Some(record) = told.first() else { return Vec::new() };
    let names: Vec<_> = record.get("namespan.status.lacking").list().iter().map(Value::text).collect();
    for key in ["namespan.status.reasons", "namespan.status.remedies"] {
        let texts = record.get(key).list();
        assert_eq!(texts.len(), names.len());
        assert!(texts.iter().all(|text| !text.text().is_empty()), "{record:?}");
    }
    names
}

#[test]
fn root_with_two_capabilities_tells_of_execs_and_exits_and_of_what_it_lacks() {
    if !ready() {
        return;
    }
    let (finished, records) = tells(Who::Root(&["bpf", "perfmon"]).run(&[]));
    assert_eq!(lacking(&records), ["capabilities"]);
    assert!(finished.stderr.contains("CAP_SYS_PTRACE"), "{}", finished.stderr);
}

#[test]
fn a_plain_user_with_the_capabilities_of_the_unit_lacks_nothing() {
    if !ready() {
        return;
    }
    let file = FileCapabilities::of(&["bpf", "perfmon", "sys_ptrace", "dac_read_search"]);
    // Where tracefs is not mounted, nobody but root can.
    succeed(command().args(["run", "--failed", "--for", "1ms", "--console", "none"]).args(ALONE));
    let (_, records) = tells(Who::Nobody(&file).run(&["--failed"]));
    assert_eq!(lacking(&records), [""; 0]);
}

#[test]
fn without_the_capability_to_read_tracefs_all_but_failed_execs_is_told() {
    if !ready() {
        return;
    }
    let file = FileCapabilities::of(&["bpf", "perfmon"]);
    let (finished, records) = tells(Who::Nobody(&file).run(&["--failed"]));
    assert_eq!(lacking(&records), ["capabilities", "failed_execs"]);
    assert!(finished.stderr.contains("grant CAP_DAC_READ_SEARCH"), "{}", finished.stderr);
}

#[test]
fn who_may_not_load_programs_is_told_which_capability_is_missing_and_what_to_do() {
    if !ready() {
        return;
    }
    for (capabilities, missing) in [
        (&[][..], "CAP_BPF and CAP_PERFMON are missing: run as root, or grant it"),
        (&["bpf"], "CAP_PERFMON is missing: run as root, or grant it"),
        (&["perfmon"], "CAP_BPF is missing: run as root, or grant it"),
    ] {
        let said = Who::Root(capabilities).refused();
        assert!(said.contains(missing), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_port_below_1024_takes_a_capability_that_is_kept() {
    if !ready() {
        return;
    }
    let listen = ["--listen", "127.0.0.1:981"];
    let allowed = Who::Root(&["bpf", "perfmon", "sys_ptrace", "net_bind_service"]).run(&listen);
    let (_, records) = tells(allowed);
    assert_eq!(lacking(&records), [""; 0]);
    let refused = Who::Root(&["bpf", "perfmon"]).command().arg("run").args(ALONE).args(listen).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("127.0.0.1:981") && said.contains("Permission denied"), "{said}");
}

#[test]
fn uprobes_take_two_capabilities_more() {
    if !ready() || !met(&[Need::Program("bash")]) {
        return;
    }
    // It has capabilities that Namespan lacks, as a container's processes do.
    let mut bash = Bash::start();
    let probe = format!("pid={}:/bin/bash:execute_command", bash.0.id());
    let probing = |capabilities: &[&str]| {
        let mut command = Who::Root(capabilities).command();
        command.args(["probe", "--console", "jsonl"]).args(ALONE).arg(&probe);
        Namespan::start(command)
    };
    let probed = probing(&["bpf", "perfmon", "sys_ptrace", "sys_admin"]);
    probed.wait_for_log("probing");
    bash.run();
    probed.wait_for_stdout("a hit", |printed| printed.contains("namespan.uprobe.hit").then_some(()));
    assert!(probed.stop().without_loss().summary.hits.unwrap().told > 0);
    let refused = probing(&["bpf", "perfmon"]);
    refused.wait_for_log("can't be probed");
    bash.run();
    assert_eq!(refused.stop().summary.hits.unwrap().triggered, 0);
}

/// A shell that runs a command for each line.
struct Bash(Child);

impl Bash {
    fn start() -> Self {
        Self(Command::new("/bin/bash").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn run(&mut self) {
        use std::io::Write as _;
        self.0.stdin.as_mut().unwrap().write_all(b"true\n").unwrap();
    }
}

impl Drop for Bash {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What the kernel says of each thread of a process.
fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

fn mask(status: &str, name: &str) -> u64 {
    u64::from_str_radix(field(status, name), 16).unwrap()
}

#[test]
fn every_thread_keeps_only_what_is_needed_and_cannot_get_more() {
    if !ready() {
        return;
    }
    let spool = tempfile::tempdir().unwrap();
    let spool = spool.path().to_str().unwrap();
    let settings =
        ["--endpoint", "http://127.0.0.1:9", "--spool", spool, "--listen", "127.0.0.1:0", "--log-level", "debug"];
    let run = |further: &[&str]| {
        let mut command = command();
        command.arg("run").args(ALONE).args(settings).args(further);
        let process = Process::start(command);
        process.wait_for_line("watching", PATIENCE);
        process
    };
    let confined = run(&[]);
    let statuses = threads(confined.pid.as_raw_pid());
    assert!(statuses.len() > 1, "there are threads beside the first");
    for status in &statuses {
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(mask(status, set) & !KEPT, 0, "{status}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(mask(status, set), 0, "{status}");
        }
        assert_eq!((field(status, "NoNewPrivs"), field(status, "Seccomp")), ("1", "2"), "{status}");
    }
    let own = fs::read_to_string("/proc/self/status").unwrap();
    // Which takes a capability to give up.
    if mask(&own, "CapEff") >> 8 & 1 == 1 {
        assert!(statuses.iter().all(|status| mask(status, "CapBnd") & !KEPT == 0), "{statuses:?}");
    }
    let log = confined
        .wait_for("its log", PATIENCE, |state| state.stderr().contains("sandbox: given up").then(|| state.stderr()));
    for word in ["capability=\"CAP_SYS_PTRACE\"", "sandbox: system calls that are refused"] {
        assert!(log.contains(word), "{word} in {log}");
    }
    confined.signal(rustix::process::Signal::KILL);
    drop(confined.finish(PATIENCE));

    let free = run(&["--no-sandbox"]);
    for status in &threads(free.pid.as_raw_pid()) {
        assert_eq!(mask(status, "CapEff"), mask(&own, "CapEff"));
        assert_eq!(field(status, "NoNewPrivs"), field(&own, "NoNewPrivs"));
    }
    free.signal(rustix::process::Signal::KILL);
    drop(free.finish(PATIENCE));
}
