//! An image that every runtime takes: busybox and nothing else, in an archive as `docker save` writes it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde_json::json;
use tempfile::TempDir;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub const TAG: &str = "one";

/// What runs inside, whatever its name.
pub const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 10] = ["sh", "ls", "true", "false", "sleep", "readlink", "unshare", "hostname", "cat", "tail"];

/// Left to itself it sleeps, which makes it a pod's pause image too.
#[derive(Debug)]
pub struct Image {
    /// With the registry `localhost`, so that no runtime completes it with another one.
    pub repository: String,
    pub archive: PathBuf,
    _directory: TempDir,
}

impl Image {
    #[must_use]
    pub fn new() -> Self {
        let repository = format!("localhost/{}", unique("nstest-image"));
        let directory = public_directory();
        let root = root();
        let layer = directory.path().join("layer.tar");
        succeed(Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(&layer).arg("."));
        let digest = succeed(Command::new("sha256sum").arg(&layer));
        let digest = digest.split_whitespace().next().unwrap();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        let manifest = json!([{
            "Config": "config.json",
            "RepoTags": [format!("{repository}:{TAG}")],
            "Layers": ["layer.tar"],
        }]);
        fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        fs::write(directory.path().join("manifest.json"), manifest.to_string()).unwrap();
        let archive = directory.path().join("image.tar");
        let files = ["manifest.json", "config.json", "layer.tar"];
        succeed(Command::new("tar").arg("-C").arg(directory.path()).arg("-cf").arg(&archive).args(files));
        Self { repository, archive, _directory: directory }
    }

    #[must_use]
    pub fn tagged(&self) -> String {
        format!("{}:{TAG}", self.repository)
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// The files of the image.
#[must_use]
pub fn root() -> TempDir {
    let root = public_directory();
    let bin = root.path().join("bin");
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    root
}

/// Puts the libraries and the loader that a program of this machine takes where it looks for them.
pub fn add_libraries(root: &Path, program: &Path) {
    let printed = succeed(Command::new("ldd").arg(program));
    // `name => path (address)`, or for the loader its path alone.
    let paths = printed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    for path in paths {
        let inside = root.join(&path[1..]);
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(path, inside).unwrap();
    }
}

/// A name that nothing else on this machine has.
#[must_use]
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

/// Other users read it too.
#[must_use]
pub fn public_directory() -> TempDir {
    let permissions = fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix("nstest-").permissions(permissions).tempdir_in(Path::new("/var/tmp")).unwrap()
}

/// What a command that must succeed has printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
