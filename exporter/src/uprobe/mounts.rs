//! A process's table of mounts comes in; which of them may never answer goes out: those of a network, or of a program that
//! may be the container's own. Whoever opens a file there waits for as long as that likes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;

/// Most bytes of a table that are read; what is not in it is not trusted.
const TABLE: u64 = 4 << 20;
/// File systems that others answer for; so does whatever begins with `fuse`.
const REMOTE: [&str; 14] = [
    "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs",
    "smb3",
];

/// The device that we ourselves live on; it does not change.
static OWN_DEVICE: OnceLock<String> = OnceLock::new();

/// The mounts that a process sees.
#[derive(Debug)]
pub struct Mounts {
    mounts: Vec<Mount>,
    /// Whether they are all.
    pub is_whole: bool,
}

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
    pub fn read(table: &File) -> io::Result<Self> {
        let mut text = Vec::new();
        table.take(TABLE + 1).read_to_end(&mut text)?;
        let own = own_device()?;
        let mut mounts = Self::parse(&String::from_utf8_lossy(&text));
        // A container may fill its table to hide a mount behind the end of what is read.
        mounts.is_whole = text.len() as u64 <= TABLE;
        for mount in &mut mounts.mounts {
            // Whom this host itself lives on answers, or nothing does.
            mount.remote &= own != Some(&*mount.device);
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
        Self { mounts: mounts.collect(), is_whole: true }
    }

    /// Whether all that there are are answered for by the kernel alone.
    #[must_use]
    pub fn all_answer(&self) -> bool {
        self.is_whole && self.mounts.iter().all(|mount| !mount.remote)
    }

    /// Why it may not answer, or one that leads to it.
    #[must_use]
    pub fn doubt(&self, id: u64) -> Option<String> {
        let mut next = Some(id);
        for _ in 0..=self.mounts.len() {
            let found = next.and_then(|id| self.mounts.iter().find(|mount| mount.id == id));
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

    /// The one that a path without links leads to from the root, which is on the mount `root`.
    #[must_use]
    pub fn of_path(&self, root: u64, path: &str) -> Option<&Mount> {
        let holds = |mount: &&Mount| {
            let rest = path.strip_prefix(mount.point.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // As the kernel goes: from each mount to the first that is on it along the path. One that is deeper on the same mount
        // is hidden by that.
        let mut at = self.mounts.iter().find(|mount| mount.id == root)?;
        for _ in 0..self.mounts.len() {
            let on_it = self.mounts.iter().filter(|mount| mount.parent == at.id && mount.id != at.id);
            let Some(next) = on_it.filter(holds).min_by_key(|mount| mount.point.len()) else { break };
            at = next;
        }
        Some(at)
    }
}

fn own_device() -> io::Result<Option<&'static str>> {
    if let Some(device) = OWN_DEVICE.get() {
        return Ok(Some(device));
    }
    let own = Mounts::parse(&fs::read_to_string("/proc/self/mountinfo")?);
    let root = own.mounts.into_iter().rev().find(|mount| mount.point == "/");
    Ok(root.map(|root| &**OWN_DEVICE.get_or_init(|| root.device)))
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
        assert_eq!(mounts.mounts.len(), 6);
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
    fn a_path_is_on_the_mount_that_it_leads_to() {
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
            assert_eq!(mounts.of_path(1, path).unwrap().id, id, "{path}");
        }
        assert!(mounts.of_path(9, "/").is_none());
    }

    #[test]
    fn a_mount_that_another_covers_is_not_what_a_path_leads_to() {
        let covered = "1 0 0:30 / / rw - overlay o rw\n2 1 8:1 / /a/b rw - ext4 x rw\n3 1 0:9 / /a rw - fuse f rw\n";
        let mounts = Mounts::parse(covered);
        assert_eq!(mounts.of_path(1, "/a/b/program").unwrap().id, 3);
    }

    #[test]
    fn a_table_that_is_too_long_to_be_read_is_not_trusted() {
        let mut table = "1 0 0:30 / / rw - overlay overlay rw\n".to_owned();
        let more = "2 1 0:31 / /full rw - tmpfs tmpfs rw\n";
        table.push_str(&more.repeat(usize::try_from(super::TABLE).unwrap() / more.len()));
        let read = |table: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("mountinfo");
            fs::write(&path, table).unwrap();
            Mounts::read(&File::open(path).unwrap()).unwrap()
        };
        table.truncate(usize::try_from(super::TABLE).unwrap());
        assert!(read(&table).all_answer() && read(&table).is_whole);
        table.push_str("\n5 1 0:32 / /hidden rw - fuse.sshfs host:/ rw\n");
        let cut = read(&table);
        assert!(!cut.all_answer() && !cut.is_whole);
        assert_eq!(cut.doubt(1), None);
    }

    #[test]
    fn the_mount_of_an_open_file_is_in_the_table() {
        let mounts = Mounts::read(&File::open("/proc/self/mountinfo").unwrap()).unwrap();
        let root = mount_of(std::os::fd::AsFd::as_fd(&File::open("/").unwrap())).unwrap();
        let id = mount_of(std::os::fd::AsFd::as_fd(&File::open("/proc/self/stat").unwrap())).unwrap();
        assert_eq!(mounts.of_path(root, "/proc/self/stat").unwrap().id, id);
    }
}
