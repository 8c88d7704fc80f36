//! What a runtime keeps where: the same questions to each of them.

use std::io;
use std::path::Path;

use super::folder::{Folder, Root};
use super::process::Process;
use crate::enrich::container::Described;

/// How one runtime, for root or for one user, arranges what it knows of its containers: one folder, in it groups of
/// containers (containerd's namespaces, the storage drivers of Podman and CRI-O), in them the containers by id.
pub trait Layout: Send {
    /// As [`Runtime::name`](crate::enrich::runtime::Runtime::name).
    fn runtime(&self) -> &'static str;

    /// Whose containers they are, if not root's.
    fn user(&self) -> Option<u32> {
        None
    }

    /// Where the folder with the groups is.
    fn root(&self) -> &Root;

    fn place(&self) -> String {
        self.root().path().display().to_string()
    }

    /// The folder with the groups.
    fn base(&self) -> io::Result<Folder> {
        self.root().open()
    }

    /// While there is none: the folder in which the next part of the way to it will appear.
    fn nearest(&self) -> io::Result<Folder> {
        self.root().nearest()
    }

    /// Whether a folder with this name is a group.
    fn is_group(&self, name: &str) -> bool;

    /// The containers of a group, the newest last where that is known.
    fn list(&self, group: &Folder) -> io::Result<Vec<Entry>>;

    /// The folders in which things change when a container does: those that are there.
    fn folders(&self, group: &str, id: &str) -> Vec<Folder> {
        self.base().and_then(|base| base.folder(Path::new(group).join(id))).into_iter().collect()
    }

    /// A container as its files show it. An error: not (completely) there, or not this runtime's.
    fn describe(&self, group: &str, entry: &Entry) -> io::Result<Found>;

    /// Whether the containers go from the list when they have ended.
    fn lists_what_runs(&self) -> bool {
        false
    }
}

/// A container as the list of its group shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    pub name: Option<String>,
    /// Reference as it was given to the runtime.
    pub image: Option<String>,
    pub image_id: Option<String>,
}

#[derive(Debug)]
pub struct Found {
    pub described: Described,
    /// As [`Place::cgroup`](crate::enrich::runtime::Place::cgroup).
    pub cgroup: Option<String>,
    /// The container's first one, as far as it is there.
    pub process: Option<Process>,
    /// Another one each time that the container is about to be started.
    pub start: u64,
}
