//! A place's settings, what is wanted of its hits, and its counters.
//!
//! Since Linux 6.0 a program of a uprobe is not alone on its CPU: it stays there, but another thread's may run in the middle
//! of it. So everything here is added to atomically, and nothing takes the sum back from the addition, which older arm64
//! kernels cannot compile.

use core::arch::asm;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_ringbuf_output, bpf_ringbuf_query};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use namespan_ebpf::uprobe_wire::{Allowed, Counter, DATA_MAX, FIXED, PlaceSettings, PlaceState, UprobeSettings, scope};
use namespan_ebpf::wire;

use crate::identity::{Cgroups, Identity};
use crate::kernel::{Ptr, Typed};

/// User space sets the sizes of all maps.
#[map]
static UPROBE_RING: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static PLACES: Array<PlaceSettings> = Array::with_max_entries(1, 0);
#[map]
static STATES: Array<PlaceState> = Array::with_max_entries(1, 0);
#[map]
static PLACE_COUNTERS: PerCpuArray<[u64; Counter::ALL.len()]> = PerCpuArray::with_max_entries(1, 0);
/// The cgroups of places of [`scope::CGROUPS`].
#[map]
static ALLOWED: HashMap<Allowed, u8> = HashMap::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static UPROBE_SETTINGS: UprobeSettings = UprobeSettings::DEFAULT;

#[inline(always)]
pub fn settings() -> *const UprobeSettings {
    &raw const UPROBE_SETTINGS
}

/// A setting. Volatile, or the compiler would use the value written here.
macro_rules! uprobe_setting {
    ($field:ident) => {
        // SAFETY: a field of a static that user space set before loading and nothing writes since.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::place::settings()).$field) }
    };
}
pub(crate) use uprobe_setting;

/// Inode number of the first PID namespace (`PROC_PID_INIT_INO` in include/linux/proc_ns.h).
const FIRST_PID_NS: u32 = 0xefff_fffc;

/// The place whose program runs.
#[derive(Clone, Copy)]
pub struct Place {
    settings: *const PlaceSettings,
    slot: u32,
}

/// A field of a place's settings.
macro_rules! of_place {
    ($place:expr, $field:ident) => {
        // SAFETY: a value of the map, which lives as long as the program runs.
        unsafe { core::ptr::read_volatile(&raw const (*$place.settings()).$field) }
    };
}
pub(crate) use of_place;

impl Place {
    /// `None`: its slot is another's already, nobody wants the hit any more.
    #[inline(always)]
    pub fn of(ctx: *mut core::ffi::c_void) -> Option<Self> {
        // SAFETY: the program's own context.
        let id = unsafe { bpf_get_attach_cookie(ctx) };
        let slot = id as u32;
        let place = Self { settings: PLACES.get_ptr(slot)?, slot };
        (id != 0 && of_place!(place, id) == id).then_some(place)
    }

    #[inline(always)]
    pub fn settings(&self) -> *const PlaceSettings {
        self.settings
    }

    #[inline(always)]
    pub fn count(&self, counter: Counter) {
        if let Some(counters) = PLACE_COUNTERS.get_ptr_mut(self.slot) {
            add(counters.cast::<u64>().wrapping_add(counter as usize), 1);
        }
    }

    /// Whether the current process's hits are wanted: one look into a map for those that are not.
    #[inline(always)]
    pub fn wanted(&self, task: Ptr, cgroups: &Cgroups, tgid: u32) -> Result<Identity, Counter> {
        let wanted = match of_place!(self, scope) {
            scope::CGROUPS => {
                let key = Allowed { place: of_place!(self, id), cgroup: cgroups.key };
                // SAFETY: nothing is read.
                unsafe { ALLOWED.get(&key) }.is_some()
            }
            scope::TGID => tgid == of_place!(self, tgid),
            _ => true,
        };
        if !wanted {
            return Err(Counter::Filtered);
        }
        let who = Identity::of::<Typed>(task).map_err(|_| Counter::LostUnreadable)?;
        let elsewhere = of_place!(self, scope) == scope::HOST && who.pid_ns != FIRST_PID_NS;
        let ourselves = who.vpid == uprobe_setting!(self_vpid) && who.pid_ns == uprobe_setting!(self_pid_ns);
        if elsewhere || ourselves { Err(Counter::Filtered) } else { Ok(who) }
    }

    /// Whether a wanted hit is among those told, by sample and rate.
    ///
    /// Hits on two CPUs at the same moment may count as one, or both be let through: at most one for each CPU at a time. What
    /// is let through is always counted against the rate, except that a hit that begins after a pause may forget those of
    /// the same moment.
    #[inline(always)]
    pub fn admits(&self, now: u64) -> Result<(), Counter> {
        let sample = of_place!(self, sample);
        let interval = of_place!(self, interval_ns);
        if sample <= 1 && interval == 0 {
            return Ok(());
        }
        let state = STATES.get_ptr_mut(self.slot).ok_or(Counter::LostUnreadable)?;
        // SAFETY: a value of the map.
        let (wanted, ends) = unsafe { (&raw mut (*state).wanted, &raw mut (*state).ends_boot_ns) };
        if sample > 1 {
            add(wanted, 1);
            // The first is told.
            // SAFETY: as above.
            if unsafe { read_volatile(wanted) }.wrapping_sub(1) % u64::from(sample) != 0 {
                return Err(Counter::SampledOut);
            }
        }
        if interval > 0 {
            // SAFETY: as above.
            let end = unsafe { read_volatile(ends) };
            if end > now && end - now > of_place!(self, ahead_ns) {
                return Err(Counter::RateLimited);
            }
            if end < now {
                // SAFETY: as above.
                unsafe { core::ptr::write_volatile(ends, now) };
            }
            add(ends, interval);
        }
        Ok(())
    }
}

/// Adds atomically; the sum is not asked for.
#[inline(always)]
pub fn add(to: *mut u64, what: u64) {
    // `core` has no atomics for this target, as it cannot compare and swap everywhere.
    // SAFETY: an aligned number in a map's value, which is only ever changed so or as a whole.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {what}", to = in(reg) to, what = in(reg) what, options(nostack)) };
}

/// Room of one record: more behind the fixed part than a masked length can reach.
pub const ROOM: usize = FIXED + DATA_MAX as usize + 2 * 4096;
/// Records that may be under construction on one CPU.
const SLOTS: u32 = 4;

#[repr(C)]
pub struct Scratch {
    users: u64,
    room: [u8; ROOM],
}

#[map]
static UPROBE_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SLOTS, 0);

/// A scratch buffer that nobody else on this CPU uses until it is released.
pub struct Room {
    users: *mut u64,
    base: *mut u8,
}

impl Room {
    /// Whoever is interrupted between its addition and its look finds one user more or finds none: never do two of them find
    /// that they are alone.
    #[inline(always)]
    pub fn take() -> Option<Self> {
        let mut slot = 0;
        while slot < SLOTS {
            let scratch = UPROBE_SCRATCH.get_ptr_mut(slot)?;
            // SAFETY: a value of the map.
            let (users, base) = unsafe { (&raw mut (*scratch).users, &raw mut (*scratch).room) };
            add(users, 1);
            // SAFETY: as above.
            if unsafe { read_volatile(users) } == 1 {
                return Some(Self { users, base: base.cast() });
            }
            add(users, u64::MAX);
            slot += 1;
        }
        None
    }

    #[inline(always)]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    #[inline(always)]
    pub fn process(&self) -> *mut wire::Process {
        self.base.cast()
    }

    #[inline(always)]
    pub fn release(self) {
        add(self.users, u64::MAX);
    }

    /// Writes the record of [`wire::Process::len`] bytes to the ring.
    #[inline(always)]
    pub fn output(&self) -> Result<(), Counter> {
        let ring = addr_of!(UPROBE_RING).cast_mut().cast();
        // SAFETY: within the buffer.
        let len = unsafe { read_volatile(&raw const (*self.process()).len) };
        let len = u64::from(len & 0x7fff).min((FIXED + DATA_MAX as usize) as u64);
        let threshold = uprobe_setting!(wakeup_bytes);
        // SAFETY: a map of ours; 0 asks for the bytes that wait (`BPF_RB_AVAIL_DATA`).
        let waiting = unsafe { bpf_ringbuf_query(ring, 0) };
        // As for the other programs: only the hit that crosses the threshold wakes the reader, which has a timer too.
        let crosses = waiting < threshold && waiting + len >= threshold;
        let flags = if crosses { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
        // SAFETY: the verifier checks the buffer against the length.
        let status = unsafe { bpf_ringbuf_output(ring, self.base.cast(), len, u64::from(flags)) };
        if status == 0 { Ok(()) } else { Err(Counter::LostRingFull) }
    }
}
