//! Who we are to the kernel: user, capabilities, and the namespaces we look out from.

use std::{fs, io};

use super::report::Check;

/// Inode numbers of the initial namespaces, `PROC_*_INIT_INO` in the kernel's `proc_ns.h`.
const INITIAL_CGROUP: u64 = 0xefff_fffb;
const INITIAL_PID: u64 = 0xefff_fffc;
const INITIAL_USER: u64 = 0xefff_fffd;

const LEAVE_USER_NAMESPACE: &str = "run outside of rootless containers and `unshare --user`";
const BECOME_PRIVILEGED: &str = "run as root, or grant it: setcap cap_bpf,cap_perfmon,cap_dac_read_search,cap_sys_ptrace+ep \
                                 on the binary, or --cap-add BPF,PERFMON,DAC_READ_SEARCH,SYS_PTRACE on its container";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    name: &'static str,
    /// Its number in `linux/capability.h`.
    bit: u32,
    purpose: &'static str,
}

const BPF: Capability = Capability { name: "CAP_BPF", bit: 39, purpose: "loads programs" };
const PERFMON: Capability = Capability { name: "CAP_PERFMON", bit: 38, purpose: "lets them read the kernel" };
const SYS_PTRACE: Capability = Capability {
    name: "CAP_SYS_PTRACE",
    bit: 19,
    purpose: "looks into /proc/PID of others, by which containers that ran before are told apart and uprobes are attached in them",
};
/// Includes BPF and PERFMON.
const SYS_ADMIN: Capability =
    Capability { name: "CAP_SYS_ADMIN", bit: 21, purpose: "mounts tracefs for `run --failed`" };
const DAC_READ_SEARCH: Capability = Capability {
    name: "CAP_DAC_READ_SEARCH",
    bit: 2,
    purpose: "reads what runtimes keep on disk, and tracefs for `run --failed`",
};
const SYS_RESOURCE: Capability =
    Capability { name: "CAP_SYS_RESOURCE", bit: 24, purpose: "locks memory before Linux 5.11" };
const USEFUL: [Capability; 6] = [BPF, PERFMON, SYS_PTRACE, SYS_ADMIN, DAC_READ_SEARCH, SYS_RESOURCE];
/// Without one of these Namespan runs, with less.
const ATTRIBUTES: [Capability; 2] = [SYS_PTRACE, DAC_READ_SEARCH];

/// Of this process; `None` is unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Privileges {
    effective_uid: u32,
    capabilities: Option<u64>,
    is_in_initial_user_namespace: Option<bool>,
}

impl Privileges {
    pub fn of_this_process() -> Self {
        Self {
            effective_uid: rustix::process::geteuid().as_raw(),
            capabilities: fs::read_to_string("/proc/self/status").ok().as_deref().and_then(effective_mask),
            is_in_initial_user_namespace: namespace_inode("user").ok().map(|inode| inode == INITIAL_USER),
        }
    }

    /// Whether the kernel lets us load tracing programs, as far as capabilities decide it.
    pub fn may_load(&self) -> bool {
        self.is_in_initial_user_namespace != Some(false)
            && (self.has(SYS_ADMIN) || (self.has(BPF) && self.has(PERFMON)))
    }

    /// For what the kernel refuses while [`Self::may_load`] is false.
    pub fn remedy(&self) -> &'static str {
        if self.is_in_initial_user_namespace == Some(false) { LEAVE_USER_NAMESPACE } else { BECOME_PRIVILEGED }
    }

    pub fn may_mount(&self) -> bool {
        self.is_in_initial_user_namespace != Some(false) && self.has(SYS_ADMIN)
    }

    fn has(&self, capability: Capability) -> bool {
        self.capabilities.is_some_and(|mask| mask >> capability.bit & 1 == 1)
    }
}

/// Why the kernel does not let this process load programs, with the remedy; `None`: as far as capabilities decide it, it does.
pub(crate) fn obstacle() -> Option<String> {
    obstacle_of(&Privileges::of_this_process())
}

fn obstacle_of(privileges: &Privileges) -> Option<String> {
    if privileges.may_load() || privileges.capabilities.is_none() {
        return None;
    }
    let lacks: Vec<_> = [BPF, PERFMON].into_iter().filter(|capability| !privileges.has(*capability)).collect();
    let what = match lacks.as_slice() {
        [] => "the capabilities are of a user namespace, where they count for nothing".to_owned(),
        [one] => format!("{} is missing", one.name),
        [one, other, ..] => format!("{} and {} are missing", one.name, other.name),
    };
    Some(format!("{what}: {}", privileges.remedy()))
}

pub(super) fn user(privileges: &Privileges) -> Check {
    Check::ok(
        "user",
        match privileges.effective_uid {
            0 => "root".to_owned(),
            uid => format!("uid {uid}"),
        },
    )
}

pub(super) fn capabilities(privileges: &Privileges) -> Check {
    const NAME: &str = "capabilities";
    if privileges.capabilities.is_none() {
        return Check::skip(NAME, "unknown: /proc/self/status has no CapEff line; /proc must be mounted");
    }
    let (has, lacks): (Vec<_>, Vec<_>) = USEFUL.into_iter().partition(|capability| privileges.has(*capability));
    let mut found = match has.as_slice() {
        [] => "none that matters".to_owned(),
        has => has.iter().map(|capability| capability.name).collect::<Vec<_>>().join(", "),
    };
    if privileges.is_in_initial_user_namespace == Some(false) {
        found += "; but in a user namespace of its own, where they count for nothing";
        return Check::fail(NAME, found)
            .means("the kernel refuses BPF programs from user namespaces")
            .remedy(privileges.remedy());
    }
    let lacks: Vec<_> = lacks.into_iter().filter(|lacking| !is_covered(*lacking, privileges)).collect();
    let has_less = lacks.iter().any(|lacking| ATTRIBUTES.contains(lacking));
    let lacks: Vec<_> =
        lacks.into_iter().map(|Capability { name, purpose, .. }| format!("{name} ({purpose})")).collect();
    let missing = (!lacks.is_empty()).then(|| format!("missing: {}", lacks.join(", ")));
    if privileges.may_load() && has_less {
        Check { consequence: missing, ..Check::warn(NAME, found).remedy(privileges.remedy()) }
    } else if privileges.may_load() {
        Check { consequence: missing, ..Check::ok(NAME, found) }
    } else {
        Check { consequence: missing, ..Check::fail(NAME, found).remedy(privileges.remedy()) }
    }
}

/// Whether the capability is not missed, for what else we have.
fn is_covered(capability: Capability, privileges: &Privileges) -> bool {
    match capability.name {
        "CAP_BPF" | "CAP_PERFMON" => privileges.has(SYS_ADMIN),
        "CAP_DAC_READ_SEARCH" => privileges.effective_uid == 0,
        _ => false,
    }
}

pub(super) fn pid_namespace() -> Check {
    namespace("pid_namespace", "PID", namespace_inode("pid"), INITIAL_PID).means_if_private(
        "events and attribution are the same, the kernel tells the host's pids and cgroups; but `ps` here has other pids",
    )
}

pub(super) fn cgroup_namespace() -> Check {
    namespace("cgroup_namespace", "cgroup", namespace_inode("cgroup"), INITIAL_CGROUP).means_if_private(
        "attribution is the same, the kernel tells absolute cgroup paths; but /proc/PID/cgroup here has relative ones",
    )
}

struct Namespace {
    check: Check,
    is_private: bool,
}

impl Namespace {
    fn means_if_private(self, consequence: &str) -> Check {
        if self.is_private { self.check.means(consequence) } else { self.check }
    }
}

fn namespace(name: &str, kind: &str, inode: io::Result<u64>, initial: u64) -> Namespace {
    match inode {
        Ok(inode) if inode == initial => {
            Namespace { check: Check::ok(name, format!("the host's {kind} namespace")), is_private: false }
        }
        Ok(inode) => Namespace {
            check: Check::ok(name, format!("a {kind} namespace of its own, {inode}; the host's is {initial}")),
            is_private: true,
        },
        Err(error) => Namespace { check: Check::skip(name, format!("unknown: {error}")), is_private: false },
    }
}

fn namespace_inode(kind: &str) -> io::Result<u64> {
    Ok(rustix::fs::stat(format!("/proc/self/ns/{kind}"))?.st_ino)
}

/// The `CapEff` line of `/proc/<pid>/status`.
fn effective_mask(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    fn user_with(effective_uid: u32, capabilities: u64) -> Privileges {
        Privileges { effective_uid, capabilities: Some(capabilities), is_in_initial_user_namespace: Some(true) }
    }

    #[test]
    fn the_effective_mask_is_read_from_the_status_file() {
        let status =
            "Name:\tnamespan\nCapPrm:\t0000000000000001\nCapEff:\t000001fffeffffff\nCapBnd:\t0000000000000002\n";
        assert_eq!(effective_mask(status), Some(0x01ff_feff_ffff));
        assert_eq!(effective_mask("CapEff:\tnonsense\n"), None);
        assert_eq!(effective_mask("CapPrm:\t0\n"), None);
    }

    #[test]
    fn root_of_this_machine_lacks_only_what_new_kernels_do_not_ask_for() {
        let check = capabilities(&user_with(0, 0x01ff_feff_ffff));
        assert_eq!(check.status, Status::Ok);
        assert_eq!(check.found, "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH");
        let consequence = check.consequence.unwrap();
        assert_eq!(consequence, "missing: CAP_SYS_RESOURCE (locks memory before Linux 5.11)");
    }

    #[test]
    fn two_capabilities_or_the_old_one_suffice_to_load() {
        assert!(user_with(7, 1 << 39 | 1 << 38).may_load());
        assert!(user_with(7, 1 << 21).may_load());
        assert!(!user_with(7, 1 << 39).may_load());
        assert!(!user_with(7, 1 << 38).may_load());
        assert!(!user_with(0, 0).may_load());
    }

    #[test]
    fn an_unprivileged_user_is_told_which_are_missing() {
        let check = capabilities(&user_with(65534, 0));
        assert_eq!(check.status, Status::Fail);
        assert_eq!(check.found, "none that matters");
        let consequence = check.consequence.unwrap();
        for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SYS_RESOURCE"] {
            assert!(consequence.contains(name), "{name} in {consequence}");
        }
        assert!(check.remedy.unwrap().contains("cap_bpf"));
        let obstacle = obstacle_of(&user_with(65534, 0)).unwrap();
        assert!(obstacle.starts_with("CAP_BPF and CAP_PERFMON are missing: run as root, or "), "{obstacle}");
        let obstacle = obstacle_of(&user_with(0, 1 << 39)).unwrap();
        assert!(obstacle.starts_with("CAP_PERFMON is missing: "), "{obstacle}");
        assert_eq!(obstacle_of(&user_with(7, 1 << 21)), None);
    }

    #[test]
    fn who_may_load_but_not_look_at_others_is_warned() {
        let check = capabilities(&user_with(0, 1 << 39 | 1 << 38));
        assert_eq!(check.status, Status::Warn);
        assert!(check.consequence.unwrap().contains("CAP_SYS_PTRACE (looks into /proc/PID of others"));
        assert!(check.remedy.unwrap().contains("cap_sys_ptrace"));
        // Root needs no capability for what is root's.
        assert_eq!(capabilities(&user_with(0, 1 << 39 | 1 << 38 | 1 << 19)).status, Status::Ok);
        assert_eq!(capabilities(&user_with(7, 1 << 39 | 1 << 38 | 1 << 19)).status, Status::Warn);
    }

    #[test]
    fn capabilities_of_a_user_namespace_count_for_nothing() {
        let all = Privileges { is_in_initial_user_namespace: Some(false), ..user_with(0, u64::MAX) };
        assert!(!all.may_load());
        assert_eq!(capabilities(&all).status, Status::Fail);
    }

    #[test]
    fn only_a_private_namespace_has_something_to_explain() {
        let check = |inode| namespace("pid_namespace", "PID", inode, INITIAL_PID).means_if_private("differs");
        assert_eq!(check(Ok(4_026_531_836)).consequence, None);
        assert_eq!(check(Ok(4_026_532_000)).consequence.as_deref(), Some("differs"));
        assert_eq!(check(Err(io::ErrorKind::NotFound.into())).status, Status::Skip);
    }
}
