//! The kernel side of uprobes: loads the programs, says what is wanted at each place, attaches, and says what was counted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Array, HashMap as KernelMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::{ProgramError, ProgramFd, RawTracePoint, RawTracePointRunOptions, TestRun as _, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use namespan_ebpf::uprobe_wire::{
    self as wire, ARGS_MAX, BYTES_MAX, Counter, LARGE_CALL, Mapped, MappedOffsets, Operand, PlaceSettings, RETURNED,
    SMALL_CALL, UprobeSettings, VALUES_MAX, ValueSettings, kind, scope, source, value,
};
use namespan_ebpf::wire::CgroupKey;
use thiserror::Error;
use zerocopy::IntoBytes as _;

use super::registers::{self, INSTRUCTION_POINTER, RETURN_POPS, STACK_POINTER};
use super::spec::{Capture, Function, Kind, Rate, Type, Uprobe};
use super::{multi, sys};
use crate::attach::helper::ATTACH_COOKIE;
use crate::attach::{btf, own_pid_namespace, raise_locked_memory, recursion_misses};

/// The programs of uprobes, which are loaded only where there are some.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/uprobes"));

const PMU: &str = "/sys/bus/event_source/devices/uprobe";
/// In include/linux/errno.h, for what the kernel has no other number: an instruction that cannot be probed.
const ENOTSUPP: i32 = 524;
/// What a semaphore's offset has in a perf event's `config`: its upper half.
const SEMAPHORE_SHIFT: u32 = 32;

#[derive(Debug, Error)]
pub enum UprobeError {
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    #[error("the kernel refused the BPF object of uprobes: {0}")]
    Load(#[source] EbpfError),
    #[error(
        "this kernel lacks the helper bpf_get_attach_cookie, which tells the programs which probe was hit: boot Linux 5.15 or later"
    )]
    NoCookie,
    #[error("the kernel refused the program {program:?}: {source}")]
    Program { program: &'static str, source: ProgramError },
    #[error("the embedded BPF object lacks {name:?}: it is damaged, build again")]
    Missing { name: &'static str },
    #[error("map {name:?}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error(
        "cannot read {path}: sysfs must be mounted on /sys, and the kernel built with CONFIG_UPROBE_EVENTS=y: {source}"
    )]
    Pmu { path: String, source: io::Error },
    #[error("{path} says {said:?}, which is none of its forms: the kernel is newer than this build supports")]
    PmuForm { path: String, said: String },
    #[error("which pid are we: {0}")]
    Pid(#[source] io::Error),
    #[error("how many CPUs there are: {0}")]
    Cpus(#[source] io::Error),
    #[error(
        "all {places} places are in use: probe fewer functions, binaries or containers, or raise the number of places"
    )]
    Full { places: u32 },
    #[error("place {place} is not in use any more")]
    Retired { place: PlaceId },
    #[error(
        "{name} is a floating point number in a vector register, which a BPF program cannot read: capture it by a pointer (*f32, *f64), or leave it out"
    )]
    Vector { name: String },
    #[error("{name} needs argument {position}, which the probe does not have: it has {have}")]
    NoArgument { name: String, position: u8, have: usize },
    #[error("the semaphore lies at {offset:#x} of the file: the kernel takes offsets below 4 GiB")]
    Semaphore { offset: u64 },
    #[error("the probe at {offset:#x} of the file: {}", Refusal(source))]
    Attach { offset: u64, source: io::Error },
    #[error("the program at {offset:#x} of the file: {}", LinkRefusal(source))]
    Link { offset: u64, source: io::Error },
    #[error("the file could not be mapped: {0}")]
    Mapping(#[source] io::Error),
    #[error("the file's inode could not be found: {reason}")]
    Inode { reason: String },
}

impl UprobeError {
    /// Whether the same may work later, as others give back what they use: not where the probe itself or the file is refused.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Map { .. } | Self::Mapping(_) | Self::Inode { .. } => true,
            Self::Attach { source, .. } | Self::Link { source, .. } => source.raw_os_error() != Some(ENOTSUPP),
            Self::Btf(_)
            | Self::Load(_)
            | Self::NoCookie
            | Self::Program { .. }
            | Self::Missing { .. }
            | Self::Pmu { .. }
            | Self::PmuForm { .. }
            | Self::Pid(_)
            | Self::Cpus(_)
            | Self::Retired { .. }
            | Self::Vector { .. }
            | Self::NoArgument { .. }
            | Self::Semaphore { .. } => false,
        }
    }
}

/// What `perf_event_open`, and `BPF_LINK_CREATE` of `uprobe.multi`, mean by their error.
struct Refusal<'a>(&'a io::Error);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = match self.0.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                "run as root or with CAP_BPF and CAP_PERFMON, and mind that a locked-down kernel refuses uprobes"
            }
            // The latter of `uprobe.multi`.
            Some(libc::EINVAL | libc::EBADF) => {
                "it must be a regular file that has this offset, and all probes there one semaphore"
            }
            Some(ENOTSUPP) => "the kernel cannot probe the instruction there: probe another offset",
            Some(libc::EMFILE | libc::ENFILE) => {
                "too many files are open: each probe takes up to two, or four with its return"
            }
            Some(libc::ENODEV | libc::ENOENT) => {
                "the file is gone, or the kernel was built without CONFIG_UPROBE_EVENTS=y"
            }
            _ => return self.0.fmt(f),
        };
        write!(f, "{}: {remedy}", self.0)
    }
}

/// What `BPF_LINK_CREATE` means by its error.
struct LinkRefusal<'a>(&'a io::Error);

impl fmt::Display for LinkRefusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EINVAL) => write!(f, "{}: uprobes need Linux 5.15 or later", self.0),
            // `BPF_TRACE_MAX_PROGS` of include/linux/trace_events.h.
            Some(libc::E2BIG) => write!(f, "{}: the kernel has 64 programs there already", self.0),
            _ => self.0.fmt(f),
        }
    }
}

/// Whether the kernel has what the programs cannot do without, found by trying. Where not even that may be tried, loading them
/// tells why.
#[must_use]
pub fn is_supported() -> bool {
    raise_locked_memory();
    ATTACH_COOKIE.is_there().unwrap_or(true)
}

/// How much the kernel side holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the ring: a power of two, in whole pages.
    pub ring_bytes: u32,
    /// Places at the same time.
    pub places: u32,
    /// Pairs of a place and a cgroup at the same time.
    pub cgroups: u32,
    /// Calls that are kept until they return; of those with more than small values a sixteenth.
    pub calls: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ring_bytes: 8 << 20, places: 4096, cgroups: 16_384, calls: 4096 }
    }
}

/// Names a place for ever: those of a place that is gone are never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub u64);

impl fmt::Display for PlaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PlaceId {
    /// Index in the kernel's maps.
    #[expect(clippy::cast_possible_truncation, reason = "its lower half is the slot")]
    fn slot(self) -> u32 {
        self.0 as u32
    }
}

/// Whose hits at a place are told; never our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of the cgroups that are [allowed](Uprobes::allow).
    Cgroups,
    /// Of one process, by its id in the host's PID namespace.
    Tgid(u32),
    /// Of every process in the host's PID namespace. Containers usually have one of their own; those that don't are told too.
    Host,
}

/// What is wanted at a place. One place may be attached to several offsets, which then share counters and limits; calls with
/// their returns may not, as two functions may be called at one depth of the stack, one by the other's last jump.
#[derive(Clone, Debug)]
pub struct PlaceSpec(PlaceSettings);

impl PlaceSpec {
    /// Of a function: `probe`'s arguments are those of the calling convention.
    pub fn of_function(probe: &Uprobe, scope: Scope) -> Result<Self, UprobeError> {
        Self::new(probe, scope, usize::from(u8::MAX) + 1, registers::argument)
    }

    /// Of a USDT probe at one of its places: `probe`'s arguments are the operands of the note.
    pub fn of_operands(probe: &Uprobe, scope: Scope, operands: &[Operand]) -> Result<Self, UprobeError> {
        let none = Operand::constant(0);
        Self::new(probe, scope, operands.len(), |position| operands.get(usize::from(position)).copied().unwrap_or(none))
    }

    fn new(probe: &Uprobe, scope: Scope, have: usize, argument: impl Fn(u8) -> Operand) -> Result<Self, UprobeError> {
        let argument = |name: &str, position: u8| {
            if usize::from(position) < have {
                Ok(argument(position))
            } else {
                Err(UprobeError::NoArgument { name: name.to_owned(), position, have })
            }
        };
        let is_usdt = matches!(probe.function, Function::Usdt { .. });
        let kind = match probe.kind {
            Kind::Entry => kind::ENTRY,
            Kind::Return => kind::RETURN,
            // A USDT marker is passed, it does not return.
            Kind::Both if is_usdt => kind::ENTRY,
            Kind::Both => kind::CALL,
        };
        let mut values = [ValueSettings::NONE; VALUES_MAX];
        if kind != kind::RETURN {
            for (value, capture) in values.iter_mut().take(ARGS_MAX).zip(&probe.args) {
                *value = captured(capture, argument(&capture.name, capture.position)?, &argument)?;
            }
        }
        let max_bytes = probe.max_string.clamp(1, BYTES_MAX);
        let wide = values.iter().filter(|value| matches!(value.kind, value::STRING | value::BYTES)).count();
        let large = wide * max_bytes as usize > SMALL_CALL - wire::FIXED;
        if let Some(capture) = probe.returns.as_ref().filter(|_| kind != kind::ENTRY) {
            // A length in an argument is long overwritten.
            let gone = |name: &str, position| Err(UprobeError::NoArgument { name: name.to_owned(), position, have: 0 });
            values[RETURNED] = captured(capture, registers::return_value(), &gone)?;
        }
        let (interval_ns, ahead_ns) = probe.rate.map_or((0, 0), |Rate { per_second, burst }| {
            let interval = (1_000_000_000 / u64::from(per_second.max(1))).max(1);
            (interval, interval * u64::from(burst.saturating_sub(1)))
        });
        let (scope, tgid) = match scope {
            Scope::Cgroups => (scope::CGROUPS, 0),
            Scope::Tgid(tgid) => (scope::TGID, tgid),
            Scope::Host => (scope::HOST, 0),
        };
        let sample = probe.sample.max(1);
        let large = large.into();
        Ok(Self(PlaceSettings { id: 0, interval_ns, ahead_ns, sample, max_bytes, tgid, kind, scope, large, values }))
    }
}

/// How the kernel side captures one value.
fn captured(
    capture: &Capture,
    operand: Operand,
    argument: &impl Fn(&str, u8) -> Result<Operand, UprobeError>,
) -> Result<ValueSettings, UprobeError> {
    let mut length = Operand::constant(0);
    let (kind, width, signed) = match capture.value {
        Type::I8 => (value::INT, 1, 1),
        Type::I16 => (value::INT, 2, 1),
        Type::I32 => (value::INT, 4, 1),
        Type::I64 => (value::INT, 8, 1),
        Type::U8 => (value::UINT, 1, 0),
        Type::U16 => (value::UINT, 2, 0),
        Type::U32 => (value::UINT, 4, 0),
        Type::U64 => (value::UINT, 8, 0),
        // Only the lowest byte of its register means anything.
        Type::Bool => (value::BOOL, 1, 0),
        Type::Pointer => (value::POINTER, 8, 0),
        Type::String => (value::STRING, 8, 0),
        Type::Bytes { length: position } => {
            length = argument(&capture.name, position)?;
            (value::BYTES, 8, 0)
        }
        Type::F32 | Type::F64 if operand.source == source::REGISTER => {
            return Err(UprobeError::Vector { name: capture.name.clone() });
        }
        Type::F32 => (value::F32, 4, 0),
        Type::F64 => (value::F64, 8, 0),
        Type::F32At => (value::F32_AT, 8, 0),
        Type::F64At => (value::F64_AT, 8, 0),
    };
    Ok(ValueSettings { operand, length, kind, width, signed, reserved: [0; 5] })
}

/// Where in a file a place is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Of the instruction, in bytes of the file.
    pub offset: u64,
    /// Of a USDT probe's semaphore, in bytes of the file: the kernel adds one to it in each process while the link lasts.
    pub semaphore: Option<u64>,
}

/// A place attached to a file, until this is dropped.
///
/// Dropping waits until no program of it can run any more, some 50 ms: of links of `uprobe.multi` on several threads at once
/// (see [`Detacher`](super::detach::Detacher)). Before Linux 6.6 it takes 100 ms, one link after another whatever threads
/// drop them, as the kernel does it under one lock, and so does the end of the process. To end a place at once,
/// [retire](Uprobes::retire) it first: until its link is gone each hit costs its trap, and nothing is counted or told.
#[derive(Debug)]
pub struct Link {
    /// That of the return before that of the call.
    _fds: Vec<Fds>,
}

#[derive(Debug)]
enum Fds {
    Multi { _link: OwnedFd },
    Perf { _link: OwnedFd, _event: OwnedFd },
}

/// What was counted at one place, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    counts: [u64; Counter::ALL.len()],
    evicted: u64,
}

impl Counted {
    #[must_use]
    pub fn of(&self, counter: Counter) -> u64 {
        self.counts.get(counter as usize).copied().unwrap_or(0)
    }

    /// Hits; of calls with their returns, the calls: the sum of the [`outcomes`](Self::outcomes).
    #[must_use]
    pub fn triggered(&self) -> u64 {
        self.of(Counter::Triggered)
    }

    /// Hits lost in the kernel, for whatever reason.
    #[must_use]
    pub fn lost(&self) -> u64 {
        LOST.iter().map(|(_, counter)| self.of(*counter)).sum::<u64>() + self.evicted
    }

    /// Calls that have returned and are not told, as too many others ran: they were pushed out. As many as were sure when all
    /// were [looked at](Uprobes::look_at_calls) last.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Calls that are kept and have not been told: they still run, were jumped out of or ended with their thread, or are
    /// deeper than the 64 returns that the kernel watches in a thread.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.untold().saturating_sub(self.evicted)
    }

    fn untold(&self) -> u64 {
        if self.of(Counter::Kept) == 0 {
            return 0;
        }
        self.of(Counter::Kept).saturating_sub(self.ended())
    }

    fn ended(&self) -> u64 {
        [Counter::Delivered, Counter::LostRingFull, Counter::LostReturn].map(|counter| self.of(counter)).iter().sum()
    }

    /// Returns whose call was wanted and not kept until then, or began before the probe or in another process. Exact once
    /// all calls have returned: until then calls that were filtered, sampled out, limited or lost hide as many.
    #[must_use]
    pub fn unpaired(&self) -> u64 {
        let unkept = self.of(Counter::Triggered).saturating_sub(self.of(Counter::Kept));
        self.of(Counter::Unpaired).saturating_sub(unkept)
    }

    /// What became of the hits.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        [
            ("delivered", Counter::Delivered),
            ("filtered", Counter::Filtered),
            ("sampled_out", Counter::SampledOut),
            ("rate_limited", Counter::RateLimited),
        ]
        .into_iter()
        .chain(LOST)
        .map(|(outcome, counter)| (outcome, self.of(counter)))
        .chain([("kernel_evicted", self.evicted), ("unfinished", self.unfinished())])
    }
}

const LOST: [(&str, Counter); 5] = [
    ("ring_full", Counter::LostRingFull),
    ("kernel_unreadable", Counter::LostUnreadable),
    ("kernel_no_scratch", Counter::LostNoScratch),
    ("kernel_unkept", Counter::LostUnkept),
    ("kernel_return", Counter::LostReturn),
];

/// The inode that the kernel attaches uprobes of a file to: on overlayfs that of the layer beneath, which containers of one
/// image share. Only valid as long as the file is open, or something is attached to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RealInode(Mapped);

impl RealInode {
    /// Number of the inode in its file system.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.0.ino
    }

    /// Major and minor number of the file system's device.
    #[must_use]
    pub fn dev(&self) -> (u32, u32) {
        (self.0.dev >> 20, self.0.dev & 0xf_ffff)
    }
}

/// Without the address, which tells where the kernel is.
impl fmt::Debug for RealInode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((major, minor), Mapped { ino, generation, .. }) = (self.dev(), self.0);
        write!(f, "{major}:{minor} {ino} ({generation})")
    }
}

/// The loaded programs. They run as long as there are links, also when this is dropped.
pub struct Uprobes {
    ebpf: Ebpf,
    places: Array<MapData, [u64; PLACE_WORDS]>,
    states: Array<MapData, [u64; 2]>,
    counters: PerCpuArray<MapData, [u64; Counter::ALL.len()]>,
    allowed: KernelMap<MapData, [u64; 3], u8>,
    mapped: Array<MapData, [u64; 3]>,
    /// Why [`Self::real_inode`] can't say.
    no_inodes: Option<String>,
    hooks: Hooks,
    calls: KernelMap<MapData, [u64; 3], [u8; SMALL_CALL]>,
    large_calls: KernelMap<MapData, [u64; 3], [u8; LARGE_CALL]>,
    used: HashMap<PlaceId, Used>,
    /// Slots that were used before, those free for longest first.
    free: VecDeque<u32>,
    /// Slots that never were begin here.
    fresh: u32,
    limit: u32,
    pair_limit: u32,
    call_limit: u32,
    /// Of the next place; the upper half of its id.
    generation: u32,
    cpus: usize,
}

/// What links are made with.
enum Hooks {
    /// Programs for calls and for returns.
    Multi([OwnedFd; 2]),
    Perf(Pmu),
}

/// A place in use.
struct Used {
    kind: u16,
    /// Those that are allowed.
    cgroups: HashSet<CgroupKey>,
    /// As [`Counted::evicted`].
    evicted: u64,
}

const PLACE_WORDS: usize = size_of::<PlaceSettings>() / 8;
const ENTRY: &str = "uprobe_entry";
const RETURN: &str = "uprobe_return";
const INODE: &str = "real_inode";

impl Uprobes {
    /// Loads the programs and returns the ring's reader. Nothing is attached.
    pub fn load(limits: &Limits) -> Result<(Self, RingBuf<MapData>), UprobeError> {
        if !is_supported() {
            return Err(UprobeError::NoCookie);
        }
        let (resolved, inode) = {
            let kernel = btf::read_kernel()?;
            let kernel = btf::Btf::parse(&kernel)?;
            (kernel.resolve()?, mapped_offsets(&kernel))
        };
        let settings = settings(limits)?;
        raise_locked_memory();
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("OFFSETS", resolved.offsets.as_bytes(), true)
            .override_global("UPROBE_SETTINGS", settings.as_bytes(), true)
            .override_global("MAPPED_OFFSETS", inode.as_ref().unwrap_or(&MappedOffsets::ZERO).as_bytes(), true)
            .map_max_entries("UPROBE_RING", limits.ring_bytes)
            .map_max_entries("PLACES", limits.places)
            .map_max_entries("STATES", limits.places)
            .map_max_entries("PLACE_COUNTERS", limits.places)
            .map_max_entries("ALLOWED", limits.cgroups)
            .map_max_entries("CALLS", limits.calls)
            .map_max_entries("LARGE_CALLS", (limits.calls / 16).max(1))
            .load(OBJECT)
            .map_err(UprobeError::Load)?;
        let hooks = match multi::load(OBJECT, &ebpf, [ENTRY, RETURN]) {
            Ok(programs) => Hooks::Multi(programs),
            Err(error) => {
                if error.raw_os_error() == Some(libc::EINVAL) {
                    tracing::debug!(%error, "no uprobe.multi, which takes Linux 6.6: uprobes end one after the other");
                } else {
                    tracing::warn!(
                        %error,
                        "programs of uprobe.multi can't be loaded, though the kernel may have it: uprobes end one after the \
                         other until the next start"
                    );
                }
                let pmu = Pmu::read()?;
                for program in [ENTRY, RETURN] {
                    let loaded = program_of::<UProbe>(&mut ebpf, program)?.load();
                    loaded.map_err(|source| UprobeError::Program { program, source })?;
                }
                Hooks::Perf(pmu)
            }
        };
        let no_inodes = match &inode {
            None => {
                Some("the kernel's BTF lacks a field of struct vm_area_struct, file, inode or super_block".to_owned())
            }
            Some(_) => program_of::<RawTracePoint>(&mut ebpf, INODE)?
                .load()
                .err()
                .map(|source| UprobeError::Program { program: INODE, source })
                .map(|error| format!("it takes Linux 5.17: {}", crate::attach::refusal::shortened(error.to_string()))),
        };
        let ring = map(&mut ebpf, "UPROBE_RING", RingBuf::try_from)?;
        let uprobes = Self {
            places: map(&mut ebpf, "PLACES", Array::try_from)?,
            states: map(&mut ebpf, "STATES", Array::try_from)?,
            counters: map(&mut ebpf, "PLACE_COUNTERS", PerCpuArray::try_from)?,
            allowed: map(&mut ebpf, "ALLOWED", KernelMap::try_from)?,
            mapped: map(&mut ebpf, "MAPPED", Array::try_from)?,
            calls: map(&mut ebpf, "CALLS", KernelMap::try_from)?,
            large_calls: map(&mut ebpf, "LARGE_CALLS", KernelMap::try_from)?,
            no_inodes,
            hooks,
            used: HashMap::new(),
            free: VecDeque::new(),
            fresh: 0,
            limit: limits.places,
            pair_limit: limits.cgroups,
            call_limit: limits.calls,
            generation: 1,
            cpus: aya::util::nr_cpus().map_err(|(_, source)| UprobeError::Cpus(source))?,
            ebpf,
        };
        Ok((uprobes, ring))
    }

    /// A new place, from now on counted for itself.
    pub fn place(&mut self, spec: &PlaceSpec) -> Result<PlaceId, UprobeError> {
        // The slot that is free for longest: a program that still runs for its last place must not find another's settings.
        let slot = if self.fresh < self.limit {
            self.fresh += 1;
            self.fresh - 1
        } else {
            self.free.pop_front().ok_or(UprobeError::Full { places: self.limit })?
        };
        let id = PlaceId(u64::from(self.generation) << 32 | u64::from(slot));
        self.generation = self.generation.wrapping_add(1).max(1);
        let written = self.write(slot, &PlaceSettings { id: id.0, ..spec.0 });
        if written.is_err() {
            self.free.push_back(slot);
        }
        written?;
        self.used.insert(id, Used { kind: spec.0.kind, cgroups: HashSet::new(), evicted: 0 });
        Ok(id)
    }

    /// Counters and state first: the programs do nothing for a place before it has its id.
    fn write(&mut self, slot: u32, settings: &PlaceSettings) -> Result<(), UprobeError> {
        let zeros = PerCpuValues::try_from(vec![[0; Counter::ALL.len()]; self.cpus]).map_err(UprobeError::Cpus)?;
        self.counters.set(slot, zeros, 0).map_err(of_map("PLACE_COUNTERS"))?;
        self.states.set(slot, [0; 2], 0).map_err(of_map("STATES"))?;
        let words: [u64; PLACE_WORDS] = zerocopy::transmute!(*settings);
        self.places.set(slot, words, 0).map_err(of_map("PLACES"))
    }

    /// Ends a place: what was counted there in all. Records of it may still be in the ring. The counts are exact where its
    /// links are gone already; else hits of this very moment may be told and missing from them.
    pub fn retire(&mut self, place: PlaceId) -> Result<Counted, UprobeError> {
        if !self.used.contains_key(&place) {
            return Err(UprobeError::Retired { place });
        }
        // From here on its programs do nothing, so that nothing is missing in what is counted.
        self.places.set(place.slot(), [0; PLACE_WORDS], 0).map_err(of_map("PLACES"))?;
        let counted = self.counted(place)?;
        let Some(Used { cgroups, .. }) = self.used.remove(&place) else { return Err(UprobeError::Retired { place }) };
        for cgroup in cgroups {
            let _absent = self.allowed.remove(&key(place, cgroup));
        }
        self.free.push_back(place.slot());
        Ok(counted)
    }

    /// Attaches a place to an opened file: `file` may be a path in any root, what counts is the inode.
    ///
    /// Processes that have the file mapped are probed at once, later ones as they map it.
    pub fn attach(&self, file: BorrowedFd<'_>, place: PlaceId, at: At) -> Result<Link, UprobeError> {
        let Some(Used { kind, .. }) = self.used.get(&place) else { return Err(UprobeError::Retired { place }) };
        let (calls, returns) = match *kind {
            kind::CALL => (true, true),
            kind::RETURN => (false, true),
            _ => (true, false),
        };
        let semaphore = match at.semaphore {
            None => 0,
            Some(offset) => u64::from(u32::try_from(offset).map_err(|_| UprobeError::Semaphore { offset })?),
        };
        let offset = at.offset;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(|source| UprobeError::Attach { offset, source: source.into() })?;
        // A call that is kept and whose return is not watched yet is unfinished; one that is not kept would be unpaired.
        let wanted = [(calls, false), (returns, true)].into_iter().filter(|(is_wanted, _)| *is_wanted);
        let fds = wanted.map(|(_, returns)| self.hook(&path, place, offset, semaphore, returns));
        let mut fds = fds.collect::<Result<Vec<_>, _>>()?;
        fds.reverse();
        Ok(Link { _fds: fds })
    }

    fn hook(
        &self,
        path: &CStr,
        place: PlaceId,
        offset: u64,
        semaphore: u64,
        returns: bool,
    ) -> Result<Fds, UprobeError> {
        match &self.hooks {
            Hooks::Multi([entry, ret]) => {
                let program = if returns { ret } else { entry };
                let link = sys::link_multi(program.as_fd(), path, offset, semaphore, place.0, returns);
                Ok(Fds::Multi { _link: link.map_err(|source| UprobeError::Attach { offset, source })? })
            }
            Hooks::Perf(pmu) => {
                let retprobe = if returns { 1 << pmu.return_bit } else { 0 };
                let event = sys::open_uprobe(pmu.kind, semaphore << SEMAPHORE_SHIFT | retprobe, path, offset);
                let event = event.map_err(|source| UprobeError::Attach { offset, source })?;
                let program = self.program(if returns { RETURN } else { ENTRY })?;
                let link = sys::link(program.as_fd(), event.as_fd(), place.0);
                let link = link.map_err(|source| UprobeError::Link { offset, source })?;
                Ok(Fds::Perf { _link: link, _event: event })
            }
        }
    }

    /// Whether links end side by side, on threads of their own.
    #[must_use]
    pub fn ends_at_once(&self) -> bool {
        matches!(self.hooks, Hooks::Multi(_))
    }

    /// From now on hits of this cgroup are told at the place, if it has [`Scope::Cgroups`]. Whether they were not before.
    pub fn allow(&mut self, place: PlaceId, cgroup: CgroupKey) -> Result<bool, UprobeError> {
        let Some(Used { cgroups, .. }) = self.used.get_mut(&place) else { return Err(UprobeError::Retired { place }) };
        self.allowed.insert(key(place, cgroup), 0, 0).map_err(of_map("ALLOWED"))?;
        Ok(cgroups.insert(cgroup))
    }

    /// No longer.
    pub fn disallow(&mut self, place: PlaceId, cgroup: CgroupKey) {
        if let Some(Used { cgroups, .. }) = self.used.get_mut(&place)
            && cgroups.remove(&cgroup)
        {
            let _absent = self.allowed.remove(&key(place, cgroup));
        }
    }

    /// What has been counted at a place so far.
    pub fn counted(&self, place: PlaceId) -> Result<Counted, UprobeError> {
        let Some(Used { evicted, .. }) = self.used.get(&place) else { return Err(UprobeError::Retired { place }) };
        let per_cpu = self.counters.get(&place.slot(), 0).map_err(of_map("PLACE_COUNTERS"))?;
        let mut counts = [0; Counter::ALL.len()];
        for cpu in per_cpu.iter() {
            for (count, more) in counts.iter_mut().zip(cpu) {
                *count += more;
            }
        }
        Ok(Counted { counts, evicted: *evicted })
    }

    /// Sees which calls have been pushed out. The kernel tells nobody: those that were kept, have not ended and are not there
    /// any more, as far as as many have returned.
    pub fn look_at_calls(&mut self) -> Result<(), UprobeError> {
        let places: Vec<_> =
            self.used.iter().filter(|(_, used)| used.kind == kind::CALL).map(|(place, _)| *place).collect();
        if places.is_empty() {
            return Ok(());
        }
        // In this order what happens meanwhile makes it less, never more.
        let before = places.iter().map(|place| self.counted(*place)).collect::<Result<Vec<_>, _>>()?;
        let mut there: HashMap<u64, u64> = HashMap::new();
        // What changes meanwhile may make it begin anew.
        let most = 2 * usize::try_from(self.call_limit).unwrap_or(usize::MAX);
        for key in self.calls.keys().take(most).chain(self.large_calls.keys().take(most)) {
            let [place, ..] = key.map_err(of_map("CALLS"))?;
            *there.entry(place).or_default() += 1;
        }
        for (place, before) in places.into_iter().zip(before) {
            let after = self.counted(place)?;
            let gone = after.ended() + after.of(Counter::Replaced) + there.get(&place.0).copied().unwrap_or(0);
            let evicted = before.of(Counter::Kept).saturating_sub(gone).min(after.unpaired());
            if let Some(used) = self.used.get_mut(&place) {
                used.evicted = used.evicted.max(evicted);
            }
        }
        Ok(())
    }

    /// Of how many places at the same time there is room.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Of how many pairs of a place and a cgroup at the same time there is room.
    #[must_use]
    pub fn pair_limit(&self) -> u32 {
        self.pair_limit
    }

    /// Hits of all places that the kernel ran no program for, which older kernels do while another program is in the middle
    /// of its work on that CPU: no place has counted them. Of `uprobe.multi` there are none.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        [ENTRY, RETURN].iter().filter_map(|program| self.program(program).ok()).map(recursion_misses).sum()
    }

    /// The inode that uprobes of the file are attached to. An error where this kernel cannot tell (before Linux 5.17):
    /// then every file has to be taken for one of its own.
    pub fn real_inode(&mut self, file: BorrowedFd<'_>) -> Result<RealInode, UprobeError> {
        if let Some(reason) = &self.no_inodes {
            return Err(UprobeError::Inode { reason: reason.clone() });
        }
        let mapping = sys::Mapping::of(file).map_err(UprobeError::Mapping)?;
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = mapping.address();
        self.mapped.set(0, [0; 3], 0).map_err(of_map("MAPPED"))?;
        // Another thread may change the mappings at this moment, which the program does not wait for.
        for _attempt in 0..100 {
            let options = RawTracePointRunOptions { args: options.args, cpu: None };
            let ran = program_of::<RawTracePoint>(&mut self.ebpf, INODE)?.test_run(options);
            ran.map_err(|source| UprobeError::Program { program: INODE, source })?;
            let words = self.mapped.get(&0, 0).map_err(of_map("MAPPED"))?;
            let mapped: Mapped = zerocopy::transmute!(words);
            if mapped.inode != 0 {
                return Ok(RealInode(mapped));
            }
            std::thread::yield_now();
        }
        Err(UprobeError::Inode { reason: "the kernel found no mapping of it".to_owned() })
    }

    fn program(&self, name: &'static str) -> Result<&ProgramFd, UprobeError> {
        let program = self.ebpf.program(name).ok_or(UprobeError::Missing { name })?;
        program.fd().map_err(|source| UprobeError::Program { program: name, source })
    }
}

fn key(place: PlaceId, cgroup: CgroupKey) -> [u64; 3] {
    [place.0, cgroup.v2, cgroup.v1]
}

fn of_map(name: &'static str) -> impl Fn(MapError) -> UprobeError {
    move |source| UprobeError::Map { name, source }
}

fn map<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    form: impl FnOnce(Map) -> Result<T, MapError>,
) -> Result<T, UprobeError> {
    form(ebpf.take_map(name).ok_or(UprobeError::Missing { name })?).map_err(of_map(name))
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, UprobeError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(UprobeError::Missing { name })?;
    program.try_into().map_err(|source| UprobeError::Program { program: name, source })
}

fn settings(limits: &Limits) -> Result<UprobeSettings, UprobeError> {
    Ok(UprobeSettings {
        // A ring smaller than two thresholds would fill before its reader wakes.
        wakeup_bytes: UprobeSettings::DEFAULT.wakeup_bytes.min(u64::from(limits.ring_bytes) / 4),
        ip: INSTRUCTION_POINTER.offset.into(),
        sp: STACK_POINTER.offset.into(),
        return_pops: RETURN_POPS,
        self_vpid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        self_pid_ns: own_pid_namespace().map_err(UprobeError::Pid)?,
        reserved: 0,
    })
}

/// `None` where the kernel lacks one of the fields.
fn mapped_offsets(kernel: &btf::Btf<'_>) -> Option<MappedOffsets> {
    let offset =
        |of, path, size| kernel.member(of, path).filter(|member| member.size == size).map(|member| member.offset);
    Some(MappedOffsets {
        vma_file: offset("vm_area_struct", "vm_file", 8)?,
        file_inode: offset("file", "f_inode", 8)?,
        inode_ino: offset("inode", "i_ino", 8)?,
        inode_generation: offset("inode", "i_generation", 4)?,
        inode_sb: offset("inode", "i_sb", 8)?,
        sb_dev: offset("super_block", "s_dev", 4)?,
    })
}

/// How the kernel's perf events name uprobes.
#[derive(Clone, Copy)]
struct Pmu {
    kind: u32,
    /// Bit of `config` for returns.
    return_bit: u32,
}

impl Pmu {
    fn read() -> Result<Self, UprobeError> {
        Ok(Self { kind: Self::number("type", "")?, return_bit: Self::number("format/retprobe", "config:")? })
    }

    fn number(file: &str, prefix: &str) -> Result<u32, UprobeError> {
        let path = format!("{PMU}/{file}");
        let said = match fs::read_to_string(&path) {
            Ok(said) => said,
            Err(source) => return Err(UprobeError::Pmu { path, source }),
        };
        let number = said.trim().strip_prefix(prefix).and_then(|number| number.parse().ok());
        // Semaphores have the upper half.
        let number = number.filter(|number| prefix.is_empty() || *number < SEMAPHORE_SHIFT);
        number.ok_or(UprobeError::PmuForm { path, said })
    }
}
