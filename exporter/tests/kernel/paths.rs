//! Where an executable lies, and every way to execute it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use namespan_ebpf::wire::flag;
use tempfile::TempDir;

use crate::helpers::helper;
use crate::watch::{Told, Watch, execs, execs_as, exits};
use crate::workload::{BUSYBOX, Live, run, run_true, shell, token};

fn path(told: &Told) -> String {
    String::from_utf8_lossy(told.exec().path).into_owned()
}

/// A directory with busybox in it.
fn with_busybox() -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let busybox = directory.path().join("busybox");
    fs::copy(BUSYBOX, &busybox).unwrap();
    let busybox = busybox.to_str().unwrap().to_owned();
    (directory, busybox)
}

/// Runs a script in a mount namespace of its own, in a directory of its own. It ends in a waiting program whose first
/// argument is `command`; both the record and `/proc` must have `expected` as its path, with `DIR` for the directory.
#[track_caller]
fn is_found(script: &str, command: &str, expected: &str) {
    let Some(mut watch) = Watch::default() else { return };
    let (directory, _) = with_busybox();
    let (token, directory) = (token(), directory.path().to_str().unwrap());
    let script = format!("{script}; exec {command} sh -c 'read x' $2");
    let mut unshared = Command::new("unshare");
    unshared.args(["-m", "/bin/sh", "-e", "-c", &script, "sh", directory, &token]).current_dir(directory);
    let live = Live::start(&mut unshared);
    // A wrapper's command follows it.
    let command = command.rsplit(' ').next().unwrap();
    let told = watch.find(execs_as(command, &token));
    let expected = expected.replace("DIR", directory);
    assert_eq!(path(&told), expected);
    let shown = fs::read_link(format!("/proc/{}/exe", live.pid())).unwrap();
    assert_eq!(shown, Path::new(&expected));
    assert_eq!(told.event().process.flags, 0);
    watch.end_whole();
}

#[test]
fn a_path_goes_through_bind_mounts_of_directories_and_of_files() {
    is_found("mkdir a; mount --bind . a", "./a/busybox", "DIR/a/busybox");
    is_found("mkdir a; mount --bind . a; mount --bind a a; cd a", "./busybox", "DIR/a/busybox");
    is_found("mkdir a; touch a/busybox; mount --bind busybox a/busybox", "a/busybox", "DIR/a/busybox");
}

#[test]
fn a_path_goes_through_other_file_systems() {
    is_found("mkdir t; mount -t tmpfs t t; cp busybox t", "t/busybox", "DIR/t/busybox");
    is_found(
        "mkdir t; mount -t tmpfs t t; mkdir t/u; mount -t tmpfs u t/u; cp busybox t/u",
        "t/u/busybox",
        "DIR/t/u/busybox",
    );
    is_found(
        "mkdir -p t m; mount -t tmpfs t t; mkdir t/l t/u t/w; cp busybox t/l; \
         mount -t overlay -o lowerdir=t/l,upperdir=t/u,workdir=t/w o m",
        "m/busybox",
        "DIR/m/busybox",
    );
}

#[test]
fn a_path_is_that_of_the_mount_namespace_in_a_chroot_and_its_own_after_pivot_root() {
    is_found("mkdir c; cp busybox c", "chroot $1/c /busybox", "DIR/c/busybox");
    let pivot = "mkdir r; mount --bind r r; cp busybox r; mkdir r/old; cd r; pivot_root . old; cd /";
    is_found(pivot, "/busybox", "/busybox");
}

#[test]
fn a_symlink_is_followed_and_a_hard_link_is_not() {
    let Some(mut watch) = Watch::default() else { return };
    let (directory, busybox) = with_busybox();
    let (soft, hard) = (directory.path().join("soft"), directory.path().join("hard"));
    symlink(&busybox, &soft).unwrap();
    fs::hard_link(&busybox, &hard).unwrap();
    let token = token();
    let (soft, hard_pid) = (run_true(&soft, &token), run_true(&hard, &token));
    assert_eq!(path(&watch.find(execs(soft))), busybox);
    assert_eq!(path(&watch.find(execs(hard_pid))), hard.to_str().unwrap());
    watch.end_whole();
}

#[test]
fn a_path_of_too_many_components_keeps_its_last_ones_and_says_so() {
    let Some(mut watch) = Watch::default() else { return };
    let (directory, busybox) = with_busybox();
    let deep: Vec<_> = (0..80).map(|depth| depth.to_string()).collect();
    let deep = directory.path().join(deep.join("/"));
    fs::create_dir_all(&deep).unwrap();
    let deep = deep.join("busybox");
    fs::rename(busybox, &deep).unwrap();
    let told = watch.find(execs(run_true(&deep, &token())));
    assert_eq!(told.event().process.flags, flag::PATH_TRUNCATED);
    assert!(path(&told).starts_with('/') && path(&told).split('/').count() > 60, "{}", path(&told));
    assert!(deep.to_str().unwrap().ends_with(&path(&told)));
    watch.end_whole();
}

#[test]
fn long_names_and_a_path_of_nearly_4096_bytes_are_whole() {
    let Some(mut watch) = Watch::default() else { return };
    let (directory, busybox) = with_busybox();
    let names: Vec<_> = (0..15).map(|depth| format!("{depth:x>255}")).collect();
    let long = directory.path().join(names.join("/"));
    fs::create_dir_all(&long).unwrap();
    let name = "n".repeat(4095 - long.to_str().unwrap().len() - 1);
    let long = long.join(name);
    fs::rename(busybox, &long).unwrap();
    let told = watch.find(execs(run_true(&long, &token())));
    assert_eq!((path(&told), told.event().process.flags), (long.to_str().unwrap().to_owned(), 0));
    watch.end_whole();
}

#[test]
fn files_without_a_name_are_told_as_such() {
    let Some(mut watch) = Watch::default() else { return };
    let (_directory, busybox) = with_busybox();
    let token = token();
    let pid = run(&mut helper("exec_memfd", &[BUSYBOX, "true", &token]));
    let told = watch.find(execs_as("true", &token));
    assert_eq!((told.id().tgid, path(&told).as_str()), (pid, "/memfd:ktest"));
    assert_eq!(told.event().process.flags, flag::UNLINKED);
    let pid = run(&mut helper("exec_file", &[&busybox, "true", &token]));
    let told = watch.find(|event| execs(pid)(event) && event.execs() == 2);
    assert_eq!((path(&told), told.event().process.flags), (busybox, flag::UNLINKED));
    watch.end_whole();
}

#[test]
fn a_script_is_told_beside_its_interpreter() {
    let Some(mut watch) = Watch::default() else { return };
    let (directory, busybox) = with_busybox();
    let script = directory.path().join("script");
    fs::write(&script, format!("#!{busybox} sh\nexit 0\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    let token = token();
    let told = watch.find(execs(run(Command::new(script).arg(&token))));
    assert_eq!((path(&told), told.exec().script), (busybox.clone(), script.as_bytes()));
    let args: Vec<_> = told.exec().args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    assert_eq!(args, [&busybox, "sh", script, &token]);
    // As it was asked for, relative to wherever that was.
    let pid = run(shell("exec ./script $1", &[&token]).current_dir(directory.path()));
    let told = watch.find(|event| execs(pid)(event) && event.execs() == 2);
    assert_eq!((path(&told), told.exec().script), (busybox, &b"./script"[..]));
    assert!(watch.find(execs(run_true(BUSYBOX, &token))).exec().script.is_empty());
    watch.end_whole();
}

#[test]
fn proc_self_exe_is_told_by_the_files_real_path() {
    let Some(mut watch) = Watch::default() else { return };
    let token = token();
    let pid = run(&mut helper("exec_self", &[&token]));
    let told = watch.find(execs_as("/proc/self/exe", &token));
    assert_eq!((told.id().tgid, told.event().execs()), (pid, 2));
    assert_eq!(path(&told), std::env::current_exe().unwrap().to_str().unwrap());
    assert!(told.exec().script.is_empty());
    watch.end_whole();
}

#[test]
fn an_exec_by_another_than_the_first_thread_is_one_exec_and_one_exit() {
    let Some(mut watch) = Watch::default() else { return };
    let token = token();
    let pid = run(&mut helper("exec_in_thread", &[BUSYBOX, &token]));
    watch.find(exits(pid));
    let ended = watch.end_whole();
    // The helper's own, and that of its thread, which has become the first one.
    let told: Vec<_> = ended.all(execs(pid)).map(|told| (told.event().process.tid, told.event().execs())).collect();
    assert_eq!(told, [(pid, 1), (pid, 2)]);
    assert_eq!(ended.count(exits(pid)), 1);
    let exit = ended.all(exits(pid)).next().unwrap().clone();
    assert_eq!(exit.exit().image, Some(exit.id()));
}
