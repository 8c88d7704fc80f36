//! A process and a path come in; the file at that path in the process's root goes out, and no other, whatever links there
//! are.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::mounts::{Mounts, mount_of};
use crate::enrich::procfs::Stat;
use crate::event::ProcessId;

/// Most bytes of `/proc/PID/maps` that are read.
const MAX_MAPS: u64 = 16 << 20;
/// `PATH_MAX` of Linux.
const MAX_PATH: usize = 4096;
/// An open that is told `EAGAIN` has met a rename, and is tried again.
const ATTEMPTS: usize = 8;

/// A process's root directory. It stays that, also when the process ends or changes its root.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    /// The process's own in `/proc`; `None`: our own root.
    process: Option<OwnedFd>,
    /// The table of mounts and what it said, as far as it was read.
    mounts: RefCell<Option<(File, Rc<Mounts>)>>,
}

/// Names a root as long as somebody has it: paths lead to the same files in the same root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootId {
    mount: u64,
    device: u64,
    inode: u64,
}

/// A file opened in a root.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    /// As the process sees it.
    pub path: String,
    pub device: u64,
    pub inode: u64,
    /// Seconds and nanoseconds of its `ctime`: on overlayfs a file that is copied up keeps its number.
    pub changed: (i64, u64),
}

/// A file as it was at some time: another inode, or a change of it or of where its content is, makes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

impl Opened {
    #[must_use]
    pub fn version(&self) -> Version {
        Version { device: self.device, inode: self.inode, changed: self.changed }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("process {pid} has ended, or another has its number now")]
    Gone { pid: u32 },
    #[error("the root of process {pid} can't be opened, for which CAP_SYS_PTRACE is needed, or root")]
    Root { pid: u32, source: io::Error },
    #[error("{path}: the path has to begin with `/`, and has at most 4095 bytes and no NUL")]
    Path { path: String },
    #[error("{path}: no such file in the target's root")]
    NotFound { path: String },
    #[error("{path}: not a regular file")]
    NotRegular { path: String },
    #[error("{path} can't be opened in the target's root")]
    Open { path: String, source: io::Error },
    #[error("the memory map of the process can't be read")]
    Maps { source: io::Error },
    #[error(
        "no process of the target has mapped a library `{library}`; give its path, or its name as in /proc/PID/maps"
    )]
    NoLibrary { library: String },
    #[error("{path} is on {reason}, which may never answer: only files that this host keeps itself are probed")]
    Remote { path: String, reason: String },
    #[error(
        "{path} leads through links over several mounts, of which some may never answer: give the file's real path"
    )]
    Crosses { path: String },
    #[error("the mounts of the process can't be read")]
    Mounts { source: io::Error },
    #[error("{path}: the file that is mapped was deleted or replaced; restart the process")]
    Deleted { path: String },
}

impl OpenError {
    /// Whether the same may work later without anybody's help: a file may appear, a library be loaded.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NoLibrary { .. }
            | Self::Open { .. }
            | Self::Maps { .. }
            | Self::Mounts { .. } => true,
            Self::Gone { .. }
            | Self::Root { .. }
            | Self::Path { .. }
            | Self::NotRegular { .. }
            | Self::Remote { .. }
            | Self::Crosses { .. }
            | Self::Deleted { .. } => false,
        }
    }
}

impl Root {
    fn new(directory: OwnedFd, process: Option<OwnedFd>) -> Self {
        Self { directory, process, mounts: RefCell::new(None) }
    }

    /// Our own.
    pub fn of_host() -> Result<Self, OpenError> {
        let directory =
            directory(CWD, "/").map_err(|error| OpenError::Open { path: "/".to_owned(), source: error.into() })?;
        Ok(Self::new(directory, None))
    }

    /// Of a process that began then.
    pub fn of(process: ProcessId) -> Result<Self, OpenError> {
        Self::checked(process.tgid, |stat| stat.is(process))
    }

    /// Of whatever process has this number now.
    pub fn of_pid(pid: u32) -> Result<Self, OpenError> {
        Self::checked(pid, |_| true)
    }

    /// Of a process that was there when its `/proc/PID/stat` was read.
    pub fn of_elder(pid: u32, known: Stat) -> Result<Self, OpenError> {
        Self::checked(pid, |stat| stat.is_same(known))
    }

    /// Whether it is our own, by the directory's inode.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let own = rustix::fs::stat("/").map(id);
        let same_root = fstat(&self.directory).map(id).is_ok_and(|this| own.is_ok_and(|own| this == own));
        let mounts = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(id).ok();
        let own_mounts = mounts(rustix::fs::stat("/proc/self/ns/mnt"));
        let same_mounts = self.process.as_ref().is_none_or(|process| {
            let its = mounts(rustix::fs::statat(process, "ns/mnt", rustix::fs::AtFlags::empty()));
            its.is_some() && its == own_mounts
        });
        same_root && same_mounts
    }

    /// `None`: the kernel does not say.
    #[must_use]
    pub fn id(&self) -> Option<RootId> {
        let stat = fstat(&self.directory).ok()?;
        let mount = mount_of(self.directory.as_fd()).ok()?;
        Some(RootId { mount, device: stat.st_dev, inode: stat.st_ino })
    }

    /// A directory in `/proc` stays that of the one process, and is empty once that is gone: what is opened through it is of
    /// the process whose start was looked at.
    fn checked(pid: u32, is_wanted: impl Fn(Stat) -> bool) -> Result<Self, OpenError> {
        let process = match directory(CWD, &format!("/proc/{pid}")) {
            Ok(process) => process,
            Err(Errno::NOENT | Errno::SRCH) => return Err(OpenError::Gone { pid }),
            Err(error) => return Err(OpenError::Root { pid, source: error.into() }),
        };
        let stat = read_at(&process, "stat", 4096).ok().and_then(|text| Stat::parse(&text));
        if !stat.is_some_and(is_wanted) {
            return Err(OpenError::Gone { pid });
        }
        match directory(process.as_fd(), "root") {
            Ok(directory) => Ok(Self::new(directory, Some(process))),
            Err(Errno::NOENT | Errno::SRCH) => Err(OpenError::Gone { pid }),
            Err(error) => Err(OpenError::Root { pid, source: error.into() }),
        }
    }

    /// A regular file, for reading. Links lead to where they would for the process, and not out of its root.
    pub fn open(&self, path: &str) -> Result<Opened, OpenError> {
        if !path.starts_with('/') || path.len() >= MAX_PATH || path.contains('\0') {
            return Err(OpenError::Path { path: path.to_owned() });
        }
        let refused = |error| refused(path, error);
        // Opening a device or a pipe may do something, or wait: what it is is asked first.
        let found = self.find(path)?;
        let stat = fstat(&found).map_err(refused)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(OpenError::NotRegular { path: path.to_owned() });
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty()).map_err(refused)?;
        Ok(Opened {
            file: file.into(),
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    /// Never asks a file system that may not answer: not even for what lies behind a link.
    fn find(&self, path: &str) -> Result<OwnedFd, OpenError> {
        let mounts = self.mounts().map_err(|source| OpenError::Mounts { source })?;
        let own = mount_of(self.directory.as_fd()).map_err(|source| OpenError::Mounts { source })?;
        if let Some(reason) = mounts.doubt(own) {
            return Err(OpenError::Remote { path: path.to_owned(), reason });
        }
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match resolve(&self.directory, path, within | ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) if mounts.all_answer() => resolve(&self.directory, path, within),
            Err(Errno::XDEV) if !mounts.is_whole => {
                let reason = "another mount than the root, of more than can be looked at".to_owned();
                return Err(OpenError::Remote { path: path.to_owned(), reason });
            }
            Err(Errno::XDEV) => return self.find_on_mount(&mounts, own, path),
            ended => ended,
        }
        .map_err(|error| refused(path, error))
    }

    /// On the mount that the path names, if no link leads away from there.
    fn find_on_mount(&self, mounts: &Mounts, own: u64, path: &str) -> Result<OwnedFd, OpenError> {
        let crosses = || OpenError::Crosses { path: path.to_owned() };
        let mount = mounts.of_path(own, path).ok_or_else(crosses)?;
        if let Some(reason) = mounts.doubt(mount.id) {
            return Err(OpenError::Remote { path: path.to_owned(), reason });
        }
        let straight = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let point = resolve(&self.directory, &mount.point, straight).map_err(|error| refused(path, error))?;
        // Another may be on top by now.
        if mount_of(point.as_fd()).ok() != Some(mount.id) {
            return Err(crosses());
        }
        let rest = path.strip_prefix(mount.point.trim_end_matches('/')).unwrap_or_default().trim_start_matches('/');
        let below = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match resolve(&point, if rest.is_empty() { "." } else { rest }, below) {
            Err(Errno::XDEV) => Err(crosses()),
            ended => ended.map_err(|error| refused(path, error)),
        }
    }

    /// As they are now.
    fn mounts(&self) -> io::Result<Rc<Mounts>> {
        if let Some((table, mounts)) = &*self.mounts.borrow()
            && !has_changed(table)?
        {
            return Ok(Rc::clone(mounts));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let table = match &self.process {
            Some(process) => openat(process, "mountinfo", flags, Mode::empty()),
            None => openat(CWD, "/proc/self/mountinfo", flags, Mode::empty()),
        };
        // What changes while it is read is seen the next time.
        let table = File::from(table?);
        let mounts = Rc::new(Mounts::read(&table)?);
        self.mounts.replace(Some((table, Rc::clone(&mounts))));
        Ok(mounts)
    }

    /// A library that the process has mapped now, opened in its root: `libssl`, `libssl.so.3` or any file name.
    pub fn open_library(&self, library: &str) -> Result<Opened, OpenError> {
        let no_library = || OpenError::NoLibrary { library: library.to_owned() };
        let process = self.process.as_ref().ok_or_else(no_library)?;
        let maps = read_at(process, "maps", MAX_MAPS).map_err(|source| OpenError::Maps { source })?;
        let path = mapped(&maps, library).ok_or_else(no_library)?;
        match path.strip_suffix(" (deleted)") {
            Some(path) => Err(OpenError::Deleted { path: path.to_owned() }),
            None => self.open(&path),
        }
    }
}

/// Whether there are other mounts than when this table of the kernel was opened or last asked.
fn has_changed(table: &File) -> io::Result<bool> {
    let mut asked = [PollFd::new(table, PollFlags::PRI)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once))?;
    Ok(asked.iter().any(|asked| asked.revents().intersects(PollFlags::PRI | PollFlags::ERR)))
}

fn refused(path: &str, error: Errno) -> OpenError {
    match error {
        Errno::NOENT | Errno::NOTDIR => OpenError::NotFound { path: path.to_owned() },
        error => OpenError::Open { path: path.to_owned(), source: error.into() },
    }
}

fn resolve(at: &OwnedFd, path: &str, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let attempt = || openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            ended => return ended,
        }
    }
    attempt()
}

fn directory(at: impl std::os::fd::AsFd, path: &str) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn read_at(process: &OwnedFd, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file: File = openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into();
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text)?;
    Ok(text)
}

/// The path of the first mapping of a file of this name. The kernel writes a path as it is, but a line feed as `\012`.
fn mapped(maps: &[u8], library: &str) -> Option<String> {
    let path = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        String::from_utf8(line[at..].to_vec()).ok().map(|path| path.replace("\\012", "\n"))
    };
    maps.split(|byte| *byte == b'\n').filter_map(path).find(|path| {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let name = Path::new(path).file_name().map(|name| String::from_utf8_lossy(name.as_bytes()));
        name.is_some_and(|name| is_called(&name, library))
    })
}

/// `libssl.so.3` is called so, and `libssl`.
fn is_called(name: &str, library: &str) -> bool {
    name == library || name.find(".so").is_some_and(|end| name[..end] == *library)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory as the root of a container.
    fn root(directory: &Path) -> Root {
        let directory = super::directory(CWD, directory.to_str().unwrap()).unwrap();
        Root::new(directory, None)
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        symlink("/etc/hostname", dir.path().join("absolute")).unwrap();
        symlink("../../../../../etc/hostname", dir.path().join("etc/relative")).unwrap();
        symlink("/proc/self/root/etc/hostname", dir.path().join("magic")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = root(dir.path());
        for path in ["/etc/hostname", "/absolute", "/etc/relative", "/../../etc/hostname"] {
            let mut text = String::new();
            root.open(path).unwrap().file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{path}");
        }
        assert!(matches!(root.open("/magic"), Err(OpenError::NotFound { .. })));
        assert!(matches!(root.open("/loop"), Err(OpenError::Open { .. })));
        assert!(matches!(root.open("etc/hostname"), Err(OpenError::Path { .. })));
        assert!(matches!(root.open(&"/x".repeat(3000)), Err(OpenError::Path { .. })));
        assert!(matches!(Root::of_host().unwrap().open("/proc/self/exe"), Err(OpenError::Open { .. })));
    }

    #[test]
    fn processes_with_one_root_have_one_name_of_it() {
        let own = Root::of_host().unwrap().id().unwrap();
        assert_eq!(Root::of_pid(std::process::id()).unwrap().id(), Some(own));
        assert_ne!(root(tempfile::tempdir().unwrap().path()).id(), Some(own));
    }

    #[test]
    fn the_table_of_mounts_is_read_once_while_it_stays() {
        let root = Root::of_pid(std::process::id()).unwrap();
        let [first, next] = [root.mounts().unwrap(), root.mounts().unwrap()];
        // Another test may mount meanwhile.
        let changed = root.mounts.borrow().as_ref().is_some_and(|(_, last)| !Rc::ptr_eq(last, &next));
        assert!(Rc::ptr_eq(&first, &next) || changed);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let root = root(dir.path());
        assert!(matches!(root.open("/pipe"), Err(OpenError::NotRegular { .. })));
        assert!(matches!(root.open("/"), Err(OpenError::NotRegular { .. })));
        assert!(matches!(Root::of_host().unwrap().open("/dev/null"), Err(OpenError::NotRegular { .. })));
    }

    #[test]
    fn only_the_process_that_is_meant_is_taken() {
        let pid = std::process::id();
        let root = Root::of_pid(pid).unwrap();
        assert_eq!(root.open("/").unwrap_err().to_string(), "/: not a regular file");
        assert!(matches!(Root::of(ProcessId { tgid: pid, start_boot_ns: 1 }), Err(OpenError::Gone { .. })));
        assert!(matches!(Root::of_pid(u32::MAX), Err(OpenError::Gone { .. })));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let of_child = Root::of_pid(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(of_child.open_library("libc"), Err(OpenError::Maps { .. } | OpenError::NoLibrary { .. })));
        assert!(matches!(Root::of_pid(child.id()), Err(OpenError::Gone { .. })));
    }

    #[test]
    fn a_library_is_found_by_name_among_what_is_mapped() {
        let maps = b"7f00-7f01 r--p 00000000 08:01 12 /usr/lib/libssl_old.so\n\
            7f01-7f02 r--p 00000000 08:01 13                         /usr/lib/x y/libssl.so.3\n\
            7f02-7f03 r--p 00000000 08:01 14 /opt/libz.so.1 (deleted)\n7f03-7f04 rw-p 0 00:00 0 [heap]\n\xff /\xff\n";
        for library in ["libssl", "libssl.so.3"] {
            assert_eq!(mapped(maps, library).as_deref(), Some("/usr/lib/x y/libssl.so.3"), "{library}");
        }
        assert_eq!(mapped(maps, "libz").as_deref(), Some("/opt/libz.so.1 (deleted)"));
        for library in ["libss", "ssl", "[heap]", ""] {
            assert_eq!(mapped(maps, library), None, "{library}");
        }
        let opened = Root::of_pid(std::process::id()).unwrap().open_library("libc").unwrap();
        assert!(opened.path.contains("libc.so") && opened.inode != 0, "{}", opened.path);
    }
}
