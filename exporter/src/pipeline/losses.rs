//! The counters of every place that loses something come in about once a second; what is new in them comes out, to be told
//! as a record among those that did arrive.
//!
//! What a destination loses is told when it takes something again, as one loss: before, the record would only be lost with
//! the others. So is what was lost before, if no destination takes anything. Such records are lost too now and then, and counted; that alone is never a reason for another record.

use std::time::{Duration, Instant};

use crate::attach::Counted;
use crate::config::Signal;
use crate::queue::{Reason, Snapshot};

/// After so long, what a destination loses is told to the others.
const HELD: Duration = Duration::from_secs(60);

/// Records that are missing from what is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// As `namespan.lost.stage` has it.
    pub(super) stage: &'static str,
    pub(super) reason: String,
    pub(super) count: u64,
    /// `None`: before any destination.
    pub(super) destination: Option<String>,
    /// `None`: events, with all that is made of them.
    pub(super) signal: Option<Signal>,
    /// Nothing of it was lost before.
    pub(super) start_unix_ns: u64,
    /// All of it was lost by then.
    pub(super) end_unix_ns: u64,
}

/// One look at the counters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) unix_ns: u64,
    /// There is no other one: everything is told.
    pub(super) is_last: bool,
}

/// A counter of what was lost before any destination.
pub(super) struct Early<'a> {
    pub(super) stage: &'static str,
    pub(super) reason: &'a str,
    pub(super) signal: Option<Signal>,
    pub(super) lost: u64,
}

/// What has been told, and what has not.
#[derive(Debug)]
pub(super) struct Losses {
    looked_unix_ns: u64,
    early: Vec<Pending>,
    late: Vec<Late>,
}

/// What one counter has counted.
#[derive(Debug)]
struct Pending {
    stage: &'static str,
    reason: String,
    signal: Option<Signal>,
    counted: u64,
    untold: u64,
    start_unix_ns: u64,
    end_unix_ns: u64,
}

/// What one destination loses of one signal.
#[derive(Debug)]
struct Late {
    destination: String,
    signal: Signal,
    pending: Vec<Pending>,
    /// As it was when the first of what is untold was noticed.
    since: Option<Since>,
    /// Records of our own making that it was given and may have lost.
    notes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    at: Instant,
    exported: u64,
    /// Log records that others have taken.
    elsewhere: u64,
}

impl Losses {
    pub(super) fn new(unix_ns: u64) -> Self {
        Self { looked_unix_ns: unix_ns, early: Vec::new(), late: Vec::new() }
    }

    /// A record of our own making is on its way to every destination of logs.
    pub(super) fn noted(&mut self) {
        for late in self.late.iter_mut().filter(|late| late.signal == Signal::Logs) {
            late.notes += 1;
        }
    }

    /// What is to be told now.
    pub(super) fn look<'a>(
        &mut self,
        look: Look,
        early: impl Iterator<Item = Early<'a>>,
        late: &[(&str, Signal, Snapshot)],
    ) -> Vec<Loss> {
        let (mut told, mut told_late) = (Vec::new(), Vec::new());
        let since = self.looked_unix_ns;
        for Early { stage, reason, signal, lost } in early {
            count(&mut self.early, (stage, reason, signal), lost, since, look);
        }
        // Destinations of such records, and those that take nothing now.
        let (mut takers, mut blocked) = (0, 0);
        let of_logs = late.iter().filter(|(_, signal, _)| *signal == Signal::Logs);
        let taken: u64 = of_logs.map(|(.., counters)| counters.exported).sum();
        for (destination, signal, counters) in late {
            let known = self.late.iter().position(|late| (&*late.destination, late.signal) == (*destination, *signal));
            let index = known.unwrap_or_else(|| {
                self.late.push(Late::new(destination, *signal));
                self.late.len() - 1
            });
            let Some(late) = self.late.get_mut(index) else { continue };
            let elsewhere = if *signal == Signal::Logs { taken.saturating_sub(counters.exported) } else { taken };
            late.count(counters, elsewhere, since, look);
            if look.is_last || late.is_due(counters, elsewhere, look.at) {
                late.since = None;
                late.notes = 0;
                tell(&mut late.pending, Some(&late.destination), &mut told_late);
            }
            if *signal == Signal::Logs {
                takers += 1;
                blocked += usize::from(late.since.is_some_and(|since| counters.exported == since.exported));
            }
        }
        // Whom nothing is shipped to any more loses nothing any more.
        self.late.retain_mut(|known| {
            let is_there = late.iter().any(|(name, signal, _)| (*name, *signal) == (&*known.destination, known.signal));
            if !is_there {
                tell(&mut known.pending, Some(&known.destination), &mut told_late);
            }
            is_there
        });
        if look.is_last || takers == 0 || blocked < takers {
            tell(&mut self.early, None, &mut told);
        }
        self.looked_unix_ns = look.unix_ns;
        told.append(&mut told_late);
        told
    }
}

impl Late {
    fn new(destination: &str, signal: Signal) -> Self {
        Self { destination: destination.to_owned(), signal, pending: Vec::new(), since: None, notes: 0 }
    }

    fn count(&mut self, counters: &Snapshot, elsewhere: u64, since: u64, look: Look) {
        let rejected = ("collector", "rejected".to_owned(), counters.rejected);
        let dropped = counters.dropped.iter().map(|(reason, lost)| (stage_of(*reason), reason.to_string(), *lost));
        for (stage, reason, lost) in dropped.chain([rejected]) {
            count(&mut self.pending, (stage, &reason, Some(self.signal)), lost, since, look);
        }
        let settled = counters.exported + counters.rejected + counters.dropped_total();
        if self.untold() > 0 {
            self.since.get_or_insert(Since { at: look.at, exported: counters.exported, elsewhere });
        } else if settled >= counters.accepted + counters.spool.map_or(0, |spool| spool.recovered) {
            // What it was given until now it has taken.
            self.notes = 0;
        }
    }

    fn is_due(&self, counters: &Snapshot, elsewhere: u64, now: Instant) -> bool {
        let Some(since) = self.since.filter(|_| self.untold() > self.notes) else { return false };
        let takes_again = counters.exported > since.exported;
        let is_for_others = elsewhere > since.elsewhere && now.saturating_duration_since(since.at) >= HELD;
        takes_again || is_for_others
    }

    fn untold(&self) -> u64 {
        self.pending.iter().map(|pending| pending.untold).sum()
    }
}

/// Takes in what a counter has counted.
fn count(
    known: &mut Vec<Pending>,
    (stage, reason, signal): (&'static str, &str, Option<Signal>),
    counted: u64,
    since: u64,
    look: Look,
) {
    let same = |pending: &&mut Pending| pending.stage == stage && pending.reason == reason && pending.signal == signal;
    let Some(pending) = known.iter_mut().find(same) else {
        if counted > 0 {
            known.push(Pending {
                stage,
                reason: reason.to_owned(),
                signal,
                counted,
                untold: counted,
                start_unix_ns: since,
                end_unix_ns: look.unix_ns,
            });
        }
        return;
    };
    // A counter that has less than before is another one, which began at 0.
    let new = counted.checked_sub(pending.counted).unwrap_or(counted);
    pending.counted = counted;
    if new > 0 {
        if pending.untold == 0 {
            pending.start_unix_ns = since;
        }
        pending.untold += new;
        pending.end_unix_ns = look.unix_ns;
    }
}

fn tell(pending: &mut [Pending], destination: Option<&str>, told: &mut Vec<Loss>) {
    for pending in pending.iter_mut().filter(|pending| pending.untold > 0) {
        told.push(Loss {
            stage: pending.stage,
            reason: pending.reason.clone(),
            count: std::mem::take(&mut pending.untold),
            destination: destination.map(str::to_owned),
            signal: pending.signal,
            start_unix_ns: pending.start_unix_ns,
            end_unix_ns: pending.end_unix_ns,
        });
    }
}

/// Events that the kernel side did not get into the ring.
pub(super) fn of_kernel(counted: &Counted) -> impl Iterator<Item = Early<'static>> + '_ {
    counted.losses().map(|(reason, lost)| Early { stage: "kernel", reason, signal: None, lost })
}

/// Where it was lost.
fn stage_of(reason: Reason) -> &'static str {
    match reason {
        Reason::QueueFull | Reason::Shutdown | Reason::Encoding => "queue",
        Reason::SpoolFull | Reason::SpoolExpired | Reason::SpoolCorrupt => "spool",
        Reason::Permanent(_) | Reason::RetryExpired | Reason::TooLarge | Reason::Unimplemented => "collector",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use namespan_ebpf::wire::{Counter, Program};

    use super::*;
    use crate::config::{self, Compression, Protocol};
    use crate::queue::{Answer, Batch, Class, Queue};

    /// Looks once a second, the first time at 1 s.
    struct Looks {
        losses: Losses,
        began: Instant,
        seconds: u64,
    }

    impl Looks {
        fn new() -> Self {
            Self { losses: Losses::new(0), began: Instant::now(), seconds: 0 }
        }

        fn look(&mut self, early: &[(&'static str, u64)], late: &[(&str, Signal, &Snapshot)]) -> Vec<Loss> {
            self.look_at(early, late, false)
        }

        fn look_at(
            &mut self,
            early: &[(&'static str, u64)],
            late: &[(&str, Signal, &Snapshot)],
            is_last: bool,
        ) -> Vec<Loss> {
            self.seconds += 1;
            let at = self.began + Duration::from_secs(self.seconds);
            let look = Look { at, unix_ns: self.seconds, is_last };
            let early = early.iter().map(|(reason, lost)| Early { stage: "kernel", reason, signal: None, lost: *lost });
            let late: Vec<_> =
                late.iter().map(|(name, signal, counters)| (*name, *signal, (*counters).clone())).collect();
            self.losses.look(look, early, &late)
        }
    }

    fn of(loss: &Loss) -> (&str, &str, u64, u64, u64) {
        (loss.stage, &loss.reason, loss.count, loss.start_unix_ns, loss.end_unix_ns)
    }

    fn lost(reason: Reason, records: u64) -> Snapshot {
        Snapshot { accepted: records, dropped: [(reason, records)].into(), ..Snapshot::default() }
    }

    #[test]
    fn what_the_kernel_loses_is_told_at_once_and_only_once() {
        let mut looks = Looks::new();
        let mut counts = [[0; Counter::ALL.len()]; Program::ALL.len()];
        counts[0][Counter::LostRingFull as usize] = 3;
        counts[1][Counter::LostRingFull as usize] = 4;
        let counted = Counted::from_parts(counts, [0, 2, 0]);
        let kernel: Vec<_> = of_kernel(&counted).map(|early| (early.reason, early.lost)).collect();
        assert_eq!(kernel, [("ring_full", 7), ("kernel_recursion", 2)]);
        assert_eq!(looks.look(&[], &[]), []);
        let told = looks.look(&kernel, &[]);
        assert_eq!(
            told.iter().map(of).collect::<Vec<_>>(),
            [("kernel", "ring_full", 7, 1, 2), ("kernel", "kernel_recursion", 2, 1, 2)]
        );
        assert_eq!((&told[0].destination, told[0].signal), (&None, None));
        assert_eq!(looks.look(&kernel, &[]), []);
        let told = looks.look(&[("ring_full", 10)], &[]);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("kernel", "ring_full", 3, 3, 4)]);
    }

    #[tokio::test]
    async fn what_a_queue_loses_is_told_when_it_is_emptied_again() {
        let limits = config::Queue { max_bytes: 2, ..config::Queue::default() };
        let queue = Arc::new(Queue::new(Signal::Logs, limits));
        let push = |records| {
            let batch = Batch::seal(Class::Exec, records, b"x", Protocol::HttpProtobuf, Compression::None);
            queue.push(batch.unwrap());
        };
        let mut looks = Looks::new();
        let mut told = Vec::new();
        let look = |looks: &mut Looks| looks.look(&[], &[("main", Signal::Logs, &queue.counters().snapshot())]);
        for records in 1..=10 {
            push(records);
            told.extend(look(&mut looks));
        }
        assert_eq!(told, []);
        queue.pop().await.unwrap().deliver(9, 0);
        told.extend(look(&mut looks));
        // Lost from the third push on.
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("queue", "queue_full", 36, 2, 10)]);
        assert_eq!((told[0].destination.as_deref(), told[0].signal), (Some("main"), Some(Signal::Logs)));
        for _ in 0..200 {
            push(1);
        }
        told.extend(look(&mut looks));
        queue.pop().await.unwrap().deliver(1, 0);
        told.extend(look(&mut looks));
        told.extend(look(&mut looks));
        assert_eq!(told.iter().map(|loss| loss.count).sum::<u64>(), queue.counters().snapshot().dropped_total());
        assert_eq!(told.len(), 2);
    }

    #[test]
    fn records_of_losses_that_are_lost_are_no_reason_for_another_one() {
        let mut looks = Looks::new();
        let refused = Reason::Permanent(Answer::Http(400));
        let mut counters = Snapshot { accepted: 100, exported: 95, rejected: 5, ..Snapshot::default() };
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
        counters.exported += 100;
        counters.accepted += 100;
        let told = looks.look(&[], &[("main", Signal::Logs, &counters)]);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("collector", "rejected", 5, 0, 1)]);
        // Each of its records is refused, and everything else taken.
        for _ in 0..50 {
            looks.losses.noted();
            counters.accepted += 101;
            counters.exported += 100;
            *counters.dropped.entry(refused).or_default() += 1;
            assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
        }
        // One more than there were such records.
        counters.accepted += 1;
        counters.rejected += 1;
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]).len(), 2);
        // What it has taken since is no excuse.
        looks.losses.noted();
        counters.accepted += 1;
        counters.exported += 1;
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
        counters.accepted += 1;
        counters.rejected += 1;
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
        counters.accepted += 1;
        counters.exported += 1;
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]).len(), 1);
    }

    #[test]
    fn what_one_destination_goes_on_losing_is_told_to_the_others_now_and_then() {
        let mut looks = Looks::new();
        let mut told = Vec::new();
        for second in 1..=200 {
            let (dead, spans) = (lost(Reason::Unimplemented, 10 * second), lost(Reason::RetryExpired, second));
            let well = Snapshot { accepted: second, exported: second, ..Snapshot::default() };
            let late = [("dead", Signal::Logs, &dead), ("well", Signal::Logs, &well), ("dead", Signal::Traces, &spans)];
            told.extend(looks.look(&[], &late));
        }
        let counts: Vec<_> = told.iter().map(|loss| (loss.signal, loss.count, loss.end_unix_ns)).collect();
        let (logs, traces) = (Some(Signal::Logs), Some(Signal::Traces));
        assert_eq!(
            counts,
            [
                (logs, 610, 61),
                (traces, 61, 61),
                (logs, 610, 122),
                (traces, 61, 122),
                (logs, 610, 183),
                (traces, 61, 183)
            ]
        );
    }

    #[test]
    fn the_last_look_tells_everything() {
        let mut looks = Looks::new();
        let counters = lost(Reason::QueueFull, 7);
        for _ in 0..100 {
            looks.losses.noted();
            assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
        }
        let told = looks.look_at(&[("ring_full", 1)], &[("main", Signal::Logs, &counters)], true);
        assert_eq!(
            told.iter().map(of).collect::<Vec<_>>(),
            [("kernel", "ring_full", 1, 100, 101), ("queue", "queue_full", 7, 0, 1)]
        );
    }

    #[test]
    fn what_the_kernel_loses_waits_until_somebody_takes_something() {
        let mut looks = Looks::new();
        let away = lost(Reason::QueueFull, 7);
        for second in 1..=100 {
            assert_eq!(looks.look(&[("ring_full", second)], &[("main", Signal::Logs, &away)]), []);
        }
        let back = Snapshot { exported: 1, ..away.clone() };
        let told = looks.look(&[("ring_full", 100)], &[("main", Signal::Logs, &back)]);
        assert_eq!(
            told.iter().map(of).collect::<Vec<_>>(),
            [("kernel", "ring_full", 100, 0, 100), ("queue", "queue_full", 7, 0, 1)]
        );
        // One of two does.
        let again = Snapshot { exported: 1, ..lost(Reason::QueueFull, 8) };
        let well = Snapshot::default();
        let told = looks.look(&[("ring_full", 101)], &[("main", Signal::Logs, &again), ("well", Signal::Logs, &well)]);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("kernel", "ring_full", 1, 101, 102)]);
    }

    #[test]
    fn what_a_destination_has_lost_is_told_when_it_is_given_up() {
        let mut looks = Looks::new();
        let counters = lost(Reason::QueueFull, 7);
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters), ("other", Signal::Logs, &counters)]), []);
        let told = looks.look(&[], &[("main", Signal::Logs, &counters)]);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("queue", "queue_full", 7, 0, 1)]);
        assert_eq!(told[0].destination.as_deref(), Some("other"));
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &counters)]), []);
    }

    #[test]
    fn a_counter_that_begins_anew_is_counted_from_its_beginning() {
        let mut looks = Looks::new();
        assert_eq!(looks.look(&[], &[("main", Signal::Logs, &lost(Reason::QueueFull, 7))]), []);
        let again = Snapshot { exported: 1, ..lost(Reason::QueueFull, 2) };
        let told = looks.look(&[], &[("main", Signal::Logs, &again)]);
        assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("queue", "queue_full", 9, 0, 2)]);
    }
}
