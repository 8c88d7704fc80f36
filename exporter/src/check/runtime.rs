//! Who describes containers: the runtimes that are asked, and what they leave on disk.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::report::Check;
use crate::config::{Reach, RuntimeName, Runtimes, present};
use crate::enrich::docker::wire;

/// How long a runtime may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Where runtimes usually keep what they know of their containers.
const FOLDERS: [(&str, &str); 3] = [
    ("docker", "/var/lib/docker/containers"),
    ("containerd", "/run/containerd/io.containerd.runtime.v2.task"),
    ("cri-o and podman", "/var/lib/containers/storage"),
];

/// One line for each runtime, and one for the files.
pub(super) async fn checks(runtimes: &Runtimes) -> Vec<Check> {
    let check = |runtime| socket(ANSWER, runtime, runtimes);
    let (docker, containerd, crio, podman) = tokio::join!(
        check(RuntimeName::Docker),
        check(RuntimeName::Containerd),
        check(RuntimeName::Crio),
        check(RuntimeName::Podman)
    );
    vec![docker, containerd, crio, podman, files(runtimes.files, &FOLDERS)]
}

/// Runtimes that are to be asked and are there, whose sockets may not be opened by us.
pub(super) fn denied_sockets(runtimes: &Runtimes) -> Vec<Check> {
    let denied = RuntimeName::ALL.into_iter().filter_map(|runtime| {
        let sockets = runtimes.sockets(runtime);
        let path = present(&sockets)?;
        // Asking for more than whether it may be written would be heard.
        let error = access(path).err().filter(is_denied)?;
        let gid = fs::metadata(path).map_or(0, |metadata| metadata.gid());
        let Silent { found, remedy } = denied(path, &error, gid);
        Some(silent(runtime, runtimes, found, remedy))
    });
    denied.collect()
}

fn access(path: &Path) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    Ok(accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?)
}

async fn socket(patience: Duration, runtime: RuntimeName, runtimes: &Runtimes) -> Check {
    let name = runtime.name().replace('-', "_");
    let sockets = runtimes.sockets(runtime);
    let Some(path) = present(&sockets) else { return Check::skip(name, "switched off") };
    if *runtimes.reach(runtime) == Reach::Auto && is_absent(path) {
        return Check::skip(name, format!("no socket at {}", either(&sockets)));
    }
    let (found, remedy) = match timeout(patience, ask(runtime, path)).await {
        Ok(Ok(found)) => return Check::ok(name, found),
        Ok(Err(Silent { found, remedy })) => (found, remedy),
        Err(_) => (
            format!("{} does not answer within {patience:?}", path.display()),
            "look at the daemon's log, and restart it if it hangs".to_owned(),
        ),
    };
    silent(runtime, runtimes, found, remedy)
}

fn silent(runtime: RuntimeName, runtimes: &Runtimes, found: String, remedy: String) -> Check {
    let name = runtime.name().replace('-', "_");
    let known = if runtimes.files {
        "as its files describe them, or by id only"
    } else {
        "by id only, without name, image and labels"
    };
    Check::warn(name, found).means(format!("containers of {} are told of {known}", runtime.name())).remedy(remedy)
}

fn is_absent(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn either(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

/// Why a runtime tells nothing.
#[derive(Debug)]
struct Silent {
    found: String,
    remedy: String,
}

/// What answers, and where.
async fn ask(runtime: RuntimeName, path: &Path) -> Result<String, Silent> {
    let (name, shown) = (runtime.name(), path.display());
    let absent = |found: String| Silent {
        found,
        remedy: format!(
            "start {name}, or name its socket with --runtime {name}=PATH, mounted if this is a container; or switch it off \
             with --runtime {name}=none"
        ),
    };
    let metadata = fs::metadata(path).map_err(|error| {
        if is_denied(&error) { denied(path, &error, 0) } else { absent(format!("{shown}: {error}")) }
    })?;
    if !metadata.file_type().is_socket() {
        return Err(absent(format!("{shown} is no socket")));
    }
    UnixStream::connect(path).await.map_err(|error| {
        if is_denied(&error) {
            denied(path, &error, metadata.gid())
        } else {
            absent(format!("{shown}: nobody answers: {error}"))
        }
    })?;
    match runtime {
        RuntimeName::Docker => Box::pin(daemon("Docker", path)).await,
        RuntimeName::Podman => Box::pin(daemon("Podman", path)).await,
        RuntimeName::Containerd | RuntimeName::Crio => Ok(format!("reached on {shown}")),
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

fn denied(path: &Path, error: &io::Error, group: u32) -> Silent {
    let remedy = match group {
        0 => "run as root".to_owned(),
        group => format!("run as root, or as a member of the socket's group (gid {group})"),
    };
    Silent { found: format!("{}: {error}", path.display()), remedy }
}

/// The version of a daemon that speaks Docker's API.
async fn daemon(kind: &str, path: &Path) -> Result<String, Silent> {
    let odd = |found: String| Silent {
        found: format!("{}: {found}", path.display()),
        remedy: "Namespan needs Docker's API there: what listens?".to_owned(),
    };
    let socket = path.display();
    let client = wire::client(path, ANSWER).map_err(|error| odd(error.to_string()))?;
    let client = client.negotiate_version().await.map_err(|error| odd(error.to_string()))?;
    let version = client.version().await.map_err(|error| odd(error.to_string()))?;
    let text = |part: Option<String>| part.unwrap_or_else(|| "of unknown version".to_owned());
    Ok(format!("{kind} {} (API {}) on {socket}", text(version.version), text(version.api_version)))
}

/// Whether what is there can be read.
fn files(is_wanted: bool, folders: &[(&str, &str)]) -> Check {
    const NAME: &str = "runtime_files";
    if !is_wanted {
        return Check::skip(NAME, "switched off");
    }
    let (mut readable, mut refused) = (Vec::new(), Vec::new());
    for (runtime, folder) in folders {
        match fs::read_dir(folder) {
            Ok(_) => readable.push(format!("{runtime} ({folder})")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => refused.push(format!("{folder}: {error}")),
        }
    }
    match (refused.is_empty(), readable.is_empty()) {
        (false, _) => Check::warn(NAME, refused.join("; "))
            .means("what is on disk there describes no container")
            .remedy("run as root, or with CAP_DAC_READ_SEARCH; or use --no-runtime-files"),
        (true, false) => Check::ok(NAME, format!("readable: {}", readable.join(", "))),
        (true, true) => Check::skip(NAME, "no runtime keeps any at its usual place"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::report::Status;
    use super::*;

    fn at(runtime: RuntimeName, path: &Path) -> Runtimes {
        let mut runtimes = Runtimes::OFF;
        let reach = match runtime {
            RuntimeName::Docker => &mut runtimes.docker,
            RuntimeName::Containerd => &mut runtimes.containerd,
            RuntimeName::Crio => &mut runtimes.crio,
            RuntimeName::Podman => &mut runtimes.podman,
        };
        *reach = Reach::At(path.to_owned());
        runtimes
    }

    #[tokio::test]
    async fn what_is_switched_off_is_skipped() {
        let checks = checks(&Runtimes::OFF).await;
        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["docker", "containerd", "cri_o", "podman", "runtime_files"]);
        assert!(checks.iter().all(|check| check.status == Status::Skip && check.found == "switched off"), "{checks:?}");
    }

    #[tokio::test]
    async fn a_named_socket_that_is_absent_deserted_or_a_file_is_a_warning_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let deserted = folder.path().join("deserted.sock");
        drop(UnixListener::bind(&deserted).unwrap());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [folder.path().join("absent"), deserted, file] {
            for runtime in RuntimeName::ALL {
                let check = socket(ANSWER, runtime, &at(runtime, &path)).await;
                assert_eq!(check.status, Status::Warn);
                assert!(check.found.starts_with(path.to_str().unwrap()), "{}", check.found);
                let remedy = check.remedy.unwrap();
                assert!(remedy.contains(&format!("--runtime {}=none", runtime.name())), "{remedy}");
            }
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_waited_for_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hangs.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        for runtime in [RuntimeName::Docker, RuntimeName::Podman] {
            let check = socket(Duration::from_millis(50), runtime, &at(runtime, &path)).await;
            assert_eq!(check.status, Status::Warn);
            assert!(check.found.ends_with("does not answer within 50ms"), "{}", check.found);
        }
        for runtime in [RuntimeName::Containerd, RuntimeName::Crio] {
            let check = socket(ANSWER, runtime, &at(runtime, &path)).await;
            assert_eq!((check.status, check.found), (Status::Ok, format!("reached on {}", path.display())));
        }
    }

    #[test]
    fn who_may_not_connect_is_told_as_whom_to_run() {
        let error = io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(denied(Path::new("/s"), &error, 0).remedy, "run as root");
        assert!(denied(Path::new("/s"), &error, 999).remedy.contains("gid 999"));
    }

    #[test]
    fn files_are_there_or_not_or_out_of_reach() {
        let folder = tempfile::tempdir().unwrap();
        let present = folder.path().to_str().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let absent = ("docker", "/nonexistent");
        assert_eq!(files(true, &[absent]).status, Status::Skip);
        assert_eq!(files(false, &[("podman", present)]).status, Status::Skip);
        let check = files(true, &[absent, ("podman", present)]);
        assert_eq!((check.status, check.found), (Status::Ok, format!("readable: podman ({present})")));
        assert_eq!(files(true, &[("podman", present), ("cri-o", file.to_str().unwrap())]).status, Status::Warn);
    }
}
