//! Containers and processes come in as they are seen, and the settings; probes are attached to what of them is wanted now, and
//! detached when the last that wanted them goes.
//!
//! On a thread of its own: reading a program and attaching to it take milliseconds, detaching takes longer.

mod groups;
mod members;

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use namespan_ebpf::wire::CgroupKey;
use tokio::sync::{mpsc, oneshot};

use super::attach::{Counted, PlaceId, Uprobes};
use super::detach::{Detached, Detacher};
use super::place::Places;
use super::root::{OpenError, Root};
use super::spec::Uprobe;
use crate::enrich::container::Container;
use crate::enrich::procfs::Stat;
use crate::event::ProcessId;
use crate::list::host::Hierarchies;
use crate::lock::lock;
use groups::{Group, GroupKey};
use members::{BIT, Look, Member, MemberKey};

/// Words to the thread that may wait.
const WORDS: usize = 8192;
/// Answers that may wait.
const ANSWERS: usize = 1024;
/// Most that the thread is waited for at the end.
const END: Duration = Duration::from_secs(2);
/// How long after words found no room all who are there are told of again.
const MISSED: Duration = Duration::from_secs(5);
/// As long as one file takes at most, if all is well.
const STUCK: Duration = Duration::from_secs(5);
/// From one look at who is still there to the next.
const SWEEP: Duration = Duration::from_secs(2);

/// A process, and where it belongs.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// `None`: to the host.
    pub container: Option<Arc<Container>>,
    pub cgroup: CgroupKey,
    pub process: Who,
}

/// A process, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Known(ProcessId),
    /// It was there before its exec could be seen.
    Elder(u32, Stat),
}

impl Who {
    fn root(self) -> Result<Root, OpenError> {
        match self {
            Self::Known(process) => Root::of(process),
            Self::Elder(pid, stat) => Root::of_elder(pid, stat),
        }
    }

    fn pid(self) -> u32 {
        match self {
            Self::Known(process) => process.tgid,
            Self::Elder(pid, _) => pid,
        }
    }

    fn lives(self) -> bool {
        match (Stat::read(self.pid()), self) {
            (Ok(Some(stat)), Self::Known(process)) => stat.is(process),
            (Ok(Some(stat)), Self::Elder(_, known)) => stat.is_same(known),
            (Ok(None), _) => false,
            // Who can't be looked at is not gone.
            (Err(_), _) => true,
        }
    }
}

/// What the thread is told.
enum Word {
    /// All that were there already.
    Residents(Vec<Sighting>),
    Seen(Sighting),
    Described(Arc<Container>, Option<u32>),
    /// There are others.
    Settings,
    Count(oneshot::Sender<Totals>),
    End(oneshot::Sender<Totals>),
}

/// What the thread has to say.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A probe is at work in a file; others that have the same are not told of.
    Attached { probe: Arc<Uprobe>, container: Option<Arc<Container>>, binary: String, places: usize },
    /// It can't be attached there: told once, and again where the reason becomes another.
    Refused { probe: Arc<Uprobe>, container: Option<Arc<Container>>, reason: String },
}

/// What became of the hits of all probes, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub outcomes: Vec<(&'static str, u64)>,
    pub triggered: u64,
    /// Of all hits those that the kernel ran no program for.
    pub skipped: u64,
    /// Places that are attached now.
    pub places: usize,
}

impl Totals {
    #[must_use]
    pub fn of(&self, outcome: &str) -> u64 {
        self.outcomes.iter().filter(|(name, _)| *name == outcome).map(|(_, count)| count).sum()
    }

    /// Hits that were wanted and are not told, by reason.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let by_choice = ["delivered", "filtered", "sampled_out", "unfinished"];
        let lost = self.outcomes.iter().copied().filter(move |(outcome, _)| !by_choice.contains(outcome));
        lost.chain([("kernel_recursion", self.skipped)])
    }

    fn add(&mut self, counted: &Counted) {
        self.triggered += counted.triggered();
        for (name, count) in counted.outcomes() {
            match self.outcomes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => self.outcomes.push((name, count)),
            }
        }
    }
}

/// The way to the thread. Dropping it ends the thread, and with it all probes.
pub struct Follower {
    words: SyncSender<Word>,
    /// Those that are to be taken up: never waited for, never dropped.
    settings: Arc<Mutex<Option<Vec<Arc<Uprobe>>>>>,
    /// When a word found no room that was not made up for.
    missed: Option<Instant>,
    /// It was said.
    missed_said: bool,
    busy: Arc<Busy>,
    detached: Detached,
}

impl Follower {
    /// Starts it, with the programs loaded.
    pub fn start(uprobes: Uprobes, places: Places) -> std::io::Result<(Self, mpsc::Receiver<Answer>)> {
        let (words, listener) = sync_channel(WORDS);
        let (answers, told) = mpsc::channel(ANSWERS);
        let (detacher, ended) = Detacher::new();
        let (settings, busy) = (Arc::new(Mutex::new(None)), Arc::new(Busy::default()));
        let follow = Follow {
            new_settings: Arc::clone(&settings),
            busy: Arc::clone(&busy),
            uprobes,
            places,
            answers,
            probes: Vec::new(),
            members: HashMap::new(),
            groups: HashMap::new(),
            due: VecDeque::new(),
            ended: Totals::default(),
            buried: Vec::new(),
            swept: Instant::now(),
            look: Look::default(),
            pruned: Instant::now(),
            hierarchies: Hierarchies::of_this_process(),
            detacher,
        };
        thread::Builder::new().name("uprobes".to_owned()).spawn(move || follow.run(&listener))?;
        Ok((Self { words, settings, missed: None, missed_said: false, busy, detached: ended }, told))
    }

    /// Those that are there: told before anything else when there are probes for the first time.
    pub fn residents(&mut self, residents: Vec<Sighting>) {
        self.tell(Word::Residents(residents));
    }

    /// Never waits. Where a word finds no room, [`has_missed`](Self::has_missed) says so.
    pub fn seen(&mut self, seen: Sighting) {
        self.tell(Word::Seen(seen));
    }

    /// More is known of a container. `first`: its first process, which is in the container's own cgroup.
    pub fn described(&mut self, container: Arc<Container>, first: Option<u32>) {
        self.tell(Word::Described(container, first));
    }

    /// These are the probes from now on; those that stay lose nothing.
    pub fn settings(&mut self, probes: &[Uprobe]) {
        let probes = probes.iter().cloned().map(Arc::new).collect();
        *lock(&self.settings) = Some(probes);
        self.tell(Word::Settings);
    }

    /// What the thread is at and since when, if that is for too long: a file system may not answer.
    #[must_use]
    pub fn busy(&self) -> Option<(Duration, String)> {
        let busy = lock(&self.busy.0);
        let (since, with) = busy.as_ref()?;
        let lasts = since.elapsed();
        (lasts >= STUCK).then(|| (lasts, with.clone()))
    }

    /// What has been counted so far; never, if the thread is gone.
    pub fn count(&mut self) -> oneshot::Receiver<Totals> {
        let (answer, totals) = oneshot::channel();
        self.tell(Word::Count(answer));
        totals
    }

    /// Ends all probes; what was counted in all, and the end of what is attached. `None`: the thread does not answer in time,
    /// as a file system may not.
    pub async fn end(self) -> Option<(Totals, Detached)> {
        let deadline = tokio::time::Instant::now() + END;
        let (answer, totals) = oneshot::channel();
        let mut word = Word::End(answer);
        while let Err(TrySendError::Full(back)) = self.words.try_send(word) {
            if tokio::time::Instant::now() >= deadline {
                return None;
            }
            word = back;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let totals = tokio::time::timeout_at(deadline, totals).await.ok()?.ok()?;
        Some((totals, self.detached))
    }

    /// Whether words found no room some time ago, so that all who are there are to be told of again: once for each time.
    pub fn has_missed(&mut self) -> bool {
        self.missed.take_if(|since| since.elapsed() >= MISSED).is_some()
    }

    fn tell(&mut self, word: Word) {
        if let Err(TrySendError::Full(_)) = self.words.try_send(word) {
            if !std::mem::replace(&mut self.missed_said, true) {
                tracing::warn!("more happens than uprobes can follow: new processes may be probed late");
            }
            self.missed.get_or_insert_with(Instant::now);
        }
    }
}

/// What the thread is at, for whoever wonders why it does not come back.
#[derive(Default)]
struct Busy(Mutex<Option<(Instant, String)>>);

impl Busy {
    fn with(&self, what: &str) {
        *lock(&self.0) = Some((Instant::now(), what.to_owned()));
    }

    fn over(&self) {
        *lock(&self.0) = None;
    }
}

struct Follow {
    busy: Arc<Busy>,
    new_settings: Arc<Mutex<Option<Vec<Arc<Uprobe>>>>>,
    uprobes: Uprobes,
    places: Places,
    answers: mpsc::Sender<Answer>,
    probes: Vec<Arc<Uprobe>>,
    members: HashMap<MemberKey, Member>,
    groups: HashMap<GroupKey, Group>,
    /// Members that are looked at again then, the soonest first.
    due: VecDeque<(Instant, MemberKey)>,
    /// Of places that are gone.
    ended: Totals,
    /// Places whose last hits may still be read; they are forgotten with the sweep after next.
    buried: Vec<(Instant, PlaceId)>,
    swept: Instant,
    look: Look,
    /// When it was last seen which cgroups are gone.
    pruned: Instant,
    detacher: Detacher,
    hierarchies: Hierarchies,
}

impl Follow {
    fn run(mut self, words: &Receiver<Word>) {
        loop {
            let until = self.due.front().map_or(self.swept + SWEEP, |(due, _)| (*due).min(self.swept + SWEEP));
            let patience =
                if self.is_looking() { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            match words.recv_timeout(patience) {
                Ok(word) => {
                    if self.hear(word, words).is_break() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let settings = lock(&self.new_settings).take();
            if let Some(probes) = settings {
                self.settings(probes);
            }
            let now = Instant::now();
            self.look_at_due(now);
            if now.saturating_duration_since(self.swept) >= SWEEP {
                self.sweep(now);
            }
            self.look_on();
        }
    }

    /// A word and those that wait behind it: as much time as a bit of looking takes, so that neither waits for all of the other.
    fn hear(&mut self, first: Word, others: &Receiver<Word>) -> ControlFlow<()> {
        let until = Instant::now() + BIT;
        let mut next = Some(first);
        while let Some(word) = next {
            match word {
                Word::Residents(residents) => self.residents(residents),
                Word::Seen(seen) => self.seen(seen),
                Word::Described(container, first) => self.described(container, first),
                // Whoever asked may be gone.
                Word::Count(answer) => drop(answer.send(self.totals())),
                Word::End(answer) => {
                    self.hush();
                    drop(answer.send(self.totals()));
                    return ControlFlow::Break(());
                }
                // They are looked at before what comes behind.
                Word::Settings => return ControlFlow::Continue(()),
            }
            next = if Instant::now() < until { others.try_recv().ok() } else { None };
        }
        ControlFlow::Continue(())
    }

    fn totals(&mut self) -> Totals {
        self.look_at_calls();
        let mut totals = self.ended.clone();
        for place in self.groups.values().flat_map(|group| &group.places) {
            match self.uprobes.counted(*place) {
                Ok(counted) => totals.add(&counted),
                Err(error) => tracing::error!(%error, "what a probe has counted can't be read"),
            }
        }
        totals.skipped = self.uprobes.skipped();
        totals.places = self.groups.values().map(|group| group.places.len()).sum();
        totals
    }

    fn look_at_calls(&mut self) {
        if let Err(error) = self.uprobes.look_at_calls() {
            tracing::error!(%error, "which calls were pushed out can't be read");
        }
    }

    fn tell(&self, answer: Answer) {
        if self.answers.try_send(answer).is_err() {
            tracing::debug!("more is said of uprobes than is listened to");
        }
    }
}
