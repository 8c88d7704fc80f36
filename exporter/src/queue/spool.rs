//! Batches on disk: a thread writes what the pipeline hands to the queue before a sender has it, reads what memory has no
//! room for when its turn comes, and marks what is settled. Whatever stops us, the next run goes on with the rest.

mod age;
mod directory;
mod format;
pub(crate) mod segment;
mod store;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::memory::Amount;
use super::waiting::{Flight, Phase, State, Stored, Waiting};
use super::{Class, Counters, Reason, Shared, items};
use crate::config::{self, Signal};
use age::{Aging, Moment, boot_id};
use format::Record;
use segment::Left;
pub(super) use store::{Kept, Place};
use store::{Next, Room, Store};

/// How much a loss of power may take.
const SYNC: Duration = Duration::from_secs(1);
/// How long a disk that takes nothing, and a file that can't be read, are left alone.
const RETRY: Duration = Duration::from_secs(5);
/// How often the oldest batches are looked at.
const EXPIRY: Duration = Duration::from_secs(10);
/// Most lines about a disk that does other things wrong.
const COMPLAINT: Duration = Duration::from_secs(60);
/// Batches written, read or given up before anything else is looked at.
const TURN: usize = 64;

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the spool at {} cannot be used; make it a directory that Namespan can write to", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "the spool at {} belongs to user {owner}, and we are user {us}: give it to us (`chown {us}`), or name another \
         directory",
        path.display()
    )]
    Foreign { path: PathBuf, owner: u32, us: u32 },
    #[error(
        "others may write to the spool at {} (its mode is {mode:o}), and so could make us send anything: forbid it \
         (`chmod go-w`), or name another directory",
        path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "the spool at {} is in use by another Namespan: end that one, or give this one a directory of its own",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("no thread can be started for the spool at {}", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// The queue's side and the disk's side of a new queue. What the spool has is counted already.
pub(super) fn open(
    signal: Signal,
    destination: &str,
    limits: config::Queue,
    settings: &config::Spool,
) -> Result<(Spooler, Arc<Shared>), SpoolError> {
    let counters = Counters::of_spool();
    let boot = boot_id();
    let (store, recovered) = Store::open(signal, destination, settings, (boot, &counters))?;
    let Left { batches, records } = recovered.left;
    counters.recover(records + recovered.lost);
    counters.discard(Reason::SpoolCorrupt, recovered.lost);
    let unread = Amount { batches, bytes: 0, records };
    if batches > 0 {
        let path = store.path().display();
        tracing::info!(%path, records, "{} that an earlier run has left in the spool are sent first", items(signal));
    }
    let stored = Some(Stored { unread, has_news: true, ..Stored::default() });
    let waiting = Waiting { next_number: recovered.next_number, stored, ..Waiting::default() };
    let shared = Arc::new(Shared::new(limits, counters, waiting));
    let now = Instant::now();
    let spooler = Spooler {
        signal,
        shared: Arc::clone(&shared),
        store,
        aging: Aging::new(settings.max_age),
        retry_at: None,
        synced: now,
        looked: now,
        complained: None,
    };
    spooler.count();
    Ok((spooler, shared))
}

/// The disk's side of a queue.
#[derive(Debug)]
pub(super) struct Spooler {
    signal: Signal,
    shared: Arc<Shared>,
    store: Store,
    aging: Aging,
    /// The disk takes nothing; tried again then.
    retry_at: Option<Instant>,
    synced: Instant,
    /// When batches that are too old were last looked for.
    looked: Instant,
    complained: Option<Instant>,
}

impl Spooler {
    /// On a thread of its own: disks block. The receiver becomes true as the thread ends.
    pub(super) fn start(mut self) -> Result<watch::Receiver<bool>, SpoolError> {
        let (ended, receiver) = watch::channel(false);
        let path = self.store.path().to_owned();
        let run = move || {
            self.run();
            // Unlocks the directory.
            drop(self);
            ended.send_replace(true);
        };
        match thread::Builder::new().name("spool".to_owned()).spawn(run) {
            Ok(_) => Ok(receiver),
            Err(source) => Err(SpoolError::Thread { path, source }),
        }
    }

    fn run(&mut self) {
        loop {
            let again = self.step(Instant::now(), Moment::now());
            if !self.wait(again) {
                return self.finish(Moment::now());
            }
        }
    }

    /// For news, or until then. `false`: that was all.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut waiting = self.shared.lock();
        loop {
            let Some(stored) = &mut waiting.stored else { return false };
            if stored.phase == Phase::Ended {
                return false;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut stored.has_news) || left.is_some_and(|left| left.is_zero()) {
                return true;
            }
            waiting = match left {
                Some(left) => self.shared.work.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.shared.work.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Everything there is to do now; when there is more without news.
    fn step(&mut self, now: Instant, moment: Moment) -> Option<Instant> {
        self.with(|stored| stored.busy_since = Some(now));
        self.aging.look(moment);
        self.land();
        let mut is_done = true;
        if self.retry_at.is_none_or(|at| at <= now) {
            is_done &= self.write(now, moment);
        }
        if now.saturating_duration_since(self.looked) >= EXPIRY {
            is_done &= self.expire(now, moment);
            if is_done {
                self.looked = now;
            }
        }
        is_done &= self.load(now, moment);
        let sync_at = self.synced + SYNC;
        if self.store.is_dirty() && sync_at <= now {
            self.synced = now;
            let synced = self.store.sync();
            self.complain("synced", synced);
        }
        self.count();
        let is_over = self.with_waiting(|waiting, _| {
            if let Some(stored) = &mut waiting.stored {
                stored.busy_since = None;
            }
            waiting.is_over()
        });
        if is_over {
            // Who waits for a batch may have been promised one that went elsewhere.
            self.shared.arrived.notify_waiters();
        }
        if !is_done {
            return Some(now);
        }
        let sync_at = self.store.is_dirty().then_some(self.synced + SYNC);
        let looks = self.store.segments() > 0;
        [self.retry_at, sync_at, self.store.aside_until(), looks.then_some(self.looked + EXPIRY)]
            .into_iter()
            .flatten()
            .min()
    }

    /// The last act: nobody sends any more.
    fn finish(&mut self, moment: Moment) {
        self.land();
        while !self.write(Instant::now(), moment) {}
        self.with_waiting(|waiting, counters| {
            while let Some((_, batch)) = waiting.memory.take_first() {
                counters.discard(Reason::Shutdown, batch.records());
            }
            if let Some(stored) = &mut waiting.stored {
                while stored.unload() {}
            }
        });
        let reaped = self.store.reap(0);
        self.complain("removed", reaped);
        let synced = self.store.sync();
        self.complain("synced", synced);
        self.count();
    }

    /// Marks what is settled.
    fn land(&mut self) {
        loop {
            let landed = self.with(|stored| {
                let mut flights = stored.flights.iter();
                let landed = flights.find(|(_, flight)| flight.state == State::Landed);
                landed.map(|(number, Flight { kept, is_gone, .. })| (*number, *kept, *is_gone))
            });
            let Some((number, kept, is_gone)) = landed else { return };
            if !is_gone {
                let settled = self.store.settle(&kept);
                self.complain("marked", settled);
            }
            self.with(|stored| stored.flights.remove(&number));
        }
    }

    /// Writes what is in memory alone. `false`: there is more.
    fn write(&mut self, now: Instant, moment: Moment) -> bool {
        for _ in 0..TURN {
            let first = self.shared.lock().memory.first().map(|(number, batch)| (number, batch.clone()));
            let Some((number, batch)) = first else { return true };
            let written = match self.make_room(&batch) {
                Ok(true) => self.store.append(number, &batch, moment),
                Ok(false) => {
                    self.with_waiting(|waiting, counters| {
                        if waiting.memory.remove(batch.class(), number).is_some() {
                            counters.discard(Reason::SpoolFull, batch.records());
                        }
                    });
                    continue;
                }
                Err(error) => Err(error),
            };
            let kept = match written {
                Ok(kept) => kept,
                Err(error) => {
                    self.fails(now, &error);
                    return true;
                }
            };
            self.works();
            let is_needed = self.with_waiting(|waiting, _| {
                let Some(batch) = waiting.memory.remove(batch.class(), number) else { return false };
                let Some(stored) = &mut waiting.stored else { return false };
                stored.insert(number, kept, batch);
                // Nothing may overtake what is on disk alone.
                if stored.unread.batches > 0 {
                    stored.unload();
                }
                true
            });
            if is_needed {
                self.shared.arrived.notify_one();
            } else {
                // It was dropped for want of room, or sent, as the disk took so long.
                let settled = self.store.settle(&kept);
                self.complain("marked", settled);
            }
        }
        false
    }

    /// Whether there is room for this one, at the expense of others if need be.
    fn make_room(&mut self, batch: &super::Batch) -> io::Result<bool> {
        loop {
            let place = match self.store.room(batch)? {
                Room::Enough => return Ok(true),
                Room::None => return Ok(false),
                Room::Instead(place) => place,
            };
            let left = self.store.left(place);
            self.with_waiting(|waiting, counters| {
                let Some(stored) = &mut waiting.stored else { return };
                let lost = give_up(stored, place, left);
                counters.discard(Reason::SpoolFull, lost);
            });
            self.store.remove(place)?;
        }
    }

    /// Brings into memory what comes next, as far as there is room. `false`: there is more.
    fn load(&mut self, now: Instant, moment: Moment) -> bool {
        self.store.take_back(now);
        self.with(|stored| stored.is_out_of_reach = false);
        for _ in 0..TURN {
            let rewind = self.with(|stored| std::mem::take(&mut stored.rewind));
            for place in rewind.into_iter().flatten() {
                self.store.rewind(place);
            }
            let has_room = self.with_waiting(|waiting, _| {
                let limits = &self.shared.limits;
                let half = config::Queue {
                    max_bytes: limits.max_bytes / 2,
                    max_records: limits.max_records.map(|max| max / 2),
                    ..*limits
                };
                let held = waiting.held();
                let stored = waiting.stored.as_ref();
                stored.is_some_and(|stored| {
                    stored.unread.batches > 0 && (stored.ready.is_empty() || !held.exceeds(&half))
                })
            });
            if !has_room {
                return true;
            }
            let Some((number, record, kept)) = self.next(now) else {
                self.with(|stored| stored.is_out_of_reach = true);
                // What is in memory may be sent for want of it.
                self.shared.arrived.notify_waiters();
                return true;
            };
            if self.aging.is_expired(&kept, moment) {
                self.drop_next(&record, &kept, Reason::SpoolExpired);
                continue;
            }
            match self.store.read(&record, &kept) {
                Ok(Some(batch)) => {
                    self.store.pass(&record, &kept);
                    self.with_waiting(|waiting, _| {
                        let Some(stored) = &mut waiting.stored else { return };
                        stored.unread = stored.unread.less(of(&kept));
                        // Of two runs, one of which could not read what the other had written.
                        let is_taken = stored.known(number).is_some();
                        let number = if is_taken { waiting.next_number } else { number };
                        stored.insert(number, kept, batch);
                        waiting.next_number += u64::from(is_taken);
                    });
                    self.shared.arrived.notify_one();
                }
                Err(error) if self.store.set_aside(kept.place, &error, now) => self.unread(&error),
                Ok(None) | Err(_) => {
                    tracing::error!(
                        path = %self.store.path().display(),
                        records = record.records,
                        "a batch in the spool is damaged: its {} are lost",
                        items(self.signal)
                    );
                    self.drop_next(&record, &kept, Reason::SpoolCorrupt);
                }
            }
        }
        false
    }

    /// What comes next of all that is on disk alone.
    fn next(&mut self, now: Instant) -> Option<(u64, Record, Kept)> {
        let mut first: Option<(u64, Record, Kept)> = None;
        for class in Class::ALL {
            let next = loop {
                match self.store.next(class) {
                    Next::Nothing => break None,
                    Next::Batch(number, record, kept) => {
                        let is_known = self.with(|stored| stored.known(number).is_some_and(|k| k.place == kept.place));
                        if !is_known {
                            break Some((number, record, kept));
                        }
                        self.store.pass(&record, &kept);
                    }
                    Next::Unread(place, error) if self.store.set_aside(place, &error, now) => self.unread(&error),
                    Next::Damaged(place) | Next::Unread(place, _) => self.cut(place),
                }
            };
            if let Some(next) = next
                && first.as_ref().is_none_or(|first| next.0 < first.0)
            {
                first = Some(next);
            }
        }
        first
    }

    /// The rest of a segment is not what was written.
    fn cut(&mut self, place: Place) {
        let left = self.store.left(place);
        let lost = self.with_waiting(|waiting, counters| {
            let Some(stored) = &mut waiting.stored else { return Left::default() };
            let known = known_in(stored, place);
            let lost = Left {
                batches: left.batches.saturating_sub(known.batches),
                records: left.records.saturating_sub(known.records),
            };
            stored.unread = stored.unread.less(Amount { batches: lost.batches, bytes: 0, records: lost.records });
            counters.discard(Reason::SpoolCorrupt, lost.records);
            lost
        });
        tracing::error!(
            path = %self.store.path().display(),
            records = lost.records,
            "a segment of the spool is damaged: the rest of it is lost"
        );
        let cut = self.store.cut(place, lost);
        self.complain("cut off", cut);
    }

    /// Drops what is too old. `false`: there is more.
    fn expire(&mut self, now: Instant, moment: Moment) -> bool {
        let Self { aging, shared, .. } = self;
        let mut waiting = shared.lock();
        let Some(stored) = &mut waiting.stored else { return true };
        let is_old = |(number, (kept, _)): (&u64, &(Kept, _))| aging.is_expired(kept, moment).then_some(*number);
        let old: Vec<u64> = stored.ready.iter().filter_map(is_old).take(TURN).collect();
        let mut settled = Vec::new();
        for number in &old {
            if let Some((kept, _)) = stored.remove(*number) {
                shared.counters.discard(Reason::SpoolExpired, kept.records);
                settled.push(kept);
            }
        }
        drop(waiting);
        for kept in settled {
            let settled = self.store.settle(&kept);
            self.complain("marked", settled);
        }
        for _ in 0..TURN {
            match self.next(now) {
                Some((_, record, kept)) if self.aging.is_expired(&kept, moment) => {
                    self.drop_next(&record, &kept, Reason::SpoolExpired);
                }
                Some(_) | None => return old.len() < TURN,
            }
        }
        false
    }

    /// Gives up what is on disk alone and comes next.
    fn drop_next(&mut self, record: &Record, kept: &Kept, reason: Reason) {
        self.store.pass(record, kept);
        self.with_waiting(|waiting, counters| {
            let Some(stored) = &mut waiting.stored else { return };
            stored.unread = stored.unread.less(of(kept));
            counters.discard(reason, kept.records);
        });
        let settled = self.store.settle(kept);
        self.complain("marked", settled);
    }

    /// The disk takes nothing: what comes is kept in memory, and sent from there.
    fn fails(&mut self, now: Instant, error: &io::Error) {
        self.shared.counters.spool_error();
        // What is settled may be what is in the way.
        self.store.reap(0).ok();
        if self.retry_at.replace(now + RETRY).is_none() {
            tracing::warn!(
                path = %self.store.path().display(),
                %error,
                "the spool takes nothing; {} are kept in memory alone, as far as there is room, until it does: this is \
                 tried again every {} s",
                items(self.signal),
                RETRY.as_secs()
            );
        }
        self.with(|stored| stored.is_failing = true);
        self.shared.arrived.notify_waiters();
    }

    fn works(&mut self) {
        if self.retry_at.take().is_some() {
            self.with(|stored| stored.is_failing = false);
            tracing::info!(path = %self.store.path().display(), "the spool takes {} again", items(self.signal));
        }
    }

    /// What can't be read waits where it is, and what is behind it in its file.
    fn unread(&mut self, error: &io::Error) {
        let items = items(self.signal);
        self.warn("read", error, &format!("{items} wait there, and this is tried again every {} s", RETRY.as_secs()));
    }

    /// Of what goes wrong otherwise, and costs at most that something is sent twice.
    fn complain(&mut self, what: &str, result: io::Result<()>) {
        let Err(error) = result else { return };
        self.warn(what, &error, &format!("some {} may be sent twice", items(self.signal)));
    }

    fn warn(&mut self, what: &str, error: &io::Error, so: &str) {
        self.shared.counters.spool_error();
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
            self.complained = Some(Instant::now());
            let path = self.store.path().display();
            tracing::warn!(%path, %error, "something in the spool can't be {what}; {so}");
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Stored) -> T) -> T
    where
        T: Default,
    {
        self.with_waiting(|waiting, _| waiting.stored.as_mut().map(act).unwrap_or_default())
    }

    fn with_waiting<T>(&self, act: impl FnOnce(&mut Waiting, &Counters) -> T) -> T {
        let mut waiting = self.shared.lock();
        let result = act(&mut waiting, &self.shared.counters);
        if let Some(stored) = &waiting.stored {
            self.shared.count(stored);
        }
        result
    }

    fn count(&self) {
        self.shared.counters.set_size(self.store.bytes(), self.store.segments() as u64);
        self.with_waiting(|_, _| ());
    }
}

/// Removes what is in a segment that goes; how many records are lost with it.
fn give_up(stored: &mut Stored, place: Place, left: Left) -> u64 {
    let numbers: Vec<u64> =
        stored.ready.iter().filter(|(_, (kept, _))| kept.place.is_with(place)).map(|(number, _)| *number).collect();
    let mut lost = 0;
    let mut unread = Amount { batches: left.batches, bytes: 0, records: left.records };
    for (kept, _) in numbers.into_iter().filter_map(|number| stored.remove(number)) {
        unread = unread.less(of(&kept));
        lost += u64::from(kept.records);
    }
    for flight in stored.flights.values_mut().filter(|flight| flight.kept.place.is_with(place) && !flight.is_gone) {
        unread = unread.less(of(&flight.kept));
        flight.is_gone = true;
        if let State::Stranded { records } = flight.state {
            lost += u64::from(records);
            flight.state = State::Landed;
        }
    }
    stored.unread = stored.unread.less(unread);
    lost + unread.records
}

/// What of a segment is in memory, or with a sender.
fn known_in(stored: &Stored, place: Place) -> Left {
    let ready = stored.ready.values().map(|(kept, _)| kept);
    let flights = stored.flights.values().filter(|flight| !flight.is_gone).map(|flight| &flight.kept);
    let known = ready.chain(flights).filter(|kept| kept.place.is_with(place));
    known.fold(Left::default(), |sum, kept| Left {
        batches: sum.batches + 1,
        records: sum.records + u64::from(kept.records),
    })
}

fn of(kept: &Kept) -> Amount {
    Amount { batches: 1, bytes: 0, records: kept.records.into() }
}
