//! Who a process is: the numbers that every record has, read once.

use namespan_ebpf::wire::{self, CgroupKey, Counter, ns};

use crate::kernel::{Access, Near, Probed, Ptr, copy, is_absent, off, pointer};

/// Writes a field of a record's fixed part.
macro_rules! put {
    ($to:ident.$field:ident = $value:expr) => {
        let value = $value;
        // SAFETY: the fixed part lies within the buffer, which the verifier checks.
        unsafe { core::ptr::write_volatile(&raw mut (*$to).$field, value) };
    };
}
pub(crate) use put;

/// Writes the numbers of a record's fixed part but the cgroups' and the namespaces', and the comm. Every pid and credential
/// comes from the thread group's leader. Returns its `signal_struct`.
#[inline(always)]
pub fn write<A: Access>(to: *mut wire::Process, kind: u16, now: u64, who: &Identity) -> Result<Ptr, Counter> {
    let Identity { task, leader, cred, .. } = *who;
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
    // SAFETY: the fixed part lies within the buffer.
    if !copy(unsafe { (&raw mut (*to).comm).cast() }, 16, comm) {
        return Err(Counter::LostUnreadable);
    }
    Ok(signal)
}

/// Writes the inode numbers of the namespaces; the UTS namespace, for its nodename.
#[inline(always)]
pub fn namespaces<A: Access>(to: *mut wire::Process, who: &Identity) -> Option<Ptr> {
    let cred = who.cred;
    namespace(to, ns::PID, who.pid_ns);
    namespace(to, ns::USER, inum::<A>(optional::<A>(cred, off!(cred_user_ns)), off!(user_ns_inum)));
    // The thread's: a first thread that exited before the others has none any more.
    let nsproxy = pointer::<A>(who.task, off!(task_nsproxy));
    let through = |offset| nsproxy.and_then(|nsproxy| optional::<A>(nsproxy, offset));
    let uts = through(off!(nsproxy_uts));
    namespace(to, ns::UTS, inum::<A>(uts, off!(uts_ns_inum)));
    namespace(to, ns::NET, inum::<A>(through(off!(nsproxy_net)), off!(net_ns_inum)));
    namespace(to, ns::MNT, inum::<A>(through(off!(nsproxy_mnt)), off!(mnt_ns_inum)));
    namespace(to, ns::IPC, inum::<A>(through(off!(nsproxy_ipc)), off!(ipc_ns_inum)));
    namespace(to, ns::CGROUP, inum::<A>(through(off!(nsproxy_cgroup)), off!(cgroup_ns_inum)));
    namespace(to, ns::TIME, inum::<A>(through(off!(nsproxy_time)), off!(time_ns_inum)));
    uts
}

#[inline(always)]
fn namespace(to: *mut wire::Process, index: usize, inum: u32) {
    // SAFETY: within the fixed part, `index` is one of the constants of `ns`.
    unsafe { (&raw mut (*to).namespaces).cast::<u32>().add(index).write(inum) };
}

/// A process's cgroups by their kernel objects and by the key that names them.
pub struct Cgroups {
    pub v2: Ptr,
    /// In the v1 hierarchy of one controller; `None` where that controller belongs to v2.
    pub v1: Option<Ptr>,
    pub key: CgroupKey,
}

impl Cgroups {
    #[inline(always)]
    pub fn of<A: Access>(task: Ptr) -> Result<Self, Counter> {
        let set = pointer::<A>(task, off!(task_cgroups)).ok_or(Counter::LostUnreadable)?;
        let v2 = pointer::<A>(set, off!(css_set_dfl_cgrp)).ok_or(Counter::LostUnreadable)?;
        let node = pointer::<A>(v2, off!(cgroup_kn)).ok_or(Counter::LostUnreadable)?;
        let v1 = v1_cgroup::<A>(set, v2);
        let mut key = CgroupKey { v2: number::<A, u64>(node, off!(kernfs_id))?, v1: 0 };
        if let Some(v1) = v1 {
            let node = pointer::<A>(v1, off!(cgroup_kn)).ok_or(Counter::LostUnreadable)?;
            key.v1 = number::<A, u64>(node, off!(kernfs_id))?;
        }
        Ok(Self { v2, v1, key })
    }
}

/// The cgroup in the v1 hierarchy of one controller; `None` where that controller belongs to v2.
#[inline(always)]
fn v1_cgroup<A: Access>(set: Ptr, v2: Ptr) -> Option<Ptr> {
    if is_absent(off!(cgroup_root)) || is_absent(off!(css_cgroup)) {
        return None;
    }
    let css = optional::<A>(set, off!(css_set_v1_subsys))?;
    let cgroup = pointer::<A>(css, off!(css_cgroup))?;
    (pointer::<A>(cgroup, off!(cgroup_root)) != pointer::<A>(v2, off!(cgroup_root))).then_some(cgroup)
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
