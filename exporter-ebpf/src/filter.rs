//! Which events are told of, decided before a record is assembled.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use core::ptr::read_volatile;
use namespan_ebpf::settings::{COMM_PREFIX_MAX, PATH_PREFIX_MAX, PREFIXES_MAX, Shift, UIDS_MAX};
use namespan_ebpf::wire::{Counter, Place, section};

use crate::identity::{Cgroups, Identity, mount_namespace, number, put};
use crate::kernel::{Access, Ptr, copy, element, off, setting};
use crate::record::Record;

/// Processes whose exec passed a filter that can't be asked again at their exit. User space sets the size.
#[map]
static TRACKED: HashMap<TrackedKey, u8> = HashMap::with_max_entries(1, 0);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct TrackedKey {
    start_boot_ns: u64,
    tgid: u32,
    reserved: u32,
}

impl TrackedKey {
    #[inline(always)]
    pub fn of<A: Access>(who: &Identity) -> Result<Self, Counter> {
        Ok(Self {
            start_boot_ns: number::<A, u64>(who.leader, off!(task_start_boottime))?,
            tgid: number::<A, u32>(who.task, off!(task_tgid))?,
            reserved: 0,
        })
    }
}

/// Takes nothing until user space says from when on.
#[map]
static SHIFT: Array<Shift> = Array::with_max_entries(1, 0);

/// Since when these programs take events, by the boot clock; `None`: not this one, which is another's to take and to count.
#[inline(always)]
pub fn on_shift(now: u64) -> Option<u64> {
    let shift = SHIFT.get_ptr(0)?;
    // SAFETY: the map's only value. User space writes it as a whole, long before it matters.
    let (from, until) =
        unsafe { (read_volatile(&raw const (*shift).from_boot_ns), read_volatile(&raw const (*shift).until_boot_ns)) };
    (from <= now && now < until).then_some(from)
}

/// Never ourselves.
#[inline(always)]
pub fn ourselves(who: &Identity) -> Result<(), Counter> {
    if who.vpid == setting!(self_vpid) && who.pid_ns == setting!(self_pid_ns) {
        return Err(Counter::Filtered);
    }
    Ok(())
}

/// Only the effective uids asked for.
#[inline(always)]
pub fn uid(who: &Identity) -> Result<(), Counter> {
    let uids = setting!(uid_count);
    if uids == 0 {
        return Ok(());
    }
    let mut index = 0;
    while index < UIDS_MAX {
        if index as u32 >= uids {
            break;
        }
        let uid: u32 = setting!(uids[index]);
        if uid == who.euid {
            return Ok(());
        }
        index += 1;
    }
    Err(Counter::Filtered)
}

/// Where processes are that user space does not want. It decides by what it knows of the container, once for each place.
/// User space sets the size.
#[map]
static UNWANTED: LruHashMap<Place, u8> = LruHashMap::with_max_entries(1, 0);

/// Only the places that are not known to be unwanted; writes the others' ids and paths into the record.
#[inline(always)]
pub fn cgroups<A: Access>(record: &Record, task: Ptr) -> Result<(), Counter> {
    let Cgroups { v2: cgroup, v1, key } = Cgroups::of::<A>(task)?;
    if setting!(selects) != 0 {
        let place = Place { cgroup: key, mount_ns: mount_namespace::<A>(task).into() };
        // SAFETY: nothing is read.
        if unsafe { UNWANTED.get(&place) }.is_some() {
            return Err(Counter::Filtered);
        }
    }
    let to = record.process();
    put!(to.cgroup_id = key.v2);
    put!(to.cgroup_v1_id = key.v1);
    record.cgroup::<A>(section::CGROUP, Some(cgroup));
    record.cgroup::<A>(section::CGROUP_V1, v1);
    Ok(())
}

/// Only the prefixes of comm asked for.
#[inline(always)]
pub fn comm(leader: Ptr) -> Result<(), Counter> {
    let prefixes = setting!(comm_count);
    if prefixes == 0 {
        return Ok(());
    }
    let mut comm = [0u8; COMM_PREFIX_MAX];
    if !copy(comm.as_mut_ptr(), COMM_PREFIX_MAX as u32, leader.wrapping_add(off!(task_comm) as usize)) {
        return Err(Counter::LostUnreadable);
    }
    let mut prefix = 0;
    while prefix < PREFIXES_MAX {
        if prefix as u32 >= prefixes {
            break;
        }
        let len: u32 = setting!(comm_lens[prefix]);
        let len = len as usize;
        let mut at = 0;
        while at < COMM_PREFIX_MAX {
            if at >= len || element(comm.as_ptr(), at) != setting!(comms[prefix; COMM_PREFIX_MAX][at]) {
                break;
            }
            at += 1;
        }
        if at == len {
            return Ok(());
        }
        prefix += 1;
    }
    Err(Counter::Filtered)
}

/// Only the prefixes of the executable's path asked for. `path` has room for [`PATH_PREFIX_MAX`] bytes.
#[inline(always)]
pub fn path(path: *const u8, bytes: u32) -> Result<(), Counter> {
    let prefixes = setting!(path_count);
    if prefixes == 0 {
        return Ok(());
    }
    let mut prefix = 0;
    while prefix < PREFIXES_MAX {
        if prefix as u32 >= prefixes {
            break;
        }
        let len: u32 = setting!(path_lens[prefix]);
        let mut at = 0;
        while at < PATH_PREFIX_MAX {
            if at as u32 >= len || at as u32 >= bytes {
                break;
            }
            // SAFETY: the path's buffer has room for a whole prefix.
            if unsafe { *path.wrapping_add(at) } != setting!(paths[prefix; PATH_PREFIX_MAX][at]) {
                break;
            }
            at += 1;
        }
        if at as u32 == len {
            return Ok(());
        }
        prefix += 1;
    }
    Err(Counter::Filtered)
}

/// Remembers at its exec that a process is told of: at its exit, uid and comm may have changed and the path is gone.
#[inline(always)]
pub fn track<A: Access>(who: &Identity) -> Result<(), Counter> {
    if setting!(tracks) == 0 {
        return Ok(());
    }
    TRACKED.insert(&TrackedKey::of::<A>(who)?, &0, u64::from(BPF_ANY)).map_err(|_| Counter::LostUntracked)
}

/// Whether an exiting process's exec was told of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    Yes,
    /// It is older than these programs: user space has to know.
    Unknown,
}

/// Whether an exiting process is one whose exec was told of; forgets it. `since`: since when these programs take events.
#[inline(always)]
pub fn untrack(process: &TrackedKey, since: u64) -> Result<Tracked, Counter> {
    if setting!(tracks) == 0 || TRACKED.remove(process).is_ok() {
        return Ok(Tracked::Yes);
    }
    if process.start_boot_ns < since { Ok(Tracked::Unknown) } else { Err(Counter::Filtered) }
}
