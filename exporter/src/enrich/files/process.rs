//! Whether the process that a file names is really a container's first one, and whether it is still there.

use std::fs::{read_link, read_to_string};
use std::os::unix::fs::MetadataExt as _;

/// The user namespace that the host begins with (`PROC_USER_INIT_INO`).
const HOST_USERS: &str = "user:[4026531837]";

/// Most processes up to the monitor: while the container is made, the runtime's are between.
const STEPS: usize = 8;

/// A process, with what tells it from a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// In clock ticks since the boot.
    started: u64,
}

/// What a runtime's files say of a container's first process.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub pid: u32,
    /// Its container.
    pub id: &'a str,
    /// What waits for the process to end.
    pub monitor: Option<u32>,
    /// Who says so, if it is not root.
    pub user: Option<u32>,
}

impl Claim<'_> {
    /// The files may be older than the process, and a user may write anything.
    pub fn check(self) -> Option<Process> {
        let Stat { started, .. } = Stat::of(self.pid).filter(|stat| !stat.ended)?;
        let holds = match self.user {
            None => cgroup(self.pid, self.id).is_some() || self.is_below_monitor(),
            // Only a user's own programs have nobody else's process between that user's and themselves and are in a user
            // namespace: what gets the privileges of others on its way, as `sudo` does, is in the host's.
            Some(_) => self.is_below_monitor() && !has_users_of_host(self.pid),
        };
        holds.then_some(Process { pid: self.pid, started })
    }

    fn is_below_monitor(self) -> bool {
        let mut at = self.pid;
        for _ in 0..STEPS {
            let above = Stat::of(at).map(|stat| stat.parent);
            let owner = above.and_then(owner);
            if owner.is_some() && self.user.is_some_and(|user| owner != Some(user)) {
                return false;
            }
            if owner.is_some() && above == self.monitor {
                return true;
            }
            // Who has gone meanwhile has left its children to the next above.
            at = above.filter(|_| owner.is_some()).unwrap_or(self.pid);
        }
        false
    }
}

impl Process {
    pub fn lives(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && !stat.ended)
    }
}

/// The part of a process's cgroup path that ends with a container's id.
pub fn cgroup(pid: u32, id: &str) -> Option<String> {
    let shown = read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    shown.lines().rev().find_map(|line| below(line.splitn(3, ':').nth(2)?, id))
}

fn below(path: &str, id: &str) -> Option<String> {
    let mut end = 0;
    for component in path.split('/') {
        end += component.len();
        let stem = component.strip_suffix(".scope").unwrap_or(component);
        let maker = stem.strip_suffix(id);
        if maker.is_some_and(|maker| maker.is_empty() || maker.ends_with(['-', ':'])) {
            return Some(path[..end].to_owned());
        }
        end += 1;
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// In clock ticks since the boot.
    started: u64,
    /// Only its parent has not heard yet.
    ended: bool,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name before it may contain anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let ended = matches!(fields.next()?, "Z" | "X");
        Some(Self { parent: fields.next()?.parse().ok()?, started: fields.nth(17)?.parse().ok()?, ended })
    }
}

fn owner(pid: u32) -> Option<u32> {
    Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

fn has_users_of_host(pid: u32) -> bool {
    read_link(format!("/proc/{pid}/ns/user")).map_or(true, |link| link.as_os_str() == HOST_USERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_container_s_where_its_cgroup_or_its_monitor_says_so() {
        let (pid, parent) = (std::process::id(), Stat::of(std::process::id()).unwrap().parent);
        let claim = Claim { pid, id: "nstest", monitor: None, user: None };
        assert_eq!(claim.check(), None);
        assert_eq!(Claim { monitor: Some(u32::MAX), ..claim }.check(), None);
        let process = Claim { monitor: Some(parent), ..claim }.check().unwrap();
        assert_eq!(Claim { monitor: Stat::of(parent).map(|stat| stat.parent), ..claim }.check(), Some(process));
        assert!(process.lives() && !Process { started: 0, ..process }.lives());
        assert_eq!(Claim { pid: u32::MAX, monitor: Some(parent), ..claim }.check(), None);
    }

    #[test]
    fn a_process_of_the_host_is_nobody_s_container() {
        let (pid, parent) = (std::process::id(), Stat::of(std::process::id()).unwrap().parent);
        if has_users_of_host(pid) {
            let user = owner(parent);
            assert_eq!(Claim { pid, id: "", monitor: Some(parent), user }.check(), None);
        }
    }

    #[test]
    fn a_cgroup_is_named_by_the_id() {
        for (path, found) in [
            ("/default/web", Some("/default/web")),
            ("/a/libpod-web.scope/container", Some("/a/libpod-web.scope")),
            ("/system.slice:docker:web", Some("/system.slice:docker:web")),
            ("/myweb/webs", None),
            ("/", None),
        ] {
            assert_eq!(below(path, "web").as_deref(), found, "{path}");
        }
    }

    #[test]
    fn any_name_of_a_process_is_passed_over() {
        let rest = "3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 2100 22";
        let stat = Stat { parent: 3, started: 2100, ended: false };
        assert_eq!(Stat::parse(&format!("7 (a) R 1 (b) S {rest}")), Some(stat));
        assert_eq!(Stat::parse(&format!("7 (a) Z {rest}")), Some(Stat { ended: true, ..stat }));
        assert_eq!(["", "7 (a) S", "7 (a) S x"].map(Stat::parse), [None; 3]);
    }
}
