//! Folders and files of others, who may not mean well: no way out of a folder, no waiting, nothing of unbounded size.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, inotify, openat, openat2};
use serde::de::DeserializeOwned;

/// Events read at a time, in bytes.
const EVENTS: usize = 16 << 10;
/// Most reads before others have their turn.
const READS: usize = 64;

/// Where a runtime's folder is.
#[derive(Clone, Debug)]
pub struct Root {
    /// Found as any other path is.
    trusted: PathBuf,
    /// Below it, on the same file system where it is a user's, and found without any symbolic link.
    below: PathBuf,
    /// Who has to own what is read; `None`: the folder is root's, who may well give files away.
    owner: Option<u32>,
}

impl Root {
    pub fn of_host(path: PathBuf) -> Self {
        Self { trusted: path, below: PathBuf::new(), owner: None }
    }

    pub fn of_user(user: u32, trusted: PathBuf, below: impl Into<PathBuf>) -> Self {
        Self { trusted, below: below.into(), owner: Some(user) }
    }

    pub fn path(&self) -> PathBuf {
        self.trusted.join(&self.below)
    }

    pub fn open(&self) -> io::Result<Folder> {
        Folder::open(&self.trusted, self.owner)?.folder(&self.below)
    }

    /// The nearest folder above that is there.
    pub fn nearest(&self) -> io::Result<Folder> {
        let Ok(trusted) = Folder::open(&self.trusted, self.owner) else {
            let mut above = self.trusted.ancestors().skip(1).map(|path| Folder::open(path, None));
            return above.find(Result::is_ok).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
        };
        let found = self.below.ancestors().skip(1).find_map(|below| trusted.folder(below).ok());
        Ok(found.unwrap_or(trusted))
    }
}

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    owner: Option<u32>,
}

/// What was in a file.
pub struct Content {
    pub bytes: Vec<u8>,
    /// When that was written, in nanoseconds.
    pub written: u64,
}

impl Content {
    pub fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.bytes)?)
    }

    pub fn number(&self) -> Option<u32> {
        str::from_utf8(&self.bytes).ok()?.trim().parse().ok()
    }
}

impl Folder {
    pub fn open(path: &Path, owner: Option<u32>) -> io::Result<Self> {
        Ok(Self { fd: openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, owner })
    }

    pub fn folder(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = Some(path.as_ref()).filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { fd: self.open_below(path, OFlags::DIRECTORY)?, owner: self.owner })
    }

    /// A file of at most so many bytes.
    pub fn file(&self, name: impl AsRef<Path>, most: usize) -> io::Result<Content> {
        // Neither a FIFO without a writer nor a lease on the file makes us wait.
        let fd = self.open_below(name.as_ref(), OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        if self.owner.is_some_and(|owner| owner != stat.st_uid) {
            return Err(io::Error::other("a file of somebody else"));
        }
        let mut bytes = Vec::new();
        File::from(fd).take(most as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            return Err(io::Error::other("too large"));
        }
        let written = stat.st_mtime.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec);
        Ok(Content { bytes, written })
    }

    /// The names of what is in it, in no order; at most so many.
    pub fn names(&self, most: usize) -> io::Result<Vec<String>> {
        let names = Dir::read_from(&self.fd)?.take(most).map_while(Result::ok);
        Ok(names.filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned())).collect())
    }

    fn open_below(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if self.owner.is_some() {
            // What a user mounts may never answer.
            resolve |= ResolveFlags::NO_XDEV;
        }
        openat2(&self.fd, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

/// Tells which of the folders that are watched have changed.
#[derive(Clone, Debug)]
pub struct Ears(Arc<OwnedFd>);

/// What has been heard.
pub enum Heard {
    /// Something is new or gone in the folder of this watch.
    Changed(i32),
    /// There is no such watch any more.
    Over(i32),
    /// Too much has happened: anything may have changed.
    Overflow,
}

impl Ears {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?)))
    }

    /// The number of the watch; the same one for the same folder.
    pub fn watch(&self, folder: &Folder) -> io::Result<i32> {
        use inotify::WatchFlags as Flags;
        let flags = Flags::CREATE | Flags::CLOSE_WRITE | Flags::MOVE | Flags::DELETE;
        let flags = flags | Flags::DELETE_SELF | Flags::MOVE_SELF | Flags::ONLYDIR | Flags::EXCL_UNLINK;
        // By its descriptor: the path may lead elsewhere by now.
        Ok(inotify::add_watch(&self.0, format!("/proc/self/fd/{}", folder.fd.as_raw_fd()), flags)?)
    }

    pub fn forget(&self, watch: i32) {
        // Gone with its folder already, often enough.
        inotify::remove_watch(&self.0, watch).unwrap_or_default();
    }

    /// What has happened since, without waiting. False: there is more.
    pub fn hear(&self, mut heard: impl FnMut(Heard)) -> bool {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(self.0.as_fd(), &mut buffer);
        let mut reads = 0;
        loop {
            // What has been read is lost if it is not looked at.
            reads += usize::from(events.is_buffer_empty());
            if reads > READS {
                return false;
            }
            let Ok(event) = events.next() else { return true };
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                heard(Heard::Overflow);
            } else if event.events().contains(inotify::ReadFlags::IGNORED) {
                heard(Heard::Over(event.wd()));
            } else if event.events().contains(inotify::ReadFlags::ISDIR)
                || event.file_name().is_none_or(|name| matters(name.to_bytes()))
            {
                heard(Heard::Changed(event.wd()));
            }
        }
    }
}

/// Neither a file that is a lock nor one that is not complete yet.
fn matters(name: &[u8]) -> bool {
    !name.starts_with(b".") && !name.ends_with(b".lock")
}

impl std::os::fd::AsRawFd for Ears {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
