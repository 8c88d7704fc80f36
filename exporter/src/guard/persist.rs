//! A guard that goes on without us: its links and maps in the BPF file system, until the next start takes over.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::pin::PinError;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Lsm};
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

use super::counters::Counts;
use super::load::{CHECK, EXEC, Guard, GuardError, counted, of_map, program_of};

/// Where the BPF file system is mounted, and what is ours in it.
const BPFFS: &str = "/sys/fs/bpf";
const FOLDER: &str = "/sys/fs/bpf/namespan";
/// In include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The maps that it takes to relieve programs, beside the links, which keep them at work.
pub(super) const MAPS: [&str; 3] = [SHIFT, COUNTERS, RING];
const SHIFT: &str = "GUARD_SHIFT";
const COUNTERS: &str = "GUARD_COUNTERS";
const RING: &str = "GUARD_RING";

impl Guard {
    /// From now on it outlives us, with a lease that does not end. One that was pinned before is to be
    /// [removed](Pinned::remove) first. After an error it may have ended: the caller has to end it whole.
    pub fn persist(&mut self) -> Result<(), GuardError> {
        mount_bpffs()?;
        fs::create_dir_all(FOLDER).map_err(|source| of_path(FOLDER, source))?;
        let pinned = self.pin();
        if pinned.is_err() {
            remove()?;
        }
        pinned
    }

    fn pin(&mut self) -> Result<(), GuardError> {
        for name in MAPS {
            let map = self.ids.iter().find(|(of, _)| *of == name).ok_or(GuardError::Missing { name })?;
            let map = MapData::from_id(map.1).map_err(of_map(name))?;
            map.pin(path(name)).map_err(|source| of_pin(name, source))?;
        }
        self.renew(u64::MAX)?;
        if let Some(link) = self.check.take() {
            let link = program_of::<Lsm>(&mut self.ebpf, CHECK)?.take_link(link);
            let link = link.map_err(|source| GuardError::Program { program: CHECK, source })?;
            self.pinned.push(FdLink::from(link).pin(path(CHECK)).map_err(|source| of_pin(CHECK, source))?);
        }
        if let Some(link) = self.exec.take() {
            let link = program_of::<BtfTracePoint>(&mut self.ebpf, EXEC)?.take_link(link);
            let link = link.map_err(|source| GuardError::Program { program: EXEC, source })?;
            self.pinned.push(FdLink::from(link).pin(path(EXEC)).map_err(|source| of_pin(EXEC, source))?);
        }
        Ok(())
    }
}

/// A guard that an earlier run of ours has left.
pub struct Pinned {
    shift: Array<MapData, [u64; 2]>,
    counters: PerCpuArray<MapData, u64>,
    /// What it has told of and nobody has read.
    pub ring: RingBuf<MapData>,
}

/// The guard that an earlier run of ours has left, if it has. What is there and can't be relieved, as another version left it or
/// pinned it in part, is to be [removed](remove): its [error](GuardError::Map) says why.
pub fn take_pinned() -> Result<Option<Pinned>, GuardError> {
    // Who may not look there can't have left anything either.
    if !fs::read_dir(FOLDER).is_ok_and(|mut left| left.next().is_some()) {
        return Ok(None);
    }
    let pinned = Pinned {
        shift: map(SHIFT, Map::Array, Array::try_from)?,
        counters: map(COUNTERS, Map::PerCpuArray, PerCpuArray::try_from)?,
        ring: map(RING, Map::RingBuf, RingBuf::try_from)?,
    };
    pinned.counters()?;
    Ok(Some(pinned))
}

impl Pinned {
    /// As [`Guard::take_over`] from this one.
    pub fn relieved_by(&mut self, new: &mut Guard) -> Result<u64, GuardError> {
        let [from, _] = self.shift.get(&0, 0).map_err(of_map(SHIFT))?;
        new.relieve(from, &mut self.shift)
    }

    /// What it has counted since it was loaded, by the policies of then.
    pub fn counters(&self) -> Result<Counts, GuardError> {
        Ok(Counts::new(counted(&self.counters)?, [0; _]))
    }

    /// Ends it, once its shift is over.
    pub fn remove(self) -> Result<(), GuardError> {
        remove()
    }
}

/// Ends whatever is pinned, whoever of us has named it.
pub fn remove() -> Result<(), GuardError> {
    let Ok(pins) = fs::read_dir(FOLDER) else { return Ok(()) };
    for pin in pins {
        let path = pin.map_err(|source| of_path(FOLDER, source))?.path();
        gone(fs::remove_file(&path), &path.to_string_lossy())?;
    }
    gone(fs::remove_dir(FOLDER), FOLDER)
}

fn gone(removed: io::Result<()>, path: &str) -> Result<(), GuardError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(of_path(path, error)),
        _ => Ok(()),
    }
}

fn path(name: &str) -> String {
    Path::new(FOLDER).join(name).to_string_lossy().into_owned()
}

fn of_path(path: &str, source: io::Error) -> GuardError {
    GuardError::Pin { path: path.to_owned(), source }
}

fn of_pin(name: &str, source: PinError) -> GuardError {
    of_path(&path(name), io::Error::other(source))
}

fn map<T>(
    name: &'static str,
    kind: impl FnOnce(MapData) -> Map,
    form: impl FnOnce(Map) -> Result<T, MapError>,
) -> Result<T, GuardError> {
    MapData::from_pin(path(name)).and_then(|data| form(kind(data))).map_err(of_map(name))
}

/// A fresh machine may not have it mounted.
pub(crate) fn mount_bpffs() -> Result<(), GuardError> {
    let is_mounted =
        statfs(BPFFS).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|magic| magic == BPF_FS_MAGIC));
    if is_mounted {
        return Ok(());
    }
    mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).map_err(|source| of_path(BPFFS, source.into()))
}
