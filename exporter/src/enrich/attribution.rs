//! Whose an event is, in words.

use std::sync::Arc;

use super::container::Container;
use super::kin::Entry;

/// Whose an event is, and how that is known.
#[derive(Clone, Debug)]
pub struct Attribution {
    pub owner: Owner,
    pub how: How,
    /// How the process came to be where it is; `None`: it is one of the host's, in the host's namespaces.
    pub entry: Option<Entry>,
    /// Whose namespaces it has joined, if it has.
    pub entered: Option<Entered>,
    /// Id of a container that the cgroup names, and that is not believed.
    pub claimed: Option<Arc<str>>,
    /// What looks like a container's id below the container's own cgroup.
    pub nested: Option<Arc<str>>,
}

impl Attribution {
    /// With nothing more to say of it.
    #[must_use]
    pub const fn plain(owner: Owner, how: How) -> Self {
        Self { owner, how, entry: None, entered: None, claimed: None, nested: None }
    }
}

#[derive(Clone, Debug)]
pub enum Owner {
    /// With its systemd unit, if it has one.
    Host(Option<Arc<Unit>>),
    /// A new `Arc` whenever the container's data changes, and only then.
    Container(Arc<Container>),
}

/// A systemd unit of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Of the system's manager: `ssh.service`, `session-3.scope`, `user@1000.service`.
    pub name: String,
    /// Of a user's own manager.
    pub user_unit: Option<String>,
}

impl Unit {
    /// The service that it is, whichever instance of a template; `None`: it is no service, or a user's session.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        let name = self.name.strip_suffix(".service").filter(|name| !name.starts_with("user@"))?;
        Some(name.split_once('@').map_or(name, |(template, _)| template)).filter(|name| !name.is_empty())
    }
}

#[derive(Clone, Debug)]
pub enum Entered {
    Host,
    Container(Arc<Container>),
}

/// Where the knowledge of a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The runtime told by itself, when the container was made.
    RuntimeEvent,
    /// The runtime was asked.
    RuntimeApi,
    /// What the runtime keeps on disk.
    RuntimeFiles,
    /// The id from the cgroup path, and no more.
    CgroupPath,
    /// Its parents are the container's, whatever its cgroup is now.
    Lineage,
    /// Its cgroup names a container whose cgroup is another.
    Contradicted,
    /// Its cgroup is a user's own, and nobody vouches for the container that it names.
    Unverified,
    /// No container.
    None,
}

impl How {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RuntimeEvent => "runtime_event",
            Self::RuntimeApi => "runtime_api",
            Self::RuntimeFiles => "runtime_files",
            Self::CgroupPath => "cgroup_path",
            Self::Lineage => "lineage",
            Self::Contradicted => "contradicted",
            Self::Unverified => "unverified",
            Self::None => "none",
        }
    }

    /// The runtime itself has told, and not only its files: nobody knows more.
    #[must_use]
    pub fn is_by_runtime(self) -> bool {
        matches!(self, Self::RuntimeEvent | Self::RuntimeApi)
    }

    /// What the cgroup names is not believed.
    #[must_use]
    pub fn is_doubt(self) -> bool {
        matches!(self, Self::Lineage | Self::Contradicted | Self::Unverified)
    }

    /// How surely it is known: by the runtime's word, by what only the kernel and root could have written, or not at all;
    /// `None` of the host.
    #[must_use]
    pub fn certainty(self) -> Option<&'static str> {
        match self {
            Self::RuntimeEvent | Self::RuntimeApi | Self::RuntimeFiles => Some("confirmed"),
            Self::CgroupPath | Self::Lineage => Some("inferred"),
            Self::Contradicted | Self::Unverified => Some("refused"),
            Self::None => None,
        }
    }
}
