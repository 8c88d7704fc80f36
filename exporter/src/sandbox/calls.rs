//! The system calls that are refused to this process, by seccomp: with `EPERM`, as a call that is needed after all must end
//! nothing.
//!
//! A list of what is refused, and none of what is allowed: what the C library calls to look up a name or to start a thread
//! differs from one release to the next, and what is not on the list can do little without the capabilities that are gone.

use std::collections::BTreeMap;
use std::thread;

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Into other processes and namespaces.
const OTHERS: [libc::c_long; 8] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
];
/// What is mounted where, and what is behind it.
const MOUNTS: [libc::c_long; 16] = [
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
];
/// The kernel and the whole machine.
const MACHINE: [libc::c_long; 16] = [
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];
/// Of which attacks on the kernel are made.
const SURFACE: [libc::c_long; 9] = [
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_personality,
    libc::SYS_vhangup,
];
/// Another user.
const IDENTITY: [libc::c_long; 9] = [
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];
#[cfg(target_arch = "x86_64")]
const OF_ARCHITECTURE: [libc::c_long; 4] = [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_mknod];
#[cfg(not(target_arch = "x86_64"))]
const OF_ARCHITECTURE: [libc::c_long; 0] = [];
/// Other programs: none is started but by the guard, which proves what it can on a child.
const PROGRAMS: [libc::c_long; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// x86-64 has each call once more under another number (x32), where the kernel is built for it.
#[cfg(target_arch = "x86_64")]
const SECOND_NUMBERS: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const SECOND_NUMBERS: Option<i64> = None;

fn refused(starts_programs: bool) -> impl Iterator<Item = i64> {
    let programs: &[libc::c_long] = if starts_programs { &[] } else { &PROGRAMS };
    let groups: [&[libc::c_long]; 7] = [&OTHERS, &MOUNTS, &MACHINE, &SURFACE, &IDENTITY, &OF_ARCHITECTURE, programs];
    groups.into_iter().flatten().copied()
}

/// From now on, in this thread and those that it starts; how many calls are refused.
pub(super) fn refuse(starts_programs: bool) -> Result<usize, String> {
    let numbers =
        refused(starts_programs).flat_map(|call| [Some(call), SECOND_NUMBERS.map(|second| call | second)]).flatten();
    let rules: BTreeMap<_, _> = numbers.map(|number| (number, Vec::new())).collect();
    let refusal = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let filter = std::env::consts::ARCH
        .try_into()
        .and_then(|architecture| SeccompFilter::new(rules, SeccompAction::Allow, refusal, architecture))
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())?;
    apply_filter(&filter).map_err(|error| crate::attach::refusal::chain(&error))?;
    Ok(refused(starts_programs).count())
}

/// Whether it would hold here, tried by a thread that ends with it.
pub(crate) fn is_enforced() -> Result<(), String> {
    let tried = thread::Builder::new().name("seccomp".to_owned()).spawn(|| {
        refuse(false)?;
        // It asks for nothing, which is granted unless the filter is asked.
        match unshare_nothing() {
            Err(Errno::PERM) => Ok(()),
            Ok(()) | Err(_) => Err("a call that should be refused was not".to_owned()),
        }
    });
    let tried = tried.map_err(|error| error.to_string())?;
    tried.join().unwrap_or_else(|_| Err("the thread that tried it panicked".to_owned()))
}

#[expect(unsafe_code, reason = "unshare(2) is marked so for what it may do to descriptors")]
fn unshare_nothing() -> Result<(), Errno> {
    // SAFETY: without flags nothing is unshared.
    unsafe { unshare_unsafe(UnshareFlags::empty()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_refused_without_a_signal_and_the_rest_works() {
        is_enforced().unwrap();
        let confined = thread::spawn(|| {
            assert_eq!(refuse(false).unwrap(), refused(false).count());
            assert_eq!(unshare_nothing(), Err(Errno::PERM));
            let refusal = std::process::Command::new("/proc/self/exe").spawn().unwrap_err();
            assert_eq!(refusal.kind(), std::io::ErrorKind::PermissionDenied);
            // What is needed, threads among it, goes on.
            let inherits = thread::spawn(unshare_nothing).join().unwrap();
            assert_eq!(inherits, Err(Errno::PERM));
            assert!(std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2"));
        });
        confined.join().unwrap();
        assert_eq!(unshare_nothing(), Ok(()));
    }

    #[test]
    fn the_guard_can_start_what_it_proves_itself_on() {
        let confined = thread::spawn(|| {
            refuse(true).unwrap();
            assert_eq!(unshare_nothing(), Err(Errno::PERM));
            assert!(std::process::Command::new("true").status().unwrap().success());
        });
        confined.join().unwrap();
    }

    #[test]
    fn no_call_is_on_the_list_twice() {
        let mut calls: Vec<_> = refused(false).collect();
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }
}
