//! Who is followed: containers, the host and single processes; which probes concern them, and in which of their files those
//! are looked for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use namespan_ebpf::wire::CgroupKey;

use super::groups::FileKey;
use super::{Answer, Follow, SWEEP, Sighting, WORDS, Who};
use crate::attach::refusal::chain;
use crate::enrich::container::Container;
use crate::enrich::procfs::{self, Stat};
use crate::list::host::processes;
use crate::uprobe::root::{OpenError, Root, Version};
use crate::uprobe::spec::{Binary, Target, Uprobe};

/// From one reason why a probe is not attached to the next, at least.
const SAID: Duration = Duration::from_secs(1);
/// Cgroups of one container.
const CGROUPS: usize = 256;
/// Processes remembered of one container, for their files.
const PROCESSES: usize = 32;
/// Containers remembered.
const MEMBERS: usize = 8192;
/// Longest time from one look at what is not there to the next.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How soon after an exec the libraries of its process are looked at: it has to load them first.
const LOADED: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(3)];
/// So many processes are looked at then, the newest.
const LOADING: usize = 8;

/// Time for processes of any members, at once; and for words, before it is the processes' turn again.
pub(super) const BIT: Duration = Duration::from_millis(100);
/// A container with more cgroups has some that are gone, maybe.
const FEW_CGROUPS: usize = 8;
/// From one look for those to the next.
const PRUNE: Duration = Duration::from_secs(10);

/// Who is looked at bit by bit.
#[derive(Default)]
pub(super) struct Look {
    /// The next time.
    wanted: HashSet<MemberKey>,
    processes: VecDeque<(MemberKey, Who)>,
    /// Of whom it is said afterwards what did not work.
    then: HashSet<MemberKey>,
}

/// Names a container, or the host.
pub(super) type MemberKey = Option<Box<str>>;

/// A container, or the host.
pub(super) struct Member {
    pub(super) container: Option<Arc<Container>>,
    /// Those that are probed.
    pub(super) cgroups: HashSet<CgroupKey>,
    /// Those that there was no room for, which are tried again; of more some.
    waiting: HashSet<CgroupKey>,
    /// That there are such was said.
    waiting_said: bool,
    /// The first and the newest.
    processes: VecDeque<Who>,
    /// By the probe's name.
    pub(super) fits: HashMap<String, Fit>,
}

/// A probe that concerns a member.
pub(super) struct Fit {
    pub(super) files: Vec<FileKey>,
    /// As which those are seen.
    pub(super) known: HashSet<Version>,
    /// Those that can't be probed, and why, the last first.
    pub(super) bad: VecDeque<Bad>,
    /// What was said of it last.
    pub(super) refused: Option<String>,
    said: Option<Instant>,
    /// As long as there is no file, or no room for one, it is looked for again then; each time after twice as long.
    again: Instant,
    pause: Duration,
}

impl Member {
    /// In no container.
    fn outside(process: Option<Who>) -> Self {
        Self {
            container: None,
            cgroups: HashSet::new(),
            waiting: HashSet::new(),
            waiting_said: false,
            processes: process.into_iter().collect(),
            fits: HashMap::new(),
        }
    }
}

impl Fit {
    /// There may be room by now.
    fn hope(&mut self) {
        self.bad.retain(|bad| bad.refusal.why == Why::File);
    }

    fn waits(&self) -> bool {
        self.files.is_empty() || self.bad.iter().any(|bad| bad.refusal.why != Why::File)
    }

    pub(super) fn new(now: Instant) -> Self {
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

/// A file that can't be probed as it is, or now.
pub(super) struct Bad {
    pub(super) version: Version,
    pub(super) refusal: Refusal,
}

/// Why a probe is not attached.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The file is so: another may be right.
    File,
    /// It may be there in a moment.
    Absent,
    /// The file could be probed, were there room.
    Room,
}

impl Refusal {
    fn of(error: &OpenError) -> Self {
        Self { reason: chain(error), why: if error.may_pass() { Why::Absent } else { Why::File } }
    }
}

/// What a look at the files of some processes has found for one probe.
#[derive(Default)]
struct Found {
    files: HashSet<(u64, u64)>,
    refusal: Option<Refusal>,
}

impl Follow {
    pub(super) fn residents(&mut self, residents: Vec<Sighting>) {
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

    pub(super) fn seen(&mut self, seen: Sighting) {
        let process = seen.process;
        if let Some(key) = self.note(seen, PROCESSES) {
            self.fit_with(&key, &[process], false);
            self.look_at_libraries(&key);
        }
    }

    /// Members of which it is time to look again.
    pub(super) fn look_at_due(&mut self, now: Instant) {
        while self.due.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.due.pop_front()
                && let Some(member) = self.members.get(&key)
            {
                let newest: Vec<_> = member.processes.iter().rev().take(LOADING).copied().collect();
                self.fit_with(&key, &newest, false);
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
            waiting: HashSet::new(),
            waiting_said: false,
            processes: VecDeque::new(),
            fits: HashMap::new(),
        });
        // One that is forgotten and found again has no name for a while.
        if container.as_ref().is_some_and(|container| container.name.is_some() || member.container.is_none()) {
            member.container = container;
        }
        // The host's are probed whatever their cgroup.
        let is_new = !is_host && !member.cgroups.contains(&cgroup);
        if most <= PROCESSES {
            member.processes.retain(|known| known.pid() != process.pid());
            if member.processes.len() >= most {
                member.processes.remove(1);
            }
        }
        member.processes.push_back(process);
        if is_new {
            self.admit(&key, cgroup);
        }
        Some(key)
    }

    /// Has a cgroup probed, now or when there is room. Whether it is now.
    fn admit(&mut self, key: &MemberKey, cgroup: CgroupKey) -> bool {
        let Some(member) = self.members.get(key) else { return false };
        let refused = if member.cgroups.len() < CGROUPS {
            self.allow(key, cgroup).err().map(|refusal| refusal.reason)
        } else {
            Some(format!("{CGROUPS} cgroups of it are probed already, and of one container no more are"))
        };
        let Some(member) = self.members.get_mut(key) else { return false };
        let Some(reason) = refused else {
            member.waiting.remove(&cgroup);
            return member.cgroups.insert(cgroup);
        };
        if member.waiting.len() < CGROUPS {
            member.waiting.insert(cgroup);
        }
        if !std::mem::replace(&mut member.waiting_said, true) {
            let container = member.container.as_ref().map_or("", |container| &*container.id);
            tracing::warn!(container, reason, "processes of a container in some of its cgroups are not probed");
        }
        false
    }

    /// Cgroups that there was no room for, as long as there is some.
    fn admit_waiting(&mut self) {
        let waits = |(key, member): (&MemberKey, &Member)| (!member.waiting.is_empty()).then(|| key.clone());
        let keys: Vec<_> = self.members.iter().filter_map(waits).collect();
        for key in keys {
            let waiting = self.members.get(&key).map(|member| member.waiting.clone()).unwrap_or_default();
            let has_room = waiting.into_iter().all(|cgroup| self.admit(&key, cgroup));
            if has_room && let Some(member) = self.members.get_mut(&key) {
                member.waiting_said = false;
            }
        }
    }

    /// They are there some time after the exec.
    fn look_at_libraries(&mut self, key: &MemberKey) {
        let Some(member) = self.members.get(key) else { return };
        if self.probes.iter().any(|probe| maps_libraries(probe) && concerns(probe, key, member)) {
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

    pub(super) fn described(&mut self, container: Arc<Container>, first: Option<u32>) {
        let key: MemberKey = Some(container.key().into());
        if let Some(member) = self.members.get_mut(&key) {
            member.container = Some(container);
            self.fit(&key, false);
            self.look_at_libraries(&key);
            return;
        }
        // Nothing of it was seen to exec, and may never be.
        let Some(pid) = first else { return };
        let Some(stat) = Stat::of(pid) else { return };
        let Some(cgroups) = procfs::cgroups(pid) else { return };
        // It is still the same process, and no other one of this pid.
        if Stat::of(pid) == Some(stat) {
            let cgroup = self.hierarchies.key_of(&cgroups);
            self.seen(Sighting { container: Some(container), cgroup, process: Who::Elder(pid, stat) });
        }
    }

    pub(super) fn settings(&mut self, probes: Vec<Arc<Uprobe>>) {
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
        // Those that are gone may have made room.
        for fit in self.members.values_mut().flat_map(|member| member.fits.values_mut()) {
            fit.hope();
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
            self.members.insert(key, Member::outside(Some(Who::Elder(pid, stat))));
        }
        if self.probes.iter().any(|probe| probe.target == Target::Host) {
            self.members.entry(None).or_insert_with(|| {
                // Any process has the host's root; libraries are looked for everywhere.
                let own = std::process::id();
                Member::outside(Stat::of(own).map(|stat| Who::Elder(own, stat)))
            });
        }
        let keys: Vec<_> = self.members.keys().cloned().collect();
        for key in &keys {
            self.fit(key, false);
        }
        // A library may be mapped by any of them.
        self.look_everywhere(keys);
    }

    /// Looks at all processes of some members, not only at those that are remembered: in a while, and bit by bit.
    fn look_everywhere(&mut self, keys: impl IntoIterator<Item = MemberKey>) {
        if self.probes.iter().any(|probe| maps_libraries(probe)) {
            self.look.wanted.extend(keys);
        }
    }

    pub(super) fn is_looking(&self) -> bool {
        !self.look.wanted.is_empty() || !self.look.processes.is_empty() || !self.look.then.is_empty()
    }

    /// A bit of what [`look_everywhere`](Self::look_everywhere) began: others wait meanwhile.
    pub(super) fn look_on(&mut self) {
        let until = Instant::now() + BIT;
        if self.look.processes.is_empty() && !self.look.wanted.is_empty() {
            let keys = std::mem::take(&mut self.look.wanted);
            for process in processes().unwrap_or_default() {
                let key: MemberKey = process.key().map(Into::into);
                if keys.contains(&key)
                    && let Some(stat) = Stat::of(process.pid)
                {
                    self.look.processes.push_back((key, Who::Elder(process.pid, stat)));
                }
            }
        }
        while Instant::now() < until
            && let Some((key, process)) = self.look.processes.pop_front()
        {
            let Some(member) = self.members.get(&key) else { continue };
            let libraries = self.probes.iter().filter(|probe| maps_libraries(probe) && concerns(probe, &key, member));
            let libraries: Vec<_> = libraries.cloned().collect();
            // What stands in the way is said where the usual ones are looked at.
            let _refused = self.look_at(&key, &libraries, &[process]);
        }
        if self.look.wanted.is_empty() && self.look.processes.is_empty() {
            for key in std::mem::take(&mut self.look.then) {
                self.fit(&key, true);
            }
        }
    }

    /// Cgroups that are gone are forgotten.
    fn prune(&mut self, now: Instant) {
        let many = self.members.values().any(|member| member.cgroups.len() > FEW_CGROUPS);
        if !many || now.saturating_duration_since(self.pruned) < PRUNE {
            return;
        }
        self.pruned = now;
        let Some(live) = self.hierarchies.live() else { return };
        let mut gone = Vec::new();
        for (key, member) in &mut self.members {
            member.waiting.retain(|cgroup| live.has(*cgroup));
            member.cgroups.retain(|cgroup| {
                let lives = live.has(*cgroup);
                if !lives {
                    gone.push((key.clone(), *cgroup));
                }
                lives
            });
        }
        for (key, cgroup) in gone {
            self.disallow(&key, cgroup);
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
        let refusals = self.look_at(key, &wanted, processes);
        for (probe, refusal) in wanted.into_iter().zip(refusals) {
            let Some(member) = self.members.get_mut(key) else { return };
            let fit = member.fits.entry(probe.name.clone()).or_insert_with(|| Fit::new(now));
            let Some(Refusal { reason, why }) = refusal else { continue };
            let is_said = match why {
                // Who has it in one file need not have it in another.
                Why::File => fit.files.is_empty(),
                Why::Absent => fit.files.is_empty() && has_waited,
                Why::Room => true,
            };
            if !is_said || fit.refused.as_ref() == Some(&reason) {
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

    /// Looks for the files of these probes in these processes, one process after the other: each is opened once, and few are
    /// open at a time. Of each probe why it could not be attached, if so.
    fn look_at(&mut self, key: &MemberKey, probes: &[Arc<Uprobe>], processes: &[Who]) -> Vec<Option<Refusal>> {
        let mut found: Vec<Found> = probes.iter().map(|_| Found::default()).collect();
        let has_libraries = probes.iter().any(|probe| maps_libraries(probe));
        let mut roots = HashSet::new();
        for process in processes {
            if probes.is_empty() {
                break;
            }
            self.busy.with(&format!("the root of process {}", process.pid()));
            let root = match process.root() {
                Ok(root) => root,
                // Another may be there.
                Err(OpenError::Gone { .. }) => continue,
                Err(error) => {
                    for found in &mut found {
                        found.refusal = Some(Refusal::of(&error));
                    }
                    continue;
                }
            };
            let id = root.id();
            // A path leads to one file for all who have the root.
            let is_known = id.is_some_and(|id| roots.contains(&id));
            if is_known && !has_libraries {
                continue;
            }
            let mut is_looked_at = true;
            for (probe, found) in probes.iter().zip(&mut found) {
                if is_known && !maps_libraries(probe) {
                    continue;
                }
                is_looked_at &= self.look_at_one(key, probe, (*process, &root), found);
            }
            roots.extend(id.filter(|_| is_looked_at));
        }
        self.busy.over();
        found.into_iter().map(|found| found.refusal).collect()
    }

    /// Whether another process of the same root has no other file at that path.
    fn look_at_one(&mut self, key: &MemberKey, probe: &Arc<Uprobe>, of: (Who, &Root), found: &mut Found) -> bool {
        let (process, root) = of;
        let (Binary::Path(what) | Binary::Library(what)) = &probe.binary;
        self.busy.with(&format!("{what} of process {}", process.pid()));
        let opened = match &probe.binary {
            Binary::Path(path) => root.open(path),
            Binary::Library(name) => root.open_library(name),
        };
        match opened {
            Ok(opened) => {
                if found.files.insert((opened.device, opened.inode))
                    && let Err(refusal) = self.take(key, probe, root, opened)
                {
                    found.refusal = Some(refusal);
                }
                true
            }
            Err(error) => {
                found.refusal = Some(Refusal::of(&error));
                // It may have ended before its table of mounts was read.
                !matches!(error, OpenError::Mounts { .. })
            }
        }
    }

    /// Who is gone is forgotten, and with the last who had it, what was attached to a file.
    pub(super) fn sweep(&mut self, now: Instant) {
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
                // The runtime may have told of a cgroup whose path says nothing.
                let by_cgroup = || {
                    let cgroup = self.hierarchies.key_of(&process.cgroups);
                    let holds = |key: &&MemberKey| {
                        self.members
                            .get(*key)
                            .is_some_and(|member| member.cgroups.contains(&cgroup) || member.waiting.contains(&cgroup))
                    };
                    deserted.iter().find(holds).cloned()
                };
                let found = if deserted.contains(&key) { Some(key) } else { by_cgroup() };
                if let Some(key) = found
                    && deserted.remove(&key)
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
        self.prune(now);
        self.admit_waiting();
        // What was refused may work by now, and the kernel tells nobody.
        let mut due = HashSet::new();
        for (key, member) in &mut self.members {
            for fit in member.fits.values_mut().filter(|fit| fit.waits() && fit.again <= now) {
                fit.hope();
                fit.pause = (2 * fit.pause).min(PAUSE_MAX);
                fit.again = now + fit.pause;
                due.insert(key.clone());
            }
        }
        self.look_everywhere(due.iter().cloned());
        self.look.then.extend(due);
    }

    fn forget(&mut self, key: &MemberKey) {
        let Some(member) = self.members.get(key) else { return };
        let names: Vec<_> = member.fits.keys().cloned().collect();
        for name in names {
            self.leave(key, &name);
        }
        self.members.remove(key);
    }
}

fn maps_libraries(probe: &Uprobe) -> bool {
    matches!(probe.binary, Binary::Library(_))
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

fn pid_of(probe: &Uprobe) -> Option<u32> {
    if let Target::Pid(pid) = probe.target { Some(pid) } else { None }
}

/// No container's key: those of containers have no space.
fn pid_key(pid: u32) -> Box<str> {
    format!("process {pid}").into()
}
