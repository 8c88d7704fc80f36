use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::super::{Containerd, Storage};
use super::*;

const TASKS: &str = "io.containerd.runtime.v2.task";
const CAPACITY: NonZeroUsize = NonZeroUsize::new(8).unwrap();
const PODMAN: &str = r#"{"annotations":{"io.container.manager":"libpod"}}"#;

struct Test {
    home: tempfile::TempDir,
    forest: Forest,
}

impl Test {
    fn new(forest: impl FnOnce(&Path, Forest) -> Forest) -> Self {
        let home = tempfile::tempdir().unwrap();
        let forest = forest(home.path(), Forest::new(Labels::default(), CAPACITY));
        Self { home, forest }
    }

    fn containerd() -> Self {
        Self::new(|home, forest| forest.of(Box::new(Containerd::new(home))))
    }

    fn podman() -> Self {
        let test = Self::new(|home, forest| forest.of(Box::new(Storage::podman(home.join("graph"), home.join("run")))));
        fs::create_dir_all(test.path("graph/vfs-containers")).unwrap();
        test
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn bundle(&self, id: &str, config: &[u8]) {
        let bundle = self.path(TASKS).join("default").join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
    }

    /// Podman's containers with their names, the first of them with a bundle.
    fn storage(&self, root: &str, names: &[&str]) {
        let group = self.path(root).join("vfs-containers");
        let item = |(number, name)| format!(r#"{{"id":"{number:064}","names":["{name}"],"metadata":"{{}}"}}"#);
        let list: Vec<_> = names.iter().enumerate().map(item).collect();
        let bundle = group.join(format!("{:064}", 0)).join("userdata");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), PODMAN).unwrap();
        fs::write(group.join("containers.json"), format!("[{}]", list.join(","))).unwrap();
    }

    /// What is told by now.
    fn told(&mut self) -> Vec<String> {
        while !self.forest.hear() {}
        let text = |update| match update {
            Update::Known { container, .. } => format!("+{}", container.name.as_deref().unwrap_or("?")),
            Update::Unknown { key: id } => format!("?{id}"),
            Update::Gone { key } => format!("-{key}"),
            Update::State(link) => format!("{link:?}"),
        };
        self.forest.take_updates().into_iter().map(text).collect()
    }
}

#[test]
fn a_container_is_told_when_its_files_are_complete_and_gone_when_they_are() {
    let mut test = Test::containerd();
    test.forest.listen().unwrap();
    assert!(test.told().is_empty() && !test.forest.is_there());
    test.bundle("web", b"");
    assert!(test.told().is_empty() && test.forest.is_there());
    test.bundle("web", b"{\"annotations\":{}");
    assert!(test.told().is_empty());
    test.bundle("web", b"{}");
    assert_eq!(test.told(), ["+web"]);
    test.forest.all_dirty();
    assert!(test.told().is_empty());
    fs::remove_dir_all(test.path(TASKS).join("default/web")).unwrap();
    assert_eq!(test.told(), ["-containerd/default/web"]);
    assert!(test.told().is_empty());
}

#[test]
fn folders_may_go_and_come_back_as_a_whole() {
    let mut test = Test::containerd();
    test.bundle("web", b"{}");
    test.forest.listen().unwrap();
    assert_eq!(test.told(), ["+web"]);
    for _ in 0..3 {
        fs::remove_dir_all(test.path(TASKS)).unwrap();
        assert_eq!(test.told(), ["-containerd/default/web"]);
        assert!(!test.forest.is_there());
        test.bundle("web", b"{}");
        assert_eq!(test.told(), ["+web"]);
        fs::rename(test.path(TASKS), test.path("away")).unwrap();
        assert_eq!(test.told(), ["-containerd/default/web"]);
        fs::rename(test.path("away"), test.path(TASKS)).unwrap();
        assert_eq!(test.told(), ["+web"]);
    }
    assert_eq!(test.forest.watches.len(), 3);
}

#[test]
fn who_is_looked_up_is_told_from_disk_or_unknown() {
    let mut test = Test::containerd();
    test.bundle("web", b"{}");
    test.forest.listen().unwrap();
    test.told();
    test.bundle("new", b"{}");
    for (lookup, told) in [
        ("containerd/default/web", "+web"),
        ("containerd//web", "+web"),
        ("web", "+web"),
        ("containerd/k8s.io/web", "?containerd/k8s.io/web"),
        ("1000/containerd/web", "?1000/containerd/web"),
        ("../default/web", "?../default/web"),
        ("", "?"),
        ("//", "?//"),
    ] {
        test.forest.look_up(lookup);
        assert_eq!(test.told().last().map(String::as_str), Some(told), "{lookup}");
    }
}

#[test]
fn broken_and_hostile_folders_hide_no_container() {
    let mut test = Test::containerd();
    test.forest.listen().unwrap();
    let id = |id: &str| test.path(TASKS).join("default").join(id);
    let huge = vec![b' '; super::super::oci::CONFIG_MAX + 1];
    let deep = "[".repeat(100_000);
    for (number, garbage) in [&huge[..], deep.as_bytes(), b"\xff", b"null", b"{\"process\":7}"].into_iter().enumerate()
    {
        test.bundle(&format!("bad{number}"), garbage);
    }
    fs::create_dir(id("fifo")).unwrap();
    mknodat(CWD, id("fifo").join("config.json"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    symlink(id("web"), id("link")).unwrap();
    fs::write(id("file"), "").unwrap();
    test.bundle("web", b"{}");
    assert_eq!(test.told(), ["+web"]);
}

#[test]
fn there_is_a_bound_to_all() {
    let mut test = Test::containerd();
    test.forest.listen().unwrap();
    for number in 0..20 {
        test.bundle(&format!("web{number}"), b"{}");
    }
    assert_eq!(test.told().len(), CAPACITY.get());
    for number in 0..100 {
        fs::create_dir(test.path(TASKS).join(format!("group{number}"))).unwrap();
    }
    test.told();
    assert!(test.forest.trees[&None].groups.len() <= GROUPS);
    fs::remove_dir_all(test.path(TASKS)).unwrap();
    assert_eq!(test.told().len(), CAPACITY.get());
    assert_eq!(test.forest.watches.len(), 1);
}

#[test]
fn of_what_is_already_there_only_what_runs_is_told() {
    let mut test = Test::podman();
    test.storage("graph", &["old"]);
    test.forest.listen().unwrap();
    assert!(test.told().is_empty());
    test.storage("graph", &["renamed"]);
    assert_eq!(test.told(), ["+renamed"], "its bundle was written anew, as for a start");
    test.storage("graph", &["renamed", "second"]);
    assert_eq!(test.told(), ["+renamed"]);
    fs::write(test.path("graph/vfs-containers/containers.json"), "[]").unwrap();
    assert_eq!(test.told(), [format!("-{:064}", 0)]);
}

#[test]
fn a_container_whose_process_has_ended_is_gone_until_it_starts_again() {
    let mut test = Test::podman();
    test.storage("graph", &["web"]);
    test.forest.listen().unwrap();
    assert!(test.told().is_empty());
    let userdata = test.path(&format!("run/vfs-containers/{:064}/userdata", 0));
    fs::create_dir_all(&userdata).unwrap();
    fs::write(userdata.join("conmon.pid"), std::process::id().to_string()).unwrap();
    test.storage("graph", &["web"]);
    assert_eq!(test.told(), ["+web"]);
    let start = || {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(userdata.join("pidfile"), child.id().to_string()).unwrap();
        child
    };
    for _ in 0..2 {
        let mut child = start();
        assert_eq!(test.told(), ["+web"]);
        test.forest.check();
        assert!(test.told().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        test.forest.check();
        assert_eq!(test.told(), [format!("-{:064}", 0)]);
        test.forest.all_dirty();
        assert!(test.told().is_empty());
        test.forest.look_up(&format!("{:064}", 0));
        assert_eq!(test.told(), ["+web".to_owned(), format!("-{:064}", 0)]);
    }
}

fn of_users() -> Test {
    let user = rustix::process::geteuid().as_raw();
    let test = Test::new(|home, forest| {
        let users = Users { run: home.join("run"), tmp: home.join("tmp"), passwd: home.join("passwd") };
        forest.of_users(users)
    });
    // Root is no user whose containers are looked for.
    let entry = |id| format!("u{id}:x:{id}:1::{}/home{id}:/bin/sh\n", test.home.path().display());
    let all: String = (1..200).chain([user.max(1)]).map(entry).collect();
    fs::write(test.path("passwd"), all).unwrap();
    test
}

#[test]
fn a_user_s_containers_are_known_as_the_user_s() {
    let user = rustix::process::geteuid().as_raw();
    let mut test = of_users();
    test.forest.listen().unwrap();
    assert!(test.told().is_empty() && test.forest.is_there());
    let own = if user == 0 { 7 } else { user };
    let home = format!("home{own}/.local/share/containers/storage");
    fs::create_dir_all(test.path(&format!("home{own}"))).unwrap();
    fs::create_dir_all(test.path(&format!("run/{own}/containers"))).unwrap();
    assert!(test.told().is_empty());
    test.storage(&home, &["web"]);
    if user == 0 {
        assert!(test.told().is_empty(), "these files are somebody else's");
        chown_all(&test.path(&format!("home{own}")), own);
        fs::create_dir(test.path(&home).join("vfs-containers/x")).unwrap();
    }
    assert_eq!(test.told(), ["+web"]);
    let key = format!("{own}/podman/{:064}", 0);
    test.forest.look_up(&key);
    test.forest.look_up(&format!("{:064}", 0));
    assert_eq!(test.told(), ["+web".to_owned(), format!("?{:064}", 0)]);
    fs::remove_dir_all(test.path(&home)).unwrap();
    assert_eq!(test.told(), [format!("-{key}")]);
    fs::remove_dir_all(test.path("run")).unwrap();
    test.told();
    assert!(test.forest.trees.is_empty());
}

fn chown_all(path: &Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), None).unwrap();
    for entry in fs::read_dir(path).into_iter().flatten() {
        chown_all(&entry.unwrap().path(), user);
    }
}

#[test]
fn there_is_a_bound_to_users_and_none_is_kept_for_a_question() {
    let mut test = of_users();
    test.forest.listen().unwrap();
    for lookup in ["5/podman/x", "6/podman/x", "4000000000/podman/x", "99999999999/podman/x", "0/podman/x"] {
        test.forest.look_up(lookup);
        assert_eq!(test.told(), [format!("?{lookup}")]);
    }
    assert!(test.forest.trees.is_empty());
    for user in 1..200 {
        fs::create_dir_all(test.path(&format!("run/{user}"))).unwrap();
    }
    for name in ["systemd", "-1", "0", "99999999999"] {
        fs::create_dir_all(test.path("run").join(name)).unwrap();
    }
    test.told();
    assert_eq!(test.forest.trees.len(), USERS);
}
