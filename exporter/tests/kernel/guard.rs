//! The guard: what policies ask for is done before the program runs, to nobody else, and each decision is told and counted.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues, RingBuf, loaded_maps};
use namespan::clock::boot_ns;
use namespan::guard::counters::Counts;
use namespan::guard::decision::{Action, Decision, Hook, Origin, Outcome, decode};
use namespan::guard::load::{Guard, GuardError, Limits, Refusal, Tables, lsm};
use namespan::guard::persist::take_pinned;
use namespan_ebpf::guard_wire::{
    ARGS_MAX, CHECK_RECORDS, CHECK_ROOMS, Counter, Mask, OVERLAP_NS, Policy, Program, Scope, TextKey, action,
    dimension, origin, result,
};
use namespan_ebpf::wire::flag;
use tempfile::TempDir;

use crate::helpers::helper;
use crate::watch::{ready, slowness};
use crate::workload::{BUSYBOX, Cgroup, cgroup1, cgroup2, run, token};

/// A conjunction; what is empty is not asked for.
#[derive(Clone, Default)]
struct Rule {
    texts: Vec<(usize, Vec<String>)>,
    uids: Vec<u32>,
    interactive: Option<bool>,
    script: Option<bool>,
    origins: Vec<usize>,
    /// Not on the host, or not in containers.
    not_host: bool,
    not_containers: bool,
}

impl Rule {
    fn of(dimension: usize, texts: &[&str]) -> Self {
        Self::default().and(dimension, texts)
    }

    fn and(mut self, dimension: usize, texts: &[&str]) -> Self {
        self.texts.push((dimension, texts.iter().map(|text| (*text).to_owned()).collect()));
        self
    }
}

struct Asked {
    action: u8,
    matches: Vec<Rule>,
    exceptions: Vec<Rule>,
    budget: (u32, Duration),
}

fn asked(action: u8, matches: &[Rule]) -> Asked {
    Asked { action, matches: matches.to_vec(), exceptions: Vec::new(), budget: (0, Duration::ZERO) }
}

/// As a user's policies are made into tables.
fn tables(policies: &[Asked]) -> Tables {
    let mut tables = Tables::nothing(policies.iter().any(|policy| policy.action == action::DENY));
    let mut rules = Vec::new();
    for (place, policy) in policies.iter().enumerate() {
        let mut mask = |of: &[Rule]| {
            of.iter().fold(0, |mask, rule| {
                rules.push(rule.clone());
                mask | 1 << (rules.len() - 1)
            })
        };
        tables.settings.policies[place] = Policy {
            matches: mask(&policy.matches),
            exceptions: mask(&policy.exceptions),
            budget: policy.budget.0,
            action: policy.action,
            reserved: [0; 3],
            budget_window_ns: u64::try_from(policy.budget.1.as_nanos()).unwrap(),
        };
        tables.settings.policy_count += 1;
    }
    let settings = &mut tables.settings;
    (settings.enforces, settings.args_limit) = (1, 1024);
    let mut texts: HashMap<(usize, String), Mask> = HashMap::new();
    let mut uids: HashMap<u32, Mask> = HashMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let bit = 1 << index;
        for dimension in 0..dimension::COUNT {
            let asks = rule.texts.iter().filter(|(of, _)| *of == dimension).flat_map(|(_, texts)| texts);
            let mut any = bit;
            for text in asks {
                *texts.entry((dimension, text.clone())).or_default() |= bit;
                settings.prefix_text[dimension] |= if text.ends_with('*') { bit } else { 0 };
                any = 0;
                settings.asks |= 1 << dimension;
            }
            settings.any_text[dimension] |= any;
        }
        for uid in &rule.uids {
            *uids.entry(*uid).or_default() |= bit;
        }
        settings.any_uid |= if rule.uids.is_empty() { bit } else { 0 };
        for (with, both) in [(false, 0), (true, 1)] {
            settings.interactive[both] |= if rule.interactive.is_none_or(|asked| asked == with) { bit } else { 0 };
            settings.script[both] |= if rule.script.is_none_or(|asked| asked == with) { bit } else { 0 };
        }
        for from in 0..origin::COUNT {
            settings.origins[from] |= if rule.origins.is_empty() || rule.origins.contains(&from) { bit } else { 0 };
        }
        settings.host |= if rule.not_host { 0 } else { bit };
        settings.containers |= if rule.not_containers { 0 } else { bit };
    }
    for (dimension, text) in texts.keys() {
        let rules = texts.iter().filter(|((of, other), _)| {
            let prefix = other.strip_suffix('*').is_some_and(|prefix| text.trim_end_matches('*').starts_with(prefix));
            of == dimension && (other == text || prefix)
        });
        let (key, bits) = text_key(*dimension, text);
        tables.texts.push((key, bits, rules.fold(0, |mask, (_, rules)| mask | rules)));
    }
    tables.uids = uids.into_iter().collect();
    tables
}

fn text_key(dimension: usize, text: &str) -> (TextKey, u32) {
    let mut key = TextKey { dimension: u8::try_from(dimension).unwrap(), text: [0; 247] };
    let (bytes, nul) = text.strip_suffix('*').map_or((text, 1), |prefix| (prefix, 0));
    key.text[..bytes.len()].copy_from_slice(bytes.as_bytes());
    (key, u32::try_from((1 + bytes.len() + nul) * 8).unwrap())
}

/// The guard at work, a folder of programs, and what it has told.
struct Bench {
    guard: Guard,
    ring: RingBuf<MapData>,
    folder: TempDir,
}

struct Told(Vec<u8>);

impl Told {
    fn decision(&self) -> Decision<'_> {
        decode(&self.0).unwrap()
    }
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(BUSYBOX, folder.path().join("victim")).unwrap();
    folder
}

impl Bench {
    /// `None`: these tests can't run here.
    fn new(policies: impl FnOnce(&str) -> Vec<Asked>) -> Option<Self> {
        Self::with(Limits::default(), policies)
    }

    fn with(limits: Limits, policies: impl FnOnce(&str) -> Vec<Asked>) -> Option<Self> {
        if !ready() {
            return None;
        }
        let folder = folder();
        let (mut guard, ring) = Guard::load(&tables(&policies(folder.path().to_str().unwrap())), &limits).unwrap();
        guard.take_over(None).unwrap();
        guard.renew(u64::MAX).unwrap();
        Some(Self { guard, ring, folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn copy(&self, name: &str) -> String {
        let path = self.path(name);
        fs::copy(BUSYBOX, &path).unwrap();
        path
    }

    fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(record) = self.ring.next() {
            told.push(Told(record.to_vec()));
        }
        told
    }

    /// Whose ends must add up; so many execs were decided.
    #[track_caller]
    fn decided(&self, count: u64) -> Counts {
        let counts = counted(&self.guard);
        assert_eq!(counts.sum(Counter::Decided), count, "{counts:?}");
        counts
    }
}

/// When no program is in the middle of its counting.
fn counted(guard: &Guard) -> Counts {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let counts = guard.counters().unwrap();
        if counts.adds_up() {
            assert_eq!(counts.sum(Counter::Unreadable), 0, "{counts:?}");
            assert_eq!(Program::ALL.map(|program| counts.skipped(program)), [0; 2]);
            return counts;
        }
        assert!(Instant::now() < deadline, "{counts:?}");
        std::thread::yield_now();
    }
}

/// Touches a file as its first act; whether it did, and how it ended.
fn touch(command: &mut Command, marker: &str) -> (bool, ExitStatus) {
    let _absent = fs::remove_file(marker);
    let status = command.arg(marker).stdin(Stdio::null()).status().unwrap();
    (fs::exists(marker).unwrap(), status)
}

impl Bench {
    #[track_caller]
    fn is_killed(&self, command: &mut Command) {
        let (touched, status) = touch(command, &self.path("marker"));
        assert_eq!((touched, status.signal()), (false, Some(9)), "{command:?}");
    }

    #[track_caller]
    fn lives(&self, command: &mut Command) {
        let (touched, status) = touch(command, &self.path("marker"));
        assert!(touched && status.success(), "{command:?}: {status}");
    }
}

/// `touch` under whatever name.
fn victim(path: &str) -> Command {
    let mut command = Command::new(path);
    command.arg0("touch");
    command
}

#[test]
fn guard_kills_by_path_before_the_first_instruction() {
    let policies = |folder: &str| {
        vec![asked(
            action::KILL,
            &[Rule::of(dimension::PATH, &[&format!("{folder}/victim"), &format!("{folder}/pre*")])],
        )]
    };
    let Some(mut bench) = Bench::new(policies) else { return };
    bench.is_killed(&mut victim(&bench.path("victim")));
    bench.is_killed(&mut victim(&bench.copy("prefixed")));
    bench.is_killed(&mut victim(&bench.copy("pre")));
    bench.lives(&mut victim(&bench.copy("victims")));
    bench.lives(&mut victim(&bench.copy("VICTIM")));
    bench.lives(&mut victim(&bench.copy("pr")));
    let counts = bench.decided(3);
    assert_eq!((counts.result(0, result::KILLED), counts.of(Program::Exec, Counter::Told)), (3, 3));
    let told = bench.told();
    let decision = told[0].decision();
    assert_eq!(decision.path, bench.path("victim").as_bytes());
    assert_eq!((decision.intended, decision.outcome, decision.hook), (Action::Kill, Outcome::Killed, Hook::Exec));
    assert_eq!((decision.policy, decision.fired, decision.rules & 1), (0, 1, 1));
    assert_eq!(decision.parent_path, std::env::current_exe().unwrap().to_str().unwrap().as_bytes());
    assert_eq!(decision.args.iter().collect::<Vec<_>>(), [b"touch", bench.path("marker").as_bytes()]);
    assert_eq!((decision.process.parent_tgid, decision.process.flags), (std::process::id(), 0));
    assert_eq!(decision.ancestor.unwrap().tgid, std::process::id());
    assert_eq!(decision.container_cgroup_id, None);
}

#[test]
fn guard_matches_names_arguments_parents_and_users() {
    let policies = |folder: &str| {
        let below = format!("{folder}/*");
        let rule = |dimension, texts: &[&str]| Rule::of(dimension::PATH, &[&below]).and(dimension, texts);
        vec![
            asked(action::OBSERVE, &[rule(dimension::NAME, &["named", "like*"])]),
            asked(action::OBSERVE, &[rule(dimension::ARGV0, &["zeroth"])]),
            asked(action::OBSERVE, &[rule(dimension::ARGV1, &["first", "dir*"])]),
            asked(action::OBSERVE, &[rule(dimension::PARENT, &[&format!("{folder}/parent")])]),
            asked(action::OBSERVE, &[Rule { uids: vec![4242, 4243], ..Rule::of(dimension::PATH, &[&below]) }]),
        ]
    };
    let Some(mut bench) = Bench::new(policies) else { return };
    let victim = bench.path("victim");
    let mut fired = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), None);
        bench.told().iter().map(|told| told.decision().fired).fold(0, |all, fired| all | fired)
    };
    fs::copy(BUSYBOX, victim.replace("victim", "named")).unwrap();
    fs::copy(BUSYBOX, victim.replace("victim", "likely")).unwrap();
    assert_eq!(fired(Command::new(victim.replace("victim", "named")).arg0("true")), 1);
    assert_eq!(fired(Command::new(victim.replace("victim", "likely")).arg0("true")), 1);
    // Only what the kernel resolved has a name: an argument is a lie that anybody can tell.
    assert_eq!(fired(Command::new(&victim).arg0("named")), 0);
    for (zeroth, is) in [("zeroth", 2), ("-zeroth", 2), ("/a/b/zeroth", 2), ("/zeroth/b", 0), ("", 0), ("zeroths", 0)] {
        assert_eq!(fired(Command::new(&victim).arg0(zeroth)), is, "{zeroth}");
    }
    for (first, is) in [("first", 4), ("/x/first", 4), ("-first", 0), ("directory", 4), ("di", 0)] {
        assert_eq!(fired(Command::new(&victim).arg0("true").arg(first)), is, "{first}");
        assert_eq!(fired(Command::new(&victim).arg0("").arg(first)), is, "{first}");
        // A long argument before it hides nothing.
        for long in [32_763, 32_764, 32_765, 100_000] {
            let zeroth = format!("/{}/x", "x".repeat(long));
            assert_eq!(fired(Command::new(&victim).arg0(zeroth).arg(first)), is, "{first} {long}");
        }
    }
    // Nor does what stands before the last component, of whatever length.
    for slashes in [10, 505, 506, 507, 511, 512, 600, 4088, 4089, 4090, 4095, 4096, 32_768, 131_000] {
        let slashes = "/".repeat(slashes);
        assert_eq!(fired(Command::new(&victim).arg0(format!("{slashes}zeroth"))), 2, "{}", slashes.len());
        assert_eq!(fired(Command::new(&victim).arg0(format!("{slashes}zeroths"))), 0, "{}", slashes.len());
        assert_eq!(fired(Command::new(&victim).arg0("true").arg(format!("{slashes}first"))), 4, "{}", slashes.len());
        assert_eq!(fired(Command::new(&victim).arg0("true").arg(format!("{slashes}firsts"))), 0, "{}", slashes.len());
    }
    assert_eq!(fired(Command::new(&victim).arg0("true").args(["x", "first"])), 0);
    assert_eq!(fired(Command::new(&victim).arg0("true").args(["", "first"])), 0);
    assert_eq!(fired(Command::new(&victim).arg0("true")), 0);
    fs::copy(BUSYBOX, victim.replace("victim", "parent")).unwrap();
    let script = format!("{victim} true; {victim} true");
    let mut parent = Command::new(victim.replace("victim", "parent"));
    assert_eq!(fired(parent.arg0("sh").args(["-c", &script])), 8);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(PathBuf::from(&victim).parent().unwrap(), mode).unwrap();
    assert_eq!(fired(Command::new(&victim).arg0("true").uid(4243)), 16);
    assert_eq!(fired(Command::new(&victim).arg0("true").uid(4244)), 0);
}

#[test]
fn guard_matches_terminals_and_scripts() {
    let policies = |folder: &str| {
        let below = Rule::of(dimension::PATH, &[&format!("{folder}/*")]);
        let is = |interactive, script| Rule { interactive, script, ..below.clone() };
        vec![
            asked(action::OBSERVE, &[is(Some(true), None)]),
            asked(action::OBSERVE, &[is(Some(false), None)]),
            asked(action::OBSERVE, &[is(None, Some(true))]),
            asked(action::OBSERVE, &[is(None, Some(false))]),
        ]
    };
    let Some(mut bench) = Bench::new(policies) else { return };
    let victim = bench.path("victim");
    let detached = |command: &mut Command| {
        // SAFETY: a system call, which is all that may be done between fork and exec.
        unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into)) };
        run(command.stdin(Stdio::null()));
    };
    detached(Command::new(&victim).arg0("true"));
    assert_eq!(bench.told()[0].decision().fired, 0b1010);
    let script = bench.path("script");
    let victim = bench.copy("busybox");
    fs::write(&script, format!("#!{victim} sh\nexit 0\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    detached(&mut Command::new(&script));
    let told = bench.told();
    let decision = told[0].decision();
    assert_eq!((decision.fired, decision.path, decision.script), (0b110, victim.as_bytes(), script.as_bytes()));
    let (mut master, mut terminal) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: two descriptors of ours, and null where nothing is told.
    assert_eq!(unsafe { libc::openpty(&raw mut master, &raw mut terminal, none, none.cast(), none.cast()) }, 0);
    let mut command = Command::new(&victim);
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if libc::ioctl(terminal, libc::TIOCSCTTY, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    run(command.arg0("true").stdin(Stdio::null()));
    let told = bench.told();
    let decision = told[0].decision();
    assert_eq!(decision.fired, 0b1001);
    assert!(decision.tty.starts_with(b"pts/"));
}

#[test]
fn guard_compares_paths_after_the_kernel_has_resolved_them() {
    let policies = |folder: &str| {
        let of_itself = std::env::current_exe().unwrap();
        let paths = [&*format!("{folder}/victim"), of_itself.to_str().unwrap()];
        vec![asked(action::OBSERVE, &[Rule::of(dimension::PATH, &paths).and(dimension::ARGV1, &["ktest-*"])])]
    };
    let Some(mut bench) = Bench::new(policies) else { return };
    let (victim, folder) = (bench.path("victim"), bench.folder.path().to_owned());
    symlink(&victim, folder.join("soft")).unwrap();
    fs::hard_link(&victim, folder.join("hard")).unwrap();
    bench.copy("copied");
    let mut is = |command: &mut Command, matched: bool| {
        run(command.stdin(Stdio::null()));
        let told = bench.told();
        assert_eq!(!told.is_empty(), matched, "{command:?}");
    };
    let token = token();
    let mut as_true = |path: &str, matched| is(Command::new(path).arg0("true").arg(&token), matched);
    as_true(&victim, true);
    as_true(&format!("{}/./victim", folder.display()), true);
    as_true(folder.join("soft").to_str().unwrap(), true);
    // Another name of the file is another path, and so is a copy.
    as_true(folder.join("hard").to_str().unwrap(), false);
    as_true(folder.join("copied").to_str().unwrap(), false);
    is(Command::new("./victim").arg0("true").arg(&token).current_dir(&folder), true);
    is(&mut helper("exec_self", &[&token]), true);
    is(&mut helper("execveat_fd", &[&victim, "true", &token]), true);
    let bind = "touch bound; mount --bind victim bound; exec -a true ./bound $1";
    let bound = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", BUSYBOX, "sh", "-e", "-c", script, "sh", &token]).current_dir(&folder);
        command
    };
    is(&mut bound(bind), false);
    let over = "mount --bind copied victim; exec -a true ./victim $1";
    is(&mut bound(over), true);
}

#[test]
fn guard_tells_where_an_executable_comes_from() {
    let token = token();
    let Some(mut bench) = Bench::new(|folder| {
        vec![
            asked(
                action::KILL,
                &[Rule { origins: vec![origin::MEMFD, origin::DELETED], ..Rule::of(dimension::ARGV1, &[&token]) }],
            ),
            asked(
                action::OBSERVE,
                &[Rule::of(dimension::NAME, &["busybox-image", "busybox-changed", "busybox-mounted"])],
            ),
            asked(action::OBSERVE, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])]),
        ]
    }) else {
        return;
    };
    let ended = |command: &mut Command| command.stdin(Stdio::null()).status().unwrap().signal();
    assert_eq!(ended(&mut helper("exec_memfd", &[BUSYBOX, "true", &token])), Some(9));
    assert_eq!(bench.told()[0].decision().origin, Origin::Memfd);
    assert_eq!(ended(&mut helper("exec_file", &[&bench.copy("lost"), "true", &token])), Some(9));
    assert_eq!(bench.told()[0].decision().origin, Origin::Deleted);
    // A container's first process, and what it does.
    let script = r"mount -t tmpfs t t; mkdir t/l t/u t/w t/l/vol t/l/old t/l/proc; cp victim t/l/busybox-image
        cp victim t/l/busybox-changed; mount -t overlay -o lowerdir=t/l,upperdir=t/u,workdir=t/w o m
        cp m/busybox-changed m/x; mv m/x m/busybox-changed; mount -t tmpfs v m/vol; mkdir m/vol/old
        cp victim m/vol/busybox-mounted; cp victim m/vol/busybox-image; mount -t proc p m/proc; cd m; pivot_root . old; exec /busybox-image sh -e -c";
    let all = "for x in /busybox-image /busybox-changed /vol/busybox-mounted; do (exec -a true $x); done";
    let pivot = "b=/busybox-image; $b mount --rbind /vol /vol; cd /vol; $b pivot_root . old; exec /busybox-image true";
    fs::create_dir(bench.path("t")).unwrap();
    fs::create_dir(bench.path("m")).unwrap();
    for (acts, expected) in [
        (all, &[Origin::Image, Origin::Upper, Origin::Mount][..]),
        // Another root, where the workload can write, makes nothing an image: its own,
        ("/busybox-image chroot /vol /busybox-image true; exit", &[Origin::Mount]),
        // that of a PID namespace of its own,
        ("/busybox-image unshare -p -f /busybox-image chroot /vol /busybox-image true; exit", &[Origin::Mount]),
        (&format!("/busybox-image unshare -r -m -p -f /busybox-image sh -e -c '{pivot}'; exit"), &[Origin::Mount]),
        // the first process's,
        ("exec /busybox-image chroot /vol /busybox-image true", &[Origin::Mount]),
        // nor that of its user namespace's mounts.
        (&format!("exec /busybox-image unshare -r -m /busybox-image sh -e -c '{pivot}'"), &[Origin::Unknown]),
    ] {
        let mut command = Command::new("unshare");
        let command =
            command.args(["-m", "-p", "-f", BUSYBOX, "sh", "-e", "-c", &format!("{script} \"$1\""), "sh", acts]);
        run(command.current_dir(bench.folder.path()).stdin(Stdio::null()));
        let told = bench.told();
        let origins: Vec<_> = told.iter().map(|told| told.decision().origin).collect();
        assert_eq!(origins[..1], [Origin::Image], "{acts}");
        assert!(origins.ends_with(expected), "{acts}: {origins:?}");
    }
}

#[test]
fn guard_knows_no_image_of_a_container_in_the_host_s_pid_namespace() {
    let Some(mount) = cgroup2().or_else(|| cgroup1().map(|(_, mount)| mount)) else { return };
    let Some(mut bench) = Bench::new(|folder| {
        let rule = Rule { not_host: true, ..Rule::of(dimension::PATH, &[&format!("{folder}/victim")]) };
        vec![asked(action::KILL, &[Rule { origins: vec![origin::UNKNOWN], ..rule }])]
    }) else {
        return;
    };
    let cgroup = Cgroup::new(&mount, &format!("ktest/{}", container_id()));
    bench.is_killed(&mut contained(&cgroup, &bench.path("victim"), &bench.path("marker")));
    assert_eq!(bench.told()[0].decision().origin, Origin::Unknown);
}

#[test]
fn guard_lets_pass_what_is_excepted() {
    let Some(bench) = Bench::new(|folder| {
        let mut policy = asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/*")])]);
        policy.exceptions = vec![
            Rule::of(dimension::NAME, &["good"]),
            Rule::of(dimension::NAME, &["half"]).and(dimension::ARGV0, &["touched"]),
        ];
        vec![policy]
    }) else {
        return;
    };
    bench.is_killed(&mut victim(&bench.path("victim")));
    bench.lives(&mut victim(&bench.copy("good")));
    bench.is_killed(&mut victim(&bench.copy("half")));
    bench.decided(2);
}

#[test]
fn guard_lets_no_path_that_is_too_long_to_be_read_pass_for_another() {
    let Some(bench) = Bench::new(|folder| {
        let mut policy = asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/d/*")])]);
        policy.exceptions = vec![Rule::of(dimension::PATH, &["/e*"])];
        vec![policy]
    }) else {
        return;
    };
    // Of so many components the first ones are not read, and what is left begins like the exception.
    let deep = format!("d/{}", ["e"; 80].join("/"));
    fs::create_dir_all(bench.path(&deep)).unwrap();
    bench.is_killed(&mut victim(&bench.copy(&format!("{deep}/victim"))));
}

/// Lengths of a last component, and whether its beginning is looked at.
const LONG: [(usize, bool); 8] =
    [(5, true), (511, true), (512, true), (600, true), (4094, true), (4096, false), (5000, false), (100_000, false)];

#[test]
fn guard_takes_no_long_argument_for_a_text_that_is_shorter() {
    let Some(mut bench) = Bench::new(|folder| {
        let rule =
            |dimension, texts: &[&str]| Rule::of(dimension::PATH, &[&format!("{folder}/victim")]).and(dimension, texts);
        vec![
            asked(action::OBSERVE, &[rule(dimension::ARGV0, &["zeroth", "other"])]),
            asked(action::OBSERVE, &[rule(dimension::ARGV1, &["sh", "-e"])]),
            asked(action::OBSERVE, &[rule(dimension::ARGV0, &["zeroth", "app*"])]),
            asked(action::OBSERVE, &[rule(dimension::ARGV1, &["sh", "app*"])]),
        ]
    }) else {
        return;
    };
    let path = bench.path("victim");
    let mut fired = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), None);
        bench.told().iter().map(|told| told.decision().fired).fold(0, |all, fired| all | fired)
    };
    for (len, is_seen) in LONG {
        // As code is, right behind its option.
        let code = format!("-e{}", "x".repeat(len - 2));
        let app = format!("app{}", "x".repeat(len - 3));
        // What can't be seen may begin with any prefix.
        let (zeroth, first) = if is_seen { (0, 0) } else { (0b0100, 0b1000) };
        for before in ["", "/", "/bin/"] {
            let (code, app) = (format!("{before}{code}"), format!("{before}{app}"));
            let of = format!("{before:?} {len}");
            assert_eq!(fired(Command::new(&path).arg0(&code)), zeroth, "{of}");
            assert_eq!(fired(Command::new(&path).arg0("true").arg(&code)), first, "{of}");
            assert_eq!(fired(Command::new(&path).arg0(&app)), 0b0100, "{of}");
            assert_eq!(fired(Command::new(&path).arg0("true").arg(&app)), 0b1000, "{of}");
        }
    }
    for at in (0..24).chain([510, 511, 512, 4088, 4093, 4094, 4095, 4096, 131_000]) {
        // Each place that the last slash may have, and others before it.
        let slashed = format!("{}/sh", "x/".repeat(at / 2) + &"y".repeat(at % 2));
        assert_eq!(fired(Command::new(&path).arg0("true").arg(slashed)), 0b1010, "{at}");
        let nearly = format!("{}/sh", "x/.\u{af}\u{2f}0".repeat(at / 8) + &"y".repeat(at % 8));
        assert_eq!(fired(Command::new(&path).arg0("true").arg(nearly)), 0b1010, "{at}");
    }
}

#[test]
fn guard_lets_no_argument_that_is_too_long_to_be_read_pass_for_another() {
    let Some(bench) = Bench::new(|folder| {
        let rule = |path, dimension, texts: &[&str]| {
            Rule::of(dimension::PATH, &[&format!("{folder}/{path}")]).and(dimension, texts)
        };
        let mut policy = asked(
            action::KILL,
            &[rule("victim", dimension::ARGV0, &["other*"]), rule("second", dimension::ARGV1, &["other*"])],
        );
        policy.exceptions = vec![rule("victim", dimension::ARGV0, &["e*"]), rule("second", dimension::ARGV1, &["e*"])];
        vec![policy]
    }) else {
        return;
    };
    let (path, second) = (bench.path("victim"), bench.copy("second"));
    let status = |command: &mut Command| command.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    for (len, is_seen) in LONG {
        // Neither begins so, but as far as they can be told apart the long ones do, and are not excepted.
        let long = "e".repeat(len);
        let killed = (!is_seen).then_some(9);
        assert_eq!(status(Command::new(&path).arg0(&long)).signal(), killed, "{len}");
        assert_eq!(status(Command::new(&second).arg0("true").arg(&long)).signal(), killed, "{len}");
    }
    assert_eq!(status(Command::new(&path).arg0("other")).signal(), Some(9));
    assert_eq!(status(Command::new(&second).arg0("true").arg("other")).signal(), Some(9));
}

/// An id that no container has.
fn container_id() -> String {
    let token = token();
    let digits = token.bytes().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    format!("{digits:0>64}")
}

/// The victim is killed in every container by one policy, and by another where its scope was told of.
fn in_any_container_or_one_told_of(folder: &str) -> Vec<Asked> {
    let path = format!("{folder}/victim");
    let of = |not_host, not_containers| Rule { not_host, not_containers, ..Rule::of(dimension::PATH, &[&path]) };
    vec![asked(action::KILL, &[of(true, false)]), asked(action::KILL, &[of(true, true)])]
}

/// In a mount namespace of its own, as a container's programs are.
fn contained(cgroup: &Cgroup, path: &str, marker: &str) -> Command {
    cgroup.command(&["unshare", "-m", "/bin/busybox", "sh", "-c", "exec -a touch $1 $2", "sh", path, marker])
}

#[test]
fn guard_knows_containers_by_their_cgroups_from_the_first_exec_on() {
    let Some(mut bench) = Bench::new(in_any_container_or_one_told_of) else { return };
    let (victim_path, marker) = (bench.path("victim"), bench.path("marker"));
    let hierarchies = cgroup2().into_iter().chain(cgroup1().map(|(_, mount)| mount));
    for mount in hierarchies {
        for form in
            ["ktest/ID", "ktest/docker-ID.scope", "ktest/crio-ID", "ktest:cri-containerd:ID", "ktest/ID/below/it"]
        {
            let id = container_id();
            let cgroup = Cgroup::new(&mount, &form.replace("ID", &id));
            bench.is_killed(&mut contained(&cgroup, &victim_path, &marker));
            let told = bench.told();
            assert_eq!(told[0].decision().fired, 1, "{form}");
            assert!(told[0].decision().container_cgroup_id.unwrap() > 1);
            // A runtime's set-up, which has all that the host has.
            bench.lives(&mut cgroup.command(&["/bin/busybox", "sh", "-c", "exec -a touch $1 $2", "sh", &victim_path]));
            bench.guard.set_scope(&id, Scope { rules: 0b11 }).unwrap();
            bench.is_killed(&mut contained(&cgroup, &victim_path, &marker));
            assert_eq!(bench.told()[0].decision().fired, 0b11);
            bench.guard.set_scope(&id, Scope { rules: 0 }).unwrap();
            bench.lives(&mut contained(&cgroup, &victim_path, &marker));
            bench.guard.remove_scope(&id);
            bench.is_killed(&mut contained(&cgroup, &victim_path, &marker));
        }
        bench.told();
        for form in ["ktest/ID0", "ktest/xID", "ktest/ID.scope", "ktest/x-ID.service"] {
            let cgroup = Cgroup::new(&mount, &form.replace("ID", &container_id()));
            bench.lives(&mut contained(&cgroup, &victim_path, &marker));
        }
    }
    bench.lives(&mut victim(&victim_path));
}

#[test]
fn guard_lets_nobody_go_deeper_than_it_looks_for_a_container() {
    let Some(mut bench) = Bench::new(in_any_container_or_one_told_of) else { return };
    let (path, marker) = (bench.path("victim"), bench.path("marker"));
    for mount in cgroup2().into_iter().chain(cgroup1().map(|(_, mount)| mount)) {
        let id = container_id();
        for (below, fired) in [(260, 0b1), (300, 0b11)] {
            let cgroup = Cgroup::new(&mount, &format!("ktest/{id}{}", "/d".repeat(below)));
            bench.is_killed(&mut contained(&cgroup, &path, &marker));
            let told = bench.told();
            let decision = told[0].decision();
            // Past what is looked at it is in the scope of every policy.
            assert_eq!(decision.fired, fired, "{below}");
            assert!(decision.container_cgroup_id.unwrap() > 1);
        }
        // Nor is it a runtime's set-up, or nobody's.
        let deep = Cgroup::new(&mount, &format!("ktest{}", "/d".repeat(300)));
        bench.is_killed(&mut contained(&deep, &path, &marker));
        bench.told();
        // The host's own processes are the host's.
        bench.lives(&mut deep.command(&["/bin/busybox", "sh", "-c", "exec -a touch $1 $2", "sh", &path]));
    }
}

#[test]
fn guard_takes_a_user_s_own_cgroup_for_no_runtime_s_set_up() {
    let Some(mount) = cgroup2() else { return };
    let Some(bench) = Bench::new(|folder| {
        let path = format!("{folder}/victim");
        vec![asked(action::KILL, &[Rule { not_containers: true, ..Rule::of(dimension::PATH, &[&path]) }])]
    }) else {
        return;
    };
    let path = bench.path("victim");
    let id = container_id();
    let users = Cgroup::new(&mount, &format!("ktest.slice/user@1000.service/libpod-{id}.scope"));
    bench.is_killed(&mut users.command(&[BUSYBOX, "sh", "-c", "exec -a touch $1 $2", "sh", &path]));
    // What a user calls a container is under what holds for the host too.
    bench.is_killed(&mut contained(&users, &path, &bench.path("marker")));
    let roots = Cgroup::new(&mount, &format!("ktest.slice/libpod-{id}.scope/user@1000.service"));
    bench.lives(&mut contained(&roots, &path, &bench.path("marker")));
}

#[test]
fn guard_knows_a_container_by_the_cgroup_that_user_space_has_told_of() {
    let hierarchies =
        cgroup2().map(|mount| (mount, false)).into_iter().chain(cgroup1().map(|(_, mount)| (mount, true)));
    let Some(mut bench) = Bench::new(|folder| {
        let rule = Rule { not_host: true, ..Rule::of(dimension::PATH, &[&format!("{folder}/victim")]) };
        vec![asked(action::KILL, &[rule])]
    }) else {
        return;
    };
    let (path, marker) = (bench.path("victim"), bench.path("marker"));
    for (mount, v1) in hierarchies {
        let cgroup = Cgroup::new(&mount, "ktest/lxc/below");
        let inode = std::os::linux::fs::MetadataExt::st_ino(&fs::metadata(mount.join("ktest/lxc")).unwrap());
        bench.lives(&mut contained(&cgroup, &path, &marker));
        let scope = Scope { rules: 1 };
        if v1 { bench.guard.set_cgroup_v1_scope(inode, scope) } else { bench.guard.set_cgroup_scope(inode, scope) }
            .unwrap();
        bench.is_killed(&mut contained(&cgroup, &path, &marker));
        assert_eq!(bench.told()[0].decision().container_cgroup_id, Some(inode));
        if v1 { bench.guard.remove_cgroup_v1_scope(inode) } else { bench.guard.remove_cgroup_scope(inode) }.unwrap();
        bench.lives(&mut contained(&cgroup, &path, &marker));
    }
    assert!(matches!(bench.guard.set_scope("ID", Scope { rules: 1 }), Err(GuardError::ContainerId { .. })));
}

#[test]
fn guard_kills_no_more_than_its_budget_and_then_lets_pass() {
    let Some(mut bench) = Bench::new(|folder| {
        let mut policy = asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])]);
        policy.budget = (3, Duration::from_secs(3600));
        let mut short = asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/short")])]);
        short.budget = (1, Duration::from_nanos(1));
        vec![policy, short]
    }) else {
        return;
    };
    let (path, short) = (bench.path("victim"), bench.copy("short"));
    for _ in 0..3 {
        bench.is_killed(&mut victim(&path));
    }
    for _ in 0..4 {
        bench.lives(&mut victim(&path));
    }
    // A window that is over begins anew.
    for _ in 0..4 {
        bench.is_killed(&mut victim(&short));
    }
    let counts = bench.decided(11);
    assert_eq!((counts.result(0, result::KILLED), counts.result(0, result::DISARMED)), (3, 4));
    assert_eq!((counts.result(1, result::KILLED), counts.result(1, result::DISARMED)), (4, 0));
    let outcomes: Vec<_> = bench.told().iter().map(|told| told.decision().outcome).collect();
    assert_eq!(outcomes[..7], [[Outcome::Killed; 4], [Outcome::Disarmed; 4]].concat()[1..]);
}

#[test]
fn guard_does_nothing_without_a_lease_or_without_being_told_to() {
    let by_path = |folder: &str| Rule::of(dimension::PATH, &[&format!("{folder}/victim")]);
    let Some(mut bench) = Bench::new(|folder| vec![asked(action::KILL, &[by_path(folder)])]) else { return };
    let path = bench.path("victim");
    bench.guard.renew(boot_ns()).unwrap();
    bench.lives(&mut victim(&path));
    bench.guard.renew(boot_ns() + 3_600_000_000_000).unwrap();
    bench.is_killed(&mut victim(&path));
    let counts = bench.decided(2);
    assert_eq!((counts.result(0, result::LEASE_EXPIRED), counts.result(0, result::KILLED)), (1, 1));
    assert_eq!(bench.told()[0].decision().outcome, Outcome::LeaseExpired);
    bench.guard.detach().unwrap();
    bench.lives(&mut victim(&path));
    bench.decided(2);

    let mut observing = tables(&[asked(action::KILL, &[by_path(bench.folder.path().to_str().unwrap())])]);
    observing.settings.enforces = 0;
    let (mut guard, _ring) = Guard::load(&observing, &Limits::default()).unwrap();
    // Attached idle.
    bench.lives(&mut victim(&path));
    assert_eq!(counted(&guard).sum(Counter::Triggered), 0);
    guard.take_over(None).unwrap();
    guard.renew(u64::MAX).unwrap();
    bench.lives(&mut victim(&path));
    assert_eq!(counted(&guard).result(0, result::OBSERVED), 1);
}

#[test]
fn guard_lets_the_strongest_action_decide_and_names_all_policies_that_fire() {
    let Some(mut bench) = Bench::new(|folder| {
        let rule = [Rule::of(dimension::PATH, &[&format!("{folder}/victim")])];
        [action::OBSERVE, action::KILL, action::KILL].map(|action| asked(action, &rule)).into()
    }) else {
        return;
    };
    bench.is_killed(&mut victim(&bench.path("victim")));
    let told = bench.told();
    let decision = told[0].decision();
    assert_eq!((decision.policy, decision.fired, decision.outcome), (1, 0b111, Outcome::Killed));
    assert_eq!(bench.decided(1).result(1, result::KILLED), 1);
}

#[test]
fn guard_tells_of_no_more_arguments_than_leave_room_for_other_decisions() {
    const EXECS: usize = 40;
    if !ready() {
        return;
    }
    let folder = folder();
    let path = folder.path().join("victim").to_str().unwrap().to_owned();
    let mut tables = tables(&[asked(action::KILL, &[Rule::of(dimension::PATH, &[&path])])]);
    tables.settings.args_limit = namespan_ebpf::wire::ARGS_MAX;
    let (mut guard, ring) = Guard::load(&tables, &Limits::default()).unwrap();
    guard.take_over(None).unwrap();
    guard.renew(u64::MAX).unwrap();
    let mut bench = Bench { guard, ring, folder };
    for _ in 0..EXECS {
        let long = "x".repeat(100_000);
        bench.is_killed(Command::new(&path).arg0("touch").arg(long));
    }
    assert_eq!(bench.decided(40).sum(Counter::LostRingFull), 0);
    for told in bench.told() {
        let decision = told.decision();
        let (head, tail) = (decision.args.head.len(), decision.args.tail.len());
        assert_eq!(head + tail, ARGS_MAX as usize);
        assert!(decision.args.len > 100_000);
    }
}

#[test]
fn guard_acts_on_what_finds_no_room_in_the_ring_and_counts_it() {
    const EXECS: u64 = 60;
    let limits = Limits { ring_bytes: 4096, ..Limits::default() };
    let Some(mut bench) = Bench::with(limits, |folder| {
        vec![asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])])]
    }) else {
        return;
    };
    for _ in 0..EXECS {
        bench.is_killed(&mut victim(&bench.path("victim")));
    }
    let counts = bench.decided(EXECS);
    assert_eq!(counts.result(0, result::KILLED), EXECS);
    let (told, lost) = (counts.sum(Counter::Told), counts.sum(Counter::LostRingFull));
    assert!(lost > 0 && told == bench.told().len() as u64, "{counts:?}");
}

#[test]
fn guard_is_relieved_in_a_storm_and_each_exec_is_decided_once() {
    const GUARDS: usize = 5;
    let policies =
        |folder: &str| vec![asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])])];
    let limits = Limits { ring_bytes: 64 << 20, ..Limits::default() };
    let Some(bench) = Bench::with(limits, policies) else { return };
    let (path, tables) = (bench.path("victim"), tables(&policies(bench.folder.path().to_str().unwrap())));
    let Bench { guard, ring, folder: _folder } = bench;
    let mut guards = vec![(guard, ring)];
    let mut moments = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..GUARDS {
        let (mut new, ring) = Guard::load(&tables, &limits).unwrap();
        new.renew(u64::MAX).unwrap();
        idle.push((new, ring));
    }
    let over = AtomicBool::new(false);
    let storm = |thread: usize| {
        let mut execs = 0;
        while !over.load(Ordering::SeqCst) {
            let mut command = Command::new(&path);
            let status = command.arg(format!("{thread}-{execs}")).stdin(Stdio::null()).status().unwrap();
            assert_eq!(status.signal(), Some(9), "{execs}");
            execs += 1;
        }
        execs
    };
    let execs: usize = std::thread::scope(|scope| {
        let threads = [0, 1].map(|thread| {
            scope.spawn({
                let storm = &storm;
                move || storm(thread)
            })
        });
        for (mut new, ring) in idle {
            moments.push(new.take_over(guards.last_mut().map(|(old, _)| old)).unwrap());
            guards.push((new, ring));
            let deadline = Instant::now() + Duration::from_secs(20);
            while guards.last().unwrap().0.counters().unwrap().sum(Counter::Decided) < 100 {
                assert!(Instant::now() < deadline, "nothing is decided");
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let mut times: HashMap<Vec<u8>, Vec<u64>> = HashMap::new();
    let mut decided = 0;
    for (guard, ring) in &mut guards {
        let counts = counted(guard);
        assert_eq!(counts.sum(Counter::LostRingFull), 0);
        decided += counts.sum(Counter::Decided);
        while let Some(record) = ring.next() {
            let decision = decode(&record).unwrap();
            times.entry(decision.args.iter().nth(1).unwrap().to_vec()).or_default().push(decision.process.time_boot_ns);
        }
    }
    assert_eq!((times.len(), decided), (execs, times.values().map(|times| times.len() as u64).sum()));
    // At the very moment of a change one for each CPU may be decided by both.
    for twice in times.values().filter(|times| times.len() > 1) {
        let near = |at: &u64| moments.iter().any(|moment| moment.abs_diff(*at) < 100_000);
        assert!(twice.len() == 2 && twice.iter().all(near), "{twice:?} {moments:?}");
    }
}

#[test]
fn guard_proves_what_it_claims_on_a_child_of_ours() {
    let by_path = |folder: &str| Rule::of(dimension::PATH, &[&format!("{folder}/victim")]);
    let Some(mut bench) = Bench::new(|folder| vec![asked(action::KILL, &[by_path(folder)])]) else { return };
    bench.guard.self_test().unwrap();
    // It is no decision, and over.
    bench.decided(0);
    bench.lives(&mut victim(&bench.copy("other")));
    bench.guard.detach().unwrap();
    assert!(matches!(bench.guard.self_test(), Err(GuardError::SelfTest { action: "kill" })));
}

#[test]
fn guard_that_persists_goes_on_until_the_next_one_has_taken_over() {
    let policies =
        |folder: &str| vec![asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])])];
    let Some(mut bench) = Bench::new(policies) else { return };
    assert!(take_pinned().unwrap().is_none(), "somebody else's guard is pinned here");
    bench.guard.persist().unwrap();
    let path = bench.path("victim");
    let Bench { guard, ring, folder } = bench;
    drop((guard, ring));
    assert_eq!(victim(&path).status().unwrap().signal(), Some(9));
    let mut pinned = take_pinned().unwrap().unwrap();
    assert_eq!(pinned.counters().unwrap().result(0, result::KILLED), 1);
    assert_eq!(decode(&pinned.ring.next().unwrap()).unwrap().path, path.as_bytes());
    let (mut guard, ring) =
        Guard::load(&tables(&policies(folder.path().to_str().unwrap())), &Limits::default()).unwrap();
    guard.renew(u64::MAX).unwrap();
    let at = pinned.relieved_by(&mut guard).unwrap();
    while boot_ns() <= at {
        std::thread::yield_now();
    }
    pinned.remove().unwrap();
    assert!(take_pinned().unwrap().is_none());
    let mut bench = Bench { guard, ring, folder };
    bench.is_killed(&mut victim(&path));
    assert_eq!(bench.told().len(), 1);
    drop(bench.guard);
    let (touched, status) = touch(&mut victim(&path), bench.folder.path().join("marker").to_str().unwrap());
    assert!(touched && status.success());
}

/// Where a BPF LSM can be loaded.
fn deny_bench(policies: impl FnOnce(&str) -> Vec<Asked>) -> Option<Bench> {
    if !ready() {
        return None;
    }
    if let Err(refusal) = lsm() {
        assert!(std::env::var_os("NAMESPAN_REQUIRE_LSM").is_none(), "{refusal}");
        eprintln!("skipped: {refusal}");
        return None;
    }
    Bench::new(policies)
}

#[test]
fn guard_deny_is_refused_where_it_cannot_work_with_the_reason() {
    if !ready() {
        return;
    }
    let denies = tables(&[asked(action::DENY, &[Rule::of(dimension::PATH, &["/nowhere"])])]);
    match (lsm(), Guard::load(&denies, &Limits::default())) {
        (Ok(()), Ok((mut guard, _))) => guard.self_test().unwrap(),
        (Err(Refusal::NotAsked), Ok((mut guard, _))) => {
            assert!(matches!(guard.self_test(), Err(GuardError::SelfTest { action: "deny" })));
        }
        (Err(refusal), Err(GuardError::Lsm(said))) => assert_eq!(refusal.to_string(), said.to_string()),
        (lsm, loaded) => panic!("{lsm:?} {:?}", loaded.err()),
    }
}

#[test]
fn guard_denies_with_eperm_and_the_caller_lives_on() {
    let Some(mut bench) = deny_bench(|folder| {
        let mut policy =
            asked(action::DENY, &[Rule::of(dimension::PATH, &[&format!("{folder}/v*"), &format!("{folder}/script")])]);
        policy.exceptions = vec![Rule::of(dimension::NAME, &["vgood"])];
        vec![policy, asked(action::KILL, &[Rule::of(dimension::PATH, &[&format!("{folder}/killed")])])]
    }) else {
        return;
    };
    bench.guard.self_test().unwrap();
    let denied = |command: &mut Command| {
        let error = command.status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{command:?}");
    };
    let path = bench.path("victim");
    denied(victim(&path).args(["a", "b"]));
    let told = bench.told();
    let decision = told[0].decision();
    assert_eq!((decision.hook, decision.outcome, decision.path), (Hook::Check, Outcome::Denied, path.as_bytes()));
    assert_eq!(decision.args.iter().collect::<Vec<_>>(), [b"touch", &b"a"[..], b"b"]);
    assert_eq!(decision.args.argc, 3);
    symlink(&path, bench.path("soft")).unwrap();
    denied(&mut victim(&bench.path("soft")));
    bench.lives(&mut victim(&bench.copy("vgood")));
    bench.lives(&mut victim(&bench.copy("other")));
    bench.is_killed(&mut victim(&bench.copy("killed")));
    // For a script's file, and for a script's interpreter.
    for (script, interpreter) in [("script", "other"), ("else", "victim")] {
        let script = bench.path(script);
        fs::write(&script, format!("#!{} true\n", bench.path(interpreter))).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        denied(&mut Command::new(&script));
    }
    let counts = bench.decided(5);
    assert_eq!((counts.result(0, result::DENIED), counts.of(Program::Check, Counter::Decided)), (4, 4));
    let told = bench.told();
    assert_eq!(told.last().unwrap().decision().script, bench.path("else").as_bytes());
    bench.guard.renew(0).unwrap();
    bench.lives(&mut victim(&path));
    bench.guard.renew(u64::MAX).unwrap();
    denied(&mut victim(&path));
    bench.guard.detach().unwrap();
    bench.lives(&mut victim(&path));
}

/// As if so many checks were under way on each CPU, in these rooms.
fn occupy(rooms: Range<u32>, users: u64) {
    let cpus = aya::util::nr_cpus().unwrap();
    for info in loaded_maps().map(Result::unwrap).filter(|info| info.name_as_str() == Some("GUARD_USERS")) {
        let map = Map::PerCpuArray(MapData::from_id(info.id()).unwrap());
        let mut of_rooms: PerCpuArray<_, u64> = map.try_into().unwrap();
        for room in rooms.clone() {
            of_rooms.set(room, PerCpuValues::try_from(vec![users; cpus]).unwrap(), 0).unwrap();
        }
    }
}

#[test]
fn guard_denies_what_finds_no_room_to_be_looked_at() {
    const RECORDS: Range<u32> = CHECK_ROOMS..CHECK_ROOMS + CHECK_RECORDS;
    let by_path = |folder: &str| Rule::of(dimension::PATH, &[&format!("{folder}/victim")]);
    let denied = |command: &mut Command| {
        assert_eq!(command.status().unwrap_err().raw_os_error(), Some(libc::EPERM), "{command:?}");
    };
    let Some(mut bench) = deny_bench(|folder| vec![asked(action::DENY, &[by_path(folder)])]) else { return };
    let (path, other) = (bench.path("victim"), bench.copy("other"));
    denied(&mut victim(&path));
    bench.lives(&mut victim(&other));
    occupy(0..CHECK_ROOMS, 1);
    denied(&mut victim(&path));
    // Whether it is one of these cannot be told.
    denied(&mut victim(&other));
    // Without a lease nothing is.
    bench.guard.renew(0).unwrap();
    bench.lives(&mut victim(&other));
    bench.guard.renew(u64::MAX).unwrap();
    occupy(0..CHECK_ROOMS - 1, 1);
    occupy(CHECK_ROOMS - 1..CHECK_ROOMS, 0);
    denied(&mut victim(&path));
    bench.lives(&mut victim(&other));
    // Without room for a record there is none.
    occupy(0..CHECK_ROOMS, 0);
    occupy(RECORDS, 1);
    denied(&mut victim(&path));
    bench.lives(&mut victim(&other));
    let counts = bench.guard.counters().unwrap();
    assert!(counts.adds_up(), "{counts:?}");
    assert_eq!((counts.result(0, result::DENIED), counts.sum(Counter::LostRingFull)), (5, 1));
    let told = bench.told();
    let paths = [path.as_bytes(), b"", b"", path.as_bytes()];
    assert!(told.iter().map(|told| told.decision().path).eq(paths));
    // Who it was is known, and by which policy.
    let refused = told[1].decision();
    assert_eq!((refused.hook, refused.intended, refused.outcome), (Hook::Check, Action::Deny, Outcome::Denied));
    assert_eq!((refused.policy, refused.fired, refused.rules, refused.origin), (0, 1, 0, Origin::Unknown));
    assert_eq!((refused.process.parent_tgid, refused.ancestor), (std::process::id(), told[0].decision().ancestor));
    assert_eq!(refused.process.cgroup_id, told[0].decision().process.cgroup_id);
    assert_eq!(
        (refused.process.flags, refused.args.argc),
        (flag::PATH_FAULT | flag::ARGS_FAULT | flag::CGROUP_FAULT, 0)
    );
    // The one without a lease: nobody knows whether it would have been decided.
    assert_eq!(counts.sum(Counter::Unreadable), 1);
    drop(bench);

    // Only what is in the scope of a policy that denies.
    let Some(mount) = cgroup2().or_else(|| cgroup1().map(|(_, mount)| mount)) else { return };
    let Some(bench) = deny_bench(|folder| {
        let observed = asked(action::OBSERVE, &[by_path(folder)]);
        vec![asked(action::DENY, &[Rule { not_host: true, ..by_path(folder) }]), observed]
    }) else {
        return;
    };
    let cgroup = Cgroup::new(&mount, &format!("ktest/{}", container_id()));
    let (other, marker) = (bench.copy("other"), bench.path("marker"));
    bench.lives(&mut contained(&cgroup, &other, &marker));
    occupy(0..CHECK_ROOMS, 1);
    bench.lives(&mut victim(&other));
    let (touched, status) = touch(&mut contained(&cgroup, &other, &marker), &marker);
    assert!(!touched && !status.success());
    occupy(0..CHECK_ROOMS, 0);
    bench.lives(&mut contained(&cgroup, &other, &marker));
}

#[test]
fn guard_denies_in_a_storm_without_a_miss() {
    let execs = 600 / usize::try_from(slowness()).unwrap();
    let policies =
        |folder: &str| vec![asked(action::DENY, &[Rule::of(dimension::PATH, &[&format!("{folder}/victim")])])];
    let Some(bench) = deny_bench(policies) else { return };
    let path = bench.path("victim");
    let tables = tables(&policies(bench.folder.path().to_str().unwrap()));
    let mut guards = vec![bench.guard];
    let storm = || {
        for _ in 0..execs / 2 {
            let error = Command::new(&path).stdin(Stdio::null()).status().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    };
    std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(storm));
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) && guards.len() < 3 {
            let (mut new, _ring) = Guard::load(&tables, &Limits::default()).unwrap();
            new.renew(u64::MAX).unwrap();
            new.take_over(guards.last_mut()).unwrap();
            guards.push(new);
        }
    });
    let denied: u64 = guards.iter().map(|guard| counted(guard).result(0, result::DENIED)).sum();
    assert!(denied >= u64::try_from(execs).unwrap(), "{denied}");
}

/// The victim is killed, or it is denied, and observed where it is executed all the same.
fn killed_or_denied(folder: &str, denied: bool) -> Vec<Asked> {
    let rule = [Rule::of(dimension::PATH, &[&format!("{folder}/victim")])];
    let actions: &[u8] = if denied { &[action::DENY, action::OBSERVE] } else { &[action::KILL] };
    actions.iter().map(|action| asked(*action, &rule)).collect()
}

#[test]
fn guard_changes_between_killing_and_denying_in_a_storm_and_lets_nothing_through() {
    let changes = if slowness() > 1 { 6 } else { 24 };
    let Some(bench) = deny_bench(|folder| killed_or_denied(folder, false)) else { return };
    let (path, folder) = (bench.path("victim"), bench.folder.path().to_str().unwrap());
    let load = |change| {
        let tables = tables(&killed_or_denied(folder, change % 2 == 0));
        let (mut new, ring) = Guard::load(&tables, &Limits::default()).unwrap();
        new.renew(u64::MAX).unwrap();
        (new, ring)
    };
    let idle: Vec<_> = (0..changes).map(load).collect();
    let mut guards = vec![(bench.guard, bench.ring)];
    let over = AtomicBool::new(false);
    let storm = || {
        let mut execs = 0_u64;
        while !over.load(Ordering::SeqCst) {
            if let Err(error) = Command::new(&path).arg0("true").stdin(Stdio::null()).status() {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            }
            execs += 1;
        }
        execs
    };
    let execs: u64 = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(storm));
        for (mut new, ring) in idle {
            new.take_over(guards.last_mut().map(|(old, _)| old)).unwrap();
            guards.push((new, ring));
            let deadline = Instant::now() + Duration::from_secs(20) * slowness();
            while guards.last().unwrap().0.counters().unwrap().sum(Counter::Decided) < 20 {
                let is_going =
                    Instant::now() < deadline && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
                // Or the storm would go on for ever.
                over.fetch_or(!is_going, Ordering::SeqCst);
                assert!(is_going);
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let (mut decided, mut told) = (0, 0);
    for (guard, ring) in &mut guards {
        decided += counted(guard).sum(Counter::Decided);
        while let Some(record) = ring.next() {
            told += 1;
            let decision = decode(&record).unwrap();
            let took = decision.process.time_boot_ns - decision.process.start_boot_ns;
            // It began before any check that denies, and has happened after the last moment at which it would be killed.
            let is_slow = decision.outcome == Outcome::Observed && took > OVERLAP_NS;
            let is_stopped = matches!(decision.outcome, Outcome::Killed | Outcome::Denied);
            assert!(is_slow || is_stopped, "{:?} after {took} ns", decision.outcome);
        }
    }
    assert_eq!((decided, told), (execs, execs));
}
