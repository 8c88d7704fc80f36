use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn of_me(path: &Path) -> Folder {
    Root::of_user(me(), path.to_owned(), "").open().unwrap()
}

#[test]
fn there_is_no_way_out_of_a_folder() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    fs::create_dir_all(path("in/deep")).unwrap();
    fs::write(path("secret"), "x").unwrap();
    fs::write(path("in/deep/file"), "x").unwrap();
    symlink("deep", path("in/near")).unwrap();
    symlink(path("secret"), path("in/link")).unwrap();
    symlink("/proc/self/fd/0", path("in/magic")).unwrap();
    for folder in [Folder::open(&path("in"), None).unwrap(), of_me(&path("in"))] {
        assert_eq!(folder.file("deep/file", 1).unwrap().bytes, b"x");
        for out in ["../secret", "link", "near/file", "magic", "deep/../../secret", "/etc/passwd"] {
            assert!(folder.file(out, 1 << 20).is_err(), "{out}");
        }
        assert!(folder.folder("near").is_err() && folder.folder("..").is_err());
    }
}

#[test]
fn only_regular_files_of_a_bounded_size_are_read_and_none_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("five"), "12345").unwrap();
    fs::write(path("bytes"), b"\xff\xfe").unwrap();
    let folder = of_me(home.path());
    for name in ["fifo", "socket", "folder", "none", ""] {
        assert!(folder.file(name, 10).is_err(), "{name}");
    }
    assert!(folder.file("five", 4).is_err() && folder.file("five", 5).is_ok());
    assert_eq!(folder.file("five", 5).unwrap().number(), Some(12345));
    let bytes = folder.file("bytes", 5).unwrap();
    assert!(bytes.number().is_none() && bytes.json::<String>().is_err());
}

#[test]
fn what_a_user_does_not_own_or_has_mounted_is_not_the_user_s() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), "x").unwrap();
    let folder = Root::of_user(me() + 1, home.path().to_owned(), "").open().unwrap();
    assert!(folder.file("file", 1).is_err());
    let root = Root::of_user(0, "/".into(), "proc");
    assert!(root.open().is_err() && Root::of_host("/proc".into()).open().is_ok());
}

#[test]
fn names_that_are_not_utf_8_and_too_many_are_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    fs::write(home.path().join("a"), "").unwrap();
    let mut names = of_me(home.path()).names(10).unwrap();
    names.retain(|name| !name.starts_with('.'));
    assert_eq!(names, ["a"]);
    assert!(of_me(home.path()).names(1).unwrap().len() <= 1);
}

#[test]
fn the_nearest_folder_is_the_last_that_is_there() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("a")).unwrap();
    let names = |root: &Root| root.nearest().unwrap().names(10).unwrap();
    assert!(names(&Root::of_user(me(), home.path().to_owned(), "a/b/c")).iter().all(|name| name.starts_with('.')));
    assert!(names(&Root::of_host(home.path().join("b/c"))).contains(&"a".to_owned()));
}
