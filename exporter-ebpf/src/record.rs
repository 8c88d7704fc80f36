//! A record under construction in a scratch buffer: the process's identity, then section after section.

use core::ptr::read_volatile;

use namespan_ebpf::wire::{self, Counter, flag, ns, section};

use crate::kernel::{Access, Near, Probed, Ptr, copy, copy_str, is_absent, off, pointer};
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

/// Writes a field of the fixed part.
macro_rules! put {
    ($to:ident.$field:ident = $value:expr) => {
        let value = $value;
        // SAFETY: the fixed part lies within the scratch buffer, which the verifier checks.
        unsafe { core::ptr::write_volatile(&raw mut (*$to).$field, value) };
    };
}
pub(crate) use put;

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
    fn grow(&self, bytes: u32) {
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
    fn set_section(&self, index: usize, bytes: u32) {
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

    /// Writes the fixed part's numbers. Every pid, namespace and credential comes from the thread group's leader.
    #[inline(always)]
    pub fn identify<A: Access>(&self, kind: u16, now: u64, who: &Identity) -> Result<(), Counter> {
        let Identity { task, leader, cred, .. } = *who;
        let to = self.process();
        let signal = pointer::<A>(leader, off!(task_signal)).ok_or(Counter::LostUnreadable)?;
        let parent = pointer::<A>(leader, off!(task_real_parent)).ok_or(Counter::LostUnreadable)?;
        let parent_leader = pointer::<A>(parent, off!(task_group_leader)).ok_or(Counter::LostUnreadable)?;
        put!(to.kind = kind);
        put!(to.time_boot_ns = now);
        put!(to.start_boot_ns = number::<A, u64>(leader, off!(task_start_boottime))?);
        put!(to.parent_start_boot_ns = number::<A, u64>(parent_leader, off!(task_start_boottime))?);
        put!(to.parent_mnt_ns = mount_namespace::<A>(parent));
        put!(to.self_exec_id = number::<A, u64>(leader, off!(task_self_exec_id))?);
        put!(to.parent_exec_id = number::<A, u64>(leader, off!(task_parent_exec_id))?);
        put!(to.tgid = number::<A, u32>(task, off!(task_tgid))?);
        put!(to.tid = number::<A, u32>(task, off!(task_pid))?);
        put!(to.vpid = who.vpid);
        put!(to.parent_tgid = number::<A, u32>(parent, off!(task_tgid))?);
        put!(to.uid = number::<A, u32>(cred, off!(cred_uid))?);
        put!(to.gid = number::<A, u32>(cred, off!(cred_gid))?);
        put!(to.euid = who.euid);
        put!(to.egid = number::<A, u32>(cred, off!(cred_egid))?);
        put!(to.suid = number::<A, u32>(cred, off!(cred_suid))?);
        put!(to.sgid = number::<A, u32>(cred, off!(cred_sgid))?);
        put!(to.session_leader = host_pid::<A>(signal, off!(signal_sid)));
        put!(to.group_leader = host_pid::<A>(signal, off!(signal_pgid)));
        let comm = leader.wrapping_add(off!(task_comm) as usize);
        // SAFETY: the fixed part lies within the scratch buffer.
        if !copy(unsafe { (&raw mut (*to).comm).cast() }, 16, comm) {
            return Err(Counter::LostUnreadable);
        }
        self.namespaces::<A>(who);
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

    /// Inode numbers of the namespaces, and the UTS nodename as a section.
    #[inline(always)]
    fn namespaces<A: Access>(&self, who: &Identity) {
        let cred = who.cred;
        self.namespace(ns::PID, who.pid_ns);
        self.namespace(ns::USER, inum::<A>(optional::<A>(cred, off!(cred_user_ns)), off!(user_ns_inum)));
        // The thread's: a first thread that exited before the others has none any more.
        let nsproxy = pointer::<A>(who.task, off!(task_nsproxy));
        let through = |offset| nsproxy.and_then(|nsproxy| optional::<A>(nsproxy, offset));
        let uts = through(off!(nsproxy_uts));
        self.namespace(ns::UTS, inum::<A>(uts, off!(uts_ns_inum)));
        self.namespace(ns::NET, inum::<A>(through(off!(nsproxy_net)), off!(net_ns_inum)));
        self.namespace(ns::MNT, inum::<A>(through(off!(nsproxy_mnt)), off!(mnt_ns_inum)));
        self.namespace(ns::IPC, inum::<A>(through(off!(nsproxy_ipc)), off!(ipc_ns_inum)));
        self.namespace(ns::CGROUP, inum::<A>(through(off!(nsproxy_cgroup)), off!(cgroup_ns_inum)));
        self.namespace(ns::TIME, inum::<A>(through(off!(nsproxy_time)), off!(time_ns_inum)));
        let nodename = uts.and_then(|uts| within(uts, off!(uts_ns_nodename)));
        self.string(section::NODENAME, 65, nodename);
    }

    #[inline(always)]
    fn namespace(&self, index: usize, inum: u32) {
        // SAFETY: within the fixed part, `index` is one of the constants of `ns`.
        unsafe { (&raw mut (*self.process()).namespaces).cast::<u32>().add(index).write(inum) };
    }
}

/// What the filters need to know of a process, read once.
#[derive(Clone, Copy)]
pub struct Identity {
    /// The thread the event is about, and the first thread of its process.
    pub task: Ptr,
    pub leader: Ptr,
    pub cred: Ptr,
    pub euid: u32,
    pub vpid: u32,
    pub pid_ns: u32,
}

impl Identity {
    #[inline(always)]
    pub fn of<A: Access>(task: Ptr) -> Result<Self, Counter> {
        Self::read::<A>(task).ok_or(Counter::LostUnreadable)
    }

    #[inline(always)]
    fn read<A: Access>(task: Ptr) -> Option<Self> {
        let leader = pointer::<A>(task, off!(task_group_leader))?;
        let cred = pointer::<A>(task, off!(task_real_cred))?;
        let euid = A::load::<u32>(cred, off!(cred_euid))?;
        let pid = pointer::<A>(leader, off!(task_thread_pid))?;
        let level = A::load::<u32>(pid, off!(pid_level))?;
        // The last of `level + 1` numbers is the pid in the innermost namespace, which is the process's own.
        let own = pid.wrapping_add((off!(pid_numbers) + (level & 31) * off!(upid_size)) as usize);
        let mut copied = [0u64; 4];
        let own = Near::of(own, 0, copied.as_mut_ptr().cast())?;
        let vpid = own.load::<u32>(off!(upid_nr))?;
        let pid_ns = Probed::load::<u32>(own.pointer(off!(upid_ns))?, off!(pid_ns_inum))?;
        Some(Self { task, leader, cred, euid, vpid, pid_ns })
    }
}

/// A number that every record has.
#[inline(always)]
pub fn number<A: Access, T: Copy + Default>(base: Ptr, offset: u32) -> Result<T, Counter> {
    A::load(base, offset).ok_or(Counter::LostUnreadable)
}

/// A pointer field that the kernel may lack.
#[inline(always)]
pub fn optional<A: Access>(base: Ptr, offset: u32) -> Option<Ptr> {
    if is_absent(offset) { None } else { pointer::<A>(base, offset) }
}

/// Address of an embedded field that the kernel may lack.
#[inline(always)]
fn within(base: Ptr, offset: u32) -> Option<Ptr> {
    (!is_absent(offset)).then(|| base.wrapping_add(offset as usize))
}

#[inline(always)]
fn inum<A: Access>(namespace: Option<Ptr>, offset: u32) -> u32 {
    match namespace {
        Some(namespace) if !is_absent(offset) => A::load(namespace, offset).unwrap_or(0),
        _ => 0,
    }
}

/// Inode number of a thread's mount namespace; 0 if it has none any more.
#[inline(always)]
pub fn mount_namespace<A: Access>(task: Ptr) -> u32 {
    let nsproxy = pointer::<A>(task, off!(task_nsproxy));
    inum::<A>(nsproxy.and_then(|nsproxy| optional::<A>(nsproxy, off!(nsproxy_mnt))), off!(mnt_ns_inum))
}

/// The number in the host's PID namespace of a `struct pid` in `signal_struct.pids`; 0 if there is none.
#[inline(always)]
fn host_pid<A: Access>(signal: Ptr, offset: u32) -> u32 {
    pointer::<A>(signal, offset).and_then(|pid| Probed::load(pid, off!(pid_numbers) + off!(upid_nr))).unwrap_or(0)
}
