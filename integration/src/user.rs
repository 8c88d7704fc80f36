//! A user who did not exist before and is gone afterwards, with all that they run.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup;
use crate::image::{succeed, unique};
use crate::watched::poll;

#[derive(Debug)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub home: PathBuf,
}

impl User {
    /// With subordinate ids and what a login would have made: a runtime directory and cgroups to rule over.
    #[must_use]
    pub fn new() -> Self {
        let name = unique("nstest");
        succeed(Command::new("useradd").args(["--create-home", "--user-group", "--shell", "/bin/sh", &name]));
        let uid = succeed(Command::new("id").args(["-u", &name])).trim().parse().unwrap();
        let home = PathBuf::from("/home").join(&name);
        let this = Self { name, uid, home };
        fs::create_dir_all(this.runtime_directory()).unwrap();
        chown(this.runtime_directory(), Some(uid), Some(uid)).unwrap();
        this
    }

    #[must_use]
    pub fn runtime_directory(&self) -> PathBuf {
        Path::new("/run/user").join(self.uid.to_string())
    }

    /// The cgroup that systemd delegates to this user.
    #[must_use]
    pub fn service(&self) -> String {
        format!("{}/user@{}.service", self.slice(), self.uid)
    }

    fn slice(&self) -> String {
        format!("/user.slice/user-{}.slice", self.uid)
    }

    /// Makes a cgroup of the user's own below the one that is delegated.
    pub fn make_cgroup(&self, mount: &Path, name: &str) {
        let service = mount.join(self.service().trim_start_matches('/'));
        let mut directory = service.clone();
        fs::create_dir_all(service.join(name)).unwrap();
        self.rule(&directory);
        for component in Path::new(name) {
            directory.push(component);
            self.rule(&directory);
        }
    }

    fn rule(&self, directory: &Path) {
        for path in [directory.to_owned(), directory.join("cgroup.procs"), directory.join("cgroup.subtree_control")] {
            chown(path, Some(self.uid), Some(self.uid)).unwrap();
        }
    }

    /// Runs what follows as this user.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        let (uid, home) = (self.uid, self.home.display());
        let environment = [format!("HOME={home}"), format!("XDG_RUNTIME_DIR={}", self.runtime_directory().display())];
        let setpriv = [format!("--reuid={uid}"), format!("--regid={uid}"), "--init-groups".to_owned()];
        let words =
            [&["setpriv".to_owned()], &setpriv[..], &["env".to_owned(), format!("--chdir={home}")], &environment];
        words.concat()
    }

    fn processes(&self) -> Vec<Pid> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ours = entries.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == self.uid));
        ours.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
    }
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let all_ended = poll(Duration::from_secs(10), || {
            let processes = self.processes();
            for pid in &processes {
                // Whoever has ended since needs no signal.
                kill_process(*pid, Signal::KILL).ok();
            }
            processes.is_empty().then_some(())
        });
        let removed = Command::new("userdel").args(["--remove", &self.name]).output();
        if all_ended.is_none() || !removed.is_ok_and(|output| output.status.success()) {
            eprintln!("user {} stays behind", self.name);
        }
        if let Err(error) = fs::remove_dir_all(self.runtime_directory()) {
            eprintln!("{} stays behind: {error}", self.runtime_directory().display());
        }
        cgroup::remove(&self.slice());
    }
}
