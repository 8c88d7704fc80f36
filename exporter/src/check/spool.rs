//! The directory in which what waits for a collector outlives us.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use super::report::Check;
use crate::config::{Config, Signal, Spool};

const NAME: &str = "spool";
/// Below the directory: destinations, signals, files.
const DEPTH: u32 = 4;

/// Makes something in it for a moment, or where it would be made.
pub(super) fn check(config: &Config) -> Check {
    let Some(spool) = &config.spool else {
        return Check::skip(NAME, "no directory is set")
            .means("what waits for a collector is in memory only, and lost if Namespan is killed");
    };
    let directory = spool.directory.as_path();
    let (place, there) = match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => (directory, Some(metadata)),
        Ok(_) => return unusable(directory, "it is no directory"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (nearest(directory), None),
        Err(error) => return unusable(directory, &error.to_string()),
    };
    if let Some(reason) = there.as_ref().and_then(not_ours_alone) {
        return unusable(directory, &reason);
    }
    if let Err(error) = make_something(place) {
        return unusable(directory, &error.to_string());
    }
    let shown = directory.display();
    let queues = config.exports(Signal::Logs).count() + config.exports(Signal::Traces).count();
    space(spool, place, u64::try_from(queues).unwrap_or(u64::MAX)).unwrap_or_else(|| {
        Check::ok(NAME, if there.is_some() { format!("{shown} is ours") } else { format!("{shown} can be made") })
    })
}

fn unusable(directory: &Path, reason: &str) -> Check {
    let shown = directory.display();
    Check::fail(NAME, format!("{shown}: {reason}"))
        .means("Namespan does not start: what it should keep, it could not")
        .remedy(format!(
            "make it as the user that runs Namespan: install -d -m 0700 {shown}; in a container mount a volume there"
        ))
}

/// The nearest directory above that exists.
fn nearest(directory: &Path) -> &Path {
    directory.ancestors().skip(1).find(|above| above.exists()).unwrap_or(directory)
}

/// A directory, as that needs what a file needs.
fn make_something(place: &Path) -> io::Result<()> {
    let probe = place.join(format!(".namespan-check-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&probe)?;
    fs::remove_dir(probe)
}

/// Who else can write there could make us send anything, so it is refused.
fn not_ours_alone(metadata: &Metadata) -> Option<String> {
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != us {
        return Some(format!("it is user {owner}'s, and we are user {us}"));
    }
    let mode = metadata.mode() & 0o7777;
    (mode & 0o022 != 0).then(|| format!("others may write there, as its mode is {mode:o}"))
}

/// `None`: there is enough of it, or it is not known.
fn space(spool: &Spool, place: &Path, queues: u64) -> Option<Check> {
    let free = rustix::fs::statvfs(place).ok()?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    let used = size(&spool.directory, DEPTH);
    let needed = spool.max_bytes.saturating_mul(queues);
    if free.saturating_add(used) >= needed {
        return None;
    }
    let found = format!("{}: {} MiB are free", spool.directory.display(), free >> 20);
    Some(
        Check::warn(NAME, found)
            .means(format!("up to {} MiB may wait there; from when the disk is full, some are lost", needed >> 20))
            .remedy("lower `spool.max_bytes`, which is of each signal and destination, or take another disk"),
    )
}

/// Bytes in all files, as deep as ours lie.
fn size(directory: &Path, depth: u32) -> u64 {
    let Some(below) = depth.checked_sub(1) else { return 0 };
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path(), below),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::report::Status;
    use super::*;
    use crate::config::Export;

    fn spooling(directory: &Path, max_bytes: u64) -> Config {
        let export = Export::to("http://c".parse().unwrap());
        Config {
            spool: Some(Spool { max_bytes, ..Spool::at(directory.to_owned()) }),
            logs: Some(export.clone()),
            traces: Some(export),
            ..Config::default()
        }
    }

    #[test]
    fn without_a_directory_there_is_nothing_to_look_at() {
        assert_eq!(check(&Config::default()).status, Status::Skip);
    }

    #[test]
    fn a_directory_is_ours_or_can_be_made_and_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let there = check(&spooling(folder.path(), 1));
        assert_eq!((there.status, there.found), (Status::Ok, format!("{} is ours", folder.path().display())));
        let below = folder.path().join("a/b");
        let made = check(&spooling(&below, 1));
        assert_eq!((made.status, made.found), (Status::Ok, format!("{} can be made", below.display())));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_used_fails_with_path_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for directory in [&file, &file.join("below"), Path::new("/proc/namespan")] {
            let check = check(&spooling(directory, 1));
            assert_eq!(check.status, Status::Fail, "{check:?}");
            assert!(check.found.starts_with(&format!("{}: ", directory.display())), "{check:?}");
            assert!(check.remedy.unwrap().contains("install -d -m 0700"));
        }
    }

    #[test]
    fn a_directory_that_others_can_write_fails_as_it_would_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, status) in [(0o770, Status::Fail), (0o702, Status::Fail), (0o755, Status::Ok), (0o700, Status::Ok)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check(&spooling(folder.path(), 1)).status, status, "{mode:o}");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o720)).unwrap();
        let found = check(&spooling(folder.path(), 1)).found;
        assert!(found.ends_with("others may write there, as its mode is 720"), "{found}");
    }

    #[test]
    fn too_little_space_is_a_warning_and_what_waits_there_already_counts() {
        let folder = tempfile::tempdir().unwrap();
        let check = check(&spooling(folder.path(), 1 << 61));
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("MiB are free"), "{check:?}");
        let deep = folder.path().join("main/logs");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("1"), "12345").unwrap();
        fs::write(folder.path().join("lock"), "12").unwrap();
        assert_eq!(size(folder.path(), DEPTH), 7);
    }
}
