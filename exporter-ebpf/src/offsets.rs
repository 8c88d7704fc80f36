//! Every kernel field the programs read, named once: where it lies is resolved at start from the running kernel's BTF.
//!
//! The programs read the resolved [`Offsets`] as a read-only global, which the verifier treats as constants. A field that
//! the running kernel lacks is [`ABSENT`] and is tested before use.

use zerocopy::{Immutable, IntoBytes, KnownLayout};

/// The value of an offset whose field the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What the programs do without a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it: loading stops with an error that names it.
    Required,
    /// The attribute it feeds is left out, and `namespan check` says so.
    Optional,
}

/// How a number is found in BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Byte offset of a member, through nested and anonymous members (`"name.nodename"`) and array elements named by an
    /// enumerator (`"pids[PIDTYPE_SID]"`). Several candidates: the first that exists wins.
    Member {
        of: &'static str,
        paths: &'static [&'static str],
        /// Bytes of the member, 0 where any size will do (arrays, embedded structs).
        size: u32,
    },
    /// Size in bytes of a struct.
    Size { of: &'static str },
}

/// One kernel field: the name of its slot in [`Offsets`], and where BTF has it.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub place: Place,
    pub need: Need,
}

macro_rules! place {
    (sizeof $of:ident) => {
        Place::Size { of: stringify!($of) }
    };
    ($of:ident, $size:literal, [$($path:literal),+]) => {
        Place::Member { of: stringify!($of), paths: &[$($path),+], size: $size }
    };
}

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident: $need:ident, $place:tt;)+) => {
        /// Resolved offsets and sizes, in bytes; [`ABSENT`] where the running kernel lacks the field.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
        pub struct Offsets { $($(#[$doc])* pub $name: u32,)+ }

        impl Offsets {
            /// No field resolved yet.
            pub const ABSENT: Self = Self { $($name: ABSENT,)+ };

            /// Sets the slot named as [`Field::name`]; `false` if there is none.
            pub fn set(&mut self, name: &str, value: u32) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)+
                    _ => return false,
                }
                true
            }
        }

        /// Every field of [`Offsets`], in its order.
        pub const FIELDS: &[Field] = &[
            $(Field { name: stringify!($name), place: offsets!(@place $place), need: Need::$need },)+
        ];
    };
    (@place { $($place:tt)+ }) => { place!($($place)+) };
}

offsets! {
    task_tgid: Required, {task_struct, 4, ["tgid"]};
    task_pid: Required, {task_struct, 4, ["pid"]};
    task_comm: Required, {task_struct, 16, ["comm"]};
    task_group_leader: Required, {task_struct, 8, ["group_leader"]};
    task_real_parent: Required, {task_struct, 8, ["real_parent"]};
    /// `real_start_time` until Linux 5.5.
    task_start_boottime: Required, {task_struct, 8, ["start_boottime", "real_start_time"]};
    task_self_exec_id: Required, {task_struct, 8, ["self_exec_id"]};
    task_parent_exec_id: Required, {task_struct, 8, ["parent_exec_id"]};
    task_real_cred: Required, {task_struct, 8, ["real_cred"]};
    task_nsproxy: Required, {task_struct, 8, ["nsproxy"]};
    task_thread_pid: Required, {task_struct, 8, ["thread_pid"]};
    task_signal: Required, {task_struct, 8, ["signal"]};
    task_mm: Required, {task_struct, 8, ["mm"]};
    task_exit_code: Required, {task_struct, 4, ["exit_code"]};
    task_cgroups: Required, {task_struct, 8, ["cgroups"]};
    task_flags: Required, {task_struct, 4, ["flags"]};
    signal_live: Required, {signal_struct, 4, ["live"]};
    signal_nr_threads: Required, {signal_struct, 4, ["nr_threads"]};
    signal_flags: Required, {signal_struct, 4, ["flags"]};
    signal_group_exit_code: Required, {signal_struct, 4, ["group_exit_code"]};
    signal_pgid: Required, {signal_struct, 8, ["pids[PIDTYPE_PGID]"]};
    signal_sid: Required, {signal_struct, 8, ["pids[PIDTYPE_SID]"]};
    signal_oom_mm: Optional, {signal_struct, 8, ["oom_mm"]};
    signal_tty: Optional, {signal_struct, 8, ["tty"]};
    tty_name: Optional, {tty_struct, 0, ["name"]};
    pid_level: Required, {pid, 4, ["level"]};
    pid_numbers: Required, {pid, 0, ["numbers"]};
    upid_nr: Required, {upid, 4, ["nr"]};
    upid_ns: Required, {upid, 8, ["ns"]};
    upid_size: Required, {sizeof upid};
    cred_uid: Required, {cred, 4, ["uid"]};
    cred_gid: Required, {cred, 4, ["gid"]};
    cred_suid: Required, {cred, 4, ["suid"]};
    cred_sgid: Required, {cred, 4, ["sgid"]};
    cred_euid: Required, {cred, 4, ["euid"]};
    cred_egid: Required, {cred, 4, ["egid"]};
    cred_user_ns: Optional, {cred, 8, ["user_ns"]};
    nsproxy_uts: Optional, {nsproxy, 8, ["uts_ns"]};
    nsproxy_ipc: Optional, {nsproxy, 8, ["ipc_ns"]};
    nsproxy_mnt: Optional, {nsproxy, 8, ["mnt_ns"]};
    nsproxy_net: Optional, {nsproxy, 8, ["net_ns"]};
    nsproxy_time: Optional, {nsproxy, 8, ["time_ns"]};
    nsproxy_cgroup: Optional, {nsproxy, 8, ["cgroup_ns"]};
    pid_ns_inum: Required, {pid_namespace, 4, ["ns.inum"]};
    uts_ns_inum: Optional, {uts_namespace, 4, ["ns.inum"]};
    uts_ns_nodename: Optional, {uts_namespace, 0, ["name.nodename"]};
    ipc_ns_inum: Optional, {ipc_namespace, 4, ["ns.inum"]};
    mnt_ns_inum: Optional, {mnt_namespace, 4, ["ns.inum"]};
    net_ns_inum: Optional, {net, 4, ["ns.inum"]};
    user_ns_inum: Optional, {user_namespace, 4, ["ns.inum"]};
    time_ns_inum: Optional, {time_namespace, 4, ["ns.inum"]};
    cgroup_ns_inum: Optional, {cgroup_namespace, 4, ["ns.inum"]};
    css_set_dfl_cgrp: Required, {css_set, 8, ["dfl_cgrp"]};
    /// One controller that hosts of cgroup v1 always have, to know the v1 path by.
    css_set_v1_subsys: Optional, {css_set, 8, [
        "subsys[memory_cgrp_id]", "subsys[pids_cgrp_id]", "subsys[cpu_cgrp_id]", "subsys[cpuset_cgrp_id]"
    ]};
    css_cgroup: Optional, {cgroup_subsys_state, 8, ["cgroup"]};
    cgroup_kn: Required, {cgroup, 8, ["kn"]};
    cgroup_root: Optional, {cgroup, 8, ["root"]};
    cgroup_level: Required, {cgroup, 4, ["level"]};
    kernfs_id: Required, {kernfs_node, 8, ["id"]};
    /// `__parent` since Linux 6.15.
    kernfs_parent: Required, {kernfs_node, 8, ["__parent", "parent"]};
    kernfs_name: Required, {kernfs_node, 8, ["name"]};
    mm_arg_start: Required, {mm_struct, 8, ["arg_start"]};
    mm_arg_end: Required, {mm_struct, 8, ["arg_end"]};
    mm_env_start: Required, {mm_struct, 8, ["env_start"]};
    mm_env_end: Required, {mm_struct, 8, ["env_end"]};
    mm_exe_file: Required, {mm_struct, 8, ["exe_file"]};
    file_mnt: Required, {file, 8, ["f_path.mnt"]};
    file_dentry: Required, {file, 8, ["f_path.dentry"]};
    dentry_parent: Required, {dentry, 8, ["d_parent"]};
    dentry_name: Required, {dentry, 8, ["d_name.name"]};
    dentry_name_len: Required, {dentry, 4, ["d_name.len"]};
    dentry_inode: Optional, {dentry, 8, ["d_inode"]};
    inode_nlink: Optional, {inode, 4, ["i_nlink"]};
    vfsmount_root: Required, {vfsmount, 8, ["mnt_root"]};
    mount_mnt: Required, {mount, 0, ["mnt"]};
    mount_parent: Required, {mount, 8, ["mnt_parent"]};
    mount_mountpoint: Required, {mount, 8, ["mnt_mountpoint"]};
    bprm_argc: Required, {linux_binprm, 4, ["argc"]};
    bprm_filename: Required, {linux_binprm, 8, ["filename"]};
    bprm_interp: Required, {linux_binprm, 8, ["interp"]};
    /// Context of a `syscalls:sys_enter_*` tracepoint.
    sys_enter_args: Optional, {trace_event_raw_sys_enter, 0, ["args"]};
    /// Context of a `syscalls:sys_exit_*` tracepoint.
    sys_exit_ret: Optional, {trace_event_raw_sys_exit, 8, ["ret"]};
}

/// Fields that the guard alone reads, beside those above.
pub mod guard {
    use zerocopy::{Immutable, IntoBytes, KnownLayout};

    use super::{ABSENT, Field, Need, Place};

    offsets! {
        bprm_file: Required, {linux_binprm, 8, ["file"]};
        inode_sb: Optional, {inode, 8, ["i_sb"]};
        /// What encloses an inode goes on behind it: overlayfs' `ovl_inode` with `__upperdentry`, which a kernel whose
        /// overlayfs is a module does not tell of.
        inode_size: Optional, {sizeof inode};
        /// Of `ovl_inode`, where the kernel tells of it.
        ovl_vfs_inode: Optional, {ovl_inode, 0, ["vfs_inode"]};
        ovl_upper: Optional, {ovl_inode, 8, ["__upperdentry"]};
        sb_magic: Optional, {super_block, 8, ["s_magic"]};
        vfsmount_sb: Optional, {vfsmount, 8, ["mnt_sb"]};
        task_fs: Optional, {task_struct, 8, ["fs"]};
        fs_root_mnt: Optional, {fs_struct, 8, ["root.mnt"]};
        pid_ns_reaper: Optional, {pid_namespace, 8, ["child_reaper"]};
        pid_ns_user_ns: Optional, {pid_namespace, 8, ["user_ns"]};
        mnt_ns_user_ns: Optional, {mnt_namespace, 8, ["user_ns"]};
    }
}
