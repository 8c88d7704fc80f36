//! What Podman and CRI-O keep with `containers/storage`: in the graph root `DRIVER-containers/containers.json` (names and
//! images), `DRIVER-images/images.json` (digests) and each container's bundle, in the run root each container's pid, all
//! of it before the container's first process. Podman's labels are in its database only.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::folder::{Folder, Root};
use super::layout::{Entry, Found, Layout};
use super::oci;
use super::process::{Claim, cgroup};
use crate::enrich::container::{Described, Image, Reference, is_full_id};

/// Largest list of containers, in bytes.
const CONTAINERS_MAX: usize = 8 << 20;
/// Largest list of images, which is read for each container.
const IMAGES_MAX: usize = 1 << 20;
/// Most of its entries, the newest ones.
const ENTRIES: usize = 16 << 10;
/// Longest name and image reference, in bytes.
const TEXT_MAX: usize = 1024;
/// Most names of an image.
const NAMES: usize = 16;
const GROUP: &str = "-containers";
const MANAGER: &str = "io.container.manager";
const CRIO: &str = "cri-o";

pub struct Storage {
    runtime: &'static str,
    user: Option<u32>,
    graph: Root,
    /// The first one that is there.
    run: Vec<Root>,
}

impl Storage {
    /// `graph` and `run`: as in `storage.conf`, `/var/lib/containers/storage` and `/run/containers/storage`.
    #[must_use]
    pub fn podman(graph: PathBuf, run: PathBuf) -> Self {
        Self { runtime: "podman", user: None, graph: Root::of_host(graph), run: vec![Root::of_host(run)] }
    }

    /// As [`podman`](Self::podman): the two share their folders.
    #[must_use]
    pub fn crio(graph: PathBuf, run: PathBuf) -> Self {
        Self { runtime: CRIO, ..Self::podman(graph, run) }
    }

    pub(super) fn of_user(user: u32, graph: Root, run: Vec<Root>) -> Self {
        Self { runtime: "podman", user: Some(user), graph, run }
    }

    fn run(&self) -> io::Result<Folder> {
        let found = self.run.iter().find_map(|root| root.open().ok());
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn bundle(&self, group: &str, id: &str) -> io::Result<Folder> {
        self.graph.open()?.folder(Path::new(group).join(id).join("userdata"))
    }

    fn image(&self, group: &str, entry: &Entry) -> Image {
        let reference = entry.image.as_deref().unwrap_or_default();
        // As the API has it.
        let id = entry.image_id.as_ref().map(|id| format!("sha256:{id}"));
        let mut image = Image::of(Reference::parse(reference), id);
        let Some(Known { names, digest, .. }) = entry.image_id.as_ref().and_then(|id| self.known(group, id)) else {
            return image;
        };
        let digest = digest.filter(|digest| digest.len() <= TEXT_MAX);
        let names = names.iter().flatten().filter(|name| name.len() <= TEXT_MAX).take(NAMES);
        for named in names.map(|name| Image::of(Reference::parse(name), None)) {
            if image.name.is_empty() {
                image.name.clone_from(&named.name);
            }
            if image.name == named.name {
                image.repo_digests.extend(digest.iter().map(|digest| format!("{}@{digest}", named.name)));
                image.tags.extend(named.tags);
            }
        }
        for list in [&mut image.tags, &mut image.repo_digests] {
            list.sort_unstable();
            list.dedup();
        }
        image
    }

    fn known(&self, group: &str, id: &str) -> Option<Known> {
        let driver = group.strip_suffix(GROUP)?;
        let images = self.graph.open().and_then(|graph| graph.folder(format!("{driver}-images"))).ok()?;
        let known: Newest<Known> = images.file("images.json", IMAGES_MAX).ok()?.json().ok()?;
        known.0.into_iter().find(|image| image.id == id)
    }
}

/// An image.
#[derive(Deserialize)]
struct Known {
    id: String,
    digest: Option<String>,
    names: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    metadata: Option<String>,
}

/// What Podman and CRI-O write there.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Metadata {
    image_name: Option<String>,
}

impl Listed {
    fn entry(self) -> Option<Entry> {
        let Self { id, names, image, metadata } = self;
        let metadata: Metadata = serde_json::from_str(&metadata?).unwrap_or_default();
        let text = |text: String| (1..=TEXT_MAX).contains(&text.len()).then_some(text);
        let name = names.and_then(|names| names.into_iter().next()).and_then(text);
        let (image, image_id) = (metadata.image_name.and_then(text), image.and_then(text));
        is_full_id(id.as_bytes()).then_some(Entry { id, name, image, image_id })
    }
}

impl Layout for Storage {
    fn runtime(&self) -> &'static str {
        self.runtime
    }

    fn user(&self) -> Option<u32> {
        self.user
    }

    fn root(&self) -> &Root {
        &self.graph
    }

    fn base(&self) -> io::Result<Folder> {
        if self.user.is_some() {
            // Whoever never runs Podman is left alone.
            self.run()?;
        }
        self.graph.open()
    }

    fn nearest(&self) -> io::Result<Folder> {
        match self.run.first() {
            Some(run) if self.user.is_some() && self.run().is_err() => run.nearest(),
            _ => self.graph.nearest(),
        }
    }

    fn is_group(&self, name: &str) -> bool {
        name.ends_with(GROUP)
    }

    fn list(&self, group: &Folder) -> io::Result<Vec<Entry>> {
        let listed: Newest<Listed> = group.file("containers.json", CONTAINERS_MAX)?.json()?;
        Ok(listed.0.into_iter().filter_map(Listed::entry).collect())
    }

    fn folders(&self, group: &str, id: &str) -> Vec<Folder> {
        let container = Path::new(group).join(id);
        let nearest = |root: io::Result<Folder>| {
            let root = root.ok()?;
            root.folder(container.join("userdata")).or_else(|_| root.folder(&container)).ok()
        };
        [self.graph.open(), self.run()].into_iter().filter_map(nearest).collect()
    }

    fn describe(&self, group: &str, entry: &Entry) -> io::Result<Found> {
        let id = &entry.id;
        let (mut spec, start) = oci::spec(&self.bundle(group, id)?)?;
        let is_crio = spec.annotation(MANAGER) == Some(CRIO);
        if is_crio != (self.runtime == CRIO) {
            return Err(io::Error::other("of another runtime"));
        }
        let run = self.run().and_then(|run| run.folder(Path::new(group).join(id).join("userdata")));
        let number = |name: &str| run.as_ref().ok()?.file(name, oci::PID_MAX).ok()?.number();
        let claim = |pid| Claim { pid, id, monitor: number("conmon.pid"), user: self.user };
        let process = number("pidfile").and_then(|pid| claim(pid).check());
        let own = spec.cgroup(false).filter(|_| self.user.is_none());
        let cgroup = own.or_else(|| cgroup(process?.pid, id));
        let mut described = if is_crio { crio(&mut spec.take_annotations()) } else { Described::default() };
        let image = self.image(group, entry);
        described.id.clone_from(id);
        described.user = self.user;
        described.name = described.name.or_else(|| entry.name.clone());
        described.image = described.image.or(Some(image)).filter(|image| *image != Image::default());
        described.env = spec.take_env();
        Ok(Found { described, cgroup, process, start })
    }
}

/// What only CRI-O's annotations say.
fn crio(annotations: &mut HashMap<String, String>) -> Described {
    let mut take = |key: &str| annotations.remove(key).filter(|value| !value.is_empty());
    let labels = take("io.kubernetes.cri-o.Labels");
    let mut labels: HashMap<String, String> =
        labels.and_then(|labels| serde_json::from_str(&labels).ok()).unwrap_or_default();
    for key in ["container.name", "pod.name", "pod.namespace", "pod.uid"].map(|key| format!("io.kubernetes.{key}")) {
        if let Some(value) = take(&key) {
            labels.entry(key).or_insert(value);
        }
    }
    Described { name: labels.get("io.kubernetes.container.name").cloned(), labels, ..Described::default() }
}

/// The last of a list, however long it is.
struct Newest<T>(VecDeque<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Newest<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Last<T>(VecDeque<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Last<T> {
            type Value = VecDeque<T>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
                while let Some(item) = list.next_element()? {
                    if self.0.len() >= ENTRIES {
                        self.0.pop_front();
                    }
                    self.0.push_back(item);
                }
                Ok(self.0)
            }
        }
        deserializer.deserialize_seq(Last(VecDeque::new())).map(Self)
    }
}

#[cfg(test)]
mod tests;
