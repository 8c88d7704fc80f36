//! Execs that fail, by errno.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use namespan::config::Probes;
use namespan::event::{Event, ExecFailed, Kind};
use namespan_ebpf::wire::{Counter, Program};

use crate::helpers::helper;
use crate::watch::{Watch, execs, exits, ready};
use crate::workload::{BUSYBOX, run, run_true, token};

fn failed<'e, 'a>(event: &'e Event<'a>) -> Option<&'e ExecFailed<'a>> {
    match &event.kind {
        Kind::ExecFailed(failed) => Some(failed),
        Kind::Exec(_) | Kind::Exit(_) => None,
    }
}

fn probes() -> Probes {
    Probes { failed_execs: true, ..Probes::default() }
}

#[test]
fn each_failed_exec_is_told_once_with_its_errno_and_the_path_as_asked_for() {
    let Some(mut watch) = Watch::start(&probes()) else { return };
    let token = token();
    let directory = tempfile::Builder::new().prefix(&token).tempdir().unwrap();
    let name = |name: &str| directory.path().join(name);
    fs::write(name("plain"), "").unwrap();
    fs::write(name("garbage"), "\x01\x02").unwrap();
    fs::set_permissions(name("garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(name("script"), "#!/nonexistent\n").unwrap();
    fs::set_permissions(name("script"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink(name("loop"), name("loop")).unwrap();
    symlink(BUSYBOX, name("big")).unwrap();
    let cases = [
        ("missing", libc::ENOENT),
        ("plain", libc::EACCES),
        ("garbage", libc::ENOEXEC),
        ("script", libc::ENOENT),
        ("loop", libc::ELOOP),
        ("plain/x", libc::ENOTDIR),
        ("big", libc::E2BIG),
    ];
    for (file, errno) in cases {
        let mut command = Command::new(name(file));
        if errno == libc::E2BIG {
            command.arg("x".repeat(200 << 10));
        }
        assert_eq!(command.spawn().unwrap_err().raw_os_error(), Some(errno), "{file}");
        let path = name(file).into_os_string().into_encoded_bytes();
        let told = watch.find(|event| failed(event).is_some_and(|failed| failed.path == path));
        let event = told.event();
        assert_eq!(failed(&event).unwrap().errno, errno.cast_unsigned(), "{file}");
        assert_eq!((event.process.parent_tgid, event.execs()), (std::process::id(), 0));
    }
    let path = name("missing").to_str().unwrap().to_owned() + "-at";
    let mut child = helper("execveat", &[&path]).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(libc::ENOENT));
    let at = |event: &Event<'_>| failed(event).is_some_and(|failed| failed.path == path.as_bytes());
    assert_eq!(watch.find(at).id().tgid, child.id());
    let good = run_true(BUSYBOX, &token);
    let good_at = run(&mut helper("exec_memfd", &[BUSYBOX, "true", &token]));
    watch.find(exits(good_at));
    let ended = watch.end_whole();
    let ours = |event: &Event<'_>| {
        failed(event).is_some_and(|failed| failed.path.windows(token.len()).any(|part| part == token.as_bytes()))
    };
    assert_eq!(ended.count(ours), cases.len() + 1);
    let of_good = |event: &Event<'_>| [good, good_at].contains(&event.process.tgid);
    assert_eq!(ended.count(|event| of_good(event) && failed(event).is_some()), 0);
    assert_eq!((ended.count(execs(good)), ended.count(execs(good_at))), (1, 2));
}

#[test]
fn our_own_failed_execs_are_not_told() {
    let Some(mut watch) = Watch::start(&probes()) else { return };
    let token = token();
    let own = format!("/nonexistent/{token}/own");
    std::thread::scope(|scope| {
        let fail = || {
            use std::os::unix::process::CommandExt as _;
            Command::new(&own).exec()
        };
        assert_eq!(scope.spawn(fail).join().unwrap().raw_os_error(), Some(libc::ENOENT));
    });
    let child = format!("/nonexistent/{token}/child");
    Command::new(&child).spawn().unwrap_err();
    watch.find(|event| failed(event).is_some_and(|failed| failed.path == child.as_bytes()));
    let ended = watch.end_whole();
    assert_eq!(ended.count(|event| event.process.tgid == std::process::id()), 0);
    assert!(ended.counted.of(Program::ExecFailed, Counter::Filtered) >= 1);
}

#[test]
fn tracefs_is_mounted_where_it_is_missing() {
    if ready() {
        run(&mut helper("mounts_tracefs", &[]));
    }
}

#[test]
fn failed_execs_are_told_only_if_asked_for() {
    let Some(watch) = Watch::default() else { return };
    Command::new("/nonexistent").spawn().unwrap_err();
    assert_eq!(watch.end_whole().counted.of(Program::ExecFailed, Counter::Triggered), 0);
}
