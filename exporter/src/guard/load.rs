//! Loads the guard's programs with the tables that policies were made into, attaches them, and hands over to them.

use std::io;
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::links::PinnedLink;
use aya::programs::lsm::LsmLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, Lsm, ProgramError, TracePoint};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Endianness};
use namespan_ebpf::guard_wire::{
    ARGS_MAX, CHECK_RECORDS, CHECK_ROOMS, GuardSettings, Mask, OVERLAP_NS, Program, Scope, TextKey, V1,
};
use namespan_ebpf::settings::Shift;
use thiserror::Error;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::counters::Counts;
use super::persist::MAPS;
use super::place;
use crate::attach::{AttachError, btf, mount_tracefs, raise_locked_memory, recursion_misses, refusal};
use crate::clock::boot_ns;

/// The guard's programs, which are loaded only where there are policies.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard"));

pub(super) const EXEC: &str = "guard_exec";
const TRACEPOINT: &str = "sched_process_exec";
pub(super) const CHECK: &str = "guard_check";
const HOOK: &str = "bprm_check_security";
const HOOK_FUNCTION: &str = "bpf_lsm_bprm_check_security";
/// Programs that remember a call's arguments, for the check.
const CALLS: [(&str, &str); 2] = [("guard_execve", "sys_enter_execve"), ("guard_execveat", "sys_enter_execveat")];

/// In time to be seen by programs that run on another CPU, before the check begins that is ahead.
const NOTICE: Duration = Duration::from_millis(10);
/// Times that a program is loaded anew, at most.
const LOAD_ATTEMPTS: usize = 100;
/// The boot clock is not there yet.
const NEVER: u64 = u64::MAX;

#[derive(Debug, Error)]
pub enum GuardError {
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    #[error("the kernel refused the BPF object of the guard: {0}")]
    Load(#[source] EbpfError),
    #[error("the kernel refused the program {program:?} of the guard: {source}")]
    Program { program: &'static str, source: ProgramError },
    #[error("the embedded BPF object lacks {name:?}: it is damaged, build again")]
    Missing { name: &'static str },
    #[error("map {name:?}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("which process, namespace and cgroup we are: {0}")]
    Place(#[source] io::Error),
    #[error(
        "guard.mode: enforce takes the host's PID namespace and its /proc: without them a container runtime's set-up, such as \
         runc init, can't be told from a container's processes, and would be stopped; start Namespan's container with \
         --pid=host (Kubernetes: hostPID: true), or use guard.mode: observe"
    )]
    NoHost,
    #[error("how many CPUs there are: {0}")]
    Cpus(#[source] io::Error),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("policies that deny need a BPF LSM: {0}")]
    Lsm(Refusal),
    #[error("{id:?} is no container's id of 64 hexadecimal digits: give its cgroup instead")]
    ContainerId { id: String },
    #[error("the child that proves that {action} works could not be run: {source}")]
    SelfTestRun { action: &'static str, source: io::Error },
    #[error("a child of ours that was to be stopped by {action} was not: the guard cannot enforce here")]
    SelfTest { action: &'static str },
    #[error("{path}: {source}")]
    Pin { path: String, source: io::Error },
}

/// Why no BPF LSM program can refuse anything here.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("the kernel was built without CONFIG_BPF_LSM=y, or without its BTF")]
    NotBuilt,
    #[error("{said}")]
    NotLoaded { said: String },
    #[error(
        "it is loaded, and the kernel does not ask it: boot with bpf in the list of lsm= (see /sys/kernel/security/lsm)"
    )]
    NotAsked,
    #[error("it could not be tried: {said}")]
    NotTried { said: String },
}

/// What policies were made into.
#[derive(Clone, Debug)]
pub struct Tables {
    /// What is about the host and ourselves is filled in when they are loaded.
    pub settings: GuardSettings,
    /// With the bits of each that count, its dimension included.
    pub texts: Vec<(TextKey, u32, Mask)>,
    pub uids: Vec<(u32, Mask)>,
    /// Some policy denies.
    pub denies: bool,
}

/// How much the kernel side holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the ring: a power of two, in whole pages.
    pub ring_bytes: u32,
    /// Containers whose scope is told, and as many cgroups.
    pub scopes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ring_bytes: 4 << 20, scopes: 16_384 }
    }
}

/// Loaded and attached programs; they stop when this is dropped, unless they are [pinned](Guard::persist).
pub struct Guard {
    pub(super) ebpf: Ebpf,
    pub(super) exec: Option<BtfTracePointLinkId>,
    pub(super) check: Option<LsmLinkId>,
    pub(super) maps: Maps,
    /// Links that stay when this is dropped.
    pub(super) pinned: Vec<PinnedLink>,
    /// [Maps](MAPS) by name, to be pinned.
    pub(super) ids: Vec<(&'static str, u32)>,
    /// Since when they decide.
    from_boot_ns: u64,
    /// Runs that the kernel skipped, read before they were detached.
    skipped: [u64; Program::ALL.len()],
    /// Whether some policy kills, and whether some denies.
    pub(super) acts: Acts,
}

#[derive(Clone, Copy)]
pub(super) struct Acts {
    pub kills: bool,
    pub denies: bool,
}

/// What changes while they run.
pub(super) struct Maps {
    scopes: HashMap<MapData, [u8; 64], u64>,
    cgroups: HashMap<MapData, u64, u64>,
    epoch: Array<MapData, u64>,
    lease: Array<MapData, u64>,
    shift: Array<MapData, [u64; 2]>,
    pub self_test: Array<MapData, [u64; 2]>,
    counters: PerCpuArray<MapData, u64>,
}

impl Guard {
    /// Loads the programs that the tables need and attaches them; they decide nothing before [`Self::take_over`], and take no
    /// action before [`Self::renew`]. Returns the ring's reader too.
    pub fn load(tables: &Tables, limits: &Limits) -> Result<(Self, RingBuf<MapData>), GuardError> {
        let kernel = btf::read_kernel()?;
        let kernel = btf::Btf::parse(&kernel)?;
        if tables.denies && !kernel.has_function(HOOK_FUNCTION) {
            return Err(GuardError::Lsm(Refusal::NotBuilt));
        }
        let types = kernel.of_hooks(&[TRACEPOINT], &[HOOK_FUNCTION]);
        let types = Btf::parse(&types, Endianness::default()).map_err(|source| GuardError::Load(source.into()))?;
        let mut ebpf = create(tables, *limits, &kernel, &types)?;
        drop(kernel);
        fill(&mut ebpf, tables)?;
        let ids = ids(&ebpf)?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.set_shift(Shift { from_boot_ns: NEVER, until_boot_ns: NEVER })?;
        let exec = program_of::<BtfTracePoint>(&mut ebpf, EXEC)?;
        let exec = loaded(|| exec.load(TRACEPOINT, &types)).and_then(|()| exec.attach());
        let exec = Some(exec.map_err(|source| GuardError::Program { program: EXEC, source })?);
        let check = if tables.denies {
            let check = attach_check(&mut ebpf, &types)?;
            attach_calls(&mut ebpf)?;
            Some(check)
        } else {
            None
        };
        let ring = map(&mut ebpf, "GUARD_RING", RingBuf::try_from)?;
        let acts = Acts::of(&tables.settings);
        let guard =
            Self { ebpf, exec, check, maps, pinned: Vec::new(), ids, from_boot_ns: NEVER, skipped: [0; _], acts };
        Ok((guard, ring))
    }

    /// Which rules' scopes a container meets. Its processes are known by their cgroups' names.
    pub fn set_scope(&mut self, container_id: &str, scope: Scope) -> Result<(), GuardError> {
        let set = self.maps.scopes.insert(id_of(container_id)?, scope.rules, 0);
        set.map_err(of_map("GUARD_SCOPES"))
    }

    /// It is as one that nobody has told of.
    pub fn remove_scope(&mut self, container_id: &str) {
        if let Ok(id) = id_of(container_id) {
            let _absent = self.maps.scopes.remove(&id);
        }
    }

    /// As [`Self::set_scope`], of a container whose own cgroup's name does not tell: by that cgroup's id in the v2 hierarchy.
    pub fn set_cgroup_scope(&mut self, cgroup: u64, scope: Scope) -> Result<(), GuardError> {
        let is_new = self.maps.cgroups.get(&cgroup, 0).is_err();
        self.maps.cgroups.insert(cgroup, scope.rules, 0).map_err(of_map("GUARD_CGROUPS"))?;
        if is_new { self.maps.forget_cgroups() } else { Ok(()) }
    }

    /// The cgroup is no container's any more.
    pub fn remove_cgroup_scope(&mut self, cgroup: u64) -> Result<(), GuardError> {
        if self.maps.cgroups.remove(&cgroup).is_ok() { self.maps.forget_cgroups() } else { Ok(()) }
    }

    /// As [`Self::set_cgroup_scope`], of a cgroup in a v1 hierarchy, which has numbers of its own.
    pub fn set_cgroup_v1_scope(&mut self, cgroup: u64, scope: Scope) -> Result<(), GuardError> {
        self.set_cgroup_scope(cgroup | V1, scope)
    }

    pub fn remove_cgroup_v1_scope(&mut self, cgroup: u64) -> Result<(), GuardError> {
        self.remove_cgroup_scope(cgroup | V1)
    }

    /// Decides from some moment on, a fraction of a second ahead, and `old` what happened before; that moment, by the boot clock.
    /// An exec of that very moment may be decided by both, and one that could be refused [`OVERLAP_NS`] around it; by none only
    /// one that takes longer than that from its check to its end.
    pub fn take_over(&mut self, old: Option<&mut Self>) -> Result<u64, GuardError> {
        if let Some(old) = old {
            return self.relieve(old.from_boot_ns, &mut old.maps.shift);
        }
        let now = boot_ns();
        self.set_from(now)?;
        Ok(now)
    }

    /// As [`Self::take_over`], from whoever's shift this is.
    pub(super) fn relieve(
        &mut self,
        old_from_boot_ns: u64,
        old: &mut Array<MapData, [u64; 2]>,
    ) -> Result<u64, GuardError> {
        loop {
            let check_at = boot_ns() + u64::try_from(NOTICE.as_nanos()).unwrap_or(u64::MAX);
            let at = check_at + OVERLAP_NS;
            self.set_from(at)?;
            // Else this process stood still in between, and the new check may have begun too late.
            if boot_ns() < check_at {
                old.set(0, [old_from_boot_ns, at], 0).map_err(of_map("GUARD_SHIFT"))?;
                return Ok(at);
            }
        }
    }

    fn set_from(&mut self, from_boot_ns: u64) -> Result<(), GuardError> {
        self.maps.set_shift(Shift { from_boot_ns, until_boot_ns: NEVER })?;
        self.from_boot_ns = from_boot_ns;
        Ok(())
    }

    /// Actions are taken until then, by the boot clock.
    pub fn renew(&mut self, until_boot_ns: u64) -> Result<(), GuardError> {
        self.maps.lease.set(0, until_boot_ns, 0).map_err(of_map("GUARD_LEASE"))
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Result<Counts, GuardError> {
        let mut skipped = self.skipped;
        for (program, kind) in [(EXEC, Program::Exec), (CHECK, Program::Check)] {
            let fd = self.ebpf.program(program).and_then(|program| program.fd().ok());
            skipped[kind as usize] += fd.map_or(0, recursion_misses);
        }
        Ok(Counts::new(counted(&self.maps.counters)?, skipped))
    }

    /// Ends it: nothing is decided any more, nothing more is written to the ring.
    pub fn detach(&mut self) -> Result<(), GuardError> {
        let counts = self.counters()?;
        self.skipped = Program::ALL.map(|program| counts.skipped(program));
        (self.exec, self.check) = (None, None);
        self.pinned.clear();
        unload(program_of::<BtfTracePoint>(&mut self.ebpf, EXEC)?.unload(), EXEC)?;
        unload(program_of::<Lsm>(&mut self.ebpf, CHECK)?.unload(), CHECK)?;
        for (program, _) in CALLS {
            unload(program_of::<TracePoint>(&mut self.ebpf, program)?.unload(), program)?;
        }
        Ok(())
    }
}

/// Whether a BPF LSM program can be loaded and attached here and is asked, by trying it on a child of ours.
pub fn lsm() -> Result<(), Refusal> {
    let tried = |error: GuardError| {
        if let GuardError::Lsm(refusal) = error {
            refusal
        } else if matches!(error, GuardError::SelfTest { .. }) {
            Refusal::NotAsked
        } else {
            Refusal::NotTried { said: refusal::shortened(refusal::chain(&error)) }
        }
    };
    let limits = Limits { ring_bytes: 4096, scopes: 1 };
    let (mut guard, _ring) = Guard::load(&Tables::nothing(true), &limits).map_err(tried)?;
    guard.acts = Acts { kills: false, denies: true };
    guard.self_test().map_err(tried)
}

impl Tables {
    /// Without any policy.
    #[must_use]
    pub fn nothing(denies: bool) -> Self {
        Self { settings: GuardSettings::new_zeroed(), texts: Vec::new(), uids: Vec::new(), denies }
    }
}

impl Acts {
    fn of(settings: &GuardSettings) -> Self {
        use namespan_ebpf::guard_wire::action::{DENY, KILL};
        let some = |action| {
            settings.policies.iter().take(settings.policy_count as usize).any(|policy| policy.action == action)
        };
        Self { kills: some(KILL), denies: some(DENY) }
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, GuardError> {
        Ok(Self {
            scopes: map(ebpf, "GUARD_SCOPES", HashMap::try_from)?,
            cgroups: map(ebpf, "GUARD_CGROUPS", HashMap::try_from)?,
            epoch: map(ebpf, "GUARD_EPOCH", Array::try_from)?,
            lease: map(ebpf, "GUARD_LEASE", Array::try_from)?,
            shift: map(ebpf, "GUARD_SHIFT", Array::try_from)?,
            self_test: map(ebpf, "GUARD_SELF_TEST", Array::try_from)?,
            counters: map(ebpf, "GUARD_COUNTERS", PerCpuArray::try_from)?,
        })
    }

    fn set_shift(&mut self, shift: Shift) -> Result<(), GuardError> {
        self.shift.set(0, [shift.from_boot_ns, shift.until_boot_ns], 0).map_err(of_map("GUARD_SHIFT"))
    }

    /// What the programs remember of cgroups is found out anew.
    fn forget_cgroups(&mut self) -> Result<(), GuardError> {
        let epoch = self.epoch.get(&0, 0).map_err(of_map("GUARD_EPOCH"))?;
        self.epoch.set(0, epoch.wrapping_add(1), 0).map_err(of_map("GUARD_EPOCH"))
    }
}

pub(super) fn counted(counters: &PerCpuArray<MapData, u64>) -> Result<Vec<u64>, GuardError> {
    let slot = |slot| counters.get(&slot, 0).map(|per_cpu| per_cpu.iter().sum());
    (0..Counts::SLOTS).map(slot).collect::<Result<_, _>>().map_err(of_map("GUARD_COUNTERS"))
}

/// Of the maps that may be pinned.
fn ids(ebpf: &Ebpf) -> Result<Vec<(&'static str, u32)>, GuardError> {
    let mut ids = Vec::new();
    for name in MAPS {
        let Some(Map::Array(data) | Map::PerCpuArray(data) | Map::RingBuf(data)) = ebpf.map(name) else {
            return Err(GuardError::Missing { name });
        };
        ids.push((name, data.info().map_err(of_map(name))?.id()));
    }
    Ok(ids)
}

fn id_of(container_id: &str) -> Result<[u8; 64], GuardError> {
    let is_id = |id: &[u8; 64]| id.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let id: Option<[u8; 64]> = container_id.as_bytes().try_into().ok();
    id.filter(is_id).ok_or_else(|| GuardError::ContainerId { id: container_id.to_owned() })
}

/// Makes the maps.
fn create(tables: &Tables, limits: Limits, kernel: &btf::Btf<'_>, types: &Btf) -> Result<Ebpf, GuardError> {
    let offsets = kernel.resolve()?.offsets;
    let guard_offsets = kernel.resolve_guard()?;
    let mut settings = tables.settings;
    place::fill(&mut settings).map_err(GuardError::Place)?;
    settings.args_limit = settings.args_limit.min(ARGS_MAX);
    if settings.enforces != 0 && settings.host_mnt_ns == 0 {
        return Err(GuardError::NoHost);
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| GuardError::Cpus(source))?;
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let entries = |count: usize| u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let of_checks = |each: u32| if tables.denies { cpus.saturating_mul(each) } else { 1 };
    raise_locked_memory();
    EbpfLoader::new()
        .btf(Some(types))
        .override_global("OFFSETS", offsets.as_bytes(), true)
        .override_global("GUARD_OFFSETS", guard_offsets.as_bytes(), true)
        .override_global("GUARD_SETTINGS", settings.as_bytes(), true)
        .map_max_entries("GUARD_RING", limits.ring_bytes)
        .map_max_entries("GUARD_TEXTS", entries(tables.texts.len()))
        .map_max_entries("GUARD_UIDS", entries(tables.uids.len()))
        .map_max_entries("GUARD_SCOPES", limits.scopes)
        .map_max_entries("GUARD_CGROUPS", limits.scopes)
        .map_max_entries("GUARD_EXEC_ROOM", cpus)
        .map_max_entries("GUARD_CHECK_ROOM", of_checks(CHECK_ROOMS))
        .map_max_entries("GUARD_CHECK_RECORD", of_checks(CHECK_RECORDS))
        .load(OBJECT)
        .map_err(GuardError::Load)
}

fn fill(ebpf: &mut Ebpf, tables: &Tables) -> Result<(), GuardError> {
    type Text = [u8; size_of::<TextKey>()];
    // They stay where the programs are, which are not loaded yet.
    let texts = ebpf.map_mut("GUARD_TEXTS").ok_or(GuardError::Missing { name: "GUARD_TEXTS" })?;
    let mut texts: LpmTrie<_, Text, Mask> = LpmTrie::try_from(texts).map_err(of_map("GUARD_TEXTS"))?;
    for (text, bits, rules) in &tables.texts {
        let text: Text = zerocopy::transmute!(*text);
        texts.insert(&Key::new(*bits, text), rules, 0).map_err(of_map("GUARD_TEXTS"))?;
    }
    let uids = ebpf.map_mut("GUARD_UIDS").ok_or(GuardError::Missing { name: "GUARD_UIDS" })?;
    let mut uids: HashMap<_, u32, Mask> = HashMap::try_from(uids).map_err(of_map("GUARD_UIDS"))?;
    for (uid, rules) in &tables.uids {
        uids.insert(uid, rules, 0).map_err(of_map("GUARD_UIDS"))?;
    }
    Ok(())
}

/// The kernel gives up when a signal comes while it checks a program: that of a child that has ended will do.
fn loaded(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..LOAD_ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
            ended => return ended,
        }
    }
    load()
}

fn attach_check(ebpf: &mut Ebpf, types: &Btf) -> Result<LsmLinkId, GuardError> {
    let check = program_of::<Lsm>(ebpf, CHECK)?;
    let attached = loaded(|| check.load(HOOK, types)).and_then(|()| check.attach());
    attached.map_err(|source| {
        let said = refusal::refusal(&AttachError::Program { program: CHECK, source });
        GuardError::Lsm(Refusal::NotLoaded { said })
    })
}

fn attach_calls(ebpf: &mut Ebpf) -> Result<(), GuardError> {
    mount_tracefs()?;
    for (program, tracepoint) in CALLS {
        let probe = program_of::<TracePoint>(ebpf, program)?;
        let attached = probe.load().and_then(|()| probe.attach("syscalls", tracepoint));
        attached.map_err(|source| GuardError::Program { program, source })?;
    }
    Ok(())
}

fn unload(result: Result<(), ProgramError>, program: &'static str) -> Result<(), GuardError> {
    match result {
        // It was never loaded.
        Err(ProgramError::NotLoaded) | Ok(()) => Ok(()),
        Err(source) => Err(GuardError::Program { program, source }),
    }
}

pub(super) fn of_map(name: &'static str) -> impl Fn(MapError) -> GuardError {
    move |source| GuardError::Map { name, source }
}

fn map<T>(ebpf: &mut Ebpf, name: &'static str, form: impl FnOnce(Map) -> Result<T, MapError>) -> Result<T, GuardError> {
    form(ebpf.take_map(name).ok_or(GuardError::Missing { name })?).map_err(of_map(name))
}

pub(super) fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, GuardError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(GuardError::Missing { name })?;
    program.try_into().map_err(|source| GuardError::Program { program: name, source })
}
