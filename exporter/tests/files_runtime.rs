//! Real containers of Podman, containerd and Docker, known by the files that these leave on disk.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and says why it is skipped")]

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use namespan::enrich::container::{Container, Labels};
use namespan::enrich::docker;
use namespan::enrich::files::{Containerd, Docker, Files, Layout, Storage, Users};
use namespan::enrich::runtime::{Line, Link, Place, Runtime, Update, follow};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
const RUNS: usize = 20;
/// Not every test machine lets root raise these, which Podman would do.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// Whether there is all it takes; without it the tests pass, unless `NAMESPAN_REQUIRE_ALL` is set.
fn can_run(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).output();
        !found.is_ok_and(|output| output.status.success())
    });
    let root = rustix::process::geteuid().is_root();
    let reason = missing.map(|program| format!("{program} is missing")).or((!root).then(|| "not root".to_owned()));
    let Some(reason) = reason else { return true };
    assert!(std::env::var_os("NAMESPAN_REQUIRE_ALL").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
    false
}

#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn root_file_system() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    for applet in ["sh", "echo", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    root
}

const CAPACITY: NonZeroUsize = NonZeroUsize::new(64).unwrap();

fn labels() -> Labels {
    Labels { sent: vec!["team".to_owned()], matched: Vec::new() }
}

/// All that a runtime has told so far, and when.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(Instant, Update)>>>);

impl Told {
    fn by(layout: impl Layout + 'static) -> (Self, mpsc::Sender<String>) {
        Self::of(Box::new(Files::new(layout, labels(), CAPACITY)))
    }

    fn of(runtime: Box<dyn Runtime>) -> (Self, mpsc::Sender<String>) {
        let (lookups, asked) = mpsc::channel(64);
        let (tell, mut updates) = mpsc::channel(64);
        tokio::spawn(follow(runtime, Line::new(0, asked, tell)));
        let told = Self::default();
        let all = told.0.clone();
        tokio::spawn(async move {
            while let Some((_, update)) = updates.recv().await {
                all.lock().unwrap().push((Instant::now(), update));
            }
        });
        (told, lookups)
    }

    async fn once<T>(&self, found: impl Fn(&Update) -> Option<T>) -> (Instant, T) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let hit = self.0.lock().unwrap().iter().find_map(|(at, update)| Some((*at, found(update)?)));
            if let Some(hit) = hit {
                return hit;
            }
            assert!(Instant::now() < deadline, "not in time: {:#?}", self.0.lock().unwrap());
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn named(&self, name: &str) -> (Instant, Arc<Container>) {
        self.once(|update| match update {
            Update::Known { container, .. } if container.name.as_deref() == Some(name) => Some(Arc::clone(container)),
            Update::Known { .. } | Update::Unknown { .. } | Update::Gone { .. } | Update::State(_) => None,
        })
        .await
    }

    async fn place(&self, id: &str) -> Place {
        let place = self.once(|update| match update {
            Update::Known { container, place, .. } if container.id == id && place.pid.is_some() => Some(place.clone()),
            Update::Known { .. } | Update::Unknown { .. } | Update::Gone { .. } | Update::State(_) => None,
        });
        place.await.1
    }

    async fn gone(&self, key: &str) {
        self.once(|update| matches!(update, Update::Gone { key: gone } if gone == key).then_some(())).await;
    }

    async fn connected(&self) {
        self.once(|update| matches!(update, Update::State(Link::Connected)).then_some(())).await;
    }
}

/// Runs it; when the first line came out.
async fn first_output(mut command: Command) -> Instant {
    let run = move || {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(line == "hello\n", "{command:?}: {line}{}", String::from_utf8_lossy(&output.stderr));
        at
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Podman's storage of one test's own, with one image.
struct Podman {
    home: tempfile::TempDir,
    oci_runtime: &'static str,
}

impl Podman {
    fn new(oci_runtime: &'static str) -> Self {
        let podman = Self { home: tempfile::tempdir().unwrap(), oci_runtime };
        let image = root_file_system();
        let mut tar =
            Command::new("tar").arg("-C").arg(image.path()).args(["-c", "."]).stdout(Stdio::piped()).spawn().unwrap();
        done(podman.command(&["import", "-", "localhost/nstest:one"]).stdin(tar.stdout.take().unwrap()));
        tar.wait().unwrap();
        podman
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn storage(&self) -> Storage {
        Storage::podman(self.path("root"), self.path("run"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        // crun takes cgroup v1 and v2, but not both.
        let alone =
            r#"[ "$1" != crun ] || ! [ -e /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; shift; exec "$@""#;
        command.args(["--mount", "sh", "-c", alone, "sh", self.oci_runtime, "podman", "--runtime", self.oci_runtime]);
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.path(name));
        }
        command.args(["--cgroup-manager=cgroupfs", "--storage-driver=vfs", "--events-backend=file"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Command {
        self.command(&[&["run", "--network=none"], &LIMITS[..], arguments].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.command(&["rm", "-fa", "-t0"]).output() {
            eprintln!("containers stay behind: {error}");
        }
        // What cleans up after a container may still be at it, and make a folder anew.
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut empty_since = None;
        while Instant::now() < deadline && empty_since.is_none_or(|since: Instant| since.elapsed().as_millis() < 200) {
            if std::fs::remove_dir_all(self.home.path()).is_ok() {
                empty_since = None;
            } else if !self.home.path().exists() {
                empty_since.get_or_insert_with(Instant::now);
            }
            std::thread::yield_now();
        }
    }
}

async fn podman_names_containers_in_time(oci_runtime: &'static str) {
    if !can_run(&["podman", oci_runtime, "conmon", "unshare", "/bin/busybox"]) {
        return;
    }
    let podman = Podman::new(oci_runtime);
    let (told, lookups) = Told::by(podman.storage());
    told.connected().await;
    let image_id = done(&mut podman.command(&["images", "-q", "--no-trunc", "nstest:one"]));
    for number in 0..RUNS {
        let name = format!("moment{number}");
        let run = podman.run(&["--rm", "--name", &name, "-e", "OTEL_SERVICE_NAME=shop", "nstest:one", "echo", "hello"]);
        let printed = first_output(run).await;
        let (at, container) = told.named(&name).await;
        assert!(at < printed, "{name}: {:?} late", at - printed);
        let image = container.image.clone().unwrap();
        assert_eq!((image.name.as_str(), image.tags), ("localhost/nstest", vec!["one".to_owned()]));
        assert_eq!(image.id.as_deref(), Some(image_id.as_str()));
        assert_eq!((container.runtime, container.service.name.as_deref()), ("podman", Some("shop")));
        told.gone(&container.key()).await;
    }

    // One that stays, is renamed, asked for, stopped and started.
    let id = done(&mut podman.run(&["-d", "--name", "stays", "nstest:one", "sleep", "600"]));
    let place = told.place(&id).await;
    assert_eq!(place.cgroup, Some(format!("/libpod_parent/libpod-{id}")));
    let shown = std::fs::read_to_string(format!("/proc/{}/cgroup", place.pid.unwrap())).unwrap();
    assert!(shown.contains(&place.cgroup.unwrap()), "{shown}");
    done(&mut podman.command(&["rename", "stays", "renamed"]));
    told.named("renamed").await;
    let (late, _) = Told::by(podman.storage());
    late.named("renamed").await;
    told.0.lock().unwrap().clear();
    lookups.send(id.clone()).await.unwrap();
    told.named("renamed").await;
    told.0.lock().unwrap().clear();
    done(&mut podman.command(&["stop", "-t0", "renamed"]));
    told.gone(&id).await;
    told.0.lock().unwrap().clear();
    done(&mut podman.command(&["start", "renamed"]));
    told.named("renamed").await;
    lookups.send("0123456789abcdef".repeat(4)).await.unwrap();
    told.once(|update| matches!(update, Update::Unknown { key: id } if id.starts_with("0123")).then_some(())).await;
    done(&mut podman.command(&["rm", "-f", "-t0", "renamed"]));
    told.gone(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_s_containers_are_named_before_they_run_by_runc() {
    podman_names_containers_in_time("runc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_s_containers_are_named_before_they_run_by_crun() {
    podman_names_containers_in_time("crun").await;
}

/// Goes when the test does.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("{} stays behind: {error}", self.0.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_s_socket_tells_what_its_files_tell_and_labels() {
    if !can_run(&["podman", "runc", "conmon", "unshare", "/bin/busybox"]) {
        return;
    }
    let podman = Podman::new("runc");
    let socket = podman.path("socket");
    let address = format!("unix://{}", socket.display());
    let _service = Service(podman.command(&["system", "service", "--time=0", &address]).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "no socket");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let by_socket = docker::Daemon::new("podman", socket, labels(), CAPACITY, Duration::from_secs(5));
    let ((api, _lookups), (files, _lookups2)) = (Told::of(Box::new(by_socket)), Told::by(podman.storage()));
    api.connected().await;
    files.connected().await;
    for number in 0..5 {
        let name = format!("moment{number}");
        let options = ["--rm", "--name", &name, "--label", "team=core", "-e", "OTEL_SERVICE_NAME=shop"];
        first_output(podman.run(&[&options[..], &["nstest:one", "echo", "hello"]].concat())).await;
        let (by_api, by_files) = (api.named(&name).await.1, files.named(&name).await.1);
        assert_eq!(by_api.labels, [("team".to_owned(), "core".to_owned())]);
        assert_eq!(by_api.image, by_files.image);
        assert_eq!(by_api.key(), by_files.key());
        api.gone(&by_api.id).await;
    }
    let id =
        done(&mut podman.run(&["-d", "--name", "stays", "-e", "OTEL_SERVICE_NAME=shop", "nstest:one", "sleep", "600"]));
    let (by_api, by_files) = (api.place(&id).await, files.place(&id).await);
    assert_eq!(by_api.pid, by_files.pid);
    let (by_api, by_files) = (api.named("stays").await.1, files.named("stays").await.1);
    assert_eq!(by_api, by_files);
}

/// A user who is there as long as the test, logged in as far as Podman can tell.
struct User {
    name: String,
    id: u32,
}

impl User {
    fn new() -> Self {
        let name = format!("nstest{}", std::process::id());
        done(Command::new("useradd").args(["-m", &name]));
        let id = done(Command::new("id").args(["-u", &name])).parse().unwrap();
        let user = Self { name, id };
        std::fs::create_dir_all(user.run()).unwrap();
        std::os::unix::fs::chown(user.run(), Some(id), Some(id)).unwrap();
        user
    }

    fn run(&self) -> PathBuf {
        PathBuf::from(format!("/run/user/{}", self.id))
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("su");
        let script = r#"cd; exec podman --runtime=runc --cgroup-manager=cgroupfs --events-backend=file "$@""#;
        command.args(["--shell=/bin/sh", "-c", script, &self.name, "--", "sh"]).args(arguments);
        command.env("XDG_RUNTIME_DIR", self.run());
        command
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // The last one ends the process that holds the user's namespaces.
        let (removed, ended) =
            (self.podman(&["rm", "-fa", "-t0"]).output(), self.podman(&["system", "migrate"]).output());
        let deleted = Command::new("userdel").args(["-rf", &self.name]).output();
        let gone = std::fs::remove_dir_all(self.run());
        for error in [removed.err(), ended.err(), deleted.err(), gone.err()].into_iter().flatten() {
            eprintln!("{} stays behind: {error}", self.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_containers_are_named_before_they_run_and_told_by_their_process() {
    if !can_run(&["podman", "runc", "conmon", "useradd", "newuidmap", "su", "/bin/busybox"]) {
        return;
    }
    let (told, lookups) = Told::of(Box::new(Files::of_users(Users::default(), labels(), CAPACITY)));
    told.connected().await;
    let (user, image) = (User::new(), root_file_system());
    std::os::unix::fs::chown(image.path(), Some(user.id), None).unwrap();
    let tar = image.path().join("../").join(format!("{}.tar", user.name));
    done(Command::new("tar").arg("-C").arg(image.path()).args(["-c", ".", "-f"]).arg(&tar));
    done(&mut user.podman(&["import", tar.to_str().unwrap(), "localhost/nstest:one"]));
    std::fs::remove_file(tar).unwrap();
    let options = ["--network=none", "--ulimit=host", "-e", "OTEL_SERVICE_NAME=shop"];
    for number in 0..RUNS {
        let name = format!("{}-{number}", user.name);
        let run = [&["run", "--rm", "--name", &name], &options[..], &["nstest:one", "echo", "hello"]].concat();
        let printed = first_output(user.podman(&run)).await;
        let (at, container) = told.named(&name).await;
        assert!(at < printed, "{name}: {:?} late", at - printed);
        assert_eq!((container.user, container.runtime), (Some(user.id), "podman"));
        let image = container.image.as_ref().map(|image| image.name.as_str());
        assert_eq!((image, container.service.name.as_deref()), (Some("localhost/nstest"), Some("shop")));
        told.gone(&container.key()).await;
    }
    let name = format!("{}-x", user.name);
    let run = [&["run", "-d", "--name", &name], &options[..], &["nstest:one", "sleep", "600"]].concat();
    let id = done(&mut user.podman(&run));
    let place = told.place(&id).await;
    let namespace = |pid: &str, kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["mnt", "pid", "user"] {
        assert_ne!(namespace(&place.pid.unwrap().to_string(), kind), namespace("self", kind));
    }
    told.0.lock().unwrap().clear();
    let key = format!("{}/podman/{id}", user.id);
    lookups.send(key.clone()).await.unwrap();
    assert_eq!(told.named(&name).await.1.key(), key);
    done(&mut user.podman(&["kill", &name]));
    told.gone(&key).await;
}

/// A containerd of one test's own.
struct Daemon {
    home: tempfile::TempDir,
    _service: Service,
}

impl Daemon {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{}'\n[ttrpc]\naddress = '{}'\n",
            path("root"),
            path("state"),
            path("socket"),
            path("ttrpc"),
        );
        std::fs::write(path("config"), config).unwrap();
        let mut command = Command::new("containerd");
        let service =
            command.args(["-c", &path("config")]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { home, _service: Service(service) };
        let deadline = Instant::now() + PATIENCE;
        while !daemon.ctr(&["version"]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
        }
        daemon
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.home.path().join("socket")).args(arguments);
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_s_containers_are_named_before_they_run() {
    if !can_run(&["containerd", "ctr", "runc", "/bin/busybox"]) {
        return;
    }
    let (daemon, image) = (Daemon::start(), root_file_system());
    let (told, lookups) = Told::by(Containerd::new(&daemon.home.path().join("state")));
    told.connected().await;
    let root = image.path().to_str().unwrap();
    for number in 0..RUNS {
        let name = format!("moment.{number}");
        let (namespace, key) = (format!("team{}", number % 3), format!("containerd/team{}/{name}", number % 3));
        let run =
            ["-n", &namespace, "run", "--rm", "--label", "team=core", "--env", "OTEL_SERVICE_NAME=shop", "--rootfs"];
        let printed = first_output(daemon.ctr(&[&run[..], &[root, &name, "/bin/echo", "hello"]].concat())).await;
        let (at, container) = told.named(&name).await;
        assert!(at < printed, "{name}: {:?} late", at - printed);
        assert_eq!((container.key().as_ref(), container.runtime), (key.as_str(), "containerd"));
        assert_eq!(container.service.name.as_deref(), Some("shop"));
        assert_eq!(container.labels, [("team".to_owned(), "core".to_owned())]);
        told.gone(&key).await;
    }
    done(&mut daemon.ctr(&["run", "-d", "--rootfs", root, "stays", "/bin/sleep", "600"]));
    let place = told.place("stays").await;
    assert_eq!(place.cgroup.as_deref(), Some("/default/stays"));
    told.0.lock().unwrap().clear();
    lookups.send("containerd/default/stays".to_owned()).await.unwrap();
    told.named("stays").await;
    done(&mut daemon.ctr(&["task", "kill", "-s", "9", "stays"]));
    told.gone("containerd/default/stays").await;
    done(&mut daemon.ctr(&["task", "rm", "stays"]));
    done(&mut daemon.ctr(&["container", "rm", "stays"]));
}

/// A container that goes when the test does.
struct Remove(String);

impl Drop for Remove {
    fn drop(&mut self) {
        let removed = Command::new("sh").args(["-c", "docker rm -f $1-x; docker rmi $1", "sh", &self.0]).output();
        if let Err(error) = removed {
            eprintln!("{} stays behind: {error}", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_s_containers_are_named_without_its_socket() {
    if !can_run(&["docker", "/bin/busybox"]) {
        return;
    }
    let Some(root) = Command::new("docker").args(["info", "-f", "{{.DockerRootDir}}"]).output().ok() else { return };
    let root = String::from_utf8(root.stdout).unwrap().trim().to_owned();
    if !Path::new(&root).is_absolute() {
        assert!(std::env::var_os("NAMESPAN_REQUIRE_ALL").is_none(), "Docker does not answer");
        eprintln!("skipped: Docker does not answer");
        return;
    }
    let image = Remove(format!("nstest-files-{}", std::process::id()));
    let files = root_file_system();
    let script = r#"tar -C "$1" -c . | docker import - "$2""#;
    done(Command::new("sh").args(["-c", script, "sh", files.path().to_str().unwrap(), &image.0]));
    let (told, lookups) = Told::by(Docker::new(root.into()));
    told.connected().await;
    let docker = |arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.args(arguments);
        command
    };
    let options = ["--network=none", "--label", "team=core", "-e", "OTEL_SERVICE_NAME=shop"];
    for number in 0..RUNS {
        let name = format!("{}-{number}", image.0);
        let run = docker(&[&["run", "--rm", "--name", &name], &options[..], &[&image.0, "echo", "hello"]].concat());
        let printed = first_output(run).await;
        let (at, container) = told.named(&name).await;
        assert!(at < printed, "{name}: {:?} late", at - printed);
        assert_eq!(container.image.as_ref().map(|found| found.name.as_str()), Some(image.0.as_str()));
        assert_eq!(container.service.name.as_deref(), Some("shop"));
        assert_eq!(container.labels, [("team".to_owned(), "core".to_owned())]);
        told.gone(&container.id).await;
    }
    let name = format!("{}-x", image.0);
    let id = done(&mut docker(&[&["run", "-d", "--name", &name], &options[..], &[&image.0, "sleep", "600"]].concat()));
    let pid = done(&mut docker(&["inspect", "-f", "{{.State.Pid}}", &id]));
    let place = told.place(&id).await;
    assert!(place.pid == pid.parse().ok() && place.cgroup.is_some_and(|path| path.contains(&id)));
    told.0.lock().unwrap().clear();
    lookups.send(id.clone()).await.unwrap();
    told.named(&name).await;
    done(&mut docker(&["kill", &id]));
    told.gone(&id).await;
}
