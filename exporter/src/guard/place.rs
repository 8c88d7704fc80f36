//! Where we ourselves are, so that the guard never touches us nor a runtime's set-up.

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use namespan_ebpf::guard_wire::GuardSettings;

use crate::attach::own_pid_namespace;
use crate::enrich::cgroup;
use crate::event::CgroupPath;

/// Inode number of the first PID namespace (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
const FIRST_PID_NS: u32 = 0xefff_fffc;

/// Fills in what the programs have to know of the host and of ourselves.
pub(super) fn fill(settings: &mut GuardSettings) -> io::Result<()> {
    settings.host_pid_ns = FIRST_PID_NS;
    settings.self_vpid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    settings.self_pid_ns = own_pid_namespace()?;
    settings.host_mnt_ns = host_mount_namespace(settings.self_pid_ns == FIRST_PID_NS)?;
    settings.self_cgroup = own_cgroup().unwrap_or(0);
    Ok(())
}

/// Whether a runtime's set-up can be told from a container's own processes.
#[must_use]
pub fn sees_host() -> bool {
    let inode = own_pid_namespace().and_then(|own| host_mount_namespace(own == FIRST_PID_NS));
    inode.is_ok_and(|inode| inode != 0)
}

/// That of the host's first process, or of the kernel's threads; 0: not known, then no process is taken for a runtime's.
fn host_mount_namespace(on_host: bool) -> io::Result<u32> {
    if !on_host {
        return Ok(0);
    }
    for process in ["1", "2", "self"] {
        if let Ok(metadata) = fs::metadata(format!("/proc/{process}/ns/mnt")) {
            return u32::try_from(metadata.st_ino()).map_err(io::Error::other);
        }
    }
    Ok(0)
}

/// Our cgroup in the v2 hierarchy, if it is ours alone: a service's or a container's. A session is everybody's who logs in.
fn own_cgroup() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then_some(point)
    })?;
    // In a cgroup namespace of our own the container's cgroup is the root that we see, and its number tells it from the host's.
    if !is_a_service_s_or_a_container_s(path) && path != "/" {
        return None;
    }
    let inode = fs::metadata(Path::new(mount).join(path.trim_start_matches('/'))).ok()?.st_ino();
    (inode > ROOT).then_some(inode)
}

/// The root's number.
const ROOT: u64 = 1;

fn is_a_service_s_or_a_container_s(path: &str) -> bool {
    let leaf_first: Vec<u8> =
        path.split('/').rev().filter(|name| !name.is_empty()).flat_map(|name| name.bytes().chain([0])).collect();
    let path = CgroupPath(&leaf_first);
    path.leaf().ends_with(b".service") || cgroup::resolve(path, CgroupPath::default()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_s_and_a_container_s_cgroup_is_ours_alone() {
        let id = "d0203f329e3cdc44ef1c89ee8b4f10dd923b2598aa68fb61fda555c1d053aa19";
        for (path, ours) in [
            ("/system.slice/namespan.service", true),
            (&*format!("/docker/{id}"), true),
            (&*format!("/system.slice/docker-{id}.scope"), true),
            ("/user.slice/user-0.slice/session-3.scope", false),
            ("/init.scope", false),
            ("/system.slice", false),
            ("/", false),
        ] {
            assert_eq!(is_a_service_s_or_a_container_s(path), ours, "{path}");
        }
    }
}
