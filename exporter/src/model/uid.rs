//! What a log record is about comes in, its `log.record.uid` goes out: the same for the same fact, however often and by whomever
//! it is told, so that a back-end may drop what it has already.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::event::{Event, Kind};
use crate::guard::decision::{Decision, Hook};
use crate::uprobe::hit::{self, Hit};

/// Crockford's Base32 in lower case: no letters that look like others.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// A hundred bits: among a million million records two are alike once in millions of tries. A shorter text costs less on the
/// wire, as nothing compresses it.
const LEN: usize = 20;

/// Of one record: [`LEN`] digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uid([u8; LEN]);

impl Uid {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(mut bits: u128) -> Self {
        let mut digits = [0; LEN];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(bits & 31) as usize];
            bits >>= 5;
        }
        Self(digits)
    }
}

impl std::fmt::Debug for Uid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(formatter)
    }
}

/// Makes them: `SipHash-2-4-128` of facts, keyed by the boot id.
#[derive(Clone, Copy, Debug)]
pub struct Uids {
    boot: [u8; 16],
}

impl Uids {
    #[must_use]
    pub fn of_boot(boot: [u8; 16]) -> Self {
        Self { boot }
    }

    /// Of the process, by pid and start, of how many execs it has behind it, and of the kind of event. A process's exec or exit
    /// happens once; an exec that fails may be tried again, so its thread and time by the kernel's clock count too.
    #[must_use]
    pub fn of_event(&self, event: &Event<'_>) -> Uid {
        let process = &event.process;
        let mut hasher = self.hasher(match event.kind {
            Kind::Exec(_) => b'x',
            Kind::Exit(_) => b'e',
            Kind::ExecFailed(_) => b'f',
        });
        hasher.write(&process.tgid.to_le_bytes());
        hasher.write(&process.start_boot_ns.to_le_bytes());
        hasher.write(&process.self_exec_id.to_le_bytes());
        if let Kind::ExecFailed(_) = event.kind {
            hasher.write(&process.tid.to_le_bytes());
            hasher.write(&process.time_boot_ns.to_le_bytes());
        }
        Uid::of(hasher.finish128().as_u128())
    }

    /// Of the process and its thread, of the place, of when and of what it was: a thread is at one place once at a time.
    #[must_use]
    pub fn of_hit(&self, hit: &Hit<'_>) -> Uid {
        let process = &hit.process;
        let mut hasher = self.hasher(match hit.kind {
            hit::Kind::Entry => b'h',
            hit::Kind::Return => b'r',
            hit::Kind::Call { .. } => b'c',
        });
        hasher.write(&process.tgid.to_le_bytes());
        hasher.write(&process.start_boot_ns.to_le_bytes());
        hasher.write(&process.tid.to_le_bytes());
        hasher.write(&process.time_boot_ns.to_le_bytes());
        hasher.write(&hit.place.0.to_le_bytes());
        Uid::of(hasher.finish128().as_u128())
    }

    /// Of the thread that executes, or would, of when that was, and of where it was decided.
    #[must_use]
    pub fn of_decision(&self, decision: &Decision<'_>) -> Uid {
        let process = &decision.process;
        let mut hasher = self.hasher(match decision.hook {
            Hook::Exec => b'k',
            Hook::Check => b'd',
        });
        hasher.write(&process.tgid.to_le_bytes());
        hasher.write(&process.start_boot_ns.to_le_bytes());
        hasher.write(&process.tid.to_le_bytes());
        hasher.write(&process.time_boot_ns.to_le_bytes());
        Uid::of(hasher.finish128().as_u128())
    }

    /// Of what Namespan says of itself: its name, its time, and the text of it.
    #[must_use]
    pub fn of_note(&self, event: &str, unix_ns: u64, body: &[u8]) -> Uid {
        let mut hasher = self.hasher(b'n');
        hasher.write(&unix_ns.to_le_bytes());
        hasher.write(&(event.len() as u64).to_le_bytes());
        hasher.write(event.as_bytes());
        hasher.write(body);
        Uid::of(hasher.finish128().as_u128())
    }

    fn hasher(&self, kind: u8) -> SipHasher24 {
        let mut hasher = SipHasher24::new_with_key(&self.boot);
        hasher.write(&[kind]);
        hasher
    }
}

#[cfg(test)]
mod tests {
    use namespan_ebpf::{uprobe_wire, wire};
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;
    use crate::event::{CgroupPath, ExecFailed, Exit, ExitStatus};

    fn event(kind: Kind<'static>, change: impl FnOnce(&mut wire::Process)) -> Event<'static> {
        let mut process = wire::Process::new_zeroed();
        (process.tgid, process.tid, process.start_boot_ns, process.self_exec_id) = (42, 42, 1_000_000_007, 3);
        change(&mut process);
        Event { process, nodename: b"", tty: b"", cgroup: CgroupPath(b""), cgroup_v1: CgroupPath(b""), kind }
    }

    fn exit() -> Kind<'static> {
        Kind::Exit(Exit { status: ExitStatus(0), image: None, oom_victim: false })
    }

    fn failed() -> Kind<'static> {
        Kind::ExecFailed(ExecFailed { path: b"", errno: 2, image: None })
    }

    #[test]
    fn a_uid_is_a_function_of_boot_process_exec_count_and_kind() {
        let uids = Uids::of_boot([7; 16]);
        let known = uids.of_event(&event(exit(), |_| ()));
        // On file: another agent that tells of the same exit must say the same.
        assert_eq!(known.as_bytes(), b"vt02hbfd6tg7qvw0xgkm");
        let same = |process: &mut wire::Process| (process.time_boot_ns, process.tid, process.uid) = (9, 43, 5);
        assert_eq!(uids.of_event(&event(exit(), same)), known);
        let changes: [fn(&mut wire::Process); 3] =
            [|process| process.tgid = 43, |process| process.start_boot_ns += 1, |process| process.self_exec_id = 4];
        for change in changes {
            assert_ne!(uids.of_event(&event(exit(), change)), known);
        }
        assert_ne!(uids.of_event(&event(failed(), |_| ())), known);
        assert_ne!(Uids::of_boot([8; 16]).of_event(&event(exit(), |_| ())), known);
    }

    #[test]
    fn execs_that_fail_one_after_the_other_or_side_by_side_are_told_apart() {
        let uids = Uids::of_boot([7; 16]);
        let first = uids.of_event(&event(failed(), |_| ()));
        assert_eq!(uids.of_event(&event(failed(), |_| ())), first);
        assert_ne!(uids.of_event(&event(failed(), |process| process.time_boot_ns += 1)), first);
        assert_ne!(uids.of_event(&event(failed(), |process| process.tid = 43)), first);
    }

    #[test]
    fn a_hit_is_known_by_who_where_when_and_what() {
        let hit = |change: fn(&mut wire::Process, &mut uprobe_wire::Hit)| {
            let (mut process, mut hit) = (wire::Process::new_zeroed(), uprobe_wire::Hit::new_zeroed());
            (process.tgid, process.tid, process.start_boot_ns, process.time_boot_ns) = (42, 43, 1_000_000_007, 5);
            (process.kind, hit.place) = (uprobe_wire::kind::ENTRY, 3);
            process.len = u32::try_from(uprobe_wire::FIXED).unwrap();
            change(&mut process, &mut hit);
            let record = [process.as_bytes(), hit.as_bytes()].concat();
            Uids::of_boot([7; 16]).of_hit(&crate::uprobe::hit::decode(&record).unwrap())
        };
        let known = hit(|_, _| ());
        assert_eq!(hit(|process, hit| (process.uid, hit.ip) = (7, 9)), known);
        for other in [
            hit(|process, _| process.tgid = 44),
            hit(|process, _| process.tid = 42),
            hit(|process, _| process.start_boot_ns += 1),
            hit(|process, _| process.time_boot_ns += 1),
            hit(|process, _| process.kind = uprobe_wire::kind::RETURN),
            hit(|process, _| process.kind = uprobe_wire::kind::CALL),
            hit(|_, hit| hit.place = 4),
        ] {
            assert_ne!(other, known);
        }
    }

    #[test]
    fn a_note_is_known_by_all_that_it_says() {
        let uids = Uids::of_boot([7; 16]);
        let note = uids.of_note("event", 7, b"body");
        assert_eq!(uids.of_note("event", 7, b"body"), note);
        for other in
            [uids.of_note("events", 7, b"body"), uids.of_note("event", 8, b"body"), uids.of_note("eventb", 7, b"ody")]
        {
            assert_ne!(other, note);
        }
    }

    #[test]
    fn digits_are_the_hash_from_its_end() {
        assert_eq!(Uid::of(0).as_bytes(), b"00000000000000000000");
        assert_eq!(Uid::of(31 << 95 | 0xa).as_bytes(), b"z000000000000000000a");
        assert_eq!(Uid::of(u128::MAX).as_bytes(), [b'z'; LEN]);
    }
}
