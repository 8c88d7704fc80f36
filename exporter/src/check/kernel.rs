//! What kernel this is, and what it locks away.

use std::{fs, io};

use super::report::Check;

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

pub(super) fn release() -> Check {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    Check::ok("kernel", format!("{} {} on {}", text(uname.sysname()), text(uname.release()), text(uname.machine())))
}

pub(super) fn lockdown() -> Check {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    lockdown_of(fs::read_to_string(LOCKDOWN), has_file_system(&mounts, "securityfs"))
}

/// Whether the mount table has a file system of that type.
pub(super) fn has_file_system(mountinfo: &str, kind: &str) -> bool {
    mounts(mountinfo).any(|mount| mount.kind == kind)
}

/// A line of `/proc/self/mountinfo`.
pub(super) struct Mount<'a> {
    /// With space, tab, newline and backslash in octal.
    pub point: &'a str,
    pub kind: &'a str,
}

pub(super) fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        // The optional fields before the hyphen are any number.
        let (head, tail) = line.split_once(" - ")?;
        Some(Mount { point: head.split(' ').nth(4)?, kind: tail.split(' ').next()? })
    })
}

fn lockdown_of(file: io::Result<String>, has_securityfs: bool) -> Check {
    const NAME: &str = "lockdown";
    const REMEDY: &str = "mount -t securityfs securityfs /sys/kernel/security, if you want to know";
    let unknown =
        |why: String| Check::skip(NAME, format!("unknown: {why}")).means("the hooks below tell what it allows");
    match file {
        Ok(text) => match chosen(&text) {
            Some("confidentiality") => Check::warn(NAME, "confidentiality")
                .means("BPF programs may not read kernel memory, and tracefs is closed: the hooks below are refused")
                .remedy("boot with lockdown=integrity"),
            Some(state) => Check::ok(NAME, state),
            None => unknown(format!("{LOCKDOWN} has no state in brackets")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_securityfs => {
            Check::ok(NAME, "none: the kernel is built without it")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unknown("securityfs is not mounted here".to_owned()).remedy(REMEDY)
        }
        Err(error) => unknown(format!("{LOCKDOWN}: {error}")),
    }
}

/// The state in brackets of `none [integrity] confidentiality`.
fn chosen(lockdown: &str) -> Option<&str> {
    lockdown.split_whitespace().find_map(|state| state.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    fn missing() -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn the_lockdown_state_is_the_one_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(chosen("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(chosen("none integrity\n"), None);
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn only_confidentiality_is_warned_of() {
        let status = |text: &str| lockdown_of(Ok(text.to_owned()), true).status;
        assert_eq!(status("[none] integrity confidentiality"), Status::Ok);
        assert_eq!(status("none [integrity] confidentiality"), Status::Ok);
        assert_eq!(status("none integrity [confidentiality]"), Status::Warn);
    }

    #[test]
    fn lockdown_is_unknown_without_securityfs_and_absent_with_it() {
        let unknown = lockdown_of(missing(), false);
        assert_eq!(unknown.status, Status::Skip);
        assert!(unknown.found.starts_with("unknown: securityfs is not mounted"), "{}", unknown.found);
        assert_eq!(lockdown_of(missing(), true).status, Status::Ok);
    }

    #[test]
    fn mounts_are_read_whatever_their_optional_fields() {
        let table = "22 1 0:20 / /sys rw,nosuid shared:7 master:1 - sysfs sysfs rw\n\
                     30 22 0:7 / /sys/kernel/security rw - securityfs securityfs rw,relatime\n\
                     torn line\n";
        let points: Vec<_> = mounts(table).map(|mount| (mount.point, mount.kind)).collect();
        assert_eq!(points, [("/sys", "sysfs"), ("/sys/kernel/security", "securityfs")]);
        assert!(has_file_system(table, "securityfs"));
        assert!(!has_file_system(table, "tracefs"));
    }
}
