//! The directory of one queue's segments: ours alone, locked, and left by no path but its own.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fsync, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::SpoolError;

pub(super) const LOCK: &str = "lock";

#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    pub(super) path: PathBuf,
    /// Held for as long as it is open.
    _lock: File,
}

impl Directory {
    /// `below/destination/signal`, made if need be.
    pub(super) fn open(below: &Path, destination: &str, signal: &str) -> Result<Self, SpoolError> {
        let unusable = |path: &Path, source: io::Error| SpoolError::Unusable { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(below).map_err(|error| unusable(below, error))?;
        // The way there is the administrator's, who may well have symbolic links on it.
        let mut fd = openat(CWD, below, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| unusable(below, error.into()))?;
        let mut path = below.to_owned();
        check(&fd, &path)?;
        for name in [destination, signal] {
            path.push(name);
            if name.is_empty() || name.starts_with('.') || name.contains('/') {
                return Err(unusable(&path, io::ErrorKind::InvalidFilename.into()));
            }
            match mkdirat(&fd, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(unusable(&path, error.into())),
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fd = openat(&fd, name, flags, Mode::empty()).map_err(|error| unusable(&path, error.into()))?;
            check(&fd, &path)?;
        }
        let lock = open(&fd, LOCK, OFlags::CREATE).map_err(|error| unusable(&path.join(LOCK), error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { fd, path, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(SpoolError::InUse { path }),
            Err(error) => Err(unusable(&path.join(LOCK), error.into())),
        }
    }

    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        open(&self.fd, name, OFlags::CREATE | OFlags::EXCL)
    }

    /// A regular file of ours; nothing else is opened.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        open(&self.fd, name, OFlags::empty())
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Makes new names last.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }

    /// What is in it, in no order. What has a name that is no text has no name of ours.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn open(directory: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    // What is no regular file must not make us wait, nor do anything, when it is opened.
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    if stat.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("a file of somebody else"));
    }
    Ok(file)
}

/// Ours, and written by nobody else.
fn check(fd: &OwnedFd, path: &Path) -> Result<(), SpoolError> {
    let stat = fstat(fd).map_err(|error| SpoolError::Unusable { path: path.to_owned(), source: error.into() })?;
    let (owner, us) = (stat.st_uid, geteuid().as_raw());
    if owner != us {
        return Err(SpoolError::Foreign { path: path.to_owned(), owner, us });
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        return Err(SpoolError::Writable { path: path.to_owned(), mode: mode.as_raw_mode() });
    }
    Ok(())
}
