//! Settings and the capabilities that there are come in; those that are needed for as long as it runs go out, each with the
//! reason.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::config::{Config, Reach, RuntimeName, Signal};

/// A capability that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub capability: CapabilitySet,
    pub reason: &'static str,
}

/// Ports below take a capability, unless the host says otherwise.
const FIRST_FREE_PORT: u16 = 1024;

/// Of those that there are. `may_change`: other settings can be taken up while it runs.
pub(super) fn held(config: &Config, may_change: bool, there: CapabilitySet) -> Vec<Held> {
    let uprobes = may_change || !config.uprobes.is_empty();
    let loads = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let low_port = config.listen.is_some_and(|address| (1..FIRST_FREE_PORT).contains(&address.port()));
    let others = !written_to(config).iter().all(|path| is_writable(path));
    let wanted = [
        (true, CapabilitySet::BPF, "programs are loaded again when settings change"),
        (true, CapabilitySet::PERFMON, "they read the kernel; uprobes are attached where containers start"),
        (!there.contains(loads), CapabilitySet::SYS_ADMIN, "it stands in for BPF and PERFMON, which are not there"),
        (
            uprobes,
            CapabilitySet::SYS_ADMIN,
            "the kernel asks for it where a uprobe is a perf event; they may come by a reload",
        ),
        (true, CapabilitySet::SYS_PTRACE, "/proc/PID of others is read"),
        (
            true,
            CapabilitySet::DAC_READ_SEARCH,
            "what runtimes keep on disk is read, and settings and certificates again",
        ),
        (others, CapabilitySet::DAC_OVERRIDE, "the spool or a socket of the settings is not ours to write"),
        (low_port, CapabilitySet::NET_BIND_SERVICE, "`listen` has a port below 1024"),
    ];
    let wanted = wanted.into_iter().filter(|(is_needed, capability, _)| *is_needed && there.contains(*capability));
    wanted.map(|(_, capability, reason)| Held { capability, reason }).collect()
}

pub(super) fn set(held: &[Held]) -> CapabilitySet {
    held.iter().fold(CapabilitySet::empty(), |set, held| set | held.capability)
}

/// `CAP_BPF, CAP_PERFMON`.
pub(super) fn names(set: CapabilitySet) -> String {
    let named = set.iter_names().map(|(name, _)| format!("CAP_{name}"));
    named.collect::<Vec<_>>().join(", ")
}

/// Every path of the settings that is written to, or connected to.
fn written_to(config: &Config) -> Vec<PathBuf> {
    let runtimes = &config.enrich.runtimes;
    let mut paths: Vec<_> = config.spool.iter().map(|spool| spool.directory.clone()).collect();
    for runtime in RuntimeName::ALL {
        match runtimes.reach(runtime) {
            Reach::At(path) => paths.push(path.clone()),
            // Those places are root's, and for whoever root lets in.
            Reach::Auto => paths.extend(runtimes.sockets(runtime).into_iter().filter(|path| path.exists())),
            Reach::Off => {}
        }
    }
    let signals = [Signal::Logs, Signal::Traces];
    let exports = signals.into_iter().flat_map(|signal| config.exports(signal).map(|(_, export)| export));
    let exports = exports.chain(config.metrics.iter().map(|metrics| &metrics.export));
    let sockets = exports.filter(|export| export.endpoint.scheme() == "unix");
    paths.extend(sockets.map(|export| PathBuf::from(export.endpoint.path())));
    paths
}

/// Whether its mode lets us write there; of what is not there, where it would come to be.
fn is_writable(path: &Path) -> bool {
    let Some(metadata) = path.ancestors().find_map(|path| fs::metadata(path).ok()) else { return false };
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match metadata.mode() {
        mode if metadata.uid() == user => mode & 0o200 != 0,
        mode if metadata.gid() == group => mode & 0o020 != 0,
        mode => mode & 0o002 != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::{Export, Runtimes, Spool};

    fn quiet() -> Config {
        let mut config = Config::default();
        config.enrich.runtimes = Runtimes::OFF;
        config
    }

    fn kept(config: &Config, there: CapabilitySet) -> String {
        names(set(&held(config, false, there)))
    }

    #[test]
    fn of_all_capabilities_those_are_kept_that_are_needed_later() {
        const USUAL: &str = "CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF";
        assert_eq!(kept(&quiet(), CapabilitySet::all()), USUAL);
        let listening = |address: &str| Config { listen: Some(address.parse().unwrap()), ..quiet() };
        assert_eq!(kept(&listening("127.0.0.1:9464"), CapabilitySet::all()), USUAL);
        assert_eq!(kept(&listening("127.0.0.1:0"), CapabilitySet::all()), USUAL);
        assert!(kept(&listening("127.0.0.1:80"), CapabilitySet::all()).contains("CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn where_uprobes_may_come_by_a_reload_they_can_be_attached() {
        let kept = set(&held(&quiet(), true, CapabilitySet::all()));
        assert!(kept.contains(CapabilitySet::SYS_ADMIN));
        assert_eq!(set(&held(&quiet(), true, CapabilitySet::BPF)), CapabilitySet::BPF);
    }

    #[test]
    fn what_is_not_there_is_not_kept_and_the_old_one_stands_in() {
        assert_eq!(kept(&quiet(), CapabilitySet::empty()), "");
        assert_eq!(kept(&quiet(), CapabilitySet::BPF | CapabilitySet::CHOWN), "CAP_BPF");
        assert_eq!(kept(&quiet(), CapabilitySet::SYS_ADMIN | CapabilitySet::BPF), "CAP_SYS_ADMIN, CAP_BPF");
    }

    #[test]
    fn who_writes_where_others_rule_goes_on_overriding_them() {
        let there = CapabilitySet::DAC_OVERRIDE;
        let folder = tempfile::tempdir().unwrap();
        let (spool, socket) = (folder.path().join("a/b"), folder.path().join("socket"));
        let endpoint = format!("unix://{}", socket.display()).parse().unwrap();
        let mut runtime = quiet();
        runtime.enrich.runtimes.podman = Reach::At(socket);
        let settings = [
            Config { spool: Some(Spool::at(spool)), ..quiet() },
            Config { logs: Some(Export::to(endpoint)), ..quiet() },
            runtime,
        ];
        for config in &settings {
            assert_eq!(kept(config, there), "");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        for config in &settings {
            assert_eq!(kept(config, there), "CAP_DAC_OVERRIDE");
        }
    }
}
