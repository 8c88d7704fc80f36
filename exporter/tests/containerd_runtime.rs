//! Real containers of a real containerd of the tests' own, by its own API and by the CRI.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why it is skipped"
)]

#[path = "containerd_runtime/daemon.rs"]
mod daemon;
#[path = "containerd_runtime/pod.rs"]
mod pod;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use namespan::enrich::How;
use namespan::enrich::container::{Container, Labels, key};
use namespan::enrich::containerd::Containerd;
use namespan::enrich::cri::Cri;
use namespan::enrich::runtime::{Line, Link, Place, Runtime, Update, follow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use daemon::{Daemon, IMAGE, possible};
use pod::Pod;

const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime that is followed, and what it has told, each with its time.
struct Source {
    told: mpsc::Receiver<(Instant, Update)>,
    lookups: mpsc::Sender<String>,
}

type Found = (Instant, Arc<Container>, How, Place);

impl Source {
    fn start(runtime: impl Runtime + 'static) -> Self {
        let (lookups, asked) = mpsc::channel(64);
        let (updates, mut came) = mpsc::channel(64);
        let (stamped, told) = mpsc::channel(1024);
        tokio::spawn(follow(Box::new(runtime), Line::new(0, asked, updates)));
        tokio::spawn(async move {
            while let Some((_, update)) = came.recv().await {
                stamped.send((Instant::now(), update)).await.ok();
            }
        });
        Self { told, lookups }
    }

    async fn connected(runtime: impl Runtime + 'static) -> Self {
        let mut source = Self::start(runtime);
        source.until(|_, update| matches!(update, Update::State(Link::Connected)).then_some(())).await;
        source
    }

    /// The first of what is told that is wanted.
    async fn until<T>(&mut self, wanted: impl Fn(Instant, &Update) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Some((at, update))) = timeout(left, self.told.recv()).await else { panic!("not in time") };
            if let Some(found) = wanted(at, &update) {
                return found;
            }
        }
    }

    async fn known(&mut self, id: &str) -> Found {
        self.until(|at, update| known(at, update).filter(|(_, container, ..)| container.id == id)).await
    }

    async fn with_pid(&mut self, id: &str) -> Found {
        self.until(|at, update| known(at, update).filter(|found| found.1.id == id && found.3.pid.is_some())).await
    }

    async fn gone(&mut self, wanted: &str) -> Instant {
        self.until(|at, update| matches!(update, Update::Gone { key } if key == wanted).then_some(at)).await
    }
}

fn known(at: Instant, update: &Update) -> Option<Found> {
    match update {
        Update::Known { container, how, place } => Some((at, Arc::clone(container), *how, place.clone())),
        Update::Unknown { .. } | Update::Gone { .. } | Update::State(_) => None,
    }
}

fn cgroups(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_known_before_its_first_word_and_gone_after_its_last() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start().await;
    let mut source = daemon.native(&["team"]).await;
    let (socket, digest) = (daemon.path("socket"), daemon.digest());
    let id = "0123456789abcdef".repeat(4);
    let key = key("containerd", Some("default"), None, "web").into_owned();
    for (id, key) in [("web", key.as_str()), (&id, &id)] {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(&socket).args(["run", "--rm", "--label", "team=core", "--label", "secret=x"]);
        ctr.args(["--env", "OTEL_SERVICE_NAME=shop", IMAGE, id, "echo", "hello"]);
        let mut child = ctr.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let first = tokio::task::spawn_blocking(move || {
            output.read_exact(&mut [0]).unwrap();
            Instant::now()
        });
        let first = first.await.unwrap();
        assert!(child.wait().unwrap().success());
        let (at, container, how, place) = source.known(id).await;
        eprintln!("{id}: known {:?} before its first word", first.saturating_duration_since(at));
        assert!(at < first && how == How::RuntimeEvent);
        assert_eq!(place, Place { cgroup: Some(format!("/default/{id}")), pid: None });
        let named = (container.runtime, container.namespace.as_deref(), container.name.as_deref());
        assert_eq!(named, ("containerd", Some("default"), Some("web").filter(|name| *name == id)));
        assert_eq!(container.service.name.as_deref(), Some("shop"));
        assert_eq!(container.labels, [("team".to_owned(), "core".to_owned())]);
        let image = container.image.clone().unwrap();
        assert_eq!((image.name.as_str(), image.tags), ("docker.io/library/nstest", vec!["one".to_owned()]));
        assert_eq!(image.repo_digests, [format!("docker.io/library/nstest@{digest}")]);
        let (at, ..) = source.with_pid(id).await;
        eprintln!("{id}: its process known {:?} before its first word", first.saturating_duration_since(at));
        source.gone(key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_live_for_moments_are_all_known_by_what_containerd_told() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start().await;
    let mut source = daemon.native(&[]).await;
    let socket = daemon.path("socket");
    let runs = (0..20).map(|number| {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(&socket).args(["run", "--rm", IMAGE, &format!("moment{number}"), "true"]);
        ctr.spawn().unwrap()
    });
    let mut runs: Vec<_> = runs.collect();
    let mut open: BTreeSet<_> = (0..20).map(|number| format!("moment{number}")).collect();
    while !open.is_empty() {
        let (_, container, how, place) = source.until(known).await;
        assert_eq!((how, place.cgroup), (How::RuntimeEvent, Some(format!("/default/{}", container.id))));
        assert!(container.image.as_ref().is_some_and(|image| !image.repo_digests.is_empty()));
        if place.pid.is_some() {
            open.remove(&container.id);
        }
    }
    for run in &mut runs {
        assert!(run.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_already_runs_is_known_with_its_process_and_cgroup() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start().await;
    for namespace in ["default", "other", "moby"] {
        daemon.ctr(&["-n", namespace, "run", "-d", IMAGE, &format!("in-{namespace}"), "sleep", "600"]);
    }
    daemon.ctr(&["containers", "create", IMAGE, "idle"]);
    let labels = Labels::default();
    let mut source = Source::start(Containerd::new(daemon.path("socket"), labels, NonZeroUsize::new(64).unwrap()));
    for namespace in ["default", "other"] {
        let id = format!("in-{namespace}");
        let (_, container, how, place) = source.until(known).await;
        assert_eq!((&container.id, container.namespace.as_deref(), how), (&id, Some(namespace), How::RuntimeApi));
        assert!(cgroups(place.pid.unwrap()).contains(&format!(":{}\n", place.cgroup.unwrap())), "{id}");
    }
    source.until(|_, update| matches!(update, Update::State(Link::Connected)).then_some(())).await;
    daemon.ctr(&["tasks", "start", "-d", "idle"]);
    let (_, container, how, place) = source.until(known).await;
    assert_eq!((container.id.as_str(), how), ("idle", How::RuntimeEvent));
    assert!(cgroups(place.pid.unwrap()).contains(":/default/idle\n"));
    daemon.ctr(&["-n", "other", "tasks", "rm", "-f", "in-other"]);
    source.gone(&key("containerd", Some("other"), None, "in-other")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_looked_up_in_all_namespaces_but_docker_s() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start().await;
    let ids = ["a", "b", "c"].map(|digit| digit.repeat(64));
    daemon.ctr(&["-n", "other", "run", "-d", IMAGE, &ids[0], "sleep", "600"]);
    daemon.ctr(&["-n", "moby", "run", "-d", IMAGE, &ids[1], "sleep", "600"]);
    daemon.ctr(&["containers", "create", IMAGE, &ids[2]]);
    daemon.ctr(&["containers", "create", IMAGE, "idle"]);
    let mut source = daemon.native(&[]).await;
    source.lookups.send(ids[0].clone()).await.unwrap();
    assert_eq!(source.known(&ids[0]).await.1.namespace.as_deref(), Some("other"));
    source.lookups.send(ids[1].clone()).await.unwrap();
    source.until(|_, update| matches!(update, Update::Unknown { key: id } if *id == ids[1]).then_some(())).await;
    source.lookups.send(ids[2].clone()).await.unwrap();
    assert_eq!(source.known(&ids[2]).await.3.pid, None);
    source.gone(&ids[2]).await;
    source.lookups.send("containerd/default/idle".to_owned()).await.unwrap();
    assert_eq!(source.known("idle").await.2, How::RuntimeApi);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_is_lost_and_found_and_what_ended_meanwhile_is_gone() {
    if !possible() {
        return;
    }
    let mut daemon = Daemon::start().await;
    for id in ["stays", "ends"] {
        daemon.ctr(&["run", "-d", IMAGE, id, "sleep", "600"]);
    }
    let mut source = daemon.native(&[]).await;
    let (.., place) = {
        daemon.ctr(&["containers", "label", "ends", "a=b"]);
        source.with_pid("ends").await
    };
    daemon.stop();
    source.until(|_, update| matches!(update, Update::State(Link::Lost { .. })).then_some(())).await;
    let pid = Pid::from_raw(place.pid.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    daemon.go().await;
    let mut gone = false;
    loop {
        let update = source.until(|_, update| Some(update.clone())).await;
        match update {
            Update::Gone { key } => gone |= key == "containerd/default/ends",
            Update::State(Link::Connected) => break,
            Update::Known { container, .. } => assert_eq!(container.id, "stays"),
            Update::Unknown { .. } | Update::State(_) => {}
        }
    }
    if !gone {
        source.gone("containerd/default/ends").await;
    }
    daemon.ctr(&["run", "-d", IMAGE, "new", "sleep", "600"]);
    source.with_pid("new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_told_alike_by_containerd_and_by_the_cri() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start().await;
    let socket = daemon.path("socket");
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap();
    let cri = || Cri::new("containerd", socket.clone(), Labels::default(), NonZeroUsize::new(64).unwrap());
    let (mut native, mut asked) = (daemon.native(&[]).await, Source::connected(cri()).await);
    let (pod, digest) = (Pod::run(&daemon, &channel).await, daemon.digest());
    for id in [&pod.sandbox, &pod.container] {
        let found = native.with_pid(id).await;
        assert_eq!(found.2, How::RuntimeEvent);
        pod.check(&found, &digest);
        asked.lookups.send(id.clone()).await.unwrap();
        pod.check(&asked.known(id).await, &digest);
    }
    let (mut native_late, mut asked_late) = (daemon.native(&[]).await, Source::start(cri()));
    for _ in 0..2 {
        let found = asked_late.until(known).await;
        assert_eq!(found.2, How::RuntimeApi);
        pod.check(&found, &digest);
    }
    native_late.lookups.send(pod.container.clone()).await.unwrap();
    pod.check(&native_late.known(&pod.container).await, &digest);
    asked.lookups.send("a".repeat(64)).await.unwrap();
    asked.until(|_, update| matches!(update, Update::Unknown { .. }).then_some(())).await;
    pod.stop(&channel).await;
    for source in [&mut native, &mut asked] {
        source.gone(&pod.container).await;
    }
}

#[test]
fn a_socket_that_may_not_be_used_is_said_to_be_just_that() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let refused = std::thread::spawn(move || {
        // SAFETY: changes nothing but whose files this thread may use.
        unsafe { libc::setfsuid(65534) };
        let capacity = NonZeroUsize::new(64).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let native = Source::start(Containerd::new(socket.clone(), Labels::default(), capacity));
            let cri = Source::start(Cri::new("cri-o", socket, Labels::default(), capacity));
            for mut source in [native, cri] {
                let reason = |_, update: &Update| {
                    let Update::State(Link::Lost { reason }) = update else { return None };
                    Some(reason.clone())
                };
                assert!(source.until(reason).await.contains("no permission"));
            }
        });
    });
    refused.join().unwrap();
}
