//! What a container runtime says through the CRI comes in, what is wanted of it comes out. Every field may be missing.

use std::collections::HashMap;

use serde::Deserialize;

use super::api::{Container, ContainerStatus, Sandbox, SandboxStatus};
use crate::enrich::container::{self, Described, Image, Labels, Pod, Reference, is_image_id};
use crate::enrich::oci::{self, Spec};
use crate::enrich::runtime::Place;
use crate::enrich::told::Seen;

/// Annotations that are read like labels.
const RESOURCE: &str = "resource.opentelemetry.io/";
/// The namespace of all that containerd makes through the CRI.
const CONTAINERD: (&str, &str) = ("containerd", "k8s.io");

/// What a verbose status has under `info`: the same in CRI-O (`server/container_status.go`) and containerd
/// (`internal/cri/types`), though no standard.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    pid: Option<i64>,
    runtime_spec: Option<Spec>,
    /// containerd's.
    runtime_options: Option<RuntimeOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeOptions {
    systemd_cgroup: bool,
}

/// A container's status, taken apart once.
pub struct Record {
    status: ContainerStatus,
    info: Info,
}

impl Record {
    pub fn new(container: Container) -> Option<Self> {
        let Container { status, info } = container;
        Some(Self { status: status?, info: Info::of(&info) })
    }

    pub fn sandbox(&self) -> Option<&str> {
        self.info.sandbox_id.as_deref().filter(|id| !id.is_empty())
    }

    pub fn seen(self, runtime: &'static str, sandbox: Option<SandboxStatus>, kept: &Labels) -> Seen {
        let Self { status, mut info } = self;
        let running = status.alive();
        let image = image(&status);
        let ContainerStatus { id, metadata, labels, annotations, .. } = status;
        let name = metadata.map(|metadata| metadata.name).filter(|name| !name.is_empty());
        let SandboxStatus { metadata, labels: pod_labels, annotations: pod_annotations, .. } =
            sandbox.unwrap_or_default();
        let labels = merged([labels, resource(annotations), resource(pod_annotations), pod_labels]);
        let pod = Pod { container: name.clone(), ..pod(metadata.unwrap_or_default(), &labels) };
        let env = info.runtime_spec.as_mut().map(Spec::take_env).unwrap_or_default();
        let place = info.place(runtime);
        let described = Described { id, name, image, labels, env, pod: Some(pod), ..Described::default() };
        seen(runtime, described, place, running, kept)
    }
}

/// A pod's sandbox is a container as well, with a cgroup and a process of its own.
pub fn sandbox(runtime: &'static str, sandbox: Sandbox, kept: &Labels) -> Option<Seen> {
    let Sandbox { status, info } = sandbox;
    let status = status?;
    let running = status.alive();
    let SandboxStatus { id, metadata, labels, annotations, .. } = status;
    let labels = merged([labels, resource(annotations)]);
    let pod = pod(metadata.unwrap_or_default(), &labels);
    let described = Described { id, labels, pod: Some(pod), ..Described::default() };
    Some(seen(runtime, described, Info::of(&info).place(runtime), running, kept))
}

fn seen(runtime: &'static str, described: Described, place: Place, running: bool, kept: &Labels) -> Seen {
    let namespace = (runtime == CONTAINERD.0).then(|| CONTAINERD.1.to_owned());
    let container = container::Container::described(runtime, Described { namespace, ..described }, kept);
    Seen { container, place, running }
}

impl Info {
    fn of(info: &HashMap<String, String>) -> Self {
        info.get("info").map(|json| oci::parse(json.as_bytes())).unwrap_or_default()
    }

    fn place(&self, runtime: &str) -> Place {
        // CRI-O writes systemd's form only for systemd; containerd writes what the kubelet asks for.
        let options = self.runtime_options.as_ref();
        let systemd = options.map_or(runtime != CONTAINERD.0, |options| options.systemd_cgroup);
        let pid = self.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Place { cgroup: self.runtime_spec.as_ref().and_then(|spec| spec.cgroup(systemd)), pid }
    }
}

/// The first word on each key counts.
fn merged<const N: usize>(sources: [HashMap<String, String>; N]) -> HashMap<String, String> {
    let mut merged = HashMap::new();
    for (key, value) in sources.into_iter().flatten() {
        merged.entry(key).or_insert(value);
    }
    merged
}

fn resource(mut annotations: HashMap<String, String>) -> HashMap<String, String> {
    annotations.retain(|key, _| key.starts_with(RESOURCE));
    annotations
}

/// As the runtime has it, else as the labels say, which are the kubelet's.
fn pod(metadata: super::api::SandboxMetadata, labels: &HashMap<String, String>) -> Pod {
    let labels = Pod::of(labels);
    let or = |said: String, label| Some(said).filter(|said| !said.is_empty()).or(label);
    Pod {
        uid: or(metadata.uid, labels.uid),
        name: or(metadata.name, labels.name),
        namespace: or(metadata.namespace, labels.namespace),
        container: None,
    }
}

fn image(status: &ContainerStatus) -> Option<Image> {
    let spec = status.image.clone().unwrap_or_default();
    let names = [spec.image.as_str(), &spec.user_specified_image, &status.image_ref];
    let reference = names.map(Reference::parse).into_iter().find(|reference| !reference.name.is_empty());
    let Reference { name, tag, digest } = reference.unwrap_or(Reference { name: "", tag: None, digest: None });
    let ids = [status.image_id.as_str(), &status.image_ref, &spec.image];
    let id = ids.into_iter().find(|id| is_image_id(id)).map(ToOwned::to_owned);
    if name.is_empty() && id.is_none() {
        return None;
    }
    let digest = Reference::parse(&status.image_ref).digest.or(digest).filter(|_| !name.is_empty());
    Some(Image::of(Reference { name, tag, digest }, id))
}

#[cfg(test)]
mod tests;
