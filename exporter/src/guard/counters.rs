//! What the guard's programs have counted, over all CPUs.

use namespan_ebpf::guard_wire::{COUNTER_SLOTS, Counter, POLICIES_MAX, Program, result, result_slot};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    slots: Vec<u64>,
    /// Execs that the kernel ran no program for, as it was in the middle of one on that CPU: nobody decided them.
    skipped: [u64; Program::ALL.len()],
}

impl Counts {
    /// `slots` as the counters' map has them.
    pub(super) fn new(slots: Vec<u64>, skipped: [u64; Program::ALL.len()]) -> Self {
        Self { slots, skipped }
    }

    /// Number of slots that there are.
    pub(super) const SLOTS: u32 = COUNTER_SLOTS;

    #[must_use]
    pub fn of(&self, program: Program, counter: Counter) -> u64 {
        self.slot(program.slot(counter))
    }

    /// Over both programs.
    #[must_use]
    pub fn sum(&self, counter: Counter) -> u64 {
        Program::ALL.iter().map(|program| self.of(*program, counter)).sum()
    }

    /// How often the policy at this place among [`policies`](namespan_ebpf::guard_wire::GuardSettings::policies) decided, by
    /// one of [`result`].
    #[must_use]
    pub fn result(&self, policy: usize, result: u8) -> u64 {
        match u32::try_from(policy) {
            Ok(place) if policy < POLICIES_MAX && usize::from(result) < result::COUNT => {
                self.slot(result_slot(place, u32::from(result)))
            }
            _ => 0,
        }
    }

    #[must_use]
    pub fn skipped(&self, program: Program) -> u64 {
        self.skipped[program as usize]
    }

    /// Whether every exec that was looked at had one end, and every decision too.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let results: u64 = (0..POLICIES_MAX).map(|policy| self.results_of(policy)).sum();
        results == self.sum(Counter::Decided)
            && Program::ALL.iter().all(|program| {
                let of = |counter| self.of(*program, counter);
                let ends = [Counter::Untouched, Counter::Exempt, Counter::Decided, Counter::Unreadable];
                of(Counter::Triggered) == ends.into_iter().map(of).sum::<u64>()
                    && of(Counter::Decided) == of(Counter::Told) + of(Counter::LostRingFull)
            })
    }

    fn results_of(&self, policy: usize) -> u64 {
        (0..result::COUNT)
            .filter_map(|result| u8::try_from(result).ok())
            .map(|result| self.result(policy, result))
            .sum()
    }

    fn slot(&self, slot: u32) -> u64 {
        self.slots.get(slot as usize).copied().unwrap_or(0)
    }
}
