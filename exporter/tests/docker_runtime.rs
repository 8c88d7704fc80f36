//! Real containers of a real Docker daemon, through the watching task into the enricher.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and says why it is skipped"
)]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use namespan::config::{self, Enrich, Reach, Runtimes};
use namespan::enrich::cgroup::resolve;
use namespan::enrich::container::{Container, Labels};
use namespan::enrich::docker::Daemon;
use namespan::enrich::runtime::{Line, Link, Update, follow};
use namespan::enrich::{Attribution, Enricher, How, Owner, Source, Verdict};
use namespan::event::{CgroupPath, Event, Exit, ExitStatus, Kind};
use namespan::model::resource::{Host, Subject, encode_resource};
use namespan_ebpf::wire;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zerocopy::FromZeros;

const SOCKET: &str = "/var/run/docker.sock";
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is a daemon; without one the tests pass, unless `NAMESPAN_REQUIRE_DOCKER` is set.
fn daemon() -> bool {
    let there = Path::new(SOCKET).exists() && Path::new("/bin/busybox").exists();
    if !there {
        let missing = format!("{SOCKET} or /bin/busybox is missing");
        assert!(std::env::var_os("NAMESPAN_REQUIRE_DOCKER").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
    }
    there
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image of one test's own; it and the containers made from it go with it.
struct Image {
    name: String,
}

impl Image {
    fn new(test: &str) -> Self {
        let name = format!("nstest-enrich-{test}-{}", std::process::id());
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bin")).unwrap();
        std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
        for applet in ["sh", "true", "sleep"] {
            std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet)).unwrap();
        }
        let script = r#"tar -C "$1" -c . | docker import - "$2:one""#;
        let root = root.path().to_str().unwrap();
        assert!(Command::new("sh").args(["-c", script, "sh", root, &name]).status().unwrap().success());
        Self { name }
    }

    fn tagged(&self) -> String {
        format!("{}:one", self.name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let script = r#"docker ps -aq --filter "name=^/$1" | xargs -r docker rm -f
            docker images -q --no-trunc "$1" | sort -u | xargs -r docker rmi -f"#;
        let done = Command::new("sh").args(["-c", script, "sh", &self.name]).output();
        if let Err(error) = done {
            eprintln!("{} stays behind: {error}", self.name);
        }
    }
}

struct Pipeline {
    enricher: Enricher,
    updates: mpsc::Receiver<(usize, Update)>,
    lookups: mpsc::Sender<String>,
    unknown: Vec<String>,
    links: Vec<Link>,
}

impl Pipeline {
    fn start(socket: &Path, labels: &[&str]) -> Self {
        let config = Enrich {
            runtimes: Runtimes { docker: Reach::At(socket.to_owned()), ..Runtimes::OFF },
            cache_entries: NonZeroUsize::new(256).unwrap(),
            cache_grace: Duration::from_secs(60),
            cache_negative: Duration::from_secs(60),
            wait: Duration::from_secs(5),
            wait_bytes: 0,
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        let (lookups, asked) = mpsc::channel(64);
        let (told, updates) = mpsc::channel(64);
        let labels = Labels { sent: config.labels.clone(), matched: Vec::new() };
        let daemon = Daemon::new("docker", socket.to_owned(), labels, config.cache_entries, config.wait * 3 / 4);
        tokio::spawn(follow(Box::new(daemon), Line::new(0, asked, told)));
        let answers_for = &["docker", "containerd"];
        let source = Source { name: "docker", answers_for, files: false, lookups: lookups.clone() };
        let enricher = Enricher::new(&config, vec![source]);
        Self { enricher, updates, lookups, unknown: Vec::new(), links: Vec::new() }
    }

    async fn connected(socket: &Path, labels: &[&str]) -> Self {
        let mut pipeline = Self::start(socket, labels);
        pipeline.until(|pipeline| pipeline.links.last() == Some(&Link::Connected)).await;
        pipeline
    }

    /// Takes updates until it holds.
    async fn until(&mut self, holds: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(Some((source, update))) = timeout(left, self.updates.recv()).await else { panic!("not in time") };
            match &update {
                Update::Unknown { key: id } => self.unknown.push(id.clone()),
                Update::State(link) => self.links.push(link.clone()),
                Update::Known { .. } | Update::Gone { .. } => {}
            }
            self.enricher.apply(source, update, Instant::now());
        }
    }

    fn attribute(&mut self, id: &str) -> Verdict {
        let path = format!("{id}\0docker\0").into_bytes();
        let mut process = wire::Process::new_zeroed();
        process.cgroup_id = u64::from_str_radix(&id[..15], 16).unwrap();
        let kind = Kind::Exit(Exit { status: ExitStatus(0), image: None, oom_victim: false });
        let cgroup = CgroupPath(&path);
        let event = Event { process, nodename: b"", tty: b"", cgroup, cgroup_v1: CgroupPath(b""), kind };
        let stand = self.enricher.stand(&event, Instant::now());
        self.enricher.attribute(&stand, Instant::now())
    }

    fn resolved(&mut self, id: &str) -> Option<(Arc<Container>, How)> {
        match self.attribute(id) {
            Verdict::Ready(Attribution { owner: Owner::Container(container), how, .. }) => Some((container, how)),
            Verdict::Ready(Attribution { owner: Owner::Host(_), .. }) | Verdict::Wait { .. } => None,
        }
    }

    async fn named(&mut self, id: &str, name: &str) -> (Arc<Container>, How) {
        let named = |pipeline: &mut Self| {
            pipeline.resolved(id).filter(|(container, _)| container.name.as_deref() == Some(name))
        };
        self.until(|pipeline| named(pipeline).is_some()).await;
        named(self).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_old_and_new_are_known_by_name_image_and_allowed_labels() {
    if !daemon() {
        return;
    }
    let image = Image::new("known");
    let labels = [
        "--label",
        "com.example.team=core",
        "--label",
        "com.example=no",
        "--label",
        "version=7",
        "--label",
        "secret=x",
    ];
    let run = |name: &str| {
        let mut arguments = vec!["run", "-d", "--name", name];
        arguments.extend(labels);
        let tagged = image.tagged();
        arguments.extend([tagged.as_str(), "sleep", "600"]);
        docker(&arguments)
    };
    let name = |suffix: &str| format!("{}-{suffix}", image.name);
    let old = run(&name("old"));
    let mut pipeline = Pipeline::connected(Path::new(SOCKET), &["com.example.*", "version"]).await;
    let new = run(&name("new"));
    let image_id = docker(&["image", "inspect", "-f", "{{.Id}}", &image.tagged()]);
    for (id, name, source) in [(&old, name("old"), How::RuntimeApi), (&new, name("new"), How::RuntimeEvent)] {
        let (container, how) = pipeline.named(id, &name).await;
        assert_eq!((container.id.as_str(), container.runtime), (id.as_str(), "docker"));
        let allowed = [("com.example.team", "core"), ("version", "7")].map(|(key, value)| (key.into(), value.into()));
        assert_eq!(container.labels, allowed);
        let found = container.image.clone().unwrap();
        assert_eq!(
            (found.name, found.tags, found.id),
            (image.name.clone(), vec!["one".to_owned()], Some(image_id.clone()))
        );
        assert_eq!(how, source);
    }
    assert_eq!(id_by_path(&docker(&["inspect", "-f", "{{.State.Pid}}", &old])), Some(old));
    docker(&["rename", &new, &name("renamed")]);
    let (container, _) = pipeline.named(&new, &name("renamed")).await;
    assert_eq!(container.image.as_ref().and_then(|image| image.id.as_deref()), Some(image_id.as_str()));
    assert_eq!(container.labels.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_image_has_lost_its_name_still_tells_it() {
    if !daemon() {
        return;
    }
    let image = Image::new("untagged");
    let name = format!("{}-x", image.name);
    let id = docker(&["run", "-d", "--name", &name, &image.tagged(), "sleep", "600"]);
    let image_id = docker(&["inspect", "-f", "{{.Image}}", &id]);
    docker(&["rmi", "-f", &image.tagged()]);
    let mut pipeline = Pipeline::connected(Path::new(SOCKET), &[]).await;
    let (container, _) = pipeline.named(&id, &name).await;
    docker(&["rm", "-f", &id]);
    docker(&["rmi", &image_id]);
    let found = container.image.clone().unwrap();
    assert_eq!((found.name, found.tags, found.id), (image.name.clone(), vec!["one".to_owned()], Some(image_id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_never_known_without_the_service_that_it_is_configured_to_be() {
    if !daemon() {
        return;
    }
    let image = Image::new("service");
    let tagged = image.tagged();
    let name = |suffix: &str| format!("{}-{suffix}", image.name);
    let attributes = "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test,host.name=evil";
    let options = ["-e", "OTEL_SERVICE_NAME=checkout", "-e", attributes, "-e", "PASSWORD=hunter2"];
    let labels = ["--label", "com.docker.compose.service=web", "--label", "com.docker.compose.project=site"];
    let make = |how: &[&str], name: &str| {
        docker(&[how, &["--name", name], &options, &labels, &[&tagged, "sleep", "600"]].concat())
    };
    let old = make(&["run", "-d"], &name("old"));
    let created = make(&["create"], &name("created"));
    let mut pipeline = Pipeline::connected(Path::new(SOCKET), &[]).await;
    let new = make(&["run", "-d"], &name("new"));
    docker(&["start", &created]);
    let sources =
        [("old", &old, How::RuntimeApi), ("new", &new, How::RuntimeEvent), ("created", &created, How::RuntimeEvent)];
    for (suffix, id, source) in sources {
        let (container, how) = pipeline.named(id, &name(suffix)).await;
        let service = &container.service;
        assert_eq!(
            (service.name.as_deref(), service.namespace.as_deref()),
            (Some("checkout"), Some("site")),
            "{suffix}"
        );
        assert!(how == source && !format!("{container:?}").contains("hunter2"), "{container:?}");
        let bytes = encode_resource(&Host::default(), Subject::Container(&container), &config::Resource::default());
        let resource = Resource::decode(&*bytes).unwrap();
        let value = |key: &str| {
            let pair = resource.attributes.iter().find(|pair| pair.key == key)?;
            let any_value::Value::StringValue(text) = pair.value.as_ref()?.value.as_ref()? else { return None };
            Some(text.as_str())
        };
        let found = ["service.name", "deployment.environment.name", "host.name"].map(value);
        assert_eq!(found, [Some("checkout"), Some("test"), None]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_looked_up_while_others_are_listed_is_known_with_its_service() {
    if !daemon() {
        return;
    }
    let image = Image::new("many");
    let tagged = image.tagged();
    let name = |number: usize| format!("{}-{number}", image.name);
    let run = |number| {
        let service = format!("OTEL_SERVICE_NAME=service{number}");
        docker(&["run", "-d", "--name", &name(number), "-e", &service, &tagged, "sleep", "600"])
    };
    let ids: Vec<_> = (0..20).map(run).collect();
    let mut pipeline = Pipeline::start(Path::new(SOCKET), &[]);
    for id in &ids {
        assert!(pipeline.resolved(id).is_none(), "waits");
    }
    for (number, id) in ids.iter().enumerate().rev() {
        let (container, how) = pipeline.named(id, &name(number)).await;
        assert_eq!((container.service.name.clone(), how), (Some(format!("service{number}")), How::RuntimeApi));
    }
    assert_eq!(pipeline.enricher.stats().unresolved, 0);
}

/// From the cgroup paths that the kernel shows for a process.
fn id_by_path(pid: &str) -> Option<String> {
    let shown = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |is: fn(&str) -> bool| {
        let line = shown.lines().find(|line| is(line)).unwrap_or_default();
        let components: Vec<_> = line.splitn(3, ':').nth(2).unwrap_or_default().split('/').rev().collect();
        components.join("\0").into_bytes()
    };
    let (v2, v1) = (path(|line| line.starts_with("0::")), path(|line| line.contains(":pids:")));
    resolve(CgroupPath(&v2), CgroupPath(&v1)).map(|found| found.id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_live_for_moments_are_all_known() {
    if !daemon() {
        return;
    }
    let image = Image::new("moments");
    let mut pipeline = Pipeline::connected(Path::new(SOCKET), &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let (tagged, path) = (image.tagged(), directory.path().to_owned());
    let names: Vec<_> = (0..20).map(|number| format!("{}-{number}", image.name)).collect();
    let runs = names.clone();
    let running = tokio::task::spawn_blocking(move || {
        let id_of = |name: &String| {
            let file = path.join(name);
            docker(&["run", "--rm", "--cidfile", file.to_str().unwrap(), "--name", name, &tagged, "true"]);
            std::fs::read_to_string(file).unwrap()
        };
        runs.iter().map(id_of).collect::<Vec<_>>()
    });
    let ids = running.await.unwrap();
    for (id, name) in ids.iter().zip(&names) {
        let (container, how) = pipeline.named(id, name).await;
        assert_eq!(how, How::RuntimeEvent);
        assert!(container.image.as_ref().is_some_and(|found| found.name == image.name && found.id.is_some()));
    }
    assert_eq!((pipeline.unknown.len(), pipeline.enricher.stats().unresolved), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_docker_does_not_know_is_said_to_be_unknown() {
    if !daemon() {
        return;
    }
    let image = Image::new("unknown");
    let mut pipeline = Pipeline::connected(Path::new(SOCKET), &[]).await;
    let id = "0123456789abcdef".repeat(4);
    docker(&["create", "--name", &format!("{}-x", image.name), &image.tagged(), "true"]);
    assert!(matches!(pipeline.attribute(&id), Verdict::Wait { .. }));
    pipeline.lookups.send(id.clone()).await.unwrap();
    pipeline.until(|pipeline| pipeline.unknown.contains(&id)).await;
    let (container, how) = pipeline.resolved(&id).unwrap();
    assert_eq!((container.id.as_str(), container.name.as_deref(), how), (id.as_str(), None, How::CgroupPath));
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_said_to_be_absent_and_nothing_waits() {
    let mut pipeline = Pipeline::start(&PathBuf::from("/nonexistent/docker.sock"), &[]);
    pipeline.until(|pipeline| matches!(pipeline.links.last(), Some(Link::Absent { .. }))).await;
    assert_eq!(pipeline.resolved(&"0123456789abcdef".repeat(4)).unwrap().1, How::CgroupPath);
}

/// Stands between us and the daemon; drop it, and the daemon is gone.
struct Proxy {
    _connections: JoinSet<()>,
}

impl Proxy {
    fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut streams = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                streams.spawn(async move {
                    let mut far = UnixStream::connect(SOCKET).await?;
                    copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Self { _connections: connections }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_daemon_was_away_is_made_up_for() {
    if !daemon() {
        return;
    }
    let image = Image::new("away");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let proxy = Proxy::start(&socket);
    let mut pipeline = Pipeline::connected(&socket, &[]).await;
    drop(proxy);
    std::fs::remove_file(&socket).unwrap();
    pipeline.until(|pipeline| matches!(pipeline.links.last(), Some(Link::Lost { .. }))).await;
    let name = |suffix: &str| format!("{}-{suffix}", image.name);
    let file = directory.path().join("id");
    let (moment, tagged) = (name("moment"), image.tagged());
    docker(&["run", "--rm", "--cidfile", file.to_str().unwrap(), "--name", &moment, &tagged, "true"]);
    let stays = docker(&["run", "-d", "--name", &name("stays"), &tagged, "sleep", "600"]);
    assert_eq!(pipeline.resolved(&stays).unwrap().1, How::CgroupPath);
    let _proxy = Proxy::start(&socket);
    pipeline.until(|pipeline| pipeline.links.last() == Some(&Link::Connected)).await;
    pipeline.named(&stays, &name("stays")).await;
    pipeline.named(&std::fs::read_to_string(file).unwrap(), &moment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_talks_nonsense_is_a_lost_one() {
    let version = r#"{"ApiVersion":"1.41"}"#;
    let nonsense = [
        "",
        "\0\0\0",
        "HTTP/1.1 200 OK\r\n\r\n{",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        "HTTP/1.1 500 No\r\n\r\n",
    ];
    for reply in nonsense {
        for honest in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("docker.sock");
            let listener = UnixListener::bind(&socket).unwrap();
            let answers = async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut request = vec![0; 4096];
                    let read = stream.read(&mut request).await.unwrap();
                    let reply = if honest && request[..read].windows(8).any(|bytes| bytes == b"/version") {
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{version}", version.len())
                    } else {
                        reply.to_owned()
                    };
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            };
            let daemon = tokio::spawn(answers);
            let mut pipeline = Pipeline::start(&socket, &[]);
            pipeline.until(|pipeline| matches!(pipeline.links.last(), Some(Link::Lost { .. }))).await;
            daemon.abort();
        }
    }
}
