//! What a case needs of the machine: there, or said to be missing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set where nothing may be skipped, as in CI.
const REQUIRE_ALL: &str = "NAMESPAN_REQUIRE_ALL";

#[derive(Clone, Copy, Debug)]
pub enum Need {
    Namespan,
    Rotel,
    Docker,
    /// For virtual machines of this architecture, which is x86-64.
    Qemu,
    /// In `PATH`.
    Program(&'static str),
}

/// Whether all is there; says what is not.
#[must_use]
pub fn met(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find_map(|need| missing(*need)) else { return true };
    skip(&missing);
    false
}

/// Says why a case does not run here, which it must where nothing may be skipped.
pub fn skip(missing: &str) {
    assert!(std::env::var_os(REQUIRE_ALL).is_none(), "{missing}, and {REQUIRE_ALL} is set");
    eprintln!("skipped: {missing}");
}

fn missing(need: Need) -> Option<String> {
    let root = rustix::process::geteuid().is_root();
    let privilege = (!root).then(|| "BPF programs are loaded by root only".to_owned());
    let file = |path: PathBuf, what: &str| (!path.is_file()).then(|| format!("{what} is not at {}", path.display()));
    match need {
        Need::Namespan => privilege
            .or_else(|| file(namespan(), "namespan (set NAMESPAN_BIN, or run `make build`)"))
            .or_else(|| file(PathBuf::from("/bin/busybox"), "busybox-static")),
        Need::Rotel => file(rotel(), "rotel-agent (set NAMESPAN_ROTEL, or run .ci/test-deps)"),
        Need::Docker => {
            let answered = Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success());
            (!answered).then(|| "no Docker daemon answers (.ci/with-docker starts one)".to_owned())
        }
        Need::Qemu if cfg!(not(target_arch = "x86_64")) => Some("the kernel matrix is of x86-64 only".to_owned()),
        Need::Qemu => file(qemu(), "qemu-system-x86_64 (run .ci/test-deps)"),
        Need::Program(name) => in_path(name).is_none().then(|| format!("{name} is not installed (run .ci/test-deps)")),
    }
}

#[must_use]
pub fn namespan() -> PathBuf {
    from_env_or("NAMESPAN_BIN", "target/release/namespan")
}

#[must_use]
pub fn rotel() -> PathBuf {
    from_env_or("NAMESPAN_ROTEL", "target/ci/rotel/rotel-agent")
}

/// The one in `PATH`, else that which `.ci/test-deps` unpacked.
#[must_use]
pub fn qemu() -> PathBuf {
    let unpacked = || from_env_or("NAMESPAN_QEMU", "target/ci/qemu/qemu-system-x86_64");
    in_path("qemu-system-x86_64").unwrap_or_else(unpacked)
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Relative paths are those of the workspace; a test runs in its package's directory.
fn from_env_or(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
