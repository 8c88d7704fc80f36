//! How cgroups are laid out here, which decides by what path containers are known.

use std::fs;

use super::kernel::mounts;
use super::report::Check;

const NAME: &str = "cgroups";
/// Whose v1 path the programs read: the first that the kernel is built with.
const V1_CANDIDATES: [&str; 4] = ["memory", "pids", "cpu", "cpuset"];

pub(super) fn check() -> Check {
    match (fs::read_to_string("/proc/self/mountinfo"), fs::read_to_string("/proc/cgroups")) {
        (Ok(mountinfo), Ok(cgroups)) => explain(&Layout::parse(&mountinfo, &cgroups)),
        (Err(error), _) => Check::skip(NAME, format!("unknown: /proc/self/mountinfo: {error}")),
        (_, Err(error)) => Check::skip(NAME, format!("unknown: /proc/cgroups: {error}")),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Layout<'a> {
    /// Where the v2 hierarchy is mounted.
    v2: Option<&'a str>,
    /// Controllers in hierarchies of v1.
    v1: Vec<&'a str>,
    /// The controller whose v1 path the programs read.
    v1_source: Option<&'a str>,
}

impl<'a> Layout<'a> {
    fn parse(mountinfo: &'a str, cgroups: &'a str) -> Self {
        let v2 = mounts(mountinfo).find(|mount| mount.kind == "cgroup2").map(|mount| mount.point);
        // Name, hierarchy, number of cgroups, enabled; those of v2 and those in no hierarchy have hierarchy 0.
        let rows = cgroups.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let mut columns = line.split_whitespace();
            Some((columns.next()?, columns.next()?))
        });
        let rows: Vec<_> = rows.collect();
        let v1 = rows.iter().filter(|(_, hierarchy)| *hierarchy != "0").map(|(name, _)| *name).collect();
        let v1_source = V1_CANDIDATES.into_iter().find(|candidate| rows.iter().any(|(name, _)| name == candidate));
        Self { v2, v1, v1_source }
    }

    fn reads_v1(&self) -> bool {
        self.v1_source.is_some_and(|source| self.v1.contains(&source))
    }
}

fn explain(layout: &Layout<'_>) -> Check {
    let source = layout.v1_source.unwrap_or("memory");
    match (layout.v2, layout.v1.join(", ")) {
        (Some(at), v1) if v1.is_empty() => {
            Check::ok(NAME, format!("v2 only, on {at}")).means("containers are known by their v2 path")
        }
        (Some(at), v1) => {
            let meaning = if layout.reads_v1() {
                format!("containers are known by their v2 path, else by their v1 path of {source}")
            } else {
                format!("containers are known by their v2 path only, as {source} has none in v1")
            };
            Check::ok(NAME, format!("hybrid: v2 on {at}; v1 for {v1}")).means(meaning)
        }
        (None, v1) if v1.is_empty() => Check::skip(NAME, "unknown: no cgroup file system is mounted here")
            .means("the kernel tells the host's cgroups all the same"),
        (None, v1) if layout.reads_v1() => Check::ok(NAME, format!("v1 only: {v1}"))
            .means(format!("containers are known by their v1 path of {source}")),
        (None, v1) => Check::warn(NAME, format!("v1 only, without {source}: {v1}"))
            .means("processes in containers are told of as the host's")
            .remedy(format!("boot with cgroup_enable={source}, or with systemd.unified_cgroup_hierarchy=1")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    const V2_MOUNTS: &str = "\
25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 25 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const V1_MOUNTS: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory
";
    const UNIFIED: &str = "34 30 0:30 / /sys/fs/cgroup/unified rw shared:12 - cgroup2 cgroup2 rw\n";
    const V2_TABLE: &str =
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t61\t1\nmemory\t0\t61\t1\npids\t0\t61\t1\n";
    const V1_TABLE: &str =
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t2\t1\nmemory\t4\t17\t1\npids\t8\t2\t1\n";
    const NO_MEMORY: &str =
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t2\t1\nmemory\t0\t66\t0\npids\t8\t2\t1\n";

    fn explained(mountinfo: &str, cgroups: &str) -> (Status, String, String) {
        let check = explain(&Layout::parse(mountinfo, cgroups));
        (check.status, check.found, check.consequence.unwrap())
    }

    #[test]
    fn a_host_of_v2_only_is_known_by_its_mount() {
        let (status, found, meaning) = explained(V2_MOUNTS, V2_TABLE);
        assert_eq!((status, found.as_str()), (Status::Ok, "v2 only, on /sys/fs/cgroup"));
        assert_eq!(meaning, "containers are known by their v2 path");
    }

    #[test]
    fn a_hybrid_host_has_both_paths() {
        let mounts = format!("{V1_MOUNTS}{UNIFIED}");
        let (status, found, meaning) = explained(&mounts, V1_TABLE);
        assert_eq!(status, Status::Ok);
        assert_eq!(found, "hybrid: v2 on /sys/fs/cgroup/unified; v1 for cpuset, memory, pids");
        assert_eq!(meaning, "containers are known by their v2 path, else by their v1 path of memory");
        let (status, _, meaning) = explained(&mounts, NO_MEMORY);
        assert_eq!(status, Status::Ok);
        assert_eq!(meaning, "containers are known by their v2 path only, as memory has none in v1");
    }

    #[test]
    fn a_host_of_v1_only_is_known_by_the_memory_hierarchy() {
        let (status, found, meaning) = explained(V1_MOUNTS, V1_TABLE);
        assert_eq!((status, found.as_str()), (Status::Ok, "v1 only: cpuset, memory, pids"));
        assert_eq!(meaning, "containers are known by their v1 path of memory");
    }

    #[test]
    fn a_host_of_v1_without_the_memory_controller_is_warned_of() {
        let (status, found, meaning) = explained(V1_MOUNTS, NO_MEMORY);
        assert_eq!((status, found.as_str()), (Status::Warn, "v1 only, without memory: cpuset, pids"));
        assert_eq!(meaning, "processes in containers are told of as the host's");
    }

    #[test]
    fn the_layout_is_unknown_where_no_cgroups_are_mounted() {
        assert_eq!(explained("", V2_TABLE).0, Status::Skip);
    }

    #[test]
    fn a_kernel_without_the_memory_controller_has_the_next_one_read() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t2\t1\npids\t8\t2\t1\n";
        assert_eq!(Layout::parse(V1_MOUNTS, table).v1_source, Some("pids"));
    }
}
