//! A process's table of mounts comes in; which of them may never answer goes out: those of a network, or of a program that
//! may be the container's own. Whoever opens a file there waits for as long as that likes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Most bytes of a table that are read; what is not in it is not trusted.
const TABLE: u64 = 4 << 20;
/// File systems that others answer for; so does whatever begins with `fuse`.
const REMOTE: [&str; 14] = [
    "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs",
    "smb3",
];

/// The mounts that a process sees.
#[derive(Debug)]
pub struct Mounts(Vec<Mount>);

#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    parent: u64,
    device: String,
    /// From the process's root.
    pub point: String,
    kind: String,
    remote: bool,
}

impl Mounts {
    /// `table`: a `mountinfo` in `/proc`, at its beginning.
    pub fn read(table: File) -> io::Result<Self> {
        let mut text = Vec::new();
        table.take(TABLE).read_to_end(&mut text)?;
        let own = fs::read_to_string("/proc/self/mountinfo")?;
        let own = Self::parse(&own).0.into_iter().rev().find(|mount| mount.point == "/").map(|root| root.device);
        let mut mounts = Self::parse(&String::from_utf8_lossy(&text));
        for mount in &mut mounts.0 {
            // Whom this host itself lives on answers, or nothing does.
            mount.remote &= own.as_ref() != Some(&mount.device);
        }
        Ok(mounts)
    }

    fn parse(table: &str) -> Self {
        let mounts = table.lines().filter_map(|line| {
            // The optional fields before the hyphen are any number.
            let (head, tail) = line.split_once(" - ")?;
            let mut head = head.split(' ');
            let (id, parent) = (head.next()?.parse().ok()?, head.next()?.parse().ok()?);
            let (device, point) = (head.next()?.to_owned(), unescaped(head.nth(1)?));
            let kind = tail.split(' ').next()?.to_owned();
            let remote = REMOTE.contains(&&*kind) || kind.starts_with("fuse");
            Some(Mount { id, parent, device, point, kind, remote })
        });
        Self(mounts.collect())
    }

    /// Whether all of them are answered for by the kernel alone.
    #[must_use]
    pub fn all_answer(&self) -> bool {
        self.0.iter().all(|mount| !mount.remote)
    }

    /// Why it may not answer, or one that leads to it.
    #[must_use]
    pub fn doubt(&self, id: u64) -> Option<String> {
        let mut next = Some(id);
        for _ in 0..=self.0.len() {
            let found = next.and_then(|id| self.0.iter().find(|mount| mount.id == id));
            let Some(mount) = found else {
                // Above the root there is nothing to be seen.
                return (next == Some(id)).then(|| "a mount that its table does not show".to_owned());
            };
            if mount.remote {
                return Some(format!("a file system of type {}, mounted on {}", mount.kind, mount.point));
            }
            next = Some(mount.parent).filter(|parent| *parent != mount.id);
            next?;
        }
        None
    }

    /// The one on top of those that a path without links leads to.
    #[must_use]
    pub fn of_path(&self, path: &str) -> Option<&Mount> {
        let holds = |mount: &&Mount| {
            let rest = path.strip_prefix(mount.point.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // Of several on one place the last hides the others.
        self.0.iter().filter(holds).max_by_key(|mount| mount.point.len())
    }
}

/// The mount that an open file is on; the file system is not asked.
pub fn mount_of(file: BorrowedFd<'_>) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::Error::other(format!("{path} has no mnt_id")))
}

/// The kernel writes blanks, line feeds and backslashes as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (Some(code), Some(rest)) = (code, part.get(3..)) {
            whole.push(code.into());
            whole.push_str(rest);
        } else {
            whole.push('\\');
            whole.push_str(part);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        1 0 0:30 / / rw - overlay overlay rw\n\
        2 1 0:31 / /data rw shared:1 master:2 - nfs4 server:/x rw\n\
        3 2 8:1 / /data/local rw - ext4 /dev/sda1 rw\n\
        4 1 8:1 /x /opt/a\\040b rw - ext4 /dev/sda1 rw\n\
        5 1 0:32 / /mnt rw - fuse.sshfs host:/ rw\n\
        6 5 0:33 / /mnt rw - tmpfs tmpfs rw\n\
        no mount\n";

    #[test]
    fn what_others_answer_for_is_doubted_and_what_lies_behind_it() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.0.len(), 6);
        assert!(!mounts.all_answer());
        for (id, kind) in [(2, "nfs4"), (3, "nfs4"), (5, "fuse.sshfs"), (6, "fuse.sshfs"), (7, "does not show")] {
            let doubt = mounts.doubt(id).unwrap();
            assert!(doubt.contains(kind), "{id}: {doubt}");
        }
        assert_eq!([1, 4].map(|id| mounts.doubt(id)), [None, None]);
        let looped = Mounts::parse("1 2 0:1 / / rw - tmpfs t rw\n2 1 0:1 / /x rw - tmpfs t rw\n");
        assert_eq!(looped.doubt(1), None);
    }

    #[test]
    fn a_path_is_on_the_deepest_mount_above_it() {
        let mounts = Mounts::parse(TABLE);
        for (path, id) in [
            ("/usr/bin/x", 1),
            ("/database", 1),
            ("/data", 2),
            ("/data/x", 2),
            ("/data/local/x", 3),
            ("/opt/a b/x", 4),
            ("/mnt/x", 6),
        ] {
            assert_eq!(mounts.of_path(path).unwrap().id, id, "{path}");
        }
    }

    #[test]
    fn the_mount_of_an_open_file_is_in_the_table() {
        let mounts = Mounts::read(File::open("/proc/self/mountinfo").unwrap()).unwrap();
        let id = mount_of(std::os::fd::AsFd::as_fd(&File::open("/proc/self/stat").unwrap())).unwrap();
        assert_eq!(mounts.of_path("/proc/self/stat").unwrap().id, id);
    }
}
