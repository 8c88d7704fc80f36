//! What the programs stand on: kernel fields, maps, and each hook, attached for a moment and taken away again.

use std::error::Error;
use std::path::Path;
use std::{fs, io};

use aya::programs::ProgramError;
use namespan_ebpf::offsets::{FIELDS, Offsets};

use super::kernel::has_file_system;
use super::privilege::Privileges;
use super::report::Check;
use crate::attach::btf::{self, Btf, BtfError};
use crate::attach::refusal::{chain, refusal};
use crate::attach::{self, AttachError, Tried};
use crate::config::Probes;

const BTF: &str = "btf";
/// Everything else goes on.
const NO_FAILED_EXECS: &str = "failed execs are not seen, though `--failed` or `failed_execs: true` may ask for them";
const RING: &str = "ring_buffer";
const EXEC: &str = "sched_process_exec";
const EXIT: &str = "sched_process_exit";
const SYSCALLS: [&str; 4] = ["sys_enter_execve", "sys_enter_execveat", "sys_exit_execve", "sys_exit_execveat"];
/// Where `run --failed` mounts it.
const TRACEFS: &str = "/sys/kernel/tracing";

pub(super) fn checks(probes: &Probes, privileges: &Privileges) -> Vec<Check> {
    let (btf, fields) = kernel_fields();
    let tried = fields.map(|(kernel, offsets)| attach::try_hooks(probes, &kernel, &offsets));
    let (tracefs, has_tracefs) = tracefs(privileges);

    let mut checks = vec![btf, ring(probes, privileges, tried.as_ref())];
    let tried = tried.and_then(Result::ok).unwrap_or_default();
    let hook = |tracepoint| {
        let found = tried.iter().find(|hook| hook.tracepoint == tracepoint);
        hook(probes, privileges, has_tracefs, tracepoint, found)
    };
    checks.extend([EXEC, EXIT].map(hook));
    checks.push(tracefs);
    checks.extend(SYSCALLS.map(hook));
    checks
}

/// The kernel's BTF and where it has the fields, if all that are required are there.
fn kernel_fields() -> (Check, Option<(Vec<u8>, Offsets)>) {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let failed = |error: &BtfError, remedy: &str| {
        Check::fail(BTF, chain(error))
            .means("the programs cannot find their kernel fields: nothing runs")
            .remedy(remedy)
    };
    let kernel = match btf::read_kernel() {
        Ok(kernel) => kernel,
        Err(error) => {
            let remedy = "mount -t sysfs sysfs /sys, or boot a kernel built with CONFIG_DEBUG_INFO_BTF=y";
            return (failed(&error, remedy), None);
        }
    };
    let resolved = match Btf::parse(&kernel).and_then(|btf| btf.resolve()) {
        Ok(resolved) => resolved,
        Err(error) => {
            return (failed(&error, "boot another kernel, or report it with the output of `check --json`"), None);
        }
    };
    let total = FIELDS.len();
    let found = format!("{PATH}, {} of {total} kernel fields found", total - resolved.missing.len());
    let check = if resolved.missing.is_empty() { Check::ok(BTF, found) } else { lacking(found, &resolved.missing) };
    (check, Some((kernel, resolved.offsets)))
}

fn lacking(found: String, fields: &[&str]) -> Check {
    Check::warn(BTF, found)
        .means(fields.iter().map(|field| without(field)).collect::<Vec<_>>().join("; "))
        .remedy("boot a kernel that has them, if you need what they feed")
}

/// Of programs that are attached: fields that were not found.
pub(super) fn fields(missing: &[&str]) -> Option<Check> {
    (!missing.is_empty()).then(|| lacking(format!("{} kernel fields not found", missing.len()), missing))
}

/// Of programs that are attached: why failed execs are not seen.
pub(super) fn failed_execs(error: &AttachError, privileges: &Privileges) -> Check {
    const NAME: &str = "failed_execs";
    // That it could not be mounted says little: it may be there, and closed to us.
    if matches!(error, AttachError::Tracefs { .. })
        && let (check, false) = tracefs(privileges)
    {
        return Check { name: NAME.to_owned(), ..check };
    }
    let remedy = if is_not_permitted(error) {
        "run as root, or grant CAP_DAC_READ_SEARCH, by which tracefs is read; else a security module, seccomp filter or \
         lockdown forbids it: allow it"
            .to_owned()
    } else {
        remedy(privileges, error).to_owned()
    };
    Check::warn(NAME, refusal(error)).means(NO_FAILED_EXECS).remedy(remedy)
}

fn remedy(privileges: &Privileges, error: &AttachError) -> &'static str {
    if !privileges.may_load() {
        privileges.remedy()
    } else if is_missing(error) {
        "boot a kernel built with CONFIG_FTRACE_SYSCALLS=y"
    } else if is_not_permitted(error) {
        "a security module, seccomp filter or lockdown forbids it: allow it"
    } else {
        "report it with the output of `check --json`"
    }
}

/// What is left out where the kernel lacks an optional field.
fn without(field: &str) -> String {
    let feeds = match field {
        "signal_oom_mm" => "oom_killed in namespan.process.exit.reason",
        "signal_tty" => "process.interactive and namespan.tty.name",
        "tty_name" => "namespan.tty.name",
        "cred_user_ns" | "user_ns_inum" => "namespan.namespace.user.inode",
        "nsproxy_uts" => "namespan.namespace.uts.inode and namespan.uts.nodename",
        "uts_ns_inum" => "namespan.namespace.uts.inode",
        "uts_ns_nodename" => "namespan.uts.nodename",
        "nsproxy_ipc" | "ipc_ns_inum" => "namespan.namespace.ipc.inode",
        "nsproxy_mnt" | "mnt_ns_inum" => "namespan.namespace.mnt.inode",
        "nsproxy_net" | "net_ns_inum" => "namespan.namespace.net.inode",
        "nsproxy_time" | "time_ns_inum" => "namespan.namespace.time.inode",
        "nsproxy_cgroup" | "cgroup_ns_inum" => "namespan.namespace.cgroup.inode",
        "css_set_v1_subsys" | "css_cgroup" | "cgroup_root" => "containers on hosts of cgroup v1",
        "dentry_inode" | "inode_nlink" => "namespan.process.executable.unlinked",
        "sys_enter_args" | "sys_exit_ret" => "failed execs",
        _ => "what it feeds",
    };
    format!("without {field}, no {feeds}")
}

fn ring(probes: &Probes, privileges: &Privileges, tried: Option<&Result<Vec<Tried>, AttachError>>) -> Check {
    match tried {
        None => Check::skip(RING, "not tried: it takes the kernel fields"),
        Some(Ok(_)) => Check::ok(RING, format!("{} KiB, created with the other maps", probes.ring_bytes >> 10)),
        Some(Err(error)) => {
            let remedy = if !privileges.may_load() {
                privileges.remedy()
            } else if is_not_permitted(error) {
                "before Linux 5.11, raise the limit of locked memory: ulimit -l unlimited; else a seccomp filter or \
                 security module forbids bpf(2): allow it"
            } else {
                "set a smaller ring, if memory is short; else the kernel is older than 5.8 or built without BPF"
            };
            Check::fail(RING, refusal(error)).means("nothing runs").remedy(remedy)
        }
    }
}

fn hook(
    probes: &Probes,
    privileges: &Privileges,
    has_tracefs: bool,
    tracepoint: &'static str,
    tried: Option<&Tried>,
) -> Check {
    let name = format!("hook_{tracepoint}");
    let is_syscall = SYSCALLS.contains(&tracepoint);
    let error = match tried.map(|hook| &hook.outcome) {
        None => return Check::skip(name, "not tried: it takes the maps"),
        Some(Ok(())) => return Check::ok(name, "loaded, attached, detached"),
        Some(Err(error)) => error,
    };
    if is_syscall && !has_tracefs && !is_load_error(error) {
        return Check::skip(name, "loaded; not attached, as that takes tracefs");
    }
    let (is_required, consequence) = match tracepoint {
        EXEC => (true, "no exec is seen: nothing runs"),
        EXIT => (probes.exits, "no exit is seen: only `run --no-exit` works"),
        _ => (false, NO_FAILED_EXECS),
    };
    Check::lacks(is_required, name, refusal(error)).means(consequence).remedy(remedy(privileges, error))
}

/// The check, and whether the hooks of syscalls can be attached through it.
fn tracefs(privileges: &Privileges) -> (Check, bool) {
    const NAME: &str = "tracefs";
    const MEANING: &str = NO_FAILED_EXECS;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !has_file_system(&mounts, "tracefs") {
        let check = if !Path::new(TRACEFS).is_dir() {
            Check::warn(NAME, format!("not mounted, and no {TRACEFS} to mount it on"))
                .means(MEANING)
                .remedy("mount -t sysfs sysfs /sys, or boot a kernel built with CONFIG_FTRACE=y")
        } else if privileges.may_mount() {
            Check::warn(NAME, "not mounted")
                .means(format!("`run --failed` mounts it on {TRACEFS}; the hooks it is for are not tried here"))
                .remedy(format!("mount -t tracefs tracefs {TRACEFS}, to have them tried"))
        } else {
            Check::warn(NAME, "not mounted, and without CAP_SYS_ADMIN we cannot")
                .means(MEANING)
                .remedy(format!("as root: mount -t tracefs tracefs {TRACEFS}"))
        };
        return (check, false);
    }
    // The first of these that has anything is what attaching goes through.
    let events = [TRACEFS, "/sys/kernel/debug/tracing"].map(|at| Path::new(at).join("events/syscalls"));
    let seen = events.map(|path| fs::read_dir(&path).map(|_| path));
    let is_denied =
        |seen: &io::Result<_>| seen.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if seen.iter().any(is_denied) && !seen.iter().any(Result::is_ok) {
        let check = Check::warn(NAME, "mounted, but we may not look into it")
            .means(MEANING)
            .remedy("run as root, or grant CAP_DAC_READ_SEARCH");
        return (check, false);
    }
    let check = match seen.into_iter().find_map(Result::ok) {
        Some(path) => Check::ok(NAME, format!("{} has the tracepoints of syscalls", path.display())),
        None => Check::warn(NAME, "mounted, but without tracepoints of syscalls")
            .means(MEANING)
            .remedy("boot a kernel built with CONFIG_FTRACE_SYSCALLS=y"),
    };
    (check, true)
}

fn is_load_error(error: &AttachError) -> bool {
    matches!(error, AttachError::Program { source: ProgramError::LoadError { .. }, .. })
}

fn is_missing(error: &AttachError) -> bool {
    io_kind(error) == Some(io::ErrorKind::NotFound)
}

fn is_not_permitted(error: &AttachError) -> bool {
    io_kind(error) == Some(io::ErrorKind::PermissionDenied)
}

fn io_kind(error: &AttachError) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use namespan_ebpf::offsets::Need;

    use super::super::report::Status;
    use super::*;

    #[test]
    fn every_optional_field_says_what_it_feeds() {
        for field in FIELDS.iter().filter(|field| field.need == Need::Optional) {
            let said = without(field.name);
            assert!(!said.ends_with("what it feeds"), "{said}");
        }
    }

    #[test]
    fn a_refused_hook_fails_only_if_it_was_asked_for() {
        let privileges = Privileges::of_this_process();
        let status = |probes: &Probes, tracepoint| {
            let refused = AttachError::Program { program: "exec", source: ProgramError::NotLoaded };
            let tried = Tried { tracepoint, outcome: Err(refused) };
            hook(probes, &privileges, true, tracepoint, Some(&tried)).status
        };
        let fewest = Probes { exits: false, failed_execs: false, ..Probes::default() };
        let all = Probes { exits: true, failed_execs: true, ..Probes::default() };
        for (tracepoint, with_fewest) in
            [(EXEC, Status::Fail), (EXIT, Status::Warn), ("sys_exit_execveat", Status::Warn)]
        {
            assert_eq!(status(&fewest, tracepoint), with_fewest, "{tracepoint}");
            // Everything else goes on without failed execs.
            let with_all = if tracepoint == "sys_exit_execveat" { Status::Warn } else { Status::Fail };
            assert_eq!(status(&all, tracepoint), with_all, "{tracepoint}");
        }
    }
}
