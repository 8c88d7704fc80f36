//! Podman's containers, root's and users', under each layout of cgroups that hosts have.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::PATIENCE;
use crate::docker::Container;
use crate::host::cgroup2_mount;
use crate::image::{Image, public_directory, succeed, unique};
use crate::process::Process;
use crate::user::User;
use crate::watched::poll;

/// What `/sys/fs/cgroup` looks like to the runtime, and so where it puts a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// As this host has it.
    Mounted,
    /// cgroup v1 only: `/libpod_parent/libpod-ID` in each hierarchy, and the root of v2.
    V1,
    /// cgroup v2 only: `/libpod_parent/libpod-ID`.
    V2,
    /// cgroup v2 with systemd's names: `/machine.slice/libpod-ID.scope`, of crun with `/container` below;
    /// `/user.slice/user-UID.slice/user@UID.service/user.slice/libpod-ID.scope` of a user's own.
    Systemd,
}

/// Uses the host's own storage, or the user's.
#[derive(Debug)]
pub struct Podman {
    pub image: Image,
    /// All names of containers and pods begin so.
    pub prefix: String,
    runtime: &'static str,
    cgroups: Cgroups,
    view: View,
    user: Option<User>,
    directory: TempDir,
}

#[derive(Debug)]
pub struct Service {
    pub socket: PathBuf,
    _process: Process,
}

impl Service {
    /// As an argument of `namespan run --runtime`.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("podman={}", self.socket.display())
    }
}

/// Whatever podman starts counts on limits that a container host may raise; here is none who may.
const SETTINGS: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// Moves a container to where systemd would have it, without rules for devices, and calls the runtime.
const AS_BY_SYSTEMD: &str = r#"#!/bin/sh
for word; do
    [ "$before" = --bundle ] && bundle=$word
    before=$word
done
scope=SLICE/libpod-$word.scope
case $* in
create*)
    sed -i "s|\"cgroupsPath\":\"[^\"]*\"|\"cgroupsPath\":\"${scope}LEAF\"|" "$bundle/config.json"
    sed -i 's|"devices":\[{"allow":false,"access":"rwm"}\]|"devices":[]|' "$bundle/config.json"
    ;;
delete*)
    RUNTIME "$@"
    code=$?
    rmdir "/sys/fs/cgroup$scope" 2>/dev/null
    exit $code
    ;;
esac
exec RUNTIME "$@"
"#;

/// Below the user's service, as systemd has what a session starts.
const SESSION: &str = "app.slice/nstest.scope";
const USERS_SLICE: &str = "user.slice";

impl Podman {
    /// Root's, with this runtime: `crun` or `runc`.
    #[must_use]
    pub fn new(runtime: &'static str, cgroups: Cgroups) -> Self {
        Self::of(None, runtime, cgroups)
    }

    #[must_use]
    pub fn rootless(runtime: &'static str, cgroups: Cgroups) -> Self {
        let user = User::new();
        for cgroup in [SESSION, USERS_SLICE] {
            user.make_cgroup(&cgroup2_mount(), cgroup);
        }
        Self::of(Some(user), runtime, cgroups)
    }

    fn of(user: Option<User>, runtime: &'static str, cgroups: Cgroups) -> Self {
        let directory = public_directory();
        fs::write(directory.path().join("containers.conf"), SETTINGS).unwrap();
        let this = Self {
            image: Image::new(),
            prefix: unique("nstest"),
            runtime,
            cgroups,
            view: View::new(cgroups),
            user,
            directory,
        };
        let leaf = if runtime == "crun" { "/container" } else { "" };
        let wrapper = AS_BY_SYSTEMD.replace("SLICE", &this.slice()).replace("LEAF", leaf).replace("RUNTIME", runtime);
        let path = this.directory.path().join("runtime");
        fs::write(&path, wrapper).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // Ids of containers are written there.
        chown(this.directory.path(), this.uid(), None).unwrap();
        succeed(this.podman().args(["load", "--input"]).arg(&this.image.archive));
        this
    }

    #[must_use]
    pub fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.prefix)
    }

    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.user.as_ref().map(|user| user.uid)
    }

    /// `podman run` to the end, or with `--detach` until it runs; kept.
    #[must_use]
    pub fn run(&self, suffix: &str, options: &[&str], command: &[&str]) -> Container {
        let name = self.name(suffix);
        let tagged = self.image.tagged();
        let mut run = self.podman();
        run.args(["run", "--name", &name, "--network=none"]).args(self.options()).args(options);
        let stdout = succeed(run.arg(&tagged).args(command));
        let id = succeed(self.podman().args(["inspect", "--format", "{{.Id}}", &name])).trim().to_owned();
        assert_eq!(id.len(), 64);
        Container { id, name, stdout }
    }

    /// `podman run --rm`: gone when it returns.
    #[must_use]
    pub fn run_and_forget(&self, suffix: &str, command: &[&str]) -> Container {
        let name = self.name(suffix);
        let tagged = self.image.tagged();
        let file = self.directory.path().join(&name);
        let mut run = self.podman();
        run.args(["run", "--rm", "--name", &name, "--network=none"]).args(self.options());
        let stdout = succeed(run.arg("--cidfile").arg(&file).arg(&tagged).args(command));
        Container { id: fs::read_to_string(file).unwrap(), name, stdout }
    }

    /// A command in a running container, to its end.
    pub fn exec(&self, container: &Container, command: &[&str]) {
        succeed(self.podman().args(["exec", &container.name]).args(command));
    }

    /// A pod whose containers share these namespaces: `pid,ipc`. Its name.
    #[must_use]
    pub fn pod(&self, suffix: &str, share: &str) -> String {
        let name = self.name(suffix);
        let mut create = self.podman();
        create.args(["pod", "create", "--name", &name, "--share", share, "--infra-image", &self.image.tagged()]);
        succeed(create.args(["--infra-command", "/bin/sleep 1000000"]));
        name
    }

    /// Podman's API, at a socket of its own, until dropped.
    #[must_use]
    pub fn serve(&self) -> Service {
        let socket = self.directory.path().join("podman.sock");
        let mut command = self.podman();
        command.args(["system", "service", "--time=0"]).arg(format!("unix://{}", socket.display()));
        let process = Process::start(command);
        let up = poll(PATIENCE, || UnixStream::connect(&socket).ok());
        assert!(up.is_some(), "podman does not listen at {}", socket.display());
        Service { socket, _process: process }
    }

    /// `podman`, as its user, where cgroups are as they shall be.
    fn podman(&self) -> Command {
        let session = match (&self.user, self.cgroups) {
            (Some(user), Cgroups::V2 | Cgroups::Systemd) => {
                format!("echo $$ > /sys/fs/cgroup{}/{SESSION}/cgroup.procs;", user.service())
            }
            (Some(_), Cgroups::Mounted | Cgroups::V1) | (None, _) => String::new(),
        };
        let mut command = self.view.enter();
        command.args(["sh", "-ec"]).arg(format!(r#"{session} exec "$@""#));
        command.arg("sh").args(self.user.iter().flat_map(User::prefix)).arg("podman");
        if self.cgroups == Cgroups::Systemd {
            command.arg("--runtime").arg(self.directory.path().join("runtime"));
        } else {
            command.args(["--runtime", self.runtime]);
        }
        command.env("CONTAINERS_CONF", self.directory.path().join("containers.conf")).stdin(Stdio::null());
        command
    }

    /// What each container takes beside its own options.
    fn options(&self) -> &[&'static str] {
        match (&self.user, self.cgroups, self.runtime) {
            // Crun has a BPF program keep rules for devices, and raises a limit for it.
            (None, Cgroups::V2, "crun") => &["--privileged"],
            // Without it a user's container has no path to be replaced.
            (Some(_), Cgroups::Systemd, _) => &["--cgroup-parent=/user"],
            _ => &[],
        }
    }

    fn slice(&self) -> String {
        let users = |user: &User| format!("{}/{USERS_SLICE}", user.service());
        self.user.as_ref().map_or_else(|| "/machine.slice".to_owned(), users)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let lines = |arguments: &[&str]| {
            let output = self.podman().args(arguments).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let filter = format!("name=^{}", self.prefix);
        for (list, remove) in [(&["pod", "ps"][..], &["pod", "rm"][..]), (&["ps", "--all"], &["rm"])] {
            let listed = lines(&[list, &["--quiet", "--filter", &filter]].concat());
            let ids: Vec<_> = listed.split_whitespace().collect();
            if !ids.is_empty() {
                lines(&[remove, &["--force", "--time", "0"], &ids].concat());
            }
        }
        let done = self.podman().args(["rmi", "--force", &self.image.tagged()]).output();
        if !done.is_ok_and(|output| output.status.success()) {
            eprintln!("{} stays behind", self.prefix);
        }
    }
}

/// A mount namespace with these cgroups; podman expects to find there what it has mounted before.
#[derive(Debug)]
struct View {
    holder: Child,
}

impl View {
    fn new(cgroups: Cgroups) -> Self {
        let v2 = cgroup2_mount().display().to_string();
        let mount = match cgroups {
            Cgroups::Mounted => String::new(),
            Cgroups::V1 => format!("umount {v2};"),
            Cgroups::V2 | Cgroups::Systemd => format!("mount --bind {v2} /sys/fs/cgroup;"),
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]).arg(format!("{mount} echo; exec cat"));
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "\n", "no mount namespace with {cgroups:?}");
        Self { holder }
    }

    /// Runs what follows there.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command
    }
}

impl Drop for View {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        if let Err(error) = self.holder.wait() {
            eprintln!("a mount namespace stays behind: {error}");
        }
    }
}
