//! containerd's bundles: `STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/{config.json,init.pid}`, which are there before
//! the container's first process and as long as its task. Images and labels are in its database; but `ctr --label` and
//! nerdctl leave theirs among the annotations, and the CRI plugin says what Kubernetes calls things.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::folder::{Folder, Root};
use super::layout::{Entry, Found, Layout};
use super::oci;
use super::process::{Claim, cgroup};
use crate::enrich::container::{Described, Image, Reference, is_full_id};
use crate::enrich::oci::Spec;

/// Most containers of a namespace.
const CONTAINERS: usize = 16 << 10;
/// What the CRI plugin says of a container, and the label that the kubelet gives it for the same.
const CRI: [(&str, &str); 4] = [
    ("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
    ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
    ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
];
const CRI_TYPE: &str = "io.kubernetes.cri.container-type";

pub struct Containerd(Root);

impl Containerd {
    /// `state`: as in containerd's settings, `/run/containerd`.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self(Root::of_host(state.join("io.containerd.runtime.v2.task")))
    }
}

impl Layout for Containerd {
    fn runtime(&self) -> &'static str {
        "containerd"
    }

    fn root(&self) -> &Root {
        &self.0
    }

    fn is_group(&self, name: &str) -> bool {
        // Docker names its own better.
        name != "moby" && !name.starts_with('.')
    }

    fn list(&self, group: &Folder) -> io::Result<Vec<Entry>> {
        let ids = group.names(CONTAINERS)?.into_iter();
        // What is about to go gets a dot in front.
        Ok(ids.filter(|id| !id.starts_with('.')).map(|id| Entry { id, ..Entry::default() }).collect())
    }

    fn describe(&self, group: &str, entry: &Entry) -> io::Result<Found> {
        let id = &entry.id;
        let bundle = self.base()?.folder(Path::new(group).join(id))?;
        let (mut spec, start) = oci::spec(&bundle)?;
        let pid = bundle.file("init.pid", oci::PID_MAX).ok().and_then(|content| content.number());
        let process = pid.and_then(|pid| Claim { pid, id, monitor: None, user: None }.check());
        let own = spec.cgroup(false);
        let described = described(group, id, &mut spec);
        let cgroup = own.or_else(|| cgroup(process?.pid, id));
        Ok(Found { described, cgroup, process, start })
    }

    fn lists_what_runs(&self) -> bool {
        true
    }
}

fn described(group: &str, id: &str, spec: &mut Spec) -> Described {
    let env = spec.take_env();
    let mut annotations = spec.take_annotations();
    let mut take = |key: &str| annotations.remove(key).filter(|value| !value.is_empty());
    let image = ["io.kubernetes.cri.image-name", "nerdctl/image-ref"].into_iter().find_map(&mut take);
    let (name, labels) = if take(CRI_TYPE).is_some() {
        let label = |(annotation, label): (&str, &str)| Some((label.to_owned(), take(annotation)?));
        let labels: HashMap<_, _> = CRI.into_iter().filter_map(label).collect();
        (labels.get(CRI[0].1).cloned(), labels)
    } else {
        // What `ctr run` is given as the container's id is its name.
        let own = (!is_full_id(id.as_bytes())).then(|| id.to_owned());
        (take("nerdctl/name").or(own), annotations)
    };
    Described {
        id: id.to_owned(),
        namespace: Some(group.to_owned()),
        name,
        image: image.map(|reference| Image::of(Reference::parse(&reference), None)),
        labels,
        env,
        ..Described::default()
    }
}

#[cfg(test)]
mod tests;
