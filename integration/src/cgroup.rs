//! Cgroups that runtimes leave behind, and those that only systemd would make.

use std::fs;
use std::path::{Path, PathBuf};

/// Where each hierarchy is mounted, of v1 and of v2.
#[must_use]
pub fn mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_cgroups = mounts.lines().filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 "));
    of_cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Where that of v2 is mounted.
#[must_use]
pub fn unified() -> PathBuf {
    mounts().into_iter().find(|mount| mount.join("cgroup.controllers").exists()).unwrap()
}

/// Removes a cgroup, and what is below it, from each hierarchy; one with processes stays.
pub fn remove(path: &str) {
    for mount in mounts() {
        remove_tree(&mount.join(path.trim_start_matches('/')));
    }
}

/// The kernel's own files go with their directory.
fn remove_tree(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    if let Err(error) = fs::remove_dir(directory) {
        eprintln!("{} stays behind: {error}", directory.display());
    }
}
