//! What uprobes take of the kernel beyond the hooks: helper functions, each tried.

use aya::programs::ProgramError;

use super::privilege::Privileges;
use super::report::Check;
use crate::attach::helper::{ATTACH_COOKIE, FIND_VMA};
use crate::attach::raise_locked_memory;
use crate::attach::refusal::{chain, shortened};
use crate::config::Config;

pub(super) fn checks(config: &Config, privileges: &Privileges) -> [Check; 2] {
    raise_locked_memory();
    uprobes(config, privileges)
}

/// What uprobes need.
pub(super) fn uprobes(config: &Config, privileges: &Privileges) -> [Check; 2] {
    [
        Feature {
            name: "uprobes",
            is_required: config.uprobes_only,
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
    use std::io;

    use super::super::report::Status;
    use super::*;

    fn refusal() -> ProgramError {
        ProgramError::IOError(io::Error::from(io::ErrorKind::PermissionDenied))
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
