//! The system calls of uprobes that no safe interface has: perf events with a semaphore, links with a cookie, a mapping.
//!
//! aya attaches uprobes too, but cannot tell the kernel of a USDT probe's semaphore, nor make links of `uprobe.multi`.
#![expect(unsafe_code, reason = "system calls that take pointers; each is called with what lives as long as the call")]

use std::ffi::{CStr, c_long, c_uint};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use aya_obj::generated::bpf_insn;

/// `struct perf_event_attr` of `include/uapi/linux/perf_event.h`, as far as uprobes use it (`PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    uprobe_path: u64,
    probe_offset: u64,
}

/// `union bpf_attr` of include/uapi/linux/bpf.h, of `BPF_LINK_CREATE` for perf events.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// As above, of `BPF_LINK_CREATE` for many uprobes, of which there is one.
#[repr(C)]
struct LinkCreateMulti {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    semaphores: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

/// As above, of `BPF_PROG_LOAD`, up to the attach type.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
const BPF_PERF_EVENT: u32 = 41;
const PERF_FLAG_FD_CLOEXEC: c_long = 8;
/// The verifier gives up where a signal arrives.
const LOAD_ATTEMPTS: usize = 5;

/// Creates a uprobe for every process, which runs nothing yet. `kind` is the uprobes' type of perf events, `config` their
/// options, `path` names the file, `offset` is in bytes of the file.
pub fn open_uprobe(kind: u32, config: u64, path: &CStr, offset: u64) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind,
        size: u32::try_from(size_of::<PerfEventAttr>()).map_err(io::Error::other)?,
        config,
        uprobe_path: path.as_ptr() as u64,
        probe_offset: offset,
        ..PerfEventAttr::default()
    };
    // Every process, told of on one CPU as a perf event needs one; programs run wherever the hit is.
    let (pid, cpu, group) = (-1_i32, 0_i32, -1_i32);
    // SAFETY: `attr` and `path` live as long as the call, which only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            c_long::from(pid),
            c_long::from(cpu),
            c_long::from(group),
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    owned(fd)
}

/// Runs the program at each hit of the event, until the link or the event is closed.
pub fn link(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        program: program.as_raw_fd().unsigned_abs(),
        target: event.as_raw_fd().unsigned_abs(),
        attach_type: BPF_PERF_EVENT,
        flags: 0,
        cookie,
    };
    let size = c_uint::try_from(size_of::<LinkCreate>()).map_err(io::Error::other)?;
    // SAFETY: `attr` lives as long as the call, which only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attr, size) };
    owned(fd)
}

/// Loads a program for [`link_multi`].
pub fn load_multi(name: &str, instructions: &[bpf_insn], license: &CStr) -> io::Result<OwnedFd> {
    let mut attr = ProgLoad {
        kind: BPF_PROG_TYPE_KPROBE,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgLoad::default()
    };
    // The last byte stays NUL.
    for (to, from) in attr.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let size = c_uint::try_from(size_of::<ProgLoad>()).map_err(io::Error::other)?;
    again_if_interrupted(|| {
        // SAFETY: `attr`, the instructions and the license live as long as the call, which only reads them.
        owned(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size) })
    })
}

fn again_if_interrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..LOAD_ATTEMPTS {
        match attempt() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            ended => return ended,
        }
    }
    attempt()
}

/// A uprobe for every process that runs the program at each hit, until the link is closed. `semaphore`: its offset in the
/// file, or 0.
pub fn link_multi(
    program: BorrowedFd<'_>,
    path: &CStr,
    offset: u64,
    semaphore: u64,
    cookie: u64,
    returns: bool,
) -> io::Result<OwnedFd> {
    let attr = LinkCreateMulti {
        program: program.as_raw_fd().unsigned_abs(),
        target: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: (&raw const offset) as u64,
        semaphores: (&raw const semaphore) as u64,
        cookies: (&raw const cookie) as u64,
        count: 1,
        multi_flags: if returns { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        pid: 0,
        reserved: 0,
    };
    let size = c_uint::try_from(size_of::<LinkCreateMulti>()).map_err(io::Error::other)?;
    // SAFETY: `attr` and what it points to live as long as the call, which only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attr, size) };
    owned(fd)
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first page of a file in our address space; nothing ever reads it.
pub struct Mapping {
    address: *mut libc::c_void,
}

const PAGE: usize = 4096;

impl Mapping {
    pub fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel likes.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { address }) }
    }

    pub fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no reference exists.
        let _unmapped = unsafe { libc::munmap(self.address, PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_a_signal_ends_is_tried_again_and_not_for_ever() {
        let load = |errors: usize, errno| {
            let mut attempts = 0;
            let loaded = again_if_interrupted(|| {
                attempts += 1;
                if attempts > errors { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
            });
            (loaded.is_ok(), attempts)
        };
        assert_eq!(load(2, libc::EAGAIN), (true, 3));
        assert_eq!(load(9, libc::EAGAIN), (false, LOAD_ATTEMPTS));
        assert_eq!(load(9, libc::EINVAL), (false, 1));
    }
}
