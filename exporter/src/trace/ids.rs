//! Ids of spans and traces: a process's span id can be computed by whoever knows the process, a trace's id by nobody.

use std::fs;
use std::hash::Hasher as _;
use std::io;

use siphasher::sip::SipHasher24;

use super::{SpanId, TraceId};
use crate::event::ProcessId;
use crate::uprobe::attach::PlaceId;

/// Random bytes fetched at once.
const POOL: usize = 1024;

#[derive(Debug)]
pub struct Ids {
    /// Names this boot of this machine.
    boot: [u8; 16],
    pool: [u8; POOL],
    used: usize,
}

impl Ids {
    /// Of this boot, by `/proc/sys/kernel/random/boot_id`.
    pub fn of_this_boot() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits = text.trim().replace('-', "");
        let boot = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        Ok(Self::of_boot(boot.to_be_bytes()))
    }

    #[must_use]
    pub fn of_boot(boot: [u8; 16]) -> Self {
        Self { boot, pool: [0; POOL], used: POOL }
    }

    #[must_use]
    pub fn boot(&self) -> [u8; 16] {
        self.boot
    }

    /// The same for the same process, whoever asks and however often: `SipHash-2-4` of tgid and start, little endian, keyed by
    /// the boot id.
    #[must_use]
    pub fn span(&self, process: ProcessId) -> SpanId {
        let mut hasher = SipHasher24::new_with_key(&self.boot);
        hasher.write(&process.tgid.to_le_bytes());
        hasher.write(&process.start_boot_ns.to_le_bytes());
        SpanId(hasher.finish().max(1).to_be_bytes())
    }

    /// Of one call of a function, the same whoever asks: `SipHash-2-4` of the thread's id, the place and the call's beginning by
    /// the boot clock, little endian, keyed by the boot id.
    #[must_use]
    pub fn call(&self, tid: u32, place: PlaceId, began_boot_ns: u64) -> SpanId {
        let mut hasher = SipHasher24::new_with_key(&self.boot);
        hasher.write(&tid.to_le_bytes());
        hasher.write(&place.0.to_le_bytes());
        hasher.write(&began_boot_ns.to_le_bytes());
        SpanId(hasher.finish().max(1).to_be_bytes())
    }

    /// A new one, random.
    pub fn trace(&mut self) -> TraceId {
        if self.used + size_of::<TraceId>() > POOL {
            self.refill();
        }
        let mut bytes = [0; size_of::<TraceId>()];
        bytes.copy_from_slice(&self.pool[self.used..][..size_of::<TraceId>()]);
        self.used += bytes.len();
        // Valid, were all of them zero.
        bytes[0] |= u8::from(bytes == [0; 16]);
        TraceId(bytes)
    }

    fn refill(&mut self) {
        let mut filled = 0;
        while filled < POOL {
            match rustix::rand::getrandom(&mut self.pool[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(bytes) => filled += bytes,
                Err(rustix::io::Errno::INTR) => {}
                // A sandbox that forbids the call: no secrets depend on these.
                Err(_) => {
                    fastrand::fill(&mut self.pool[filled..]);
                    filled = POOL;
                }
            }
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn process(tgid: u32, start_boot_ns: u64) -> ProcessId {
        ProcessId { tgid, start_boot_ns }
    }

    #[test]
    fn a_span_id_is_a_function_of_boot_pid_and_start() {
        let ids = Ids::of_boot([7; 16]);
        // On file: an agent that computes another one would break the spans of the processes that it finds running.
        assert_eq!(ids.span(process(42, 1_000_000_007)).0, KNOWN);
        assert_eq!(Ids::of_boot([7; 16]).span(process(42, 1_000_000_007)).0, KNOWN);
        for other in [ids.span(process(43, 1_000_000_007)), ids.span(process(42, 1_000_000_008))] {
            assert_ne!(other.0, KNOWN);
        }
        assert_ne!(Ids::of_boot([8; 16]).span(process(42, 1_000_000_007)).0, KNOWN);
    }

    const KNOWN: [u8; 8] = [161, 154, 84, 29, 176, 75, 246, 17];

    #[test]
    fn a_call_s_span_id_is_a_function_of_boot_thread_place_and_beginning() {
        let ids = Ids::of_boot([7; 16]);
        let call = ids.call(42, PlaceId(3), 1_000_000_007);
        assert_eq!(ids.call(42, PlaceId(3), 1_000_000_007), call);
        assert_ne!(call, ids.span(process(42, 1_000_000_007)));
        for other in [
            ids.call(43, PlaceId(3), 1_000_000_007),
            ids.call(42, PlaceId(4), 1_000_000_007),
            ids.call(42, PlaceId(3), 1_000_000_008),
            Ids::of_boot([8; 16]).call(42, PlaceId(3), 1_000_000_007),
        ] {
            assert_ne!(other, call);
        }
    }

    #[test]
    fn trace_ids_are_all_different_across_refills() {
        let mut ids = Ids::of_this_boot().unwrap();
        let traces: HashSet<_> = (0..1000).map(|_| ids.trace()).collect();
        assert_eq!(traces.len(), 1000);
    }
}
