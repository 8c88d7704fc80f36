//! What is attached: the places of each probe in each file, shared by all who have the file.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use namespan_ebpf::uprobe_wire::Operand;
use namespan_ebpf::wire::CgroupKey;

use super::members::{Bad, Fit, MemberKey, Refusal, Why};
use super::{Answer, Follow};
use crate::attach::refusal::chain;
use crate::uprobe::attach::{At, Link, PlaceId, PlaceSpec, RealInode, Scope, UprobeError};
use crate::uprobe::elf::{self, Image, Trust};
use crate::uprobe::place::Place;
use crate::uprobe::registers;
use crate::uprobe::root::{Opened, Root};
use crate::uprobe::spec::{Target, Uprobe};

/// Files of one probe in one container; of more the newest are not probed.
const FILES: usize = 16;
/// One container has such a part of all places at most, and of all pairs of a place and a cgroup.
const SHARE: usize = 4;
/// Why the return of a Go function is not probed.
const GO_RETURN: &str = "it is a Go function: a return probe would break its stack, which moves; probe its entry, or the offsets \
                         of its `ret` instructions";

/// Names a file that probes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    /// Whoever has it.
    Real(RealInode),
    /// The kernel does not tell who else has it.
    Own { member: MemberKey, device: u64, inode: u64 },
}

pub(super) type GroupKey = (String, FileKey);

/// The places of one probe in one file.
pub(super) struct Group {
    pub(super) places: Vec<PlaceId>,
    links: Vec<Link>,
    holders: HashSet<MemberKey>,
    /// Who had it first: its places count as that one's.
    charged: MemberKey,
    /// As long as it is open, the inode is this file's.
    file: File,
}

impl Follow {
    /// Probes a file for a member, unless it does so already.
    pub(super) fn take(
        &mut self,
        member_key: &MemberKey,
        probe: &Arc<Uprobe>,
        root: &Root,
        opened: Opened,
    ) -> Result<(), Refusal> {
        let seen_as = opened.version();
        let fit = self.members.get(member_key).and_then(|member| member.fits.get(&probe.name));
        if let Some(fit) = fit {
            if fit.known.contains(&seen_as) {
                return Ok(());
            }
            // The same file is as bad as before.
            if let Some(bad) = fit.bad.iter().find(|bad| bad.version == seen_as) {
                return Err(bad.refusal.clone());
            }
            if fit.files.len() >= FILES {
                let reason = format!("{}: the probe is in {FILES} other files of the target already", opened.path);
                return Err(Refusal { reason, why: Why::Room });
            }
        }
        let taken = self.take_anew(member_key, probe, root, opened);
        if let Some(fit) = self.members.get_mut(member_key).and_then(|member| member.fits.get_mut(&probe.name)) {
            match &taken {
                Ok(()) => drop(fit.known.insert(seen_as)),
                Err(refusal) => {
                    fit.bad.truncate(FILES - 1);
                    fit.bad.push_front(Bad { version: seen_as, refusal: refusal.clone() });
                }
            }
        }
        taken
    }

    /// As [`take`](Self::take), of a file that was not seen as this.
    fn take_anew(
        &mut self,
        member_key: &MemberKey,
        probe: &Arc<Uprobe>,
        root: &Root,
        opened: Opened,
    ) -> Result<(), Refusal> {
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
            // Its cgroups are allowed before it is attached.
            let group = self.attach(member_key, probe, root, opened, &cgroups)?;
            self.groups.insert(key.clone(), group);
        } else if let Some(group) = self.groups.get(&key) {
            let places = group.places.clone();
            self.allow_all(member_key, &places, &cgroups)
                .map_err(|Refusal { reason, why }| Refusal { reason: format!("{binary}: {reason}"), why })?;
        }
        let Some(group) = self.groups.get_mut(&key) else { return Ok(()) };
        group.holders.insert(member_key.clone());
        let places = group.places.len();
        if let Some(fit) = self.members.get_mut(member_key).and_then(|member| member.fits.get_mut(&probe.name)) {
            fit.files.push(file_key);
            fit.refused = None;
        }
        if is_new {
            self.tell(Answer::Attached { probe: Arc::clone(probe), container, binary, places });
        } else {
            let container = container.map_or_else(String::new, |container| container.id.clone());
            tracing::debug!(probe = probe.name, container, binary, "probing a file that is probed for others already");
        }
        Ok(())
    }

    /// All places of a probe in a file, or none.
    fn attach(
        &mut self,
        member: &MemberKey,
        probe: &Arc<Uprobe>,
        root: &Root,
        Opened { file, path, .. }: Opened,
        cgroups: &[CgroupKey],
    ) -> Result<Group, Refusal> {
        let copy = file.try_clone().map_err(|error| Refusal { reason: format!("{path}: {error}"), why: Why::Room })?;
        let of_file = |error: &elf::ElfError| {
            let why = if error.may_pass() { Why::Room } else { Why::File };
            Refusal { reason: format!("{path}: {}", chain(error)), why }
        };
        let mut image = Image::open(copy).map_err(|error| of_file(&error))?;
        let places = image.resolve(&probe.function, probe.kind).or_else(|error| {
            let trust = if root.is_ours() { Trust::Host } else { Trust::Container };
            // Only a stripped program has anything to gain from its separate symbols.
            if image.add_debug_file(root, trust)? { image.resolve(&probe.function, probe.kind) } else { Err(error) }
        });
        let places = places.map_err(|error| of_file(&error))?;
        // One container must not take the room of all others; those that the settings name one by one are not hostile.
        let most = usize::try_from(self.uprobes.limit()).unwrap_or(usize::MAX) / SHARE;
        if matches!(probe.target, Target::Containers(_)) {
            let charged = self.groups.values().filter(|group| group.charged == *member);
            let have: usize = charged.map(|group| group.places.len()).sum();
            if have + places.len() > most {
                let more = places.len();
                let reason = format!(
                    "{path}: {more} more places: the container has {have} of the {most} that one may have: probe fewer \
                     functions or files in it"
                );
                return Err(Refusal { reason, why: Why::Room });
            }
        }
        self.has_room_for(member, places.len() * cgroups.len())
            .map_err(|Refusal { reason, why }| Refusal { reason: format!("{path}: {reason}"), why })?;
        let scope = match probe.target {
            Target::Containers(_) => Scope::Cgroups,
            Target::Host => Scope::Host,
            Target::Pid(pid) => Scope::Tgid(pid),
        };
        let mut group =
            Group { places: Vec::new(), links: Vec::new(), holders: HashSet::new(), charged: member.clone(), file };
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
    ) -> Result<(), Refusal> {
        let elf::Place { function, offset, usdt, returns, .. } = found;
        let of_file = |reason: &str| Refusal { reason: format!("{path}: {function}: {reason}"), why: Why::File };
        let of_function = |error: UprobeError| {
            let why = if error.may_pass() { Why::Room } else { Why::File };
            Refusal { why, ..of_file(&chain(&error)) }
        };
        if !returns.is_empty() {
            return Err(of_file(GO_RETURN));
        }
        let spec = match &usdt {
            None => PlaceSpec::of_function(probe, scope),
            Some(usdt) => {
                let operands = operands(probe, usdt).map_err(|reason| of_file(&reason))?;
                PlaceSpec::of_operands(probe, scope, &operands)
            }
        };
        let id = spec.and_then(|spec| self.uprobes.place(&spec)).map_err(of_function)?;
        group.places.push(id);
        let binary = path.to_owned();
        self.places
            .insert(id, Arc::new(Place { probe: Arc::clone(probe), function: function.clone(), binary, offset }));
        // Before there are hits.
        for cgroup in cgroups {
            self.uprobes.allow(id, *cgroup).map_err(of_function)?;
        }
        let at = At { offset, semaphore: usdt.and_then(|usdt| usdt.semaphore_offset) };
        let link = self.uprobes.attach(group.file.as_fd(), id, at).map_err(of_function)?;
        group.links.push(link);
        Ok(())
    }

    /// A cgroup of a member that was not known: at all places that the member has, or none.
    pub(super) fn allow(&mut self, key: &MemberKey, cgroup: CgroupKey) -> Result<(), Refusal> {
        let held = self.groups.values().filter(|group| group.holders.contains(key));
        let places: Vec<_> = held.flat_map(|group| group.places.iter().copied()).collect();
        self.allow_all(key, &places, &[cgroup])
    }

    /// All of them, or none.
    fn allow_all(&mut self, key: &MemberKey, places: &[PlaceId], cgroups: &[CgroupKey]) -> Result<(), Refusal> {
        self.has_room_for(key, places.len() * cgroups.len())?;
        let mut new = Vec::new();
        for (place, cgroup) in places.iter().flat_map(|place| cgroups.iter().map(|cgroup| (*place, *cgroup))) {
            match self.uprobes.allow(place, cgroup) {
                Ok(is_new) => new.extend(is_new.then_some((place, cgroup))),
                Err(error) => {
                    for (place, cgroup) in new {
                        self.uprobes.disallow(place, cgroup);
                    }
                    return Err(Refusal { reason: chain(&error), why: Why::Room });
                }
            }
        }
        Ok(())
    }

    /// A container that makes cgroups must not take the room of all others.
    fn has_room_for(&self, key: &MemberKey, more: usize) -> Result<(), Refusal> {
        let cgroups = self.members.get(key).map_or(0, |member| member.cgroups.len());
        let held = self.groups.values().filter(|group| group.holders.contains(key));
        let have = cgroups * held.map(|group| group.places.len()).sum::<usize>();
        let most = usize::try_from(self.uprobes.pair_limit()).unwrap_or(usize::MAX) / SHARE;
        if have + more <= most {
            return Ok(());
        }
        let reason = format!(
            "{more} more pairs of a place and a cgroup: the container has {have} of the {most} that one may have: probe fewer \
             functions or files in it, or run fewer cgroups there"
        );
        Err(Refusal { reason, why: Why::Room })
    }

    /// Cgroups that are gone make room for others.
    pub(super) fn disallow(&mut self, key: &MemberKey, cgroup: CgroupKey) {
        let held = self.groups.values().filter(|group| group.holders.contains(key));
        let places: Vec<_> = held.flat_map(|group| group.places.iter().copied()).collect();
        for place in places {
            self.uprobes.disallow(place, cgroup);
        }
    }

    /// A probe is no longer a member's.
    pub(super) fn leave(&mut self, member_key: &MemberKey, probe: &str) {
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

    pub(super) fn end_group(&mut self, key: &GroupKey) {
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
        self.detacher.end(links);
    }

    /// From now on there are no hits.
    pub(super) fn hush(&mut self) {
        self.look_at_calls();
        let keys: Vec<_> = self.groups.keys().cloned().collect();
        for key in keys {
            self.end_group(&key);
        }
    }
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
