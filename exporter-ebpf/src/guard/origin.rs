//! Where an executable comes from.

use namespan_ebpf::guard_wire::origin;

use crate::identity::{Identity, optional};
use crate::kernel::{Access, Probed, Ptr, is_absent, off, pointer};
use crate::path::is_unlinked;
use crate::tables::guard_off;

/// `OVERLAYFS_SUPER_MAGIC` in include/uapi/linux/magic.h.
const OVERLAYFS: u64 = 0x794c_7630;

/// Mounts between a process's root and that of its mount namespace, at most: one, unless it has changed its root.
const MOUNTS: u32 = 32;

/// One of [`origin`]. `contained`: the process is a container's.
#[inline(always)]
pub fn of(who: &Identity, file: Ptr, contained: bool) -> usize {
    read(who, file, contained).unwrap_or(origin::UNKNOWN)
}

#[inline(always)]
fn read(who: &Identity, file: Ptr, contained: bool) -> Option<usize> {
    let dentry = pointer::<Probed>(file, off!(file_dentry))?;
    if is_unlinked(dentry) {
        // A memfd never was in any directory.
        let memfd = pointer::<Probed>(dentry, off!(dentry_parent))? == dentry;
        return Some(if memfd { origin::MEMFD } else { origin::DELETED });
    }
    let inode = optional::<Probed>(dentry, off!(dentry_inode))?;
    let system = optional::<Probed>(inode, guard_off!(inode_sb))?;
    if system != image_system(who, contained)? {
        return Some(origin::MOUNT);
    }
    if is_absent(guard_off!(sb_magic)) || is_absent(guard_off!(ovl_upper)) {
        return None;
    }
    if Probed::load::<u64>(system, guard_off!(sb_magic))? != OVERLAYFS {
        return Some(origin::IMAGE);
    }
    // User space has made it the distance from the inode.
    let upper = Probed::load::<u64>(inode, guard_off!(ovl_upper))?;
    Some(if upper == 0 { origin::IMAGE } else { origin::UPPER })
}

/// The file system of the image. What a workload can make for itself makes nothing an image: neither a root (`chroot`, which
/// changes no mount), nor a PID namespace, nor a user's own mount namespace. So it is what is mounted at the top of the mount
/// namespace of the first process of the outermost container: that of the PID namespace right below the host's. The host's
/// own processes have that of the host's first process.
#[inline(always)]
fn image_system(who: &Identity, contained: bool) -> Option<Ptr> {
    let pid = pointer::<Probed>(who.leader, off!(task_thread_pid))?;
    let is_below = Probed::load::<u32>(pid, off!(pid_level))? != 0;
    if contained && !is_below {
        // A container in the host's PID namespace has no first process of its own.
        return None;
    }
    let upid = pid.wrapping_add((off!(pid_numbers) + u32::from(is_below) * off!(upid_size)) as usize);
    let namespace = pointer::<Probed>(upid, off!(upid_ns))?;
    let first = optional::<Probed>(namespace, guard_off!(pid_ns_reaper))?;
    let mounts = optional::<Probed>(pointer::<Probed>(first, off!(task_nsproxy))?, off!(nsproxy_mnt))?;
    if optional::<Probed>(namespace, guard_off!(pid_ns_user_ns))?
        != optional::<Probed>(mounts, guard_off!(mnt_ns_user_ns))?
    {
        return None;
    }
    top_system(optional::<Probed>(optional::<Probed>(first, guard_off!(task_fs))?, guard_off!(fs_root_mnt))?)
}

/// The file system that is mounted on the root of a mount namespace, or is that root where nothing is.
#[inline(always)]
fn top_system(mount: Ptr) -> Option<Ptr> {
    let mut top = mount.wrapping_sub(off!(mount_mnt) as usize);
    let mut mount = top;
    let mut step = 0;
    while step < MOUNTS {
        let above = pointer::<Probed>(mount, off!(mount_parent))?;
        if above == mount {
            return optional::<Probed>(top.wrapping_add(off!(mount_mnt) as usize), guard_off!(vfsmount_sb));
        }
        top = mount;
        mount = above;
        step += 1;
    }
    None
}
