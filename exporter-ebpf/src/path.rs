//! The path of an executable, from its file to the root of its mount namespace.

use core::ptr::{read_volatile, write_volatile};

use namespan_ebpf::wire::flag;

use crate::identity::optional;
use crate::kernel::{Access, Near, Probed, Ptr, copy, is_absent, off, pointer};
use crate::record::{NAME_SIZE, PATH_MASK, PATH_MAX, Record};

/// Bytes of a [`Window`]: the verifier takes a component to start anywhere before `PATH_MAX`. Then 8 for the start.
pub const WINDOW_SIZE: usize = (PATH_MAX + NAME_SIZE + 8) as usize;
/// Components of an executable's path, and mounts crossed, at most.
const PATH_DEPTH: u32 = 64;

/// A path under construction: it grows towards the front, so that it ends up in reading order. Where it starts stands in
/// the buffer too, as a [`Record`]'s length does.
#[derive(Clone, Copy)]
pub struct Window {
    base: *mut u8,
}

impl Window {
    /// An empty path. The buffer is [`WINDOW_SIZE`] bytes.
    #[inline(always)]
    pub fn new(base: *mut u8) -> Self {
        let window = Self::at_work(base);
        window.set_start(PATH_MAX);
        window
    }

    /// A path that stands in the buffer.
    #[inline(always)]
    pub fn at_work(base: *mut u8) -> Self {
        Self { base }
    }

    /// Begins anew.
    #[inline(always)]
    pub fn clear(&self) {
        self.set_start(PATH_MAX);
    }

    #[inline(always)]
    pub fn start(&self) -> u32 {
        // SAFETY: the last bytes of the buffer.
        unsafe { read_volatile(self.base.wrapping_add(WINDOW_SIZE - 8).cast()) }
    }

    #[inline(always)]
    fn set_start(&self, start: u32) {
        // SAFETY: as in `start`.
        unsafe { write_volatile(self.base.wrapping_add(WINDOW_SIZE - 8).cast(), start) };
    }

    /// The byte at `index`, which is taken modulo the longest path.
    #[inline(always)]
    pub fn at(&self, index: u32) -> *mut u8 {
        self.base.wrapping_add((index & PATH_MASK) as usize)
    }

    /// Room for [`NAME_SIZE`] bytes behind the longest path.
    #[inline(always)]
    pub fn beyond(&self) -> *mut u8 {
        self.base.wrapping_add(PATH_MAX as usize)
    }

    /// Bytes of the path.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        PATH_MAX.wrapping_sub(self.start()) & PATH_MASK
    }

    /// Where the last component begins, after a walk that noted it, and its bytes.
    #[inline(always)]
    pub fn name(&self) -> (*mut u8, u32) {
        let bytes = self.get(NAME) as u32 & PATH_MASK;
        (self.at(PATH_MAX.wrapping_sub(bytes).wrapping_add(1)), bytes.wrapping_sub(1) & PATH_MASK)
    }

    /// One of the numbers of a walk, behind the path and what is copied there.
    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        // SAFETY: within the buffer, which is aligned; `index` is one of the constants below.
        unsafe { read_volatile(self.beyond().cast::<u64>().add(index)) }
    }

    #[inline(always)]
    fn set(&self, index: usize, number: u64) {
        // SAFETY: as in `get`.
        unsafe { write_volatile(self.beyond().cast::<u64>().add(index), number) };
    }

    /// A mount, copied behind the path.
    #[inline(always)]
    fn mount(&self, mount: Ptr) -> Option<Near> {
        Near::of(mount, off!(mount_parent), self.beyond())
    }

    /// A name and what it is in, copied behind the path and the mount.
    #[inline(always)]
    fn dentry(&self, dentry: Ptr) -> Option<Near> {
        Near::of(dentry, off!(dentry_parent), self.beyond().wrapping_add(Near::SIZE as usize))
    }

    /// Puts a slash and `name` in front; `None` if unreadable, `Some(false)` if there is no room.
    #[inline(always)]
    fn push(&self, dentry: &Near) -> Option<bool> {
        let bytes = dentry.load::<u32>(off!(dentry_name_len))? & (NAME_SIZE - 1);
        let name = dentry.pointer(off!(dentry_name))?;
        let start = self.start();
        if start <= bytes {
            return Some(false);
        }
        let first = start - bytes;
        if !copy(self.at(first), bytes, name) {
            return None;
        }
        // SAFETY: the masked index lies within the window.
        unsafe { *self.at(first - 1) = b'/' };
        self.set_start(first - 1);
        Some(true)
    }
}

/// Where a walk is: in memory, as a window's start is, behind the copies of a mount and of a name.
const DENTRY: usize = 2 * (Near::SIZE / 8) as usize;
const MOUNT: usize = DENTRY + 1;
/// 1: there are no mounts above.
const DETACHED: usize = DENTRY + 2;
/// Bytes of the last component, if the walk is to note them.
const NAME: usize = DENTRY + 3;

/// Walks from `file` to the root of its mount namespace and writes its path into the window; sets the record's flags for
/// a path that is too long, could not be read, or is no name of the file any more.
#[inline(always)]
pub fn executable<A: Access>(record: &Record, window: &Window, file: Ptr) {
    if let Some(dentry) = pointer::<A>(file, off!(file_dentry))
        && is_unlinked(dentry)
    {
        record.flag(flag::UNLINKED);
    }
    flag_unless_whole(record, walk::<A, false>(window, file));
}

/// Sets the record's flag for the path of a [`walk`].
#[inline(always)]
fn flag_unless_whole(record: &Record, walked: Option<bool>) {
    match walked {
        Some(true) => {}
        Some(false) => record.flag(flag::PATH_TRUNCATED),
        None => record.flag(flag::PATH_FAULT),
    }
}

/// Whether a file has no name any more in any directory.
#[inline(always)]
pub fn is_unlinked(dentry: Ptr) -> bool {
    let Some(inode) = optional::<Probed>(dentry, off!(dentry_inode)) else { return false };
    !is_absent(off!(inode_nlink)) && Probed::load::<u32>(inode, off!(inode_nlink)) == Some(0)
}

/// Writes the path into the window; whether it is whole, `None` if unreadable. `NAMED`: the window is to know its last
/// component too.
#[inline(always)]
pub fn walk<A: Access, const NAMED: bool>(window: &Window, file: Ptr) -> Option<bool> {
    let dentry = pointer::<A>(file, off!(file_dentry))?;
    let mount = pointer::<A>(file, off!(file_mnt))?.wrapping_sub(off!(mount_mnt) as usize);
    window.set(DENTRY, dentry as u64);
    window.set(MOUNT, mount as u64);
    window.set(DETACHED, 0);
    if NAMED {
        window.set(NAME, 0);
    }
    let mut mounted = window.mount(mount)?;
    let mut step = 0;
    while step < PATH_DEPTH {
        step += 1;
        let dentry = window.get(DENTRY) as Ptr;
        if window.get(DETACHED) == 0 && dentry == mounted.pointer(off!(mount_mnt) + off!(vfsmount_root))? {
            let outer = mounted.pointer(off!(mount_parent))?;
            if outer as u64 != window.get(MOUNT) {
                window.set(DENTRY, mounted.load(off!(mount_mountpoint))?);
                window.set(MOUNT, outer as u64);
                mounted = window.mount(outer)?;
                continue;
            }
            if window.start() < PATH_MAX {
                return Some(true);
            }
            // The file was bound alone to a mount that is gone (runc does so): what is left is its path on its file system.
            window.set(DETACHED, 1);
        }
        let named = window.dentry(dentry)?;
        let parent = named.pointer(off!(dentry_parent))?;
        if !window.push(&named)? {
            return Some(false);
        }
        if NAMED && window.get(NAME) == 0 {
            window.set(NAME, u64::from(PATH_MAX - window.start()));
        }
        // A file without a directory (a memfd) is its own parent.
        if parent == dentry {
            return Some(true);
        }
        window.set(DENTRY, parent as u64);
    }
    Some(false)
}
