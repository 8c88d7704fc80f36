//! The bytes of one decision's record become a [`Decision`]. Total: any bytes give one or an error, never a panic.

use namespan_ebpf::guard_wire::{self as guard, action, hook, kind, origin, result};
use namespan_ebpf::wire::{self, section};

pub use super::spec::Action;
use crate::decode::{DecodeError, Sections, fixed};
use crate::event::{Args, CgroupPath, ProcessId};

/// What was decided about an exec, borrowed from its record.
#[derive(Clone, Debug)]
pub struct Decision<'a> {
    /// Numbers as the kernel gave them. At [`Hook::Check`] those of the process before its exec.
    pub process: wire::Process,
    pub nodename: &'a [u8],
    pub tty: &'a [u8],
    pub cgroup: CgroupPath<'a>,
    pub cgroup_v1: CgroupPath<'a>,
    /// Absolute path of the executable within its mount namespace; any bytes but NUL.
    pub path: &'a [u8],
    /// Path of the script, where the executable is its interpreter; else empty.
    pub script: &'a [u8],
    /// Path of the parent's executable; empty: it has none any more.
    pub parent_path: &'a [u8],
    /// At [`Hook::Check`] as far as they could be read from the caller, who may change them.
    pub args: Args<'a>,
    /// The nearest process above that has exec'd since its fork, at [`Hook::Check`] the process itself included; `None`: not
    /// found in the bounded walk.
    pub ancestor: Option<ProcessId>,
    pub hook: Hook,
    pub origin: Origin,
    pub intended: Action,
    pub outcome: Outcome,
    /// The policy that decided, by its place.
    pub policy: u16,
    /// Policies that fired, by bit.
    pub fired: u32,
    /// Rules that hold, by bit.
    pub rules: u64,
    /// The container's own cgroup in whichever hierarchy names it; `None`: the host.
    pub container_cgroup_id: Option<u64>,
}

/// Where it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// The new image was in place, none of it had run.
    Exec,
    /// The program was about to be executed.
    Check,
}

/// Where an executable comes from, as [`origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    Image,
    Upper,
    Mount,
    Memfd,
    Deleted,
    Unknown,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Observed,
    Killed,
    Denied,
    /// The signal could not be sent.
    Failed {
        errno: u32,
    },
    Disarmed,
    LeaseExpired,
}

/// Decodes one record as the guard's programs wrote it.
pub fn decode(record: &[u8]) -> Result<Decision<'_>, DecodeError> {
    let (process, rest) = fixed::<wire::Process>(record)?;
    if process.len as usize != record.len() {
        return Err(DecodeError::Length { have: record.len(), said: process.len });
    }
    if process.kind != kind::DECISION {
        return Err(DecodeError::Kind { kind: process.kind });
    }
    let (decision, rest) = fixed::<guard::Decision>(rest)?;
    let sections = Sections::of(&process, rest)?;
    let args = Args {
        head: sections.get(section::ARGS_HEAD),
        tail: sections.get(section::ARGS_TAIL),
        len: decision.args_len,
        argc: decision.argc,
    };
    Ok(Decision {
        process,
        nodename: sections.get(section::NODENAME),
        tty: sections.get(section::TTY),
        cgroup: CgroupPath(sections.get(section::CGROUP)),
        cgroup_v1: CgroupPath(sections.get(section::CGROUP_V1)),
        path: sections.get(section::PATH),
        script: sections.get(section::SCRIPT),
        parent_path: sections.get(guard::section::PARENT_PATH),
        args,
        ancestor: ProcessId::found(decision.ancestor_tgid, decision.ancestor_start_boot_ns),
        hook: Hook::of(decision.hook)?,
        origin: Origin::of(decision.origin)?,
        intended: action(decision.intended)?,
        outcome: Outcome::of(decision.result, decision.error)?,
        policy: decision.policy,
        fired: decision.fired,
        rules: decision.rules,
        container_cgroup_id: (decision.container_cgroup_id != 0).then_some(decision.container_cgroup_id),
    })
}

impl Decision<'_> {
    #[must_use]
    pub fn id(&self) -> ProcessId {
        ProcessId { tgid: self.process.tgid, start_boot_ns: self.process.start_boot_ns }
    }
}

fn unknown(what: &'static str, value: u8) -> DecodeError {
    DecodeError::Decision { what, value }
}

impl Hook {
    fn of(value: u8) -> Result<Self, DecodeError> {
        match value {
            hook::EXEC => Ok(Self::Exec),
            hook::CHECK => Ok(Self::Check),
            _ => Err(unknown("hook", value)),
        }
    }
}

impl Origin {
    fn of(value: u8) -> Result<Self, DecodeError> {
        match usize::from(value) {
            origin::IMAGE => Ok(Self::Image),
            origin::UPPER => Ok(Self::Upper),
            origin::MOUNT => Ok(Self::Mount),
            origin::MEMFD => Ok(Self::Memfd),
            origin::DELETED => Ok(Self::Deleted),
            origin::UNKNOWN => Ok(Self::Unknown),
            _ => Err(unknown("origin", value)),
        }
    }
}

/// As [`action`] has it.
pub(super) fn action(value: u8) -> Result<Action, DecodeError> {
    match value {
        action::OBSERVE => Ok(Action::Observe),
        action::KILL => Ok(Action::Kill),
        action::DENY => Ok(Action::Deny),
        _ => Err(unknown("action", value)),
    }
}

impl Outcome {
    fn of(value: u8, errno: u32) -> Result<Self, DecodeError> {
        match value {
            result::OBSERVED => Ok(Self::Observed),
            result::KILLED => Ok(Self::Killed),
            result::DENIED => Ok(Self::Denied),
            result::FAILED => Ok(Self::Failed { errno }),
            result::DISARMED => Ok(Self::Disarmed),
            result::LEASE_EXPIRED => Ok(Self::LeaseExpired),
            _ => Err(unknown("result", value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn record(decision: guard::Decision, parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut process = wire::Process::new_zeroed();
        let mut sections = Vec::new();
        for (section, bytes) in parts {
            process.sections[*section] = u16::try_from(bytes.len()).unwrap();
            sections.extend_from_slice(bytes);
        }
        process.kind = kind::DECISION;
        process.tgid = 7;
        process.start_boot_ns = 8;
        process.len = u32::try_from(size_of_val(&process) + size_of_val(&decision) + sections.len()).unwrap();
        [process.as_bytes(), decision.as_bytes(), &sections].concat()
    }

    fn whole() -> Vec<u8> {
        let mut decision = guard::Decision::new_zeroed();
        decision.args_len = 6;
        decision.argc = 2;
        decision.ancestor_tgid = 3;
        decision.ancestor_start_boot_ns = 4;
        decision.rules = 1 << 63;
        decision.fired = 1 << 31;
        decision.container_cgroup_id = 99;
        decision.policy = 31;
        (decision.intended, decision.result, decision.error) = (action::KILL, result::FAILED, 1);
        (decision.origin, decision.hook) = (4, hook::CHECK);
        record(
            decision,
            &[
                (section::CGROUP, b"leaf\0"),
                (section::PATH, b"/bin/sh"),
                (section::SCRIPT, b"./x"),
                (guard::section::PARENT_PATH, b"/bin/make"),
                (section::ARGS_HEAD, b"sh\0-c\0"),
            ],
        )
    }

    #[test]
    fn a_decision_is_read_as_it_was_written() {
        let record = whole();
        let decision = decode(&record).unwrap();
        assert_eq!(decision.id(), ProcessId { tgid: 7, start_boot_ns: 8 });
        assert_eq!(decision.ancestor, Some(ProcessId { tgid: 3, start_boot_ns: 4 }));
        assert_eq!(
            (decision.path, decision.script, decision.parent_path),
            (&b"/bin/sh"[..], &b"./x"[..], &b"/bin/make"[..])
        );
        assert_eq!(decision.args.iter().collect::<Vec<_>>(), [&b"sh"[..], b"-c"]);
        assert_eq!((decision.intended, decision.outcome), (Action::Kill, Outcome::Failed { errno: 1 }));
        assert_eq!((decision.origin, decision.hook), (Origin::Deleted, Hook::Check));
        assert_eq!((decision.policy, decision.fired, decision.rules), (31, 1 << 31, 1 << 63));
        assert_eq!((decision.cgroup.leaf(), decision.container_cgroup_id), (&b"leaf"[..], Some(99)));
    }

    #[test]
    fn what_no_program_writes_is_an_error() {
        let wrong = |change: fn(&mut guard::Decision)| {
            let mut decision = guard::Decision::new_zeroed();
            change(&mut decision);
            decode(&record(decision, &[])).unwrap_err().to_string()
        };
        assert_eq!(wrong(|decision| decision.hook = 2), "unknown hook of a decision: 2");
        assert_eq!(wrong(|decision| decision.origin = 6), "unknown origin of a decision: 6");
        assert_eq!(wrong(|decision| decision.intended = 3), "unknown action of a decision: 3");
        assert_eq!(wrong(|decision| decision.result = 6), "unknown result of a decision: 6");
        let record = whole();
        for len in 0..record.len() {
            assert!(decode(&record[..len]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_decision_or_an_error(record in prop::collection::vec(any::<u8>(), 0..512)) {
            std::hint::black_box(decode(&record).is_ok());
        }

        #[test]
        fn any_damage_is_a_decision_or_an_error(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
        ) {
            let mut record = whole();
            for (at, byte) in damage {
                let at = at.index(record.len());
                record[at] = byte;
            }
            if let Ok(decision) = decode(&record) {
                std::hint::black_box((decision.id(), decision.args.iter().count(), decision.cgroup.leaf().len()));
            }
        }
    }
}
