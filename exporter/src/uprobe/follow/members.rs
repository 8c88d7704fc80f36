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
use crate::uprobe::root::{OpenError, Version};
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

/// Time for all processes of all members, at once.
const BIT: Duration = Duration::from_millis(100);
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
    pub(super) cgroups: HashSet<CgroupKey>,
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
    pub(super) bad: VecDeque<(Version, String)>,
    /// What was said of it last.
    pub(super) refused: Option<String>,
    said: Option<Instant>,
    /// As long as there is no file, it is looked for again then; each time after twice as long.
    again: Instant,
    pause: Duration,
}

impl Fit {
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
            for probe in libraries.cloned().collect::<Vec<_>>() {
                // What stands in the way is said where the usual ones are looked at.
                let _refused = self.fit_one(&key, &probe, &[process]);
            }
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
            let (Binary::Path(what) | Binary::Library(what)) = &probe.binary;
            self.busy.with(&format!("{what} of process {}", process.pid()));
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
        self.busy.over();
        refusal.map_or(Ok(()), Err)
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
                        self.members.get(*key).is_some_and(|member| member.cgroups.contains(&cgroup))
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
        // What was refused may work by now, and the kernel tells nobody.
        let mut due = HashSet::new();
        for (key, member) in &mut self.members {
            for fit in member.fits.values_mut().filter(|fit| fit.files.is_empty() && fit.again <= now) {
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
