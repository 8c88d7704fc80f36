//! The files that runtimes leave: `config.json` or `config.v2.json`, then Podman's lists of containers and of images.

use std::cell::LazyCell;
use std::fs;
use std::path::Path;

use namespan::enrich::container::Container;
use namespan::enrich::files::{Containerd, Docker, Layout, Storage};
use namespan::enrich::runtime::Place;
use tempfile::TempDir;

use crate::container::{is_bounded, is_place, labels};
use crate::part;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const CONFIG: [&str; 3] = [
    "containers/ID/config.v2.json",
    "io.containerd.runtime.v2.task/default/ID/config.json",
    "overlay-containers/ID/userdata/config.json",
];

/// One folder is the root of all of them.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
        for file in CONFIG {
            fs::create_dir_all(root.path().join(file.replace("ID", ID)).parent().unwrap()).unwrap();
        }
        fs::create_dir(root.path().join("overlay-images")).unwrap();
        Self(root)
    }

    fn write(&self, file: &str, content: &[u8]) {
        fs::write(self.0.path().join(file.replace("ID", ID)), content).unwrap();
    }
}

thread_local! {
    static ROOT: LazyCell<Root> = const { LazyCell::new(Root::new) };
}

pub fn check(mut data: &[u8]) {
    let (config, list) = (part(&mut data), part(&mut data));
    ROOT.with(|root| {
        for file in CONFIG {
            root.write(file, config);
        }
        root.write("overlay-containers/containers.json", list);
        root.write("overlay-images/images.json", data);
        let path = || root.0.path().to_owned();
        let (docker, containerd) = (Docker::new(path()), Containerd::new(&path()));
        let (podman, crio) = (Storage::podman(path(), path()), Storage::crio(path(), path()));
        let layouts: [(&dyn Layout, &str); 4] = [
            (&docker, "containers"),
            (&containerd, "default"),
            (&podman, "overlay-containers"),
            (&crio, "overlay-containers"),
        ];
        for (layout, group) in layouts {
            describe(layout, group);
        }
    });
}

fn describe(layout: &dyn Layout, group: &str) {
    assert!(layout.is_group(group));
    let folder = layout.base().and_then(|base| base.folder(group)).unwrap();
    let Ok(entries) = layout.list(&folder) else { return };
    for entry in entries {
        assert_eq!(entry.id.len(), ID.len());
        let Ok(found) = layout.describe(group, &entry) else { continue };
        // Nothing that the files name runs here.
        assert!(found.process.is_none());
        is_place(&Place { cgroup: found.cgroup, pid: None });
        is_bounded(&Container::described(layout.runtime(), found.described, &labels()));
    }
}
