//! The host's processes, as `/proc` has them: where they are in the cgroup hierarchies, and in which namespaces.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::PathBuf;

use namespan_ebpf::wire::CgroupKey;

use crate::enrich::cgroup::{self, ContainerRef};
use crate::enrich::container::key;
use crate::enrich::procfs::{self, Cgroups, V1_CONTROLLERS};
use crate::event::CgroupPath;

#[derive(Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub cgroups: Cgroups,
}

/// All that run now.
pub fn processes() -> io::Result<Vec<Process>> {
    // What ends in the meantime is left out.
    Ok(procfs::pids()?.filter_map(|pid| Some(Process { pid, cgroups: procfs::cgroups(pid)? })).collect())
}

impl Process {
    /// The container that its cgroup tells of.
    pub fn container(&self) -> Option<ContainerRef<'_>> {
        cgroup::resolve(CgroupPath(&self.cgroups.v2), CgroupPath(&self.cgroups.v1))
    }

    /// That container's key.
    pub fn key(&self) -> Option<String> {
        let found = self.container()?;
        Some(key(found.runtime, None, found.user, found.id).into_owned())
    }

    /// Whether it is in this cgroup, or in one below.
    pub fn is_below(&self, cgroup: &str) -> bool {
        let root = procfs::walked(cgroup.as_bytes());
        let is_below = |path: &Vec<u8>| CgroupPath(path).from_root().any(|above| *above.0 == *root);
        [&self.cgroups.v2, &self.cgroups.v1].into_iter().any(is_below)
    }
}

/// Where the hierarchies of cgroups are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    v2: Option<String>,
    v1: Option<String>,
}

impl Hierarchies {
    pub fn of_this_process() -> Self {
        fs::read_to_string("/proc/self/mountinfo").map(|table| Self::parse(&table)).unwrap_or_default()
    }

    fn parse(mountinfo: &str) -> Self {
        // The optional fields before the hyphen are any number.
        let mounts = mountinfo.lines().filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let mut tail = tail.split(' ');
            Some((head.split(' ').nth(4)?, tail.next()?, tail.nth(1)?))
        });
        let v2 = mounts.clone().find(|(_, kind, _)| *kind == "cgroup2").map(|(point, ..)| point.to_owned());
        let v1 = V1_CONTROLLERS.iter().find_map(|wanted| {
            let has = |options: &str| options.split(',').any(|option| option == *wanted);
            mounts.clone().find(|(_, kind, options)| *kind == "cgroup" && has(options))
        });
        Self { v2, v1: v1.map(|(point, ..)| point.to_owned()) }
    }

    /// Of a cgroup that is at the same path in each.
    pub fn inode(&self, path: &str) -> Option<u64> {
        self.v2.iter().chain(&self.v1).find_map(|point| inode(point, path))
    }

    /// Of the cgroup at this path in the v2 hierarchy, and of that in the one of v1: each has numbers of its own.
    pub fn inodes(&self, path: &str) -> [Option<u64>; 2] {
        [&self.v2, &self.v1].map(|point| inode(point.as_ref()?, path))
    }

    /// The ids by which the kernel side knows these cgroups: those of kernfs, which are their directories' inodes.
    pub fn key_of(&self, cgroups: &Cgroups) -> CgroupKey {
        let id = |mount: &Option<String>, path: &[u8]| {
            let components: Vec<_> = CgroupPath(path).root_to_leaf().map(String::from_utf8_lossy).collect();
            mount.as_ref().and_then(|mount| inode(mount, &components.join("/"))).unwrap_or(0)
        };
        CgroupKey { v2: id(&self.v2, &cgroups.v2), v1: id(&self.v1, &cgroups.v1) }
    }

    /// The cgroups that there are; `None`: not all of them can be seen.
    pub fn live(&self) -> Option<Live> {
        // In a namespace of cgroups only those below our own are there.
        if procfs::namespace(std::process::id(), "cgroup") != Some(INIT_CGROUP_NS) {
            return None;
        }
        let of = |mount: &Option<String>| match mount {
            Some(mount) => directories(mount).map(Some),
            None => Some(None),
        };
        Some(Live { v2: of(&self.v2)?, v1: of(&self.v1)? })
    }

    /// Of a container's own cgroup.
    pub fn inode_of(&self, found: &ContainerRef<'_>) -> Option<u64> {
        let mount = if found.in_v1 { &self.v1 } else { &self.v2 };
        let components: Vec<_> = found.root.root_to_leaf().map(String::from_utf8_lossy).collect();
        inode(mount.as_ref()?, &components.join("/"))
    }
}

/// `PROC_CGROUP_INIT_INO` of the kernel.
const INIT_CGROUP_NS: u32 = 0xefff_fffb;
/// More cgroups are not looked at.
const LIVE_MAX: usize = 65_536;

/// Cgroups by their ids, where there is a hierarchy.
#[derive(Debug)]
pub struct Live {
    v2: Option<HashSet<u64>>,
    v1: Option<HashSet<u64>>,
}

impl Live {
    /// Whether it is there, as far as can be told.
    pub fn has(&self, cgroup: CgroupKey) -> bool {
        let holds = |ids: &Option<HashSet<u64>>, id: u64| id == 0 || ids.as_ref().is_none_or(|ids| ids.contains(&id));
        holds(&self.v2, cgroup.v2) && holds(&self.v1, cgroup.v1)
    }
}

/// The inodes of a directory and of all below it; `None`: not all can be read.
fn directories(mount: &str) -> Option<HashSet<u64>> {
    let mut found = HashSet::from([fs::metadata(mount).ok()?.ino()]);
    let mut waiting = vec![PathBuf::from(mount)];
    while let Some(path) = waiting.pop() {
        // What is gone meanwhile has nothing below.
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // The inode of what is mounted there, if something is.
                found.insert(entry.metadata().map_or(entry.ino(), |metadata| metadata.ino()));
                waiting.push(entry.path());
            }
        }
        if found.len() > LIVE_MAX {
            return None;
        }
    }
    Some(found)
}

fn inode(mount: &str, path: &str) -> Option<u64> {
    fs::metadata(format!("{mount}/{path}")).ok().map(|metadata| metadata.ino())
}

/// Inodes of namespaces; `None`: not to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Namespaces {
    pub pid: Option<u32>,
    pub mnt: Option<u32>,
    pub net: Option<u32>,
}

impl Namespaces {
    pub fn of(pid: u32) -> Self {
        let inode = |kind| procfs::namespace(pid, kind);
        Self { pid: inode("pid"), mnt: inode("mnt"), net: inode("net") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_a_cgroup_is_what_begins_with_it_whole() {
        let process = Process { pid: 1, cgroups: Cgroups { v2: procfs::walked(b"/a/b/c"), v1: Vec::new() } };
        for (cgroup, is_below) in [
            ("/a/b", true),
            ("/a/b/c", true),
            ("/a/b/", true),
            ("/a/", true),
            ("/a/b/c/d", false),
            ("/a/bc", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(process.is_below(cgroup), is_below, "{cgroup}");
        }
    }

    #[test]
    fn a_cgroup_that_is_there_lives_and_others_do_not() {
        let hierarchies = Hierarchies::of_this_process();
        // As where tests run in a container.
        let Some(live) = hierarchies.live() else { return };
        let own = hierarchies.key_of(&procfs::cgroups(std::process::id()).unwrap());
        assert!(live.has(own), "{own:?}");
        assert!(live.has(CgroupKey { v2: 0, v1: 0 }));
        let gone = CgroupKey { v2: u64::MAX, v1: u64::MAX };
        assert!(!live.has(gone) || (hierarchies.v2.is_none() && hierarchies.v1.is_none()));
    }

    #[test]
    fn hierarchies_are_where_they_are_mounted() {
        let table = "31 25 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                     32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let [v2, v1] = ["unified", "memory"].map(|name| Some(format!("/sys/fs/cgroup/{name}")));
        assert_eq!(Hierarchies::parse(table), Hierarchies { v2, v1 });
        assert_eq!(Hierarchies::parse("torn"), Hierarchies::default());
    }

    #[test]
    fn this_process_is_among_those_that_run_and_in_three_namespaces() {
        let pid = std::process::id();
        assert!(processes().unwrap().iter().any(|process| process.pid == pid));
        let Namespaces { pid, mnt, net } = Namespaces::of(pid);
        assert!(pid.is_some() && mnt.is_some() && net.is_some());
    }
}
