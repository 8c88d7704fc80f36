//! The object's programs loaded once more, for links of their own kind (`uprobe.multi`, Linux 6.6), which end side by side.
//!
//! A program is loaded for one kind of link, and aya loads them for perf events only.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::Object;

use super::sys;

/// Loads these programs of the object with the maps of `loaded`, which has to have all of them still. `EINVAL`: the kernel does
/// not know such links.
pub fn load<const N: usize>(object: &[u8], loaded: &Ebpf, names: [&str; N]) -> io::Result<[OwnedFd; N]> {
    let mut object = Object::parse(object).map_err(io::Error::other)?;
    let maps = std::mem::take(&mut object.maps);
    let maps = maps.iter().map(|(name, map)| {
        let fd = loaded.map(name).and_then(fd_of).ok_or_else(|| io::Error::other(format!("there is no map {name:?}")));
        Ok((name.as_str(), fd?, map))
    });
    let maps = maps.collect::<io::Result<Vec<_>>>()?;
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps.into_iter(), &sections).map_err(io::Error::other)?;
    object.relocate_calls(&sections).map_err(io::Error::other)?;
    let programs = names.map(|name| {
        let program = object.programs.get(name);
        let function = program.and_then(|program| object.functions.get(&program.function_key()));
        let (program, function) =
            program.zip(function).ok_or_else(|| io::Error::other(format!("there is no program {name:?}")))?;
        sys::load_multi(name, &function.instructions, &program.license)
    });
    let programs = programs.into_iter().collect::<io::Result<Vec<_>>>()?;
    let programs: [OwnedFd; N] = programs.try_into().map_err(|_| io::Error::other("a program is missing"))?;
    links_are_made(&programs)?;
    Ok(programs)
}

/// Older kernels load such a program too, as they do not ask which links it is for. Only where there are links of its kind
/// does the kernel come to see that a folder is no file to be probed.
fn links_are_made(programs: &[OwnedFd]) -> io::Result<()> {
    for program in programs {
        match sys::link_multi(program.as_fd(), c"/", 0, 0, 0, false) {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            Err(error) => return Err(error),
            Ok(_link) => return Err(io::Error::other("the kernel probes a folder")),
        }
    }
    Ok(())
}

/// Of the kinds of maps that the object has.
fn fd_of(map: &Map) -> Option<RawFd> {
    let (Map::Array(map)
    | Map::HashMap(map)
    | Map::LruHashMap(map)
    | Map::PerCpuArray(map)
    | Map::ProgramArray(map)
    | Map::RingBuf(map)) = map
    else {
        return None;
    };
    Some(map.fd().as_fd().as_raw_fd())
}
