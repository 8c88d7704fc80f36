//! The users of this host, as far as they may run containers of their own.

use std::fs::read_to_string;
use std::io;
use std::path::PathBuf;

use super::folder::{Folder, Root};
use super::storage::Storage;

/// Most entries of `/run/user` that are looked at.
const ENTRIES: usize = 4096;

/// Where users are found.
#[derive(Clone, Debug)]
pub struct Users {
    /// A folder for each user who is logged in or lingers, named by the user's id.
    pub run: PathBuf,
    /// Where those who have none of these keep the same.
    pub tmp: PathBuf,
    pub passwd: PathBuf,
}

impl Default for Users {
    fn default() -> Self {
        Self { run: "/run/user".into(), tmp: "/tmp".into(), passwd: "/etc/passwd".into() }
    }
}

impl Users {
    pub(super) fn root(&self) -> Root {
        Root::of_host(self.run.clone())
    }

    /// Where a user's containers are, unless `storage.conf` says otherwise; `None`: there is no such user.
    pub(super) fn storage(&self, user: u32) -> Option<Storage> {
        let home = home(&read_to_string(&self.passwd).ok()?, user)?;
        let graph = Root::of_user(user, home, ".local/share/containers/storage");
        let own = (self.run.join(user.to_string()), "containers".to_owned());
        let spare = ["containers-user", "podman-run", "storage-run"]
            .map(|maker| (self.tmp.clone(), format!("{maker}-{user}/containers")));
        let run = [own].into_iter().chain(spare).map(|(trusted, below)| Root::of_user(user, trusted, below));
        Some(Storage::of_user(user, graph, run.collect()))
    }
}

/// Those who have a folder in it.
pub fn present(folder: &Folder) -> io::Result<Vec<u32>> {
    Ok(folder.names(ENTRIES)?.iter().filter_map(|name| name.parse().ok()).filter(|user| *user != 0).collect())
}

fn home(passwd: &str, user: u32) -> Option<PathBuf> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut homes = fields.filter(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(user));
    homes.next()?.get(5).map(PathBuf::from).filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::home;

    #[test]
    fn a_home_is_what_passwd_says() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken:x:7\na:x:1000:1000::/home/a:/bin/sh\nb:x:1001:1:,,::\n";
        assert_eq!(home(passwd, 1000).unwrap().to_str(), Some("/home/a"));
        assert_eq!([7, 1001, 5].map(|user| home(passwd, user)), [None, None, None]);
    }
}
