//! Stage 0: resolves kernel fields, loads and attaches the programs, and says what they counted.

pub mod btf;
pub(crate) mod helper;
pub mod refusal;

use std::fs;
use std::io;
use std::ops::AddAssign;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError, TracePoint};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Endianness};
use namespan_ebpf::offsets::Offsets;
use namespan_ebpf::settings::{Settings, Shift};
use namespan_ebpf::wire::{Counter, Place, Program};
use thiserror::Error;
use zerocopy::IntoBytes as _;

use crate::clock::boot_ns;
use crate::config::{Filters, Probes};

/// Every program's object file; rustc built it, so its structs are ours and its kernel offsets come from [`btf`].
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// Processes whose exits are remembered to be told of while a filter by comm or path is on.
const TRACKED_ENTRIES: u32 = 65_536;

/// Places that are filtered in the kernel; of those that have no room one event comes up each time they are found again.
const UNWANTED_ENTRIES: u32 = 16_384;

/// Programs on BTF tracepoints: name of the program, tracepoint.
const BTF_PROBES: [(&str, &str, Program); 2] =
    [("exec", "sched_process_exec", Program::Exec), ("exit", "sched_process_exit", Program::Exit)];

/// Programs on syscall tracepoints, for failed execs.
const SYSCALL_PROBES: [(&str, &str); 4] = [
    ("execve_enter", "sys_enter_execve"),
    ("execveat_enter", "sys_enter_execveat"),
    ("execve_exit", "sys_exit_execve"),
    ("execveat_exit", "sys_exit_execveat"),
];

#[derive(Debug, Error)]
pub enum AttachError {
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    #[error("the kernel refused the BPF object: {0}")]
    Load(#[source] EbpfError),
    #[error("the kernel refused the program {program:?}: {source}")]
    Program { program: &'static str, source: ProgramError },
    #[error("the embedded BPF object lacks {name:?}: it is damaged, build again")]
    Missing { name: &'static str },
    #[error("map {name:?}: {source}")]
    Map { name: &'static str, source: aya::maps::MapError },
    #[error("which pid are we: {0}")]
    Pid(#[source] io::Error),
    #[error("how many CPUs there are: {0}")]
    Cpus(#[source] io::Error),
    #[error("failed execs need tracefs, and it could not be mounted on {path}: {source}")]
    Tracefs { path: &'static str, source: io::Error },
}

/// Loaded and attached programs; they stop when this is dropped.
pub struct Attached {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    /// When events are taken, as a [`Shift`], and its beginning.
    shift: (Array<MapData, [u64; 2]>, u64),
    /// Fields that this kernel lacks and nothing fails without.
    pub missing: Vec<&'static str>,
    /// Why failed execs, which were asked for, are not seen.
    pub failed_execs_refused: Option<AttachError>,
    /// Runs of each program that the kernel skipped, read before it was detached.
    skipped: [u64; Program::ALL.len()],
}

/// What the programs counted, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    counts: [[u64; Counter::ALL.len()]; Program::ALL.len()],
    /// Runs the kernel skipped because the program was already running on that CPU: events nobody saw.
    skipped: [u64; Program::ALL.len()],
}

impl Counted {
    #[must_use]
    pub fn of(&self, program: Program, counter: Counter) -> u64 {
        self.counts[program as usize][counter as usize]
    }

    /// Over all programs.
    #[must_use]
    pub fn sum(&self, counter: Counter) -> u64 {
        Program::ALL.iter().map(|program| self.of(*program, counter)).sum()
    }

    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.iter().sum()
    }

    /// Events of one program that were lost in the kernel, for whatever reason.
    #[must_use]
    pub fn lost(&self, program: Program) -> u64 {
        LOST.iter().map(|(_, counter)| self.of(program, *counter)).sum::<u64>() + self.skipped[program as usize]
    }

    /// Events of one program that happened, those nobody saw included: the sum of its [`outcomes`](Self::outcomes).
    #[must_use]
    pub fn triggered(&self, program: Program) -> u64 {
        self.of(program, Counter::Triggered) + self.skipped[program as usize]
    }

    /// What became of the events of one program in the kernel.
    pub fn outcomes(&self, program: Program) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        [("delivered", Counter::Delivered), ("filtered", Counter::Filtered)]
            .into_iter()
            .chain(LOST)
            .map(move |(outcome, counter)| (outcome, self.of(program, counter)))
            .chain([(RECURSION, self.skipped[program as usize])])
    }

    /// Events lost in the kernel by reason, those that did happen.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        LOST.iter()
            .map(|(reason, counter)| (*reason, self.sum(*counter)))
            .chain([(RECURSION, self.skipped())])
            .filter(|(_, lost)| *lost > 0)
    }
}

impl AddAssign for Counted {
    fn add_assign(&mut self, other: Self) {
        for (own, others) in self.counts.iter_mut().zip(other.counts) {
            for (count, other) in own.iter_mut().zip(others) {
                *count += other;
            }
        }
        for (skipped, other) in self.skipped.iter_mut().zip(other.skipped) {
            *skipped += other;
        }
    }
}

#[cfg(test)]
impl Counted {
    pub(crate) fn from_parts(
        counts: [[u64; Counter::ALL.len()]; Program::ALL.len()],
        skipped: [u64; Program::ALL.len()],
    ) -> Self {
        Self { counts, skipped }
    }
}

const RECURSION: &str = "kernel_recursion";
const LOST: [(&str, Counter); 4] = [
    ("ring_full", Counter::LostRingFull),
    ("kernel_unreadable", Counter::LostUnreadable),
    ("kernel_no_scratch", Counter::LostNoScratch),
    ("kernel_untracked", Counter::LostUntracked),
];

/// Loads every program that the settings ask for and attaches it; from now on they take what happens. Returns the ring's
/// reader and, where containers are filtered, the kernel's list of them beside the programs.
pub fn attach(probes: &Probes) -> Result<(Attached, RingBuf<MapData>, Option<Unwanted>), AttachError> {
    attach_from(probes, 0)
}

/// As [`attach`], but nothing is taken before [`Attached::take_over`].
pub fn attach_idle(probes: &Probes) -> Result<(Attached, RingBuf<MapData>, Option<Unwanted>), AttachError> {
    attach_from(probes, NEVER)
}

fn attach_from(
    probes: &Probes,
    from_boot_ns: u64,
) -> Result<(Attached, RingBuf<MapData>, Option<Unwanted>), AttachError> {
    let (resolved, types) = {
        let kernel = btf::read_kernel()?;
        let kernel = btf::Btf::parse(&kernel)?;
        (kernel.resolve()?, types_of(&kernel)?)
    };
    let mut ebpf = load(probes, &resolved.offsets, &types)?;
    let shift = Array::try_from(take_map(&mut ebpf, "SHIFT")?);
    let mut shift = shift.map_err(|source| AttachError::Map { name: "SHIFT", source })?;
    set(&mut shift, Shift { from_boot_ns, until_boot_ns: NEVER })?;
    for (program, tracepoint, kind) in BTF_PROBES {
        if kind == Program::Exec || probes.exits {
            attach_btf(&mut ebpf, program, tracepoint, &types)?;
        }
    }
    let failed_execs_refused = if probes.failed_execs { attach_syscalls(&mut ebpf)? } else { None };
    let ring = RingBuf::try_from(take_map(&mut ebpf, "RING")?);
    let ring = ring.map_err(|source| AttachError::Map { name: "RING", source })?;
    let counters = PerCpuArray::try_from(take_map(&mut ebpf, "COUNTERS")?);
    let counters = counters.map_err(|source| AttachError::Map { name: "COUNTERS", source })?;
    let unwanted = if probes.filters.selects() {
        let map = HashMap::try_from(take_map(&mut ebpf, "UNWANTED")?);
        Some(Unwanted { map: map.map_err(|source| AttachError::Map { name: "UNWANTED", source })? })
    } else {
        None
    };
    let shift = (shift, from_boot_ns);
    let missing = resolved.missing;
    Ok((Attached { ebpf, counters, shift, missing, failed_execs_refused, skipped: [0; _] }, ring, unwanted))
}

/// All programs of failed execs or none; why none. Everything else goes on without them.
fn attach_syscalls(ebpf: &mut Ebpf) -> Result<Option<AttachError>, AttachError> {
    let mut attach = || {
        mount_tracefs()?;
        SYSCALL_PROBES.into_iter().try_for_each(|(program, tracepoint)| attach_syscall(ebpf, program, tracepoint))
    };
    let refused = attach().err();
    if refused.is_some() {
        detach_syscalls(ebpf)?;
    }
    Ok(refused)
}

/// Returns before calls: a return whose call was not seen would be told without its path.
fn detach_syscalls(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    let mut programs = SYSCALL_PROBES.into_iter().rev();
    programs.try_for_each(|(program, _)| unload(program_of::<TracePoint>(ebpf, program)?.unload(), program))
}

/// In time to be seen by programs that run on another CPU.
const NOTICE: Duration = Duration::from_millis(5);
/// The boot clock is not there yet.
const NEVER: u64 = u64::MAX;

fn set(map: &mut Array<MapData, [u64; 2]>, shift: Shift) -> Result<(), AttachError> {
    let set = map.set(0, [shift.from_boot_ns, shift.until_boot_ns], 0);
    set.map_err(|source| AttachError::Map { name: "SHIFT", source })
}

/// Where processes are that the kernel side does not tell of.
pub struct Unwanted {
    /// By the fields of a [`Place`].
    map: HashMap<MapData, [u64; 3], u8>,
}

impl Unwanted {
    pub fn add(&mut self, place: Place) -> Result<(), AttachError> {
        let added = self.map.insert(key(place), 0, 0);
        added.map_err(|source| AttachError::Map { name: "UNWANTED", source })
    }

    /// It may be wanted again.
    pub fn remove(&mut self, place: Place) {
        // It may have been pushed out.
        let _absent = self.map.remove(&key(place));
    }
}

fn key(Place { cgroup, mount_ns }: Place) -> [u64; 3] {
    [cgroup.v2, cgroup.v1, mount_ns]
}

/// A hook that was tried, and what the kernel said.
pub struct Tried {
    pub tracepoint: &'static str,
    pub outcome: Result<(), AttachError>,
}

/// Creates the maps; then loads each program, attaches it and takes it away again. Mounts nothing, leaves nothing.
pub fn try_hooks(probes: &Probes, kernel: &[u8], offsets: &Offsets) -> Result<Vec<Tried>, AttachError> {
    let types = types_of(&btf::Btf::parse(kernel)?)?;
    let mut ebpf = load(probes, offsets, &types)?;
    let mut tried = Vec::new();
    for (program, tracepoint, _) in BTF_PROBES {
        let outcome = attach_btf(&mut ebpf, program, tracepoint, &types)
            .and_then(|()| unload(program_of::<BtfTracePoint>(&mut ebpf, program)?.unload(), program));
        tried.push(Tried { tracepoint, outcome });
    }
    for (program, tracepoint) in SYSCALL_PROBES {
        let outcome = attach_syscall(&mut ebpf, program, tracepoint)
            .and_then(|()| unload(program_of::<TracePoint>(&mut ebpf, program)?.unload(), program));
        tried.push(Tried { tracepoint, outcome });
    }
    Ok(tried)
}

impl Attached {
    /// Takes what happens from some moment on, the next milliseconds, and `old` what happened before; that moment, by the
    /// boot clock. An event of that very moment may be taken by both, none by neither.
    pub fn take_over(&mut self, old: &mut Self) -> Result<u64, AttachError> {
        loop {
            let at = boot_ns() + u64::try_from(NOTICE.as_nanos()).unwrap_or(u64::MAX);
            set(&mut self.shift.0, Shift { from_boot_ns: at, until_boot_ns: NEVER })?;
            // Else this process stood still in between, and nobody would have the time from then on.
            if boot_ns() < at {
                self.shift.1 = at;
                set(&mut old.shift.0, Shift { from_boot_ns: old.shift.1, until_boot_ns: at })?;
                return Ok(at);
            }
        }
    }

    /// What has been counted so far.
    pub fn counted(&self) -> Result<Counted, AttachError> {
        let mut counts = [[0; Counter::ALL.len()]; Program::ALL.len()];
        for (program, counts) in Program::ALL.iter().zip(&mut counts) {
            for (counter, count) in Counter::ALL.iter().zip(counts) {
                let per_cpu = self.counters.get(&program.slot(*counter), 0);
                let per_cpu = per_cpu.map_err(|source| AttachError::Map { name: "COUNTERS", source })?;
                *count = per_cpu.iter().sum();
            }
        }
        let mut skipped = self.skipped;
        for (program, _, kind) in BTF_PROBES {
            if let Some(program) = self.ebpf.program(program) {
                skipped[kind as usize] += program.fd().map_or(0, recursion_misses);
            }
        }
        for (program, tracepoint) in SYSCALL_PROBES {
            // A call that was skipped costs its path; a return that was skipped, the event.
            if let Some(program) = self.ebpf.program(program).filter(|_| tracepoint.starts_with("sys_exit")) {
                skipped[Program::ExecFailed as usize] += program.fd().map_or(0, recursion_misses);
            }
        }
        Ok(Counted { counts, skipped })
    }

    /// Detaches every program: nothing more is written to the ring after this.
    pub fn detach(&mut self) -> Result<(), AttachError> {
        if let Ok(counted) = self.counted() {
            self.skipped = counted.skipped;
        }
        for (program, _, _) in BTF_PROBES {
            unload(program_of::<BtfTracePoint>(&mut self.ebpf, program)?.unload(), program)?;
        }
        detach_syscalls(&mut self.ebpf)
    }
}

fn unload(result: Result<(), ProgramError>, program: &'static str) -> Result<(), AttachError> {
    match result {
        // It was never loaded.
        Err(ProgramError::NotLoaded) | Ok(()) => Ok(()),
        Err(source) => Err(AttachError::Program { program, source }),
    }
}

/// What attaching to [`BTF_PROBES`] takes of the kernel's types.
fn types_of(kernel: &btf::Btf<'_>) -> Result<Btf, AttachError> {
    let types = kernel.of_tracepoints(&BTF_PROBES.map(|(_, tracepoint, _)| tracepoint));
    Btf::parse(&types, Endianness::default()).map_err(|source| AttachError::Load(source.into()))
}

fn load(probes: &Probes, offsets: &Offsets, types: &Btf) -> Result<Ebpf, AttachError> {
    let mut settings = settings(probes);
    settings.self_vpid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    settings.self_pid_ns = own_pid_namespace().map_err(AttachError::Pid)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| AttachError::Cpus(source))?;
    raise_locked_memory();
    let Filters { uids, comms, paths, .. } = &probes.filters;
    let tracks = probes.exits && !(uids.is_empty() && comms.is_empty() && paths.is_empty());
    settings.tracks = tracks.into();
    EbpfLoader::new()
        .btf(Some(types))
        .override_global("OFFSETS", offsets.as_bytes(), true)
        .override_global("SETTINGS", settings.as_bytes(), true)
        .map_max_entries("RING", probes.ring_bytes)
        .map_max_entries("EXEC_SCRATCH", u32::try_from(cpus).unwrap_or(u32::MAX))
        .map_max_entries("UNWANTED", if probes.filters.selects() { UNWANTED_ENTRIES } else { 1 })
        .map_max_entries("TRACKED", if tracks { TRACKED_ENTRIES } else { 1 })
        .load(OBJECT)
        .map_err(AttachError::Load)
}

/// Maps count as locked memory until Linux 5.11, far beyond the usual limit. Later kernels do not ask, and where it may
/// not be raised, creating the maps says so.
pub(crate) fn raise_locked_memory() {
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _refused = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
}

/// Inode number of our PID namespace: it fits 32 bits, the kernel allocates it from an `unsigned int`.
pub(crate) fn own_pid_namespace() -> io::Result<u32> {
    let inode = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
    u32::try_from(inode).map_err(io::Error::other)
}

fn attach_btf(ebpf: &mut Ebpf, program: &'static str, tracepoint: &str, types: &Btf) -> Result<(), AttachError> {
    let probe = program_of::<BtfTracePoint>(ebpf, program)?;
    probe.load(tracepoint, types).map_err(|source| AttachError::Program { program, source })?;
    probe.attach().map_err(|source| AttachError::Program { program, source })?;
    Ok(())
}

fn attach_syscall(ebpf: &mut Ebpf, program: &'static str, tracepoint: &str) -> Result<(), AttachError> {
    let probe = program_of::<TracePoint>(ebpf, program)?;
    probe.load().map_err(|source| AttachError::Program { program, source })?;
    probe.attach("syscalls", tracepoint).map_err(|source| AttachError::Program { program, source })?;
    Ok(())
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(AttachError::Missing { name })?;
    program.try_into().map_err(|source| AttachError::Program { program: name, source })
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, AttachError> {
    ebpf.take_map(name).ok_or(AttachError::Missing { name })
}

/// Runs of a program that the kernel skipped, as its fdinfo tells since Linux 5.12.
pub(crate) fn recursion_misses(program: &aya::programs::ProgramFd) -> u64 {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).unwrap_or_default();
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|misses| misses.trim().parse().ok()).unwrap_or(0)
}

/// Syscall tracepoints are found through tracefs, which a fresh machine may not have mounted.
pub(crate) fn mount_tracefs() -> Result<(), AttachError> {
    const PATH: &str = "/sys/kernel/tracing";
    // Where aya looks, too.
    let mounted = [PATH, "/sys/kernel/debug/tracing"].map(|path| format!("{path}/events/syscalls"));
    if mounted.iter().any(|path| fs::exists(path).unwrap_or(false)) {
        return Ok(());
    }
    rustix::mount::mount("tracefs", PATH, "tracefs", rustix::mount::MountFlags::empty(), None)
        .map_err(|source| AttachError::Tracefs { path: PATH, source: source.into() })
}

/// The kernel side's settings; the configuration has checked every length.
fn settings(probes: &Probes) -> Settings {
    let Filters { uids, comms, paths, .. } = &probes.filters;
    let mut settings = Settings::DEFAULT;
    settings.args_limit = probes.args_limit;
    settings.env_context = probes.env_context.into();
    // A ring smaller than two thresholds would fill before its reader wakes.
    settings.wakeup_bytes = settings.wakeup_bytes.min(u64::from(probes.ring_bytes) / 4);
    settings.selects = probes.filters.selects().into();
    for (slot, uid) in settings.uids.iter_mut().zip(uids) {
        *slot = *uid;
        settings.uid_count += 1;
    }
    settings.comm_count = prefixes(&mut settings.comms, &mut settings.comm_lens, comms);
    settings.path_count = prefixes(&mut settings.paths, &mut settings.path_lens, paths);
    settings
}

fn prefixes<const N: usize>(slots: &mut [[u8; N]], lens: &mut [u32], prefixes: &[String]) -> u32 {
    let mut count = 0;
    for ((slot, len), prefix) in slots.iter_mut().zip(lens).zip(prefixes) {
        for (to, from) in slot.iter_mut().zip(prefix.as_bytes()) {
            *to = *from;
            *len += 1;
        }
        count += 1;
    }
    count
}
