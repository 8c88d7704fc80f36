//! A record under construction in a scratch buffer: the process's identity, then section after section.

use core::ptr::read_volatile;

use namespan_ebpf::wire::{self, Counter, flag, section};

use crate::identity::{self, Identity, number, optional, put};
use crate::kernel::{Access, Ptr, Typed, copy, copy_str, copy_user, is_absent, off, pointer};
use crate::path::Window;

/// Where the sections before the arguments begin at the latest.
const SMALL_MASK: u32 = 0x3fff;
/// Longest path, as `PATH_MAX` in include/uapi/linux/limits.h.
pub const PATH_MAX: u32 = 4096;
/// Longest component of a path, with its NUL (`NAME_MAX`).
pub const NAME_SIZE: u32 = 256;
/// Bytes of a scratch buffer that holds every section but the arguments.
pub const SMALL_SIZE: usize = (SMALL_MASK + 1 + PATH_MAX) as usize;
pub const PATH_MASK: u32 = PATH_MAX - 1;
/// Components of a cgroup path that are told: those nearest to the root. Two such paths, an executable's path and the small
/// sections end before the masks above would take the next section back to the start.
const CGROUP_DEPTH: u32 = 16;
const _: () = assert!(
    size_of::<wire::Process>()
        + size_of::<wire::Exec>()
        + 2 * (CGROUP_DEPTH * NAME_SIZE) as usize
        + (PATH_MAX + 65 + 64) as usize
        <= SMALL_MASK as usize
);
/// Components nearer to the leaf that are stepped over on deeper paths.
const CGROUP_SKIP: u32 = 256;

/// The length and flags so far stand in the buffer, not here: what the verifier reads back from memory it knows nothing
/// of, so that the many ways through the loops below meet again in one state instead of multiplying.
pub struct Record {
    base: *mut u8,
}

impl Record {
    /// Starts a record after room for its fixed part. The buffer is at least [`SMALL_SIZE`] bytes.
    #[inline(always)]
    pub fn new<Detail>(base: *mut u8) -> Self {
        let record = Self { base };
        let to = record.process();
        put!(to.len = (size_of::<wire::Process>() + size_of::<Detail>()) as u32);
        put!(to.flags = 0);
        record
    }

    #[inline(always)]
    pub fn flag(&self, flag: u16) {
        let to = self.process();
        put!(to.flags = self.flags() | flag);
    }

    #[inline(always)]
    fn flags(&self) -> u16 {
        // SAFETY: within the fixed part.
        unsafe { read_volatile(&raw const (*self.process()).flags) }
    }

    #[inline(always)]
    pub fn is_incomplete(&self) -> bool {
        self.flags() & !(flag::UNLINKED | flag::OOM_VICTIM) != 0
    }

    /// Bytes so far.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: within the fixed part.
        unsafe { read_volatile(&raw const (*self.process()).len) }
    }

    #[inline(always)]
    pub fn grow(&self, bytes: u32) {
        let to = self.process();
        put!(to.len = self.len() + bytes);
    }

    #[inline(always)]
    pub fn process(&self) -> *mut wire::Process {
        self.base.cast()
    }

    /// The fixed part after the process.
    #[inline(always)]
    pub fn detail<Detail>(&self) -> *mut Detail {
        self.base.wrapping_add(size_of::<wire::Process>()).cast()
    }

    /// All of the scratch buffer.
    #[inline(always)]
    pub fn buffer(&self) -> *mut u8 {
        self.base
    }

    /// Where the next section goes.
    #[inline(always)]
    pub fn tail<const MASK: u32>(&self) -> *mut u8 {
        self.base.wrapping_add((self.len() & MASK) as usize)
    }

    /// Notes that section `index` took `bytes` at the tail.
    #[inline(always)]
    pub fn section(&self, index: usize, bytes: u32) {
        self.set_section(index, bytes);
        self.grow(bytes);
    }

    /// Notes that section `first` and those behind it are empty.
    #[inline(always)]
    pub fn end_at(&self, first: usize) {
        let mut index = first;
        while index < section::COUNT {
            self.set_section(index, 0);
            index += 1;
        }
    }

    #[inline(always)]
    pub fn set_section(&self, index: usize, bytes: u32) {
        // Unchecked: a bounds check would be a call that the verifier refuses, even where it can't be reached.
        // SAFETY: within the fixed part, `index` is one of the constants of `section`.
        unsafe { (&raw mut (*self.process()).sections).cast::<u16>().add(index).write(bytes as u16) };
    }

    /// A NUL-ended kernel string as a section; empty if unreadable.
    #[inline(always)]
    pub fn string(&self, index: usize, max: u32, from: Option<Ptr>) -> bool {
        let copied = from.and_then(|from| copy_str(self.tail::<SMALL_MASK>(), max, from));
        self.section(index, copied.unwrap_or(0) & PATH_MASK);
        copied.is_some()
    }

    /// The finished path in `window` as a section.
    #[inline(always)]
    pub fn path(&self, window: &Window) {
        let start = window.start();
        let bytes = PATH_MAX.wrapping_sub(start) & PATH_MASK;
        if !copy(self.tail::<SMALL_MASK>(), bytes, window.at(start)) || bytes == 0 {
            self.flag(flag::PATH_FAULT);
        }
        self.section(section::PATH, bytes);
    }

    /// The cgroup's path as a section, leaf first; empty if there is none.
    #[inline(always)]
    pub fn cgroup<A: Access>(&self, index: usize, cgroup: Option<Ptr>) {
        let start = self.len();
        self.set_section(index, 0);
        let Some(cgroup) = cgroup else { return };
        let level = A::load::<u32>(cgroup, off!(cgroup_level)).unwrap_or(0);
        let mut node = pointer::<A>(cgroup, off!(cgroup_kn));
        // The components nearest to the root say whose the process is, and only those below are the workload's to choose.
        let mut deeper = level.saturating_sub(CGROUP_DEPTH);
        if deeper > 0 {
            self.flag(flag::CGROUP_TRUNCATED);
        }
        let mut step = 0;
        while step < CGROUP_SKIP && deeper > 0 {
            let Some(child) = node else { break };
            node = pointer::<A>(child, off!(kernfs_parent));
            deeper -= 1;
            step += 1;
        }
        if deeper > 0 {
            self.flag(flag::CGROUP_FAULT);
        }
        let mut step = 0;
        while step < CGROUP_DEPTH {
            let Some(child) = node else { break };
            let Some(parent) = pointer::<A>(child, off!(kernfs_parent)) else { break };
            let to = self.tail::<SMALL_MASK>();
            let Some(bytes) = pointer::<A>(child, off!(kernfs_name)).and_then(|name| copy_str(to, NAME_SIZE, name))
            else {
                self.flag(flag::CGROUP_FAULT);
                break;
            };
            // Its NUL stays as the separator.
            self.grow((bytes & (NAME_SIZE - 1)) + 1);
            node = Some(parent);
            step += 1;
        }
        self.set_section(index, self.len().wrapping_sub(start));
    }

    /// The argument bytes of the new image as sections: all, or head and tail when there are more than the limit. How many
    /// there are.
    #[inline(always)]
    pub fn arguments(&self, mm: Ptr, limit: u32) -> Result<u64, Counter> {
        let from = number::<Typed, u64>(mm, off!(mm_arg_start))?;
        let to = number::<Typed, u64>(mm, off!(mm_arg_end))?;
        let len = to.saturating_sub(from);
        let (head, tail) = if len <= u64::from(limit) { (len as u32, 0) } else { (limit - limit / 2, limit / 2) };
        let head = head & wire::ARGS_MAX;
        let tail = tail & (wire::ARGS_MAX >> 1);
        let head_read = copy_user(self.tail::<0x7fff>(), head, from);
        self.section(section::ARGS_HEAD, if head_read { head } else { 0 });
        let tail_read = copy_user(self.tail::<0xffff>(), tail, to - u64::from(tail));
        self.section(section::ARGS_TAIL, if tail_read { tail } else { 0 });
        if !head_read || !tail_read {
            self.flag(flag::ARGS_FAULT);
        }
        Ok(len)
    }

    /// Writes the fixed part's numbers, the nodename and the terminal.
    #[inline(always)]
    pub fn identify<A: Access>(&self, kind: u16, now: u64, who: &Identity) -> Result<(), Counter> {
        let to = self.process();
        let signal = identity::write::<A>(to, kind, now, who)?;
        let uts = identity::namespaces::<A>(to, who);
        self.string(section::NODENAME, 65, uts.and_then(|uts| within(uts, off!(uts_ns_nodename))));
        let tty = optional::<A>(signal, off!(signal_tty));
        self.terminal(tty.and_then(|tty| within(tty, off!(tty_name))));
        Ok(())
    }

    /// The terminal's name as `/dev` has it: the kernel's own name of a pseudo-terminal (`pts0`) lacks the slash.
    #[inline(always)]
    fn terminal(&self, name: Option<Ptr>) {
        let mut first = [0u8; 4];
        if let Some(name) = name
            && copy(first.as_mut_ptr(), 4, name)
            && matches!(first, [b'p', b't', b's', b'0'..=b'9'])
        {
            let to = self.tail::<SMALL_MASK>().cast::<[u8; 4]>();
            // SAFETY: the masked index lies within the scratch buffer.
            unsafe { to.write_unaligned(*b"pts/") };
            self.grow(4);
            let number = copy_str(self.tail::<SMALL_MASK>(), 16, name.wrapping_add(3)).unwrap_or(0) & PATH_MASK;
            self.grow(number);
            self.set_section(section::TTY, 4 + number);
        } else {
            self.string(section::TTY, 64, name);
        }
    }
}

/// Address of an embedded field that the kernel may lack.
#[inline(always)]
fn within(base: Ptr, offset: u32) -> Option<Ptr> {
    (!is_absent(offset)).then(|| base.wrapping_add(offset as usize))
}
