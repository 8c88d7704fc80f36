//! A containerd of our own, its CRI plugin on, beside whatever else runs here; all that it has made goes with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::image::{Image, public_directory, succeed, unique};
use crate::process::Process;
use crate::watched::poll;
use crate::{PATIENCE, cgroup};

/// `statfs(2)`.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
/// The namespace of what is made over CRI.
pub const CRI_NAMESPACE: &str = "k8s.io";

#[derive(Debug)]
pub struct Containerd {
    pub image: Image,
    /// Namespace of what `ctr` makes; cgroups lie below it: `/NAMESPACE/ID`.
    pub namespace: String,
    pub socket: PathBuf,
    snapshotter: &'static str,
    process: Option<Process>,
    directory: TempDir,
}

impl Containerd {
    /// Ready for both clients when it returns, with the image in both namespaces.
    #[must_use]
    pub fn start() -> Self {
        let directory = public_directory();
        let image = Image::new();
        let on_overlay = rustix::fs::statfs(directory.path()).unwrap().f_type == OVERLAYFS_MAGIC;
        // An overlay on an overlay is refused by the kernel.
        let snapshotter = if on_overlay { "native" } else { "overlayfs" };
        let config = directory.path().join("config.toml");
        fs::write(&config, settings(directory.path(), snapshotter, &image.tagged())).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config);
        let process = Process::start(command);
        process.wait_for_line("containerd successfully booted", PATIENCE);
        let socket = directory.path().join("containerd.sock");
        let namespace = unique("nstest");
        let this = Self { image, namespace, socket, snapshotter, process: Some(process), directory };
        for namespace in [&this.namespace, CRI_NAMESPACE] {
            let mut import = this.ctr(namespace);
            succeed(import.args(["images", "import", "--snapshotter", snapshotter]).arg(&this.image.archive));
        }
        this
    }

    /// As an argument of `namespan run --runtime`.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("containerd={}", self.socket.display())
    }

    /// `ctr run --rm` to the end. Any id will do, but it is used once.
    pub fn run(&self, id: &str, options: &[&str], command: &[&str]) {
        self.ctr_run(id, &[&["--rm"], options].concat(), command);
    }

    /// `ctr run --detach`, and until it runs.
    pub fn start_container(&self, id: &str, command: &[&str]) {
        self.ctr_run(id, &["--detach"], command);
    }

    /// `ctr task exec` to its end.
    pub fn exec(&self, id: &str, command: &[&str]) {
        let exec_id = unique("exec");
        succeed(self.ctr(&self.namespace).args(["task", "exec", "--exec-id", &exec_id, id]).args(command));
    }

    fn ctr_run(&self, id: &str, options: &[&str], command: &[&str]) {
        let mut run = self.ctr(&self.namespace);
        run.args(["run", "--snapshotter", self.snapshotter])
            .args(options)
            .args([&self.image.tagged(), id])
            .args(command);
        succeed(&mut run);
    }

    fn ctr(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", namespace]);
        command
    }

    /// Ends what still runs.
    fn clear(&self) {
        for namespace in [&self.namespace, CRI_NAMESPACE] {
            let clear = r#"ctr="$*"; for id in $($ctr task ls -q); do $ctr task rm -f "$id"; done
                for id in $($ctr container ls -q); do $ctr container rm "$id"; done"#;
            let ctr = self.ctr(namespace);
            let done =
                Command::new("sh").args(["-c", clear, "sh"]).arg(ctr.get_program()).args(ctr.get_args()).output();
            if !done.is_ok_and(|output| output.status.success()) {
                eprintln!("containers of {namespace} at {} stay behind", self.socket.display());
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.clear();
        if let Some(process) = self.process.take() {
            process.signal(Signal::TERM);
            if !process.ended(Duration::from_secs(10)) {
                eprintln!("containerd at {} is killed", self.socket.display());
            }
        }
        let shims_gone = poll(Duration::from_secs(10), || shims(&self.socket).is_empty().then_some(()));
        if shims_gone.is_none() {
            eprintln!("shims of {} stay behind: {:?}", self.socket.display(), shims(&self.socket));
        }
        unmount_below(self.directory.path());
        cgroup::remove(&self.namespace);
    }
}

fn settings(directory: &Path, snapshotter: &str, pause: &str) -> String {
    let at = directory.display();
    // Without CAP_SYS_RESOURCE a score cannot be lowered.
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/state"
temp = "{at}/temp"
[grpc]
address = "{at}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
"#
    )
}

/// Pids of the shims that belong to this socket.
fn shims(socket: &Path) -> Vec<String> {
    let ours = format!("\0-address\0{}\0", socket.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let is_ours = |path: &Path| fs::read_to_string(path.join("cmdline")).is_ok_and(|line| line.contains(&ours));
    entries.filter(|entry| is_ours(&entry.path())).map(|entry| entry.file_name().display().to_string()).collect()
}

/// Deepest first.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.rev().filter(|point| point.starts_with(directory)) {
        if let Err(error) = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", point.display());
        }
    }
}
