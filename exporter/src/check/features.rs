//! What uprobes and the guard take of the kernel beyond the hooks: helper functions and BPF's security module, each tried.

use std::fs;
use std::io;

use aya::programs::{LsmAttachType, ProgramError, ProgramType};
use aya::sys::is_program_supported;

use super::privilege::Privileges;
use super::report::Check;
use crate::attach::helper::{ATTACH_COOKIE, FIND_VMA, SEND_SIGNAL};
use crate::attach::raise_locked_memory;
use crate::attach::refusal::{chain, shortened};
use crate::config::Config;

/// The security modules that are on.
const MODULES: &str = "/sys/kernel/security/lsm";

pub(super) fn checks(config: &Config, privileges: &Privileges) -> [Check; 4] {
    raise_locked_memory();
    [
        Feature {
            name: "uprobes",
            is_required: !config.uprobes.is_empty(),
            found: "bpf_get_attach_cookie, by which it is known which probe was hit",
            consequence: "no uprobes",
            remedy: "boot Linux 5.15 or later, if you need them",
        }
        .check(ATTACH_COOKIE.is_there(), privileges),
        Feature {
            name: "uprobe_inode",
            is_required: false,
            found: "bpf_find_vma, by which files of one image layer are known to be one",
            consequence: "containers of one image that run one file have their uprobes attached one by one",
            remedy: "boot Linux 5.17 or later, if many containers of one image are probed",
        }
        .check(FIND_VMA.is_there(), privileges),
        Feature {
            name: "kill",
            is_required: false,
            found: "bpf_send_signal, by which a program is killed as it starts",
            consequence: "no program can be killed at its exec",
            remedy: "boot Linux 5.3 or later, if you need it",
        }
        .check(SEND_SIGNAL.is_there(), privileges),
        deny(privileges),
    ]
}

struct Feature {
    name: &'static str,
    is_required: bool,
    found: &'static str,
    consequence: &'static str,
    remedy: &'static str,
}

impl Feature {
    fn check(self, tried: Result<bool, ProgramError>, privileges: &Privileges) -> Check {
        let Self { name, is_required, found, consequence, remedy } = self;
        match tried {
            Ok(true) => Check::ok(name, found),
            Ok(false) => {
                let helper = found.split(',').next().unwrap_or(found);
                Check::lacks(is_required, name, format!("the kernel lacks {helper}")).means(consequence).remedy(remedy)
            }
            Err(error) => Check::lacks(is_required, name, said(&error)).means(consequence).remedy(refused(privileges)),
        }
    }
}

fn deny(privileges: &Privileges) -> Check {
    denies(is_program_supported(ProgramType::Lsm(LsmAttachType::Mac)), &fs::read_to_string(MODULES), privileges)
}

/// A program may attach and never be asked: only the modules that were chosen at boot are.
fn denies(attached: Result<bool, ProgramError>, modules: &io::Result<String>, privileges: &Privileges) -> Check {
    const NAME: &str = "deny";
    const MEANING: &str = "no exec can be refused";
    let is_listed = modules.as_ref().map(|modules| modules.trim().split(',').any(|module| module == "bpf"));
    let boot = || match modules {
        Ok(modules) if !modules.trim().is_empty() => format!("boot with lsm={},bpf, if you need it", modules.trim()),
        Ok(_) | Err(_) => "boot with bpf among the names of lsm=, if you need it".to_owned(),
    };
    let lacks = |found: String, remedy: String| Check::lacks(false, NAME, found).means(MEANING).remedy(remedy);
    match (attached, is_listed) {
        (Ok(true), Ok(true)) => Check::ok(NAME, "a program of BPF's security module was attached; it is asked"),
        (Ok(true), Ok(false)) => lacks("BPF is not among the security modules that are asked".to_owned(), boot()),
        (Ok(true), Err(error)) => {
            let remedy = "mount -t securityfs securityfs /sys/kernel/security, to know";
            lacks(format!("whether BPF's security module is asked is unknown: {MODULES}: {error}"), remedy.to_owned())
        }
        (Ok(false), _) => {
            let remedy = "boot a kernel built with CONFIG_BPF_LSM=y, on arm64 Linux 6.4 or later, if you need it";
            lacks("the kernel has no BPF security module".to_owned(), remedy.to_owned())
        }
        (Err(error), _) => lacks(said(&error), refused(privileges).to_owned()),
    }
}

fn refused(privileges: &Privileges) -> &'static str {
    if privileges.may_load() {
        "a security module, seccomp filter or lockdown forbids it: allow it"
    } else {
        privileges.remedy()
    }
}

fn said(error: &ProgramError) -> String {
    shortened(format!("refused: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    fn refusal() -> ProgramError {
        ProgramError::IOError(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    #[test]
    fn an_exec_can_be_refused_only_where_the_module_is_there_and_asked() {
        let privileges = Privileges::of_this_process();
        let of = |attached, modules: io::Result<&str>| denies(attached, &modules.map(str::to_owned), &privileges);
        assert_eq!(of(Ok(true), Ok("lockdown,capability,bpf\n")).status, Status::Ok);
        let unasked = of(Ok(true), Ok("lockdown,capability\n"));
        assert_eq!(unasked.status, Status::Warn);
        assert_eq!(unasked.remedy.unwrap(), "boot with lsm=lockdown,capability,bpf, if you need it");
        let unknown = of(Ok(true), Err(io::ErrorKind::NotFound.into()));
        assert!(unknown.found.contains("unknown"), "{}", unknown.found);
        assert_eq!(of(Ok(false), Ok("bpf")).status, Status::Warn);
        assert!(of(Err(refusal()), Ok("bpf")).found.starts_with("refused: "));
    }

    #[test]
    fn what_is_missing_fails_only_if_it_was_asked_for() {
        let privileges = Privileges::of_this_process();
        let status = |is_required, tried| {
            let feature = Feature { name: "n", is_required, found: "f, g", consequence: "c", remedy: "r" };
            feature.check(tried, &privileges).status
        };
        assert_eq!(status(true, Ok(true)), Status::Ok);
        assert_eq!(status(true, Ok(false)), Status::Fail);
        assert_eq!(status(false, Ok(false)), Status::Warn);
        assert_eq!(status(true, Err(refusal())), Status::Fail);
    }
}
