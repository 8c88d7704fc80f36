//! Which container runtimes are asked, and where.

use std::path::{Path, PathBuf};

/// A runtime that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeName {
    Docker,
    Containerd,
    Crio,
    Podman,
}

impl RuntimeName {
    pub const ALL: [Self; 4] = [Self::Docker, Self::Containerd, Self::Crio, Self::Podman];

    /// As in settings, messages and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
        }
    }

    /// Where its socket usually is. The first that exists counts: k3s and RKE2 bring a containerd of their own.
    #[must_use]
    pub fn usual_sockets(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["/var/run/docker.sock"],
            Self::Containerd => &["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"],
            Self::Crio => &["/run/crio/crio.sock", "/var/run/crio/crio.sock"],
            Self::Podman => &["/run/podman/podman.sock"],
        }
    }
}

/// How each runtime is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtimes {
    pub docker: Reach,
    pub containerd: Reach,
    pub crio: Reach,
    pub podman: Reach,
    /// Read what runtimes leave on disk.
    pub files: bool,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self { docker: Reach::Auto, containerd: Reach::Auto, crio: Reach::Auto, podman: Reach::Auto, files: true }
    }
}

impl Runtimes {
    /// Nothing is asked, nothing is read.
    pub const OFF: Self =
        Self { docker: Reach::Off, containerd: Reach::Off, crio: Reach::Off, podman: Reach::Off, files: false };

    #[must_use]
    pub fn reach(&self, runtime: RuntimeName) -> &Reach {
        match runtime {
            RuntimeName::Docker => &self.docker,
            RuntimeName::Containerd => &self.containerd,
            RuntimeName::Crio => &self.crio,
            RuntimeName::Podman => &self.podman,
        }
    }

    /// Paths of the sockets to try, of which the first that exists counts; none: it is switched off.
    #[must_use]
    pub fn sockets(&self, runtime: RuntimeName) -> Vec<PathBuf> {
        match self.reach(runtime) {
            Reach::Auto => runtime.usual_sockets().iter().map(PathBuf::from).collect(),
            Reach::At(path) => vec![path.clone()],
            Reach::Off => Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Found by itself, if it is there.
    #[default]
    Auto,
    /// The path of its socket.
    At(PathBuf),
    Off,
}

/// Of the sockets to try the first that exists, else the first; `None`: there are none. May change from one try to the
/// next.
#[must_use]
pub fn present(sockets: &[PathBuf]) -> Option<&Path> {
    sockets.iter().find(|socket| socket.exists()).or(sockets.first()).map(PathBuf::as_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_socket_that_exists_counts_and_the_first_where_none_does() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        let sockets = [one.clone(), other.clone()];
        assert_eq!(present(&sockets), Some(one.as_path()));
        std::fs::write(&other, "").unwrap();
        assert_eq!(present(&sockets), Some(other.as_path()));
        assert_eq!(present(&[]), None);
    }

    #[test]
    fn a_runtime_is_tried_where_it_is_said_to_be_and_nowhere_if_switched_off() {
        for runtime in RuntimeName::ALL {
            assert_eq!(Runtimes::default().sockets(runtime)[0].to_str(), Some(runtime.usual_sockets()[0]));
            assert!(Runtimes::OFF.sockets(runtime).is_empty());
        }
        let runtimes = Runtimes { crio: Reach::At("/c".into()), ..Runtimes::OFF };
        assert_eq!(runtimes.sockets(RuntimeName::Crio), [PathBuf::from("/c")]);
    }
}
