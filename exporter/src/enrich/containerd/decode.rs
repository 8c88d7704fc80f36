//! What containerd says of containers comes in, what is wanted of it comes out. Every field may be missing.

use std::collections::HashMap;

use prost::Message;
use serde::Deserialize;

use super::api::{Any, Container, Envelope, RuncOptions};
use crate::enrich::container::{self, Described, Image, Labels, Pod, Reference, is_full_id, is_image_id};
use crate::enrich::oci::{self, Spec};
use crate::enrich::runtime::Place;
use crate::enrich::told::Seen;

/// Annotations that are read like labels.
const RESOURCE: &str = "resource.opentelemetry.io/";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    Created {
        id: String,
    },
    Updated {
        id: String,
    },
    Removed {
        id: String,
    },
    Started {
        id: String,
        pid: Option<u32>,
    },
    /// Its first process has ended.
    Ended {
        id: String,
    },
}

/// `ContainerCreate`, `ContainerUpdate` and `ContainerDelete` of `api/events/container.proto`.
#[derive(Clone, PartialEq, Message)]
struct ContainerEvent {
    #[prost(string, tag = "1")]
    id: String,
}

/// `TaskCreate` of `api/events/task.proto`.
#[derive(Clone, PartialEq, Message)]
struct TaskCreate {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(uint32, tag = "6")]
    pid: u32,
}

#[derive(Clone, PartialEq, Message)]
struct TaskStart {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(uint32, tag = "2")]
    pid: u32,
}

/// `id`: which of the container's processes; the first one has the container's own id.
#[derive(Clone, PartialEq, Message)]
struct TaskExit {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "2")]
    id: String,
}

/// `id` is empty for the first process.
#[derive(Clone, PartialEq, Message)]
struct TaskDelete {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, tag = "5")]
    id: String,
}

pub fn event(envelope: &Envelope) -> Option<Happened> {
    let body = envelope.event.as_ref()?.value.as_slice();
    let container = |body| ContainerEvent::decode(body).ok().map(|event| event.id);
    let pid = |pid: u32| Some(pid).filter(|pid| *pid > 0);
    let happened = match envelope.topic.as_str() {
        "/containers/create" => Happened::Created { id: container(body)? },
        "/containers/update" => Happened::Updated { id: container(body)? },
        "/containers/delete" => Happened::Removed { id: container(body)? },
        "/tasks/create" => {
            let event = TaskCreate::decode(body).ok()?;
            Happened::Started { id: event.container_id, pid: pid(event.pid) }
        }
        "/tasks/start" => {
            let event = TaskStart::decode(body).ok()?;
            Happened::Started { id: event.container_id, pid: pid(event.pid) }
        }
        "/tasks/exit" => {
            let event = TaskExit::decode(body).ok().filter(|event| event.id == event.container_id)?;
            Happened::Ended { id: event.container_id }
        }
        "/tasks/delete" => {
            let first = |event: &TaskDelete| event.id.is_empty() || event.id == event.container_id;
            let event = TaskDelete::decode(body).ok().filter(first)?;
            Happened::Ended { id: event.container_id }
        }
        _ => return None,
    };
    Some(happened)
}

/// A container's record, taken apart once.
pub struct Record {
    container: Container,
    spec: Spec,
    cri: Cri,
}

impl Record {
    pub fn new(mut container: Container) -> Option<Self> {
        let spec: Spec = container.spec.take().map(|spec| oci::parse(&spec.value)).unwrap_or_default();
        let mut extensions = std::mem::take(&mut container.extensions);
        let record = CRI.iter().find_map(|key| extensions.remove(*key));
        let cri = record.map(|record| oci::parse::<Extension>(&record.value).metadata).unwrap_or_default();
        (!container.id.is_empty()).then_some(Self { container, spec, cri })
    }

    pub fn id(&self) -> &str {
        &self.container.id
    }

    /// The image's name in containerd's own store.
    pub fn stored_image(&self) -> Option<&str> {
        Some(self.container.image.as_str()).filter(|name| !name.is_empty())
    }

    /// The container whose record tells of the pod that this one is in.
    pub fn sandbox(&self) -> Option<&str> {
        self.spec.annotation("io.kubernetes.cri.sandbox-id").filter(|id| *id != self.container.id)
    }

    /// What a pod's sandbox says of all its containers: its labels, and its annotations that are meant for OpenTelemetry.
    pub fn pod_labels(self) -> HashMap<String, String> {
        let mut labels = self.container.labels;
        labels.retain(|key, _| !key.starts_with("io.cri-containerd.") && !key.starts_with("io.kubernetes.container."));
        labels.extend(self.cri.resource());
        labels
    }

    /// `digest`: what the image's name stands for. `pod`: as [`Self::pod_labels`].
    pub fn seen(
        self,
        namespace: &str,
        pid: Option<u32>,
        running: bool,
        digest: Option<String>,
        pod: HashMap<String, String>,
        kept: &Labels,
    ) -> Seen {
        let place = Place { cgroup: self.spec.cgroup(systemd(&self.container)), pid };
        let image = self.image(digest);
        let Self { container, mut spec, cri } = self;
        let Container { id, mut labels, .. } = container;
        labels.extend(cri.resource());
        for (key, value) in pod {
            labels.entry(key).or_insert(value);
        }
        let pod = pod_of(&labels, &spec);
        let name = labels.get("nerdctl/name").cloned().or_else(|| pod.container.clone());
        let name = name.or_else(|| (!is_full_id(id.as_bytes())).then(|| id.clone()));
        let described = Described {
            id,
            namespace: Some(namespace.to_owned()),
            user: None,
            name,
            image,
            labels,
            env: spec.take_env(),
            pod: Some(pod),
        };
        Seen { container: container::Container::described("containerd", described, kept), place, running }
    }

    fn image(&self, digest: Option<String>) -> Option<Image> {
        let stored = self.container.image.as_str();
        let written = self.spec.annotation("io.kubernetes.cri.image-name").unwrap_or(stored);
        let Reference { name, tag, digest: own } = Reference::parse(written);
        let id = [self.cri.image_ref.as_str(), stored, written]
            .into_iter()
            .find(|name| is_image_id(name))
            .map(ToOwned::to_owned);
        if name.is_empty() && id.is_none() {
            return None;
        }
        // Under its id an image is stored with the same target as under its name.
        let digest = own.map(ToOwned::to_owned).or(digest).filter(|_| !name.is_empty());
        Some(Image::of(Reference { name, tag, digest: digest.as_deref() }, id))
    }
}

/// The labels are the kubelet's, the annotations containerd's own.
fn pod_of(labels: &HashMap<String, String>, spec: &Spec) -> Pod {
    let said = Pod::of(labels);
    let or = |said: Option<String>, key| said.or_else(|| spec.annotation(key).map(ToOwned::to_owned));
    Pod {
        uid: or(said.uid, "io.kubernetes.cri.sandbox-uid"),
        name: or(said.name, "io.kubernetes.cri.sandbox-name"),
        namespace: or(said.namespace, "io.kubernetes.cri.sandbox-namespace"),
        container: or(said.container, "io.kubernetes.cri.container-name"),
    }
}

/// Whether runc is told to leave cgroups to systemd.
fn systemd(container: &Container) -> bool {
    let options = container.runtime.as_ref().and_then(|runtime| runtime.options.as_ref());
    let runc = |options: &&Any| options.type_url.ends_with("containerd.runc.v1.Options");
    let options = options.filter(runc).and_then(|options| RuncOptions::decode(options.value.as_slice()).ok());
    options.is_some_and(|options| options.systemd_cgroup)
}

/// What the CRI plugin keeps of its containers and of its sandboxes: `internal/cri/store/{container,sandbox}/metadata.go`.
const CRI: [&str; 2] = ["io.cri-containerd.container.metadata", "io.cri-containerd.sandbox.metadata"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Extension {
    metadata: Cri,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Cri {
    image_ref: String,
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    annotations: HashMap<String, String>,
}

impl Cri {
    fn resource(self) -> impl Iterator<Item = (String, String)> {
        self.config.annotations.into_iter().filter(|(key, _)| key.starts_with(RESOURCE))
    }
}

#[cfg(test)]
mod tests;
