//! The guard as it is run: nothing of it without policies, none lost by a reload, and no word of it taken back.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::loaded_maps;
use aya::programs::loaded_programs;
use namespan::config::{Config, Console, Destination, Export, Queue, Spool};
use namespan::guard::load::{Guard, Limits, Tables, lsm};
use namespan::guard::persist;
use namespan::guard::spec::{self, Action, Containers, Mode, Policy, Rule, Scope, Text};
use namespan::pipeline::{Pipeline, Reload, ReloadError, Summary};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::losses::ask;
use crate::watch::{ready, slowness};
use crate::workload::{BUSYBOX, token};

const PINS: &str = "/sys/fs/bpf/namespan";

struct Bench {
    folder: TempDir,
    listen: SocketAddr,
}

impl Bench {
    fn new() -> Option<Self> {
        if !ready() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::copy(BUSYBOX, folder.path().join("victim")).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        Some(Self { folder, listen: free.local_addr().unwrap() })
    }

    fn config(&self, guard: spec::Guard) -> Config {
        Config {
            console: Console::None,
            // Nobody is there.
            logs: Some(Export::to("http://127.0.0.1:1".parse().unwrap())),
            listen: Some(self.listen),
            queue: Queue { drain: Duration::from_millis(100), ..Queue::default() },
            guard,
            ..Config::default()
        }
    }

    /// A policy for the victim alone.
    fn guard(&self, action: Action, mode: Mode) -> spec::Guard {
        let path = self.folder.path().join("victim").to_str().unwrap().to_owned();
        let policy = Policy {
            name: "victim".to_owned(),
            description: String::new(),
            severity: action.severity(),
            action,
            scope: Scope { containers: Containers::None, host: true },
            rules: vec![Rule { path: vec![Text { text: path, is_prefix: false }], ..Rule::default() }],
            exceptions: Vec::new(),
        };
        spec::Guard { policies: vec![policy], mode, budget: None, ..spec::Guard::default() }
    }

    fn kills(&self) -> spec::Guard {
        self.guard(Action::Kill, Mode::Enforce)
    }

    fn is_killed(&self) -> bool {
        let mut victim = Command::new(self.folder.path().join("victim"));
        victim.arg0("true").arg(token()).status().unwrap().signal() == Some(9)
    }

    /// How many were killed, as metrics have it.
    fn killed(&self) -> u64 {
        let metrics = ask(self.listen, "/metrics");
        let series = metrics
            .lines()
            .find(|line| line.starts_with("namespan_guard_decisions_total{") && line.contains("result=\"killed\""));
        series.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    async fn run<F: Future<Output = ()>>(
        &self,
        guard: spec::Guard,
        story: impl FnOnce(mpsc::Sender<Reload>) -> F,
    ) -> Summary {
        let mut pipeline = Box::pin(Pipeline::start(&self.config(guard))).await.unwrap();
        let (sender, reloads) = mpsc::channel(1);
        Box::pin(pipeline.run(story(sender), reloads)).await;
        Box::pin(pipeline.finish()).await
    }
}

async fn reload(reloads: &mpsc::Sender<Reload>, config: Config) -> Result<(), ReloadError> {
    let (done, taken_up) = oneshot::channel();
    reloads.send(Reload::Settings(Box::new(config), done)).await.unwrap();
    taken_up.await.unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Programs and maps of the guard, whoever has loaded them.
fn loaded() -> BTreeSet<(bool, u32)> {
    let programs =
        loaded_programs().flatten().filter(|program| program.name_as_str().unwrap_or("").starts_with("guard_"));
    let maps = loaded_maps().flatten().filter(|map| map.name_as_str().unwrap_or("").starts_with("GUARD_"));
    programs.map(|program| (true, program.id())).chain(maps.map(|map| (false, map.id()))).collect()
}

#[test]
fn guard_is_not_loaded_without_policies() {
    let Some(bench) = Bench::new() else { return };
    let before = loaded();
    let new = |before: &BTreeSet<_>| loaded().difference(before).count();
    runtime().block_on(async {
        bench.run(spec::Guard::default(), async |_| assert_eq!(new(&before), 0)).await;
        bench.run(bench.guard(Action::Kill, Mode::Observe), async |_| assert!(new(&before) > 1)).await;
    });
}

#[test]
fn guard_survives_each_reload_that_fails_and_never_counts_back() {
    let Some(bench) = Bench::new() else { return };
    let bench = &bench;
    let summary = runtime().block_on(bench.run(bench.kills(), async |reloads| {
        let counted = async |count: u64| {
            let deadline = Instant::now() + Duration::from_secs(20) * slowness();
            while bench.killed() < count {
                assert!(Instant::now() < deadline, "in vain: {count}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(bench.killed(), count);
        };
        assert!(bench.is_killed());
        // The guard itself can't be loaded.
        if lsm().is_err() {
            let denies = bench.config(bench.guard(Action::Deny, Mode::Enforce));
            let error = reload(&reloads, denies).await.unwrap_err();
            assert!(matches!(error, ReloadError::Guard(_)), "{error}");
            assert!(bench.is_killed());
        }
        // What else the settings ask for.
        let mut other = bench.config(bench.guard(Action::Observe, Mode::Observe));
        other.logs = None;
        assert!(matches!(reload(&reloads, other).await.unwrap_err(), ReloadError::Signals));
        let mut other = bench.config(bench.guard(Action::Observe, Mode::Observe));
        let file = bench.folder.path().join("victim").join("spool");
        other.spool = Some(Spool::at(file));
        let logs = other.logs.clone();
        other.destinations.push(Destination { name: "other".to_owned(), logs, traces: None });
        assert!(matches!(reload(&reloads, other).await.unwrap_err(), ReloadError::Destination(_)));
        assert!(bench.is_killed());
        let so_far = if lsm().is_err() { 3 } else { 2 };
        counted(so_far).await;
        // No policies for a while.
        reload(&reloads, bench.config(spec::Guard::default())).await.unwrap();
        assert!(!bench.is_killed());
        counted(so_far).await;
        reload(&reloads, bench.config(bench.kills())).await.unwrap();
        counted(so_far).await;
        assert!(bench.is_killed());
        counted(so_far + 1).await;
        // What can't be pinned is at work all the same.
        let (mut other, _ring) = Guard::load(&Tables::nothing(false), &Limits::default()).unwrap();
        other.persist().unwrap();
        persist::remove().unwrap();
        fs::create_dir_all(format!("{PINS}/GUARD_SHIFT")).unwrap();
        let persists = spec::Guard { persist: true, ..bench.kills() };
        reload(&reloads, bench.config(persists)).await.unwrap();
        assert!(bench.is_killed());
        counted(so_far + 2).await;
        fs::remove_dir(format!("{PINS}/GUARD_SHIFT")).unwrap();
    }));
    let guard = summary.guard.as_ref().unwrap();
    assert_eq!((guard.told, guard.totals.decided, guard.totals.of("killed")), (guard.told, guard.told, guard.told));
    fs::remove_dir(PINS).ok();
}

#[test]
fn guard_replaces_what_another_version_has_pinned() {
    let Some(bench) = Bench::new() else { return };
    let pin = |name: &str| format!("{PINS}/{name}");
    for guard in [bench.kills(), spec::Guard::default()] {
        let (mut other, ring) = Guard::load(&Tables::nothing(false), &Limits::default()).unwrap();
        other.persist().unwrap();
        drop((other, ring));
        fs::remove_file(pin("GUARD_SHIFT")).unwrap();
        fs::rename(pin("GUARD_COUNTERS"), pin("GUARD_SHIFT")).unwrap();
        fs::rename(pin("guard_exec"), pin("exec_of_another_version")).unwrap();
        let kills = !guard.policies.is_empty();
        runtime().block_on(bench.run(guard, async |_| {
            assert_eq!(bench.is_killed(), kills);
            assert!(!fs::exists(PINS).unwrap());
        }));
    }
}
