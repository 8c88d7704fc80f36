//! Docker's own files: `ROOT/containers/ID/config.v2.json`, written when the container is made, and whenever it starts or
//! ends.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::folder::{Folder, Root};
use super::layout::{Entry, Found, Layout};
use super::oci;
use super::process::{Claim, cgroup};
use crate::enrich::container::{Described, Image, Reference, is_full_id};

/// Most containers of a host.
const CONTAINERS: usize = 16 << 10;

pub struct Docker(Root);

impl Docker {
    /// `root`: as in the daemon's settings, `/var/lib/docker`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self(Root::of_host(root))
    }
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct Written {
    name: String,
    /// Its id.
    image: String,
    config: Config,
    state: State,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    image: String,
    labels: Option<HashMap<String, String>>,
    env: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    pid: u32,
}

impl Layout for Docker {
    fn runtime(&self) -> &'static str {
        "docker"
    }

    fn root(&self) -> &Root {
        &self.0
    }

    fn is_group(&self, name: &str) -> bool {
        name == "containers"
    }

    fn list(&self, group: &Folder) -> io::Result<Vec<Entry>> {
        let ids = group.names(CONTAINERS)?.into_iter().filter(|name| is_full_id(name.as_bytes()));
        Ok(ids.map(|id| Entry { id, ..Entry::default() }).collect())
    }

    fn describe(&self, group: &str, entry: &Entry) -> io::Result<Found> {
        let id = &entry.id;
        let folder = self.base()?.folder(Path::new(group).join(id))?;
        let written: Written = folder.file("config.v2.json", oci::CONFIG_MAX)?.json()?;
        // The last one of before a crash may still be there.
        let process = Claim { pid: written.state.pid, id, monitor: None, user: None }.check();
        let Config { image, labels, env } = written.config;
        let image_id = Some(written.image).filter(|id| !id.is_empty());
        let described = Described {
            id: id.clone(),
            name: Some(written.name.strip_prefix('/').map(ToOwned::to_owned).unwrap_or(written.name)),
            image: (!image.is_empty()).then(|| Image::of(Reference::parse(&image), image_id)),
            labels: labels.unwrap_or_default(),
            env: env.unwrap_or_default(),
            ..Described::default()
        };
        // It is written at the end, too.
        Ok(Found { described, cgroup: process.and_then(|process| cgroup(process.pid, id)), process, start: 0 })
    }
}

#[cfg(test)]
mod tests;
