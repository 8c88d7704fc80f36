//! Containers and processes come in as they are seen, and the settings; probes are attached to what of them is wanted now, and
//! detached when the last that wanted them goes.
//!
//! On a thread of its own: reading a program and attaching to it take milliseconds, detaching takes longer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use namespan_ebpf::uprobe_wire::Operand;
use namespan_ebpf::wire::CgroupKey;
use tokio::sync::{mpsc, oneshot};

use super::attach::{At, Counted, Link, PlaceId, PlaceSpec, RealInode, Scope, Uprobes};
use super::elf::{self, Image, Trust};
use super::place::{Place, Places};
use super::registers;
use super::root::{OpenError, Opened, Root, Version};
use super::spec::{Binary, Target, Uprobe};
use crate::attach::refusal::chain;
use crate::enrich::container::Container;
use crate::enrich::procfs::Stat;
use crate::event::ProcessId;
use crate::list::host::processes;

/// Words to the thread that may wait.
const WORDS: usize = 8192;
/// Answers that may wait.
const ANSWERS: usize = 1024;
/// Files whose probes wait to be detached.
const GROUPS_ENDING: usize = 4096;
/// From one reason why a probe is not attached to the next, at least.
const SAID: Duration = Duration::from_secs(1);
/// Most that the thread is waited for at the end.
const END: Duration = Duration::from_secs(2);
/// Files of one probe in one container; of more the newest are not probed.
const FILES: usize = 16;
/// Cgroups of one container.
const CGROUPS: usize = 256;
/// Processes remembered of one container, for their files.
const PROCESSES: usize = 32;
/// Containers remembered.
const MEMBERS: usize = 8192;
/// From one look at who is still there to the next.
const SWEEP: Duration = Duration::from_secs(2);
/// Longest time from one look at what is not there to the next.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How soon after an exec the libraries of its process are looked at: it has to load them first.
const LOADED: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3)];
/// So many processes are looked at then, the newest.
const LOADING: usize = 8;
/// Why the return of a Go function is not probed.
const GO_RETURN: &str = "it is a Go function: a return probe would break its stack, which moves; probe its entry, or the offsets \
                         of its `ret` instructions";

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
    Described(Arc<Container>),
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
    /// It can't be attached there; told once for each reason.
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
    /// Words that found no room.
    missed: u64,
}

impl Follower {
    /// Starts it, with the programs loaded.
    pub fn start(uprobes: Uprobes, places: Places) -> std::io::Result<(Self, mpsc::Receiver<Answer>)> {
        let (words, listener) = sync_channel(WORDS);
        let (answers, told) = mpsc::channel(ANSWERS);
        let (detacher, links) = sync_channel(GROUPS_ENDING);
        thread::Builder::new()
            .name("uprobes-end".to_owned())
            .spawn(move || links.into_iter().for_each(drop::<Vec<_>>))?;
        let settings = Arc::new(Mutex::new(None));
        let follow = Follow {
            new_settings: Arc::clone(&settings),
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
            detacher,
        };
        thread::Builder::new().name("uprobes".to_owned()).spawn(move || follow.run(&listener))?;
        Ok((Self { words, settings, missed: 0 }, told))
    }

    /// Those that are there when it begins, or when there are probes for the first time: told before anything else.
    pub fn residents(&mut self, residents: Vec<Sighting>) {
        self.tell(Word::Residents(residents));
    }

    /// Never waits. A word that finds no room is told of with the container's next exec.
    pub fn seen(&mut self, seen: Sighting) {
        self.tell(Word::Seen(seen));
    }

    /// More is known of a container.
    pub fn described(&mut self, container: Arc<Container>) {
        self.tell(Word::Described(container));
    }

    /// These are the probes from now on; those that stay lose nothing.
    pub fn settings(&mut self, probes: &[Uprobe]) {
        let probes = probes.iter().cloned().map(Arc::new).collect();
        *lock(&self.settings) = Some(probes);
        self.tell(Word::Settings);
    }

    /// What has been counted so far; never, if the thread is gone.
    pub fn count(&mut self) -> oneshot::Receiver<Totals> {
        let (answer, totals) = oneshot::channel();
        self.tell(Word::Count(answer));
        totals
    }

    /// Ends all probes; what was counted in all. `None`: the thread does not answer in time, as a file system may not.
    pub async fn end(self) -> Option<Totals> {
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
        tokio::time::timeout_at(deadline, totals).await.ok()?.ok()
    }

    fn tell(&mut self, word: Word) {
        if let Err(TrySendError::Full(_)) = self.words.try_send(word) {
            if self.missed == 0 {
                tracing::warn!("more happens than uprobes can follow: new processes may be probed late");
            }
            self.missed += 1;
        }
    }
}

/// Names a container, or the host.
type MemberKey = Option<Box<str>>;

/// A container, or the host.
struct Member {
    container: Option<Arc<Container>>,
    cgroups: HashSet<CgroupKey>,
    /// The first and the newest.
    processes: VecDeque<Who>,
    /// By the probe's name.
    fits: HashMap<String, Fit>,
}

/// A probe that concerns a member.
struct Fit {
    files: Vec<FileKey>,
    /// As which those are seen.
    known: HashSet<Version>,
    /// Those that can't be probed, and why, the last first.
    bad: VecDeque<(Version, String)>,
    /// What was said of it last.
    refused: Option<String>,
    said: Option<Instant>,
    /// As long as there is no file, it is looked for again then; each time after twice as long.
    again: Instant,
    pause: Duration,
}

impl Fit {
    fn new(now: Instant) -> Self {
        Self {
            files: Vec::new(),
            known: HashSet::new(),
            bad: VecDeque::new(),
            refused: None,
            said: None,
            again: now + SWEEP,
            pause: SWEEP,
        }
    }
}

/// Why a probe is not attached.
struct Refusal {
    reason: String,
    /// It may work in a moment.
    may_pass: bool,
}

impl Refusal {
    fn lasting(reason: String) -> Self {
        Self { reason, may_pass: false }
    }
}

/// Names a file that probes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FileKey {
    /// Whoever has it.
    Real(RealInode),
    /// The kernel does not tell who else has it.
    Own { member: MemberKey, device: u64, inode: u64 },
}

type GroupKey = (String, FileKey);

/// The places of one probe in one file.
struct Group {
    places: Vec<PlaceId>,
    links: Vec<Link>,
    holders: HashSet<MemberKey>,
    /// As long as it is open, the inode is this file's.
    file: File,
}

struct Follow {
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
    /// To a thread that drops them: the kernel takes a tenth of a second for each.
    detacher: SyncSender<Vec<Link>>,
}

impl Follow {
    fn run(mut self, words: &Receiver<Word>) {
        loop {
            let until = self.due.front().map_or(self.swept + SWEEP, |(due, _)| (*due).min(self.swept + SWEEP));
            match words.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Word::Residents(residents)) => self.residents(residents),
                Ok(Word::Seen(seen)) => {
                    let process = seen.process;
                    if let Some(key) = self.note(seen, PROCESSES) {
                        self.fit_with(&key, &[process], false);
                        self.look_at_libraries(&key);
                    }
                }
                Ok(Word::Described(container)) => self.described(container),
                // Whoever asked may be gone.
                Ok(Word::Count(answer)) => drop(answer.send(self.totals())),
                Ok(Word::End(answer)) => {
                    self.hush();
                    drop(answer.send(self.totals()));
                    return;
                }
                // The settings are looked at below.
                Ok(Word::Settings) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let settings = lock(&self.new_settings).take();
            if let Some(probes) = settings {
                self.settings(probes);
            }
            let now = Instant::now();
            while self.due.front().is_some_and(|(due, _)| *due <= now) {
                if let Some((_, key)) = self.due.pop_front()
                    && let Some(member) = self.members.get(&key)
                {
                    let newest: Vec<_> = member.processes.iter().rev().take(LOADING).copied().collect();
                    self.fit_with(&key, &newest, false);
                }
            }
            if now.saturating_duration_since(self.swept) >= SWEEP {
                self.sweep(now);
            }
        }
    }

    fn residents(&mut self, residents: Vec<Sighting>) {
        let mut keys = HashSet::new();
        for resident in residents {
            // All of them are looked at, and few remembered.
            keys.extend(self.note(resident, usize::MAX));
        }
        for key in keys {
            self.fit(&key, false);
            if let Some(member) = self.members.get_mut(&key) {
                while member.processes.len() > PROCESSES {
                    member.processes.remove(1);
                }
            }
        }
    }

    /// Whose it is, unless there is no room.
    fn note(&mut self, Sighting { container, cgroup, process }: Sighting, most: usize) -> Option<MemberKey> {
        let key: MemberKey = container.as_ref().map(|container| container.key().into());
        if !self.members.contains_key(&key) && self.members.len() >= MEMBERS {
            tracing::warn!(members = MEMBERS, "too many containers are followed for uprobes: a new one is not");
            return None;
        }
        let is_host = key.is_none();
        let member = self.members.entry(key.clone()).or_insert_with(|| Member {
            container: container.clone(),
            cgroups: HashSet::new(),
            processes: VecDeque::new(),
            fits: HashMap::new(),
        });
        // One that is forgotten and found again has no name for a while.
        if container.as_ref().is_some_and(|container| container.name.is_some() || member.container.is_none()) {
            member.container = container;
        }
        // The host's are probed whatever their cgroup.
        let has_room = member.cgroups.len() < CGROUPS;
        let is_new = !is_host && has_room && member.cgroups.insert(cgroup);
        if most <= PROCESSES {
            member.processes.retain(|known| known.pid() != process.pid());
            if member.processes.len() >= most {
                member.processes.remove(1);
            }
        }
        member.processes.push_back(process);
        if is_new {
            self.allow(&key, cgroup);
        }
        Some(key)
    }

    /// They are there some time after the exec.
    fn look_at_libraries(&mut self, key: &MemberKey) {
        let Some(member) = self.members.get(key) else { return };
        let maps_libraries =
            |probe: &Arc<Uprobe>| matches!(probe.binary, Binary::Library(_)) && concerns(probe, key, member);
        if self.probes.iter().any(maps_libraries) {
            for delay in LOADED {
                self.again(delay, key);
            }
        }
    }

    fn again(&mut self, delay: Duration, key: &MemberKey) {
        // One look serves all execs of a while.
        let (due, slack) = (Instant::now() + delay, delay / 2);
        if self.due.iter().any(|(other, of)| of == key && *other >= due && *other <= due + slack) {
            return;
        }
        let at = self.due.partition_point(|(other, _)| *other <= due);
        if self.due.len() < WORDS {
            self.due.insert(at, (due, key.clone()));
        }
    }

    fn described(&mut self, container: Arc<Container>) {
        let key: MemberKey = Some(container.key().into());
        if let Some(member) = self.members.get_mut(&key) {
            member.container = Some(container);
            self.fit(&key, false);
            self.look_at_libraries(&key);
        }
    }

    fn settings(&mut self, probes: Vec<Arc<Uprobe>>) {
        let stays = |probe: &Arc<Uprobe>| probes.iter().any(|other| other == probe);
        let gone: Vec<_> = self.probes.iter().filter(|probe| !stays(probe)).map(|probe| probe.name.clone()).collect();
        for name in gone {
            let keys: Vec<_> = self.groups.keys().filter(|(of, _)| *of == name).cloned().collect();
            for key in keys {
                self.end_group(&key);
            }
            for member in self.members.values_mut() {
                member.fits.remove(&name);
            }
        }
        self.probes = probes;
        let pids: Vec<_> = self.probes.iter().filter_map(|probe| Some((Arc::clone(probe), pid_of(probe)?))).collect();
        for (probe, pid) in pids {
            // Nobody's member: it has a key that no container has.
            let key: MemberKey = Some(pid_key(pid));
            if self.members.contains_key(&key) {
                continue;
            }
            let Some(stat) = Stat::of(pid) else {
                self.tell(Answer::Refused { probe, container: None, reason: format!("there is no process {pid}") });
                continue;
            };
            let processes = VecDeque::from([Who::Elder(pid, stat)]);
            let member = Member { container: None, cgroups: HashSet::new(), processes, fits: HashMap::new() };
            self.members.insert(key, member);
        }
        if self.probes.iter().any(|probe| probe.target == Target::Host) {
            self.members.entry(None).or_insert_with(|| {
                // Any process has the host's root; libraries are looked for everywhere.
                let own = std::process::id();
                let processes = Stat::of(own).map(|stat| Who::Elder(own, stat)).into_iter().collect();
                Member { container: None, cgroups: HashSet::new(), processes, fits: HashMap::new() }
            });
        }
        let keys: Vec<_> = self.members.keys().cloned().collect();
        for key in &keys {
            self.fit(key, false);
        }
        // A library may be mapped by any of them.
        self.look_everywhere(&keys.into_iter().collect());
    }

    /// Looks at all processes of some members, not only at those that are remembered.
    fn look_everywhere(&mut self, keys: &HashSet<MemberKey>) {
        let maps_libraries = |probe: &Arc<Uprobe>| matches!(probe.binary, Binary::Library(_));
        if keys.is_empty() || !self.probes.iter().any(maps_libraries) {
            return;
        }
        let mut found: HashMap<MemberKey, Vec<Who>> = HashMap::new();
        for process in processes().unwrap_or_default() {
            let key: MemberKey = process.key().map(Into::into);
            if keys.contains(&key)
                && let Some(stat) = Stat::of(process.pid)
            {
                found.entry(key).or_default().push(Who::Elder(process.pid, stat));
            }
        }
        for (key, processes) in found {
            let Some(member) = self.members.get(&key) else { continue };
            let libraries = self.probes.iter().filter(|probe| maps_libraries(probe) && concerns(probe, &key, member));
            for probe in libraries.cloned().collect::<Vec<_>>() {
                // What stands in the way is said where the usual ones are looked at.
                let _refused = self.fit_one(&key, &probe, &processes);
            }
        }
    }

    /// Attaches what concerns a member and is not attached yet. `has_waited`: what did not work so far is said.
    fn fit(&mut self, key: &MemberKey, has_waited: bool) {
        if let Some(member) = self.members.get(key) {
            let processes: Vec<_> = member.processes.iter().copied().collect();
            self.fit_with(key, &processes, has_waited);
        }
    }

    /// As [`fit`](Self::fit), by the files of these processes.
    fn fit_with(&mut self, key: &MemberKey, processes: &[Who], has_waited: bool) {
        let Some(member) = self.members.get(key) else { return };
        let wanted: Vec<_> = self.probes.iter().filter(|probe| concerns(probe, key, member)).cloned().collect();
        let unwanted: Vec<_> =
            member.fits.keys().filter(|name| wanted.iter().all(|probe| probe.name != **name)).cloned().collect();
        // It was described anew.
        for name in unwanted {
            self.leave(key, &name);
        }
        let now = Instant::now();
        for probe in wanted {
            let fitted = self.fit_one(key, &probe, processes);
            let Some(member) = self.members.get_mut(key) else { return };
            let fit = member.fits.entry(probe.name.clone()).or_insert_with(|| Fit::new(now));
            let Err(Refusal { reason, may_pass }) = fitted else { continue };
            // Who has it in one file need not have it in another.
            if !fit.files.is_empty() || (may_pass && !has_waited) || fit.refused.as_ref() == Some(&reason) {
                continue;
            }
            // Not each of two reasons in turn, for ever.
            if fit.said.is_some_and(|said| now.saturating_duration_since(said) < SAID) {
                continue;
            }
            (fit.refused, fit.said) = (Some(reason.clone()), Some(now));
            let container = member.container.clone();
            self.tell(Answer::Refused { probe, container, reason });
        }
    }

    fn fit_one(&mut self, key: &MemberKey, probe: &Arc<Uprobe>, processes: &[Who]) -> Result<(), Refusal> {
        let mut refusal = None;
        let mut looked_at = HashSet::new();
        for process in processes {
            let opened = process.root().and_then(|root| match &probe.binary {
                Binary::Path(path) => root.open(path).map(|opened| (root, opened)),
                Binary::Library(name) => root.open_library(name).map(|opened| (root, opened)),
            });
            match opened {
                Ok((root, opened)) => {
                    if looked_at.insert((opened.device, opened.inode))
                        && let Err(reason) = self.take(key, probe, &root, opened)
                    {
                        refusal = Some(Refusal::lasting(reason));
                    }
                }
                // Another may be there.
                Err(OpenError::Gone { .. }) => {}
                Err(error) => refusal = Some(Refusal { reason: chain(&error), may_pass: error.may_pass() }),
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Probes a file for a member, unless it does so already.
    fn take(&mut self, member_key: &MemberKey, probe: &Arc<Uprobe>, root: &Root, opened: Opened) -> Result<(), String> {
        let seen_as = opened.version();
        let fit = self.members.get(member_key).and_then(|member| member.fits.get(&probe.name));
        if let Some(fit) = fit {
            if fit.known.contains(&seen_as) {
                return Ok(());
            }
            // The same file is as bad as before.
            if let Some((_, reason)) = fit.bad.iter().find(|(version, _)| *version == seen_as) {
                return Err(reason.clone());
            }
            if fit.files.len() >= FILES {
                return Err(format!("{}: the probe is in {FILES} other files of the target already", opened.path));
            }
        }
        let file_key = match self.uprobes.real_inode(opened.file.as_fd()) {
            Ok(real) => FileKey::Real(real),
            Err(_) => FileKey::Own { member: member_key.clone(), device: opened.device, inode: opened.inode },
        };
        let key = (probe.name.clone(), file_key.clone());
        let Some(member) = self.members.get_mut(member_key) else { return Ok(()) };
        let fit = member.fits.entry(probe.name.clone()).or_insert_with(|| Fit::new(Instant::now()));
        if fit.files.contains(&file_key) {
            return Ok(());
        }
        let cgroups: Vec<_> = member.cgroups.iter().copied().collect();
        let container = member.container.clone();
        let binary = opened.path.clone();
        let is_new = !self.groups.contains_key(&key);
        if is_new {
            match self.attach(probe, root, opened, &cgroups) {
                Ok(group) => drop(self.groups.insert(key.clone(), group)),
                Err(reason) => {
                    if let Some(fit) =
                        self.members.get_mut(member_key).and_then(|member| member.fits.get_mut(&probe.name))
                    {
                        fit.bad.truncate(FILES - 1);
                        fit.bad.push_front((seen_as, reason.clone()));
                    }
                    return Err(reason);
                }
            }
        }
        let Some(group) = self.groups.get_mut(&key) else { return Ok(()) };
        group.holders.insert(member_key.clone());
        let places = group.places.clone();
        if let Some(fit) = self.members.get_mut(member_key).and_then(|member| member.fits.get_mut(&probe.name)) {
            fit.files.push(file_key);
            fit.known.insert(seen_as);
            fit.refused = None;
        }
        if is_new {
            // Its cgroups were allowed before it was attached.
            self.tell(Answer::Attached { probe: Arc::clone(probe), container, binary, places: places.len() });
        } else {
            for place in &places {
                for cgroup in &cgroups {
                    self.uprobes.allow(*place, *cgroup).map_err(|error| chain(&error))?;
                }
            }
            let container = container.map_or_else(String::new, |container| container.id.clone());
            tracing::debug!(probe = probe.name, container, binary, "probing a file that is probed for others already");
        }
        Ok(())
    }

    /// All places of a probe in a file, or none.
    fn attach(
        &mut self,
        probe: &Arc<Uprobe>,
        root: &Root,
        Opened { file, path, .. }: Opened,
        cgroups: &[CgroupKey],
    ) -> Result<Group, String> {
        let copy = file.try_clone().map_err(|error| format!("{path}: {error}"))?;
        let of_file = |error: &elf::ElfError| format!("{path}: {}", chain(error));
        let mut image = Image::open(copy).map_err(|error| of_file(&error))?;
        let places = image.resolve(&probe.function, probe.kind).or_else(|error| {
            let trust = if root.is_ours() { Trust::Host } else { Trust::Container };
            // Only a stripped program has anything to gain from its separate symbols.
            if image.add_debug_file(root, trust)? { image.resolve(&probe.function, probe.kind) } else { Err(error) }
        });
        let places = places.map_err(|error| of_file(&error))?;
        let scope = match probe.target {
            Target::Containers(_) => Scope::Cgroups,
            Target::Host => Scope::Host,
            Target::Pid(pid) => Scope::Tgid(pid),
        };
        let mut group = Group { places: Vec::new(), links: Vec::new(), holders: HashSet::new(), file };
        for found in places {
            let attached = self.attach_one(probe, scope, &path, found, cgroups, &mut group);
            if let Err(refusal) = attached {
                self.bury(group);
                return Err(refusal);
            }
        }
        Ok(group)
    }

    fn attach_one(
        &mut self,
        probe: &Arc<Uprobe>,
        scope: Scope,
        path: &str,
        found: elf::Place,
        cgroups: &[CgroupKey],
        group: &mut Group,
    ) -> Result<(), String> {
        let elf::Place { function, offset, usdt, returns, .. } = found;
        let of_function = |reason: &str| format!("{path}: {function}: {reason}");
        if !returns.is_empty() {
            return Err(of_function(GO_RETURN));
        }
        let spec = match &usdt {
            None => PlaceSpec::of_function(probe, scope),
            Some(usdt) => {
                let operands = operands(probe, usdt).map_err(|reason| of_function(&reason))?;
                PlaceSpec::of_operands(probe, scope, &operands)
            }
        };
        let id = spec.and_then(|spec| self.uprobes.place(&spec)).map_err(|error| of_function(&chain(&error)))?;
        group.places.push(id);
        let binary = path.to_owned();
        self.places
            .insert(id, Arc::new(Place { probe: Arc::clone(probe), function: function.clone(), binary, offset }));
        // Before there are hits.
        for cgroup in cgroups {
            self.uprobes.allow(id, *cgroup).map_err(|error| of_function(&chain(&error)))?;
        }
        let at = At { offset, semaphore: usdt.and_then(|usdt| usdt.semaphore_offset) };
        let link = self.uprobes.attach(group.file.as_fd(), id, at).map_err(|error| of_function(&chain(&error)))?;
        group.links.push(link);
        Ok(())
    }

    /// A cgroup of a member that was not known.
    fn allow(&mut self, key: &MemberKey, cgroup: CgroupKey) {
        let held: Vec<_> = self.groups.values().filter(|group| group.holders.contains(key)).collect();
        let places: Vec<_> = held.iter().flat_map(|group| group.places.iter().copied()).collect();
        for place in places {
            if let Err(error) = self.uprobes.allow(place, cgroup) {
                tracing::error!(%error, "a cgroup can't be probed");
            }
        }
    }

    /// A probe is no longer a member's.
    fn leave(&mut self, member_key: &MemberKey, probe: &str) {
        let Some(member) = self.members.get_mut(member_key) else { return };
        let Some(fit) = member.fits.remove(probe) else { return };
        let cgroups: Vec<_> = member.cgroups.iter().copied().collect();
        for file in fit.files {
            let key = (probe.to_owned(), file);
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.holders.remove(member_key);
            if group.holders.is_empty() {
                self.end_group(&key);
                continue;
            }
            for place in group.places.clone() {
                for cgroup in &cgroups {
                    self.uprobes.disallow(place, *cgroup);
                }
            }
        }
    }

    fn end_group(&mut self, key: &GroupKey) {
        if let Some(group) = self.groups.remove(key) {
            self.bury(group);
        }
    }

    fn bury(&mut self, group: Group) {
        let Group { places, links, .. } = group;
        for place in places {
            match self.uprobes.retire(place) {
                Ok(counted) => self.ended.add(&counted),
                Err(error) => tracing::error!(%error, "what a probe has counted can't be read"),
            }
            self.buried.push((Instant::now(), place));
        }
        // With no room there they are dropped here, and everything else waits.
        let _dropped = self.detacher.try_send(links);
    }

    /// Who is gone is forgotten, and with the last who had it, what was attached to a file.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let places = &self.places;
        self.buried.retain(|(since, place)| {
            let stays = now.saturating_duration_since(*since) < 2 * SWEEP;
            if !stays {
                places.remove(*place);
            }
            stays
        });
        for member in self.members.values_mut() {
            member.processes.retain(|process| process.lives());
        }
        let deserted =
            |(key, member): (&MemberKey, &Member)| (key.is_some() && member.processes.is_empty()).then(|| key.clone());
        let mut deserted: HashSet<_> = self.members.iter().filter_map(deserted).collect();
        if !deserted.is_empty() {
            // Some of their processes may not have been seen.
            let Ok(processes) = processes() else { return };
            for process in processes {
                let key: MemberKey = process.key().map(Into::into);
                if deserted.remove(&key)
                    && let Some(member) = self.members.get_mut(&key)
                    && let Some(stat) = Stat::of(process.pid)
                {
                    member.processes.push_back(Who::Elder(process.pid, stat));
                }
            }
        }
        for key in deserted {
            self.forget(&key);
        }
        // What was refused may work by now, and the kernel tells nobody.
        let mut due = HashSet::new();
        for (key, member) in &mut self.members {
            for fit in member.fits.values_mut().filter(|fit| fit.files.is_empty() && fit.again <= now) {
                fit.pause = (2 * fit.pause).min(PAUSE_MAX);
                fit.again = now + fit.pause;
                due.insert(key.clone());
            }
        }
        self.look_everywhere(&due);
        for key in &due {
            self.fit(key, true);
        }
    }

    fn forget(&mut self, key: &MemberKey) {
        let Some(member) = self.members.get(key) else { return };
        let names: Vec<_> = member.fits.keys().cloned().collect();
        for name in names {
            self.leave(key, &name);
        }
        self.members.remove(key);
    }

    /// From now on there are no hits.
    fn hush(&mut self) {
        let keys: Vec<_> = self.groups.keys().cloned().collect();
        for key in keys {
            self.end_group(&key);
        }
    }

    fn totals(&self) -> Totals {
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

    fn tell(&self, answer: Answer) {
        if self.answers.try_send(answer).is_err() {
            tracing::debug!("more is said of uprobes than is listened to");
        }
    }
}

fn concerns(probe: &Uprobe, key: &MemberKey, member: &Member) -> bool {
    match &probe.target {
        Target::Containers(selectors) => member
            .container
            .as_ref()
            .is_some_and(|container| selectors.iter().any(|selector| selector.holds(container))),
        Target::Host => key.is_none(),
        Target::Pid(pid) => *key == Some(pid_key(*pid)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid_of(probe: &Uprobe) -> Option<u32> {
    if let Target::Pid(pid) = probe.target { Some(pid) } else { None }
}

/// No container's key: those of containers have no space.
fn pid_key(pid: u32) -> Box<str> {
    format!("process {pid}").into()
}

/// What the kernel reads of a USDT probe's operands; only those that the probe asks for need be readable.
fn operands(probe: &Uprobe, usdt: &elf::Usdt) -> Result<Vec<Operand>, String> {
    let mut operands = Vec::new();
    for (position, operand) in usdt.operands.iter().enumerate() {
        let is_asked_for = probe.args.iter().any(|capture| usize::from(capture.position) == position);
        let read = operand.as_ref().map_err(Clone::clone).and_then(registers::operand);
        match read {
            Ok(operand) => operands.push(operand),
            Err(reason) if is_asked_for => return Err(format!("its argument {position} can't be read: {reason}")),
            Err(_) => operands.push(Operand::constant(0)),
        }
    }
    Ok(operands)
}
