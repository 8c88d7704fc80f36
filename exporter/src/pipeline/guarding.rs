//! The guard beside the straight line: its programs, their ring, the lease that they act by, and what containers they are told
//! of.

mod scopes;

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use namespan_ebpf::guard_wire::{Counter, OVERLAP_NS, Program};

use crate::attach::refusal::chain;
use crate::clock::boot_ns;
use crate::config::Config;
use crate::enrich::KnownContainer;
use crate::guard::compile::{CompileError, Compiled};
use crate::guard::counters::Counts;
use crate::guard::load::{Guard, GuardError, Limits, Refusal, lsm};
use crate::guard::persist::{self, Pinned, take_pinned};
use crate::guard::place::sees_host;
use crate::guard::spec::{Guard as Settings, Mode, WithoutLsm};
use crate::list::host::Hierarchies;
use crate::model::guard::RESULTS;
use crate::ring::Ring;
use scopes::Scopes;

/// Of a lease, after which part it is renewed.
const RENEWALS: u32 = 3;

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardingError {
    #[error("guard: {}", chain(.0))]
    Guard(#[from] GuardError),
    #[error("guard: {0}")]
    Compile(#[from] CompileError),
    #[error(
        "guard: a policy denies, which takes BPF LSM programs, and the kernel takes none: {0}; use action kill, or set \
         guard.without_lsm: kill"
    )]
    NoLsm(Refusal),
    #[error("the guard's ring buffer can't be watched: {0}")]
    Ring(#[source] io::Error),
}

/// Programs that are attached, and decide nothing yet.
pub(super) struct Loaded {
    guard: Guard,
    ring: RingBuf<MapData>,
    compiled: Compiled,
    deny: Deny,
}

/// By what programs are refused where a policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deny {
    Unasked,
    Lsm,
    Kill,
}

/// All policies of the settings at work.
pub(super) struct Guarding {
    guard: Guard,
    ring: Ring,
    compiled: Arc<Compiled>,
    deny: Deny,
    renewed: Option<Instant>,
    /// It is pinned, with a lease without end.
    outlives_us: bool,
    /// How often it was renewed.
    pub(super) renewals: u64,
    /// Containers that the kernel side knows.
    scopes: Scopes,
    /// It was said that some found no room there.
    overflow_told: bool,
    /// Records read.
    pub(super) read: u64,
    /// As last read of the programs at work.
    counts: Option<Counts>,
}

/// What the programs have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How often each policy had each result, by name.
    pub decisions: BTreeMap<(String, &'static str), u64>,
    pub triggered: u64,
    pub decided: u64,
    pub told: u64,
    /// Records that found no room: what they tell of was done.
    pub ring_full: u64,
    /// Execs that nobody decided, as a kernel object could not be read.
    pub unreadable: u64,
    /// Execs that the kernel ran no program for.
    pub skipped: u64,
    /// How often the kernel side could not be told of a container, for want of room.
    pub untold_containers: u64,
    /// Policies that were disarmed in a container and not told of as that, for want of room.
    pub untold_alarms: u64,
}

impl Totals {
    /// What is missing in the records, by reason.
    #[must_use]
    pub fn losses(&self) -> [(&'static str, u64); 3] {
        [("ring_full", self.ring_full), ("kernel_unreadable", self.unreadable), ("kernel_recursion", self.skipped)]
    }

    /// What found no room beside the decisions, by what it is.
    #[must_use]
    pub fn untold(&self) -> [(&'static str, u64); 2] {
        [("container", self.untold_containers), ("disarmed", self.untold_alarms)]
    }

    /// How often there was this result.
    #[must_use]
    pub fn of(&self, result: &str) -> u64 {
        self.decisions.iter().filter(|((_, of), _)| *of == result).map(|(_, count)| count).sum()
    }

    fn of_programs(counts: &Counts, compiled: &Compiled) -> Self {
        let mut totals = Self {
            triggered: counts.sum(Counter::Triggered),
            decided: counts.sum(Counter::Decided),
            told: counts.sum(Counter::Told),
            ring_full: counts.sum(Counter::LostRingFull),
            unreadable: counts.sum(Counter::Unreadable),
            skipped: Program::ALL.iter().map(|program| counts.skipped(*program)).sum(),
            ..Self::default()
        };
        for (index, policy) in compiled.policies().iter().enumerate() {
            for (result, name) in RESULTS {
                totals.decisions.insert((policy.name.clone(), name), counts.result(index, result));
            }
        }
        totals
    }

    /// Without what others have counted, too.
    pub(super) fn without(mut self, twice: &Self) -> Self {
        for (of, count) in &twice.decisions {
            if let Some(counted) = self.decisions.get_mut(of) {
                *counted = counted.saturating_sub(*count);
            }
        }
        self.triggered = self.triggered.saturating_sub(twice.triggered);
        self.decided = self.decided.saturating_sub(twice.decided);
        self.told = self.told.saturating_sub(twice.told);
        self
    }

    /// One decision that was told.
    pub(super) fn of_one(policy: &str, result: &'static str) -> Self {
        let decisions = BTreeMap::from([((policy.to_owned(), result), 1)]);
        Self { decisions, triggered: 1, decided: 1, told: 1, ..Self::default() }
    }
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        let Self { decisions, triggered, decided, told, ring_full, unreadable, skipped, .. } = other;
        for (of, count) in decisions {
            *self.decisions.entry(of.clone()).or_default() += count;
        }
        self.triggered += triggered;
        self.decided += decided;
        self.told += told;
        self.ring_full += ring_full;
        self.unreadable += unreadable;
        self.skipped += skipped;
        self.untold_containers += other.untold_containers;
        self.untold_alarms += other.untold_alarms;
    }
}

impl Loaded {
    /// Loads and attaches, and proves what it will claim. It takes a while, and no runtime.
    pub(super) fn load(config: &Config) -> Result<Self, GuardingError> {
        let settings = &config.guard;
        let deny = match settings.denies().then(lsm) {
            None => Deny::Unasked,
            Some(Ok(())) => Deny::Lsm,
            Some(Err(_)) if settings.without_lsm == WithoutLsm::Kill => Deny::Kill,
            Some(Err(refusal)) => return Err(GuardingError::NoLsm(refusal)),
        };
        let mut compiled = Compiled::new(settings, deny != Deny::Kill)?;
        compiled.tables.settings.args_limit = config.probes.args_limit;
        let (mut guard, ring) = Guard::load(&compiled.tables, &Limits::default())?;
        if settings.mode == Mode::Enforce {
            guard.self_test()?;
        } else if !sees_host() {
            tracing::warn!(
                "the guard takes container runtimes' set-up for processes of containers, as Namespan is not in the host's PID \
                 namespace; guard.mode: enforce is refused here: start Namespan's container with --pid=host"
            );
        }
        Ok(Self { guard, ring, compiled, deny })
    }

    /// Whether it must not begin before it is known which containers run: it would stop programs of those that are allowed.
    pub(super) fn needs_containers(&self) -> bool {
        self.compiled.guard().mode == Mode::Enforce && self.compiled.selects()
    }
}

impl Guarding {
    /// Goes to work, in place of what an earlier run may have left; what that has decided since it began. Within a tokio
    /// runtime only.
    pub(super) fn start(
        loaded: Loaded,
        known: impl IntoIterator<Item = KnownContainer>,
    ) -> Result<(Self, u64), GuardingError> {
        let mut guarding = Self::prepare(loaded, known)?;
        let decided = if let Some(mut pinned) = left()? {
            let at_boot_ns = pinned.relieved_by(&mut guarding.guard)?;
            // Nothing else has begun that could be held up for these milliseconds.
            while boot_ns() < at_boot_ns.saturating_add(OVERLAP_NS) {
                std::thread::yield_now();
            }
            removed(pinned)?
        } else {
            guarding.guard.take_over(None)?;
            // What can't be relieved goes when there is another one.
            persist::remove()?;
            0
        };
        guarding.settle()?;
        Ok((guarding, decided))
    }

    /// Goes to work in place of `old`, whose last records are in its ring; since when, by the boot clock. After an error `old` is at work as before.
    pub(super) async fn relieve(
        loaded: Loaded,
        old: &mut Self,
        known: impl IntoIterator<Item = KnownContainer>,
    ) -> Result<(Self, u64), GuardingError> {
        // Those that only the old one knows come first: the others are as they are now.
        let mut guarding = Self::prepare(loaded, old.scopes.all().into_iter().chain(known))?;
        let at_boot_ns = guarding.guard.take_over(Some(&mut old.guard))?;
        rest_until(at_boot_ns).await;
        old.end_for_good();
        // The old one has ended: without this one nothing would be enforced.
        if let Err(error) = guarding.settle() {
            let error = chain(&error);
            tracing::error!(
                "{error}; the guard ends with Namespan, and what of it could not be pinned may not be at work: mend it and \
                 restart Namespan"
            );
        }
        Ok((guarding, at_boot_ns))
    }

    fn prepare(loaded: Loaded, known: impl IntoIterator<Item = KnownContainer>) -> Result<Self, GuardingError> {
        let Loaded { guard, ring, compiled, deny } = loaded;
        let scopes = usize::try_from(Limits::default().scopes).unwrap_or(usize::MAX);
        let mut guarding = Self {
            guard,
            ring: Ring::new(ring).map_err(GuardingError::Ring)?,
            compiled: Arc::new(compiled),
            deny,
            renewed: None,
            outlives_us: false,
            renewals: 0,
            scopes: Scopes::new(scopes, Hierarchies::of_this_process()),
            overflow_told: false,
            read: 0,
            counts: None,
        };
        for container in known {
            guarding.described(&container);
        }
        guarding.renew(Instant::now());
        Ok(guarding)
    }

    fn settle(&mut self) -> Result<(), GuardingError> {
        if self.compiled.guard().persist {
            self.guard.persist()?;
            self.outlives_us = true;
        }
        Ok(())
    }

    /// Whether it is what these settings ask for.
    pub(super) fn is_as(&self, config: &Config) -> bool {
        let guard = self.compiled.guard();
        // Where policies came from does not change them.
        let wanted = Settings { sources: guard.sources.clone(), ..config.guard.clone() };
        *guard == wanted && self.compiled.tables.settings.args_limit == config.probes.args_limit
    }

    /// Waits until records wait; for ever, if there is no guard.
    pub(super) async fn next(guarding: &mut Option<Self>) -> io::Result<()> {
        match guarding {
            Some(Self { ring, .. }) => ring.wait().await,
            None => pending().await,
        }
    }

    /// As [`Ring::read`], with the policies that were decided by.
    pub(super) fn read(&mut self, most: usize, mut each: impl FnMut(&[u8], &Arc<Compiled>)) -> usize {
        let Self { ring, compiled, read, .. } = self;
        let records = ring.read(most, |record| each(record, compiled));
        *read += records as u64;
        records
    }

    /// Most that may pass from one turn to the next.
    pub(super) fn patience(&self) -> Duration {
        self.compiled.guard().lease / RENEWALS
    }

    /// Actions go on, if it is time to say so.
    pub(super) fn renew(&mut self, now: Instant) {
        let is_due = self.renewed.is_none_or(|renewed| now.saturating_duration_since(renewed) >= self.patience());
        if !is_due || self.outlives_us {
            return;
        }
        let lease = u64::try_from(self.compiled.guard().lease.as_nanos()).unwrap_or(u64::MAX);
        match self.guard.renew(boot_ns().saturating_add(lease)) {
            Ok(()) => {
                self.renewed = Some(now);
                self.renewals += 1;
            }
            Err(error) => tracing::error!("{}; programs are not stopped any more", chain(&error)),
        }
    }

    /// A container is known, or known anew: it is the kernel's to know too, if policies tell containers apart.
    pub(super) fn described(&mut self, known: &KnownContainer) {
        for order in self.scopes.described(&self.compiled, known) {
            if let Err(error) = order.give(&mut self.guard) {
                let container = &known.container.id;
                tracing::error!(container, "the guard can't be told of a container: {}", chain(&error));
                self.scopes.refuse();
            }
        }
    }

    /// The processes of the container of this key have ended.
    pub(super) fn ended(&mut self, key: &str) {
        if let Some(order) = self.scopes.ended(key)
            && let Err(error) = order.give(&mut self.guard)
        {
            tracing::debug!(key, error = chain(&error), "the guard can't forget a container");
        }
    }

    /// Whether the kernel side could not be told of some container; the first time.
    pub(super) fn has_newly_overflowed(&mut self) -> bool {
        self.scopes.refused > 0 && !std::mem::replace(&mut self.overflow_told, true)
    }

    /// Whether all is read that was ever told, as far as was [looked](Self::look).
    pub(super) fn is_read(&self) -> bool {
        self.read >= self.counts.as_ref().map_or(0, |counts| counts.sum(Counter::Told))
    }

    pub(super) fn policies(&self) -> Arc<Compiled> {
        Arc::clone(&self.compiled)
    }

    /// What is in force, in one word, with the number of policies and by what programs are refused.
    pub(super) fn status(&self) -> (&'static str, usize, &'static str) {
        let guard = self.compiled.guard();
        let word = match guard.mode {
            Mode::Observe => "observing",
            Mode::Enforce => "enforcing",
        };
        let deny = match self.deny {
            Deny::Unasked => "",
            Deny::Lsm => "lsm",
            Deny::Kill => "kill",
        };
        (word, guard.policies.len(), deny)
    }

    /// Reads the counters.
    pub(super) fn look(&mut self) {
        match self.guard.counters() {
            Ok(counts) => self.counts = Some(counts),
            Err(error) => tracing::debug!(error = chain(&error), "the guard's counters can't be read"),
        }
    }

    /// As last [looked](Self::look) at.
    pub(super) fn totals(&self) -> Totals {
        let counts = self.counts.as_ref();
        let totals = counts.map(|counts| Totals::of_programs(counts, &self.compiled)).unwrap_or_default();
        Totals { untold_containers: self.scopes.refused, ..totals }
    }

    /// Nothing is decided any more; what is left is in the ring.
    pub(super) fn end(&mut self) {
        if let Err(error) = self.guard.detach() {
            tracing::error!("the guard can't be detached: {}", chain(&error));
        }
        self.look();
    }

    /// There are no policies any more: it ends, be it to outlive us.
    pub(super) fn end_for_good(&mut self) {
        self.end();
        if self.compiled.guard().persist
            && let Err(error) = persist::remove()
        {
            tracing::error!("the guard's pins can't be removed: {}", chain(&error));
        }
    }

    /// The end of us: of the guard too, unless it is to outlive us.
    pub(super) fn finish(&mut self) {
        if self.outlives_us {
            self.look();
        } else {
            self.end();
        }
    }
}

/// Ends what an earlier run has left to go on without it.
pub(super) fn remove_pinned() -> Result<(), GuardingError> {
    if let Some(pinned) = left()? {
        let decided = removed(pinned)?;
        tracing::info!(decided, "the guard that an earlier run had left has ended");
    } else {
        persist::remove()?;
    }
    Ok(())
}

/// What an earlier run has left and can be relieved. Only root can have left anything else there, and that was us.
fn left() -> Result<Option<Pinned>, GuardError> {
    match take_pinned() {
        Err(error @ GuardError::Map { .. }) => {
            tracing::warn!(
                "the guard that another version of Namespan has left is replaced, and what it decided is not known: {}",
                chain(&error)
            );
            Ok(None)
        }
        pinned => pinned,
    }
}

/// Its records name policies by their numbers, and which those were nobody knows any more: they are counted.
fn removed(pinned: Pinned) -> Result<u64, GuardingError> {
    let counts = pinned.counters()?;
    pinned.remove()?;
    Ok(counts.sum(Counter::Decided))
}

async fn rest_until(at_boot_ns: u64) {
    let rest = at_boot_ns.saturating_add(OVERLAP_NS).saturating_sub(boot_ns());
    tokio::time::sleep(Duration::from_nanos(rest)).await;
}
