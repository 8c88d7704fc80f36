//! A real containerd, with an image.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use namespan::enrich::container::Labels;
use namespan::enrich::containerd::Containerd;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{PATIENCE, Source};

pub const IMAGE: &str = "docker.io/library/nstest:one";

/// Whether there is all that a containerd needs; without it the tests pass, unless `NAMESPAN_REQUIRE_ALL` is set.
pub fn possible() -> bool {
    let needed = ["/usr/bin/containerd", "/usr/bin/ctr", "/bin/busybox"];
    let missing = needed.into_iter().find(|path| !Path::new(path).exists());
    let root = rustix::process::geteuid().is_root();
    let missing = missing.or_else(|| (!root).then_some("root"));
    if let Some(missing) = missing {
        assert!(std::env::var_os("NAMESPAN_REQUIRE_ALL").is_none(), "{missing} is missing");
        eprintln!("skipped: {missing} is missing");
    }
    missing.is_none()
}

pub fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A containerd of one test's own; what it runs goes with it.
pub struct Daemon {
    pub directory: TempDir,
    child: Option<Child>,
}

impl Daemon {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Self { directory, child: None };
        let place = daemon.directory.path().display();
        let config = format!(
            r#"version = 2
            root = "{place}/root"
            state = "{place}/state"
            [grpc]
            address = "{place}/socket"
            [plugins."io.containerd.internal.v1.opt"]
            path = "{place}/opt"
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "{IMAGE}"
            stream_server_port = "0"
            restrict_oom_score_adj = true
            "#
        );
        std::fs::write(daemon.path("config.toml"), config).unwrap();
        daemon.go().await;
        let archive = daemon.image();
        for namespace in ["default", "k8s.io", "other", "moby"] {
            daemon.ctr(&["-n", namespace, "images", "import", &archive]);
        }
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn go(&mut self) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut containerd = Command::new("containerd");
        containerd.arg("--config").arg(self.path("config.toml")).stderr(log).stdout(Stdio::null());
        self.child = Some(containerd.spawn().unwrap());
        let socket = self.path("socket");
        let answers = || Command::new("ctr").arg("-a").arg(&socket).arg("version").output().unwrap().status.success();
        let deadline = Instant::now() + PATIENCE;
        while !answers() {
            assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(self.path("log")).unwrap());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }

    /// As `docker save` writes it.
    fn image(&self) -> String {
        let script = r#"set -e
            mkdir -p "$1/layer/bin" && cd "$1" && cp /bin/busybox layer/bin
            for applet in sh sleep true echo; do ln -s busybox layer/bin/$applet; done
            tar -C layer -cf layer.tar .
            digest=$(sha256sum layer.tar | cut -d' ' -f1)
            printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sleep","600"]},
                "rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$digest" > config.json
            printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" > manifest.json
            tar -cf image.tar manifest.json config.json layer.tar"#;
        let place = self.path("image");
        command("sh", &["-c", script, "sh", place.to_str().unwrap(), IMAGE]);
        place.join("image.tar").to_str().unwrap().to_owned()
    }

    pub fn ctr(&self, arguments: &[&str]) -> String {
        let socket = self.path("socket");
        command("ctr", &[&["-a", socket.to_str().unwrap()], arguments].concat())
    }

    pub fn digest(&self) -> String {
        let images = self.ctr(&["images", "list"]);
        images.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned()
    }

    pub async fn native(&self, labels: &[&str]) -> Source {
        let labels = Labels { sent: labels.iter().map(ToString::to_string).collect(), matched: Vec::new() };
        Source::connected(Containerd::new(self.path("socket"), labels, NonZeroUsize::new(64).unwrap())).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let script = r#"for namespace in $(ctr -a "$1/socket" namespaces list -q); do
                for task in $(ctr -a "$1/socket" -n "$namespace" tasks list -q); do
                    ctr -a "$1/socket" -n "$namespace" tasks rm -f "$task"
                done
            done
            while read -r _ mounted _; do case "$mounted" in "$1"/*) umount -l "$mounted";; esac; done < /proc/mounts"#;
        let place = self.directory.path().to_str().unwrap_or_default();
        if let Err(error) = Command::new("sh").args(["-c", script, "sh", place]).output() {
            eprintln!("{place} stays behind: {error}");
        }
        self.stop();
    }
}
